import { CHANNELS, HEIGHT, WIDTH, prepare } from "./preprocess.js";
import { decode, frame, openModel } from "./run.js";

const TOP = 5;
const $ = (id) => document.getElementById(id);
const site = await (await fetch("site.json", { cache: "no-cache" })).json();
let model, stream, spoken, shown, facing = "environment";
let frames = []; // When the last second's frames were classified.
let queue = Promise.resolve(); // One image at a time, in order.

function say(text, error = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
}

// Run a step when those before it are done, and show its error.
function then(step) {
  queue = queue.then(step).catch((error) => say(error.message, true));
  return queue;
}

async function open() {
  const record = site.files[$("model").selectedIndex];
  const gpu = record.runtime === "onnx" && (await navigator.gpu?.requestAdapter().catch(() => null));
  $("backends").hidden = !gpu;
  const backend = gpu ? $("backend").value : "wasm";
  $("maps").hidden = !record.maps;
  const old = model;
  model = undefined;
  await old?.close();
  say(`Loading ${record.file} and ${record.library} …`);
  let note = "";
  try {
    model = await openModel(site, record, backend);
  } catch (error) {
    if (backend === "wasm") throw error;
    note = `WebGPU failed (${error.message}); computed by WebAssembly.`;
    $("backend").value = "wasm";
    model = await openModel(site, record, "wasm");
  }
  say(note || (shown ? "" : "Ready."));
  if (shown && !stream) await classify(shown);
}

async function classify({ data, width, height }) {
  if (!model) return;
  const began = performance.now();
  const pixels = prepare(data, width, height);
  const prepared = performance.now();
  const { probabilities, maps } = await model.run(pixels);
  const ended = performance.now();
  showInput(pixels);
  if (maps && $("heat").checked) showMap(probabilities, maps);
  showAnswer(probabilities);
  frames = [...frames, ended].filter((time) => time > ended - 1000);
  const rate = stream && frames.length > 1
    ? ` · ${((1000 * (frames.length - 1)) / (ended - frames[0])).toFixed(1)} frames per second` : "";
  const [first, second] = [prepared - began, ended - prepared].map((time) => time.toFixed(1));
  $("timing").textContent = `Preprocessing ${first} ms · model ${second} ms${rate}`;
}

function showInput(pixels) {
  const image = new ImageData(WIDTH, HEIGHT);
  image.data.forEach((_, at) => {
    const channel = CHANNELS === 1 ? 0 : at % 4;
    image.data[at] = at % 4 === 3 ? 255 : pixels[Math.floor(at / 4) * CHANNELS + channel];
  });
  [$("input").width, $("input").height] = [WIDTH, HEIGHT];
  $("input").getContext("2d").putImageData(image, 0, 0);
  $("seen").hidden = false;
}

// Colour the input where the map of the most probable class is positive.
function showMap(probabilities, maps) {
  const [rows, columns, classes] = site.files[$("model").selectedIndex].maps;
  const best = probabilities.indexOf(Math.max(...probabilities));
  const map = maps.filter((_, at) => at % classes === best);
  const largest = Math.max(...map, 1e-12);
  const image = new ImageData(columns, rows);
  map.forEach((value, at) => image.data.set([255, 0, 220, Math.max(0, (200 * value) / largest)], 4 * at));
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(image, 0, 0);
  $("input").getContext("2d").drawImage(small, 0, 0, WIDTH, HEIGHT);
}

