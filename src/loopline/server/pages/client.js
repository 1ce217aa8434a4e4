// Requests to the server that sent this page. One with a token answers 401: then the page asks for it, once a visit.

let token = sessionStorage.getItem("token") ?? "";
let asking; // one question at a time

/** fetch with the token. Throws an Error with the server's own words where it does not answer 2xx. */
export async function ask(path, options = {}) {
  const answer = await send(path, options);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `${answer.status} ${answer.statusText}`);
  return answer;
}

/** fetch with the token, whatever the answer. */
export async function send(path, options = {}) {
  for (;;) {
    const headers = new Headers(options.headers);
    if (token) headers.set("authorization", `Bearer ${token}`);
    const answer = await fetch(path, { ...options, headers });
    if (answer.status !== 401) return answer;
    asking ??= question().finally(() => (asking = undefined));
    token = await asking;
    sessionStorage.setItem("token", token);
  }
}

/** The answer's JSON. */
export async function json(path, options) {
  return (await ask(path, options)).json();
}

function question() {
  const input = make("input", { type: "password", required: true, autocomplete: "off" });
  const form = make("form", { method: "dialog" }, [
    make("label", {}, ["This server wants its bearer token ", input]),
    make("button", { textContent: "Go on" }),
  ]);
  const dialog = make("dialog", {}, [form]);
  document.body.append(dialog);
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(input.value.trim());
    }),
  );
}

/** An element with properties and children. */
export function make(name, properties = {}, children = []) {
  const { dataset, ...rest } = properties;
  const element = Object.assign(document.createElement(name), rest);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}
