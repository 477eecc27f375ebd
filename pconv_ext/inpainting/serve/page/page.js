import { fromMask, inverted, paint, stroke, toMask } from "./strokes.js";
import { View } from "./view.js";

const COLOUR = "#ff2d55";
const KEPT = 8; // results, of which each has the size of the picture
const $ = (id) => document.getElementById(id);
const element = $("view"), canvas = $("canvas"), image = $("picture");
const context = canvas.getContext("2d");

// A state: the picture that is seen, the holes painted on it, and those that were filled to get there.
let states = [], now = -1;
let original = null, current = null, cursor = null, tool = "brush", busy = null, comparing = false, moving = false;
const pointers = new Map();
const view = new View(element, draw);
const state = () => states[now];
const emptyHoles = () => ({ loaded: null, strokes: [] });
const isEmpty = ({ loaded, strokes }) => !loaded && !strokes.some((one) => !one.erase);

function tell(text, error = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
}

function push(next) {
  states = [...states.slice(0, now + 1), { ...state(), ...next }];
  now = states.length - 1;
  const pictures = [...new Set(states.map((one) => one.picture))];
  for (const old of pictures.slice(1, -KEPT)) { // the original stays
    states = states.filter((one) => one.picture !== old);
    URL.revokeObjectURL(old.url);
  }
  now = states.length - 1;
  update();
}

function go(step) {
  const next = now + step;
  if (busy || next < 0 || next >= states.length) return;
  now = next;
  update();
}

function update() {
  const { picture, holes } = state() ?? {};
  if (picture) {
    const shown = comparing ? original : picture;
    if (image.src !== shown.url) image.src = shown.url;
    image.alt = shown === original ? `The original, ${original.name}` : "The filled picture";
    $("download").href = picture.url;
    $("download").download = picture === original ? original.name : `${original.name.replace(/\.[^.]*$/, "")}-filled.png`;
  }
  image.hidden = !picture;
  $("hint").hidden = Boolean(picture);
  const has = {
    picture: picture, result: picture && picture !== original, undo: now > 0, redo: now < states.length - 1,
    mask: picture && !isEmpty(holes),
    fill: picture && (!isEmpty(holes) || ($("again").checked && state().filled.length)),
  };
  for (const one of document.querySelectorAll("[data-needs]")) {
    const enabled = Boolean(has[one.dataset.needs]) && (!busy || one.id === "fill");
    if (one.tagName === "A") one.ariaDisabled = String(!enabled);
    else one.disabled = !enabled;
  }
  $("fill").textContent = busy ? "Cancel" : "Fill";
  $("progress").hidden = !busy;
  draw();
}

let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawNow();
  });
}

