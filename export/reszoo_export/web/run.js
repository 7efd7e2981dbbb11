// Decode images, and run an export's files in the runtimes of browsers.
import { CHANNELS, HEIGHT, MEMORY, WIDTH } from "./preprocess.js";

const ARRAYS = { float32: Float32Array, uint8: Uint8Array };
// WebAssembly of each build of onnxruntime-web.
const WASM = { webgpu: "ort-wasm-simd-threaded.asyncify.wasm", wasm: "ort-wasm-simd-threaded.wasm" };
let litertLoaded;

// The browser refuses a file with other content than `integrity` tells.
async function fetched(url, integrity) {
  const options = { integrity, credentials: "same-origin", cache: "no-cache" };
  const reply = await fetch(url, options).catch((error) => {
    throw new Error(`${url} cannot be loaded, or is not the file it should be (${error.message}).`);
  });
  if (!reply.ok) throw new Error(`${url} cannot be loaded: the server answered ${reply.status}.`);
  return reply.arrayBuffer();
}

function asset(site, name) {
  return fetched(site.assets[name].url, site.assets[name].integrity);
}

async function openOnnx(site, record, content, backend) {
  const ort = await import(`onnxruntime-web/${backend}`);
  ort.env.wasm.wasmBinary ??= await asset(site, WASM[backend]);
  const session = await ort.InferenceSession.create(content, { executionProviders: [backend] });
  const { input, outputs } = record;
  return {
    close: () => session.release(),
    async run(data, shape) {
      const image = new ort.Tensor(input.dtype, data, shape);
      const answers = await session.run({ [input.name]: image }, outputs);
      return outputs.map((name) => answers[name].data);
    },
  };
}

async function loadLiteRt(site, litert) {
  const simd = await litert.supportsFeature("relaxedSimd");
  const name = simd ? "litert_wasm_internal" : "litert_wasm_compat_internal";
  const script = new Blob([await asset(site, `${name}.js`)], { type: "text/javascript" });
  // Its loader takes options from this global, and a path that ends with ".js".
  self.Module = { wasmBinary: await asset(site, `${name}.wasm`) };
  await litert.loadLiteRt(`${URL.createObjectURL(script)}#.js`);
}

async function openTflite(site, record, content) {
  const litert = await import("@litertjs/core");
  litertLoaded ??= loadLiteRt(site, litert);
  await litertLoaded.catch((error) => {
    litertLoaded = undefined;
    throw error;
  });
  const model = await litert.loadAndCompile(content, { accelerator: "wasm" });
  return {
    close: () => model.delete(),
    async run(data, shape) {
      const image = new litert.Tensor(data, shape);
      const answers = await model.run({ [record.input.name]: image });
      const found = await Promise.all(record.outputs.map((name) => answers[name].data()));
      for (const tensor of [image, ...Object.values(answers)]) tensor.delete();
      return found;
    },
  };
}

