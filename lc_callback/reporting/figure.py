"""The timeline of a run: its curves on a logarithmic axis, its phases, and a numbered line at every transition."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lc_callback.reporting.annotations import (
    N_WRITTEN,
    Marker,
    Span,
    draw_cut_rows,
    draw_markers,
    draw_spans,
    is_spiky,
    number,
    phase_spans,
    rows_beyond,
    y_range,
)
from lc_callback.reporting.layout import Layout, elided, extent, wrapped
from lc_callback.reporting.notes import Notes
from lc_callback.run.files import beside
from lc_callback.run.seams import rows_at_one_radius
from lc_callback.run.timeline import Panel, RunCurves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["WIDTH", "draw", "image", "pixels_of", "save", "write_bytes", "write_png"]

#: Of a timeline, in inches.
WIDTH = 10.0
_DPI = 110
_HANDLE = 3.2  # of a legend: length of a line and room, times the size of the text
_ABOVE, _BELOW = 0.13, 0.03  # of the height of the curves: room for the numbers, and for a line at the lower limit
# Text stays text, so that it can be edited and searched.
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "lc_callback",
}
_UNDATED: dict[str, Any] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def draw(figure: Figure, parts: Sequence[RunCurves], title: str = "") -> list[Axes]:
    """Draw the parts of a run into an empty figure, one panel below the other.

    The axis of the steps is logarithmic from step 1 on; step 0 stands at its left end. The figure keeps its width and
    is made as high as the panels need. Below 5.5 inches the legends stand under the panels.

    Args:
        figure: an empty figure.
        parts: what each measure saw.
        title: above all; by default the models that were measured.

    Returns:
        The axes, one for each panel.
    """
    last = max((row["step"] for part in parts for row in part.rows), default=1.0)
    markers = number(parts)
    drawn = [(part, panel) for part in parts for panel in part.panels] or [(RunCurves([], [], []), Panel("", {}))]
    layout = _layout(figure.get_figwidth(), drawn, markers)
    heading = wrapped(title or _models(parts), layout.width - 2 * layout.left, 1.15 * layout.text)
    # A part without phases of its own has those of the first that has some.
    phases = [phase_spans(part.transitions, rows_at_one_radius(part.rows, part.prefix)) for part, _ in drawn]
    first = next((i for i, found in enumerate(phases) if found), 0)
    blocks: list[_Block] = []
    named: Sequence[Span] = []
    for (part, panel), own in zip(drawn, phases, strict=True):
        source, spans = (part, own) if own else (drawn[first][0], phases[first])
        shown = [m for m in markers if m.is_of(part, panel) or (m.is_phase and m.part is source)]
        blocks.append(_Block(part, panel, shown, spans, named=spans != named, layout=layout))
        named = spans
    top = 0.6 * layout.line + 1.35 * layout.line * len(heading)
    axis, ticks = 3.1 * layout.line, 0.5 * layout.line  # under the last panel, and under the others
    figure.set_figheight(top + sum(block.above + block.inner + ticks + block.below for block in blocks) + axis - ticks)
    axes: list[Axes] = []
    down = top
    for block in blocks:
        is_last = block is blocks[-1]
        axes.append(_empty_axes(figure, layout, down + block.above, block.inner, axes[0] if axes else None))
        _axis_of_steps(axes[-1], last, layout, is_last)
        block.draw(axes[-1], axis if is_last else ticks)
        down += block.above + block.inner + ticks + block.below
    if heading:
        pad = 72 * (0.3 * layout.line + blocks[0].above)
        axes[0].set_title("\n".join(heading), loc="left", pad=pad, fontsize=layout.text * 1.15, parse_math=False)
    return axes


def _models(parts: Sequence[RunCurves]) -> str:
    return ", ".join(dict.fromkeys(part.model for part in parts if part.model))


def _empty_axes(figure: Figure, layout: Layout, down: float, height: float, shared: Axes | None) -> Axes:
    """Axes that begin so many inches below the upper edge."""
    whole = figure.get_figheight()
    place = (layout.left / layout.width, 1 - (down + height) / whole, layout.inner / layout.width, height / whole)
    return figure.add_axes(place, sharex=shared)


def _axis_of_steps(ax: Axes, last: float, layout: Layout, labelled: bool) -> None:
    ax.set_xscale("symlog", linthresh=1, linscale=0.3)
    ax.set_xlim(0, max(last, 2))
    ax.tick_params(labelsize=layout.text, labelbottom=labelled, length=0.35 * layout.text)
    if labelled:
        ax.set_xlabel("optimizer steps", fontsize=layout.text, labelpad=0.15 * layout.text)


def _layout(width: float, drawn: Sequence[tuple[RunCurves, Panel]], markers: Sequence[Marker]) -> Layout:
    """With room for the widest number and the widest entry of a legend."""
    layout = Layout(width)
    highest = [y_range(part, panel)[:2] for part, panel in drawn]
    numbers = [f"{end:.0f}" if high - low > 5 else "0.00" for low, high in highest for end in (low, high)]
    lines = [line for part, panel in drawn for lines in _key(part, panel, markers) for line in lines]
    return replace(
        layout,
        numbers=max(extent(text, layout.text) for text in numbers),
        legend=max((extent(line, layout.text) for line in lines), default=0.0) + _HANDLE * layout.text / 72,
    )


def _key(part: RunCurves, panel: Panel, markers: Sequence[Marker]) -> list[list[str]]:
    """The entries of a legend, each in its lines."""
    curves = [[name] for name in panel.lines] + ([[panel.faint_name]] if panel.faint else [])
    return curves + [marker.lines for marker in markers if marker.is_of(part, panel)]


class _Block:
    """A panel with its legend and its caption.

    Args:
        part: has the panel.
        panel: what to draw.
        markers: its own, and the phases that it shows.
        spans: the phases to shade.
        named: put their names above it.
        layout: sizes.
    """

    def __init__(
        self,
        part: RunCurves,
        panel: Panel,
        markers: Sequence[Marker],
        spans: Sequence[Span],
        named: bool,
        layout: Layout,
    ) -> None:
        self._part, self._panel, self._markers, self._layout = part, panel, markers, layout
        self._spans, self._named = spans, named
        low, high, is_cut = y_range(part, panel)
        room = high - low
        self._limits = low - _BELOW * room, high + (_ABOVE + (0.1 if is_cut else 0.0)) * room
        self._cut = rows_beyond(part, panel, self._limits)
        key = _key(part, panel, markers)
        n_curves = len(panel.lines) + bool(panel.faint)
        self._legends = [_Legend(key[:n_curves], layout), _Legend(key[n_curves:], layout)]
        legends = sum(legend.height for legend in self._legends)
        self._caption = wrapped(self._text(), 0.97 * layout.inner, layout.small)
        #: Heights in inches: of what stands above the axes, of these, and of what stands under them and their numbers.
        self.above = 1.3 * layout.small_line if named else 0.0
        self.inner = layout.panel if layout.narrow else max(layout.panel, legends)
        self._legend_below = legends + 0.3 * layout.line if layout.narrow and legends else 0.0
        self.below = self._legend_below + len(self._caption) * layout.small_line + layout.gap

    def draw(self, ax: Axes, axis: float) -> None:
        """Draw into the axes, under which the numbers of the steps and their label take so many inches."""
        layout = self._layout
        ax.set_ylim(*self._limits)
        draw_spans(ax, self._spans, layout, self._named)
        curves = _curves(ax, self._part, self._panel, self._cut, layout)
        markers = draw_markers(ax, self._part, self._panel, self._markers, layout)
        draw_cut_rows(ax, self._part, self._panel, self._cut, layout)
        self._axis_of_values(ax)
        if layout.narrow:
            first, second = self._legends
            first.draw(ax, curves, (0.0, -axis / self.inner))
            if markers and (above := ax.get_legend()) is not None:
                ax.add_artist(above)  # which would else be replaced
            second.draw(ax, markers, (0.0, -(axis + first.height) / self.inner))
        else:
            _Legend(_key(self._part, self._panel, self._markers), layout).draw(
                ax, [*curves, *markers], (1 + layout.text / 72 / layout.inner, 1.0)
            )
        if self._caption:
            ax.annotate(
                "\n".join(self._caption),
                (0, 0),
                (0, -72 * (axis + self._legend_below)),
                xycoords="axes fraction",
                textcoords="offset points",
                va="top",
                fontsize=layout.small,
                color="0.35",
                linespacing=1.15,
                gid="caption",
                parse_math=False,
            )

    def _text(self) -> str:
        steps = {step for _, step in self._cut}
        farthest = ", the farthest with its value" if len(steps) > N_WRITTEN else ""
        thin = "; thin: to rows at which one layer spikes" if is_spiky(self._part, self._cut) else ""
        cut = f"Arrow: a row beyond the axis{farthest}{thin}."
        gaps = self._gaps()
        own = [marker.found for marker in self._markers if marker.is_of(self._part, self._panel)]
        has_interval = any(found.is_firm and len({*found.interval}) > 1 for found in own)
        tinted = "Tinted: 95\u00a0% interval of a marker." if has_interval else ""
        all_firm = all(found.is_firm for found in own)
        hollow = "" if all_firm else "Hollow, with a question mark: noise alone might look like this."
        later = "~: later rows may still move it." if any(found.provisional for found in own) else ""
        return " ".join(filter(None, [self._panel.caption, gaps, cut if self._cut else "", tinted, hollow, later]))

    def _gaps(self) -> str:
        """What the gaps are at which the radius changes."""
        at = sorted({step for key in self._panel.keys for step in self._part.seams(key)})
        if not at:
            return ""
        radii = [row[f"{self._part.prefix}lc_radius"] for row in self._part.rows if row["step"] in at]
        changes = ", ".join(f"{radius:.4g} from step {step:,} on" for step, radius in zip(at, radii, strict=True))
        return f"Gap: another radius, {changes}; counts are comparable at one radius only."

    def _axis_of_values(self, ax: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        layout = self._layout
        label = wrapped(self._panel.label, 0.95 * self.inner, layout.text)
        ax.set_ylabel("\n".join(label), fontsize=layout.text, linespacing=1.1, parse_math=False)
        ax.yaxis.set_label_coords(-(layout.left - 0.3 * layout.line) / layout.inner, 0.5)
        ax.yaxis.label.set_verticalalignment("top")
        ax.yaxis.set_major_locator(MaxNLocator(4 if layout.narrow else 5, steps=[1, 2, 2.5, 5, 10]))
        ax.spines[["top", "right"]].set_visible(False)


class _Legend:
    """Entries in as many columns as there is room for.

    Args:
        key: the entries, each in its lines.
        layout: sizes.
    """

    def __init__(self, key: Sequence[Sequence[str]], layout: Layout) -> None:
        self._layout = layout
        handle = _HANDLE * layout.text / 72
        widest = max((extent(line, layout.text) for entry in key for line in entry), default=0.0) + handle
        self._columns = max(1, min(4, len(key), int(layout.inner / widest))) if layout.narrow else 1
        self._room = (layout.inner if layout.narrow else 1.02 * layout.right - 2.2 * layout.text / 72) - handle
        rows = -(-len(key) // self._columns)
        columns = [key[i : i + rows] for i in range(0, len(key), rows or 1)]
        #: In inches.
        self.height = layout.line * max((sum(map(len, column)) for column in columns), default=0)

    def draw(self, ax: Axes, entries: Sequence[Any], place: tuple[float, float]) -> None:
        """Draw it with its upper left corner at a place in the coordinates of the axes."""
        if not entries:
            return
        size = self._layout.text
        legend = ax.legend(
            entries,
            ["\n".join(elided(line, self._room, size) for line in entry.get_label().split("\n")) for entry in entries],
            frameon=False,
            loc="upper left",
            bbox_to_anchor=place,
            ncols=self._columns,
            fontsize=size,
            handlelength=1.7,
            handletextpad=0.6,
            labelspacing=0.3,
            columnspacing=1.2,
            borderpad=0.0,
            borderaxespad=0.0,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _curves(ax: Axes, part: RunCurves, panel: Panel, cut: Sequence[tuple[str, int]], layout: Layout) -> list[Any]:
    """Draw the curves and bands, thinly where several spikes are cut off. Returns entries for the legend."""
    from matplotlib.lines import Line2D

    lines: list[Any] = []
    # Where curves coincide, those below show at the edges of those above.
    widths = 0.16 * layout.text * np.linspace(1.25, 0.75, len(panel.lines))
    for wide, (name, key) in zip(widths, panel.lines.items(), strict=True):
        colour = panel.colour_of(key)
        steps, values = _column(part, key)
        gaps = part.seams(key)
        wide = 0.28 * layout.text if key == panel.strong else wide
        spikes = [(key, int(step)) in part.made_by for step in steps]
        if is_spiky(part, cut) and any(spikes):  # the curve is what lies between
            thin: dict[str, Any] = {"linewidth": 0.06 * layout.text, "alpha": 0.6, "zorder": 2.8}
            ax.plot(*_with_gaps(gaps, steps, values), color=colour, label=f"_{name}", **thin)
            steps, values = (np.delete(column, np.flatnonzero(spikes)) for column in (steps, values))
        whole: dict[str, Any] = {"color": colour, "linewidth": wide, "zorder": 3, "solid_capstyle": "round"}
        lines += ax.plot(*_with_gaps(gaps, steps, values), label=name, **whole)
        pieces = np.split(np.arange(len(steps)), np.searchsorted(steps, gaps))
        if alone := [int(piece[0]) + n for n, piece in enumerate(pieces) if len(piece) == 1]:  # behind n gaps
            lines[-1].set(marker=".", markevery=alone)
        if key in panel.bands:
            half = np.array([row.get(panel.bands[key], np.nan) for row in part.rows if key in row])
            half = half[np.isin(_column(part, key)[0], steps)]
            half[~np.isfinite(half)] = np.nan
            band = _with_gaps(gaps, steps, values - half, values + half)
            ax.fill_between(*band, color=colour, alpha=0.2, linewidth=0, zorder=2.1)
        if key in panel.faint:
            pale = _column(part, panel.faint[key])
            ax.plot(*pale, color=colour, linewidth=0.09 * layout.text, alpha=0.6, zorder=2.8, label=f"_{name}")
    if panel.faint:
        lines.append(Line2D([], [], color="0.5", linewidth=0.09 * layout.text, alpha=0.7, label=panel.faint_name))
    return lines


def _with_gaps(gaps: Sequence[int], steps: Any, *columns: Any) -> list[Any]:
    """The steps and the columns, with a NaN in these before the rows at the gaps, so that no line leads there."""
    where = np.searchsorted(steps, gaps)
    where = where[where < len(steps)]
    return [np.insert(steps, where, steps[where]), *(np.insert(column, where, np.nan) for column in columns)]


def _column(part: RunCurves, key: str) -> tuple[Any, Any]:
    rows = [row for row in part.rows if key in row]
    return np.array([row["step"] for row in rows]), np.array([row[key] for row in rows])


def image(parts: Sequence[RunCurves], title: str = "", width: float = WIDTH) -> tuple[np.ndarray[Any, Any], bytes]:
    """The timeline as pixels ``(H, W, 3)`` and as the bytes of a PNG file; ``width`` in inches of 110 pixels.

    The file holds its captions as text, too, see :class:`lc_callback.reporting.notes.Notes`.
    """
    return pixels_of(lambda figure: draw(figure, parts, title), width, Notes.of(parts).texts())


def pixels_of(
    draw_into: Callable[[Figure], Any], width: float = WIDTH, texts: dict[str, str] | None = None
) -> tuple[np.ndarray[Any, Any], bytes]:
    """What a function draws into an empty figure, likewise; ``texts`` are put into the file."""
    file = io.BytesIO()
    with _canvas(width) as canvas:
        draw_into(canvas.figure)
        canvas.print_png(file, metadata=texts)
    return np.asarray(canvas.buffer_rgba())[..., :3].copy(), file.getvalue()


@contextmanager
def _canvas(width: float) -> Iterator[Any]:
    """With an empty figure; no window and no state of pyplot."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a style for papers, with LaTeX say, is not for this
        matplotlib.rcParams.update(_SETTINGS)
        yield FigureCanvasAgg(Figure((width, 4), dpi=_DPI))


