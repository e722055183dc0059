"use strict";
// The viewer: one image, its masks at the dial's granularity, its part tree. One state, drawn by the functions
// below it. The page around it hands in scene(index) and the hooks of `page`.

const byId = (id) => document.getElementById(id);
const state = { image: 0, g: 1, selected: null, hovered: null, probe: null, open: new Set() };

const style = () => ({ strength: Number(byId("strength").value), borders: byId("borders").checked });
const photo = (record) => (record.thumbnail ? `data:image/jpeg;base64,${record.thumbnail}` : "");
const label = (record) => (record.member ? `${record.source} · ${record.member}` : record.source);
const name = (current, id) => `${current.depth[id] === 0 ? "instance" : "part"} ${current.names[id]}`;
const css = (colour) => `rgb(${colour[0]}, ${colour[1]}, ${colour[2]})`;
const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// ---- stage ----------------------------------------------------------------------------------------------------------

function showImage(index) {
  state.image = index;
  state.selected = state.hovered = state.probe = null;
  const current = scene(state.image), record = current.record;
  state.open = new Set(current.roots.length <= 12 ? current.roots : []);
  byId("stage-name").textContent = label(record);
  byId("stage-position").textContent = page.position();
  const picture = byId("stage-photo"), box = byId("canvas-box");
  picture.alt = `Image ${label(record)}`;
  picture.hidden = !record.thumbnail;
  if (record.thumbnail) picture.src = photo(record);
  box.style.aspectRatio = `${record.width} / ${record.height}`;
  box.style.setProperty("--ratio", record.width / record.height);
  page.imageShown();
  drawDialMarks();
  drawTree();
  drawStage();
  drawSelection();
}

function drawStage() {
  const shown = scene(state.image).paint(byId("stage-masks"), state.g, style());
  const all = scene(state.image).count;
  byId("dial-value").textContent = state.g.toFixed(2);
  byId("stage-masks").setAttribute("aria-label", `${shown} of ${all} masks at granularity ${state.g.toFixed(2)}`);
  byId("tree-count").textContent = `${shown} of ${all} shown at ${state.g.toFixed(2)}`;
  markShown();
}

function drawSelection() {
  const current = scene(state.image);
  const id = state.hovered ?? state.selected;
  const overlay = byId("stage-select");
  current.paintSelection(overlay, id, { outlineOnly: state.hovered !== null && state.selected === null });
  if (state.probe && state.hovered === null) drawProbe(overlay.getContext("2d"), current);
  describe(state.selected ?? state.hovered);
  for (const row of byId("tree").children) {
    row.setAttribute("aria-selected", String(Number(row.dataset.mask) === state.selected));
  }
}

function drawProbe(context, current) {
  const size = Math.max(3, current.width / 110);
  for (const [radius, colour] of [[size + 1.5, "#0b0d14"], [size, "#ffffff"]]) {
    context.beginPath();
    context.arc(state.probe.x + 0.5, state.probe.y + 0.5, radius, 0, 7);
    context.lineWidth = 2;
    context.strokeStyle = colour;
    context.stroke();
  }
}

function describe(id) {
  const current = scene(state.image), record = current.record;
  const path = byId("path"), facts = byId("facts");
  path.replaceChildren();
  if (id === null) {
    facts.textContent = `${record.size[0]} × ${record.size[1]} px, ${current.roots.length} instances, ${current.count} masks`;
    return;
  }
  current.chain(id).forEach((step, index) => {
    if (index) path.append(node("span", { class: "sep", "aria-hidden": "true" }, "›"));
    const button = node("button", { type: "button", class: "crumb" }, swatch(current, step), `${name(current, step)} · ${record.granularity[step].toFixed(2)}`);
    button.setAttribute("aria-pressed", String(step === id));
    button.addEventListener("click", () => select(step));
    path.append(button);
  });
  const share = (100 * record.area[id]) / (record.size[0] * record.size[1]);
  facts.textContent = [
    `mask ${id}`, `granularity ${record.granularity[id].toFixed(3)}`, `${percent(share)} of the image (${count(record.area[id])} px)`,
    `from ${record.origin[id]}`, record.level[id] === null ? null : `level ${record.level[id]}`,
    record.score[id] === null ? null : `score ${record.score[id].toFixed(3)}`,
  ].filter(Boolean).join(" · ");
}

