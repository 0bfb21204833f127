// A chart of lines: axes, phases, markers, bands and curves, drawn into one SVG element.

import { area, line as path, scaleLinear, scaleLog } from "./d3.js";
import { svg } from "./dom.js";
import { formatValue, shortNumber } from "./format.js";
import { isFirm, isPhase } from "./phases.js";
import { stepScale } from "./steps.js";
import { nearest, parted, thinned, valueRange } from "./stats.js";

export const MARGIN = { left: 64, right: 14, top: 22, bottom: 22 };
let clips = 0;

// `view`: { width, height, kind, axisName, domain, lines, limits, spans, markers, isNamed, isWhole, isLogarithmic, title }.
export function drawChart(root, view) {
  const { width, height, lines } = view;
  const inner = [MARGIN.left, width - MARGIN.right];
  const x = stepScale(view.kind, view.domain, inner);
  const { scale: y, beyond } = verticalScale(view, height);
  const clip = `clip${(clips += 1)}`;
  root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  root.setAttribute("width", width);
  root.setAttribute("height", height);
  const plot = { left: inner[0], right: inner[1], top: MARGIN.top, bottom: height - MARGIN.bottom };
  const frame = { x: plot.left, y: plot.top, width: plot.right - plot.left, height: plot.bottom - plot.top };
  root.replaceChildren(
    svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", frame))),
    svg("g", { "clip-path": `url(#${clip})` }, ...spans(view.spans, x, plot), ...intervals(view.markers, x, plot)),
    ...spanNames(view, x, plot),
    yAxis(y, plot),
    xAxis(x, plot, view.axisName),
    svg("g", { "clip-path": `url(#${clip})`, class: "curves" }, ...bands(lines, x, y), ...curves(lines, x, y)),
    svg("g", { class: "beyond" }, ...arrows(beyond, x, plot)),
    svg("g", { class: "markers" }, ...markers(view.markers, x, plot)),
    svg("g", { class: "cursor", "aria-hidden": "true" }),
    svg("rect", { class: "brush", y: plot.top, height: frame.height, width: 0 }),
    svg("rect", { class: "target", ...frame }),
  );
  return { x, y, plot, nBeyond: beyond.length };
}

function verticalScale({ lines, limits, isWhole, isLogarithmic }, height) {
  const range = [height - MARGIN.bottom, MARGIN.top + 6];
  if (isLogarithmic) {
    const values = lines.flatMap((line) => [...line.ys]).filter((value) => value > 0 && Number.isFinite(value));
    const low = values.reduce((a, b) => Math.min(a, b), Infinity);
    const high = values.reduce((a, b) => Math.max(a, b), 0);
    if (values.length) return { scale: scaleLog([low, high > low ? high : low * 10], range).nice(), beyond: [] };
  }
  const { bottom, top, isCut } = valueRange(lines, limits);
  const cut = isCut && !isWhole;
  const all = isCut && isWhole ? extremes(lines) : [bottom, top];
  const room = all[1] - all[0];
  const pad = (edge, limit) => (edge === limit ? 0 : 0.04 * room);
  const scale = scaleLinear([all[0] - pad(all[0], limits[0]), all[1] + pad(all[1], limits[1])], range);
  return { scale, beyond: cut ? pointsBeyond(lines, bottom, top) : [] };
}

function extremes(lines) {
  const finite = lines.flatMap((line) => [...line.ys]).filter(Number.isFinite);
  return [finite.reduce((a, b) => Math.min(a, b), Infinity), finite.reduce((a, b) => Math.max(a, b), -Infinity)];
}

function pointsBeyond(lines, bottom, top) {
  const found = [];
  for (const { xs, ys } of lines) {
    for (let i = 0; i < xs.length; i++)
      if (Number.isFinite(ys[i]) && (ys[i] > top || ys[i] < bottom))
        found.push({ x: xs[i], y: ys[i], up: ys[i] > top });
  }
  return found.sort((a, b) => Math.abs(b.y) - Math.abs(a.y));
}

function arrows(beyond, x, plot) {
  return beyond.slice(0, 30).map((point) => {
    const [at, edge, tip] = [x.of(point.x), point.up ? plot.top + 12 : plot.bottom - 6, point.up ? -6 : 6];
    const shape = svg("path", { class: "arrow", d: `M${at - 4},${edge}L${at + 4},${edge}L${at},${edge + tip}Z` });
    shape.append(svg("title", {}, `${formatValue(point.y)}, beyond the axis`));
    return shape;
  });
}

// Axes

