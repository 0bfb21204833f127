"""Several runs beside each other: mean curves with their spread, and where each transition is in how many of them."""

from __future__ import annotations

import csv
import fnmatch
import io
import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lc_callback.detection.milestones import RANK_KINDS, find_rank_turns
from lc_callback.detection.phases import PHASE_KINDS, find_phases
from lc_callback.detection.seeds import Pooled, pool
from lc_callback.detection.transitions import Curves, Transition, Turn, in_order, supported
from lc_callback.reporting.layout import spread_out
from lc_callback.reporting.run_dir import read_run
from lc_callback.run.seams import seams
from lc_callback.run.timeline import MeasureSpec, Panel, RunCurves, panel_order, place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PATTERNS", "Comparison", "Found", "Group", "compare"]

#: Names of folders that tell runs of one group apart.
PATTERNS = ("seed*", "version_*", "run_*")
_HEADER = ("group", "what", "curve", "runs", "median", "range", "mean curve")
_MOST_THIN = 12  # runs that are drawn one by one behind their mean
_MARKER_POINTS = 6


@dataclass(frozen=True)
class Found:
    """A kind of transition in the runs of a group.

    Attributes:
        kind, curve: which.
        steps: of the runs in which it is firm, in their order.
        n_runs: how many runs have the curve.
        of_mean: the transition of the mean curve, if that shows it.
    """

    kind: str
    curve: str
    steps: tuple[int, ...]
    n_runs: int
    of_mean: Transition | None = None

    @property
    def median(self) -> float:
        """Median step of the runs that show it; NaN if none does."""
        return float(np.median(self.steps)) if self.steps else math.nan

    @property
    def share(self) -> str:
        """Such as ``"4 of 5 runs"``."""
        return f"{len(self.steps)} of {self.n_runs} runs"


@dataclass(frozen=True)
class Group:
    """Runs that are alike but for their seed.

    Attributes:
        name: of the group.
        runs: their log directories.
        pooled: mean and spread of each followed curve, by key.
        found: the transitions, in the order of their steps.
        curves: of each run, by key.
    """

    name: str
    runs: tuple[Path, ...]
    pooled: Mapping[str, Pooled]
    found: tuple[Found, ...]
    curves: Mapping[str, Sequence[tuple[Any, Any]]] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, and what to show of them.

    Attributes:
        groups: in the order in which they were given.
        panels: what is drawn, from above.
    """

    groups: tuple[Group, ...]
    panels: tuple[Panel, ...] = field(repr=False, default=())

    def table(self, form: str = "markdown") -> str:
        """Where each transition is, in how many runs, and where in the mean curve.

        Args:
            form: ``"markdown"``, ``"csv"`` or ``"latex"`` (for the package booktabs).

        Raises:
            ValueError: for another form.
        """
        writers = {"markdown": _markdown, "csv": _csv, "latex": _latex}
        if form not in writers:
            raise ValueError(f"`form` must be one of {[*writers]}, but got {form!r}.")
        return writers[form]([_HEADER, *(_cells(group, found) for group in self.groups for found in group.found)])

    def plot(self, width: float | None = None) -> tuple[Figure, Any]:
        """Draw the groups beside each other.

        Args:
            width: of the figure in inches; by default 5 for each group.

        Returns:
            The figure and its axes ``(n_panels, n_groups)``.
        """
        from matplotlib.figure import Figure

        figure = Figure((width or 5.0 * len(self.groups), 2.4 * max(1, len(self.panels))), layout="constrained")
        return figure, _draw(figure, self)

    def save(self, path: Path | str, width: float | None = None) -> None:
        """Write the picture, by the suffix of ``path``: PNG, PDF or SVG; or the table: CSV, Markdown or LaTeX.

        Raises:
            ValueError: if the suffix is another one.
        """
        path = Path(path)
        forms = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
        suffix = path.suffix.lower()
        if suffix in forms:
            path.write_text(self.table(forms[suffix]), encoding="utf-8")
        elif suffix in (".png", ".pdf", ".svg"):
            self.plot(width)[0].savefig(path, dpi=150)
        else:
            raise ValueError(f"{path} must end with .png, .pdf, .svg, .csv, .md or .tex.")


def compare(
    runs: Sequence[Path | str] | Mapping[str, Sequence[Path | str]],
    measures: Sequence[type[MeasureSpec]],
    pattern: str | None = None,
    detection: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare runs from the files in their log directories.

    Args:
        runs: log directories, which are grouped by their names; or by the name of their group.
        measures: the callbacks that may have written there.
        pattern: of the names, or ends of names, that tell runs of one group apart, such as ``"seed_*"``.
        detection: settings of the detectors, to find all transitions anew.

    Raises:
        ValueError: if there is no run, one is given twice, or one has no rows.
    """
    groups = _grouped(runs, pattern)
    read = {path: read_run(path, measures, detection) for paths in groups.values() for path in paths}
    _warn_of_radii(read)
    made = [_group(name, [read[path] for path in paths], tuple(paths)) for name, paths in groups.items()]
    return Comparison(tuple(made), _panels(read.values(), {key for group in made for key in group.pooled}))


