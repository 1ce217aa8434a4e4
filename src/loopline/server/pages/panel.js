// A model's panel: its input, its answer with the latency, and whether it runs on the server or in the browser.

import { ask, make } from "./client.js";
import { imageInput, textInput } from "./inputs.js";
import { showAnswer } from "./results.js";

const KEPT = 50; // latest latencies, for the median

/** Make a model's panel. model: the answer of /v2/models/<name>. examples: texts, or addresses of images. */
export function makePanel(model, examples) {
  const { name, versions, inputs, outputs, parameters } = model;
  const output = make("div", { className: "answer", ariaLive: "polite" });
  const latency = make("p", { className: "latency quiet" });
  const drawn = inputs[0].shape.at(-1) === 1 && outputs.some((output) => output.name === "probabilities");
  const input = inputs[0].name === "ids" ? textInput(examples, () => run()) : imageInput(drawn, inputs[0].shape, examples, () => run());
  const facts = [parameters.task, parameters.precision, `version ${versions[0]}`].join(" · ");
  const element = make("section", { className: "panel" }, [
    make("div", { className: "input" }, [input.element]),
    make("div", { className: "output" }, [output, latency, make("p", { className: "quiet facts", textContent: facts })]),
    make("p", { className: "hint quiet", textContent: input.hint }),
  ]);
  const times = { server: [], browser: [] };
  let local = null; // promise of the model in the browser, while the switch is on
  let last = 0;

  async function server(data) {
    const text = typeof data === "string";
    const body = text ? JSON.stringify({ text: data }) : data;
    const headers = { "content-type": text ? "application/json" : data.type || "application/octet-stream" };
    const answer = await ask(`predict/${name}`, { method: "POST", body, headers });
    return (await answer.json()).predictions[0];
  }

  async function run() {
    const mine = ++last;
    const place = local ? "browser" : "server";
    try {
      const data = await input.read();
      if (data === null) return clear();
      const predict = local ? await local : server;
      const start = performance.now();
      const answer = await predict(data);
      const spent = performance.now() - start;
      if (mine !== last) return; // there is a newer input
      times[place] = [...times[place], spent].slice(-KEPT);
      showAnswer(output, answer, parameters.labels, input);
      const what = place === "browser" ? "On this device" : "Round trip";
      const all = times[place];
      const usual = all.length > 1 ? ` · median of the last ${all.length}: ${milliseconds(median(all))}` : "";
      latency.textContent = `${what} ${milliseconds(spent)}${usual}`;
      element.dataset.answered = place;
    } catch (error) {
      if (mine !== last) return;
      clear();
      output.replaceChildren(make("p", { className: "error", textContent: error.message }));
    }
  }

  function clear() {
    output.replaceChildren(make("p", { className: "quiet", textContent: "The answer appears here." }));
    latency.textContent = "";
    input.boxes?.([]);
    delete element.dataset.answered;
  }

  /** Switch to the browser or the server. say: shows a text to the visitor. */
  async function place(inBrowser, say) {
    if (inBrowser === Boolean(local)) return local ? say(HERE) : say("The server answers.");
    if (!inBrowser) {
      local = null;
      say("The server answers.");
      return run();
    }
    say(`Loading the ${name} model into this browser …`);
    const loading = (local = import("./local.js").then(({ open }) => open(name, versions[0])));
    try {
      await loading;
      if (local === loading) say(HERE);
    } catch (error) {
      if (local === loading) local = null;
      return say(`The server answers, because the ${name} model cannot run in this browser: ${error.message}`);
    }
    return run();
  }

  clear();
  return { element, place };
}

const HERE = "This browser answers, with the same model file as the server. Your input stays on this device.";
const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}
