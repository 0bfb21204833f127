// What stands in a legend: the values of curves at the cursor.

import { el } from "./dom.js";
import { formatValue } from "./format.js";
import { nearest, quantile } from "./stats.js";

const WIDEST = 20; // digits; what is longer is broken into lines

// The values of lines at x: one value with its spread, or the median and the range of several.
export function told(lines, at) {
  const values = lines.map((line) => {
    const i = nearest(line.xs, at);
    return i < 0 ? undefined : line.ys[i];
  });
  if (lines.length > 1) {
    const finite = values.filter(Number.isFinite);
    if (!finite.length) return "–";
    return `${formatValue(quantile(finite, 0.5))} (${formatValue(Math.min(...finite))} to ${formatValue(Math.max(...finite))})`;
  }
  const [line] = lines;
  const i = nearest(line.xs, at);
  const isInside = line.low && Number.isFinite(line.low[i]);
  const spread = isInside
    ? line.n
      ? ` (${formatValue(line.low[i])} to ${formatValue(line.high[i])})`
      : ` ± ${formatValue((line.high[i] - line.low[i]) / 2)}`
    : "";
  const fewer = line.n && line.n[i] < line.nRuns ? `, ${line.n[i]} of ${line.nRuns} runs` : "";
  return `${formatValue(values[0])}${spread}${fewer}`;
}

// Has the room of what it tells at any cursor, so that nothing moves when the cursor comes.
export function valueCell(lines) {
  const digits = digitsOf(lines);
  const rows = Math.ceil(digits / WIDEST);
  if (rows === 1) return el("td", { class: "value", style: `min-width: ${digits}ch` });
  return el("td", { class: "value broken", style: `min-width: ${WIDEST}ch; height: ${1.45 * rows}em` });
}

// As many as the values of lines take at most, with all between them.
function digitsOf(lines) {
  let digits = 5; // of three decimals
  for (const { ys, low, high } of lines)
    for (const column of [ys, low, high]) {
      let [least, most] = [Infinity, -Infinity];
      for (const value of column ?? [])
        if (Number.isFinite(value)) [least, most] = [Math.min(least, value), Math.max(most, value)];
      digits = Math.max(digits, least < 0 ? 6 : 5, formatValue(least).length, formatValue(most).length);
    }
  const [line] = lines;
  const isRange = lines.length > 1 || line.n;
  const fewer = line.n?.some((n) => n < line.nRuns) ? 9 : 0;
  return (isRange ? 3 * digits + 4 : line.low ? 2 * digits + 2 : digits) + fewer;
}
