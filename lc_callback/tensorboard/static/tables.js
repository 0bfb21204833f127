// Transitions as tables: of each group at a glance, and each one with its reason.

import { download, el } from "./dom.js";
import { elided, formatStep, nameOfKind, stepRange } from "./format.js";
import { inRuns, notFound } from "./model.js";
import { certaintyOf, intervalOf, isFirm, isPhase } from "./phases.js";
import { quantile } from "./stats.js";

const MOST_ROWS = 300;
const MOST_GROUPS = 12;
// What a reader asks first, in this order.
const FIRST = [
  "delayed_generalization",
  "generalization",
  "delayed_robustness",
  "robustness_onset",
  "migration_start",
  "rank_descent",
  "interpolation",
];

// Each transition of each group: in how many runs, the median step, the lowest and the highest, and how sure.
export function glance(model) {
  const groups = [...model.groups()];
  const rest = groups.length - MOST_GROUPS;
  const parts = groups.slice(0, MOST_GROUPS).map(([name, runs]) => {
    const found = model.pooledTransitions(runs);
    const lost = withdrawnLine(model, runs);
    const withEvents = runs.filter((run) => model.events[run]).length;
    const title = el(
      "h4",
      {},
      dot(model, name, runs),
      elided(name, 120),
      el("span", { class: "unit" }, ` ${runs.length} run${runs.length > 1 ? "s" : ""}`),
    );
    if (!found.length)
      return el(
        "div",
        { class: "group-glance" },
        title,
        el(
          "p",
          { class: "empty" },
          withEvents ? "No transition was found." : "These runs have no list of transitions.",
        ),
        lost,
      );
    const columns = runs.length > 1 ? ofSeveral : ofOne;
    const head = el("tr", {}, ...Object.keys(columns).map((text) => el("th", { scope: "col" }, text)));
    const rows = found.map((one) => {
      const cells = Object.entries(columns).map(([name, tell]) => cell(tell(one), TEXTS.has(name) ? name : "number"));
      return el("tr", { class: one.nFirm ? "firm" : "tentative" }, ...cells);
    });
    return el(
      "div",
      { class: "group-glance" },
      title,
      el("p", { class: "headline" }, headline(found)),
      lost,
      el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)),
    );
  });
  const note = rest > 0 ? [el("p", { class: "note" }, `and ${rest} more groups`)] : [];
  return el("div", {}, el("div", { class: "glances" }, ...parts, ...note), layersLine(model));
}

function goTo(section) {
  section.open = true;
  section.scrollIntoView();
}

// Where it stands which layers carry the change of local complexity, and of what else was logged by layer.
function layersLine(model) {
  const measures = model.panels().heats.map((heat) => heat.title.replace(/ by layer$/, ""));
  if (!measures.length) return null;
  const go = () => goTo(document.querySelector('[data-section="layers"]'));
  return el(
    "p",
    { class: "note" },
    `Which layers carry the change of ${measures.join(", ").replace(/, (?!.*, )/, " and ")}: `,
    el("button", { type: "button", onclick: go }, "layers"),
  );
}

// How many transitions of the runs were taken back, and the way to them.
function withdrawnLine(model, runs) {
  const n = runs.reduce((sum, run) => sum + model.transitions(run).withdrawn.length, 0);
  if (!n) return null;
  const show = () => {
    goTo(document.querySelector('[data-section="transitions"]'));
    model.store.set("withdrawn", true);
  };
  return el(
    "p",
    { class: "note lost" },
    `${n} transition${n > 1 ? "s were" : " was"} found and withdrawn later, and ${n > 1 ? "are" : "is"} not counted below: `,
    el("button", { type: "button", onclick: show }, "show in the table"),
  );
}

