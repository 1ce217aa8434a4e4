// Requests to the server of this page. If the server answers 401, the page asks for the token, once a visit.

let token = sessionStorage.getItem("token") ?? "";
let asking; // the open question for the token, so that there is only one at a time

/** Fetch with the token. Throws an Error with the server's message if the status is not 2xx. */
export async function ask(path, options = {}) {
  const answer = await send(path, options);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `${answer.status} ${answer.statusText}`);
  return answer;
}

/** Fetch with the token. Returns the answer, whatever its status. */
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

/** Fetch with the token. Returns the answer's JSON. */
export async function json(path, options) {
  return (await ask(path, options)).json();
}

function question() {
  const input = make("input", { type: "password", required: true, autocomplete: "off" });
  const form = make("form", { method: "dialog" }, [
    make("label", {}, ["This server requires its bearer token ", input]),
    make("button", { textContent: "Continue" }),
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

/** Make an element with these properties and children. */
export function make(name, properties = {}, children = []) {
  const { dataset, ...rest } = properties;
  const element = Object.assign(document.createElement(name), rest);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}
