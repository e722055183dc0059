"use strict";
// The report around the viewer: totals, images, pictures and scores, charts, failures.

const report = JSON.parse(document.getElementById("report-data").textContent);
const scenes = new Map();

function scene(index) {
  if (!scenes.has(index)) scenes.set(index, new Scene(report.images[index]));
  return scenes.get(index);
}

// What the viewer asks of the page around it.
const page = {
  position: () => `${state.image + 1} of ${report.images.length}`,
  step: (by) => showImage((state.image + by + report.images.length) % report.images.length),
  imageShown() {
    for (const figure of byId("gallery").children) {
      figure.setAttribute("aria-current", String(Number(figure.dataset.index) === state.image));
    }
  },
  dialMoved() {
    const bin = String(Math.min(8, Math.floor(state.g * 10 + 1e-6) - 1));
    for (const bar of document.querySelectorAll("[data-chart=granularity] .bar")) bar.classList.toggle("at", bar.dataset.bin === bin);
    drawGallery();
  },
  styleChanged: () => drawGallery(),
};

// ---- head -----------------------------------------------------------------------------------------------------------

function drawHead() {
  const { statistics, state: run } = report;
  document.title = `${report.title} · Grainmill report`;
  byId("title").textContent = report.title;
  const pending = run.pending ? `, ${count(run.pending)} still to do` : ", all of the plan";
  byId("subtitle").textContent = `${count(run.committed)} units committed${pending}`;
  const tiles = [
    ["images", count(statistics.samples)],
    ["masks", count(statistics.masks)],
    ["masks per image", statistics.masks_per_image?.toFixed(1) ?? "–"],
    ["instances per image", statistics.instances_per_image?.toFixed(1) ?? "–"],
    ["without masks", count(statistics.failures)],
  ];
  byId("tiles").append(...tiles.map(([term, value]) => node("div", {}, node("dt", {}, term), node("dd", {}, value))));
  byId("footer").textContent = `Grainmill ${report.version}, format ${report.format}. Images chosen with seed ${report.seed}.`;
}

// ---- gallery --------------------------------------------------------------------------------------------------------

const visible = new Set();
let galleryFrame = null;

function drawGallery() {
  galleryFrame ??= requestAnimationFrame(() => {
    galleryFrame = null;
    for (const figure of visible) {
      scene(Number(figure.dataset.index)).paint(figure.querySelector("canvas"), state.g, style());
    }
  });
}

function makeGallery() {
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) visible.delete(target);
      else {
        visible.add(target);
        const record = report.images[Number(target.dataset.index)], picture = target.querySelector("img");
        if (record.thumbnail && !picture.src) picture.src = photo(record);
      }
    }
    drawGallery();
  }, { rootMargin: "200px" });
  report.images.forEach((record, index) => {
    const picture = node("img", { alt: "" }), canvas = node("canvas", { "aria-hidden": "true" });
    const frame = node("span", { class: "frame" }, picture, canvas);
    const ratio = record.width / record.height;
    frame.style.aspectRatio = ratio;
    const button = node(
      "button", { type: "button", class: "card", "data-index": index, "aria-label": `Show ${label(record)}` },
      frame, node("span", { class: "card-name", title: label(record) }, (record.member ?? record.source).split("/").pop()), node("span", { class: "card-count" }, `${count(record.rle.length)} masks`),
    );
    button.style.setProperty("--ratio", Math.min(3, Math.max(0.4, ratio)));
    button.addEventListener("click", () => {
      showImage(index);
      byId("viewer").scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
    });
    byId("gallery").append(button);
    seen.observe(button);
  });
  const left = report.statistics.samples - report.images.length;
  byId("gallery-note").textContent = left > 0
    ? `${count(report.images.length)} of ${count(report.statistics.samples)} images, chosen at random with seed ${report.seed}; ${count(left)} are left out here. The numbers below are those of the whole run.`
    : `All ${count(report.images.length)} images of the run.`;
}

// ---- failures -------------------------------------------------------------------------------------------------------

function drawFailures(only = null) {
  const rows = report.failures.filter((row) => only === null || row.reason === only);
  const total = report.statistics.failures;
  byId("failures-note").textContent = total === 0
    ? "Every input sample has masks."
    : report.failures.length < total
      ? `The first ${count(report.failures.length)} of ${count(total)} rows; "grainmill failures" lists them all.`
      : `${count(total)} input samples are in no shard, for these reasons.`;
  byId("failures").hidden = total === 0;
  const columns = ["reason", "stage", "source_uri", "member", "message", "key"];
  byId("failures").replaceChildren(table(["reason", "stage", "source", "member", "message", "key"], rows.map((row) => columns.map((column) => row[column]))));
  for (const button of byId("failure-reasons").children) button.setAttribute("aria-pressed", String(button.dataset.reason === (only ?? "")));
}

function makeReasons() {
  const reasons = Object.entries(report.statistics.failures_by_reason);
  if (reasons.length < 2) return;
  for (const [reason, number] of [["", report.statistics.failures], ...reasons]) {
    const button = node("button", { type: "button", "data-reason": reason }, `${reason || "all"} ${count(number)}`);
    button.addEventListener("click", () => drawFailures(reason || null));
    byId("failure-reasons").append(button);
  }
}

function drawPassedOver() {
  byId("passed-section").hidden = report.passed_over.length === 0;
  byId("passed").append(table(["number", "what", "for instance"], report.passed_over.map((row) => [count(row.count), row.what, row.example])));
}

// ---- pictures and scores ---------------------------------------------------------------------------------------------

function makePictures() {
  byId("pictures-section").hidden = report.pictures.length === 0;
  byId("pictures").append(...report.pictures.map(({ caption, png }) =>
    node("figure", {}, node("figcaption", {}, caption), node("img", { src: `data:image/png;base64,${png}`, alt: caption, loading: "lazy" }))));
}

function makeScores() {
  byId("scores-section").hidden = report.scores.length === 0;
  const cell = (value) => (value === null ? "–" : typeof value === "string" ? value : value.toFixed(3));
  byId("scores").append(...report.scores.map(({ benchmark, split, command, metrics }) => {
    const rows = metrics.map(([metric, value, low, high]) => [metric, cell(value), low === null ? "–" : `${cell(low)} to ${cell(high)}`]);
    const box = node("div", { class: "table-box", role: "region", "aria-label": `Scores on ${benchmark}`, tabindex: "0" }, table(["metric", "value", "95 % interval"], rows));
    return node("article", {}, node("h3", {}, split ? `${benchmark}, ${split}` : benchmark), node("p", { class: "hint command" }, command), box);
  }));
}

// ---- start ----------------------------------------------------------------------------------------------------------

drawHead();
byId("charts").append(...charts(report.statistics));
makePictures();
makeScores();
makeReasons();
drawFailures();
drawPassedOver();
listenViewer();
if (report.images.length) {
  makeGallery();
  byId("dial").value = state.g;
  showImage(0);
  page.dialMoved();
} else {
  byId("viewer").replaceChildren(node("p", { class: "notice" }, "No image with masks is committed yet."));
  byId("gallery-note").textContent = "";
}
