// The inputs of a model: an image that the visitor drops, chooses or draws, or a text. Each has `element` and `read`.

import { ask, make } from "./client.js";
import { makePad } from "./pad.js";

const SHOWN = 60; // most characters of an example text on its button

/** An image input; read() returns a Blob or null. drawn: whether drawing is possible. examples: addresses. changed: called on new input. */
export function imageInput(drawn, shape, examples, changed) {
  const picture = make("img", { alt: "The chosen image" });
  const overlay = make("div", { className: "overlay" });
  const frame = make("div", { className: "frame", hidden: true }, [picture, overlay]);
  const canvas = make("canvas", { className: "pad", ariaLabel: "Draw here" });
  const pad = drawn ? makePad(canvas, () => changed()) : null;
  const file = make("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true });
  const choose = make("button", { type: "button", textContent: "Choose image", className: "primary" });
  const clear = make("button", { type: "button", textContent: "Clear" });
  const empty = make("p", { className: "empty", textContent: "Drop an image here" });
  const stage = make("div", { className: `stage ${drawn ? "square" : ""}` }, [...(drawn ? [canvas] : [empty]), frame]);
  let blob = null;

  function show(next) {
    if (picture.src) URL.revokeObjectURL(picture.src);
    blob = next;
    overlay.replaceChildren();
    frame.hidden = !next;
    (drawn ? canvas : empty).hidden = Boolean(next);
    if (next) picture.src = URL.createObjectURL(next);
    else picture.removeAttribute("src");
    changed();
  }

  choose.addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files[0]) show(file.files[0]);
    file.value = "";
  });
  clear.addEventListener("click", () => {
    pad?.clear();
    show(null);
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    stage.addEventListener(kind, (event) => {
      event.preventDefault();
      stage.classList.toggle("over", kind.startsWith("dragen") || kind === "dragover");
    });
  }
  stage.addEventListener("drop", (event) => {
    const [dropped] = event.dataTransfer.files;
    if (dropped) show(dropped);
  });

  const thumbs = examples.map((path, number) => {
    const image = make("img", { alt: `Example ${number + 1}` });
    const button = make("button", { type: "button", className: "thumb", title: "Try this example" }, [image]);
    const loaded = ask(path).then((answer) => answer.blob()); // an image's `src` would send no token
    loaded.then((found) => (image.src = URL.createObjectURL(found))).catch(() => button.remove());
    button.addEventListener("click", async () => show(await loaded));
    return button;
  });
  const hint = drawn
    ? `Draw on the black square, or drop an image on it. A drawing is white on black; the page crops it, enlarges it to fill the frame
       and softens it, like the training images. Images are sent unchanged. The model sees ${shape[2]} × ${shape[1]} pixels.`
    : `Drop or choose an image (JPEG, PNG or WebP). The model sees ${shape[2]} × ${shape[1]} pixels.`;
  const actions = make("div", { className: "actions" }, [choose, clear, ...thumbs]);
  return {
    element: make("div", {}, [stage, actions, file]),
    hint,
    read: async () => blob ?? (pad?.hasInk() ? pad.image() : null),
    boxes: (found) => drawBoxes(overlay, picture, found),
  };
}

async function drawBoxes(overlay, picture, found) {
  overlay.replaceChildren();
  if (!found.length) return;
  await picture.decode();
  const { naturalWidth: width, naturalHeight: height } = picture;
  overlay.replaceChildren(
    ...found.map(({ label, score, x1, y1, x2, y2, hue }) => {
      const tag = make("span", {}, [make("b", { textContent: label }), ` ${Math.round(score * 100)} %`]);
      const box = make("div", { className: y1 / height < 0.08 ? "box low" : "box" }, [tag]);
      box.style.setProperty("--hue", hue);
      const sides = { left: x1 / width, top: y1 / height, width: (x2 - x1) / width, height: (y2 - y1) / height };
      for (const [side, value] of Object.entries(sides)) box.style[side] = `${value * 100}%`;
      return box;
    }),
  );
}

/** A text input; read() returns the text, or null if it is empty. examples: texts. changed: called on new input. */
export function textInput(examples, changed) {
  const area = make("textarea", { rows: 4, placeholder: "Type a text", ariaLabel: "Text", spellcheck: false });
  const clear = make("button", { type: "button", textContent: "Clear" });
  let timer;
  area.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(changed, 150);
  });
  const fill = (text) => {
    area.value = text;
    changed();
  };
  clear.addEventListener("click", () => fill(""));
  const chips = examples.map((text) => {
    const textContent = text.length > SHOWN ? `${text.slice(0, SHOWN)} …` : text;
    const chip = make("button", { type: "button", className: "chip", textContent, title: text });
    chip.addEventListener("click", () => fill(text));
    return chip;
  });
  return {
    element: make("div", {}, [area, make("div", { className: "actions" }, [...chips, clear])]),
    hint: "The answer updates as you type.",
    read: async () => (area.value.trim() ? area.value : null),
  };
}
