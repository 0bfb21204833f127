// Phases and transitions of each run, one row for each: do the seeds agree?

import { Card } from "./card.js";
import { apart, drawCursor, MARGIN, spans, xAxis } from "./chart.js";
import { el, svg } from "./dom.js";
import { exportMenu } from "./export.js";
import { elided, nameOfKind } from "./format.js";
import { isFirm } from "./phases.js";
import { followPointer } from "./pointer.js";
import { stepScale } from "./steps.js";

const MOST_ROWS = 40;
const ROW = 24;
// The letter of a kind of transition; of delayed ones that of what is delayed.
const LETTERS = {
  first_descent_end: "D",
  ascent_start: "A",
  migration_start: "M",
  migration_end: "E",
  interpolation: "I",
  generalization: "G",
  delayed_generalization: "G",
  multi_stage_generalization: "S",
  robustness_onset: "R",
  delayed_robustness: "R",
  robustness_loss: "L",
  rank_descent: "K",
  rank_rise: "U",
  second_rank_descent: "N",
};

export class StripCard extends Card {
  constructor(model) {
    super(model, { id: "strip", title: "phases and transitions of each run" });
    this.lines = [];
    this.tools.append(exportMenu(this));
  }

  async load() {
    await this.model.source.need(this.model.selected(), this.model.phaseTags());
  }

  rows() {
    return this.found.flatMap((row) => row.markers.map((one) => one.x)).sort((a, b) => a - b);
  }

