"use strict";
// The gallery around the viewer: the index, search and order, cards that fill as they scroll into sight, and the chunks
// behind them. A chunk is a script beside the page that calls grainmill.take(name, value).

const PAGE_CARDS = 60;
const waiting = new Map(); // chunk -> {promise, resolve}
const scenes = new Map(); // image -> Scene, the last few
const SCENES = 24;
const gallery = { index: null, entries: [], order: [], drawn: 0 };

window.grainmill = {
  take(name, value) {
    waiting.get(name)?.resolve(value);
  },
};

function chunk(name) {
  if (!waiting.has(name)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => {
      entry.resolve = resolve;
      const script = node("script", { src: `gallery/${name}.js` });
      script.addEventListener("error", () => {
        waiting.delete(name);
        reject(new Error(`gallery/${name}.js could not be loaded: the page needs the folder "gallery" beside it`));
      });
      document.head.append(script);
    });
    waiting.set(name, entry);
  }
  return waiting.get(name).promise;
}

function problem(error) {
  byId("problem").textContent = String(error.message ?? error);
  byId("problem").hidden = false;
}

const numbered = (name, number, digits) => `${name}-${String(number).padStart(digits, "0")}`;
const EMPTY = new Scene({ source: "", member: null, size: [1, 1], width: 1, height: 1, rle: [], area: [], granularity: [], instance: [], parent: [], level: [], origin: [], score: [] });
const scene = (index) => scenes.get(index) ?? EMPTY;

async function load(index) {
  if (scenes.has(index)) return;
  const size = gallery.index.images_per_chunk;
  const records = await chunk(numbered("images", Math.floor(index / size), 5));
  scenes.set(index, new Scene(records[index % size]));
  if (scenes.size > SCENES) scenes.delete(scenes.keys().next().value);
}

// What the viewer asks of the page around it.
const page = {
  images: () => gallery.order.filter((entry) => entry.image !== null),
  position() {
    const shown = this.images(), at = shown.findIndex((entry) => entry.image === state.image);
    return at < 0 ? "not in this selection" : `${count(at + 1)} of ${count(shown.length)}`;
  },
  step(by) {
    const shown = this.images();
    if (!shown.length) return;
    const at = shown.findIndex((entry) => entry.image === state.image);
    open(shown[(Math.max(at, by > 0 ? -1 : 0) + by + shown.length) % shown.length].image);
  },
  imageShown: markCurrent,
  dialMoved() {},
  styleChanged() {},
};

let wanted = null;

async function open(image, { scroll = false } = {}) {
  wanted = image;
  byId("viewer").classList.add("loading");
  try {
    await load(image);
  } catch (error) {
    problem(error);
    return;
  } finally {
    byId("viewer").classList.remove("loading");
  }
  if (wanted !== image) return; // another one was opened meanwhile
  for (const id of ["viewer", "dialbar", "dial-rule"]) byId(id).hidden = false;
  showImage(image);
  history.replaceState(null, "", `#${encodeURIComponent(gallery.entries[image].key)}`);
  if (scroll) byId("viewer").scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
}

function markCurrent() {
  for (const card of byId("gallery").children) card.setAttribute("aria-current", String(card.dataset.index === String(state.image)));
}

// ---- search and order -----------------------------------------------------------------------------------------------

function makeEntries({ columns, rows, failures }) {
  const images = rows.map((row, image) => {
    const entry = Object.fromEntries(columns.map((column, at) => [column, row[at]]));
    return { ...entry, image, reason: null, words: `${entry.key} ${entry.source} ${entry.member ?? ""}`.toLowerCase() };
  });
  const failed = failures.map((row) => ({
    key: row.key, source: row.source_uri, member: row.member, masks: -1, instances: -1, granularity: -1, image: null,
    reason: row.reason, message: row.message, stage: row.stage,
    words: `${row.key} ${row.source_uri} ${row.member ?? ""} ${row.reason} ${row.message}`.toLowerCase(),
  }));
  return [...images, ...failed];
}

function choose() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = byId("kind").value, sort = byId("sort").value;
  const sign = byId("direction").getAttribute("aria-pressed") === "true" ? -1 : 1;
  const byName = (one, two) => (one.words < two.words ? -1 : one.words > two.words ? 1 : 0);
  const compare = {
    source: (one, two) => sign * byName(one, two),
    failures: (one, two) => sign * ((two.reason !== null) - (one.reason !== null)) || byName(one, two),
  }[sort] ?? ((one, two) => sign * ((one[sort] ?? -1) - (two[sort] ?? -1)) || byName(one, two));
  gallery.order = gallery.entries
    .filter((entry) => kind === "all" || (kind === "failures") === (entry.image === null))
    .filter((entry) => words.every((word) => entry.words.includes(word)))
    .sort(compare);
  gallery.drawn = 0;
  byId("gallery").replaceChildren();
  drawMore();
  byId("gallery-note").textContent = note();
  if (state.image !== null && !byId("viewer").hidden) byId("stage-position").textContent = page.position();
}

