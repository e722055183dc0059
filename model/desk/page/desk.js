"use strict";
// The desk's state and what keys, buttons and the pointer do to it. One state, drawn by the functions below it.

const desk = {
  info: null, number: 0, image: null, people: [], categories: [], holder: null, mine: false, gone: false,
  mode: "click", tool: "inside", history: [], at: 0, answer: null, place: 18, own: null,
  scene: null, chosen: new Set(), selected: null, replaces: null, split: null,
  cross: null, corner: null, drag: null, zoom: 1, asked: 0, busy: false, job: null,
};
const NOTHING = { points: [], labels: [], box: null };
const answers = new Map();
const bitmaps = new Map();

const prompt = () => desk.history[desk.at] ?? NOTHING;
const canChange = () => desk.mine && !desk.info.read_only;
const masks = () => (desk.image ? desk.image.masks : []);
const dialValue = () => (desk.info.dial.length ? desk.info.dial[desk.place] : null);
const objectColour = (number) => categoryColour(number + 3);
const colourOf = (mask) => categoryColour(Math.max(0, desk.categories.indexOf(mask.category)));

function remembered(key, make) {
  if (!bitmaps.has(key)) bitmaps.set(key, make());
  while (bitmaps.size > 256) bitmaps.delete(bitmaps.keys().next().value);
  return bitmaps.get(key);
}

const shownBitmap = (counts) => remembered(counts, () => bitmapOf(counts, ...desk.image.shown));

// ---- drawing --------------------------------------------------------------------------------------------------------

function draw() {
  if (!desk.image) return;
  drawAccepted();
  drawAnswer();
  drawMarks();
  drawFacts();
  drawTools();
}

function drawAccepted() {
  const [width, height] = desk.image.shown, quiet = desk.mode !== "click";
  const layers = masks().filter((mask) => mask.id !== desk.replaces).sort((one, two) => two.area - one.area).map((mask) => {
    const selected = mask.id === desk.selected;
    return { bits: shownBitmap(mask.rle), colour: colourOf(mask), fill: selected ? 150 : quiet ? 0 : 70, rim: selected ? 255 : quiet ? 0 : 230 };
  });
  const tracked = quiet ? [] : desk.image.tracked.map((each) => ({ bits: shownBitmap(each.rle), colour: objectColour(each.object_id), fill: 90, rim: 230 }));
  paintMasks(byId("accepted"), width, height, [...tracked, ...layers]);
}

// The counts of the answer's mask that is shown, or null.
function answerCounts() {
  if (!desk.answer) return null;
  if (desk.own !== null && desk.answer.own) return desk.answer.own.rle[desk.own];
  return desk.answer.dial ? desk.answer.dial.rle[desk.place] : null;
}

function answerBits() {
  const counts = answerCounts();
  if (counts === null) return null;
  const within = limit();
  return within === null ? shownBitmap(counts) : clippedTo(shownBitmap(counts), within);
}

// The pixels that the answer is kept inside of, or null.
function limit() {
  if (desk.split) {
    const counts = desk.split.source === "mined" ? desk.image.mined.rle[desk.split.id] : null;
    return counts === null ? null : shownBitmap(counts);
  }
  const parent = masks().find((mask) => String(mask.id) === byId("within").value);
  return parent ? shownBitmap(parent.rle) : null;
}

function drawAnswer() {
  const [width, height] = desk.image.shown, canvas = byId("answer");
  byId("dial-value").textContent = dialValue() === null ? "" : dialValue().toFixed(2);
  if (desk.mode !== "click" && desk.scene) {
    desk.scene.paint(canvas, dialValue() ?? 1, { strength: 0.55, borders: true });
    outline(canvas, [...desk.chosen]);
    return;
  }
  const bits = answerBits(), layers = [];
  if (desk.split && limit()) layers.push({ bits: limit(), colour: [120, 160, 255], fill: 60, rim: 255 });
  if (bits) layers.push({ bits, colour: ANSWER, fill: 120, rim: 255 });
  paintMasks(canvas, width, height, layers);
  const said = bits ? `mask at granularity ${dialValue()?.toFixed(2) ?? "of its own"}` : "no mask yet";
  canvas.setAttribute("aria-label", said);
}

