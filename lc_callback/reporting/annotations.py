"""What is drawn over the curves of a timeline: phases, numbered markers, and arrows to rows beyond the axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.outliers import lone_rows
from lc_callback.detection.transitions import Transition, in_order
from lc_callback.reporting.layout import Layout, extent, spread_out
from lc_callback.run.seams import pieces
from lc_callback.run.timeline import Panel, RunCurves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "N_WRITTEN",
    "Marker",
    "Span",
    "draw_cut_rows",
    "draw_markers",
    "draw_spans",
    "is_spiky",
    "number",
    "phase_spans",
    "rows_beyond",
    "y_range",
]

# The transitions of local complexity, in the order in which they come.
_PHASES = ("first_descent_end", "ascent_start", "migration_start", "migration_end")
_SHADES = {"first descent": "#e8f0fa", "ascent": "#fdf3dc", "region migration": "#e6f4e6"}
_RISES = 0.15  # of the range of the curve: what is less is no ascent
_DONE = 0.95  # of its movement: there a phase ends whose end was not found; what is left, that it has not begun
_SNAP = 0.1  # decades: a phase that ends so near to the last row goes on to it
_TOO_FAR = 1.0  # times the room of all other rows, above them: a lone row there is cut off
_BAND = 0.08  # opacity of an interval
_HOLLOW = 2.6  # width of a tentative line in points, white within
_NUMBERS_AT = 0.945  # of the height of a panel
_ALIKE = 0.1  # of a value: one that differs by less is not written beside it
#: Rows that are cut off, whose values one panel names; of more only the farthest.
N_WRITTEN = 4

Floats = NDArray[np.float64]


# Phases


@dataclass(frozen=True)
class Span:
    """A phase: its name, and the steps from and to which it is shaded."""

    name: str
    left: float
    right: float


def phase_spans(transitions: Sequence[Transition], rows: Sequence[Mapping[str, float]]) -> list[Span]:
    """The phases of local complexity, between firm transitions, each only as long as the curve moves.

    Args:
        transitions: of one part.
        rows: of the same.
    """
    found = {t.kind: t for t in transitions if t.kind in _PHASES and t.is_firm}
    if not found:
        return []
    descent, rise, start, end = (found[kind].step if kind in found else None for kind in _PHASES)
    steps, values = _curve(rows, next(iter(found.values())).curve)
    last = float(max((row["step"] for row in rows), default=1.0))
    spans = [] if descent is None else [Span("first descent", _begin(steps, -values, 0, descent), descent)]
    floor = 0 if descent is None else descent
    if start is not None:
        begin = _begin(steps, values, floor, start) if rise is None else rise
        if begin < start:
            spans.append(Span("ascent", begin, start))
        spans.append(Span("region migration", start, end if end is not None else _end(steps, -values, start, last)))
    elif rise is not None or _rises(steps, values, floor):
        begin = _begin(steps, values, floor, last) if rise is None else rise
        spans.append(Span("ascent", begin, _end(steps, values, begin, last)))
    return spans


def _curve(rows: Sequence[Mapping[str, float]], key: str) -> tuple[Floats, Floats]:
    """Finite steps and values, each the median of three rows."""
    points = [(row["step"], row[key]) for row in rows if np.isfinite(row.get(key, np.nan))]
    steps, values = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    if len(values) >= 3:
        values[1:-1] = np.median([values[:-2], values[1:-1], values[2:]], axis=0)
    return steps, values


def _rises(steps: Floats, values: Floats, begin: float) -> bool:
    later = values[steps >= begin]
    return len(later) > 1 and float(later.max() - later[0]) > _RISES * float(np.ptp(values))


def _begin(steps: Floats, rising: Floats, begin: float, end: float) -> float:
    """Where the greatest rise of a curve between both begins: where it is low for the last time before its top."""
    here = (steps >= begin) & (steps <= end)
    if not here.any():
        return begin
    steps, way = steps[here], rising[here]
    risen = way - np.minimum.accumulate(way)
    top = int(np.argmax(risen))
    low = np.flatnonzero(way[: top + 1] <= way[: top + 1].min() + (1 - _DONE) * risen[top])
    return float(steps[low[-1]]) if risen[top] > 0 and low[-1] > 0 else begin


def _end(steps: Floats, rising: Floats, begin: float, last: float) -> float:
    """Where a curve that rises from ``begin`` has made almost all of its way."""
    later = steps >= begin
    if later.sum() < 2:
        return last
    here, way = steps[later], rising[later] - rising[later][0]
    done = float(here[int(np.argmax(way >= _DONE * way.max()))]) if way.max() > 0 else last
    return last if np.log10((last + 1) / (done + 1)) < _SNAP else done


def draw_spans(ax: Axes, spans: Sequence[Span], layout: Layout, named: bool) -> None:
    """Shade phases; with ``named`` put their names above the panel."""
    for span in spans:
        ax.axvspan(span.left, span.right, color=_SHADES[span.name], linewidth=0, zorder=0)
    if not (named and spans):
        return
    edges = ax.transData.transform([(x, 0) for span in spans for x in (span.left, span.right)])
    inside = ax.transAxes.inverted().transform(edges)[:, 0]
    centres = [float(np.mean(np.clip(inside[i : i + 2], 0, 1))) for i in range(0, len(inside), 2)]
    widths = [(extent(span.name, layout.small) + 0.8 * layout.small / 72) / layout.inner for span in spans]
    for span, at in zip(spans, spread_out(centres, widths, 0, 1), strict=True):
        ax.text(at, 1.015, span.name, transform=ax.transAxes, ha="center", va="bottom", fontsize=layout.small, c="0.35")


# Markers


@dataclass(frozen=True)
class Marker:
    """A line at a step, for all transitions of one curve there that are alike in what they are sure of.

    Attributes:
        number: counts the markers of all panels in the order of their steps.
        step: where it stands.
        curve: key of the curve.
        kinds: of the transitions.
        part: what has the curve.
        found: one of the transitions.
    """

    number: int
    step: int
    curve: str
    kinds: tuple[str, ...]
    part: RunCurves
    found: Transition

    def is_of(self, part: RunCurves, panel: Panel) -> bool:
        """Whether the panel has its curve."""
        return self.part is part and self.curve in panel.keys

    @property
    def is_phase(self) -> bool:
        """Whether it stands in other panels, too."""
        return self.kinds[0] in _PHASES

    @property
    def lines(self) -> list[str]:
        """What it says, for the key: ``["3  robustness onset (eps 0.1): 700"]``, or a line for each kind.

        The kind of a tentative one has a question mark, the step of a provisional one a ``~``.
        """
        eps = self.curve.partition("_eps")[2]
        names = [kind.replace("_", " ") for kind in self.kinds]
        sure = "" if self.found.is_firm else "?"
        names[-1] += f"{sure}{f' (eps {eps})' if eps else ''}: {'~' if self.found.provisional else ''}{self.step:,}"
        return [f"{self.number}  {names[0]}", *(f"    {name}" for name in names[1:])]


def number(parts: Sequence[RunCurves]) -> list[Marker]:
    """The markers of all panels, numbered in the order of their steps."""
    alike: dict[tuple[int, str, int, str], list[Transition]] = {}
    for i, part in enumerate(parts):
        drawn = {key for panel in part.panels for key in panel.keys}
        for found in sorted((t for t in part.transitions if t.curve in drawn), key=in_order):
            alike.setdefault((found.step, found.curve, i, found.doubts), []).append(found)
    places = sorted(alike, key=lambda place: place[0])
    return [
        Marker(n, place[0], place[1], tuple(t.kind for t in alike[place]), parts[place[2]], alike[place][0])
        for n, place in enumerate(places, 1)
    ]


def draw_markers(ax: Axes, part: RunCurves, panel: Panel, markers: Sequence[Marker], layout: Layout) -> list[Any]:
    """A numbered line at each marker of the panel, a thin one at each of others. Returns those of the key.

    A marker of the panel has a band for its interval; a tentative one has two thin lines, hollow between, and a number
    without a frame.
    """
    at = ax.transAxes.inverted().transform(ax.transData.transform([(m.step, 0) for m in markers] or [(0, 0)]))[:, 0]
    size = 0.95 * layout.small
    widths = [(extent(f"{m.number}", size) + size / 72) / layout.inner for m in markers]
    places = spread_out(at[: len(markers)].tolist(), widths, 0, 1)
    entries = []
    for marker, place in zip(markers, places, strict=True):
        own = marker.is_of(part, panel)
        colour = "black" if marker.is_phase else panel.colour_of(marker.curve) or "0.3"
        if own:
            style = "-" if marker.is_phase else "--"
            line = ax.axvline(marker.step, color=colour, linewidth=1, linestyle=style, zorder=2.2)
            earliest, latest = marker.found.interval
            if not marker.found.is_firm:
                line.set_linewidth(_HOLLOW)
                ax.axvline(marker.step, color="white", linewidth=_HOLLOW - 1.4, zorder=2.3, gid="hollow")
            elif earliest < latest:
                ax.axvspan(earliest, latest, color=colour, alpha=_BAND, linewidth=0, zorder=0.5, gid="interval")
            line.set_label("\n".join(marker.lines))
            entries.append(line)
        else:
            ax.axvline(marker.step, color="black", linewidth=0.7, alpha=0.4, zorder=1)
        frame = 0.8 if marker.found.is_firm else 0.0
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "linewidth": frame}
        ax.text(
            place,
            _NUMBERS_AT,
            f"{marker.number}",
            transform=ax.transAxes,
            ha="center",
            va="center",
            fontsize=size,
            color="black" if own else "0.5",
            bbox=box if own else None,
            zorder=5,
            gid="number",
        )
    return entries


# Rows beyond the axis


def y_range(part: RunCurves, panel: Panel) -> tuple[float, float, bool]:
    """Of the vertical axis: from, to, and whether it is made for all rows but those that stand out.

    A lone row, or one at which a layer spikes, is cut off if it is so far from all other rows that these would have
    less than half of the axis.
    """
    values, lone, wide = [], [], []
    spikes: list[float] = []  # that layers made: if one is cut off, all are
    for key in panel.keys:
        for piece in pieces(part.rows, part.prefix):
            rows = [row for row in piece if key in row]
            alone = {*lone_rows([row[key] for row in rows])}
            for i, row in enumerate(rows):
                if (key, int(row["step"])) in part.made_by:
                    spikes.append(row[key])
                elif i in alone:
                    lone.append(row[key])
                elif np.isfinite(row[key]):
                    values.append(row[key])
                    half = row.get(panel.bands.get(key, ""), 0.0)
                    wide += [row[key] - half, row[key] + half] if np.isfinite(half) else []
    floor, ceiling = panel.limits
    low = min(values, default=0.0) if floor is None else floor
    high = max(values, default=1.0) if ceiling is None else ceiling
    room = max(high - low, 0.0)

    def is_far(value: float) -> bool:
        beyond = value - high if ceiling is None else 0.0, low - value if floor is None else 0.0
        return room > 0 and max(beyond) > _TOO_FAR * room

    values += [value for value in lone if not is_far(value)]
    values += [] if any(map(is_far, spikes)) else spikes
    cut = any(map(is_far, [*lone, *spikes]))
    if floor is None:
        low = max(min([low, *wide, *values]), min([low, *values]) - room)
    if ceiling is None:
        high = min(max([high, *wide, *values]), max([high, *values]) + room)
    if not high > low:
        high = low + (abs(low) or 1.0)
    return low, high, cut


def rows_beyond(part: RunCurves, panel: Panel, limits: tuple[float, float]) -> list[tuple[str, int]]:
    """The finite rows outside the axis as it is drawn, each as key and step; not at an edge that the panel gives."""
    bottom, top = (
        edge if given is None else sign * np.inf
        for edge, given, sign in zip(limits, panel.limits, (-1, 1), strict=True)
    )
    return [
        (key, int(row["step"]))
        for key in panel.keys
        for row in part.rows
        if np.isfinite(row.get(key, np.nan)) and not bottom <= row[key] <= top
    ]


def is_spiky(part: RunCurves, cut: Sequence[tuple[str, int]]) -> bool:
    """Whether several of the rows that are cut off are spikes of layers."""
    return len({step for key, step in cut if (key, step) in part.made_by}) > 1


def draw_cut_rows(ax: Axes, part: RunCurves, panel: Panel, cut: Sequence[tuple[str, int]], layout: Layout) -> None:
    """An arrow at the edge for each row beyond the axis; at the farthest ones their value, step and layer."""
    bottom, top = ax.get_ylim()
    values = {(key, int(row["step"])): row[key] for key, _ in cut for row in part.rows if key in row}
    for key, step in reversed(cut):  # the first curve's on top
        up = values[key, step] > top
        colour, at = panel.colour_of(key), ax.get_xaxis_transform()
        arrow: dict[str, Any] = {
            "marker": "^" if up else "v",
            "markersize": 0.75 * layout.text,
            "color": colour,
            "linestyle": "none",
        }
        ax.plot([step], [1.0 if up else 0.0], transform=at, clip_on=False, zorder=6, gid="cut", label="_cut", **arrow)
    taken: list[tuple[float, float, float]] = []
    middle = (bottom + top) / 2
    lone: dict[tuple[int, bool], list[tuple[str, float]]] = {}  # by step, and whether at the upper edge
    for key, step in cut:
        lone.setdefault((step, values[key, step] > top), []).append((key, values[key, step]))
    farthest = sorted(lone, key=lambda place: (-max(abs(value - middle) for _, value in lone[place]), place))
    for step, up in farthest if len(farthest) <= N_WRITTEN else farthest[:1]:
        own = lone[step, up]
        text = _in_words(step, own, part)
        x = float(ax.transAxes.inverted().transform(ax.transData.transform((step, 0)))[0])
        width, offset = extent(text, layout.small) / layout.inner, 0.6 * layout.text / 72 / layout.inner
        left = x + offset if x + offset + width <= 1 else max(0.0, x - offset - width)
        height = layout.small_line / layout.panel
        y = 0.83 if up else 0.05
        while any(abs(y - other) < 0.9 * height and left < b and a < left + width for a, b, other in taken):
            y += -height if up else height
        taken.append((left, left + width, y))
        box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5}
        ax.text(
            left,
            y,
            text,
            transform=ax.transAxes,
            va="bottom",
            fontsize=layout.small,
            zorder=6,
            gid="cut",
            parse_math=False,
            bbox=box,
        )


def _in_words(step: int, own: Sequence[tuple[str, float]], part: RunCurves) -> str:
    """What stands at an arrow: the values of all curves there, the step, and the layers."""
    written = [own[0][1]]
    written += [value for _, value in own[1:] if all(abs(value - other) > _ALIKE * abs(other) for other in written)]
    values = ", ".join(f"{value:,.4g}" for value in written)
    layers = dict.fromkeys(layer for key, _ in own if (layer := part.made_by.get((key, step))))
    return f"{values} at step {step:,}" + (f" ({', '.join(layers)})" if layers else "")
