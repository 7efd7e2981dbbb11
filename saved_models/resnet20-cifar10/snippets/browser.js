// Run an exported resnet20 on an image, in the browser; see index.html.
// Input `image`: uint8 ("batch", 32, 32, 3). Output `probabilities`: float32 ("batch", 10).

export const FILE = "../model.onnx";
const SHORT_SIDE = 32;
export const SIZE = 32;
// Bytes that an image may take as getImageData gives it, 4 a pixel.
export const MEMORY = 536870912;
const BATCH = 1;

const SUPPORT = 1;
function kernel(x) {
  return Math.max(0, 1 - Math.abs(x));
}

// Which pixels of a line make each of SIZE new ones, and with what weights. The
// canvas' own scaling does not average, which changes the predictions.
function taps(length, target) {
  const scale = length / target;
  const reach = Math.max(scale, 1);
  const spare = target - SIZE;
  const half = Math.floor(spare / 2);
  const first = half + (spare % 2) * (half % 2);
  return Array.from({ length: SIZE }, (_, index) => {
    const centre = (first + index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - SUPPORT * reach + 0.5));
    const end = Math.min(length, Math.trunc(centre + SUPPORT * reach + 0.5));
    const weights = [];
    for (let at = start; at < end; at++) weights.push(kernel((at + 0.5 - centre) / reach));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { start, weights: weights.map((weight) => weight / sum) };
  });
}

// Resize, cut the centre, RGB from 0 to 255, nothing else: the graph normalises.
// `rgba` is what getImageData gives; the answer is uint8 SIZE x SIZE x 3.
export function prepare(rgba, width, height) {
  const short = Math.min(width, height);
  const [columns, rows] = [width, height].map((side) =>
    taps(side, Math.floor((side * SHORT_SIDE) / short)));
  // Only the rows that the crop comes from take memory.
  const last = rows[SIZE - 1];
  const [top, bottom] = [rows[0].start, last.start + last.weights.length];
  const wide = new Uint8ClampedArray((bottom - top) * SIZE * 3);
  for (let y = top; y < bottom; y++)
    for (let x = 0; x < SIZE; x++)
      for (let c = 0; c < 3; c++) {
        const { start, weights } = columns[x];
        let sum = 0.5;
        for (let k = 0; k < weights.length; k++)
          sum += weights[k] * rgba[(y * width + start + k) * 4 + c];
        wide[((y - top) * SIZE + x) * 3 + c] = Math.floor(sum);
      }
  const pixels = new Uint8ClampedArray(SIZE * SIZE * 3);
  for (let y = 0; y < SIZE; y++)
    for (let x = 0; x < SIZE * 3; x++) {
      const { start, weights } = rows[y];
      let sum = 0.5;
      for (let k = 0; k < weights.length; k++)
        sum += weights[k] * wide[(start - top + k) * SIZE * 3 + x];
      pixels[y * SIZE * 3 + x] = Math.floor(sum);
    }
  return new Uint8Array(pixels.buffer);
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
