// Which curves share a panel. By the keys that the callbacks log; any other scalar has a panel of its own.

import { naturally } from "./stats.js";

const MOST_LINES = 6; // of layers in one panel; of more, the first, the last and some between

const GROUPS = [
  "lc",
  "lc_ci99",
  "lc_density",
  "lc_boundary",
  "lc_tv",
  "lc_layer",
  "lc_spread",
  "lc_radius",
  "clean_acc",
  "robust_acc",
  "robust_acc_raw",
  "rank",
  "effective_rank",
  "stable_rank",
  "tunnel_length",
  "weight_norm",
  "alignment",
  "linear_probe",
  "nc",
  "partition",
];
const KEY = new RegExp(
  `^(|.*[/_.\\- ])(${[...GROUPS].sort((a, b) => b.length - a.length).join("|")})(_test)?(?:/(.+))?$`,
  "s",
);

const TITLES = {
  lc_density: ["density of local complexity", "per unit of radius"],
  lc_boundary: ["density of boundaries", "area per volume"],
  lc_tv: ["total variation", "norm of the Jacobian"],
  lc_spread: ["spread of the points", ""],
  lc_radius: ["radius of local complexity", ""],
  stable_rank: ["stable rank", "dimensions"],
  rank: ["numerical rank", "dimensions"],
  effective_rank: ["effective rank", "dimensions"],
  tunnel_length: ["tunnel length", "layers"],
  weight_norm: ["norm of the weights", ""],
  alignment: ["alignment", ""],
  linear_probe: ["linear probe", ""],
  nc: ["neural collapse", ""],
  partition: ["linear regions", ""],
  robust_acc_raw: ["accuracy under attack, logits as they are", "share of points"],
};