def save(parts: Sequence[RunCurves], path: Path, title: str = "", width: float = WIDTH) -> None:
    """Write the timeline to ``path``: a PNG, or by its suffix what else matplotlib writes, such as PDF or SVG.

    Args:
        parts: what each measure saw.
        path: of the file.
        title: above all; by default the models that were measured.
        width: of the picture, in inches. A column of a paper has 3.3, a page 6.8.

    Raises:
        ValueError: if matplotlib does not write files with this suffix, or for a width out of range.
    """
    if not 2 <= width <= 50:
        raise ValueError(f"`width` must be from 2 to 50 inches, but got {width!r}: a page has 6.8, a column 3.3.")
    if path.suffix.lower() in ("", ".png"):
        write_bytes(path, image(parts, title, width)[1])
        return
    kind = path.suffix.lower()
    with _canvas(width) as canvas:
        draw(canvas.figure, parts, title)
        file = io.BytesIO()
        canvas.figure.savefig(file, format=kind[1:], metadata=_UNDATED.get(kind))
    write_bytes(path, file.getvalue())


def write_png(path: Path, pixels: Any) -> None:
    """Write pixels ``(H, W, 3)`` to ``path``."""
    from PIL import Image

    with beside(path) as part:
        Image.fromarray(np.asarray(pixels)).save(part, format="PNG")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a picture that is drawn already."""
    with beside(path) as part:
        part.write_bytes(data)
