"use strict";
// What people do with the detector: open pictures, start the camera, and look at what was found. No picture leaves this
// page: all that is ever fetched are the server's files.

const MOST = 1600;  // pixels: the longer side of what is drawn; the detector sees the picture as it is
const RECENT = 20;  // so many runs are behind the median, and behind the frames per second
const at = id => document.getElementById(id);
const lab = JSON.parse(at("lab").textContent);  // files, model, labels and pictures, as browser.py names them
const here = new URL("browser/", document.baseURI).href, scope = here.slice(0, -1);
const picture = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
let detector = null, heads = null, stream = null, runs = [], turn = Promise.resolve();

// one thing after another; what goes wrong is said, and the next one gets its turn
const inTurn = work => turn = turn.then(work).catch(error => say("message", error.message));

function say(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;  // a screen reader speaks when it changes
  if (id === "message") at(id).hidden = !text;
}

// the network, computed by `backend`, else by the next one that this browser has
async function start(backend) {
  for (const control of ["file", "camera", "backend"]) at(control).disabled = true;
  say("status", "starting…");
  const again = heads;  // a picture is there already, for this backend to look at
  detector?.dispose();
  [detector, heads, runs] = [null, null, []];
  const names = [backend, ...Array.from(at("backend").options, option => option.value).filter(name => name !== backend)];
  const chosen = await firstThatWorks(names);
  const cfg = new TextDecoder().decode(await model("cfg"));
  detector = new Detector(cfg, await model("weights"), lab.labels);
  for (const id of ["last", "median", "first", "rate"]) say(id, "–");
  at("backend").value = chosen;
  say("by", describe(chosen));
  if (again) await detect();
  say("status", "ready");
  for (const control of ["file", "camera", "backend"]) at(control).disabled = false;
}

async function firstThatWorks(names) {
  for (const name of names) if (await tf.setBackend(name).catch(() => false)) return name;
  throw new Error("This browser has neither WebAssembly nor WebGL: the detector cannot run here.");
}

function describe(backend) {
  if (backend === "webgl") return `WebGL ${tf.env().getNumber("WEBGL_VERSION")}, ${tf.env().getBool("WEBGL_RENDER_FLOAT32_ENABLED") ? "f32" : "f16: less exact"}`;
  const threads = tf.wasm.getThreadsCount();
  return `WebAssembly, f32, ${threads} thread${threads > 1 ? "s" : ""}`;
}

// the bytes of one of the model's files: as kept by an earlier visit, else the server's; either only with the right checksum
async function model(kind) {
  const {address, bytes, sha256} = lab.model[kind], url = new URL(address, here).href;
  const cache = await caches.open(`${scope} model`).catch(() => null), kept = await cache?.match(url);  // some forbid it
  let data = kept && await read(kept, bytes);
  if (data && await checksum(data) === sha256) return data;
  data = await read(await fetch(url, {cache: "no-store"}), bytes);
  if (await checksum(data) !== sha256) throw new Error(`The model's ${kind} did not arrive whole: the checksum is wrong, and nothing of it is used. Load this page again.`);
  if (cache) await remember(cache, url, data);
  return data;
}

async function read(answer, bytes) {
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? `the server answered ${answer.status}`);
  const parts = [];
  let length = 0;
  at("progress").hidden = false;
  for (const reader = answer.body.getReader(); ;) {
    const {done, value} = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.length;
    at("progress").value = length / bytes;
    say("status", `fetching the model: ${Math.round(length / 1e6)} of ${Math.round(bytes / 1e6)} MB`);
  }
  at("progress").hidden = true;
  return new Blob(parts).arrayBuffer();
}

async function checksum(data) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, byte => byte.toString(16).padStart(2, "0")).join("");
}

// in place of those of another version; a full or forbidden store keeps nobody from using what is here
async function remember(cache, url, data) {
  const old = (await cache.keys()).filter(request => new URL(request.url).pathname === new URL(url).pathname);
  await Promise.all(old.map(request => cache.delete(request)));
  await cache.put(url, new Response(data)).catch(error => say("kept", `not kept for later: ${error.message}`));
}