// Draws the chosen masks of a scene brightly over what is there.
function outline(canvas, ids) {
  const [width, height] = desk.image.shown, context = canvas.getContext("2d");
  const { verdicts } = desk.image, judged = (verdict) => (desk.mode === "mined" ? Object.keys(verdicts).filter((id) => verdicts[id] === verdict).map(Number) : []);
  const dropped = judged("drop"), kept = judged("keep");
  if (!ids.length && !dropped.length && !kept.length) return;
  const layer = document.createElement("canvas");
  paintMasks(layer, width, height, [
    ...dropped.map((id) => ({ bits: shownBitmap(desk.scene.record.rle[id]), colour: [10, 10, 10], fill: 190, rim: 190 })),
    ...kept.map((id) => ({ bits: shownBitmap(desk.scene.record.rle[id]), colour: [40, 220, 120], fill: 60, rim: 254 })),
    ...ids.map((id) => ({ bits: shownBitmap(desk.scene.record.rle[id]), colour: [255, 255, 255], fill: 110, rim: 255 })),
  ]);
  context.drawImage(layer, 0, 0);
}

function drawMarks() {
  const [width, height] = desk.image.shown, [full, fullHeight] = desk.image.size;
  const focused = document.activeElement === byId("canvas-box") && byId("canvas-box").matches(":focus-visible");
  paintMarks(byId("marks"), width, height, {
    ...prompt(), ...(desk.mode === "click" ? {} : NOTHING), drawn: desk.drag?.box ?? (desk.corner && desk.cross ? boxOf(desk.corner, desk.cross) : null),
    cross: focused ? desk.cross : null, scaleX: width / full, scaleY: height / fullHeight,
    unit: width / Math.max(1, byId("canvas-box").clientWidth),
  });
}

function drawFacts() {
  const facts = byId("facts");
  facts.classList.toggle("said", Boolean(desk.message));
  if (desk.message) {
    facts.textContent = desk.message;
    return;
  }
  if (desk.mode !== "click") {
    const shown = desk.scene ? shownAt(desk.scene, dialValue() ?? 1).size : 0;
    facts.textContent = desk.scene ? `${shown} of ${desk.scene.count} masks at granularity ${(dialValue() ?? 1).toFixed(2)}, ${desk.chosen.size} chosen` : "searching…";
    return;
  }
  const bits = answerBits();
  if (!bits) {
    facts.textContent = desk.busy ? "…" : "Click what you mean, then turn the dial until the mask is as large as you mean it.";
    return;
  }
  const which = desk.own !== null ? desk.answer.own : desk.answer.dial, place = desk.own ?? desk.place;
  let area = 0;
  for (const bit of bits) area += bit;
  const name = desk.own !== null ? `${desk.info.own} ${desk.own + 1}` : `granularity ${dialValue().toFixed(2)}`;
  facts.textContent = `${name} · ${percent((100 * area) / bits.length)} of the image · predicted IoU ${which.score[place].toFixed(2)} · ${told(prompt())}`;
}

function told({ points, box }) {
  const clicks = points.length === 1 ? "1 click" : points.length ? `${points.length} clicks` : "";
  return [clicks, box ? "a box" : ""].filter(Boolean).join(" and ");
}

