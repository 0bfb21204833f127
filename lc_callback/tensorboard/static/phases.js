// From events to transitions, and from transitions to phases.

import { stepRange } from "./format.js";

const PHASE_KINDS = ["first_descent_end", "ascent_start", "migration_start", "migration_end"];
export const PHASES = ["first descent", "ascent", "region migration"];

const RISES = 0.15; // of the range of the curve: what is less is no ascent
const DONE = 0.95; // of its movement: there a phase ends whose end was not found
const SNAP = 0.1; // decades: a phase that ends so near to the last row goes on to it

export function isPhase(kind) {
  return PHASE_KINDS.includes(kind);
}

// What is known after the events up to a step, and what was withdrawn until then.
export function transitionsAt(events, until = Infinity) {
  const known = new Map();
  const withdrawn = [];
  for (const event of events) {
    if (event.at > until) continue;
    const name = JSON.stringify([event.kind, event.curve]);
    if (event.what === "withdrawn") {
      if (known.delete(name)) withdrawn.push(event);
    } else known.set(name, event);
  }
  return { known: [...known.values()].sort(inOrder), withdrawn };
}

function inOrder(one, other) {
  return one.step - other.step || one.kind.localeCompare(other.kind) || one.curve.localeCompare(other.curve);
}

export function isFirm(transition) {
  return transition.certainty !== "tentative";
}

export function certaintyOf(transition) {
  return `${transition.certainty}${transition.provisional ? ", provisional" : ""}`;
}

// The steps that a transition lies between with 95 % probability; nothing where that is not known.
export function intervalOf({ earliest, latest }) {
  return earliest === null || latest === null || earliest === latest ? "" : stepRange(earliest, latest);
}

// The phases between firm transitions, each only as long as the curve moves.
export function phaseSpans(transitions, steps, values) {
  const firm = new Map(
    transitions.filter((one) => isPhase(one.kind) && isFirm(one)).map((one) => [one.kind, one.step]),
  );
  if (!firm.size || !steps.length) return [];
  const curve = smoothed(steps, values);
  const [descent, rise, start, end] = PHASE_KINDS.map((kind) => firm.get(kind));
  const last = steps[steps.length - 1];
  const falling = curve.map(([step, value]) => [step, -value]);
  const spans = [];
  const add = (number, left, right) => right > left && spans.push({ name: PHASES[number], number, left, right });
  if (descent !== undefined) add(0, beginOf(falling, 0, descent), descent);
  const floor = descent ?? 0;
  if (start !== undefined) {
    add(1, rise ?? beginOf(curve, floor, start), start);
    add(2, start, end ?? endOf(falling, start, last));
  } else if (rise !== undefined || rises(curve, floor)) {
    const begin = rise ?? beginOf(curve, floor, last);
    add(1, begin, endOf(curve, begin, last));
  }
  return spans;
}

// The phases as each row had them: of a curve of 0, 1 and 2.
export function spansOfRows(steps, numbers) {
  const spans = [];
  for (let i = 0; i < steps.length; i++) {
    const number = numbers[i];
    const open = spans[spans.length - 1];
    if (open && open.right === null) {
      if (open.number === number) continue;
      open.right = steps[i];
    }
    if (PHASES[number]) spans.push({ name: PHASES[number], number, left: steps[i], right: null });
  }
  for (const span of spans) span.right ??= steps[steps.length - 1];
  return spans.filter((span) => span.right > span.left);
}

// Finite points, each the median of three.
function smoothed(steps, values) {
  const points = [];
  for (let i = 0; i < steps.length; i++) if (Number.isFinite(values[i])) points.push([steps[i], values[i]]);
  return points.map(([step, value], i) => {
    if (i === 0 || i === points.length - 1) return [step, value];
    return [step, [points[i - 1][1], value, points[i + 1][1]].sort((a, b) => a - b)[1]];
  });
}

function range(points) {
  const values = points.map((point) => point[1]);
  return Math.max(...values) - Math.min(...values);
}

function rises(points, begin) {
  const later = points.filter(([step]) => step >= begin);
  return later.length > 1 && Math.max(...later.map((point) => point[1])) - later[0][1] > RISES * range(points);
}

// Where the greatest rise of a curve between both begins: where it is low for the last time before its top.
function beginOf(points, begin, end) {
  const here = points.filter(([step]) => step >= begin && step <= end);
  let least = Infinity;
  let most = 0;
  let low = 0;
  let floor = Infinity;
  let top = 0;
  here.forEach(([, value], i) => {
    least = Math.min(least, value);
    if (value - least > most) [most, floor, top] = [value - least, least, i];
  });
  for (let i = 0; i <= top && i < here.length; i++) if (here[i][1] <= floor + (1 - DONE) * most) low = i;
  return most > 0 && low > 0 ? here[low][0] : begin;
}

// Where a curve that rises from `begin` has made almost all of its way.
function endOf(points, begin, last) {
  const later = points.filter(([step]) => step >= begin);
  if (later.length < 2) return last;
  const way = later.map((point) => point[1] - later[0][1]);
  const most = Math.max(...way);
  if (!(most > 0)) return last;
  const done = later[way.findIndex((value) => value >= DONE * most)][0];
  return Math.log10((last + 1) / (done + 1)) < SNAP ? last : done;
}
