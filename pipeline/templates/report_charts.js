"use strict";
// Small charts as inline SVG. All text goes in as text.

const SVG = "http://www.w3.org/2000/svg";

function node(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function shape(name, attributes, title) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (title) {
    const tip = document.createElementNS(SVG, "title");
    tip.textContent = title;
    made.append(tip);
  }
  return made;
}

function words(x, y, text, kind = "tick", anchor = "middle") {
  const made = shape("text", { x, y, class: kind, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

const whole = new Intl.NumberFormat("en");
const count = (value) => whole.format(value);
const percent = (value) =>
  value === 0 ? "0 %" : value < 0.01 ? "< 0.01 %" : `${value < 1 ? value.toPrecision(1) : value.toFixed(value < 10 ? 1 : 0)} %`;

// Bars of one histogram in percent, with a second series as hollow marks.
function histogram({ title, name, note, labels, counts, shares, published, axis }) {
  const width = 460, height = 210, left = 38, right = 18, bottom = 26, top = 10;
  const most = Math.max(1, ...shares, ...(published ?? []));
  const topShare = 4 * ([1, 2, 3, 5, 8, 10, 15, 20, 25].find((quarter) => 4 * quarter >= most) ?? 25);
  const step = (width - left - right) / shares.length;
  const y = (share) => top + (1 - share / topShare) * (height - top - bottom);
  const drawn = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}. Table below.`, "data-chart": name ?? "" });
  for (let line = 0; line <= 4; line++) {
    const share = (topShare * line) / 4;
    drawn.append(shape("line", { x1: left, x2: width - right, y1: y(share), y2: y(share), class: "grid" }));
    drawn.append(words(left - 6, y(share) + 4, `${Math.round(share)}%`, "tick", "end"));
  }
  shares.forEach((share, index) => {
    const x = left + index * step;
    drawn.append(
      shape(
        "rect",
        { x: x + 3, y: y(share), width: step - 6, height: Math.max(0, y(0) - y(share)), rx: 3, class: "bar", "data-bin": index },
        `${labels[index]}: ${count(counts[index])} masks, ${percent(share)}`,
      ),
    );
    if (published) {
      drawn.append(
        shape(
          "line",
          { x1: x + 1, x2: x + step - 1, y1: y(published[index]), y2: y(published[index]), class: "published" },
          `published: ${percent(published[index])}`,
        ),
      );
    }
  });
  axis.forEach((text, index) => {
    if (text !== "") drawn.append(words(left + index * step, height - bottom + 16, text));
  });
  const rows = shares.map((share, index) => [
    labels[index], count(counts[index]), percent(share), ...(published ? [percent(published[index])] : []),
  ]);
  const heads = ["bin", "masks", "share", ...(published ? ["published"] : [])];
  return node(
    "figure", { class: "chart wide" },
    node("figcaption", {}, node("h3", {}, title), note ? node("p", {}, note) : null),
    drawn,
    node("details", {}, node("summary", {}, "Numbers"), table(heads, rows)),
  );
}

// Horizontal bars: one row per name.
function bars({ title, note, rows }) {
  const most = Math.max(1e-12, ...rows.map((row) => row.value));
  const list = node("dl", { class: "rows" });
  for (const row of rows) {
    const fill = node("i", {});
    fill.style.setProperty("--share", `${(100 * row.value) / most}%`);
    list.append(node("div", {}, node("dt", {}, row.name), node("dd", {}, fill, node("span", {}, row.text))));
  }
  return node(
    "figure", { class: "chart" },
    node("figcaption", {}, node("h3", {}, title), note ? node("p", {}, note) : null), list,
  );
}

function table(heads, rows) {
  const made = node("table", {}, node("thead", {}, node("tr", {}, ...heads.map((head) => node("th", { scope: "col" }, head)))));
  const body = node("tbody");
  for (const row of rows) body.append(node("tr", {}, ...row.map((cell) => node("td", {}, cell ?? "–"))));
  made.append(body);
  return made;
}

function charts(statistics) {
  const { granularity_histogram: grain, area_histogram: area } = statistics;
  const edges = grain.edges.map((edge) => edge.toFixed(1));
  const share = (value) => (value === 0 ? "0" : value >= 0.01 ? `${Math.round(value * 100)}%` : `${+(value * 100).toPrecision(1)}%`);
  const made = [
    histogram({
      title: "Granularity",
      name: "granularity",
      note: "Bars: this run. Lines: published for UnSAMv2 on its own images (arXiv 2511.13714, Fig. 4).",
      labels: edges.slice(0, -1).map((edge, index) => `${edge} to ${edges[index + 1]}`),
      counts: grain.counts, shares: grain.percent, published: grain.published_percent, axis: edges,
    }),
    histogram({
      title: "Area",
      note: "Masks by their share of the image.",
      labels: area.edges.slice(0, -1).map((edge, index) => `${share(edge)} to ${share(area.edges[index + 1])}`),
      counts: area.counts, shares: area.percent, published: null, axis: area.edges.map(share),
    }),
  ];
  const named = (counts, say) =>
    Object.entries(counts).filter(([, value]) => value > 0).map(([name, value]) => ({ name: say(name), value, text: count(value) }));
  made.push(bars({
    title: "Depth", note: "Steps below the instance.",
    rows: named(statistics.depth, (depth) => (depth === "0" ? "instances" : `depth ${depth}`)),
  }));
  made.push(bars({ title: "Origin", note: "Which stage found the mask.", rows: named(statistics.origins, (name) => name) }));
  const seconds = Object.entries(statistics.seconds).sort((one, two) => two[1] - one[1]);
  if (seconds.length) {
    made.push(bars({
      title: "Time",
      note: `${statistics.seconds_per_image?.toFixed(2) ?? "–"} worker-seconds per image.`,
      rows: seconds.map(([name, value]) => ({
        name, value, text: `${value.toFixed(1)} s · ${percent(100 * (statistics.seconds_share[name] ?? 0))}`,
      })),
    }));
  }
  return made;
}