function drawTools() {
  for (const [id, pressed] of [["inside", desk.tool === "inside"], ["outside", desk.tool === "outside"], ["box", desk.tool === "box"],
    ["mode-click", desk.mode === "click"], ["mode-everything", desk.mode === "everything"], ["mode-mined", desk.mode === "mined"],
    ["image-keep", desk.image.whole === "keep"], ["image-drop", desk.image.whole === "drop"]]) {
    byId(id).setAttribute("aria-pressed", String(pressed));
  }
  byId("undo").disabled = desk.at === 0;
  byId("redo").disabled = desk.at >= desk.history.length - 1;
  const many = desk.mode !== "click", count = many ? desk.chosen.size || (desk.scene ? shownAt(desk.scene, dialValue() ?? 1).size : 0) : 0;
  const accept = byId("accept");
  accept.textContent = desk.split ? "Cut in two" : desk.replaces !== null ? `Accept for mask ${desk.replaces}` : !many ? "Accept" : desk.chosen.size ? `Accept ${count} chosen` : `Accept all ${count} shown`;
  accept.disabled = !canChange() || desk.busy || (many ? !count : answerCounts() === null);
  const mined = desk.mode === "mined";
  byId("review").hidden = !mined;
  for (const id of ["keep", "drop", "merge", "split", "image-keep", "image-drop"]) byId(id).disabled = !canChange();
  if (mined) {
    const verdicts = Object.values(desk.image.verdicts), kept = verdicts.filter((each) => each === "keep").length;
    byId("review-count").textContent = `${desk.image.mined.rle.length} mined masks: ${kept} kept, ${verdicts.length - kept} dropped or replaced. Click to choose; none chosen: all shown.`;
  }
  drawOwn();
}

function drawBanner() {
  const banner = byId("banner");
  let text = "";
  if (desk.gone) text = "The server does not answer. What was accepted is safe; this page goes on by itself when it is back.";
  else if (desk.info.read_only) text = "A desk to look at: click and turn the dial; nothing is accepted here.";
  else if (desk.holder !== null && !desk.mine) text = `${desk.holder} has this image: you can look and try, not accept.`;
  else if (desk.split) text = "Cutting a mask in two: click inside it, turn the dial, then “Cut in two”. Esc leaves.";
  else if (desk.replaces !== null) text = `Editing mask ${desk.replaces}: change its clicks or the dial, then accept. Esc leaves.`;
  banner.textContent = text;
  banner.hidden = !text;
}

// A message stands where the facts do until the next click or turn of the dial.
function say(message) {
  desk.message = message;
  drawFacts();
}

function serverGone(gone) {
  if (desk.gone === gone) return;
  desk.gone = gone;
  drawBanner();
}

// ---- images -------------------------------------------------------------------------------------------------------

function step(by) {
  const count = desk.info.images.length;
  openImage((desk.number + by + count) % count);
}

async function openImage(number) {
  desk.number = number;
  history.replaceState(null, "", `#${number}`);
  forget();
  Object.assign(desk, { image: null, answer: null, scene: null, selected: null, cross: null, mine: false, holder: null, message: "" });
  if (desk.mode === "everything") desk.mode = "click";
  answers.clear();
  bitmaps.clear();
  const { name } = desk.info.images[number], photo = byId("photo");
  byId("stage-name").textContent = name;
  byId("stage-position").textContent = `${number + 1} of ${desk.info.images.length}`;
  byId("frame").value = number;
  byId("frame-value").textContent = number;
  photo.alt = `Image ${name}`;
  photo.src = imagePath(number, "/jpeg");
  for (const id of ["accepted", "answer", "marks"]) sized(byId(id), 1, 1).clearRect(0, 0, 1, 1);
  byId("facts").textContent = "reading the image…";
  drawBanner();
  drawImages();
  try {
    await here();
    const image = await patiently(() => call(imagePath(number)));
    if (desk.number !== number) return;
    desk.image = image;
    desk.categories = image.categories;
  } catch (error) {
    if (desk.number === number) say(error.message);
    return;
  }
  const [width, height] = desk.image.shown, box = byId("canvas-box");
  box.style.aspectRatio = `${width} / ${height}`;
  box.style.setProperty("--ratio", width / height);
  if (desk.mode === "mined") showMined();
  drawList();
  drawChips();
  draw();
  if (number + 1 < desk.info.images.length) new Image().src = imagePath(number + 1, "/jpeg");
}

