// Layers x steps: one number for each layer at each row, as a colour.

import { Card, button } from "./card.js";
import { drawCursor, MARGIN, xAxis } from "./chart.js";
import { el, select, svg } from "./dom.js";
import { exportMenu } from "./export.js";
import { elided, formatPlace, formatStep, formatValue, tellingApart } from "./format.js";
import { followPointer } from "./pointer.js";
import { stepScale } from "./steps.js";
import { nearest } from "./stats.js";

const MOST_HEIGHT = 420;
const MOST_TOLD = 8;
const LONGEST = 10; // characters of the name of a layer
const STOPS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"].map((hex) =>
  [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)),
);

export class HeatCard extends Card {
  constructor(model, { id, title, prefixes }) {
    super(model, { id, title });
    [this.prefixes, this.prefix] = [prefixes, prefixes[0]];
    this.makeTools();
  }

  makeTools() {
    const { store } = this;
    const choose = select(
      "",
      this.prefixes.map((prefix) => [prefix, prefix.replace(/\/$/, "")]),
      this.prefix,
      (prefix) => ((this.prefix = prefix), this.refresh()),
      { "aria-label": "measure" },
    );
    const relative = button(
      "each by its own range",
      "Colours from the least to the greatest value of each layer",
      () => store.set("relative", !store.settings.relative),
      { class: "relative", "aria-pressed": store.settings.relative },
    );
    this.tools.append(...(this.prefixes.length > 1 ? [choose] : []), relative, exportMenu(this));
  }

  run() {
    const has = (run) => this.model.runs.get(run)?.tags.some((tag) => tag.startsWith(this.prefix));
    const unit = this.model.focus();
    return unit?.runs.find(has) ?? this.model.selected().find(has) ?? null;
  }

  async load() {
    const run = this.run();
    const key = JSON.stringify([run, this.prefix, this.model.source.stamp]);
    if (run !== null && key !== this.key) this.data = { run, ...(await this.model.source.heat(run, this.prefix)) };
    if (run === null) this.data = null;
    this.key = key;
  }

  rows() {
    return this.xs ?? [];
  }

