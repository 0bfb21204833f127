// Where data come from: the server of the plugin, or the page itself.

const AT_ONCE = 3; // requests
const MOST_URL = 4000; // characters
const MOST_RUNS = 40; // of one request
const MOST_SERIES = 30; // of one request: the first ones are drawn while others are on their way
const MOST_POINTS = 2_000_000; // that are kept

const NOT_FINITE = { nan: NaN, inf: Infinity, "-inf": -Infinity };

export class Source {
  // `load(path, pairs)` gives a promise of an answer.
  constructor(load) {
    this.load = limited(load, AT_ONCE);
    this.series = new Map(); // [run, tag] -> { steps, values, sampled, stamp } or null where there is none
    this.points = 0;
    this.stamp = 0; // counts the versions of the data
    this.clocks = new Map();
  }

  async runs() {
    const told = await this.load("runs", []);
    if (told.version !== this.version) {
      this.version = told.version;
      this.stamp += 1;
      this.clocks.clear();
    }
    return told.runs.map((run) => ({ ...run, tags: told.sets[run.set].map((i) => told.tags[i]) }));
  }

  get(run, tag) {
    return this.series.get(name(run, tag))?.series ?? null;
  }

  // Loads what is missing or out of date of tags in runs; `onPart` is called when some of it is there.
  async need(runs, tags, onPart = () => {}) {
    const missing = runs.filter((run) => tags.some((tag) => this.series.get(name(run, tag))?.stamp !== this.stamp));
    if (!missing.length || !tags.length) return;
    await Promise.all(chunks(missing, tags).map((some) => this.fetch(some, tags).then(onPart)));
  }

  async fetch(runs, tags) {
    const stamp = this.stamp;
    const told = await this.load("series", [...runs.map((run) => ["run", run]), ...tags.map((tag) => ["tag", tag])]);
    const grids = told.grids.map((grid) => Float64Array.from(grid.steps));
    for (const run of runs) for (const tag of tags) this.keep(run, tag, null, stamp);
    for (const one of told.series) {
      this.keep(one.run, one.tag, { steps: grids[one.grid], values: numbers(one.values), sampled: one.sampled }, stamp);
    }
    this.problem = told.problems[0] ?? "";
  }

  keep(run, tag, series, stamp) {
    const key = name(run, tag);
    this.points -= this.series.get(key)?.series?.values.length ?? 0;
    this.series.delete(key); // to the end of the order
    this.series.set(key, { series, stamp });
    this.points += series?.values.length ?? 0;
    for (const [old, { series: dropped }] of this.series) {
      if (this.points <= MOST_POINTS || old === key) break;
      this.points -= dropped?.values.length ?? 0;
      this.series.delete(old);
    }
  }

  events(runs) {
    return this.inChunks("events", runs);
  }

  async inChunks(path, runs) {
    const told = await Promise.all(
      chunks(runs, []).map((some) =>
        this.load(
          path,
          some.map((run) => ["run", run]),
        ),
      ),
    );
    return Object.assign({}, ...told);
  }

  async heat(run, prefix) {
    const told = await this.load("heat", [
      ["run", run],
      ["prefix", prefix],
    ]);
    return { ...told, values: told.values.map(numbers) };
  }

  pictures(run) {
    return this.load("pictures", [["run", run]]);
  }

  // Steps of a run, and what they are on an axis of epochs or seconds; null where that is not known.
  clock(run, kind, tags) {
    const key = name(run, kind);
    if (!this.clocks.has(key)) this.clocks.set(key, this.readClock(run, kind, tags));
    return this.clocks.get(key);
  }

  async readClock(run, kind, tags) {
    const tag = kind === "epoch" ? "epoch" : tags[0];
    if (!tags.includes(tag)) return null;
    const told = await this.load("series", [["run", run], ["tag", tag], ...(kind === "wall" ? [["wall", "1"]] : [])]);
    const [series] = told.series;
    if (!series) return null;
    const { steps, wall } = told.grids[series.grid];
    if (kind === "epoch") return { steps, xs: numbers(series.values) };
    return wall ? { steps, xs: Float64Array.from(wall, (time) => time - wall[0]) } : null;
  }
}

function name(run, tag) {
  return JSON.stringify([run, tag]);
}

function numbers(values) {
  return Float64Array.from(values, (value) => (typeof value === "string" ? NOT_FINITE[value] : value));
}

// Runs in as many requests as keep each short.
function chunks(runs, tags) {
  const room = MOST_URL - tags.reduce((sum, tag) => sum + encodeURIComponent(tag).length + 5, 0);
  const most = Math.max(1, Math.min(MOST_RUNS, Math.floor(MOST_SERIES / Math.max(1, tags.length))));
  const parts = [[]];
  let length = 0;
  for (const run of runs) {
    const own = encodeURIComponent(run).length + 5;
    const last = parts[parts.length - 1];
    if (last.length && (length + own > room || last.length >= most)) {
      parts.push([run]);
      length = own;
    } else {
      last.push(run);
      length += own;
    }
  }
  return parts.filter((part) => part.length);
}

function limited(load, most) {
  let running = 0;
  const waiting = [];
  const next = () => {
    if (running >= most || !waiting.length) return;
    running += 1;
    const { path, pairs, resolve, reject } = waiting.shift();
    load(path, pairs)
      .then(resolve, reject)
      .finally(() => ((running -= 1), next()));
  };
  return (path, pairs) =>
    new Promise((resolve, reject) => {
      waiting.push({ path, pairs, resolve, reject });
      next();
    });
}

export function fromServer() {
  const load = async (path, pairs) => {
    const query = new URLSearchParams(pairs.map(([key, value]) => [key, wellFormed(value)]));
    const answer = await fetch(`./${path}?${query}`);
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${(await answer.text()).slice(0, 200)}`);
    return answer.json();
  };
  const source = new Source(load);
  source.address = (run, picture) => {
    const query = "blob" in picture ? { blob: picture.blob } : { run, file: picture.file };
    return `./picture?${new URLSearchParams(query)}`;
  };
  return source;
}

// Of the answers that a page carries along.
export function fromPage(data) {
  const load = async (path, pairs) => {
    const values = (key) => pairs.filter(([own]) => own === key).map(([, value]) => value);
    const [run] = values("run");
    if (path === "runs") return data.runs;
    if (path === "events") return data.events;
    if (path === "pictures") return data.pictures[run] ?? { pictures: [], films: [] };
    if (path === "heat") return heatOf(data, run, values("prefix")[0]);
    const [runs, tags] = [new Set(values("run")), new Set(values("tag"))];
    const series = data.series.series.filter((one) => runs.has(one.run) && tags.has(one.tag));
    return { ...data.series, series };
  };
  const source = new Source(load);
  source.address = (run, picture) => picture.data;
  return source;
}

// Layers x steps of the tags with a prefix.
function heatOf(data, run, prefix) {
  const isLayer = ({ tag }) => tag.startsWith(prefix) && !["seconds", "total"].includes(tag.slice(prefix.length));
  const found = data.series.series.filter((one) => one.run === run && isLayer(one));
  const stepsOf = (one) => data.series.grids[one.grid].steps;
  const steps = [...new Set(found.flatMap(stepsOf))].sort((a, b) => a - b);
  const values = found.map((one) => {
    const own = new Map(stepsOf(one).map((step, i) => [step, one.values[i]]));
    return steps.map((step) => own.get(step) ?? "nan");
  });
  return { layers: found.map((one) => one.tag.slice(prefix.length)), n: found.length, steps, values };
}

function wellFormed(text) {
  return text.toWellFormed ? text.toWellFormed() : text;
}