function swatch(current, id) {
  const made = node("i", { class: "swatch", "aria-hidden": "true" });
  made.style.backgroundColor = css(current.colours[id]);
  return made;
}

function select(id, { probe = null, reveal = true } = {}) {
  state.selected = id;
  state.probe = probe;
  state.hovered = null;
  if (id !== null) {
    const opened = scene(state.image).chain(id).slice(0, -1).filter((step) => !state.open.has(step));
    opened.forEach((step) => state.open.add(step));
    if (opened.length) drawTree();
  }
  drawSelection();
  if (reveal && id !== null) scrollTree(id);
}

function scrollTree(id) {
  const tree = byId("tree"), row = tree.querySelector(`[data-mask="${id}"]`);
  if (!row) return;
  const above = row.offsetTop - tree.offsetTop;
  if (above < tree.scrollTop || above + row.offsetHeight > tree.scrollTop + tree.clientHeight) {
    tree.scrollTop = above - tree.clientHeight / 2;
  }
}

function pixelOf(event) {
  const box = byId("canvas-box").getBoundingClientRect(), { width, height } = scene(state.image);
  const x = Math.floor(((event.clientX - box.left) / box.width) * width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * height);
  return { x: Math.min(width - 1, Math.max(0, x)), y: Math.min(height - 1, Math.max(0, y)) };
}

// ---- tree -----------------------------------------------------------------------------------------------------------

function drawTree() {
  const current = scene(state.image), rows = [];
  const add = (id, level, position, siblings) => {
    rows.push(treeRow(current, id, level, position, siblings));
    if (state.open.has(id)) current.children[id].forEach((child, index, all) => add(child, level + 1, index + 1, all.length));
  };
  current.roots.forEach((root, index) => add(root, 1, index + 1, current.roots.length));
  byId("tree").replaceChildren(...rows);
  if (rows.length) rows[0].tabIndex = 0;
  markShown();
}

function treeRow(current, id, level, position, siblings) {
  const record = current.record, children = current.children[id].length;
  const toggle = node("span", { class: "toggle", "aria-hidden": "true" }, children ? "›" : "");
  const meter = node("span", { class: "meter", "aria-hidden": "true" }, node("i"));
  meter.firstChild.style.width = `${100 * record.granularity[id]}%`;
  const share = (100 * record.area[id]) / (record.size[0] * record.size[1]);
  const row = node(
    "li",
    { role: "treeitem", "data-mask": id, "aria-level": level, "aria-posinset": position, "aria-setsize": siblings, tabindex: -1 },
    toggle, swatch(current, id), node("span", { class: "tree-name" }, name(current, id)),
    meter,
    node("span", { class: "tree-g" }, record.granularity[id].toFixed(2)), node("span", { class: "tree-area" }, percent(share)),
  );
  row.style.setProperty("--level", level - 1);
  row.setAttribute("aria-label", `${name(current, id)}, granularity ${record.granularity[id].toFixed(2)}, ${percent(share)} of the image`);
  if (children) row.setAttribute("aria-expanded", String(state.open.has(id)));
  return row;
}

function markShown() {
  const current = scene(state.image), target = current.targets(state.g), shown = new Set(target);
  for (const row of byId("tree").children) row.classList.toggle("shown", shown.has(Number(row.dataset.mask)));
}

function toggle(id, open) {
  if (!scene(state.image).children[id].length || state.open.has(id) === open) return;
  if (open) state.open.add(id);
  else state.open.delete(id);
  drawTree();
  drawSelection();
  focusRow(id);
}

function focusRow(id) {
  for (const row of byId("tree").children) row.tabIndex = -1;
  const row = byId("tree").querySelector(`[data-mask="${id}"]`);
  if (!row) return;
  row.tabIndex = 0;
  row.focus();
}

function treeKey(event) {
  const row = event.target.closest("[role=treeitem]");
  if (!row) return;
  const id = Number(row.dataset.mask), record = scene(state.image).record;
  const move = (to) => to && focusRow(Number(to.dataset.mask));
  const actions = {
    ArrowDown: () => move(row.nextElementSibling),
    ArrowUp: () => move(row.previousElementSibling),
    Home: () => move(byId("tree").firstElementChild),
    End: () => move(byId("tree").lastElementChild),
    ArrowRight: () => (row.getAttribute("aria-expanded") === "false" ? toggle(id, true) : move(row.nextElementSibling)),
    ArrowLeft: () => {
      if (row.getAttribute("aria-expanded") === "true") toggle(id, false);
      else if (record.parent[id] !== null) focusRow(record.parent[id]);
    },
    Enter: () => select(id, { reveal: false }),
    " ": () => select(id, { reveal: false }),
  };
  if (!actions[event.key]) return;
  actions[event.key]();
  event.preventDefault();
  event.stopPropagation();
}