function note() {
  const { rows, failures, totals, seed } = gallery.index;
  const left = totals.samples - rows.length;
  const shown = `${count(gallery.order.length)} of ${count(rows.length + failures.length)} shown.`;
  return left > 0 ? `${shown} ${count(left)} images are left out of this gallery; those here were chosen with seed ${seed}.` : shown;
}

// ---- cards ----------------------------------------------------------------------------------------------------------

const fill = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    fill.unobserve(target);
    fillCard(target).catch(problem);
  }
}, { rootMargin: "300px" });

async function fillCard(card) {
  const index = Number(card.dataset.index), size = gallery.index.thumbs_per_chunk;
  const thumbs = await chunk(numbered("thumbs", Math.floor(index / size), 4));
  const thumb = thumbs[index % size];
  if (thumb) card.querySelector("img").src = `data:image/jpeg;base64,${thumb}`;
}

function drawMore() {
  const next = gallery.order.slice(gallery.drawn, gallery.drawn + PAGE_CARDS);
  gallery.drawn += next.length;
  byId("gallery").append(...next.map((entry) => (entry.image === null ? failedCard(entry) : imageCard(entry))));
  byId("more").hidden = gallery.drawn >= gallery.order.length;
  markCurrent();
}

function imageCard(entry) {
  const frame = node("span", { class: "frame" }, node("img", { alt: "" }));
  frame.style.aspectRatio = entry.width / entry.height;
  const shownName = (entry.member ?? entry.source).split("/").pop();
  const card = node(
    "button", { type: "button", class: "card", "data-index": entry.image, "aria-label": `Show ${entry.source}` },
    frame, node("span", { class: "card-name", title: entry.source }, shownName), node("span", { class: "card-count" }, `${count(entry.masks)} masks`),
  );
  card.style.setProperty("--ratio", Math.min(3, Math.max(0.4, entry.width / entry.height)));
  card.addEventListener("click", () => open(entry.image, { scroll: true }));
  fill.observe(card);
  return card;
}

function failedCard(entry) {
  return node(
    "article", { class: "card failed" }, node("b", {}, entry.reason), node("span", {}, ` in ${entry.stage}`),
    node("p", {}, entry.member ? `${entry.source} · ${entry.member}` : entry.source), node("p", {}, entry.message),
  );
}

// ---- start ----------------------------------------------------------------------------------------------------------

function drawHead() {
  const { title, totals, version, format, rows } = gallery.index;
  document.title = `${title} · Grainmill gallery`;
  byId("title").textContent = title;
  byId("subtitle").textContent = "Click an image, click a point, move the dial.";
  const tiles = [
    ["images", count(totals.samples)],
    ["masks", count(totals.masks)],
    ["masks per image", totals.samples ? (totals.masks / totals.samples).toFixed(1) : "–"],
    ["failures", count(totals.failures)],
  ];
  byId("tiles").append(...tiles.map(([term, value]) => node("div", {}, node("dt", {}, term), node("dd", {}, value))));
  byId("footer").textContent = `Grainmill ${version}, format ${format}; ${count(rows.length)} images in this gallery.`;
}

function listenGallery() {
  let pause = null;
  byId("search").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(choose, 120);
  });
  byId("filters").addEventListener("submit", (event) => { event.preventDefault(); choose(); });
  for (const id of ["kind", "sort"]) byId(id).addEventListener("change", choose);
  byId("direction").addEventListener("click", (event) => {
    const pressed = event.target.getAttribute("aria-pressed") !== "true";
    event.target.setAttribute("aria-pressed", String(pressed));
    event.target.textContent = pressed ? "Descending" : "Ascending";
    choose();
  });
  byId("more-button").addEventListener("click", drawMore);
  new IntersectionObserver(([entry]) => { if (entry.isIntersecting) drawMore(); }, { rootMargin: "600px" }).observe(byId("more"));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select")) return;
    event.preventDefault();
    byId("search").focus();
  });
}

async function start() {
  gallery.index = await chunk("index");
  gallery.entries = makeEntries(gallery.index);
  state.image = null;
  drawHead();
  listenViewer();
  listenGallery();
  choose();
  byId("dial").value = state.g;
  const key = decodeURIComponent(location.hash.slice(1));
  const named = key ? gallery.entries.find((entry) => entry.key === key && entry.image !== null) : null;
  const first = named ?? page.images()[0];
  if (first) await open(first.image);
  document.body.dataset.ready = "true";
}

start().catch(problem);