// What stands in the columns: of the transitions of several runs, and of one.
const ofSeveral = {
  transition: kindName,
  runs: inRuns,
  "median step": (one) => formatStep(one.step),
  "lowest to highest run": (one) => (one.n > 1 ? stepRange(one.least, one.most) : ""),
  "95 % interval of the middle run": ({ ones }) => intervalOf(ones[Math.floor((ones.length - 1) / 2)]),
  certainty: sureness,
};
const ofOne = {
  transition: kindName,
  step: (one) => formatStep(one.step),
  "95 % interval": ({ ones: [one] }) => intervalOf(one),
  certainty: ({ ones: [one] }) => certaintyOf(one),
  "known at": ({ ones: [one] }) => formatStep(one.detected_at),
};
const TEXTS = new Set(["transition", "runs", "certainty"]);

// Of the curves of the group, if they have one colour.
function dot(model, name, runs) {
  const colour = model.isMean ? model.colourOf(name) : runs.length === 1 ? model.colourOf(runs[0]) : null;
  return colour && el("i", { class: "swatch-dot", style: `background: ${colour}` });
}

function cell(text, kind = "") {
  return el("td", { class: kind }, text);
}

function kindName(one) {
  const eps = /_eps(.+)$/.exec(one.curve);
  const layer = /^[^/]*rank[^/]*\/(.+)$/.exec(one.curve);
  const isComplexity = isPhase(one.kind) && /(^|[/_.\- ])lc\//.test(one.curve);
  const of = eps
    ? ` (eps ${eps[1]})`
    : layer
      ? ` (${elided(layer[1], 24)})`
      : isComplexity
        ? " (local complexity)"
        : "";
  return `${nameOfKind(one.kind)}${of}`;
}

// How many are firm, how many tentative: together all that were found. Those that may still move are some of each.
function sureness({ ones }) {
  const texts = [];
  for (const certainty of ["firm", "tentative", "not graded"]) {
    const such = ones.filter((one) => one.certainty === certainty);
    const nProvisional = such.filter((one) => one.provisional).length;
    if (such.length) texts.push(`${such.length} ${certainty}${nProvisional ? ` (${nProvisional} provisional)` : ""}`);
  }
  return texts.join(", ");
}

// One sentence on the first three things that a reader asks for. Only firm transitions are given as found.
function headline(found) {
  const told = [];
  for (const kinds of [FIRST.slice(0, 2), FIRST.slice(2, 4), FIRST.slice(4, 5)]) {
    const one = kinds.map((kind) => found.find((each) => each.kind === kind && each.nFirm)).find(Boolean);
    if (!one) continue;
    told.push(one.of > 1 ? sentenceOfSeveral(one) : sentenceOfOne(one));
  }
  const text = told.join("; ");
  return text ? `${text[0].toUpperCase()}${text.slice(1)}.` : "No firm transition of accuracy or of local complexity.";
}

function sentenceOfOne(one) {
  const interval = intervalOf(one.ones[0]);
  return `${kindName(one)} at step ${formatStep(one.step)}${interval ? ` (95 % interval ${interval})` : ""}`;
}

function sentenceOfSeveral(one) {
  const steps = one.ones.filter(isFirm).map((each) => each.step);
  const nTentative = one.n - one.nFirm;
  const others = [nTentative ? `${nTentative} tentative` : "", ...notFound(one)].filter(Boolean).join(", ");
  const [least, most] = [steps[0], steps[steps.length - 1]];
  const range = least < most ? `, lowest to highest of ${one.nFirm} runs ${stepRange(least, most)}` : "";
  const found = `in ${one.nFirm} of ${one.of} runs${others ? ` (${others})` : ""}`;
  return `${kindName(one)} ${found}: ${steps.length > 1 ? "median step" : "step"} ${formatStep(quantile(steps, 0.5))}${range}`;
}

