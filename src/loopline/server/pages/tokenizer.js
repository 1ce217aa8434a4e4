// Runs a tokenizer.json of the Python library `tokenizers`, limited to Loopline's text models: whole words or characters.

const SPACE = "\\p{White_Space}";
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"; // Oniguruma's \w; outside of brackets it also has:
const MORE = "²³¹¼-¾";
const START = new RegExp(`^${SPACE}+`, "u"), END = new RegExp(`${SPACE}+$`, "u");

/** Make a function from a text to its token ids. Throws an Error if the page does not support a part of the tokenizer. */
export function compile(file) {
  const normalize = normalizer(file.normalizer), split = splitter(file.pre_tokenizer);
  if (file.model.type !== "WordLevel") throw new Error(`the page does not support tokenizers of type ${file.model.type}`);
  const vocabulary = new Map(Object.entries(file.model.vocab));
  const unknown = vocabulary.get(file.model.unk_token);
  const template = file.post_processor?.single ?? [{ Sequence: { id: "A" } }];
  const around = template.map((part) => (part.SpecialToken ? file.post_processor.special_tokens[part.SpecialToken.id].ids : null));
  const room = (file.truncation?.max_length ?? Infinity) - around.flat().filter((id) => id !== null).length;
  return (text) => {
    const pieces = split(normalize(text.replace(/\p{Surrogate}/gu, "?"))).slice(0, room);
    const ids = pieces.map((piece) => vocabulary.get(piece) ?? unknown);
    return around.flatMap((special) => special ?? ids);
  };
}

function normalizer(part) {
  if (!part) return (text) => text;
  switch (part.type) {
    case "Sequence": {
      const steps = part.normalizers.map(normalizer);
      return (text) => steps.reduce((so_far, step) => step(so_far), text);
    }
    case "NFC":
      return (text) => text.normalize("NFC");
    case "Lowercase": // letter by letter, so that a final sigma becomes an ordinary one
      return (text) => Array.from(text, (letter) => letter.toLowerCase()).join("");
    case "Strip": {
      const left = part.strip_left ? START : "", right = part.strip_right ? END : "";
      return (text) => text.replace(left, "").replace(right, "");
    }
    case "Replace": {
      const wanted = pattern(part.pattern);
      return (text) => text.replace(wanted, () => part.content);
    }
    default:
      throw new Error(`the page does not support normalizers of type ${part.type}`);
  }
}

function splitter(part) {
  if (part?.type === "Split") {
    const wanted = pattern(part.pattern);
    if (part.behavior === "Removed" && part.invert) return (text) => text.match(wanted) ?? [];
    if (part.behavior === "Isolated" && !part.invert) {
      return (text) => {
        const pieces = [];
        let end = 0;
        for (const { 0: found, index } of text.matchAll(wanted)) {
          pieces.push(text.slice(end, index), found);
          end = index + found.length;
        }
        return [...pieces, text.slice(end)].filter((piece) => piece);
      };
    }
  }
  throw new Error(`the page does not support the tokenizer's splitter: ${JSON.stringify(part)}`);
}

function pattern({ Regex: regex, String: literal }) {
  if (literal !== undefined) return new RegExp(literal.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "gu");
  let inside = false; // whether inside of [...], where \w and \s need no brackets
  const translated = regex.replace(/\\[\s\S]|[[\]]/g, (found) => {
    if (found === "[") inside = true;
    if (found === "]") inside = false;
    if (found === "\\w") return inside ? WORD : `[${WORD}${MORE}]`;
    if (found === "\\s") return SPACE;
    if (found === "\\S") return "\\P{White_Space}";
    return found;
  });
  return new RegExp(translated, "gu");
}
