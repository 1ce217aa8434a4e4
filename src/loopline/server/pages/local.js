// Runs the server's model file in the browser with onnxruntime-web (WebAssembly). After loading, nothing leaves the device.

import { ask, json } from "./client.js";
import { decode, resize, scale } from "./pixels.js";
import { compile } from "./tokenizer.js";

let runtime; // loaded once, at first use

async function start() {
  const ort = await import("./assets/ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1; // more threads would need headers that isolate the page, and the models are small
  ort.env.wasm.wasmPaths = { wasm: new URL("./assets/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  return ort;
}

/** Load a model. Returns a function from a Blob or a text to the answer that the server's /predict would give. */
export async function open(name, version) {
  runtime ??= start().catch((error) => {
    runtime = undefined; // so that the next try loads again
    throw error;
  });
  const path = (file) => `bundles/${name}/${file}?v=${version}`;
  const [ort, { spec }, model] = await Promise.all([runtime, json(path("bundle.json")), ask(path("model.onnx"))]);
  const tokenize = spec.text && compile(await json(path("tokenizer.json")));
  const bytes = new Uint8Array(await model.arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const shape = spec.image && [1, spec.image.height, spec.image.width, spec.image.channels];
  const nothing = shape ? { image: new ort.Tensor("uint8", new Uint8Array(shape.reduce((a, b) => a * b)), shape) } : ids([0, 0]);
  await session.run(nothing); // the first run is slow

  function ids(numbers) {
    return { ids: new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]) };
  }
  return async (input) => {
    if (spec.text) return ranked(await session.run(ids(tokenize(input))), spec);
    const original = await decode(input, spec.image.channels);
    const found = await session.run({ image: new ort.Tensor("uint8", resize(original, spec.image).data, shape) });
    if (found.boxes) return boxes(found, spec, original);
    if (found.probabilities) return ranked(found, spec);
    throw new Error("only the server can compute this model's answers");
  };
}

function ranked({ probabilities: { data } }, { labels }) {
  const order = Array.from(data.keys()).sort((a, b) => data[b] - data[a]);
  const named = order.map((i) => [labels[i], data[i]]);
  return { label: named[0][0], probability: named[0][1], probabilities: Object.fromEntries(named) };
}

function boxes({ boxes: { data: corners }, scores: { data: scores }, classes: { data: classes } }, spec, { width, height }) {
  const [across, down] = scale(width, height, spec.image);
  const place = (value, factor, limit) => Math.min(Math.max(value / factor, 0), limit);
  const found = [];
  scores.forEach((score, i) => {
    if (score < Math.fround(spec.score_threshold)) return;
    const [x1, y1, x2, y2] = [0, 1, 2, 3].map((j) => (j % 2 ? place(corners[4 * i + j], down, height) : place(corners[4 * i + j], across, width)));
    found.push({ label: spec.labels[Number(classes[i])], score, x1, y1, x2, y2 });
  });
  return { boxes: found };
}