def _panels(runs: Iterable[Sequence[RunCurves]], shown: Collection[str]) -> tuple[Panel, ...]:
    """The panels of all runs with the curves that are shown, each curve in one panel."""
    panels: dict[tuple[str, str, str], Panel] = {}
    places: dict[str, tuple[str, str, str]] = {}  # of each curve its panel, for another run may call that otherwise
    for part in (part for parts in runs for part in parts):
        for panel in part.panels:
            place = part.group, part.prefix, panel.label
            known = {name: key for name, key in panel.lines.items() if key in shown}
            lines = {name: key for name, key in known.items() if places.setdefault(key, place) == place}
            if lines:
                before = panels.get(place, replace(panel, lines={}))
                panels[place] = replace(before, lines={**before.lines, **lines})
    return tuple(panels[place] for place in sorted(panels, key=lambda place: panel_order(*place[:2])))


# Groups


def _grouped(runs: Any, pattern: str | None) -> dict[str, list[Path]]:
    if isinstance(runs, Mapping):
        groups = {str(name): [Path(path) for path in paths] for name, paths in runs.items()}
    elif isinstance(runs, (str, Path)):
        raise ValueError(f"`runs` must be a list of log directories, but got {str(runs)!r}.")
    else:
        paths = [Path(path) for path in runs]
        names = [_group_of(path, (pattern,) if pattern else PATTERNS) for path in paths]
        if pattern and not any(name != path for name, path in zip(names, paths, strict=True)):
            raise ValueError(f"`pattern` {pattern!r} fits no name in {', '.join(map(str, paths))}.")
        groups = {}
        for short, path in zip(_shortened(names), paths, strict=True):
            groups.setdefault(short, []).append(path)
    every = [path.resolve() for paths in groups.values() for path in paths]
    if not every or not all(groups.values()):
        raise ValueError("`runs` must have at least one log directory in each group.")
    twice = sorted({str(path) for path in every if every.count(path) > 1})
    if twice:
        raise ValueError(f"`runs` has {', '.join(twice)} twice.")
    return groups


def _group_of(path: Path, patterns: Sequence[str]) -> Path:
    """The path without what tells runs of one group apart: a folder's name, or the end of one."""
    kept = []
    for part in path.parts:
        if any(fnmatch.fnmatchcase(part, pattern) for pattern in patterns):
            continue
        for pattern in patterns:
            end = re.search(rf"[-_.]?(?:{fnmatch.translate(pattern)})", part)
            if end and end.start() > 0:
                part = part[: end.start()]
                break
        kept.append(part)
    return Path(*kept)


def _shortened(names: Sequence[Path]) -> list[str]:
    """Without the folders that all of them have."""
    parts = [name.parts for name in names]
    common = 0
    while len({*parts}) > 1 and all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    if len({*parts}) == 1:
        common = max(0, len(parts[0]) - 1)
    return ["/".join(p[common:]) or "runs" for p in parts]


def _group(name: str, runs: Sequence[Sequence[RunCurves]], paths: tuple[Path, ...]) -> Group:
    curves: dict[str, list[tuple[Any, Any]]] = {}
    in_runs: dict[tuple[str, str], list[int]] = {}
    settled: dict[str, tuple[RunCurves, str]] = {}  # of each curve a part that has it, and its key there without prefix
    for parts in runs:
        for part in parts:
            for key, curve in _compared(part).items():
                curves.setdefault(part.prefix + key, []).append(curve)
                settled.setdefault(part.prefix + key, (part, key))
            for t in part.transitions:
                at = in_runs.setdefault((t.kind, t.curve), [])
                if t.is_firm:
                    at.append(t.step)
    pooled = {key: pool(own) for key, own in curves.items()}
    of_mean = {(t.kind, t.curve): t for t in _of_means(pooled, settled)}
    found = [
        Found(kind, curve, tuple(in_runs.get((kind, curve), [])), len(curves[curve]), of_mean.get((kind, curve)))
        for kind, curve in dict.fromkeys([*in_runs, *of_mean])
        if curve in curves
    ]
    found = [one for one in found if one.steps or (one.of_mean is not None and one.of_mean.is_firm)]
    return Group(name, paths, pooled, tuple(sorted(found, key=_place_of)), curves)