async function keepForLater() {
  if (!navigator.serviceWorker) return;
  try {
    await navigator.serviceWorker.register(new URL("worker.js", here), {scope, updateViaCache: "none"});
    await navigator.serviceWorker.ready;
    if (detector && !at("kept").textContent) say("kept", "works without the server from now on");
  } catch (error) {
    if (navigator.onLine) say("kept", `needs the server: ${error.message}`);
  }
}

// a picture file, upright, its colours as they are stored, on white where it is transparent
async function open(blob, name) {
  stop();
  say("message", "");
  const bitmap = await createImageBitmap(blob, {imageOrientation: "from-image", colorSpaceConversion: "none"}).catch(() => null);
  if (!bitmap) throw new Error(`${name} is no picture that this browser can open.`);
  if (bitmap.width * bitmap.height > lab.most_pixels) throw new Error(`${name} has ${bitmap.width} x ${bitmap.height} pixels: open one of at most ${lab.most_pixels.toLocaleString("en")}.`);
  await look(bitmap, bitmap.width, bitmap.height);
  say("hint", `${name}, ${bitmap.width} x ${bitmap.height} pixels`);
  bitmap.close();
}

// the detector looks at what can be drawn: a bitmap, or the camera's frame
async function look(source, width, height) {
  Object.assign(picture.canvas, {width, height});
  picture.fillStyle = "white";
  picture.fillRect(0, 0, width, height);
  picture.drawImage(source, 0, 0);
  await detect();
}

async function detect() {
  const {width, height} = picture.canvas, pixels = picture.getImageData(0, 0, width, height), began = performance.now();
  heads = await detector.forward(pixels);
  show();
  time(performance.now() - began);
}

function time(milliseconds) {
  if (!runs.length) say("first", `${Math.round(milliseconds)} ms`);
  runs.push(milliseconds);
  const recent = runs.slice(-RECENT).sort((a, b) => a - b);
  say("last", `${Math.round(milliseconds)} ms`);
  say("median", `${Math.round(recent[recent.length >> 1])} ms`);
}

// what was found at the confidence that is set: in the picture, in a sentence, and in a list. Detecting again is not needed
function show() {
  const {width, height} = picture.canvas, confidence = at("confidence").value / 100;
  say("above", `${at("confidence").value} %`);
  if (!heads) return;
  const found = detector.select(heads, confidence, width, height);
  draw(found, width, height);
  const counts = new Map();
  for (const {label} of found) counts.set(label, (counts.get(label) ?? 0) + 1);
  const words = Array.from(counts, ([label, count]) => count > 1 ? `${count} x ${label}` : label).join(", ");
  say("summary", words || "nothing found");
  at("canvas").setAttribute("aria-label", words ? `the picture with boxes: ${words}` : "the picture; nothing found");
  at("found").replaceChildren(...found.map(item));
}

function item({label, confidence, box}) {
  const line = document.createElement("li"), name = document.createElement("b"), where = document.createElement("span");
  name.textContent = label;
  where.textContent = `${(100 * confidence).toFixed(1)} % at ${box.left}, ${box.top}: ${box.right - box.left} x ${box.bottom - box.top}`;
  line.style.borderLeftColor = colour(label);
  Object.assign(line.dataset, {label, confidence, box: JSON.stringify(box)});
  line.append(name, where);
  return line;
}

function draw(found, width, height) {
  const share = Math.min(1, MOST / Math.max(width, height)), canvas = at("canvas");
  Object.assign(canvas, {width: Math.max(1, Math.round(width * share)), height: Math.max(1, Math.round(height * share))});
  const unit = Math.max(1, canvas.width / canvas.clientWidth), pen = canvas.getContext("2d");  // one pixel of the screen
  pen.drawImage(picture.canvas, 0, 0, canvas.width, canvas.height);
  Object.assign(pen, {lineWidth: 3 * unit, font: `600 ${12 * unit}px system-ui, sans-serif`, textBaseline: "middle"});
  const places = found.map(({label, box}) => {
    const [left, top] = [box.left * share, box.top * share], [right, bottom] = [box.right * share, box.bottom * share];
    pen.strokeStyle = colour(label);
    pen.strokeRect(left, top, right - left, bottom - top);
    return {left, top, bottom};
  });
  const tags = [];
  found.forEach((one, i) => tags.push(tag(pen, one, places[i], tags, unit)));  // the surest chooses first
}

