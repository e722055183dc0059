"use strict";
// The lists beside the stage, and the chips below it. They read `desk` (desk.js) and call what is done by a press.

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function swatch(colour) {
  const made = node("i", { class: "swatch", "aria-hidden": "true" });
  made.style.backgroundColor = css(colour);
  return made;
}

const percent = (share) => (share >= 10 ? `${share.toFixed(0)} %` : share >= 0.1 ? `${share.toFixed(1)} %` : "< 0.1 %");
const g2 = (g) => (g === null ? "–" : g.toFixed(2));
const shareOf = (mask) => (100 * mask.area) / (desk.image.size[0] * desk.image.size[1]);

// Keeps the focus where it was when a list is made anew.
function refilled(list, rows) {
  const held = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...rows);
  if (held) list.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus();
}

function drawList() {
  const masks = desk.image ? desk.image.masks : [], rows = [];
  const add = (mask, depth) => {
    rows.push(maskRow(mask, depth));
    masks.filter((each) => each.parent_id === mask.id).forEach((part) => add(part, depth + 1));
  };
  const there = new Set(masks.map((mask) => mask.id));
  masks.filter((mask) => !there.has(mask.parent_id)).forEach((mask) => add(mask, 0));
  refilled(byId("list"), rows);
  byId("list-count").textContent = masks.length === 1 ? "1 mask" : `${masks.length} masks`;
  drawWithin(masks);
}

function maskRow(mask, depth) {
  const name = `${mask.category} ${mask.id}${mask.object_id === null ? "" : `, object ${mask.object_id}`}`;
  const row = node("button", { type: "button", class: "row", "data-key": `mask-${mask.id}`, "aria-pressed": String(mask.id === desk.selected), onclick: () => selectMask(mask.id === desk.selected ? null : mask.id) },
    swatch(colourOf(mask)), node("span", {}, name), node("span", { class: "soft" }, `g ${g2(mask.granularity)}`), node("span", { class: "soft" }, percent(shareOf(mask))));
  const small = (text, label, work) => node("button", { type: "button", class: "small", "aria-label": `${label} ${name}`, title: label, "data-key": `${text}-${mask.id}`, onclick: work }, text);
  const item = node("li", { "data-mask": mask.id, "aria-current": String(mask.id === desk.selected), "data-part": depth ? "" : null }, row);
  if (canChange()) {
    item.append(small("edit", "Edit the clicks of", () => editMask(mask)), small("name", "Give the category chosen below to", () => relabel(mask)), small("×", "Delete", () => deleteMasks([mask.id])));
  }
  item.style.setProperty("--depth", depth);
  return item;
}

function drawWithin(masks) {
  const select = byId("within"), chosen = select.value;
  select.replaceChildren(node("option", { value: "" }, "anything"), ...masks.map((mask) => node("option", { value: mask.id }, `${mask.category} ${mask.id}`)));
  select.value = masks.some((mask) => String(mask.id) === chosen) ? chosen : "";
}

const IMAGES_LISTED = 200;

function drawImages() {
  const { images } = desk.info, half = IMAGES_LISTED / 2;
  const from = Math.max(0, Math.min(desk.number - half, images.length - IMAGES_LISTED));
  const at = new Map();
  for (const each of desk.people) if (!each.you) at.set(each.image, each.name);
  const rows = images.slice(from, from + IMAGES_LISTED).map((image, index) => {
    const number = from + index, held = at.get(number), decided = image.whole;
    const told = [held ? `${held} is here` : null, decided, image.masks ? `${image.masks}` : null].filter(Boolean).join(" · ");
    return node("li", { "aria-current": String(number === desk.number) },
      node("button", { type: "button", class: "row", "data-key": `image-${number}`, onclick: () => openImage(number), "aria-label": `${image.name}${told ? `, ${told}` : ""}` },
        node("span", {}, image.name), node("span", { class: "soft" }, told)));
  });
  refilled(byId("images"), rows);
  const done = images.filter((image) => image.masks).length;
  byId("images-count").textContent = `${done} of ${images.length} begun`;
}

function drawChips() {
  const chosen = byId("category").value;
  byId("chips").replaceChildren(...desk.categories.slice(0, 9).map((name, index) =>
    node("button", { type: "button", "aria-pressed": String(name === chosen), onclick: () => setCategory(name) },
      swatch(categoryColour(index)), name, node("kbd", { "aria-hidden": "true" }, String(index + 1)))));
  byId("category-list").replaceChildren(...desk.categories.map((name) => node("option", { value: name })));
}

function drawOwn() {
  const group = byId("own"), { own } = desk.info;
  group.hidden = !own;
  if (!own) return;
  group.setAttribute("aria-label", `${own}: masks without the dial`);
  const count = desk.answer?.own ? desk.answer.own.rle.length : 3;
  group.replaceChildren(...Array.from({ length: count }, (_, place) => {
    const button = node("button", { type: "button", "aria-pressed": String(desk.own === place), title: `${own}, mask ${place + 1} (o)`, onclick: () => setOwn(desk.own === place ? null : place) }, `${own} ${place + 1}`);
    button.disabled = !desk.answer?.own;
    return button;
  }));
}