// `name` stands at the left of the numbers: what they count.
export function xAxis(x, plot, name) {
  const group = svg("g", { class: "axis x" });
  for (const { value, label } of x.ticks(Math.max(3, Math.floor((plot.right - plot.left) / 80)))) {
    const at = x.of(value);
    if (at < plot.left - 0.5 || at > plot.right + 0.5) continue;
    group.append(
      svg("line", {
        class: label ? "tick" : "tick minor",
        "data-value": value,
        x1: at,
        x2: at,
        y1: plot.bottom,
        y2: plot.bottom + (label ? 5 : 3),
      }),
    );
    if (label) group.append(svg("line", { class: "grid", x1: at, x2: at, y1: plot.top, y2: plot.bottom }));
    const anchor = at > plot.right - 14 ? "end" : "middle";
    if (label)
      group.append(
        svg("text", { x: anchor === "end" ? plot.right + 8 : at, y: plot.bottom + 16, "text-anchor": anchor }, label),
      );
  }
  group.append(svg("text", { class: "axis-name", x: plot.left - 12, y: plot.bottom + 16, "text-anchor": "end" }, name));
  group.append(svg("line", { class: "rule", x1: plot.left, x2: plot.right, y1: plot.bottom, y2: plot.bottom }));
  if (x.kind === "log" && x.domain[0] < 1) group.append(axisBreak(x, plot));
  return group;
}

// Two strokes between the place of step 0 and the decades.
function axisBreak(x, plot) {
  const at = (x.of(x.domain[0]) + x.of(1)) / 2;
  const middle = plot.bottom + (plot.top === plot.bottom ? 5 : 0);
  const strokes = [-2, 2].map((shift) => `M${at + shift - 2},${middle + 4}L${at + shift + 2},${middle - 4}`);
  return svg("path", { class: "break", d: strokes.join("") });
}

function yAxis(y, plot) {
  const group = svg("g", { class: "axis y" });
  const n = Math.max(2, Math.min(6, Math.floor((plot.bottom - plot.top) / 36)));
  const found = y.ticks(n);
  const shown = found.length > 2 * n ? found.filter((value) => /^1(e|0*$)|^0?\.?0*1$/.test(String(value))) : found;
  for (const value of shown.length > 1 ? shown : found.slice(0, n)) {
    const at = y(value);
    group.append(svg("line", { class: "grid", x1: plot.left, x2: plot.right, y1: at, y2: at }));
    group.append(svg("text", { x: plot.left - 7, y: at + 4, "text-anchor": "end" }, tickText(value)));
  }
  return group;
}

function tickText(value) {
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(0);
  return shortNumber(value);
}

// Curves

function bands(lines, x, y) {
  return lines
    .filter((line) => line.low)
    .map((line) => {
      const kept = indices(line, Float64Array.from(line.xs, x.of));
      const band = area()
        .defined((i) => Number.isFinite(line.low[i]) && Number.isFinite(line.high[i]))
        .x((i) => rounded(x.of(line.xs[i])))
        .y0((i) => rounded(y(line.low[i])))
        .y1((i) => rounded(y(line.high[i])));
      return svg("path", {
        class: "band",
        d: band(kept),
        fill: line.colour,
        "data-run": line.run,
        "data-tag": line.tag,
      });
    });
}

function curves(lines, x, y) {
  return lines.map((line) => {
    const pixels = Float64Array.from(line.xs, x.of);
    const kept = indices(line, pixels);
    const height = (i) => rounded(y(line.ys[i]));
    const d = path()
      .defined((i) => Number.isFinite(line.ys[i]) && Number.isFinite(height(i)))
      .x((i) => rounded(pixels[i]))
      .y(height)(kept);
    const shape = svg("path", {
      class: line.isFaint ? "line faint" : "line",
      d: d ?? "",
      stroke: line.colour,
      "stroke-dasharray": line.dash || null,
      "data-run": line.run,
      "data-tag": line.tag,
    });
    const isGap = (i) => !Number.isFinite(line.ys[i]);
    const alone = kept.filter((i, at) => !isGap(i) && isGap(kept[at - 1]) && isGap(kept[at + 1]));
    if (!alone.length) return shape;
    const dots = alone
      .slice(0, 200)
      .map((i) => svg("circle", { class: "dot", cx: rounded(pixels[i]), cy: height(i), r: 2.2, fill: line.colour }));
    return svg("g", {}, shape, ...dots);
  });
}

// Of the points that are drawn; -1 is a gap.
function indices(line, pixels) {
  return parted(thinned(pixels, line.ys), line.steps, line.seams ?? []);
}

function rounded(value) {
  return Math.round(value * 10) / 10;
}

// Phases and markers