def _compared(part: RunCurves) -> Curves:
    """The curves that are compared, by key without prefix: those that its markers are about, or if none are, all.

    Where such a curve is drawn faintly, also the bold one.
    """
    drawn = [key for panel in part.panels for key in panel.lines.values()]
    seen = replace(part, followed=part.followed or drawn).seen()
    curves = {**seen.curves, **dict(seen.beside.values())}
    first = {key: steps < min(part.seams(part.prefix + key), default=math.inf) for key, (steps, _) in curves.items()}
    return {key: (x[first[key]], y[first[key]]) for key, (x, y) in curves.items() if first[key].any()}  # of one radius


def _of_means(pooled: Mapping[str, Pooled], settled: Mapping[str, tuple[RunCurves, str]]) -> list[Transition]:
    """The transitions of the mean curves."""
    turns: list[tuple[str, Turn, int]] = []
    prefixes = dict.fromkeys(part.prefix for part, _ in settled.values())
    for prefix in prefixes:
        groups: dict[str, dict[str, str]] = {}
        for full, (part, key) in settled.items():
            if part.prefix == prefix:
                groups.setdefault(part.group, {})[key] = full
        for keys in groups.values():
            part = settled[next(iter(keys.values()))][0]
            curves: Curves = {key: (pooled[full].steps, pooled[full].mean) for key, full in keys.items()}
            shown = _shown(part, curves, {key: pooled[full] for key, full in keys.items()})
            turns += [(prefix, turn, int(curves[turn.curve][0][-1])) for turn in supported(shown, curves)]
    made = [
        replace(turn.known_since(last, turn.certainty, provisional=False), curve=prefix + turn.curve)
        for prefix, turn, last in turns
    ]
    return sorted(made, key=in_order)


def _shown(part: RunCurves, curves: Curves, pooled: Mapping[str, Pooled]) -> list[Turn]:
    """What the mean curves show; of phases and ranks with the noise that the runs' differences tell."""
    if part.find is None:
        return []
    shown = part.find(curves)
    known: dict[str, list[Turn]] = {}
    for curve in {turn.curve for turn in shown}:
        noise = pooled[curve].noise
        own = {turn.kind for turn in shown if turn.curve == curve}
        if noise is None:
            continue
        if own <= {*PHASE_KINDS}:
            known[curve] = find_phases(*curves[curve], part.settings, curve, noise)
        elif own <= {*RANK_KINDS}:
            known[curve] = find_rank_turns(curve, *curves[curve], part.settings, noise)
    return [turn for turn in shown if turn.curve not in known] + [turn for some in known.values() for turn in some]


def _place_of(found: Found) -> float:
    return found.median if found.steps else float(found.of_mean.step) if found.of_mean is not None else math.inf


def _warn_of_radii(read: Mapping[Path, Sequence[RunCurves]]) -> None:
    """Local complexity is comparable at one radius only."""
    radii: dict[str, dict[float, Path]] = {}
    for path, parts in read.items():
        for part in parts:
            for step in seams(part.rows, part.prefix)[:1]:
                says = (
                    f"`{part.prefix}lc_radius` changes at step {step:,} of {path}: its rows are compared up to there."
                )
                warnings.warn(says, stacklevel=3)
        for row in (row for part in parts for row in part.rows[:1]):
            for key, value in row.items():
                if key.rpartition("/")[2].startswith("lc_radius") or key.startswith("lc_radius"):
                    radii.setdefault(key, {}).setdefault(float(f"{value:.6g}"), path)
    for key, by_radius in radii.items():
        if len(by_radius) > 1:
            listed = ", ".join(f"{radius:g} in {path}" for radius, path in by_radius.items())
            warnings.warn(
                f"`{key}` differs between the runs ({listed}): local complexity is comparable at one radius only. Pass "
                "`radius=` with one of these numbers to all of them.",
                stacklevel=3,
            )


# Tables


def _cells(group: Group, found: Found) -> tuple[str, ...]:
    steps = found.steps
    span = f"{min(steps):,} to {max(steps):,}" if len(steps) > 1 else ""
    mean = ""
    if found.of_mean is not None:
        mean = place(found.of_mean) + ("" if found.of_mean.is_firm else ", tentative")
    return (group.name, found.kind, found.curve, found.share, f"{found.median:,.0f}" if steps else "", span, mean)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    header, *others = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [header, ["---"] * 4 + ["---:"] * 3, *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[cell.replace(",", "") for cell in row] for row in rows])
    return text.getvalue()


