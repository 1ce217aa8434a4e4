// The demo page: a tab for each model, and a switch for running the models on the server or in the browser.

import { json, make } from "./client.js";
import { makePanel } from "./panel.js";

const where = document.querySelector("#where"), inBrowser = document.querySelector("#in-browser");
const tabs = document.querySelector("#tabs"), panels = document.querySelector("#panels");
const shown = new Map(); // model name -> {tab, panel}
let selected;

const say = (text) => (where.textContent = text);

function select(name, { focus = false } = {}) {
  selected = name;
  for (const [one, { tab, panel }] of shown) {
    tab.setAttribute("aria-selected", one === name);
    tab.tabIndex = one === name ? 0 : -1;
    panel.element.hidden = one !== name;
  }
  if (focus) shown.get(name).tab.focus();
  history.replaceState(null, "", `#${name}`);
  shown.get(name).panel.place(inBrowser.checked, say);
}

function addTab(model, examples) {
  const panel = makePanel(model, examples);
  Object.assign(panel.element, { id: `panel-${model.name}`, role: "tabpanel" });
  const tab = make("button", { type: "button", role: "tab", id: `tab-${model.name}`, textContent: model.name });
  tab.setAttribute("aria-controls", panel.element.id);
  panel.element.setAttribute("aria-labelledby", tab.id);
  tab.addEventListener("click", () => select(model.name));
  tabs.append(tab);
  panels.append(panel.element);
  shown.set(model.name, { tab, panel });
}

tabs.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const names = [...shown.keys()];
  select(names.at((names.indexOf(selected) + step) % names.length), { focus: true });
});
inBrowser.addEventListener("change", () => shown.get(selected).panel.place(inBrowser.checked, say));

try {
  const index = await json("v2/repository/index", { method: "POST" });
  const [bundles, ...models] = await Promise.all([json("bundles"), ...index.map(({ name }) => json(`v2/models/${name}`))]);
  panels.replaceChildren();
  for (const model of models) addTab(model, bundles.examples[model.name]);
  inBrowser.disabled = !bundles.in_browser;
  if (bundles.in_browser) say("The server answers.");
  else say("The server answers. Models cannot run in the browser because its runtime was not built: run make demo and restart the server.");
  const asked = decodeURIComponent(location.hash.slice(1));
  const first = shown.has(asked) ? asked : models[0].name;
  shown.get(first).panel.place(false, () => {});
  const reason = where.textContent;
  select(first);
  if (!bundles.in_browser) say(reason);
  document.body.dataset.ready = "";
} catch (error) {
  panels.replaceChildren(make("p", { className: "error", textContent: `The server's models cannot be shown: ${error.message}` }));
}
