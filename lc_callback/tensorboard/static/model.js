// What the charts share: runs and groups, colours, the axis, and the story of the run in focus: phases and markers.

import { grouped, nameOfKind, stepRange } from "./format.js";
import { panelsOf, isPhaseTag } from "./panels.js";
import { intervalOf, isFirm, isPhase, phaseSpans, spansOfRows, transitionsAt } from "./phases.js";
import { groupedRuns, interpolated, naturally, pooled, quantile, seams } from "./stats.js";

const FIRST_SHOWN = 20; // runs that are shown before the viewer has chosen
const N_COLOURS = 8;
const DASHES = ["", "6 3", "1.5 2.5", "9 3 2 3", "12 4", "3 1.5"];

export class Model {
  constructor(store, source) {
    this.store = store;
    this.source = source;
    this.runs = new Map();
    this.events = {};
    this.clocks = new Map();
    this.unit = "";
  }

  // Runs

  setRuns(runs) {
    this.runs = new Map(runs.map((run) => [run.name, run]));
    this.order = new Map([...this.runs.keys()].map((name, i) => [name, i]));
    this.shorten();
  }

  shorten() {
    const names = [...this.runs.keys()].map((name) => name.split("/"));
    const same = (pick) =>
      names.length > 1 && names.every((parts) => parts.length > 1 && pick(parts) === pick(names[0]));
    const [first, last] = [same((parts) => parts[0]), same((parts) => parts[parts.length - 1])];
    const cut = (parts) => parts.slice(first && parts.length > 1 + last ? 1 : 0, last ? -1 : undefined).join("/");
    this.shorts = new Map([...this.runs.keys()].map((name) => [name, cut(name.split("/")) || name]));
  }

  short(run) {
    return this.shorts.get(run) ?? run;
  }

  isShown(run) {
    const chosen = this.store.settings.shown[run];
    return chosen ?? this.order.get(run) < FIRST_SHOWN;
  }

  selected() {
    return [...this.runs.keys()].filter((run) => this.isShown(run));
  }

  get isMean() {
    return this.store.settings.mode === "mean";
  }

  groups() {
    return groupedRuns(this.selected(), this.store.settings.pattern);
  }

  // What has a colour and curves of its own: runs, or groups with their runs.
  units() {
    if (this.isMean) return [...this.groups()].map(([name, runs]) => ({ name, label: name, runs }));
    return this.selected().map((run) => ({ name: run, label: this.short(run), runs: [run] }));
  }

  colourOf(unit) {
    const every = this.isMean ? [...groupedRuns([...this.runs.keys()], this.store.settings.pattern).keys()] : null;
    const i = every ? every.indexOf(unit) : (this.order.get(unit) ?? 0);
    return i < N_COLOURS ? `var(--c${i})` : `hsl(${Math.round(i * 137.5) % 360} 60% var(--lightness))`;
  }

  focus() {
    const units = this.units();
    return (
      units.find((unit) => unit.name === this.store.focus || unit.runs.includes(this.store.focus)) ?? units[0] ?? null
    );
  }

  panels() {
    const key = this.selected().map((run) => [run, this.runs.get(run).tags.length]);
    const text = `${this.source.stamp} ${JSON.stringify(key)}`;
    if (text !== this.panelsKey) {
      this.panelsKey = text;
      this.panelsFound = panelsOf([...new Set(this.selected().flatMap((run) => this.runs.get(run).tags))]);
    }
    return this.panelsFound;
  }

  // The axis

  get kind() {
    return this.store.settings.axis;
  }

  // The x values of steps of a run; null where the run does not have such an axis.
  xs(run, steps) {
    if (this.kind === "log" || this.kind === "linear") return steps;
    const clock = this.clocks.get(run);
    if (!clock) return null;
    return Float64Array.from(steps, (step) => interpolated(clock.steps, clock.xs, step) / this.divisor);
  }

  x(run, step) {
    const found = this.xs(run, [step]);
    return found ? found[0] : NaN;
  }

  // The step of a run at x.
  step(run, x) {
    if (this.kind === "log" || this.kind === "linear") return Math.round(x);
    const clock = this.clocks.get(run);
    return clock ? Math.round(interpolated(clock.xs, clock.steps, x * this.divisor)) : NaN;
  }

  async loadClocks() {
    this.clocks.clear();
    [this.unit, this.divisor] = ["", 1];
    if (this.kind !== "epoch" && this.kind !== "wall") return;
    const runs = this.selected();
    const found = await Promise.all(runs.map((run) => this.source.clock(run, this.kind, this.runs.get(run).tags)));
    runs.forEach((run, i) => found[i] && this.clocks.set(run, found[i]));
    if (this.kind === "wall") {
      const longest = Math.max(0, ...[...this.clocks.values()].map((clock) => clock.xs[clock.xs.length - 1]));
      [this.unit, this.divisor] = longest > 7200 ? ["h", 3600] : longest > 120 ? ["min", 60] : ["s", 1];
    }
  }

