// The runs: which are shown, in which colour, in which group, and which one is in focus.

import { el } from "./dom.js";
import { groupedRuns } from "./stats.js";

const MOST_RUNS = 300;

export class Sidebar {
  constructor(model) {
    [this.model, this.store] = [model, model.store];
    this.text = "";
    this.search = el("input", { type: "search", placeholder: "filter runs", "aria-label": "filter runs", oninput: () => ((this.text = this.search.value.toLowerCase()), this.draw()) });
    this.all = el("button", { type: "button", onclick: () => this.setAll(true) }, "all");
    this.none = el("button", { type: "button", onclick: () => this.setAll(false) }, "none");
    this.list = el("div", { class: "run-list" });
    this.summary = el("summary", {}, "Runs");
    this.element = el("details", { class: "sidebar", open: window.innerWidth > 760 }, this.summary, el("div", { class: "run-tools" }, this.search, this.all, this.none), this.list);
  }

  matching() {
    return [...this.model.runs.keys()].filter((run) => run.toLowerCase().includes(this.text));
  }

  setAll(isShown) {
    this.store.set("shown", { ...this.store.settings.shown, ...Object.fromEntries(this.matching().map((run) => [run, isShown])) });
  }

  draw() {
    const { model } = this;
    const runs = this.matching();
    const focus = model.focus();
    this.summary.textContent = `Runs (${model.selected().length} of ${model.runs.size})`;
    const shown = runs.slice(0, MOST_RUNS);
    const groups = model.isMean ? [...groupedRuns(shown, this.store.settings.pattern)] : [["", shown]];
    const parts = groups.flatMap(([group, members]) => {
      const head = model.isMean ? [el("p", { class: "group" }, el("i", { class: "swatch-dot", style: `background: ${model.colourOf(group)}` }), group)] : [];
      return [...head, ...members.map((run) => this.row(run, focus))];
    });
    const rest = runs.length - shown.length;
    this.list.replaceChildren(...parts, ...(rest > 0 ? [el("p", { class: "note" }, `and ${rest} more: filter`)] : []));
  }

  row(run, focus) {
    const { model, store } = this;
    const info = model.runs.get(run);
    const box = el("input", { type: "checkbox", checked: model.isShown(run), "aria-label": `show ${run}`, onchange: () => store.set("shown", { ...store.settings.shown, [run]: box.checked }) });
    const colour = model.isMean ? "transparent" : model.colourOf(run);
    const isFocus = Boolean(focus?.runs.includes(run)) && !model.isMean;
    const name = el("button", { type: "button", class: "run-name", title: `${run}${info.local ? "" : " (from TensorBoard's data)"}: show its phases and markers`, "aria-pressed": isFocus, onclick: () => store.setFocus(run) }, model.short(run));
    const notes = info.notes.length ? [el("span", { class: "warn", title: info.notes.join("\n"), role: "img", "aria-label": info.notes.join(". ") }, "!")] : [];
    return el("div", { class: `run${isFocus ? " focus" : ""}`, "data-run": run }, box, el("i", { class: "swatch-dot", style: `background: ${colour}` }), name, ...notes);
  }
}
