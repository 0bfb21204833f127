// What the viewer has chosen. Kept in the browser, but for the cursor and the zoom.

import { PATTERN } from "./stats.js";

const KEY = "lc_dynamics";
const DEFAULTS = {
  axis: "log",
  mode: "runs",
  spread: "sd",
  pattern: PATTERN,
  phases: "final",
  theme: "auto",
  shown: {}, // run -> true or false, where the viewer has chosen
  pins: [],
  folded: {}, // section -> true
  whole: {}, // panel -> whether its axis has all values
  logarithmic: {}, // panel -> whether its vertical axis is logarithmic
  withdrawn: false,
  relative: false, // each layer of a heat map by its own range
};

export class Store {
  constructor(isKept = true) {
    this.isKept = isKept;
    this.settings = { ...DEFAULTS, ...(isKept ? kept() : {}) };
    this.cursor = null; // { x, held } in the units of the axis
    this.zoom = null; // [low, high] in the same
    this.focus = null; // the run whose phases and markers are drawn
    this.filter = "";
    this.listeners = new Map();
  }

  on(topic, action) {
    if (!this.listeners.has(topic)) this.listeners.set(topic, new Set());
    this.listeners.get(topic).add(action);
    return () => this.listeners.get(topic).delete(action);
  }

  tell(topic) {
    for (const action of this.listeners.get(topic) ?? []) action();
  }

  set(name, value) {
    this.settings[name] = value;
    if (name === "axis") {
      this.zoom = null;
      this.cursor = null;
    }
    if (this.isKept) keep(this.settings);
    this.tell("settings");
  }

  setCursor(x, held = false) {
    this.cursor = x === null ? null : { x, held };
    this.tell("cursor");
  }

  setZoom(zoom) {
    this.zoom = zoom;
    this.tell("zoom");
  }

  setFocus(run) {
    this.focus = run;
    this.tell("settings");
  }
}

// What was kept, as far as each is of the kind that it should be.
function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    const fits = ([name, value]) =>
      name in DEFAULTS &&
      typeof value === typeof DEFAULTS[name] &&
      Array.isArray(value) === Array.isArray(DEFAULTS[name]) &&
      value !== null;
    return Object.fromEntries(Object.entries(found).filter(fits));
  } catch {
    return {};
  }
}

function keep(settings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // A browser that keeps nothing: the choices hold until the page is closed.
  }
}