// Families of tags that differ in the layer only, for the heat maps: title, and the beginnings of the tags.
const HEATS = [
  ["local complexity by layer", /^(|.*[/_.\- ])lc_layer\/(train|test|random)[^/]*\//s],
  ["rank by layer", /^(|.*[/_.\- ])(effective_rank|rank|stable_rank)(_test)?\//s],
  ["norm of the weights by layer", /^(|.*[/_.\- ])weight_norm\//s],
];

// What follows the beginning of a tag and is no layer: also the splits of a measure of one's own, such as local_rank.
const NO_LAYER = /^(seconds|total|(\w+_)?(train|test|random))$/;

export function isPhaseTag(tag) {
  return /(^|[/_.\- ])lc\/phase$/.test(tag);
}

function parsed(tag) {
  const match = KEY.exec(tag);
  if (!match) return null;
  return { prefix: match[1], group: match[2], rest: match[4] ?? "", side: match[3] ? " (test points)" : "" };
}

// Panels of tags, in their order: { overview, more, others, heats }.
export function panelsOf(tags) {
  const all = new Set(tags);
  const own = new Set(tags.filter((tag) => tag.endsWith("/seconds")).map((tag) => tag.slice(0, -"seconds".length)));
  const found = { lc: new Map(), accuracy: new Map(), rank: new Map(), own: new Map(), more: new Map() };
  const others = [];
  for (const tag of tags) {
    if (tag === "epoch" || tag.endsWith("/seconds") || isPhaseTag(tag)) continue;
    const key = parsed(tag);
    const group = ownGroup(tag, own);
    if (key) place(found, key, tag, all);
    else if (group)
      panel(found.own, `own:${group}`, { title: group.slice(0, -1) }).lines.push(line(tag, tag.slice(group.length)));
    else
      others.push({
        id: `tag:${tag}`,
        title: tag,
        unit: "",
        lines: [line(tag, tag)],
        limits: [null, null],
        isSmall: true,
      });
  }
  const seconds = tags.filter((tag) => tag.endsWith("/seconds"));
  if (seconds.length)
    panel(found.more, "seconds", { title: "time of a row", unit: "seconds" }).lines.push(
      ...seconds.map((tag) => line(tag, tag)),
    );
  const list = (map) => [...map.values()].filter((one) => one.lines.length).map(limited);
  others.sort((one, other) => naturally(one.title, other.title));
  return {
    overview: [...list(found.lc), ...list(found.accuracy), ...list(found.rank), ...list(found.own)],
    more: list(found.more),
    others,
    heats: heatsOf(tags),
    absent: absent(tags, found),
  };
}

// What was not logged, and what logs it: by section.
function absent(tags, { lc, accuracy, rank }) {
  const [hasLayers, hasRanks, hasNorms] = HEATS.map(([, start]) => tags.some((tag) => start.test(tag)));
  const missing = (isThere, name, call) => (isThere ? [] : [`${name} not in these runs: ${call}`]);
  return {
    overview: [
      ...missing(lc.size, "Local complexity is", "LocalComplexityCallback() logs it."),
      ...missing(accuracy.size, "Accuracy, clean and under attack, is", "PGDRobustnessCallback() logs it."),
      ...missing(rank.size, "Feature rank is", "FeatureRankCallback() logs it."),
    ],
    layers: [
      ...missing(hasLayers, "Local complexity by layer is", "LocalComplexityCallback(per_layer=True) logs it."),
      ...missing(hasRanks, "Rank by layer is", "FeatureRankCallback() logs it."),
      ...missing(hasNorms, "The norm of the weights by layer is", "FeatureRankCallback() logs it."),
    ],
  };
}

function line(tag, label, fields = {}) {
  return { tag, label, ...fields };
}

function panel(map, id, fields) {
  if (!map.has(id)) map.set(id, { id, unit: "", lines: [], limits: [null, null], ...fields });
  return map.get(id);
}

function ownGroup(tag, own) {
  const slash = tag.lastIndexOf("/");
  for (let at = tag.indexOf("/"); at >= 0 && at <= slash; at = tag.indexOf("/", at + 1)) {
    const group = tag.slice(0, at + 1);
    if (own.has(group)) return group;
  }
  return "";
}

function place(found, { prefix, group, rest, side }, tag, all) {
  const of = prefix ? ` (${prefix.replace(/[/_.\- ]+$/, "")})` : "";
  if (group === "lc") {
    const [split, radius = ""] = rest.split(/_r(?=[\d.]+(?:e-?\d+)?$)/);
    const title = `local complexity${radius ? `, r = ${radius}` : ""}${of}`;
    const beside = { band: `lc_ci99/${rest}`, radius: "lc_radius", spread: "lc_spread/train" };
    const known = Object.entries(beside).filter(([, key]) => all.has(prefix + key));
    const fields = Object.fromEntries(known.map(([name, key]) => [name, prefix + key]));
    const unit = "units that switch, mean over the points";
    const bandUnit = "band: 99 % interval over the points";
    panel(found.lc, `lc:${prefix}:${radius}`, { title, unit, bandUnit, limits: [0, null] }).lines.push(
      line(tag, split, fields),
    );
  } else if (group === "clean_acc" || group === "robust_acc") {
    const eps = rest.replace("_eps", ", eps ");
    const fields = { title: `accuracy${of}`, unit: "share of the points; with eps: under attack", limits: [0, 1] };
    panel(found.accuracy, `accuracy:${prefix}`, fields).lines.push(
      line(tag, eps, group === "robust_acc" ? { isAttacked: true } : {}),
    );
  } else if (group === "rank" || group === "effective_rank") {
    const isFaint = group === "rank" && all.has(tag.replace(/rank(?=(_test)?\/)/, "effective_rank"));
    const unit = isFaint || group !== "rank" ? "dimensions; effective, and thin: numerical" : "dimensions";
    const fields = { title: `feature rank${side}${of}`, unit, limits: [0, null], isOrdered: true };
    const made = panel(found.rank, `rank:${prefix}:${side}`, fields);
    made.lines.push(line(tag, rest, isFaint ? { isFaint } : {}));
  } else if (group !== "lc_ci99" && group !== "lc_layer") {
    const [title, unit] = TITLES[group];
    const isOrdered = /rank|weight_norm|linear_probe/.test(group);
    panel(found.more, `${group}:${prefix}:${side}`, { title: title + side + of, unit, isOrdered }).lines.push(
      line(tag, rest || group),
    );
  }
}

// Of many layers only some.
function limited(one) {
  const labels = [...new Set(one.lines.map((each) => each.label))];
  if (labels.length <= MOST_LINES || !(one.isOrdered || labels.length > 12)) return one;
  const shown = new Set(
    Array.from({ length: MOST_LINES }, (_, i) => labels[Math.round((i * (labels.length - 1)) / (MOST_LINES - 1))]),
  );
  const note = `${MOST_LINES} of ${labels.length} are drawn`;
  return { ...one, lines: one.lines.filter((each) => shown.has(each.label)), note };
}

function heatsOf(tags) {
  const heats = [];
  for (const [title, start] of HEATS) {
    const prefixes = new Map();
    for (const tag of tags) {
      const match = start.exec(tag);
      if (match && !NO_LAYER.test(tag.slice(match[0].length)))
        prefixes.set(match[0], (prefixes.get(match[0]) ?? 0) + 1);
    }
    const several = [...prefixes].filter(([, n]) => n > 1).map(([prefix]) => prefix);
    several.sort(
      (one, other) =>
        Number(/(^|[^e])rank/.test(one) && !/effective/.test(one)) -
        Number(/(^|[^e])rank/.test(other) && !/effective/.test(other)),
    );
    if (several.length) heats.push({ id: `heat:${title}`, title, prefixes: several });
  }
  return heats;
}