// Asks until the server answers.
async function patiently(ask) {
  for (;;) {
    try {
      const answer = await ask();
      serverGone(false);
      return answer;
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      serverGone(true);
      await pause(1000);
    }
  }
}

const BEAT_MS = 4000;

async function here() {
  const number = desk.number;
  let told;
  try {
    told = await call("api/here", { ...me(), image: number });
  } catch (error) {
    if (error instanceof Unreachable) serverGone(true);
    return;
  }
  const back = desk.gone;
  serverGone(false);
  if (number !== desk.number) return;
  const changed = told.mine !== desk.mine;
  desk.mine = told.mine;
  desk.holder = told.holder;
  desk.people = told.people;
  told.masks.forEach((count, index) => { desk.info.images[index].masks = count; });
  const others = told.people.filter((each) => !each.you);
  byId("people").textContent = others.length ? others.map((each) => `${each.name} at ${each.image + 1}`).join(", ") : "";
  drawImages();
  drawBanner();
  if (desk.image && (back || !desk.mine || changed)) {
    try {
      const fresh = await call(imagePath(number));
      if (desk.number === number) decided(fresh);
    } catch (error) {
      if (error instanceof Unreachable) serverGone(true);
    }
  }
}

// What is decided of the image, as the server tells it.
function decided(told) {
  Object.assign(desk.image, { masks: told.masks, verdicts: told.verdicts, whole: told.whole });
  desk.categories = told.categories;
  desk.info.images[desk.number].masks = told.masks.length;
  desk.info.images[desk.number].whole = told.whole;
  if (!told.masks.some((mask) => mask.id === desk.selected)) desk.selected = null;
  drawList();
  drawChips();
  drawImages();
  draw();
}

// ---- prompts --------------------------------------------------------------------------------------------------------

function forget() {
  Object.assign(desk, { history: [NOTHING], at: 0, answer: null, own: null, replaces: null, split: null, corner: null, drag: null, chosen: new Set() });
}

function addClick(x, y, label) {
  if (desk.mode !== "click") {
    if (desk.scene) choose(desk.scene.maskAt(...onGrid(x, y), dialValue() ?? 1));
    return;
  }
  const now = prompt();
  if (!label && !now.box && !now.labels.includes(1)) {
    say("The first click is inside; then others can be outside.");
    return;
  }
  setPrompt({ ...now, points: [...now.points, [x, y]], labels: [...now.labels, label ? 1 : 0] });
}

const onGrid = (x, y) => [Math.floor(((x + 0.5) * desk.image.shown[0]) / desk.image.size[0]), Math.floor(((y + 0.5) * desk.image.shown[1]) / desk.image.size[1])];
const boxOf = (one, two) => [Math.min(one[0], two[0]), Math.min(one[1], two[1]), Math.max(one[0], two[0]), Math.max(one[1], two[1])];

function addBox(box) {
  const [x0, y0, x1, y1] = box;
  if (x1 - x0 < 2 || y1 - y0 < 2) return;
  setPrompt({ ...prompt(), box });
}

function setPrompt(next) {
  desk.history = [...desk.history.slice(0, desk.at + 1), next];
  desk.at = desk.history.length - 1;
  desk.message = "";
  ask();
}

function travel(by) {
  const to = desk.at + by;
  if (to < 0 || to >= desk.history.length) return;
  desk.at = to;
  ask();
}

// Answers of this image stay here, so undo and redo ask nothing. The newest question is the one that is shown.
async function ask(began = performance.now()) {
  const wanted = prompt(), key = JSON.stringify(wanted), asked = ++desk.asked, { number } = desk;
  if (!wanted.box && !wanted.points.length) {
    desk.answer = null;
    desk.own = null;
    draw();
    return;
  }
  if (!answers.has(key)) {
    desk.busy = true;
    drawMarks();
    try {
      const answer = await patiently(() => call(imagePath(number, "/answer"), { prompt: wanted }));
      if (number === desk.number) answers.set(key, answer);
    } catch (error) {
      if (asked === desk.asked) say(error.message);
    }
  }
  if (asked !== desk.asked) return;
  desk.busy = false;
  desk.answer = answers.get(key) ?? null;
  if (desk.answer && !desk.answer.dial) desk.own ??= 0;
  draw();
  requestAnimationFrame(() => requestAnimationFrame(() => performance.measure("desk-answer", { start: began, end: performance.now() })));
}

