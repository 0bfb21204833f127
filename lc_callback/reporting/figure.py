"""The timeline of a run: its curves on a logarithmic axis, its phases, and a labelled line at every transition."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lc_callback.timeline import Panel, Part
from lc_callback.transitions import Transition, in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "image", "pixels_of", "save", "write_png"]

_WIDTH, _HEIGHT = 10.0, 2.7  # inches, of a figure and of each panel
_SHADES = {"first descent": "#e8f0fa", "ascent": "#fdf3dc", "region migration": "#e6f4e6"}
_PHASES = ("first_descent_end", "migration_start", "migration_end")
_CLOSE = 0.026  # of the width of the panel: numbers are no nearer than this


def draw(figure: Figure, parts: Sequence[Part], title: str = "") -> list[Axes]:
    """Draw the parts of a run into an empty figure, one panel below the other.

    The axis of the steps is logarithmic from step 1 on; step 0 stands at its left end.

    Returns:
        The axes, one for each panel.
    """
    drawn = [(part, panel) for part in parts for panel in part.panels]
    figure.set_size_inches(_WIDTH, 0.9 + _HEIGHT * max(1, len(drawn)))
    figure.set_layout_engine("constrained")
    axes = list(figure.subplots(max(1, len(drawn)), 1, sharex=True, squeeze=False)[:, 0])
    last = max((row["step"] for part in parts for row in part.rows), default=1.0)
    axes[-1].set_xscale("symlog", linthresh=1, linscale=0.3)
    axes[-1].set_xlim(0, max(last, 2))
    axes[-1].set_xlabel("optimizer steps")
    of_parts = [{t.kind: t for t in part.transitions if t.kind in _PHASES} for part in parts]
    phases = next((found for found in of_parts if found), {})  # of several that follow local complexity, the first
    for ax in axes:
        _shade(ax, phases, last, labelled=ax is axes[0])
    for ax, (part, panel) in zip(axes, drawn, strict=False):
        own = [t for t in part.transitions if t.curve in panel.lines.values()]
        curves = _curves(ax, part, panel)
        entries = curves + _markers(ax, panel, own)
        ax.legend(handles=entries, frameon=False, loc="upper left", bbox_to_anchor=(1, 1.03), fontsize=8.5)
        for transition in phases.values():
            if transition not in own:
                ax.axvline(transition.step, color="black", linewidth=0.7, alpha=0.4)
    if title:
        axes[0].set_title(title, loc="left", pad=18)
    return axes


def _curves(ax: Axes, part: Part, panel: Panel) -> list[Any]:
    lines = []
    for i, (name, key) in enumerate(panel.lines.items()):
        rows = [row for row in part.rows if key in row]
        steps, values = np.array([row["step"] for row in rows]), np.array([row[key] for row in rows])
        colour = panel.colours[i % len(panel.colours)]
        lines += ax.plot(steps, values, color=colour, label=name, linewidth=1.5)
        if key in panel.bands:
            half = np.array([row.get(panel.bands[key], np.nan) for row in rows])
            ax.fill_between(steps, values - half, values + half, color=colour, alpha=0.2, linewidth=0)
    low, high = ax.get_ylim()
    low, high = (low if panel.limits[0] is None else panel.limits[0]), panel.limits[1] or high
    ax.set_ylim(low, high + 0.12 * (high - low))  # room for the numbers of the lines
    ax.set_ylabel(panel.label)
    ax.spines[["top", "right"]].set_visible(False)
    return lines


def _shade(ax: Axes, phases: dict[str, Transition], last: float, labelled: bool) -> None:
    descent, start, end = (phases[kind].step if kind in phases else None for kind in _PHASES)
    if descent is None and start is None:
        return
    spans: list[tuple[str, float, float]] = [("first descent", 0, descent)] if descent is not None else []
    spans.append(("ascent", descent or 0, last if start is None else start))
    if start is not None:
        spans.append(("region migration", start, last if end is None else end))
    for name, left, right in spans:
        ax.axvspan(left, right, color=_SHADES[name], linewidth=0, zorder=0)
        middle = float(np.mean(ax.transData.transform([[left, 0], [right, 0]])[:, 0]))
        if labelled:
            at = float(ax.transAxes.inverted().transform((middle, 0))[0])
            side = "right" if at > 0.9 else "left" if at < 0.1 else "center"
            at = {"right": 1.0, "left": 0.0}.get(side, at)
            ax.text(at, 1.01, name, transform=ax.transAxes, ha=side, va="bottom", fontsize=8, color="0.35")


def _markers(ax: Axes, panel: Panel, transitions: Sequence[Transition]) -> list[Any]:
    """A numbered line at each transition; those of one curve at one step share it. Returns entries for the legend."""
    colours = {key: panel.colours[i % len(panel.colours)] for i, key in enumerate(panel.lines.values())}
    lines: dict[tuple[int, str], list[str]] = {}
    for transition in sorted(transitions, key=in_order):
        lines.setdefault((transition.step, transition.curve), []).append(transition.kind)
    entries, taken = [], -1.0
    for number, ((step, curve), kinds) in enumerate(lines.items(), start=1):
        is_phase = kinds[0] in _PHASES
        colour, style = ("black", "-") if is_phase else (colours.get(curve, "0.3"), "--")
        eps = curve.partition("_eps")[2]
        names = ",\n    ".join(kind.replace("_", " ") for kind in kinds) + (f" (eps {eps})" if eps else "")
        line = ax.axvline(step, color=colour, linewidth=1, linestyle=style)
        line.set_label(f"{number}  {names}: {step:,}")
        entries.append(line)
        # Numbers of lines that almost touch stand side by side.
        at = ax.transAxes.inverted().transform(ax.transData.transform((step, 0)))[0]
        taken = max(float(at), taken + _CLOSE)
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "linewidth": 0.8}
        ax.text(taken, 0.955, str(number), transform=ax.transAxes, ha="center", va="center", fontsize=7, bbox=box)
    return entries


def image(parts: Sequence[Part], title: str = "") -> tuple[np.ndarray[Any, Any], bytes]:
    """The timeline as pixels ``(H, W, 3)`` and as the bytes of a PNG file."""
    return pixels_of(lambda figure: draw(figure, parts, title))


def pixels_of(draw_into: Callable[[Figure], Any]) -> tuple[np.ndarray[Any, Any], bytes]:
    """What a function draws into an empty figure, likewise."""
    file = io.BytesIO()
    with _canvas() as canvas:
        draw_into(canvas.figure)
        canvas.print_png(file)
    return np.asarray(canvas.buffer_rgba())[..., :3].copy(), file.getvalue()


@contextmanager
def _canvas() -> Iterator[Any]:
    """With an empty figure; no window and no state of pyplot."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a style for papers, with LaTeX say, is not for this
        yield FigureCanvasAgg(Figure(dpi=110))


def save(parts: Sequence[Part], path: Path, title: str = "") -> None:
    """Write the timeline to ``path``: a PNG, or by its suffix what else matplotlib writes, such as PDF or SVG.

    Raises:
        ValueError: if matplotlib does not write files with this suffix.
    """
    if path.suffix.lower() in ("", ".png"):
        path.write_bytes(image(parts, title)[1])
        return
    with _canvas() as canvas:
        draw(canvas.figure, parts, title)
        canvas.figure.savefig(path)


def write_png(path: Path, pixels: Any) -> None:
    """Write pixels ``(H, W, 3)`` to ``path``."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)
