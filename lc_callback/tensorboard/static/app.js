// The page: toolbar, runs, sections of cards, and what keeps them up to date.

import { CurveCard } from "./card.js";
import { coalesced, el, select } from "./dom.js";
import { HeatCard } from "./heat.js";
import { Model } from "./model.js";
import { PicturesCard } from "./pictures.js";
import { Sidebar } from "./sidebar.js";
import { PATTERN, remarkOnGroups, SPREADS } from "./stats.js";
import { AXES } from "./steps.js";
import { Store } from "./store.js";
import { StripCard } from "./strip.js";
import { glance, transitionTable } from "./tables.js";

const RELOAD = 15_000; // milliseconds between two looks for new rows
const MOST_OTHERS = 400; // scalars with a card

const SECTIONS = [
  ["pinned", "Pinned"],
  ["glance", "At a glance"],
  ["overview", "Overview"],
  ["layers", "Layers"],
  ["pictures", "Pictures"],
  ["transitions", "Transitions"],
  ["more", "More measures"],
  ["others", "Other scalars"],
];

export class App {
  constructor(root, source, { isLive = true, title = "" } = {}) {
    [this.root, this.source, this.isLive, this.title] = [root, source, isLive, title];
    this.store = new Store(isLive);
    this.model = new Model(this.store, source);
    this.sidebar = new Sidebar(this.model);
    this.cards = new Map();
    this.message = el("p", { class: "message", role: "status" });
    this.live = el("div", { class: "visually-hidden", "aria-live": "polite" });
    this.model.announce = (text) => (this.live.textContent = text);
    this.sections = new Map(SECTIONS.map(([name, title]) => [name, this.makeSection(name, title)]));
    this.main = el("main", {}, this.message, ...this.sections.values());
    root.replaceChildren(
      this.makeToolbar(),
      el("div", { class: "layout" }, this.sidebar.element, this.main),
      this.live,
    );
    this.store.on(
      "settings",
      coalesced(() => this.update()),
    );
    this.store.on("zoom", () => (this.reset.hidden = !this.store.zoom));
    this.store.on(
      "cursor",
      coalesced(() => this.store.settings.phases === "then" && this.tellStory()),
    );
    this.theme();
  }

  async start() {
    await this.reload();
    if (!this.isLive) return;
    setInterval(() => document.visibilityState === "visible" && this.reload(), RELOAD);
  }

  // Reads the list of runs, and what is shown if there is something new.
  async reload() {
    try {
      const before = this.source.version;
      const runs = await this.source.runs();
      this.message.textContent = "";
      if (before === this.source.version && this.model.runs.size) return;
      this.model.setRuns(runs);
      await this.readRuns();
    } catch (error) {
      this.message.textContent = `The runs could not be read: ${error.message}`;
    }
  }

  // Settings have changed: other runs, groups, or another axis.
  async update() {
    this.theme();
    this.axisBox.value = this.store.settings.axis;
    this.modeFields.hidden = !this.model.isMean;
    await this.readRuns();
  }

  async readRuns() {
    const { model, source } = this;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const runs = model.selected();
    this.sidebar.draw();
    this.groupsRemark.textContent = remarkOnGroups(runs, this.store.settings.pattern);
    if (!model.runs.size) {
      this.message.textContent =
        "There are no runs in this log directory yet. The tab looks for them every 15 seconds.";
    } else if (!runs.length) this.message.textContent = "No run is selected.";
    else this.message.textContent = "";
    this.place();
    try {
      const [events] = await Promise.all([runs.length ? source.events(runs) : {}, model.loadClocks()]);
      if (turn !== this.turn) return;
      model.events = events;
      await source.need(runs, model.phaseTags());
    } catch (error) {
      this.message.textContent = `Events could not be read: ${error.message}`;
    }
    if (turn !== this.turn) return;
    this.tellStory();
    for (const card of this.cards.values()) card.refresh();
  }

  tellStory() {
    const { model } = this;
    const isEmpty = !model.selected().length;
    this.fill("glance", isEmpty ? [] : [glance(model)]);
    this.fill("transitions", isEmpty ? [] : [transitionTable(model)]);
    this.store.tell("story");
  }

  // Sections

  makeSection(name, title) {
    const section = el(
      "details",
      { class: `section ${name}`, "data-section": name, open: !this.store.settings.folded[name] },
      el("summary", {}, el("h2", {}, title)),
      el("div", { class: "content" }),
    );
    section.addEventListener("toggle", () => {
      if (section.open !== !this.store.settings.folded[name])
        this.store.set("folded", { ...this.store.settings.folded, [name]: !section.open });
    });
    return section;
  }

  fill(name, nodes) {
    const section = this.sections.get(name);
    section.hidden = !nodes.length;
    section.querySelector(".content").replaceChildren(...nodes);
  }

