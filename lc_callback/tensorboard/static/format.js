// Numbers, steps and names as text.

export function formatValue(value) {
  if (value === undefined || value === null) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2).replace("-", "−").replace("e+", "e");
  const digits = size >= 100 ? 1 : size >= 10 ? 2 : 3;
  const text = size >= 1000 ? grouped(Math.round(value)) : String(Number(value.toFixed(digits)));
  return text.replace("-", "−");
}

export function grouped(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, ",");
}

export function formatStep(step) {
  return step === undefined || step === null || !Number.isFinite(step) ? "–" : grouped(Math.round(step));
}

// From one step to another.
export function stepRange(low, high) {
  return low === high ? formatStep(low) : `${formatStep(low)} to ${formatStep(high)}`;
}

// Of a tick: 1k, 10k, 2.5M.
export function shortNumber(value) {
  const size = Math.abs(value);
  for (const [unit, name] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (size >= unit) return `${Number((value / unit).toPrecision(3))}${name}`;
  }
  return String(Number(value.toPrecision(3)));
}

export function nameOfKind(kind) {
  return kind.replaceAll("_", " ");
}

export function elided(text, most) {
  return text.length <= most ? text : `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(-Math.floor(most / 2))}`;
}

// Names for little room: those too long for it without what all of them share at their ends.
export function tellingApart(names, most) {
  const long = [...new Set(names.filter((name) => name.length > most))].map((name) => name.split(/(?<=[./])/));
  const shortest = Math.min(...long.map((parts) => parts.length));
  const shared = (at, most) => {
    let n = 0;
    while (long.length > 1 && n < most && long.every((parts) => at(parts, n) === at(long[0], n))) n += 1;
    return n;
  };
  const first = shared((parts, n) => parts[n], shortest - 1);
  const last = shared((parts, n) => parts[parts.length - 1 - n], shortest - 1 - first);
  return names.map((name) => {
    if (name.length <= most) return name;
    const parts = name.split(/(?<=[./])/);
    const middle = parts.slice(first, parts.length - last).join("");
    return elided(`${first ? "…" : ""}${last ? `${middle.replace(/[./]$/, "")}…` : middle}`, most);
  });
}

// Of an x value on an axis, with its unit.
export function formatPlace(kind, x, unit) {
  if (kind === "epoch") return `epoch ${formatValue(x)}`;
  if (kind === "wall") return `${formatValue(x)} ${unit}`;
  return `step ${formatStep(x)}`;
}
