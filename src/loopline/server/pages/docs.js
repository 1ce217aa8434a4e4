// The page of /openapi.json: every route with a working example and a button that sends it.

import { ask, json, make, send } from "./client.js";

const SHOWN = 20_000; // most characters of an answer that are shown

const calls = document.querySelector("#calls");
try {
  const { tags, paths } = await json("openapi.json");
  calls.replaceChildren(...tags.flatMap(({ name, description }) => section(name, description, paths)));
  document.body.dataset.ready = "";
} catch (error) {
  calls.replaceChildren(make("p", { className: "error", textContent: `openapi.json cannot be read: ${error.message}` }));
}

function section(tag, description, paths) {
  const mine = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, operation]) => operation.tags[0] === tag)
      .map(([method, operation]) => call(path, method.toUpperCase(), operation)),
  );
  return [make("h2", { textContent: tag }), make("p", { className: "quiet", textContent: description }), ...mine];
}

function call(path, method, operation) {
  const details = make("details", { className: "call", id: operation.operationId }, [
    make("summary", {}, [
      make("span", { className: "method", textContent: method }),
      make("code", { textContent: path }),
      make("span", { className: "quiet", textContent: operation.summary }),
    ]),
  ]);
  details.addEventListener("toggle", () => details.childElementCount === 1 && details.append(...open(path, method, operation)));
  return details;
}

function open(path, method, { requestBody, responses }) {
  const body = requestBody ? editor(requestBody.content) : null;
  const command = make("pre", { ariaLabel: "The same request with curl" });
  const answer = make("pre", { hidden: true, ariaLive: "polite" });
  const button = make("button", { type: "button", className: "primary", textContent: "Try it" });
  const say = () => (command.textContent = curl(path, method, body));
  body?.element.addEventListener("input", say);
  say();
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const start = performance.now();
      const reply = await send(path.slice(1), { method, body: await body?.read(), headers: body?.headers() });
      const text = await reply.text();
      const spent = (performance.now() - start).toFixed(1);
      const kind = reply.headers.get("content-type");
      const said = kind?.includes("json") ? pretty(text) : text;
      answer.textContent = `${reply.status} ${reply.statusText} in ${spent} ms\n${said.length > SHOWN ? `${said.slice(0, SHOWN)} …` : said}`;
    } catch (error) {
      answer.textContent = `The server did not answer: ${error.message}`;
    }
    answer.hidden = false;
    button.disabled = false;
  });
  const statuses = Object.entries(responses).map(([status, { description }]) => make("li", { textContent: `${status}: ${description}` }));
  return [...(body ? [body.element] : []), command, button, answer, make("ul", { className: "quiet" }, statuses)];
}

function pretty(text) {
  try {
    const said = JSON.parse(text);
    // A list of numbers stays on one line.
    return JSON.stringify(said, null, 2).replace(/\[[\s\d.,e+-]*\]/g, (list) => list.replace(/\s+/g, " "));
  } catch {
    return text;
  }
}

/** The editor of a request's body: a text area, or a choice of a file. */
function editor(content) {
  const [kind, { example, examples }] = Object.entries(content)[0];
  const first = example ?? Object.values(examples ?? {})[0];
  if (kind.startsWith("image/")) {
    const file = make("input", { type: "file", accept: Object.keys(content).join() });
    const loaded = first && ask(first.externalValue.slice(1)).then((answer) => answer.blob()); // an image's `src` would send no token
    const shown = make("img", { alt: "The example", height: 64 });
    loaded?.then((found) => (shown.src = URL.createObjectURL(found))).catch(() => shown.remove());
    return {
      element: make("p", {}, first ? [shown, " Send this example, or choose a file: ", file] : ["Choose a file: ", file]),
      read: async () => file.files[0] ?? (await loaded),
      headers: () => ({ "content-type": file.files[0]?.type || kind }),
      arguments: () => ["--data-binary", `@${file.files[0]?.name ?? `image.${kind.split("/")[1]}`}`],
    };
  }
  const text = JSON.stringify(example ?? first.value);
  const area = make("textarea", { value: text, rows: Math.min(8, 2 + Math.floor(text.length / 80)), spellcheck: false, ariaLabel: "The request's body" });
  return {
    element: area,
    read: async () => area.value,
    headers: () => ({ "content-type": kind }),
    arguments: () => ["--json", area.value.length > 500 ? "@request.json" : area.value],
  };
}

function curl(path, method, body) {
  const quoted = (word) => (/^[\w@.:/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
  const post = method === "POST" && !body ? ["-X", "POST"] : [];
  return ["curl", ...post, ...(body?.arguments() ?? []), new URL(path.slice(1), document.baseURI).href].map(quoted).join(" ");
}