function showAnswer(probabilities) {
  const best = probabilities
    .map((probability, index) => [probability, site.labels?.[index] ?? `class ${index}`])
    .sort((a, b) => b[0] - a[0])
    .slice(0, TOP);
  const unknown = best[0][0] < site.unknownBelow && best.splice(0, TOP, [best[0][0], "unknown"]);
  while ($("answer").children.length > best.length) $("answer").lastChild.remove();
  const rows = best.map(([probability, label], index) => {
    const row = $("answer").children[index] ?? $("answer").appendChild(document.createElement("li"));
    if (!row.children.length) row.append(...["i", "span", "span"].map((tag) => document.createElement(tag)));
    const [bar, name, share] = row.children;
    bar.style.width = `${100 * probability}%`;
    name.textContent = label; // Never as HTML: labels may be anybody's.
    share.textContent = `${unknown ? "at most " : ""}${(100 * probability).toFixed(1)} %`;
    return `${label}, ${share.textContent}`;
  });
  // A screen reader hears every photo, and of a camera each new answer that stays.
  if (!stream || best[0][1] === spoken) $("spoken").textContent = rows[0];
  spoken = best[0][1];
}

function classifyPhoto(file) {
  if (!file) return;
  then(async () => {
    stopCamera();
    say("");
    shown = undefined;
    URL.revokeObjectURL($("photo").src);
    const photo = await decode(file);
    $("photo").src = URL.createObjectURL(file);
    show("photo");
    shown = photo;
    await classify(shown);
  });
}

function show(id) {
  for (const each of ["hint", "video", "photo"]) $(each).hidden = each !== id;
  $("stage").classList.toggle("full", id !== "hint");
}

async function startCamera() {
  if (!navigator.mediaDevices) throw new Error("Browsers offer the camera only over HTTPS or on localhost.");
  const video = { facingMode: facing, width: { ideal: 640 } };
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video });
  } catch (error) {
    const reasons = {
      NotAllowedError: "The camera is blocked: allow it in the browser's settings of this page.",
      NotFoundError: "No camera was found.",
      NotReadableError: "Another program uses the camera.",
    };
    throw new Error(reasons[error.name] ?? `The camera cannot be opened: ${error.message}`);
  }
  say("");
  const [track] = stream.getVideoTracks();
  track.onended = stopCamera; // It was unplugged, or the permission was taken back.
  $("video").srcObject = stream;
  // As in a mirror, if it is known to face the visitor; asked for is not given.
  $("video").classList.toggle("mirrored", (track.getSettings().facingMode ?? facing) === "user");
  await $("video").play();
  show("video");
  const cameras = await navigator.mediaDevices.enumerateDevices();
  $("flip").hidden = cameras.filter(({ kind }) => kind === "videoinput").length < 2;
  $("camera").textContent = "Stop camera";
  watch(stream);
}

// Classify the newest frame again and again, while the page is visible.
async function watch(current) {
  while (stream === current) {
    const { videoWidth: width, videoHeight: height } = $("video");
    await new Promise(requestAnimationFrame);
    if (stream !== current || !width) continue;
    await then(() => {
      shown = { data: frame($("video"), width, height), width, height };
      return classify(shown);
    });
  }
}

function stopCamera() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = undefined;
  $("camera").textContent = "Start camera";
  $("flip").hidden = true;
  show("hint");
}

const toggle = () => (stream ? stopCamera() : then(() => stream || startCamera()));
$("camera").onclick = toggle;
$("flip").onclick = () => {
  facing = facing === "user" ? "environment" : "user";
  stopCamera();
  toggle();
};
$("choose").onclick = () => $("file").click();
$("file").onchange = () => {
  classifyPhoto($("file").files[0]);
  $("file").value = "";
};
$("model").onchange = $("backend").onchange = () => then(open);
document.onpaste = (event) => classifyPhoto(event.clipboardData.files[0]);
document.onkeydown = (event) => event.key === "Escape" && stopCamera();
$("heat").onchange = () => then(() => shown && !stream && classify(shown));
document.ondragover = document.ondragleave = document.ondrop = (event) => {
  event.preventDefault();
  $("stage").classList.toggle("over", event.type === "dragover");
  if (event.type === "drop") classifyPhoto(event.dataTransfer.files[0]);
};

for (const record of site.files) $("model").append(new Option(record.name));
then(open);
