// The horizontal axis: logarithmic with a place for step 0, or linear.

import { ticks } from "./d3.js";
import { shortNumber } from "./format.js";

export const AXES = [
  ["log", "steps, logarithmic"],
  ["linear", "steps, linear"],
  ["epoch", "epochs"],
  ["wall", "wall time"],
];

const ZERO = 0.05; // of the width, between step 0 and step 1

// Maps [low, high] to [left, right]. On the logarithmic axis the decades are of equal width, and what lies below 1 is
// linear, in a place of its own.
export function stepScale(kind, [low, high], [left, right]) {
  const log = kind === "log";
  if (log) high = Math.max(high, 2, low * 1.001);
  else if (!(high > low)) high = low + 1;
  const width = right - left;
  const first = log && low < 1 ? 1 : low;
  const zero = log && low < 1 ? ZERO * width * (1 - low) : 0;
  const decades = log ? Math.log10(high / first) : 0;

  const of = (value) => {
    if (!log) return left + (width * (value - low)) / (high - low);
    if (value < first) return zero ? left + (zero * (value - low)) / (1 - low) : left - width;
    return left + zero + ((width - zero) * Math.log10(value / first)) / decades;
  };
  const at = (pixel) => {
    const from = pixel - left;
    if (!log) return low + (from / width) * (high - low);
    if (from < zero) return low + (from / zero) * (1 - low);
    return first * 10 ** (((from - zero) / (width - zero)) * decades);
  };
  return {
    of,
    at,
    kind,
    domain: [low, high],
    ticks: (n) => (log ? logTicks(low, first, high, n) : linearTicks(low, high, n)),
  };
}

function linearTicks(low, high, n) {
  return ticks(low, high, n).map((value) => ({ value, label: shortNumber(value) }));
}

function logTicks(low, first, high, n) {
  const decades = Math.log10(high / first);
  const found = low <= 0 ? [{ value: 0, label: "0" }] : [];
  if (decades < 0.7) return [...found, ...linearTicks(first, high, n)];
  const labelled = decades < 2.5 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(decades / n));
  for (let power = Math.floor(Math.log10(first)); power <= Math.log10(high) + 1e-9; power++) {
    for (let k = 1; k < 10; k++) {
      const value = k * 10 ** power;
      if (value < first * 0.9999 || value > high * 1.0001) continue;
      const isLabelled = labelled.includes(k) && (k > 1 || power % every === 0);
      if (isLabelled || decades < 8) found.push({ value, label: isLabelled ? shortNumber(value) : "" });
    }
  }
  return found;
}