  // Puts a card for each panel into its section. Cards that stay are not made anew.
  place() {
    const { model, store } = this;
    const { overview, more, others, heats, absent } = model.panels();
    const fits = (panel) =>
      !store.filter ||
      panel.title.toLowerCase().includes(store.filter) ||
      panel.lines?.some((line) => line.tag.toLowerCase().includes(store.filter));
    const every = [...overview, ...more, ...others];
    const pinned = store.settings.pins.map((id) => every.find((panel) => panel.id === id)).filter(Boolean);
    const isFree = (panel) => !pinned.includes(panel) && fits(panel);
    const curves = (panels, options = {}) =>
      panels.map((panel, i) => [
        panel,
        () => new CurveCard(model, panel, { ...options, isNamed: options.isNamed && i === 0 }),
      ]);
    const hasRuns = model.selected().length > 0;
    const shownOthers = others.filter(isFree);
    const plan = {
      pinned: curves(pinned),
      overview: [
        ...curves(overview.filter(isFree), { isNamed: true }),
        ...(hasRuns && fits({ title: "phases and transitions" })
          ? [[{ id: "strip" }, () => new StripCard(model)]]
          : []),
      ],
      layers: heats.filter(fits).map((heat) => [heat, () => new HeatCard(model, heat)]),
      pictures:
        hasRuns && fits({ title: "linear regions on slices" })
          ? [[{ id: "pictures" }, () => new PicturesCard(model)]]
          : [],
      more: curves(more.filter(isFree), { isLegendBelow: true }),
      others: curves(shownOthers.slice(0, MOST_OTHERS), { isLegendBelow: true }),
    };
    const signature = JSON.stringify([
      Object.entries(plan).map(([name, entries]) => [name, entries.map(([panel]) => panel)]),
      absent,
    ]);
    if (signature === this.signature) return;
    this.signature = signature;
    const old = this.cards;
    this.cards = new Map();
    for (const [name, entries] of Object.entries(plan)) {
      const nodes = entries.map(([panel, make]) => {
        const key = JSON.stringify([name, panel]);
        const card = old.get(key) ?? make();
        this.cards.set(key, card);
        return card.element;
      });
      if (name === "others" && shownOthers.length > MOST_OTHERS)
        nodes.push(el("p", { class: "note" }, `and ${shownOthers.length - MOST_OTHERS} more: filter`));
      if (hasRuns && !store.filter && absent[name]?.length)
        nodes.push(el("p", { class: "note absent" }, absent[name].join(" ")));
      this.fill(name, nodes);
    }
    for (const [key, card] of old) if (!this.cards.has(key)) card.drop();
  }

  // Toolbar

  makeToolbar() {
    const { store } = this;
    const set = (name) => (value) => store.set(name, value);
    const axis = select("axis", AXES, store.settings.axis, set("axis"));
    this.axisBox = axis.querySelector("select");
    const modes = [
      ["runs", "each run"],
      ["mean", "mean and spread of groups"],
    ];
    const pattern = el("input", {
      type: "text",
      value: store.settings.pattern,
      size: 22,
      spellcheck: "false",
      title:
        "Names, or ends of names, that tell the runs of one group apart, such as seed*. Separate several by commas.",
      onchange: (event) => store.set("pattern", event.target.value.trim() || PATTERN),
    });
    this.groupsRemark = el("span", { class: "note", role: "status" });
    this.modeFields = el(
      "span",
      { class: "fields", hidden: !this.model.isMean },
      select("spread", SPREADS, store.settings.spread, set("spread")),
      el("label", { class: "field" }, el("span", {}, "seeds"), pattern),
      this.groupsRemark,
    );
    const phases = [
      ["final", "as known now"],
      ["then", "as known at the cursor"],
      ["off", "not shown"],
    ];
    this.reset = el(
      "button",
      { type: "button", class: "reset", hidden: true, onclick: () => store.setZoom(null) },
      "show all steps",
    );
    const filter = el("input", {
      type: "search",
      placeholder: "filter panels",
      "aria-label": "filter panels",
      oninput: () => ((store.filter = filter.value.toLowerCase()), this.place()),
    });
    const themes = [
      ["auto", "automatic"],
      ["light", "light"],
      ["dark", "dark"],
    ];
    return el(
      "div",
      { class: "toolbar", role: "toolbar", "aria-label": "view" },
      ...(this.title ? [el("h1", {}, this.title)] : []),
      axis,
      select("curves", modes, store.settings.mode, set("mode")),
      this.modeFields,
      select("phases", phases, store.settings.phases, set("phases")),
      filter,
      this.reset,
      el("span", { class: "spring" }),
      this.help(),
      select("theme", themes, store.settings.theme, set("theme")),
    );
  }

  help() {
    const lines = [
      "Move over a chart: the cursor, with the values there in all panels. Click: hold it. Drag: zoom. Double click: all steps.",
      "Keys in a panel: ← → the cursor, Home and End, + and − zoom, 0 all steps, Esc no cursor.",
      "Shaded: first descent, ascent, region migration. A numbered line is a transition; filled: firm; hollow and dashed, with ?: tentative, noise alone might look like it; ~: later rows may still move it. A tinted band is its 95 % interval; of a group of runs, from the lowest to the highest of them.",
      "The place of step 0 is to the left of the break of the axis.",
    ];
    return el(
      "details",
      { class: "menu help" },
      el("summary", {}, "how to read"),
      el("div", { class: "entries" }, ...lines.map((text) => el("p", {}, text))),
    );
  }

  // Dark mode: as chosen, else as TensorBoard has it, else as the system does.
  theme() {
    const { theme } = this.store.settings;
    const isDark =
      theme === "auto" ? (hostIsDark() ?? window.matchMedia("(prefers-color-scheme: dark)").matches) : theme === "dark";
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
  }

  followHost() {
    const host = hostBody();
    if (host) new MutationObserver(() => this.theme()).observe(host, { attributes: true, attributeFilter: ["class"] });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.theme());
  }
}

// The page around the frame; null where there is none, or one that may not be looked at.
function hostBody() {
  try {
    return window.parent !== window ? window.parent.document.body : null;
  } catch {
    return null;
  }
}

function hostIsDark() {
  const host = hostBody();
  return host ? host.classList.contains("dark-mode") : null;
}