function setDial(place) {
  const last = desk.info.dial.length - 1;
  if (last < 0) return;
  const began = performance.now();
  desk.place = Math.min(last, Math.max(0, place));
  desk.own = null;
  desk.message = "";
  byId("dial").value = dialValue();
  byId("dial").setAttribute("aria-valuetext", `granularity ${dialValue().toFixed(2)}`);
  drawAnswer();
  drawFacts();
  drawTools();
  performance.measure("desk-dial", { start: began, end: performance.now() });
}

function setOwn(own) {
  if (!desk.answer?.own) return;
  desk.own = own;
  draw();
}

// ---- everything and mined masks -------------------------------------------------------------------------------------

async function setMode(mode) {
  if (!desk.image || (mode === "mined" && !desk.image.mined)) return;
  desk.mode = mode;
  desk.scene = null;
  desk.chosen = new Set();
  if (mode === "mined") showMined();
  draw();
  if (mode === "everything") await searchEverything();
}

function showMined() {
  desk.scene = desk.image.mined ? new Scene(desk.image.mined) : null;
  desk.chosen = new Set();
}

async function searchEverything() {
  const { number } = desk, ours = () => desk.number === number && desk.mode === "everything";
  byId("search").hidden = false;
  try {
    const job = await watched(await call(imagePath(number, "/everything"), {}), byId("search-progress"), ours);
    if (!ours()) return;
    if (job.state !== "done") {
      setMode("click");
      if (job.message) say(job.message);
      return;
    }
    desk.scene = new Scene(await call(imagePath(number, "/everything")));
    draw();
  } catch (error) {
    if (ours()) {
      setMode("click");
      say(error.message);
    }
  } finally {
    byId("search").hidden = true;
  }
}

// A job's last word; its share moves the bar as long as somebody looks.
async function watched(job, bar, looked = () => true) {
  desk.job = job.job;
  while (job.state === "running" && looked()) {
    bar.value = job.share;
    await pause(200);
    job = await patiently(() => call(`api/jobs/${job.job}`));
  }
  bar.value = job.share;
  return job;
}

function choose(id) {
  if (id === null || id === undefined) return;
  if (desk.chosen.has(id)) desk.chosen.delete(id);
  else desk.chosen.add(id);
  desk.message = "";
  draw();
}

const chosenOrShown = () => (desk.chosen.size ? [...desk.chosen] : [...shownAt(desk.scene, dialValue() ?? 1)]);

// ---- decisions ------------------------------------------------------------------------------------------------------

async function decide(route, body) {
  if (!canChange() || desk.busy) return null;
  const { number } = desk;
  desk.busy = true;
  drawTools();
  try {
    const told = await change(imagePath(number, `/${route}`), body);
    serverGone(false);
    desk.busy = false;
    desk.message = "";
    if (number === desk.number) decided(told);
    drawBanner();
    return told;
  } catch (error) {
    desk.busy = false;
    if (error.status === 409) desk.mine = false;
    say(error.message);
    drawTools();
    return null;
  }
}

function category() {
  return byId("category").value.trim() || desk.categories[0];
}

function setCategory(name) {
  byId("category").value = name;
  drawChips();
}

