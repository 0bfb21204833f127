// Runs in groups, means and spreads, and fewer points for a line than a series has.

import { bisectCenter, quantileSorted } from "./d3.js";

export function naturally(one, other) {
  return (
    one.localeCompare(other, "en", { numeric: true, sensitivity: "base" }) || (one < other ? -1 : one > other ? 1 : 0)
  );
}

// Groups

export const PATTERN = "seed*, version_*, run_*";

// The name of a run without what tells the runs of one group apart: folders, or ends of folders, that fit a pattern.
export function groupOf(run, pattern) {
  const globs = pattern
    .split(",")
    .map((text) => text.trim())
    .filter(Boolean)
    .map(expression);
  const kept = [];
  for (const part of run.split("/")) {
    if (globs.some((glob) => new RegExp(`^${glob}$`).test(part))) continue;
    const end = globs.map((glob) => part.search(new RegExp(`[-_.]?${glob}$`))).find((at) => at > 0);
    kept.push(end === undefined ? part : part.slice(0, end));
  }
  return kept.join("/") || "runs";
}

function expression(glob) {
  return glob
    .replace(/[.+^${}()|\\\[\]]/g, "\\$&")
    .replaceAll("*", ".*")
    .replaceAll("?", ".");
}

export function groupedRuns(runs, pattern) {
  const groups = new Map();
  for (const run of runs) {
    const name = groupOf(run, pattern);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(run);
  }
  return groups;
}

// What a viewer should know of a pattern that leaves nothing to pool, or nothing to compare. Else nothing.
export function remarkOnGroups(runs, pattern) {
  const groups = groupedRuns(runs, pattern);
  if (runs.length < 2) return "";
  if (groups.size === 1) return `all ${runs.length} runs are in one group`;
  if (groups.size < runs.length) return "";
  const fits = runs.some((run) => groupOf(run, pattern) !== run);
  return `each run is a group of its own${fits ? "" : ": no name fits"}`;
}

// Spreads

// The first one as `compare_runs` draws it, the second one as sure as the band of a single run.
export const SPREADS = [
  ["sd", "± one standard deviation over the runs"],
  ["ci", "99 % interval of the mean over the runs"],
  ["range", "lowest to highest of the runs"],
];

// Quantiles of Student's t at 99.5 %, for 1, 2, ... degrees of freedom.
const T = [
  63.66, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.25, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947, 2.921, 2.898,
  2.878, 2.861, 2.845, 2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.75,
];

// Mean and spread of series on the union of their grids. Between its rows a series is taken as straight in `place`.
export function pooled(series, spread, place = (x) => x) {
  const all = new Set();
  for (const one of series) for (const x of one.xs) all.add(x);
  const xs = Float64Array.from(all).sort();
  const n = xs.length;
  const [mean, low, high, count] = [0, 1, 2, 3].map(() => new Float64Array(n));
  const columns = series.map((one) => onGrid(one, xs, place));
  for (let i = 0; i < n; i++) {
    const values = columns.map((column) => column[i]).filter(Number.isFinite);
    count[i] = values.length;
    mean[i] = values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : NaN;
    [low[i], high[i]] = spreadOf(values, mean[i], spread);
  }
  return { xs, ys: mean, low, high, n: count };
}

function spreadOf(values, mean, spread) {
  if (values.length < 2) return [NaN, NaN];
  if (spread === "range") return [Math.min(...values), Math.max(...values)];
  const sd = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1));
  const half = spread === "sd" ? sd : ((T[values.length - 2] ?? 2.576) * sd) / Math.sqrt(values.length);
  return [mean - half, mean + half];
}

function onGrid({ xs, ys }, grid, place) {
  const values = new Float64Array(grid.length).fill(NaN);
  let i = 0;
  for (let k = 0; k < grid.length; k++) {
    const x = grid[k];
    while (i < xs.length && xs[i] < x) i++;
    if (i < xs.length && xs[i] === x) values[k] = ys[i];
    else if (i > 0 && i < xs.length) {
      const share = (place(x) - place(xs[i - 1])) / (place(xs[i]) - place(xs[i - 1]));
      values[k] = ys[i - 1] + share * (ys[i] - ys[i - 1]);
    }
  }
  return values;
}