  // Short: beside the numbers of the axis.
  axisName() {
    if (this.kind === "epoch" && !this.clocks.size) return "epoch: not logged";
    if (this.kind === "epoch" && this.isFirstEpoch()) return "epoch: all in the first";
    return { log: "steps", linear: "steps", epoch: "epoch", wall: this.unit }[this.kind];
  }

  isFirstEpoch() {
    return [...this.clocks.values()].every((clock) => clock.xs.every((x) => x === 0));
  }

  axisTitle() {
    return { log: "steps", linear: "steps", epoch: "epochs", wall: `time since the first row (${this.unit})` }[
      this.kind
    ];
  }

  // Where the axis begins and ends: as the viewer zoomed, or from the first to the last step of all that is shown.
  domain() {
    if (this.store.zoom) return this.store.zoom;
    let last = 0;
    for (const run of this.selected()) {
      const x = this.x(run, this.lastStep(run));
      if (x > last) last = x;
    }
    return [0, last || 1];
  }

  lastStep(run) {
    return Math.max(this.runs.get(run)?.last ?? 0, this.lastSteps?.get(run) ?? 0);
  }

  // Of rows that were read after the list of runs.
  noteLast(run, steps) {
    this.lastSteps ??= new Map();
    const last = steps.length ? steps[steps.length - 1] : 0;
    if (last > this.lastStep(run)) {
      this.lastSteps.set(run, last);
      return true;
    }
    return false;
  }

  // Curves

  // The lines of a panel: of each run, or mean and spread of each group.
  lines(panel) {
    const units = this.units();
    const labels = [...new Set(panel.lines.map((one) => one.label))];
    const lines = [];
    for (const unit of units) {
      for (const one of panel.lines) {
        const drawn = this.isMean ? this.meanLine(unit, one) : this.runLine(unit.name, one);
        if (!drawn) continue;
        const i = labels.indexOf(one.label);
        const byCurve = units.length === 1;
        const scale = panel.isOrdered ? ordered(i, labels.length) : `var(--c${i % N_COLOURS})`;
        lines.push({
          ...drawn,
          tag: one.tag,
          label: one.label,
          unit: unit.label,
          run: unit.name,
          isFaint: Boolean(one.isFaint),
          colour: byCurve ? scale : this.colourOf(unit.name),
          dash: byCurve ? "" : DASHES[i % DASHES.length],
        });
      }
    }
    return lines;
  }

  runLine(run, { tag, band, radius, spread }) {
    const series = this.source.get(run, tag);
    const xs = series && this.xs(run, series.steps);
    if (!xs || !xs.length) return null;
    const [half, radii, spreads] = [band, radius, spread].map((own) => (own ? this.source.get(run, own) : null));
    const drawn = { xs, ys: series.values, steps: series.steps, sampled: series.sampled, seams: seams(radii, spreads) };
    if (!half) return drawn;
    const at = half.steps === series.steps || same(half.steps, series.steps) ? half.values : null;
    if (!at) return drawn;
    return { ...drawn, low: series.values.map((y, i) => y - at[i]), high: series.values.map((y, i) => y + at[i]) };
  }

  meanLine(unit, { tag }) {
    const found = unit.runs.map((run) => this.runLine(run, { tag })).filter(Boolean);
    if (!found.length) return null;
    const place = this.kind === "log" ? (x) => Math.log10(x + 1) : (x) => x;
    const mean = pooled(found, this.store.settings.spread, place);
    return { ...mean, steps: mean.xs, sampled: found.some((one) => one.sampled), nRuns: found.length };
  }

  // Phases and markers

  eventsOf(run) {
    return this.events[run]?.events ?? [];
  }

  transitions(run) {
    const isThen = this.store.settings.phases === "then" && this.store.cursor;
    return transitionsAt(this.eventsOf(run), isThen ? this.step(run, this.store.cursor.x) : Infinity);
  }

  // The tags that the phases of runs are drawn from.
  phaseTags() {
    const tags = new Set();
    for (const run of this.selected()) {
      for (const event of this.eventsOf(run)) if (isPhase(event.kind) && event.curve) tags.add(event.curve);
      if (this.store.settings.phases === "then" || !this.eventsOf(run).length) {
        for (const tag of this.runs.get(run).tags) if (isPhaseTag(tag)) tags.add(tag);
      }
    }
    return [...tags];
  }

  // The phases of a run on the axis.
  spansOf(run, known = this.transitions(run).known) {
    const { phases } = this.store.settings;
    if (phases === "off" || !this.runs.has(run)) return [];
    const rowTag = this.runs.get(run).tags.find(isPhaseTag);
    const rows = rowTag ? this.source.get(run, rowTag) : null;
    if (rows && (phases === "then" || !this.eventsOf(run).length))
      return this.onAxis(run, spansOfRows(rows.steps, rows.values));
    const first = known.find((one) => isPhase(one.kind) && isFirm(one));
    const curve = first ? this.source.get(run, first.curve) : null;
    const own = known.filter((one) => one.curve === first?.curve);
    return curve ? this.onAxis(run, phaseSpans(own, curve.steps, curve.values)) : [];
  }

  onAxis(run, spans) {
    return spans
      .map((span) => ({ ...span, left: this.x(run, span.left), right: this.x(run, span.right) }))
      .filter((span) => Number.isFinite(span.left));
  }

