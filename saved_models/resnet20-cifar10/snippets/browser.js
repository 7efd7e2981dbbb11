// Run an exported resnet20 on an image, in the browser; see index.html.
// Input `image`: uint8 ("batch", 32, 32, 3). Output `probabilities`: float32 ("batch", 10).

export const FILE = "../model.onnx";
const BATCH = 1;
// Of the model's input, and what an image is resized to before it is cut.
export const [HEIGHT, WIDTH, CHANNELS] = [32, 32, 3];
const [RESIZE_HEIGHT, RESIZE_WIDTH] = [32, 32];
// Bytes that an image may take as getImageData gives it, 4 a pixel.
export const MEMORY = 536870912;

const SUPPORT = 1;
function kernel(x) {
  return Math.max(0, 1 - Math.abs(x));
}

// Which pixels of a line make each of `size` new ones, and with what weights. The
// canvas' own scaling does not average, which changes the predictions.
function taps(length, target, size) {
  const scale = length / target;
  const reach = Math.max(scale, 1);
  const spare = target - size;
  const half = Math.floor(spare / 2);
  const first = half + (spare - 2 * half) * Math.abs(half % 2);
  return Array.from({ length: size }, (_, index) => {
    const centre = (first + index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - SUPPORT * reach + 0.5));
    const end = Math.min(length, Math.trunc(centre + SUPPORT * reach + 0.5));
    const weights = [];
    for (let at = start; at < end; at++) weights.push(kernel((at + 0.5 - centre) / reach));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { start, weights: weights.map((weight) => weight / sum) };
  });
}

function level(rgba, at, c) {
  return rgba[at + c];
}

// Resize, cut the centre, RGB from 0 to 255, nothing else: the graph normalises.
// `rgba` is what getImageData gives; the answer is uint8 HEIGHT x WIDTH x CHANNELS.
export function prepare(rgba, width, height) {
  const [wide, high] = scaled(width, height);
  const columns = taps(width, wide, WIDTH);
  const rows = taps(height, high, HEIGHT);
  const line = WIDTH * CHANNELS;
  // Only the rows that the crop comes from take memory.
  const last = rows[HEIGHT - 1];
  const [top, bottom] = [rows[0].start, last.start + last.weights.length];
  const low = new Uint8ClampedArray((bottom - top) * line);
  for (let y = top; y < bottom; y++)
    for (let x = 0; x < WIDTH; x++)
      for (let c = 0; c < CHANNELS; c++) {
        const { start, weights } = columns[x];
        let sum = 0.5;
        for (let k = 0; k < weights.length; k++)
          sum += weights[k] * level(rgba, (y * width + start + k) * 4, c);
        low[(y - top) * line + x * CHANNELS + c] = Math.floor(sum);
      }
  const pixels = new Uint8ClampedArray(HEIGHT * line);
  for (let y = 0; y < HEIGHT; y++)
    for (let x = 0; x < line; x++) {
      const { start, weights } = rows[y];
      let sum = 0.5;
      for (let k = 0; k < weights.length; k++)
        sum += weights[k] * low[(start - top + k) * line + x];
      pixels[y * line + x] = Math.floor(sum);
    }
  return new Uint8Array(pixels.buffer);
}

// Width and height of the whole image once it is resized.
function scaled(width, height) {
  const wide = Math.floor((width * RESIZE_HEIGHT) / height);
  const high = Math.floor((height * RESIZE_WIDTH) / width);
  return [Math.max(wide, RESIZE_WIDTH), Math.max(high, RESIZE_HEIGHT)];
}

// `ort` is onnxruntime-web, `session` an ort.InferenceSession of FILE.
export async function predict(ort, session, pixels) {
  const data = new Uint8Array(BATCH * pixels.length);
  for (let image = 0; image < BATCH; image++) data.set(pixels, image * pixels.length);
  const feeds = { "image": new ort.Tensor("uint8", data, [BATCH, 32, 32, 3]) };
  const answer = (await session.run(feeds))["probabilities"];
  const first = Array.from(answer.data.slice(0, answer.data.length / BATCH));
  return first;
}