// ---- dial -----------------------------------------------------------------------------------------------------------

function setGranularity(g) {
  state.g = Math.round(Math.min(1, Math.max(0.1, g)) * 1000) / 1000;
  byId("dial").value = state.g;
  drawStage();
  if (state.probe) {
    const id = scene(state.image).maskAt(state.probe.x, state.probe.y, state.g);
    if (id !== state.selected) select(id, { probe: state.probe });
  }
  page.dialMoved();
}

// One stroke under the dial for each mask of the image.
function drawDialMarks() {
  const canvas = byId("dial-marks"), current = scene(state.image);
  const ratio = window.devicePixelRatio || 1, inset = 9;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const room = canvas.clientWidth - 2 * inset;
  context.globalAlpha = 0.75;
  current.record.granularity.forEach((g, id) => {
    context.fillStyle = css(current.colours[id]);
    context.fillRect(inset + ((g - 0.1) / 0.9) * room - 0.75, 0, 1.5, canvas.clientHeight);
  });
}

const sweep = {
  timer: null,
  stop() {
    cancelAnimationFrame(this.timer);
    this.timer = null;
    byId("sweep").setAttribute("aria-pressed", "false");
    byId("sweep").textContent = "Sweep";
  },
  start() {
    const from = performance.now(), phase = Math.acos(Math.min(1, Math.max(-1, (state.g - 0.55) / 0.45)));
    const step = (now) => {
      setGranularity(0.55 + 0.45 * Math.cos(phase + (now - from) / 1600));
      this.timer = requestAnimationFrame(step);
    };
    byId("sweep").setAttribute("aria-pressed", "true");
    byId("sweep").textContent = "Stop";
    this.timer = requestAnimationFrame(step);
  },
  toggle() {
    if (this.timer === null) this.start();
    else this.stop();
  },
};

// ---- events ------------------------------------------------------------------------------------------------------

function listenViewer() {
  const box = byId("canvas-box"), tree = byId("tree");
  byId("dial").addEventListener("input", (event) => { sweep.stop(); setGranularity(Number(event.target.value)); });
  for (const id of ["strength", "borders"]) byId(id).addEventListener("input", () => { drawStage(); page.styleChanged(); });
  byId("sweep").addEventListener("click", () => sweep.toggle());
  byId("previous").addEventListener("click", () => page.step(-1));
  byId("next").addEventListener("click", () => page.step(1));
  const hover = (id) => { if (id !== state.hovered) { state.hovered = id; drawSelection(); } };
  box.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse" || state.selected !== null) return;
    const { x, y } = pixelOf(event);
    hover(scene(state.image).maskAt(x, y, state.g));
  });
  box.addEventListener("pointerleave", () => hover(null));
  box.addEventListener("click", (event) => {
    const probe = pixelOf(event), id = scene(state.image).maskAt(probe.x, probe.y, state.g);
    select(id, { probe: id === null ? null : probe });
  });
  tree.addEventListener("click", (event) => {
    const row = event.target.closest("[role=treeitem]");
    if (!row) return;
    const id = Number(row.dataset.mask);
    if (event.target.closest(".toggle")) toggle(id, !state.open.has(id));
    else { select(id, { reveal: false }); focusRow(id); }
  });
  tree.addEventListener("mouseover", (event) => { const row = event.target.closest("[role=treeitem]"); if (row) hover(Number(row.dataset.mask)); });
  tree.addEventListener("mouseleave", () => hover(null));
  tree.addEventListener("keydown", treeKey);
  document.addEventListener("keydown", pageKey);
  new ResizeObserver(drawDialMarks).observe(byId("dial-marks"));
}

function pageKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
  const actions = {
    n: () => page.step(1),
    p: () => page.step(-1),
    "[": () => { sweep.stop(); setGranularity(state.g - 0.05); },
    "]": () => { sweep.stop(); setGranularity(state.g + 0.05); },
    Escape: () => { sweep.stop(); select(null); },
  };
  if (actions[event.key]) actions[event.key]();
}
