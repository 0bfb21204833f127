// A panel as SVG, PNG or CSV, with its legend, units and the names of the runs.

import { download, el, svg } from "./dom.js";

const STYLES = [
  "fill",
  "stroke",
  "stroke-width",
  "stroke-dasharray",
  "stroke-opacity",
  "fill-opacity",
  "opacity",
  "font-size",
  "font-family",
  "font-weight",
];
const LINE = 17; // pixels of a line of text
const WIDEST = 2400; // pixels of a picture with long names

export function exportMenu(card) {
  const menu = el(
    "details",
    { class: "menu" },
    el("summary", { "aria-label": `Export ${card.title}`, title: "Export" }, "export"),
  );
  const entry = (name, action) =>
    el(
      "button",
      { type: "button", "data-export": name, onclick: () => ((menu.open = false), action()) },
      name.toUpperCase(),
    );
  menu.append(
    el(
      "div",
      { class: "entries" },
      entry("svg", () => download(`${fileName(card)}.svg`, serialised(asSvg(card)), "image/svg+xml")),
      entry("png", async () => download(`${fileName(card)}.png`, await asPng(card))),
      ...((card.table ?? card.lines)
        ? [entry("csv", () => download(`${fileName(card)}.csv`, asCsv(card), "text/csv"))]
        : []),
    ),
  );
  return menu;
}

function fileName(card) {
  return card.title.replace(/[^A-Za-z0-9._-]+/g, "_").slice(0, 80) || "panel";
}

// A copy of the chart that needs no style sheet, with a title above and a legend below.
export function asSvg(card) {
  const root = card.parts.root;
  const copy = root.cloneNode(true);
  inline(root, copy);
  for (const node of copy.querySelectorAll(".cursor, .brush, .target, title")) node.remove();
  const [width, height] = [Number(root.getAttribute("width")), Number(root.getAttribute("height"))];
  const style = getComputedStyle(card.element);
  const font = { "font-family": "sans-serif", "font-size": 12, fill: style.color };
  const legend = legendOf(card);
  const title = `${card.title}${card.unit ? ` (${card.unit})` : ""}`;
  const longest = legend.reduce((most, { text }) => Math.max(most, text.length), 0);
  const column = Math.max(280, 44 + 6.5 * longest);
  const columns = Math.max(1, Math.floor(width / column));
  const all = Math.min(WIDEST, Math.max(width, column, 16 + 8 * title.length));
  const rows = Math.ceil(legend.length / columns);
  const total = 2.2 * LINE + height + 1.6 * LINE + rows * LINE + 8;
  const entries = legend.map(({ text, colour, dash, isMarker }, i) => {
    const [left, top] = [
      8 + (i % columns) * (width / columns),
      2.2 * LINE + height + 1.6 * LINE + Math.floor(i / columns) * LINE,
    ];
    const mark = isMarker
      ? []
      : [
          svg("line", {
            x1: left,
            x2: left + 22,
            y1: top + 4,
            y2: top + 4,
            stroke: colour,
            "stroke-width": 2,
            "stroke-dasharray": dash || null,
          }),
        ];
    return svg("g", {}, ...mark, svg("text", { ...font, x: left + (isMarker ? 0 : 28), y: top + 8 }, text));
  });
  copy.setAttribute("y", 2.2 * LINE);
  copy.removeAttribute("role");
  return svg(
    "svg",
    { xmlns: "http://www.w3.org/2000/svg", width: all, height: total, viewBox: `0 0 ${all} ${total}` },
    svg("rect", { width: all, height: total, fill: style.getPropertyValue("--card").trim() || "#ffffff" }),
    svg("text", { ...font, "font-size": 14, "font-weight": 600, x: 8, y: 18 }, title),
    copy,
    svg(
      "text",
      { ...font, x: width / 2, y: 2.2 * LINE + height + 12, "text-anchor": "middle" },
      card.model.axisTitle(),
    ),
    ...entries,
  );
}

function legendOf(card) {
  const probe = el("i");
  card.element.append(probe);
  const resolved = (colour) => {
    probe.style.color = colour;
    return getComputedStyle(probe).color;
  };
  const lines = (card.lines ?? []).slice(0, 60).map((line) => ({
    text: `${line.unit}: ${line.label}${line.isFaint ? ", numerical" : ""}${line.nRuns ? ` (mean of ${line.nRuns})` : ""}`,
    colour: resolved(line.colour),
    dash: line.dash,
  }));
  const markers = (card.markers ?? [])
    .filter((one) => one.isOwn)
    .map((one) => ({ text: `${one.number}  ${one.names} (${one.curve}): ${one.told}`, isMarker: true }));
  probe.remove();
  return [...lines, ...(card.whose ? [{ text: card.whose, isMarker: true }] : []), ...markers];
}

function inline(from, to) {
  const style = getComputedStyle(from);
  if (from.nodeName !== "svg")
    for (const name of STYLES) {
      const value = style.getPropertyValue(name);
      if (value) to.setAttribute(name, value);
    }
  to.removeAttribute("class");
  if (from.getAttribute("class")) to.setAttribute("class", from.getAttribute("class"));
  for (let i = 0; i < from.children.length; i++) inline(from.children[i], to.children[i]);
}

export function serialised(root) {
  return new XMLSerializer().serializeToString(root);
}

// Twice as many pixels as on the screen.
export async function asPng(card) {
  const root = asSvg(card);
  const [width, height] = ["width", "height"].map((name) => Number(root.getAttribute(name)));
  const address = URL.createObjectURL(new Blob([serialised(root)], { type: "image/svg+xml" }));
  try {
    const picture = new Image();
    picture.src = address;
    await picture.decode();
    const canvas = el("canvas", { width: 2 * width, height: Math.round(2 * height) });
    const context = canvas.getContext("2d");
    context.scale(2, 2);
    context.drawImage(picture, 0, 0);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  } finally {
    URL.revokeObjectURL(address);
  }
}

// One row for each point.
export function asCsv(card) {
  if (card.table) return csv(card.table());
  const isMean = card.model.isMean;
  const axis = { log: "step", linear: "step", epoch: "epoch", wall: `time_${card.model.unit}` }[card.model.kind];
  const rows = [
    isMean ? ["group", "curve", axis, "mean", "low", "high", "n"] : ["run", "curve", axis, "value", "half_width"],
  ];
  for (const line of card.lines) {
    for (let i = 0; i < line.xs.length; i++) {
      const own = isMean
        ? [line.ys[i], line.low[i], line.high[i], line.n[i]]
        : [line.ys[i], line.high ? (line.high[i] - line.low[i]) / 2 : ""];
      rows.push([line.run, line.tag, line.xs[i], ...own]);
    }
  }
  return csv(rows);
}

function csv(rows) {
  const cell = (value) => {
    const text = typeof value === "number" && Number.isNaN(value) ? "nan" : String(value ?? "");
    // A sheet takes a text that begins so for a formula.
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}