// Every transition of the runs that are shown.
export function transitionTable(model) {
  const { store } = model;
  const numbers = new Map(
    model.isMean
      ? []
      : model
          .story()
          .markers.flatMap((one) => one.kinds.map((kind) => [JSON.stringify([kind, one.curve]), one.number])),
  );
  const focus = model.focus()?.name;
  const entries = [];
  for (const run of model.selected()) {
    const { known, withdrawn } = model.transitions(run);
    for (const one of known)
      entries.push({
        run,
        one,
        number: run === focus ? numbers.get(JSON.stringify([one.kind, one.curve])) : undefined,
      });
    if (store.settings.withdrawn) for (const one of withdrawn) entries.push({ run, one, isWithdrawn: true });
  }
  const unread = model.selected().reduce((sum, run) => sum + (model.events[run]?.unread ?? 0), 0);
  entries.sort(
    (a, b) =>
      (a.run === focus ? 0 : 1) - (b.run === focus ? 0 : 1) ||
      model.order.get(a.run) - model.order.get(b.run) ||
      a.one.step - b.one.step,
  );
  const toggle = el(
    "label",
    { class: "check" },
    el("input", {
      type: "checkbox",
      checked: store.settings.withdrawn,
      onchange: (event) => store.set("withdrawn", event.target.checked),
    }),
    "also those that were withdrawn",
  );
  const save = el(
    "button",
    { type: "button", "data-export": "csv", onclick: () => download("transitions.csv", asText(entries), "text/csv") },
    "CSV",
  );
  if (!entries.length)
    return el("div", {}, toggle, el("p", { class: "empty" }, "No transition is known for the runs that are shown."));
  const heads = ["", "transition", "run", "curve", "step", "interval", "certainty", "known at", "reason"];
  const rows = entries.slice(0, MOST_ROWS).map((entry) => tableRow(model, entry));
  const table = el(
    "table",
    { class: "transitions" },
    el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, ...rows),
  );
  const rest = entries.length - rows.length;
  const note = [rest > 0 ? `and ${rest} more` : "", unread ? `${unread} damaged events are left out` : ""]
    .filter(Boolean)
    .join(" · ");
  return el(
    "div",
    {},
    el("div", { class: "tools" }, toggle, save),
    el("div", { class: "scroll" }, table),
    el("p", { class: "note" }, note),
  );
}

function tableRow(model, { run, one, number, isWithdrawn }) {
  const go = () => {
    const x = model.x(run, one.step);
    if (Number.isFinite(x)) model.store.setCursor(x, true);
    if (model.focus()?.name !== run && !model.isMean) model.store.setFocus(run);
  };
  const key = (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), go());
  const badge =
    number === undefined ? "" : el("span", { class: `badge ${isFirm(one) ? "firm" : "tentative"}` }, String(number));
  return el(
    "tr",
    {
      class: isWithdrawn ? "withdrawn" : isFirm(one) ? "firm" : "tentative",
      tabindex: 0,
      onclick: go,
      onkeydown: key,
      "data-step": one.step,
      title: "Move the cursor here",
    },
    el("td", {}, badge),
    cell(nameOfKind(one.kind)),
    el("td", { class: "run", title: run }, elided(model.short(run), 28)),
    cell(elided(one.curve, 30)),
    cell(formatStep(one.step), "number"),
    cell(intervalOf(one), "number"),
    cell(isWithdrawn ? `withdrawn at ${formatStep(one.at)}` : certaintyOf(one)),
    cell(formatStep(one.detected_at), "number"),
    cell(one.reason, "reason"),
  );
}

function asText(entries) {
  const quoted = (value) =>
    `"${String(value ?? "")
      .replaceAll('"', '""')
      .replace(/^(?=[=+\-@])/, "'")}"`;
  const rows = entries.map(({ run, one, isWithdrawn }) => [
    run,
    one.kind,
    one.curve,
    one.step,
    one.earliest,
    one.latest,
    isWithdrawn ? "withdrawn" : certaintyOf(one),
    one.detected_at,
    one.reason,
  ]);
  return (
    [["run", "kind", "curve", "step", "earliest", "latest", "certainty", "known_at", "reason"], ...rows]
      .map((row) => row.map(quoted).join(","))
      .join("\n") + "\n"
  );
}