  // Phases and numbered markers of the run or group in focus.
  story() {
    const unit = this.focus();
    if (!unit) return { spans: [], markers: [], name: "" };
    const isPooled = this.isMean && unit.runs.length > 1;
    const found = isPooled
      ? this.pooledTransitions(unit.runs)
      : this.transitions(unit.runs[0]).known.map((one) => this.asMarker(unit.runs[0], one));
    const inSight = found.filter((one) => Number.isFinite(one.x));
    const markers = inOnePlace(inSight).map((one, i) => ({ ...one, number: i + 1 }));
    const spans = isPooled ? this.pooledSpans(unit, found) : this.spansOf(unit.runs[0]);
    return { spans, markers, isPooled, name: isPooled ? `${unit.label}, ${unit.runs.length} runs` : unit.label };
  }

  asMarker(run, one) {
    const [low, high] = [one.earliest ?? one.step, one.latest ?? one.step];
    const told = toldStep(one, intervalOf(one));
    return { ...one, x: this.x(run, one.step), low: this.x(run, low), high: this.x(run, high), told };
  }

  // Each transition in all runs: the median, the lowest and the highest step, and in how many.
  pooledTransitions(runs) {
    const found = new Map();
    for (const run of runs) {
      for (const one of this.transitions(run).known) {
        const name = JSON.stringify([one.kind, one.curve]);
        if (!found.has(name)) found.set(name, []);
        found.get(name).push({ ...one, run, x: this.x(run, one.step) });
      }
    }
    const pooledOnes = [...found.values()].map((ones) => {
      const steps = ones.map((one) => one.step);
      const xs = ones.map((one) => one.x).filter(Number.isFinite);
      const nFirm = ones.filter(isFirm).length;
      const [least, most] = [Math.min(...steps), Math.max(...steps)];
      const step = Math.round(quantile(steps, 0.5));
      const others = runs.filter((run) => ones.every((one) => one.run !== run));
      const one = {
        kind: ones[0].kind,
        curve: ones[0].curve,
        step,
        x: xs.length ? quantile(xs, 0.5) : NaN,
        low: xs.length ? Math.min(...xs) : NaN,
        high: xs.length ? Math.max(...xs) : NaN,
        least,
        most,
        n: ones.length,
        of: runs.length,
        nFirm,
        nOthers: others.length,
        nNotThere: others.filter((run) => this.lastStep(run) < step).length,
        provisional: ones.some((one) => one.provisional),
        ones: ones.sort((a, b) => a.step - b.step),
        certainty: 2 * nFirm > runs.length ? "firm" : "tentative", // firm in most runs
      };
      const range = least < most ? stepRange(least, most) : "";
      return { ...one, told: `${toldStep(one, range)}, ${inRuns(one)}` };
    });
    return pooledOnes.sort((a, b) => a.step - b.step || naturally(a.kind, b.kind));
  }

  pooledSpans(unit, found) {
    if (this.store.settings.phases === "off") return [];
    const phases = found.filter((one) => isPhase(one.kind) && isFirm(one));
    if (!phases.length) return unit.runs.some((run) => this.eventsOf(run).length) ? [] : this.spansOf(unit.runs[0]);
    const curve = this.meanLine(unit, { tag: phases[0].curve });
    if (!curve) return [];
    return phaseSpans(
      phases.map((one) => ({ ...one, step: one.x })),
      curve.xs,
      curve.ys,
    );
  }
}

// Transitions of one curve at one step are one marker with all their names. It is as sure as the surest of them.
function inOnePlace(found) {
  const places = new Map();
  for (const one of found) {
    const place = JSON.stringify([one.curve, one.step, one.least, one.most, one.n]);
    places.set(place, [...(places.get(place) ?? []), one]);
  }
  return [...places.values()].map((ones) => {
    ones.sort((one, other) => isFirm(other) - isFirm(one));
    const names = ones.map((one) => `${nameOfKind(one.kind)}${isFirm(ones[0]) && !isFirm(one) ? "?" : ""}`);
    return { ...ones[0], kinds: ones.map((one) => one.kind), names: names.join(", ") };
  });
}

function toldStep(one, range) {
  const step = `${one.provisional ? "~" : ""}${grouped(one.step)}${isFirm(one) ? "" : "?"}`;
  return range ? `${step} (${range})` : step;
}

// In how many runs of a group a transition was found, and what of the others.
export function inRuns(one) {
  return [`${one.n} of ${one.of}`, ...notFound(one)].join("; ");
}

// A run without a transition that others have may not be so far yet.
export function notFound({ nOthers, nNotThere }) {
  const nWithout = nOthers - nNotThere;
  return [nNotThere ? `${nNotThere} not that far yet` : "", nWithout ? `${nWithout} without it` : ""].filter(Boolean);
}

function ordered(i, n) {
  const hue = 230 - (n > 1 ? (255 * i) / (n - 1) : 0); // from blue over green to red, for what has an order
  return `hsl(${Math.round(hue + 360) % 360} 60% var(--lightness))`;
}

function same(one, other) {
  return one.length === other.length && one.every((value, i) => value === other[i]);
}
