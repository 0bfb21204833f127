// A panel of curves: a chart, its legend with the values at the cursor, and its buttons.

import { drawChart, drawCursor } from "./chart.js";
import { coalesced, el, svg } from "./dom.js";
import { exportMenu } from "./export.js";
import { elided, formatPlace, grouped } from "./format.js";
import { isFirm, isPhase } from "./phases.js";
import { followPointer } from "./pointer.js";
import { nearest, SPREADS } from "./stats.js";
import { told, valueCell } from "./values.js";

const MOST_VALUES = 14; // lines with a value of their own at the cursor
const LONGEST = 120; // characters of a name; it is broken into lines

// What is near the window is drawn, all else is empty.
const observer = new IntersectionObserver(
  (entries) => entries.forEach((entry) => entry.target.card?.setNear(entry.isIntersecting)),
  { rootMargin: "250px 0px" },
);
const sizes = new ResizeObserver((entries) => entries.forEach((entry) => entry.target.card?.resized()));

// Base of all cards. A subclass has `load()`, `draw()`, `undraw()` and `moveCursor()`.
export class Card {
  constructor(model, { id, title, unit = "", isSmall = false }) {
    [this.model, this.store, this.id, this.title, this.unit] = [model, model.store, id, title, unit];
    this.isNear = false;
    this.body = el("div", { class: "body" });
    this.note = el("p", { class: "note" });
    this.tools = el("div", { class: "tools" });
    this.heading = el("h3", { title }, title);
    this.unitText = el("span", { class: "unit" }, unit);
    this.head = el("header", {}, this.heading, this.unitText, this.tools);
    this.element = el(
      "section",
      {
        class: `card${isSmall ? " small" : ""}`,
        tabindex: 0,
        role: "group",
        "aria-label": title,
        "data-panel": id,
        "data-state": "away",
      },
      this.head,
      this.body,
      this.note,
    );
    this.element.card = this;
    const drawAgain = coalesced(() => this.isNear && this.isOld && this.drawSafely());
    this.redraw = () => {
      this.isOld = true; // until it is drawn, be it by others before the next frame
      drawAgain();
    };
    this.recursor = coalesced(() => this.isNear && this.moveCursor());
    this.stops = ["zoom", "story"].map((topic) => this.store.on(topic, this.redraw));
    this.stops.push(this.store.on("cursor", this.recursor));
    observer.observe(this.element);
    sizes.observe(this.element);
  }

  // The card is not used any more.
  drop() {
    observer.unobserve(this.element);
    sizes.unobserve(this.element);
    for (const stop of this.stops) stop();
    this.isNear = false;
  }

  setNear(isNear) {
    if (isNear === this.isNear) return;
    this.isNear = isNear;
    if (isNear) this.refresh();
    else {
      this.body.style.minHeight = `${this.body.offsetHeight}px`;
      this.element.dataset.state = "away";
      this.undraw();
    }
  }

  resized() {
    if (this.isNear && this.isLoaded && this.width !== this.body.clientWidth) this.redraw();
  }

  // Loads what is missing, and draws. An error stays in this card.
  async refresh() {
    if (!this.isNear) return;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    try {
      if (!this.isLoaded) this.draw();
      await this.load();
      if (turn !== this.turn || !this.isNear) return;
      this.isLoaded = true;
      this.say("");
      this.drawSafely();
    } catch (error) {
      this.say(`Could not be loaded: ${error.message}`);
    }
    this.element.dataset.state = "ready";
  }

  drawSafely() {
    this.isOld = false;
    try {
      this.width = this.body.clientWidth;
      this.draw();
      this.body.style.minHeight = "";
      this.moveCursor();
    } catch (error) {
      this.say(`Could not be drawn: ${error.message}`);
    }
  }

  say(text) {
    this.note.textContent = text;
  }

  load() {}
  draw() {}
  undraw() {
    this.body.replaceChildren();
  }
  moveCursor() {}
}

export function button(text, label, onclick, properties = {}) {
  return el("button", { type: "button", title: label, "aria-label": label, onclick, ...properties }, text);
}

