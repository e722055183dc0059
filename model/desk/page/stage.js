"use strict";
// The stage: what is drawn over the image. Functions of their arguments alone; canvases have the page's grid.

const css = (colour, alpha = 1) => `rgb(${colour[0]} ${colour[1]} ${colour[2]} / ${alpha})`;
const ANSWER = [240, 160, 75];

// Categories take hues by the golden angle, as the report's instances do.
const categoryColour = (place) => oklch(0.72, 0.15, (205 + 360 * GOLDEN * place) % 360);

function bitmapOf(counts, width, height) {
  const bits = new Uint8Array(width * height);
  eachStretch(counts, height, (x, from, to) => {
    for (let y = from, at = from * width + x; y < to; y++, at += width) bits[at] = 1;
  });
  return bits;
}

function clippedTo(bits, other) {
  if (!other) return bits;
  return bits.map((bit, at) => bit & other[at]);
}

function sized(canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  return canvas.getContext("2d");
}

// Fills each mask with its colour and draws a rim of it; later ones lie over earlier ones.
function paintMasks(canvas, width, height, layers) {
  const context = sized(canvas, width, height), image = context.createImageData(width, height), pixels = image.data;
  for (const { bits, colour, fill, rim } of layers) {
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        if (!bits[at]) continue;
        const edge = rim && (x === 0 || y === 0 || x + 1 === width || y + 1 === height ||
          !bits[at - 1] || !bits[at + 1] || !bits[at - width] || !bits[at + width]);
        const alpha = edge ? rim : fill;
        if (!alpha) continue;
        const to = at * 4;
        if (edge && rim === 255) pixels[to] = pixels[to + 1] = pixels[to + 2] = 255;
        else { pixels[to] = colour[0]; pixels[to + 1] = colour[1]; pixels[to + 2] = colour[2]; }
        pixels[to + 3] = alpha;
      }
    }
  }
  context.putImageData(image, 0, 0);
}

// Clicks (+ inside, - outside), the box, and the cross of the keyboard; `unit` is one pixel of the screen on the grid.
function paintMarks(canvas, width, height, { points, labels, box, drawn, cross, scaleX, scaleY, unit }) {
  const context = sized(canvas, width, height);
  context.clearRect(0, 0, width, height);
  const stroke = (path, dashes = []) => {
    context.setLineDash(dashes);
    for (const [line, colour] of [[4, "#0b0d14"], [2, "#ffffff"]]) {
      context.lineWidth = line * unit;
      context.strokeStyle = colour;
      context.beginPath();
      path();
      context.stroke();
    }
    context.setLineDash([]);
  };
  for (const each of [box, drawn]) {
    if (each) stroke(() => context.rect(each[0] * scaleX, each[1] * scaleY, (each[2] - each[0]) * scaleX, (each[3] - each[1]) * scaleY), each === drawn ? [6 * unit, 4 * unit] : []);
  }
  points.forEach(([px, py], index) => {
    const x = (px + 0.5) * scaleX, y = (py + 0.5) * scaleY, arm = 3.5 * unit;
    context.beginPath();
    context.arc(x, y, 8 * unit, 0, 7);
    context.fillStyle = labels[index] ? "#1a7f4b" : "#b3261e";
    context.fill();
    context.lineWidth = 2 * unit;
    context.strokeStyle = "#ffffff";
    context.stroke();
    context.beginPath();
    context.moveTo(x - arm, y);
    context.lineTo(x + arm, y);
    if (labels[index]) { context.moveTo(x, y - arm); context.lineTo(x, y + arm); }
    context.stroke();
  });
  if (cross) {
    const x = (cross[0] + 0.5) * scaleX, y = (cross[1] + 0.5) * scaleY, near = 4 * unit, far = 14 * unit;
    stroke(() => {
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + dx * near, y + dy * near);
        context.lineTo(x + dx * far, y + dy * far);
      }
    });
  }
}

// The masks that a scene shows at g.
function shownAt(scene, g) {
  const target = scene.targets(g), shown = new Set();
  for (const end of scene.deepest()) if (end >= 0) shown.add(target[end]);
  return shown;
}
