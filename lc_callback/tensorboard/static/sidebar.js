// The runs: which are shown, in which colour, in which group, and which one is in focus.

import { el } from "./dom.js";
import { groupedRuns } from "./stats.js";

const MOST_RUNS = 300;

export class Sidebar {
  constructor(model) {
    [this.model, this.store] = [model, model.store];
    this.text = "";
    this.search = el("input", {
      type: "search",
      placeholder: "filter runs",
      "aria-label": "filter runs",
      oninput: () => ((this.text = this.search.value.toLowerCase()), this.draw()),
    });
    this.all = el("button", { type: "button", onclick: () => this.setAll(true) }, "all");
    this.none = el("button", { type: "button", onclick: () => this.setAll(false) }, "none");
    this.list = el("div", { class: "run-list" });
    this.summary = el("summary", {}, "Runs");
    this.element = el(
      "details",
      { class: "sidebar", open: window.innerWidth > 760 },
      this.summary,
      el("div", { class: "run-tools" }, this.search, this.all, this.none),
      this.list,
    );
  }

  matching() {
    return [...this.model.runs.keys()].filter((run) => run.toLowerCase().includes(this.text));
  }

  setAll(isShown) {
    this.store.set("shown", {
      ...this.store.settings.shown,
      ...Object.fromEntries(this.matching().map((run) => [run, isShown])),
    });
    this.draw();
  }

  // Makes the rows anew only if they are others: a row that is replaced while the viewer clicks on it loses the click.
  draw() {
    const { model } = this;
    const runs = this.matching();
    this.summary.textContent = `Runs (${model.selected().length} of ${model.runs.size})`;
    const shown = runs.slice(0, MOST_RUNS);
    const groups = model.isMean ? [...groupedRuns(shown, this.store.settings.pattern)] : [["", shown]];
    const signature = JSON.stringify([
      model.isMean,
      groups,
      runs.length,
      shown.map((run) => model.runs.get(run).notes),
    ]);
    if (signature !== this.signature) this.build(groups, runs.length - shown.length);
    this.signature = signature;
    const focus = model.focus();
    for (const [run, { row, box, name }] of this.rows) {
      const isFocus = Boolean(focus?.runs.includes(run)) && !model.isMean;
      box.checked = model.isShown(run);
      row.classList.toggle("focus", isFocus);
      name.setAttribute("aria-pressed", String(isFocus));
    }
  }

  build(groups, rest) {
    const { model } = this;
    this.rows = new Map();
    const parts = groups.flatMap(([group, members]) => {
      const head = model.isMean
        ? [
            el(
              "p",
              { class: "group" },
              el("i", { class: "swatch-dot", style: `background: ${model.colourOf(group)}` }),
              group,
            ),
          ]
        : [];
      return [...head, ...members.map((run) => this.row(run))];
    });
    this.list.replaceChildren(...parts, ...(rest > 0 ? [el("p", { class: "note" }, `and ${rest} more: filter`)] : []));
  }

  row(run) {
    const { model, store } = this;
    const info = model.runs.get(run);
    const box = el("input", {
      type: "checkbox",
      "aria-label": `show ${run}`,
      onchange: () => store.set("shown", { ...store.settings.shown, [run]: box.checked }),
    });
    const colour = model.isMean ? "transparent" : model.colourOf(run);
    const title = `${run}${info.local ? "" : " (from TensorBoard's data)"}: show its phases and markers`;
    const name = el(
      "button",
      { type: "button", class: "run-name", title, onclick: () => store.setFocus(run) },
      model.short(run),
    );
    const notes = info.notes.length
      ? [
          el(
            "span",
            { class: "warn", title: info.notes.join("\n"), role: "img", "aria-label": info.notes.join(". ") },
            "!",
          ),
        ]
      : [];
    const row = el(
      "div",
      { class: "run", "data-run": run },
      box,
      el("i", { class: "swatch-dot", style: `background: ${colour}` }),
      name,
      ...notes,
    );
    this.rows.set(run, { row, box, name });
    return row;
  }
}
