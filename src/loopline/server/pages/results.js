// Shows answers: bars of probabilities, or boxes over the image.

import { make } from "./client.js";

const BARS = 8; // bars of the most probable labels; up to ten labels are all shown, in the model's order
const languages = new Intl.DisplayNames(["en"], { type: "language", fallback: "none" });

/** Show `answer`, an item of /predict's predictions, in the element `output`. `input` draws the boxes. */
export function showAnswer(output, answer, labels, input) {
  const shown = answer.boxes ? listed(answer.boxes, labels, input) : answer.probabilities ? barred(answer, labels) : plain(answer);
  output.replaceChildren(...shown);
}

function plain(answer) { // for tasks without classes or boxes
  const rows = Object.entries(answer).map(([name, value]) =>
    make("li", {}, [make("span", { className: "name", textContent: name }), make("span", { className: "figure", textContent: String(value) })]),
  );
  return [make("p", { className: "title" }, [make("strong", { textContent: answer.label })]), make("ul", { className: "found" }, rows)];
}

function barred({ label, probability, probabilities }, labels) {
  const ranked = Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
  const shown = labels.length <= 10 ? labels.map((one) => [one, probabilities[one]]) : ranked.slice(0, BARS);
  const called = namer(labels);
  const rows = shown.map(([one, value]) => {
    const fill = make("span", { className: "fill" });
    fill.style.width = `${value * 100}%`;
    return make("li", { className: one === label ? "best" : "" }, [
      make("span", { className: "name", textContent: called(one) }),
      make("span", { className: "bar" }, [fill]),
      make("span", { className: "figure", textContent: percent(value) }),
    ]);
  });
  const title = make("p", { className: "title" }, [make("strong", { textContent: called(label) }), ` ${percent(probability)}`]);
  return [title, make("ul", { className: labels.length <= 10 && labels.every((one) => one.length < 3) ? "bars short" : "bars" }, rows)];
}

function listed(boxes, labels, input) {
  input.boxes(boxes.map((box) => ({ ...box, hue: hue(labels, box.label) })));
  const rows = boxes.map(({ label, score }) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.setProperty("--hue", hue(labels, label));
    return make("li", {}, [swatch, make("span", { className: "name", textContent: label }), make("span", { className: "figure", textContent: percent(score) })]);
  });
  const many = boxes.length === 1 ? "one object" : `${boxes.length} objects`;
  return [make("p", { className: "title" }, [make("strong", { textContent: boxes.length ? many : "nothing found" })]), make("ul", { className: "found" }, rows)];
}

const hue = (labels, label) => Math.round((labels.indexOf(label) * 360) / labels.length);
const percent = (value) => (value < 0.0005 ? "0 %" : value > 0.9995 ? "100 %" : `${(value * 100).toFixed(1)} %`);

function namer(labels) { // if all labels are language codes, show the languages' names
  const name = (label) => (/^[a-z]{2}$/.test(label) ? languages.of(label) : undefined);
  return labels.every(name) ? (label) => `${name(label)} (${label})` : (label) => label;
}