function drawNow() {
  const density = devicePixelRatio;
  const width = Math.round(element.clientWidth * density), height = Math.round(element.clientHeight * density);
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  $("pixels").value = `${Math.round(brush())} px`;
  if (!state()) return;
  image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  const scale = view.scale * density;
  context.setTransform(scale, 0, 0, scale, view.x * density, view.y * density);
  if (!comparing) {
    context.save();
    context.beginPath();
    context.rect(0, 0, original.width, original.height);
    context.clip();
    paint(context, state().holes, COLOUR);
    if (current) stroke(context, current, COLOUR);
    context.restore();
    canvas.style.opacity = 0.65;
  }
  if (cursor) {
    for (const [colour, line] of [["#000", 3], ["#fff", 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = line / view.scale;
      context.beginPath();
      context.arc(...cursor, brush() / 2, 0, 7);
      context.stroke();
    }
  }
}

// The brush's diameter in pixels of the picture: as large on the screen at every zoom.
function brush() {
  return Math.max(1, ($("size").value ** 1.5 / 5) / (state() ? view.scale : 1));
}

async function open(blob, name = "picture.png") {
  if (busy) return;
  const url = URL.createObjectURL(blob);
  const probe = new Image();
  probe.src = url;
  try {
    await probe.decode();
  } catch {
    URL.revokeObjectURL(url);
    tell(`${name} is no picture that this browser can show.`, true);
    return;
  }
  for (const one of new Set(states.map((each) => each.picture))) URL.revokeObjectURL(one.url);
  original = { blob, url, name, width: probe.naturalWidth, height: probe.naturalHeight };
  states = [];
  now = -1;
  $("again").checked = false;
  push({ picture: original, holes: emptyHoles(), filled: [] });
  view.show(original.width, original.height);
  tell(`${name}, ${original.width} x ${original.height}. Paint over what is to go, then fill.`);
}

async function fill() {
  if (busy) return busy.abort();
  if ($("fill").disabled) return;
  const { picture, holes, filled } = state(), { width, height } = original;
  const fromOriginal = $("again").checked;
  busy = new AbortController();
  tell("Filling ...");
  update();
  const began = performance.now();
  try {
    const all = fromOriginal ? [...filled, holes] : [holes];
    const mask = await toMask(all, width, height);
    if (!mask) throw Error("The mask has no holes.");
    const form = new FormData();
    const sent = fromOriginal ? original : picture;
    form.append("image", sent.blob, sent.name ?? "result.png");
    form.append("mask", mask, "mask.png");
    const name = String(Math.random());
    form.append("name", name);
    watch(name, busy);
    const response = await fetch("/inpaint", { method: "POST", body: form, signal: busy.signal });
    if (!response.ok) throw Error(await reason(response));
    const blob = await response.blob(), url = URL.createObjectURL(blob);
    const result = { blob, url, width, height };
    const probe = new Image();
    probe.src = url;
    await probe.decode();
    busy = null;
    push({ picture: result, holes: emptyHoles(), filled: [...filled, holes] });
    tell(`Filled in ${((performance.now() - began) / 1000).toFixed(1)} s. Hold O to see the original.`);
  } catch (error) {
    const text = error.name === "AbortError" ? "Cancelled." : `Not filled: ${error.message}`;
    tell(text, error.name !== "AbortError");
  }
  busy = null;
  update();
}

// Tells how many holes are done, until the request has ended.
async function watch(name, request) {
  while (busy === request) {
    await new Promise((resolve) => setTimeout(resolve, 300));
    const { done, total } = await (await fetch(`/progress/${name}`)).json().catch(() => ({}));
    if (busy !== request || !total) continue;
    $("progress").max = total;
    $("progress").value = done;
    tell(`Filling: ${done} of ${total} ${total === 1 ? "hole" : "holes"} ...`);
  }
  $("progress").removeAttribute("value");
}

async function reason(response) {
  const text = await response.text();
  try {
    const { detail } = JSON.parse(text);
    return typeof detail === "string" ? detail : detail.map((one) => one.msg).join("; ");
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function load(blob) {
  try {
    const loaded = await fromMask(blob, original.width, original.height);
    push({ holes: { loaded, strokes: [] } });
    tell("The mask is loaded; Invert swaps what goes and what stays.");
  } catch (error) {
    tell(error.message || "The mask cannot be read.", true);
  }
}

async function save() {
  const mask = await toMask([state().holes], original.width, original.height);
  if (!mask) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(mask);
  link.download = `${original.name.replace(/\.[^.]*$/, "")}_mask.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function copy() {
  try {
    let { blob } = state().picture;
    if (blob.type !== "image/png") {
      const bitmap = await createImageBitmap(blob);
      const whole = new OffscreenCanvas(bitmap.width, bitmap.height);
      whole.getContext("2d").drawImage(bitmap, 0, 0);
      blob = await whole.convertToBlob({ type: "image/png" });
    }
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    tell("Copied.");
  } catch (error) {
    tell(`Not copied: ${error.message}`, true);
  }
}

function begin(point) {
  current = { size: brush(), erase: tool === "eraser", points: [...point] };
}

function end() {
  if (!current) return;
  const { holes } = state(), done = current;
  current = null;
  push({ holes: { ...holes, strokes: [...holes.strokes, done] } });
}

function choose(next) {
  tool = next;
  for (const one of ["brush", "eraser"]) $(one).ariaPressed = String(one === tool);
}

function resize(factor) {
  $("size").value = Math.round($("size").value * factor + Math.sign(factor - 1));
  draw();
}

function compare(on) {
  if (!state() || comparing === on) return;
  comparing = on;
  update();
}

// Pointers: one paints, or moves with the middle button or space; two move and zoom.
let pinch = null;
element.addEventListener("pointerdown", (event) => {
  if (!state() || busy) return;
  element.focus({ preventScroll: true });
  element.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, view.inElement(event));
  if (pointers.size > 1) {
    current = null;
    pinch = null;
  } else if (event.button === 0 && !moving) begin(view.inPicture(event));
  draw();
});
element.addEventListener("pointermove", (event) => {
  if (!state()) return;
  cursor = view.inPicture(event);
  const before = pointers.get(event.pointerId), after = view.inElement(event);
  if (before) pointers.set(event.pointerId, after);
  if (pointers.size === 2) {
    const [[ax, ay], [bx, by]] = pointers.values();
    const next = { x: (ax + bx) / 2, y: (ay + by) / 2, far: Math.hypot(ax - bx, ay - by) };
    if (pinch) {
      view.move(next.x - pinch.x, next.y - pinch.y);
      view.zoom(next.far / Math.max(1, pinch.far), next.x, next.y);
    }
    pinch = next;
  } else if (current) {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) current.points.push(...view.inPicture(one));
  } else if (before) view.move(after[0] - before[0], after[1] - before[1]);
  draw();
});
for (const name of ["pointerup", "pointercancel"]) {
  element.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    pinch = null;
    if (name === "pointerup") end();
    else current = null;
    draw();
  });
}
element.addEventListener("pointerleave", () => {
  cursor = null;
  draw();
});

addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && (key === "z" || key === "y")) {
    event.preventDefault();
    go(key === "y" || event.shiftKey ? 1 : -1);
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const plain = { b: () => choose("brush"), e: () => choose("eraser"), "[": () => resize(0.85), "]": () => resize(1.18),
    "+": () => view.zoom(1.25), "=": () => view.zoom(1.25), "-": () => view.zoom(0.8), 0: () => view.fit(),
    o: () => compare(true) }[key];
  if (plain) plain();
  else if (event.target === element) inView(event, key);
});

// With the keyboard alone.
function inView(event, key) {
  const step = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[key];
  if (!state() || !(step || ["enter", " ", "p"].includes(key))) return;
  event.preventDefault();
  if (key === "enter") fill();
  else if (key === " ") {
    moving = true;
    element.classList.add("moving");
  } else {
    cursor ??= [original.width / 2, original.height / 2];
    if (step) {
      const far = brush() / (event.shiftKey ? 8 : 2);
      cursor = [cursor[0] + step[0] * far, cursor[1] + step[1] * far];
      if (current) current.points.push(...cursor);
    } else if (!event.repeat && !busy) begin(cursor);
    draw();
  }
}

addEventListener("keyup", (event) => {
  const key = event.key.toLowerCase();
  if (key === "o") compare(false);
  if (key === "p") end();
  if (key === " ") {
    moving = false;
    element.classList.remove("moving");
  }
});
addEventListener("blur", () => compare(false));

const chosen = (id, use) => $(id).addEventListener("change", ({ target }) => {
  if (target.files[0]) use(target.files[0], target.files[0].name);
  target.value = "";
});
chosen("open", open);
chosen("load", load);
const clicked = {
  brush: () => choose("brush"), eraser: () => choose("eraser"), undo: () => go(-1), redo: () => go(1), fill, save, copy,
  clear: () => push({ holes: emptyHoles() }), in: () => view.zoom(1.25), out: () => view.zoom(0.8), fit: () => view.fit(),
  invert: () => push({
    holes: { loaded: inverted(state().holes, original.width, original.height, COLOUR), strokes: [] },
  }),
};
for (const [id, action] of Object.entries(clicked)) $(id).addEventListener("click", action);
for (const [event, on] of [["pointerdown", true], ["pointerup", false], ["pointerleave", false]]) {
  $("original").addEventListener(event, () => compare(on));
}
$("size").addEventListener("input", draw);
$("again").addEventListener("change", update);
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) open(file, file.name);
});
update();