export class CurveCard extends Card {
  constructor(model, panel, { isNamed = false, isLegendBelow = false } = {}) {
    super(model, panel);
    [this.panel, this.isNamed] = [panel, isNamed];
    this.lines = [];
    this.makeTools();
    if (isLegendBelow) {
      // As high as it is going to be, so that what is below does not move when it is drawn.
      const rows = Math.min(MOST_VALUES, panel.lines.length * model.units().length);
      this.body.style.minHeight = `${(panel.isSmall ? 170 : 210) + 24 + 18 * rows + 24 * (model.units().length > 1)}px`;
    }
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  makeTools() {
    const { store, panel } = this;
    const toggle = (name) => () =>
      store.set(name, { ...store.settings[name], [panel.id]: !store.settings[name][panel.id] });
    const isPinned = store.settings.pins.includes(panel.id);
    const pin = () =>
      store.set(
        "pins",
        isPinned ? store.settings.pins.filter((id) => id !== panel.id) : [...store.settings.pins, panel.id],
      );
    this.whole = button("all values", "Show lone values far from all others", toggle("whole"), {
      class: "whole",
      hidden: true,
    });
    this.tools.append(
      this.whole,
      button("log y", "Logarithmic vertical axis", toggle("logarithmic"), {
        "aria-pressed": Boolean(store.settings.logarithmic[panel.id]),
      }),
      button("pin", isPinned ? "Take from the top" : "Keep at the top", pin, {
        class: "pin",
        "aria-pressed": isPinned,
      }),
      exportMenu(this),
    );
  }

  tags() {
    const tags = this.panel.lines.flatMap(({ tag, band, radius, spread }) => [tag, band, radius, spread]);
    return [...new Set(tags.filter(Boolean))];
  }

  async load() {
    const { model } = this;
    const tags = this.tags();
    const runs = model.selected().filter((run) => tags.some((tag) => model.runs.get(run).tags.includes(tag)));
    await model.source.need(runs, tags, this.redraw);
    let isLonger = false;
    for (const run of runs)
      for (const tag of tags) {
        const series = model.source.get(run, tag);
        if (series) isLonger = model.noteLast(run, series.steps) || isLonger;
      }
    if (isLonger) this.store.tell("story");
  }

  draw() {
    const { model, panel, store } = this;
    this.parts ??= this.makeParts();
    if (!this.parts.root.isConnected) this.body.replaceChildren(this.parts.frame, this.parts.legend);
    this.lines = model.lines(panel);
    const story = model.story();
    const tags = new Set(this.tags());
    const markers = story.markers
      .map((one) => ({ ...one, isOwn: tags.has(one.curve), colour: this.colourOf(one) }))
      .filter((one) => one.isOwn || (isPhase(one.kind) && !panel.isSmall));
    this.markers = markers;
    this.unit = [panel.unit, model.isMean && "mean of the runs", this.band()].filter(Boolean).join("; ");
    this.unitText.textContent = this.unit;
    this.unitText.title = this.unit;
    this.makeLegend(story);
    const width = Math.max(200, this.parts.frame.clientWidth || 600);
    const beside = this.parts.legend.offsetLeft > this.parts.frame.offsetLeft ? this.parts.legend.scrollHeight : 0;
    const view = {
      width,
      height: panel.isSmall ? 170 : Math.min(340, Math.max(210, beside)),
      kind: model.kind,
      axisName: model.axisName(),
      domain: model.domain(),
      lines: this.lines,
      limits: panel.limits,
      spans: story.spans,
      markers,
      isNamed: this.isNamed,
      isWhole: Boolean(store.settings.whole[panel.id]),
      isLogarithmic: Boolean(store.settings.logarithmic[panel.id]),
    };
    this.drawn = drawChart(this.parts.root, view);
    this.parts.root.setAttribute("aria-label", this.described(story));
    this.whole.hidden = !this.drawn.nBeyond && !view.isWhole;
    this.whole.setAttribute("aria-pressed", String(view.isWhole));
    this.say(this.remarks());
  }

  // What the bands round the curves are, if there is one.
  band() {
    const { model, panel, store } = this;
    if (!this.lines.some((line) => line.low?.some(Number.isFinite))) return "";
    return model.isMean ? `band: ${spreadName(store.settings.spread)}` : panel.bandUnit;
  }

  colourOf(marker) {
    if (isPhase(marker.kind)) return "var(--text)";
    const line = this.lines.find((one) => one.tag === marker.curve);
    return line && new Set(this.lines.map((one) => one.run)).size === 1 ? line.colour : "var(--text)";
  }

  remarks() {
    const remarks = [];
    if (this.panel.note) remarks.push(this.panel.note);
    if (this.lines.some((line) => line.sampled)) remarks.push("sampled: TensorBoard kept only some of the points");
    const seams = new Set(this.lines.flatMap((line) => line.seams ?? []));
    if (seams.size) {
      const steps = [...seams].sort((one, other) => one - other).map(grouped);
      remarks.push(`gap: another radius from step ${steps.join(", ")} on; counts are comparable at one radius only`);
    }
    if (this.drawn.nBeyond)
      remarks.push(`${this.drawn.nBeyond} value${this.drawn.nBeyond > 1 ? "s" : ""} beyond the axis`);
    if (this.isLoaded && !this.lines.length)
      remarks.push(
        this.model.kind === "epoch" || this.model.kind === "wall"
          ? "no such axis is known for these runs"
          : "no values",
      );
    if (this.model.source.problem) remarks.push(this.model.source.problem);
    return remarks.join(" · ");
  }

  described(story) {
    const names = [...new Set(this.lines.map((line) => line.label))].slice(0, 8).join(", ");
    const phases = story.spans.map((span) => span.name).join(", ");
    return `${this.title}: ${this.lines.length} curves (${names}) over ${this.model.axisTitle()}. ${phases ? `Phases: ${phases}. ` : ""}${this.markers.filter((one) => one.isOwn).length} markers. Arrow keys move the cursor.`;
  }

  makeParts() {
    const root = svg("svg", { role: "img", class: "chart" });
    const frame = el("div", { class: "frame" }, root);
    followPointer(this, root);
    return { root, frame, legend: el("div", { class: "legend" }) };
  }

  undraw() {
    this.parts?.root.replaceChildren();
    this.parts?.legend.replaceChildren();
    this.lines = [];
    this.drawn = null;
  }

  // Legend

  makeLegend(story) {
    const { legend } = this.parts;
    const rows = el("table", {}, el("caption", { class: "place" }, ""));
    this.values = [];
    const isEach = this.lines.length <= MOST_VALUES;
    const hasUnits = new Set(this.lines.map((line) => line.run)).size > 1;
    const entries = isEach
      ? this.lines.map((line) => [line])
      : groupsBy(this.lines, (line) => line.label + (line.isFaint ? " " : ""));
    let heading = null;
    for (const lines of entries) {
      const [first] = lines;
      const isAlone = this.panel.lines.length === 1;
      if (isEach && hasUnits && !isAlone && first.run !== heading) {
        heading = first.run;
        rows.append(
          el(
            "tr",
            { class: "of-unit", title: first.run },
            el("th", { colspan: 3, scope: "rowgroup" }, elided(first.unit, LONGEST)),
          ),
        );
      }
      const name = isEach && hasUnits && isAlone ? first.unit : first.label;
      const cell = valueCell(lines);
      this.values.push({ lines, cell });
      rows.append(
        el(
          "tr",
          { title: isEach ? `${first.run} ${first.tag}` : first.tag },
          el("td", {}, swatch(isEach ? first.colour : "var(--text)", first.dash, first.isFaint)),
          el("td", { class: "name" }, `${elided(name.trim(), LONGEST)}${first.isFaint ? ", numerical" : ""}`),
          cell,
        ),
      );
    }
    const keys = this.markers
      .filter((one) => one.isOwn)
      .map((one) => markerKey(one, () => this.store.setCursor(one.x, true)));
    this.whose = this.ofStory(story, keys.length > 0);
    const of = this.whose ? [el("p", { class: "of-story", title: story.name }, this.whose)] : [];
    legend.replaceChildren(
      rows,
      el("p", { class: "reading" }, this.reading(isEach)),
      ...of,
      ...(keys.length ? [el("ul", { class: "marker-keys", "aria-label": `markers of ${story.name}` }, ...keys)] : []),
    );
  }

  // Whose phases are shaded, whose markers these are, and what the steps beside them.
  ofStory(story, hasMarkers) {
    const what = [story.spans.length ? "shaded phases" : "", hasMarkers ? "markers" : ""].filter(Boolean).join(" and ");
    const isOneOfSeveral = this.model.units().length > 1 || story.isPooled;
    const steps = story.isPooled ? "median step (lowest to highest of the runs), as a band too" : "step (95 % interval)";
    const said = [isOneOfSeveral ? elided(story.name, LONGEST) : "", hasMarkers ? steps : ""].filter(Boolean).join("; ");
    return what && said ? `${isOneOfSeveral ? what : "markers"}: ${said}` : "";
  }

  // What the bands are, and what the values at the cursor.
  reading(isEach) {
    const band = this.band();
    const { isMean } = this.model;
    const ofBand = band ? (isMean ? " (ends of the band)" : " ± half the band") : "";
    const value = isEach ? `${isMean ? "mean" : "value"}${ofBand}` : "median (lowest to highest) of the curves";
    return isMean || band || !isEach ? [band, `at the cursor: ${value}`].filter(Boolean).join("; ") : "";
  }

  moveCursor() {
    if (!this.drawn) return;
    const at = this.store.cursor?.x ?? null;
    drawCursor(this.parts.root, this.drawn, this.lines, at);
    const caption = this.parts.legend.querySelector("caption");
    if (caption) caption.textContent = at === null ? "" : formatPlace(this.model.kind, at, this.model.unit);
    for (const { lines, cell } of this.values ?? []) cell.textContent = at === null ? "" : told(lines, at);
  }

  // Cursor and zoom by keys

  rows() {
    return this.lines.reduce((best, line) => (line.xs.length > best.length ? line.xs : best), []);
  }

  key(event) {
    if (event.target !== this.element) return;
    const rows = this.rows();
    const here = this.store.cursor ? nearest(rows, this.store.cursor.x) : -1;
    const to = {
      ArrowRight: Math.min(rows.length - 1, here + 1),
      ArrowLeft: Math.max(0, here - 1),
      Home: 0,
      End: rows.length - 1,
    }[event.key];
    if (to !== undefined && rows.length) this.store.setCursor(rows[to], true);
    else if (event.key === "Escape") this.store.setCursor(null);
    else if (event.key === "0") this.store.setZoom(null);
    else if (event.key === "+" || event.key === "-") this.zoomBy(event.key === "+" ? 0.5 : 2);
    else return;
    event.preventDefault();
    const at = this.store.cursor?.x;
    const values = this.lines.slice(0, 6).map((line) => `${line.label} ${told([line], at)}`);
    if (at !== undefined)
      this.model.announce?.(`${formatPlace(this.model.kind, at, this.model.unit)}: ${values.join(", ")}`);
  }

  zoomBy(factor) {
    if (!this.drawn) return;
    const { x, plot } = this.drawn;
    const centre = x.of(this.store.cursor?.x ?? x.at((plot.left + plot.right) / 2));
    const half = ((plot.right - plot.left) / 2) * factor;
    const [left, right] = [Math.max(plot.left, centre - half), Math.min(plot.right, centre + half)];
    this.store.setZoom(
      factor > 1 && left <= plot.left && right >= plot.right ? null : [Math.max(0, x.at(left)), x.at(right)],
    );
  }
}

function spreadName(spread) {
  return SPREADS.find(([name]) => name === spread)?.[1] ?? "";
}

function groupsBy(items, keyOf) {
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(item);
  }
  return [...groups.values()];
}

export function swatch(colour, dash = "", isFaint = false) {
  return svg(
    "svg",
    { class: "swatch", width: 22, height: 8, "aria-hidden": "true" },
    svg("line", {
      x1: 0,
      x2: 22,
      y1: 4,
      y2: 4,
      stroke: colour,
      "stroke-dasharray": dash || null,
      class: isFaint ? "line faint" : "line",
    }),
  );
}

function markerKey(one, onclick) {
  const badge = el(
    "span",
    { class: `badge ${isFirm(one) ? "firm" : "tentative"}`, style: `--badge: ${one.colour}` },
    String(one.number),
  );
  const eps = /_eps(.+)$/.exec(one.curve);
  const name = `${one.names}${eps ? ` (eps ${eps[1]})` : ""}`;
  return el(
    "li",
    {},
    el(
      "button",
      { type: "button", onclick, title: one.reason || name },
      badge,
      el("span", { class: "kind" }, name),
      el("span", { class: "told" }, one.told),
    ),
  );
}