async function accept() {
  if (byId("accept").disabled) return;
  const within = byId("within").value, inside = within === "" ? null : Number(within);
  const shared = { category: category(), object_id: desk.info.kind === "video" ? Number(byId("object").value) : null };
  let body;
  if (desk.split) {
    body = { ...shared, source: desk.split.source, ids: [desk.split.id], way: "split", prompt: prompt(), place: desk.place };
  } else if (desk.mode !== "click") {
    body = { ...shared, source: desk.mode, ids: chosenOrShown(), inside };
  } else {
    body = { ...shared, source: desk.own !== null ? "own" : "dial", prompt: prompt(), place: desk.own ?? desk.place, inside, replaces: desk.replaces };
  }
  const split = desk.split !== null, told = await decide("accept", body);
  if (!told) return;
  const many = told.ids.length;
  forget();
  if (split) setMode("mined");
  draw();
  say(many === 1 ? `Mask ${told.ids[0]} is accepted as ${body.category}.` : `${many} masks are accepted as ${body.category}.`);
}

function selectMask(id) {
  desk.selected = id;
  drawList();
  drawAccepted();
}

function editMask(mask) {
  forget();
  desk.mode = "click";
  desk.scene = null;
  desk.replaces = mask.id;
  desk.selected = null;
  byId("within").value = mask.parent_id ?? "";
  if (mask.object_id !== null) byId("object").value = mask.object_id;
  setCategory(mask.category);
  const { prompt: asked } = mask;
  if (asked && (asked.points.length || asked.box)) desk.history.push(asked);
  desk.at = desk.history.length - 1;
  if (mask.granularity !== null) {
    const nearest = desk.info.dial.reduce((best, g, place) => (Math.abs(g - mask.granularity) < Math.abs(desk.info.dial[best] - mask.granularity) ? place : best), 0);
    setDial(nearest);
  }
  drawBanner();
  drawList();
  ask();
}

const relabel = (mask) => decide("relabel", { ids: [mask.id], category: category() });
const deleteMasks = (ids) => decide("delete", { ids });

async function review(verdict) {
  if (desk.mode !== "mined" || !desk.scene) return;
  const ids = chosenOrShown();
  const told = verdict === "keep" ? await decide("accept", { category: category(), source: "mined", ids }) : await decide("review", { ids, verdict });
  if (told) {
    desk.chosen = new Set();
    draw();
  }
}

async function merge() {
  if (desk.mode !== "mined" || desk.chosen.size < 2) {
    say("Choose at least two mined masks; they become one.");
    return;
  }
  if (await decide("accept", { category: category(), source: "mined", ids: [...desk.chosen], way: "merge" })) {
    desk.chosen = new Set();
    draw();
  }
}

function split() {
  if (desk.mode !== "mined" || desk.chosen.size !== 1) {
    say("Choose one mined mask, then split it.");
    return;
  }
  const [id] = desk.chosen;
  forget();
  desk.split = { source: "mined", id };
  desk.mode = "click";
  desk.scene = null;
  drawBanner();
  draw();
}

const judgeImage = (verdict) => decide("review", { whole: desk.image.whole === verdict ? "undecided" : verdict });

// ---- video ----------------------------------------------------------------------------------------------------------

async function propagate() {
  if (desk.info.kind !== "video" || desk.info.read_only) return;
  const bar = byId("track-progress"), note = byId("track-note");
  try {
    const begun = await call("api/propagate", {});
    bar.hidden = byId("track-stop").hidden = false;
    byId("propagate").disabled = true;
    note.textContent = "following the objects…";
    const job = await watched(begun, bar);
    const fresh = await call(imagePath(desk.number));
    if (desk.image && fresh.number === desk.number) desk.image.tracked = fresh.tracked;
    draw();
    note.textContent = job.state === "stopped" ? "Stopped; nothing was written." : job.message;
  } catch (error) {
    note.textContent = error.message;
  } finally {
    bar.hidden = byId("track-stop").hidden = true;
    byId("propagate").disabled = false;
  }
}

// ---- pointer, keys --------------------------------------------------------------------------------------------------

function pixelOf(event) {
  const box = byId("canvas-box").getBoundingClientRect(), [width, height] = desk.image.size;
  const x = Math.floor(((event.clientX - box.left) / box.width) * width), y = Math.floor(((event.clientY - box.top) / box.height) * height);
  return [Math.min(width - 1, Math.max(0, x)), Math.min(height - 1, Math.max(0, y))];
}

