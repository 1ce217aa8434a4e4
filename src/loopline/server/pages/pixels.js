// Turns an image file into the model's input pixels, like loopline.tasks.image on the server. A PNG differs by at most 1 of 255
// (Pillow may resize columns first), other files by at most 3, because a browser's decoder and blending round differently.

const MOST_PIXELS = 25_000_000;
const SIGNATURES = [[0x89, 0x50, 0x4e, 0x47], [0xff, 0xd8, 0xff], [0x52, 0x49, 0x46, 0x46]]; // PNG, JPEG, WebP
const BITS = 22; // bits of a weight's fraction, as in Pillow for 8-bit pixels

/** Decode a Blob to an upright image {width, height, channels, data: Uint8Array}, RGB or grey. Throws an Error if it cannot. */
export async function decode(blob, channels) {
  const head = new Uint8Array(await blob.slice(0, 4).arrayBuffer());
  if (!SIGNATURES.some((one) => one.every((byte, i) => head[i] === byte))) {
    throw new Error("not an image: JPEG, PNG and WebP are accepted");
  }
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Error("broken image");
  });
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) throw new Error(`${width}x${height} pixels, at most ${MOST_PIXELS} are accepted`);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true }); // on the CPU, because a GPU may round
  context.fillStyle = "white"; // background of transparent images
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return unpack(context.getImageData(0, 0, width, height), channels);
}

function unpack({ width, height, data: rgba }, channels) {
  const data = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const r = rgba[from], g = rgba[from + 1], b = rgba[from + 2];
    if (channels === 3) {
      data[to++] = r;
      data[to++] = g;
      data[to++] = b;
    } else {
      data[to++] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; // ITU-R 601, Pillow's "L"
    }
  }
  return { width, height, channels, data };
}

/** The number of input pixels for one pixel of the original, along x and y. spec: spec.image of bundle.json. */
export function scale(width, height, spec) {
  const across = spec.width / width, down = spec.height / height;
  return spec.fit === "stretch" ? [across, down] : [Math.min(across, down), Math.min(across, down)];
}

/** Resize an image to the size in `spec`. A letterbox is padded on the right and below. */
export function resize(image, spec) {
  const [across, down] = scale(image.width, image.height, spec);
  const width = Math.max(1, roundHalfEven(image.width * across)), height = Math.max(1, roundHalfEven(image.height * down));
  let small = image;
  if (width !== image.width) small = shrinkRows(small, width);
  if (height !== image.height) small = transpose(shrinkRows(transpose(small), height));
  if (width === spec.width && height === spec.height) return small;
  const data = new Uint8Array(spec.width * spec.height * small.channels).fill(spec.pad_value);
  const row = width * small.channels;
  for (let y = 0; y < height; y++) data.set(small.data.subarray(y * row, (y + 1) * row), y * spec.width * small.channels);
  return { width: spec.width, height: spec.height, channels: small.channels, data };
}

function roundHalfEven(value) { // like Python's round
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

// As in Pillow's Resample.c: a triangle filter as wide as the scale, weights rounded to 22 bits, results to 8 bits per direction.
function shrinkRows({ width: from, height, channels, data }, width) {
  const out = new Uint8Array(width * height * channels);
  const ratio = from / width, reach = Math.max(ratio, 1);
  for (let x = 0; x < width; x++) {
    const centre = (x + 0.5) * ratio;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5)), last = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) => Math.max(0, 1 - Math.abs((i + first - centre + 0.5) * (1 / reach))));
    const sum = weights.reduce((a, b) => a + b, 0);
    const fixed = Int32Array.from(weights, (weight) => Math.trunc(0.5 + (weight * (1 / sum)) * 2 ** BITS));
    for (let y = 0; y < height; y++) {
      for (let channel = 0; channel < channels; channel++) {
        let total = 2 ** (BITS - 1);
        for (let i = 0; i < fixed.length; i++) total += data[(y * from + first + i) * channels + channel] * fixed[i];
        out[(y * width + x) * channels + channel] = Math.min(255, total >> BITS);
      }
    }
  }
  return { width, height, channels, data: out };
}

function transpose({ width, height, channels, data }) {
  const out = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < channels; channel++) {
        out[(x * height + y) * channels + channel] = data[(y * width + x) * channels + channel];
      }
    }
  }
  return { width: height, height: width, channels, data: out };
}