export function spans(found, x, plot) {
  return found.map(({ name, number, left, right }) => {
    const [from, to] = [x.of(left), x.of(right)];
    return svg("rect", {
      class: `phase phase${number}`,
      "data-phase": name,
      x: from,
      width: Math.max(0, to - from),
      y: plot.top,
      height: plot.bottom - plot.top,
    });
  });
}

function spanNames({ spans: found, isNamed }, x, plot) {
  if (!isNamed) return [];
  return found.flatMap(({ name, number, left, right }) => {
    const [from, to] = [Math.max(plot.left, x.of(left)), Math.min(plot.right, x.of(right))];
    if (to - from < 6.2 * name.length) return [];
    return [
      svg(
        "text",
        { class: `phase-name phase${number}`, x: (from + to) / 2, y: plot.bottom - 6, "text-anchor": "middle" },
        name,
      ),
    ];
  });
}

function intervals(found, x, plot) {
  return found
    .filter((one) => one.isOwn && isFirm(one) && one.low < one.high)
    .map((one) => {
      const [from, to] = [x.of(one.low), x.of(one.high)];
      return svg("rect", {
        class: "interval",
        "data-number": one.number,
        x: from,
        width: Math.max(0, to - from),
        y: plot.top,
        height: plot.bottom - plot.top,
        fill: one.colour,
      });
    });
}

function markers(found, x, plot) {
  const inside = found.filter((one) => x.of(one.x) >= plot.left - 0.5 && x.of(one.x) <= plot.right + 0.5);
  const places = apart(
    inside.map((one) => x.of(one.x)),
    17,
    plot.left,
    plot.right,
  );
  return inside.map((one, i) => {
    const at = x.of(one.x);
    const firm = isFirm(one);
    const kind = `marker ${firm ? "firm" : "tentative"}${one.isOwn ? "" : " other"}${isPhase(one.kind) ? " of-phase" : ""}`;
    const label = `${one.number} ${one.names} (${one.curve}), ${one.told}`;
    const group = svg("g", { class: kind, "data-number": one.number, "data-step": one.step, "data-kind": one.kind });
    group.append(
      svg("title", {}, label),
      svg("line", { x1: at, x2: at, y1: plot.top, y2: plot.bottom, stroke: one.colour }),
      svg("path", { class: "lead", d: `M${at},${plot.top}L${places[i]},${plot.top - 3.5}`, stroke: one.colour }),
      svg("circle", {
        cx: places[i],
        cy: plot.top - 11,
        r: 7.5,
        stroke: one.colour,
        fill: firm && one.isOwn ? one.colour : "none",
      }),
      svg("text", { x: places[i], y: plot.top - 7.5, "text-anchor": "middle" }, String(one.number)),
    );
    return group;
  });
}

// Places that are at least `room` apart, as near to the given ones as goes.
export function apart(wanted, room, left, right) {
  const order = wanted.map((at, i) => [at, i]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const each = Math.min(room, (right - left) / Math.max(1, wanted.length - 1));
  // Those that would overlap are a row, whose middle is where the middle of its members wants to be.
  const rows = [];
  order.forEach(([at], k) => {
    let row = { n: 1, sum: at - each * k };
    while (rows.length && rows[rows.length - 1].sum / rows[rows.length - 1].n >= row.sum / row.n) {
      const before = rows.pop();
      row = { n: before.n + row.n, sum: before.sum + row.sum };
    }
    rows.push(row);
  });
  const last = right - each * (wanted.length - 1);
  const starts = rows.flatMap(({ n, sum }) => new Array(n).fill(Math.min(Math.max(sum / n, left), last)));
  const back = new Array(wanted.length);
  order.forEach(([, i], k) => (back[i] = starts[k] + each * k));
  return back;
}

// The cursor: a line, and a dot on each curve.
export function drawCursor(root, drawn, lines, at) {
  const group = root.querySelector("g.cursor");
  if (!group) return;
  const pixel = at === null ? NaN : drawn.x.of(at);
  if (!(pixel >= drawn.plot.left - 0.5 && pixel <= drawn.plot.right + 0.5)) {
    group.replaceChildren();
    return;
  }
  const dots = [];
  for (const line of lines.length <= 40 ? lines : []) {
    const i = nearest(line.xs, at);
    if (i < 0 || !Number.isFinite(line.ys[i])) continue;
    const height = drawn.y(line.ys[i]);
    if (height >= drawn.plot.top - 1 && height <= drawn.plot.bottom + 1)
      dots.push(svg("circle", { cx: drawn.x.of(line.xs[i]), cy: height, r: 3, fill: line.colour }));
  }
  group.replaceChildren(svg("line", { x1: pixel, x2: pixel, y1: drawn.plot.top, y2: drawn.plot.bottom }), ...dots);
}