// Open a file of the export. The answer's `run` takes what `prepare` returns and gives
// probabilities, and class activation maps if there are any; `backend` is "webgpu" or "wasm".
export async function openModel(site, record, backend) {
  const content = new Uint8Array(await fetched(record.file, record.integrity));
  const open = record.runtime === "onnx" ? openOnnx : openTflite;
  const model = await open(site, record, content, backend);
  const { input, output } = record;
  const batch = Number.isInteger(input.shape[0]) ? input.shape[0] : 1;
  const planes = input.shape[3] !== CHANNELS;
  async function run(pixels) {
    const data = new ARRAYS[input.dtype](batch * pixels.length);
    for (let at = 0; at < data.length; at++) {
      const place = at % pixels.length; // Each image of the batch is the same.
      const channel = planes ? Math.floor(place / (HEIGHT * WIDTH)) : place % CHANNELS;
      const pixel = planes ? place % (HEIGHT * WIDTH) : Math.floor(place / CHANNELS);
      data[at] = pixels[pixel * CHANNELS + channel];
    }
    const found = await model.run(data, [batch, ...input.shape.slice(1)]);
    const [values, maps] = found.map((each) => Array.from(each.slice(0, each.length / batch)));
    const { scale = 1, zero_point = 0 } = output;
    const numbers = values.map((value) => (value - zero_point) * scale);
    return { probabilities: output.name === "logits" ? softmax(numbers) : numbers, maps };
  }
  await run(new Uint8Array(HEIGHT * WIDTH * CHANNELS)); // Compiles, and takes memory.
  return { run, close: model.close };
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// Decode a photo to the numbers that Pillow gives: upright, without conversion to the
// screen's colours, and without transparency.
export async function decode(blob) {
  const file = new DataView(await blob.arrayBuffer());
  const jpeg = blob.size > 1 && file.getUint16(0) === 0xffd8;
  // Not every browser turns other formats than JPEG, and turning mixes in their alpha.
  const { turned, start, end } = jpeg ? {} : orientation(file);
  const source = turned ? new Blob([blob.slice(0, start), blob.slice(end)], { type: blob.type }) : blob;
  const imageOrientation = jpeg ? "from-image" : "none";
  const options = { imageOrientation, colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(source, options).catch(() => {
    throw new Error(`This browser cannot decode the file (${blob.type || "of unknown type"}).`);
  });
  const { width, height } = bitmap;
  if (4 * width * height > MEMORY) throw new Error(`The photo is too large: ${width} x ${height} pixels.`);
  const data = (!jpeg && opaque(bitmap)) || frame(bitmap, width, height);
  return upright(data, width, height, turned);
}

// Colours of transparent pixels, which a 2D canvas would multiply by their alpha.
function opaque(bitmap) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  const { width, height } = bitmap;
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const data = new Uint8ClampedArray(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(data.buffer));
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return failed ? null : data;
}

// The EXIF orientation of a PNG or WebP file, 2 to 8, and where its chunk is.
function orientation(file) {
  const word = (at) => file.getUint32(at); // Names of chunks are four characters.
  try {
    const png = word(0) === 0x89504e47;
    for (let at = png ? 8 : 12; ; ) {
      const length = file.getUint32(png ? at : at + 4, !png);
      const name = word(png ? at + 4 : at);
      const end = at + (png ? 12 + length : 8 + length + (length & 1));
      if (name === 0x65584966 || name === 0x45584946) { // eXIf and EXIF
        const exif = at + (word(at + 8) === 0x45786966 ? 14 : 8); // behind "Exif\0\0"
        const turned = tagged(new DataView(file.buffer, exif));
        // Without a PNG's chunk; that of a WebP file stays, whose header tells of it.
        if (turned > 1 && turned < 9) return { turned, start: at, end: png ? end : at };
      }
      at = end;
    }
  } catch {
    return {}; // The file has ended.
  }
}

function tagged(exif) {
  const little = exif.getUint16(0) === 0x4949;
  const first = exif.getUint32(4, little);
  const end = first + 2 + 12 * exif.getUint16(first, little);
  for (let at = first + 2; at < end; at += 12)
    if (exif.getUint16(at, little) === 0x0112) return exif.getUint16(at + 8, little);
  return 1;
}

function upright(data, width, height, turned) {
  if (!turned) return { data, width, height };
  const [wide, high] = turned > 4 ? [height, width] : [width, height];
  const [from, to] = [new Uint32Array(data.buffer), new Uint32Array(width * height)];
  for (let at = 0; at < to.length; at++) {
    const [x, y] = [at % wide, Math.floor(at / wide)];
    let [column, row] = turned > 4 ? [y, x] : [x, y];
    if ([2, 3, 7, 8].includes(turned)) column = width - 1 - column;
    if ([3, 4, 6, 7].includes(turned)) row = height - 1 - row;
    to[at] = from[row * width + column];
  }
  return { data: new Uint8ClampedArray(to.buffer), width: wide, height: high };
}

// RGBA of a bitmap or of a video's current frame.
export function frame(source, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}