function listenStage() {
  const box = byId("canvas-box");
  box.addEventListener("pointerdown", (event) => {
    if (!desk.image || desk.mode !== "click" || desk.tool !== "box" || event.button !== 0) return;
    desk.drag = { from: pixelOf(event), box: null };
    box.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", (event) => {
    if (!desk.drag) return;
    desk.drag.box = boxOf(desk.drag.from, pixelOf(event));
    drawMarks();
  });
  box.addEventListener("pointercancel", () => { desk.drag = null; });
  box.addEventListener("pointerup", () => {
    const drawn = desk.drag?.box;
    desk.drag = null;
    if (drawn) addBox(drawn);
  });
  box.addEventListener("click", (event) => {
    if (!desk.image || desk.tool === "box") return;
    const [x, y] = pixelOf(event);
    desk.cross = [x, y];
    addClick(x, y, desk.tool === "inside" && !event.altKey);
  });
  box.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    if (desk.image) addClick(...pixelOf(event), false);
  });
  box.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    setZoom(desk.zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15));
  }, { passive: false });
  box.addEventListener("keydown", stageKey);
  for (const name of ["focus", "blur"]) box.addEventListener(name, () => { if (desk.image) drawMarks(); });
  new ResizeObserver(() => { if (desk.image) drawMarks(); }).observe(box);
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FAST = 20;

function stageKey(event) {
  if (!desk.image || event.ctrlKey || event.metaKey || event.altKey) return;
  const [width, height] = desk.image.size, arrow = ARROWS[event.key];
  desk.cross ??= [Math.floor(width / 2), Math.floor(height / 2)];
  if (arrow) {
    const by = event.shiftKey ? FAST : Math.max(1, Math.round(Math.max(width, height) / 400));
    desk.cross = [Math.min(width - 1, Math.max(0, desk.cross[0] + arrow[0] * by)), Math.min(height - 1, Math.max(0, desk.cross[1] + arrow[1] * by))];
    byId("facts").textContent = `cross at ${desk.cross[0]}, ${desk.cross[1]}`;
    drawMarks();
  } else if (event.key === "Enter" || event.key === "x") addClick(...desk.cross, event.key === "Enter" && !event.shiftKey);
  else if (event.key === "b" && desk.mode === "click") {
    if (desk.corner) {
      addBox(boxOf(desk.corner, desk.cross));
      desk.corner = null;
    } else {
      desk.corner = [...desk.cross];
      say("The box begins here: move the cross to its other corner and press b again.");
    }
    drawMarks();
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

function setZoom(zoom) {
  desk.zoom = Math.min(8, Math.max(1, zoom));
  byId("canvas-box").style.setProperty("--zoom", desk.zoom);
}

function setTool(tool) {
  desk.tool = tool;
  drawTools();
}

function clearAll() {
  const splitting = desk.split !== null;
  forget();
  desk.message = "";
  if (splitting) setMode("mined");
  desk.selected = null;
  drawBanner();
  drawList();
  draw();
}

const KEYS = {
  "[": () => setDial(desk.place - 1), "]": () => setDial(desk.place + 1),
  a: accept, z: () => travel(-1), Z: () => travel(1), y: () => travel(1),
  n: () => step(1), p: () => step(-1), f: () => byId("canvas-box").focus({ focusVisible: true }),
  b: () => setTool(desk.tool === "box" ? "inside" : "box"), x: () => setTool(desk.tool === "outside" ? "inside" : "outside"),
  o: () => desk.answer?.own && setOwn(desk.own === null ? 0 : desk.own + 1 < desk.answer.own.rle.length ? desk.own + 1 : null),
  c: () => setMode("click"), e: () => setMode("everything"), m: () => setMode("mined"),
  t: propagate, k: () => review("keep"), d: () => review("drop"), g: merge, s: split,
  "+": () => setZoom(desk.zoom * 1.25), "-": () => setZoom(desk.zoom / 1.25), 0: () => setZoom(1),
  Delete: () => desk.selected !== null && deleteMasks([desk.selected]),
  Escape: clearAll, "?": () => byId("keys").showModal(),
};

const WITHOUT_IMAGE = ["n", "p", "?"];

function pageKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  if (event.target.matches("input[type=text], input[type=number], select")) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "category")) byId("canvas-box").focus();
    return;
  }
  if (!desk.image && !WITHOUT_IMAGE.includes(event.key)) return;
  if (/^[1-9]$/.test(event.key) && desk.categories[event.key - 1]) setCategory(desk.categories[event.key - 1]);
  else if (Object.hasOwn(KEYS, event.key)) KEYS[event.key]();
  else return;
  event.preventDefault();
}