  draw() {
    const { model } = this;
    this.parts ??= this.makeParts();
    if (!this.parts.root.isConnected) this.body.replaceChildren(this.parts.frame, this.parts.legend);
    const every = model.isMean ? [...model.groups().values()].flat() : model.selected();
    const runs = every.slice(0, MOST_ROWS);
    this.found = runs.map((run) => {
      const known = model.transitions(run).known;
      return {
        run,
        spans: model.spansOf(run, known),
        markers: known.map((one) => model.asMarker(run, one)).filter((one) => Number.isFinite(one.x)),
      };
    });
    const width = Math.max(200, this.parts.frame.clientWidth || 600);
    const height = 8 + ROW * runs.length + MARGIN.bottom;
    const x = stepScale(model.kind, model.domain(), [MARGIN.left, width - MARGIN.right]);
    const plot = { left: MARGIN.left, right: width - MARGIN.right, top: 4, bottom: height - MARGIN.bottom };
    const { root } = this.parts;
    for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` }))
      root.setAttribute(name, value);
    root.setAttribute("aria-label", `Phases and transitions of ${runs.length} runs over ${model.axisTitle()}`);
    root.replaceChildren(
      xAxis(x, plot, model.axisName()),
      ...this.found.map((row, i) => this.row(row, i, x, plot)),
      svg("g", { class: "cursor", "aria-hidden": "true" }),
      svg("rect", { class: "brush", y: plot.top, height: plot.bottom - plot.top, width: 0 }),
    );
    this.drawn = { x, plot, y: () => NaN };
    this.legend(runs);
    const rest = every.length - runs.length;
    this.say(rest > 0 ? `and ${rest} more runs` : "");
  }

  row({ run, spans: found, markers }, i, x, plot) {
    const { model } = this;
    const [top, middle] = [6 + ROW * i, 6 + ROW * i + (ROW - 4) / 2];
    const band = { left: plot.left, right: plot.right, top, bottom: top + ROW - 4 };
    const isFocus = model.focus()?.runs.includes(run);
    const group = svg("g", { class: `strip-row${isFocus ? " focus" : ""}`, "data-run": run });
    group.append(
      svg("rect", {
        class: "strip-back target",
        x: band.left,
        width: band.right - band.left,
        y: band.top,
        height: band.bottom - band.top,
      }),
      ...clipped(found, model.domain()).flatMap((span) => spans([span], x, band)),
    );
    const inside = distinct(markers).filter((one) => x.of(one.x) >= plot.left - 1 && x.of(one.x) <= plot.right + 1);
    const letters = apart(
      inside.map((one) => x.of(one.x) + 3),
      11,
      plot.left,
      plot.right + 8,
    );
    for (const [k, one] of inside.entries()) {
      const at = x.of(one.x);
      const [low, high] = [Math.max(plot.left, x.of(one.low)), Math.min(plot.right, x.of(one.high))];
      const mark = svg("g", {
        class: `event ${isFirm(one) ? "firm" : "tentative"}`,
        "data-kind": one.kind,
        "data-step": one.step,
      });
      mark.append(
        svg("title", {}, `${nameOfKind(one.kind)} at step ${one.told} (${one.curve}), ${one.certainty}`),
        ...(high > low
          ? [svg("line", { class: "reach", x1: low, x2: high, y1: band.bottom - 2, y2: band.bottom - 2 })]
          : []),
        svg("line", { class: "stroke", x1: at, x2: at, y1: band.top, y2: band.bottom }),
        svg("text", { x: letters[k], y: middle + 2 }, LETTERS[one.kind] ?? one.kind.slice(0, 1).toUpperCase()),
      );
      group.append(mark);
    }
    group.append(
      svg("circle", {
        cx: 9,
        cy: middle,
        r: 5,
        fill: model.isMean
          ? model.colourOf([...model.groups()].find(([, runs]) => runs.includes(run))?.[0])
          : model.colourOf(run),
      }),
    );
    group.append(
      svg("text", { class: "row-number", x: plot.left - 8, y: middle + 4, "text-anchor": "end" }, String(i + 1)),
    );
    return group;
  }

  legend(runs) {
    const { model, found } = this;
    const kinds = [...new Set(found.flatMap((row) => row.markers.map((one) => one.kind)))];
    const letters = new Map();
    for (const kind of kinds) {
      const letter = LETTERS[kind] ?? kind.slice(0, 1).toUpperCase();
      if (!letters.has(letter) || kind.length < letters.get(letter).length) letters.set(letter, kind);
    }
    const list = el("ol", { class: "rows" });
    for (const run of runs)
      list.append(
        el(
          "li",
          { title: run },
          el(
            "button",
            {
              type: "button",
              title: `Show the phases and markers of ${run}`,
              onclick: () => model.store.setFocus(run),
            },
            elided(model.short(run), 30),
          ),
        ),
      );
    const key = el("ul", { class: "letters" });
    for (const [letter, kind] of letters) key.append(el("li", {}, el("b", {}, letter), ` ${nameOfKind(kind)}`));
    this.parts.legend.replaceChildren(list, key);
  }

  table() {
    const rows = [["run", "kind", "curve", "step", "earliest", "latest", "certainty", "known_at"]];
    for (const { run, markers } of this.found ?? [])
      for (const one of markers)
        rows.push([run, one.kind, one.curve, one.step, one.earliest, one.latest, one.certainty, one.detected_at]);
    return rows;
  }

  makeParts() {
    const root = svg("svg", { role: "img", class: "chart strip" });
    followPointer(this, root);
    return { root, frame: el("div", { class: "frame" }, root), legend: el("div", { class: "legend" }) };
  }

  undraw() {
    this.parts?.root.replaceChildren();
    this.drawn = null;
  }

  moveCursor() {
    if (this.drawn) drawCursor(this.parts.root, this.drawn, [], this.store.cursor?.x ?? null);
  }
}

// Where a delayed transition stands at the step of the one that it is a delay of, one of them is enough.
function distinct(markers) {
  const seen = new Set();
  return markers.filter((one) => {
    const key = `${LETTERS[one.kind] ?? one.kind} ${one.step}`;
    return seen.has(key) ? false : seen.add(key);
  });
}

function clipped(found, [low, high]) {
  return found
    .map((span) => ({ ...span, left: Math.max(low, span.left), right: Math.min(high, span.right) }))
    .filter((span) => span.right > span.left);
}