  draw() {
    const { model, data } = this;
    if (!data?.layers.length || !data.steps.length) {
      this.body.replaceChildren(el("p", { class: "empty" }, this.isLoaded ? "No values." : "…"));
      return;
    }
    this.parts ??= this.makeParts();
    if (!this.parts.root.isConnected) this.body.replaceChildren(this.parts.frame, this.parts.legend);
    const n = data.layers.length;
    const row = Math.max(1, Math.min(28, Math.floor(MOST_HEIGHT / n)));
    const width = Math.max(200, this.parts.frame.clientWidth || 600);
    const plot = { left: MARGIN.left, right: width - MARGIN.right, top: 6, bottom: 6 + row * n };
    const x = stepScale(model.kind, model.domain(), [plot.left, plot.right]);
    this.xs = model.xs(data.run, data.steps);
    const { root } = this.parts;
    const height = plot.bottom + MARGIN.bottom;
    for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` }))
      root.setAttribute(name, value);
    root.setAttribute(
      "aria-label",
      `${this.title} of ${data.run}: ${data.n} layers, steps ${formatStep(data.steps[0])} to ${formatStep(data.steps[data.steps.length - 1])}`,
    );
    root.setAttribute("data-layers", n);
    this.labels = tellingApart(data.layers, LONGEST);
    const names =
      row >= 11
        ? this.labels.map((name, i) =>
            svg(
              "text",
              { class: "layer", x: plot.left - 6, y: plot.top + row * (i + 0.5) + 4, "text-anchor": "end" },
              name,
            ),
          )
        : [];
    if (!this.xs) {
      root.replaceChildren();
      this.say("no such axis is known for this run");
      return;
    }
    const picture = this.paint(x, plot, row);
    root.replaceChildren(
      svg("image", {
        class: "heat",
        href: picture,
        x: plot.left,
        y: plot.top,
        width: plot.right - plot.left,
        height: row * n,
        preserveAspectRatio: "none",
        style: "image-rendering: pixelated",
      }),
      ...names,
      xAxis(x, { ...plot, top: plot.bottom }, model.axisName()),
      svg("g", { class: "cursor", "aria-hidden": "true" }),
      svg("rect", { class: "brush", y: plot.top, height: plot.bottom - plot.top, width: 0 }),
      svg("rect", {
        class: "target",
        x: plot.left,
        width: plot.right - plot.left,
        y: plot.top,
        height: plot.bottom - plot.top,
      }),
    );
    this.drawn = { x, plot, y: () => NaN };
    this.legend();
    this.say(data.n > n ? `${data.n} layers: neighbours share a row, as their mean` : "");
  }

  // From each row of the run to the next, in the colour of its value.
  paint(x, plot, row) {
    const { data, xs } = this;
    const columns = Math.max(1, Math.round(plot.right - plot.left));
    const canvas = el("canvas", { width: columns, height: data.layers.length });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(columns, data.layers.length);
    const edges = Array.from(xs, x.of);
    const ends = edges.map((at, i) => (i + 1 < edges.length ? (at + edges[i + 1]) / 2 : at + 3));
    const all = this.range(data.values.flatMap((values) => [...values]));
    data.values.forEach((values, layer) => {
      const range = this.store.settings.relative ? this.range(values) : all;
      let from = edges[0] - 3;
      values.forEach((value, i) => {
        const [first, last] = [
          Math.max(0, Math.round(from - plot.left)),
          Math.min(columns, Math.round(ends[i] - plot.left)),
        ];
        from = ends[i];
        if (!Number.isFinite(value)) return;
        const colour = colourAt((value - range[0]) / (range[1] - range[0] || 1));
        for (let column = first; column < last; column++)
          pixels.data.set([...colour, 255], 4 * (layer * columns + column));
      });
    });
    context.putImageData(pixels, 0, 0);
    this.shownRange = all;
    return canvas.toDataURL();
  }

  range(values) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    return low <= high ? [low, high] : [0, 1];
  }

  legend() {
    const { data } = this;
    const isRelative = this.store.settings.relative;
    const ends = isRelative ? ["least of the layer", "greatest"] : this.shownRange.map(formatValue);
    const bar = el(
      "div",
      { class: "bar" },
      el("span", {}, ends[0]),
      el("i", { style: `background: linear-gradient(90deg, ${STOPS.map((c) => `rgb(${c.join(" ")})`).join(", ")})` }),
      el("span", {}, ends[1]),
    );
    const moves = data.values
      .map((values, i) => ({
        name: data.layers[i],
        label: this.labels[i],
        move: moved(values),
        values: [...values].filter(Number.isFinite),
      }))
      .filter((one) => one.values.length);
    const total = moves.reduce((sum, one) => sum + one.move, 0);
    moves.sort((a, b) => b.move - a.move);
    const table = el(
      "table",
      { class: "moves" },
      el("caption", {}, "layers that carry the change: lowest to highest value, share of the change of all"),
    );
    for (const one of moves.slice(0, MOST_TOLD)) {
      const share = total > 0 ? `${Math.round((100 * one.move) / total)} %` : "–";
      const [low, high] = this.range(one.values);
      table.append(
        el(
          "tr",
          { title: one.name },
          el("td", { class: "name" }, one.label),
          el("td", { class: "value" }, `${formatValue(low)} to ${formatValue(high)}`),
          el("td", { class: "value" }, share),
        ),
      );
    }
    this.at = el("p", { class: "place" });
    this.parts.legend.replaceChildren(
      el("p", { class: "of-run", title: data.run }, elided(this.model.short(data.run), 36)),
      bar,
      table,
      this.at,
    );
  }

  table() {
    const { data } = this;
    return [
      ["run", "layer", "step", "value"],
      ...(data
        ? data.layers.flatMap((layer, k) => data.steps.map((step, i) => [data.run, layer, step, data.values[k][i]]))
        : []),
    ];
  }

  makeParts() {
    const root = svg("svg", { role: "img", class: "chart heat-map" });
    followPointer(this, root);
    root.addEventListener("pointermove", (event) => {
      const layer = Math.floor(
        (event.clientY - root.getBoundingClientRect().top - 6) /
          ((this.drawn?.plot.bottom - 6) / this.data.layers.length),
      );
      this.layer = Number.isFinite(layer) ? layer : null;
      this.recursor();
    });
    return { root, frame: el("div", { class: "frame" }, root), legend: el("div", { class: "legend" }) };
  }

  undraw() {
    this.parts?.root.replaceChildren();
    this.drawn = null;
  }

  moveCursor() {
    if (!this.drawn || !this.xs) return;
    const at = this.store.cursor?.x ?? null;
    drawCursor(this.parts.root, this.drawn, [], at);
    const i = at === null ? -1 : nearest(this.xs, at);
    const values = i < 0 ? [] : this.data.values[this.layer ?? 0];
    const name = this.labels[this.layer ?? 0];
    this.at.textContent =
      i < 0 || !values
        ? ""
        : `${formatPlace(this.model.kind, this.xs[i], this.model.unit)}, ${name}: ${formatValue(values[i])}`;
  }
}

function moved(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return high > low ? high - low : 0;
}

function colourAt(share) {
  const at = Math.min(1, Math.max(0, share)) * (STOPS.length - 1);
  const i = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[i].map((value, k) => Math.round(value + (at - i) * (STOPS[i + 1][k] - value)));
}