function listen() {
  const press = {
    undo: () => travel(-1), redo: () => travel(1), previous: () => step(-1), next: () => step(1), accept,
    inside: () => setTool("inside"), outside: () => setTool("outside"), box: () => setTool("box"),
    "mode-click": () => setMode("click"), "mode-everything": () => setMode("everything"), "mode-mined": () => setMode("mined"),
    keep: () => review("keep"), drop: () => review("drop"), merge, split,
    "image-keep": () => judgeImage("keep"), "image-drop": () => judgeImage("drop"),
    propagate, "track-stop": () => call("api/jobs/propagate", {}),
    "search-stop": () => desk.job && call(`api/jobs/${desk.job}`, {}),
  };
  for (const [id, work] of Object.entries(press)) byId(id).addEventListener("click", () => work());
  byId("dial").addEventListener("input", (event) => setDial(Math.round((Number(event.target.value) - 0.1) / 0.05)));
  byId("category").addEventListener("input", drawChips);
  byId("within").addEventListener("change", () => draw());
  byId("person").addEventListener("change", (event) => {
    localStorage.setItem("grainmill-name", event.target.value.trim());
    here();
  });
  byId("frame").addEventListener("change", (event) => openImage(Number(event.target.value)));
  byId("frame").addEventListener("input", (event) => { byId("frame-value").textContent = event.target.value; });
  byId("photo").addEventListener("dragstart", (event) => event.preventDefault());
  document.addEventListener("keydown", pageKey);
  addEventListener("pagehide", () => navigator.sendBeacon("api/here", JSON.stringify({ ...me(), image: -1 })));
  listenStage();
}

async function begin() {
  byId("person").value = localStorage.getItem("grainmill-name") ?? "";
  await ownMark();
  desk.info = await patiently(() => call("api/desk"));
  const { info } = desk;
  desk.categories = info.categories;
  byId("title").textContent = info.title;
  document.title = `${info.title}, Grainmill desk`;
  byId("subtitle").textContent = `${info.images.length} ${info.kind === "video" ? "frames" : "images"}, answered by ${info.predictor === "tree" ? "each image's own tree of masks" : info.predictor}`;
  byId("mode-mined").hidden = info.kind !== "mined";
  byId("film").hidden = info.kind !== "video";
  byId("object-label").hidden = info.kind !== "video";
  byId("track").hidden = info.kind !== "video" || info.read_only;
  byId("track-note").textContent = "Accept a mask of each object on any frame, each with its own granularity, then let them be followed.";
  byId("frame").max = info.images.length - 1;
  byId("dial").disabled = !info.dial.length;
  if (info.read_only) for (const id of ["accept", "category", "within-label", "object-label", "chips"]) byId(id).closest("label, button, .chips").hidden = true;
  byId("category").value = info.categories[0];
  desk.place = Math.max(0, info.dial.length - 1);
  listen();
  if (info.kind === "mined") desk.mode = "mined";
  const again = loadedAgain(), wanted = again ? info.images.findIndex(({ name }) => name === again.at) : Number(location.hash.slice(1));
  await openImage(Number.isInteger(wanted) && wanted >= 0 && wanted < info.images.length ? wanted : 0);
  if (again) say(again.message.replace("Load the page again", "The page was loaded again"));
  setInterval(here, BEAT_MS);
}

begin();