export function quantile(values, share) {
  return quantileSorted(Float64Array.from(values).sort(), share);
}

// Points

export function nearest(xs, x) {
  return xs.length ? bisectCenter(xs, x) : -1;
}

// y at x, straight between points, the first and the last value outside.
export function interpolated(xs, ys, x) {
  const n = xs.length;
  if (!n) return NaN;
  if (x <= xs[0]) return ys[0];
  if (x >= xs[n - 1]) return ys[n - 1];
  let [low, high] = [0, n - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  return ys[low] + ((ys[high] - ys[low]) * (x - xs[low])) / (xs[high] - xs[low]);
}

// Indices of the points that a line needs: of each column of pixels the first, the least, the greatest and the last. A
// point that is no number stays, as a gap.
export function thinned(pixels, ys) {
  const n = pixels.length;
  const kept = [];
  for (let i = 0; i < n;) {
    const column = Math.floor(pixels[i]);
    let [end, least, most, gap] = [i, i, i, -1];
    for (; end < n && Math.floor(pixels[end]) === column; end++) {
      if (!Number.isFinite(ys[end])) gap = end;
      if (ys[end] < ys[least]) least = end;
      if (ys[end] > ys[most]) most = end;
    }
    const found = new Set([i, least, most, end - 1]);
    if (gap >= 0) found.add(gap);
    kept.push(...[...found].sort((a, b) => a - b));
    i = end;
  }
  return kept;
}

// The steps from which on the counts of a run are of another radius than before. One that follows the spread of the
// points behind a module stays the same. As `lc_callback.run.seams`.
export function seams(radii, spreads) {
  const found = [];
  const ofStep = new Map(Array.from(spreads?.steps ?? [], (step, i) => [step, spreads.values[i]]));
  for (let i = 1; i < (radii?.steps.length ?? 0); i++) {
    const [before, radius] = [radii.values[i - 1], radii.values[i]];
    const [spreadBefore, spread] = [ofStep.get(radii.steps[i - 1]), ofStep.get(radii.steps[i])];
    if (!alike(before, radius) && !alike(before * spread, radius * spreadBefore)) found.push(radii.steps[i]);
  }
  return found;
}

function alike(one, other) {
  return Math.abs(one - other) <= 1e-6 * Math.max(Math.abs(one), Math.abs(other));
}

// Indices with -1, where there is no point, before the first point of each seam.
export function parted(kept, steps, at) {
  const starts = new Set(at.map((seam) => kept.find((i) => steps[i] >= seam)));
  return kept.flatMap((i) => (starts.has(i) ? [-1, i] : [i]));
}

// The vertical axis: from, to, and whether lone values far from all others are left out.
export function valueRange(lines, limits = [null, null]) {
  const values = [];
  for (const { ys, low, high } of lines) {
    for (const column of [ys, low, high])
      if (column) for (const value of column) if (Number.isFinite(value)) values.push(value);
  }
  values.sort((a, b) => a - b);
  let [bottom, top] = values.length ? [values[0], values[values.length - 1]] : [0, 1];
  let isCut = false;
  if (values.length >= 40) {
    const [first, last] = [quantileSorted(values, 0.02), quantileSorted(values, 0.98)];
    const room = last - first;
    if (room > 0 && top > last + 3 * room) [top, isCut] = [last + 0.5 * room, true];
    if (room > 0 && bottom < first - 3 * room) [bottom, isCut] = [first - 0.5 * room, true];
  }
  if (limits[0] !== null && bottom >= limits[0]) bottom = limits[0];
  if (limits[1] !== null && top <= limits[1]) top = limits[1];
  if (!(top - bottom > 1e-9 * Math.abs(top)))
    [bottom, top] = [bottom - (Math.abs(bottom) || 1) * 0.5, top + (Math.abs(top) || 1) * 0.5];
  return { bottom, top, isCut };
}