// a label inside the picture: above its box, or where it hides no other
function tag(pen, {label, confidence}, {left, top, bottom}, taken, unit) {
  const text = `${label} ${confidence.toFixed(2)}`, wide = pen.measureText(text).width + 8 * unit, high = 17 * unit;
  const x = Math.max(0, Math.min(left, pen.canvas.width - wide));
  const free = y => !taken.some(other => x < other.x + other.wide && other.x < x + wide && y < other.y + high && other.y < y + high);
  const places = [top - high, top, bottom, bottom - high].map(y => Math.max(0, Math.min(y, pen.canvas.height - high)));
  const y = places.find(free) ?? places[0];
  pen.fillStyle = colour(label);
  pen.fillRect(x, y, wide, high);
  pen.fillStyle = "black";
  pen.fillText(text, x + 4 * unit, y + high / 2);
  return {x, y, wide};
}

// the colour that draw_boxes gives a label: the hue out of its CRC-32, light enough for black text
function colour(label) {
  let crc = -1;
  for (const byte of new TextEncoder().encode(label)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return `hsl(${2 * ((~crc >>> 0) % 180)} 100% ${100 * (1 - 170 / 255 / 2)}%)`;  // OpenCV's saturation 170, value 255
}

async function watch() {
  stop();
  say("message", "");
  stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}}).catch(error => {
    throw new Error(`The camera cannot be used: ${error.message}.`);
  });
  const video = Object.assign(at("video"), {srcObject: stream}), times = [];
  await video.play();
  say("camera", "Stop the camera");
  say("hint", "the camera, frame by frame");
  press(null);
  const next = async mine => {
    if (stream !== mine) return;
    await look(video, video.videoWidth, video.videoHeight);
    times.push(performance.now());
    const recent = times.slice(-RECENT);
    if (recent.length > 1) say("rate", `${(1000 * (recent.length - 1) / (recent.at(-1) - recent[0])).toFixed(1)} frames/s`);
    requestAnimationFrame(() => inTurn(() => next(mine)));  // none while the page is out of sight
  };
  return next(stream);
}

function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = at("video").srcObject = null;
  say("camera", "Start the camera");
}

// one of the lab's own pictures, which are files of the page
function offer(name) {
  const button = document.createElement("button"), image = new Image();
  Object.assign(image, {src: new URL(lab.pictures[name], here).href, alt: name});
  button.append(image);
  button.addEventListener("click", () => inTurn(async () => {
    press(button);
    await open(await (await fetch(image.src)).blob(), name);
  }));
  at("pictures").append(button);
}

function press(pressed) {
  for (const button of at("pictures").children) button.setAttribute("aria-pressed", button === pressed);
}

function dropped(event) {
  event.preventDefault();
  document.querySelector("figure").classList.toggle("over", event.type === "dragover");
  if (event.type === "drop" && detector) choose(event.dataTransfer.files);
}

function choose([file]) {
  if (file) inTurn(async () => { press(null); await open(file, file.name); });
}

function main() {
  for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, dropped);
  at("file").addEventListener("change", () => { choose(at("file").files); at("file").value = ""; });  // the same one again, too
  at("camera").addEventListener("click", () => stream ? stop() : inTurn(watch));
  at("confidence").addEventListener("input", show);
  at("backend").addEventListener("change", () => { stop(); inTurn(() => start(at("backend").value)); });
  if (!isSecureContext) return say("message", "Over plain http from another machine a browser allows no camera, no checksum and nothing to be kept: put https in front of the server, or open this page on the server's own machine.");
  Object.keys(lab.pictures).forEach(offer);
  inTurn(() => {
    tf.wasm.setWasmPaths(Object.fromEntries(Object.entries(lab.wasm).map(([name, address]) => [name, new URL(address, here).href])));
    return start("wasm");
  });
  turn.then(keepForLater);
}

main();
