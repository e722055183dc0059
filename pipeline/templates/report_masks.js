"use strict";
// Masks: run-length codes, the dial's rule and colours. Nothing here knows the page.

// COCO's compressed runs: 6-bit characters, each run after the second as the difference to the one two before.
function decodeRuns(text) {
  const runs = [];
  for (let p = 0; p < text.length; ) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const char = text.charCodeAt(p++) - 48;
      value |= (char & 31) << shift;
      more = (char & 32) !== 0;
      shift += 5;
      if (!more && (char & 16)) value |= -1 << shift;
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

// Calls visit(x, firstY, endY) for each vertical stretch of foreground; runs go down the columns.
function eachStretch(text, height, visit) {
  let position = 0;
  decodeRuns(text).forEach((run, index) => {
    let end = position + run;
    if (index % 2 === 1) {
      for (let start = position; start < end; ) {
        const x = Math.floor(start / height), y = start - x * height;
        const stop = Math.min(end - start, height - y);
        visit(x, y, y + stop);
        start += stop;
      }
    }
    position = end;
  });
}

// OKLCH -> sRGB bytes, clipped: equal steps look equal, so no instance shouts.
function oklch(lightness, chroma, hueDegrees) {
  const hue = (hueDegrees * Math.PI) / 180;
  const a = chroma * Math.cos(hue), b = chroma * Math.sin(hue);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((linear) => {
    const clipped = Math.min(1, Math.max(0, linear));
    const coded = clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055;
    return Math.round(255 * coded);
  });
}

const GOLDEN = 0.6180339887498949;

// One image: which masks lie over each pixel, and which of them a granularity selects.
class Scene {
  constructor(record) {
    this.record = record;
    this.count = record.rle.length;
    this.width = record.width;
    this.height = record.height;
    this.children = Array.from({ length: this.count }, () => []);
    this.depth = new Array(this.count).fill(0);
    this.roots = [];
    for (let id = 0; id < this.count; id++) {
      const parent = record.parent[id];
      if (parent === null) this.roots.push(id);
      else {
        this.children[parent].push(id);
        this.depth[id] = this.depth[parent] + 1;
      }
    }
    this.names = this.makeNames();
    this.colours = this.makeColours();
    this.deepestMap = null;
  }

  // Instances are 1, 2, ...; the parts of 2 are 2.1, 2.2, ...
  makeNames() {
    const names = new Array(this.count);
    this.roots.forEach((root, index) => { names[root] = `${index + 1}`; });
    for (let id = 0; id < this.count; id++) {
      this.children[id].forEach((child, index) => { names[child] = `${names[id]}.${index + 1}`; });
    }
    return names;
  }

  // Instances take hues by the golden angle; parts stay near their instance and differ in lightness.
  makeColours() {
    const colours = new Array(this.count);
    this.roots.forEach((root, order) => {
      const hue = (25 + 360 * GOLDEN * order) % 360;
      colours[root] = oklch(0.7, 0.16, hue);
      let part = 0;
      const below = [...this.children[root]];
      while (below.length) {
        const id = below.shift();
        below.push(...this.children[id]);
        part += 1;
        const swing = (part * GOLDEN) % 1, step = (part * 0.7548776662) % 1;
        colours[id] = oklch(0.52 + 0.36 * step, 0.1 + 0.07 * swing, hue + 56 * (swing - 0.5));
      }
    });
    return colours;
  }

  // For each pixel the last mask of its chain, -1 where there is none. Smaller instances lie over larger ones,
  // parts over what holds them.
  deepest() {
    if (this.deepestMap) return this.deepestMap;
    const { rle, area, instance } = this.record;
    const order = [...Array(this.count).keys()].sort(
      (one, two) => area[instance[two]] - area[instance[one]] || instance[one] - instance[two] || one - two,
    );
    const map = new Int32Array(this.width * this.height).fill(-1);
    for (const id of order) {
      eachStretch(rle[id], this.height, (x, from, to) => {
        for (let y = from, at = from * this.width + x; y < to; y++, at += this.width) map[at] = id;
      });
    }
    this.deepestMap = map;
    return map;
  }

  // For each mask taken as the end of a chain: the mask of that chain nearest to g, the coarser of equals.
  targets(g) {
    const { granularity, parent } = this.record;
    const best = new Int32Array(this.count);
    for (let id = 0; id < this.count; id++) {
      best[id] = id;
      if (parent[id] !== null) {
        const held = best[parent[id]];
        if (Math.abs(granularity[held] - g) <= Math.abs(granularity[id] - g)) best[id] = held;
      }
    }
    return best;
  }

  maskAt(x, y, g) {
    const end = this.deepest()[y * this.width + x];
    return end < 0 ? null : this.targets(g)[end];
  }

  chain(id) {
    const path = [];
    for (let at = id; at !== null; at = this.record.parent[at]) path.unshift(at);
    return path;
  }

  bitmap(id) {
    const bits = new Uint8Array(this.width * this.height);
    eachStretch(this.record.rle[id], this.height, (x, from, to) => {
      for (let y = from; y < to; y++) bits[y * this.width + x] = 1;
    });
    return bits;
  }

  // Paints the cut at g and returns how many masks it shows.
  paint(canvas, g, { strength, borders }) {
    const { width, height } = this;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = image.data, deepest = this.deepest(), target = this.targets(g);
    const alpha = Math.round(255 * strength), shown = new Set();
    const owner = new Int32Array(width * height);
    for (let at = 0; at < owner.length; at++) owner[at] = deepest[at] < 0 ? -1 : target[deepest[at]];
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const id = owner[at];
        if (id >= 0) shown.add(id);
        const edge =
          borders && ((x + 1 < width && owner[at + 1] !== id) || (y + 1 < height && owner[at + width] !== id));
        const to = at * 4;
        if (edge) {
          pixels[to] = pixels[to + 1] = pixels[to + 2] = 255;
          pixels[to + 3] = Math.round(110 + 90 * strength);
        } else if (id >= 0) {
          const colour = this.colours[id];
          pixels[to] = colour[0];
          pixels[to + 1] = colour[1];
          pixels[to + 2] = colour[2];
          pixels[to + 3] = alpha;
        }
      }
    }
    context.putImageData(image, 0, 0);
    return shown.size;
  }

  // Darkens all but one mask and draws its outline.
  paintSelection(canvas, id, { outlineOnly }) {
    const { width, height } = this;
    canvas.width = width;
    canvas.height = height;
    if (id === null) return;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = image.data, bits = this.bitmap(id);
    const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && bits[y * width + x];
    const reach = Math.max(1, Math.round(Math.max(width, height) / 400));
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const to = (y * width + x) * 4;
        if (bits[y * width + x]) {
          const rim = !at(x - reach, y) || !at(x + reach, y) || !at(x, y - reach) || !at(x, y + reach);
          if (rim) pixels.set([255, 255, 255, 255], to);
        } else if (!outlineOnly) pixels.set([6, 8, 14, 165], to);
      }
    }
    context.putImageData(image, 0, 0);
  }
}
