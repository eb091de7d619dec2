// Elements, numbers as people read them, and the learning curve as SVG. No markup is ever made from text.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: `el("p", { class: "quiet", text: "hello" }, child, ...)`. */
export function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key === "width") node.style.width = value;
    else if (key === "left") node.style.left = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

export function bytes(value) {
  if (value === null || value === undefined) return "unknown";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (Math.abs(value) >= 1000 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${place === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[place]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} days`;
}

export function micros(value) {
  if (value === null || value === undefined) return "none yet";
  return value < 1000 ? `${Math.round(value)} µs` : `${(value / 1000).toFixed(value < 10000 ? 2 : 1)} ms`;
}

export const percent = (share, digits = 0) =>
  share === null || share === undefined || !Number.isFinite(share) ? "–" : `${(100 * share).toFixed(digits)} %`;

export const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

export function clock(date) {
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
}

export function moment(ns) {
  const date = new Date(ns / 1e6);
  const today = date.toDateString() === new Date().toDateString();
  const day = `${date.getFullYear()}-${String(date.getMonth() + 1).padStart(2, "0")}-${String(date.getDate()).padStart(2, "0")}`;
  return today ? clock(date) : `${day} ${clock(date).slice(0, 5)}`;
}

export function figure(value, name) {
  return el("div", { class: "figure" }, el("b", { text: value }), el("span", { text: name }));
}

export function rows(pairs) {
  return pairs
    .filter((pair) => pair !== null)
    .flatMap(([name, value, kind]) => [el("dt", { text: name }), el("dd", { text: value, class: kind ?? null })]);
}

/** A bar with its name and value as text; `share` null: the machine has no such sensor, and says so. */
export function meter(name, value, share, kind = "", limit = null) {
  const track = el("div", { class: "track", "aria-hidden": "true" });
  if (share !== null) track.append(el("i", { class: kind, width: `${Math.min(100, Math.max(0, 100 * share))}%` }));
  if (limit !== null) track.append(el("span", { class: "limit", left: `${100 * limit}%` }));
  return el("div", { class: "meter" }, el("p", { class: "cap" }, el("span", { text: name }), el("span", { text: value })), share === null ? null : track);
}

/** The sign of a state by shape, not by colour alone. */
export function mark(level) {
  const colour = `var(--${level})`;
  const svg = shape("svg", { viewBox: "0 0 40 40" });
  if (level === "ok") {
    svg.append(shape("circle", { cx: 20, cy: 20, r: 18, fill: colour }));
    svg.append(shape("path", { d: "M11 21l6 6 12-13", fill: "none", stroke: "var(--ok-ground)", "stroke-width": 4.5, "stroke-linecap": "round", "stroke-linejoin": "round" }));
  } else if (level === "warn") {
    svg.append(shape("path", { d: "M20 3l18 33H2z", fill: colour, stroke: colour, "stroke-width": 3, "stroke-linejoin": "round" }));
    svg.append(shape("path", { d: "M20 14v11M20 30.5v.5", stroke: "var(--warn-ground)", "stroke-width": 4.5, "stroke-linecap": "round" }));
  } else {
    svg.append(shape("rect", { x: 3, y: 3, width: 34, height: 34, rx: 6, fill: colour }));
    svg.append(shape("path", { d: "M13 13l14 14M27 13L13 27", stroke: "var(--bad-ground)", "stroke-width": 4.5, "stroke-linecap": "round" }));
  }
  return svg;
}

function ticks(low, high, wanted) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const first = Math.ceil(low / step) * step;
  const found = [];
  for (let value = first; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

const short = (value) => (Math.abs(value) >= 10000 ? `${Number((value / 1000).toPrecision(3))}k` : String(Number(value.toPrecision(4))));

/** The curve in words: what a reader hears who does not see it. */
export function inWords(curve) {
  const points = curve.points;
  if (points.length === 0) return "No loss was reported yet.";
  const first = points[0];
  const last = points[points.length - 1];
  const least = points.reduce((best, point) => (point[1] < best[1] ? point : best));
  const held = curve.held_out.length ? `; held-out loss ${short(curve.held_out[curve.held_out.length - 1][1])} at step ${curve.held_out[curve.held_out.length - 1][0]}` : "";
  return `Loss ${short(first[1])} at step ${first[0]}, ${short(last[1])} at step ${last[0]}, lowest ${short(least[1])} at step ${least[0]}${held}.`;
}

/** Draw the curve at the size of its box. */
export function plot(box, curve) {
  const width = Math.max(240, box.clientWidth);
  const height = 208;
  const pad = { left: 48, right: 58, top: 12, bottom: 26 };
  const all = [...curve.points, ...curve.held_out];
  if (all.length === 0) {
    box.replaceChildren();
    return;
  }
  const lastStep = Math.max(...all.map((point) => point[0]), 1);
  const right = curve.steps && curve.state === "running" ? Math.max(curve.steps, lastStep) : lastStep;
  let low = Math.min(...all.map((point) => point[1]));
  let high = Math.max(...all.map((point) => point[1]));
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  low -= room;
  high += room;
  const x = (step) => pad.left + ((width - pad.left - pad.right) * step) / right;
  const y = (value) => pad.top + ((height - pad.top - pad.bottom) * (high - value)) / (high - low);
  const line = (points) => points.map((point, place) => `${place ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": inWords(curve) });
  for (const value of ticks(low, high, 4)) {
    svg.append(shape("line", { class: "grid-line", x1: pad.left, x2: width - pad.right, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { x: pad.left - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  const across = ticks(0, right, width < 480 ? 3 : 6).filter((value) => Number.isInteger(value));
  for (const value of across) {
    const last = value === across[across.length - 1];
    svg.append(shape("text", { x: x(value), y: height - 6, "text-anchor": "middle" }, last ? `step ${short(value)}` : short(value)));
  }
  if (curve.points.length > 0) {
    const first = curve.points[0];
    const last = curve.points[curve.points.length - 1];
    const floor = height - pad.bottom;
    svg.append(shape("path", { class: "area", d: `${line(curve.points)}L${x(last[0]).toFixed(1)} ${floor}L${x(first[0]).toFixed(1)} ${floor}Z` }));
    svg.append(shape("path", { class: "loss", d: line(curve.points) }));
    svg.append(shape("circle", { class: "last", cx: x(last[0]), cy: y(last[1]), r: 4.5 }));
    svg.append(shape("text", { class: "name-loss", x: x(last[0]) + 9, y: y(last[1]) + 4 }, short(last[1])));
  }
  if (curve.held_out.length > 0) {
    const last = curve.held_out[curve.held_out.length - 1];
    svg.append(shape("path", { class: "held", d: line(curve.held_out) }));
    for (const point of curve.held_out) svg.append(shape("circle", { class: "held-dot", cx: x(point[0]), cy: y(point[1]), r: 3.5 }));
    const near = curve.points.length && Math.abs(y(last[1]) - y(curve.points[curve.points.length - 1][1])) < 15;
    if (!near) svg.append(shape("text", { class: "name-held", x: x(last[0]) + 9, y: y(last[1]) + 4 }, short(last[1])));
  }
  box.replaceChildren(svg);
}

/** Show a list, keeping the node of each item that stays: focus and open parts survive an update. */
export function keyed(parent, items, keyOf, make, update) {
  const known = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let before = null;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = known.get(key);
    known.delete(key);
    if (node === undefined) {
      node = make(item);
      node.dataset.key = key;
    }
    update(node, item);
    const place = before === null ? parent.firstChild : before.nextSibling;
    if (place !== node) parent.insertBefore(node, place);
    before = node;
  }
  for (const node of known.values()) node.remove();
}