_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _latex(rows: Sequence[Sequence[str]]) -> str:
    def escaped(cell: str) -> str:
        return "".join(_SPECIAL.get(c, rf"\{c}" if c in "#$%&_{}" else c) for c in cell)

    header, *others = (f"{' & '.join(map(escaped, row))} \\\\" for row in rows)
    body = [r"\begin{tabular}{llllrrr}", r"\toprule", header, r"\midrule", *others, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(body) + "\n"


# Picture


def _draw(figure: Figure, comparison: Comparison) -> Any:
    n = max(1, len(comparison.panels)), len(comparison.groups)
    axes = figure.subplots(*n, sharex=True, sharey="row", squeeze=False)
    last = max((float(p.steps[-1]) for group in comparison.groups for p in group.pooled.values()), default=1.0)
    axes[-1, 0].set_xscale("symlog", linthresh=1, linscale=0.3)
    axes[-1, 0].set_xlim(0, max(last, 2))
    line = _MARKER_POINTS * 1.4 / 72 / (0.75 * figure.get_figwidth() / n[1])  # of an axis
    for i, panel in enumerate(comparison.panels):
        for j, group in enumerate(comparison.groups):
            _draw_panel(axes[i, j], panel, group)
            _draw_markers(axes[i, j], panel, group, line)
        axes[i, 0].set_ylabel(panel.label)
    for j, group in enumerate(comparison.groups):
        runs = "1 run" if len(group.runs) == 1 else f"{len(group.runs)} runs"
        axes[0, j].set_title(f"{group.name} ({runs})", loc="left", parse_math=False)
        axes[-1, j].set_xlabel("optimizer steps")
    return axes


def _draw_panel(ax: Any, panel: Panel, group: Group) -> None:
    for name, key in panel.lines.items():
        if key not in group.pooled:
            continue
        mean, colour, n = group.pooled[key], panel.colour_of(key), len(group.curves[key])
        label = name if n == len(group.runs) else f"{name} ({n} of {len(group.runs)} runs)"
        ax.plot(mean.steps, mean.mean, color=colour, label=label, zorder=3)
        if len(group.runs) > 1:
            low, high = mean.mean - mean.spread, mean.mean + mean.spread
            ax.fill_between(mean.steps, low, high, color=colour, alpha=0.2, linewidth=0)
            for steps, values in group.curves[key][:_MOST_THIN]:
                ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.5, zorder=2)
    if panel.lines:
        ax.legend(fontsize=7, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_markers(ax: Any, panel: Panel, group: Group, line: float) -> None:
    """A line for all kinds of one curve at a step, and beside it their names, which keep clear of each other.

    Args:
        ax: of the panel.
        panel: whose curves are marked.
        group: whose transitions.
        line: height of a line of text, as a share of the axis of steps.
    """
    from matplotlib.patheffects import withStroke

    alike: dict[tuple[float, str], list[Found]] = {}
    for found in group.found:
        if found.curve in panel.keys:
            at = float(found.of_mean.step) if found.of_mean is not None else found.median
            alike.setdefault((at, found.curve), []).append(found)
    texts = [_names(every) for every in alike.values()]
    heights = [line * (1 + text.count("\n")) for text in texts]
    places = ax.transAxes.inverted().transform(ax.transData.transform([(at, 0.0) for at, _ in alike] or [(1, 0)]))[:, 0]
    centres = [place - height / 2 for place, height in zip(places, heights, strict=False)]  # left of its line
    beside = spread_out(centres, heights, 0, 1)
    for ((at, curve), every), text, x in zip(alike.items(), texts, beside, strict=True):
        colour, of_mean = panel.colour_of(curve), every[0].of_mean
        is_firm = of_mean is not None and of_mean.is_firm
        ax.axvline(at, color=colour, linewidth=1.2 if is_firm else 2.6, linestyle="--", zorder=2.2)
        if of_mean is not None and is_firm:
            ax.axvspan(*of_mean.interval, color=colour, alpha=0.08, linewidth=0)
        else:
            ax.axvline(at, color="white", linewidth=1.2, zorder=2.3)  # hollow
        upright: dict[str, Any] = {"rotation": 90, "va": "top", "ha": "center", "transform": ax.transAxes}
        drawn = ax.text(x, 0.98, text, fontsize=_MARKER_POINTS, color=colour, zorder=4, **upright)
        drawn.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


def _names(every: Sequence[Found]) -> str:
    """The kinds at one place, in how many runs each is, and of what attack."""
    eps = every[0].curve.partition("_eps")[2]
    of = f", eps {eps}" if eps else ""
    return "\n".join(f"{found.kind.replace('_', ' ')} ({found.share}{of})" for found in every)
