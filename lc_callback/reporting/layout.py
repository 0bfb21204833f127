"""Where everything stands in a timeline: sizes for a width, the extent of texts, and texts that must not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Layout", "elided", "extent", "spread_out", "wrapped"]

_NARROW = 5.5  # inches; below it the legend stands under the panel
_LINE = 1.3  # times the size of a text


@dataclass(frozen=True)
class Layout:
    """Sizes of a timeline, in inches and, of texts, in points.

    Args:
        width: of the figure, in inches.
        numbers: width of the widest number at a vertical axis, in inches.
        legend: width of the widest legend, in inches.
    """

    width: float
    numbers: float = 0.3
    legend: float = 0.0

    @property
    def narrow(self) -> bool:
        """Whether the legends stand under the panels."""
        return self.width < _NARROW

    @property
    def text(self) -> float:
        """Size of the legend and of the numbers at the axes."""
        return min(7.5, max(5.5, 1.85 * self.width)) if self.narrow else min(13.0, 8.8 * math.sqrt(self.width / 10))

    @property
    def small(self) -> float:
        """Size of captions and of the numbers of markers."""
        return 0.9 * self.text

    @property
    def line(self) -> float:
        """Height of a line of the legend."""
        return _LINE * self.text / 72

    @property
    def small_line(self) -> float:
        """Height of a line of a caption."""
        return 1.2 * self.small / 72

    @property
    def left(self) -> float:
        """From the left edge to the panels: a label in two lines, and the numbers."""
        return min(3.6 * self.text / 72 + self.numbers, 0.3 * self.width)

    @property
    def right(self) -> float:
        """From the panels to the right edge: with the legends, if these stand there."""
        legend = 0.0 if self.narrow else min(self.legend + self.text / 72, 0.4 * self.width)
        return 1.2 * self.text / 72 + legend

    @property
    def inner(self) -> float:
        """Width of the panels."""
        return max(0.5, self.width - self.left - self.right)

    @property
    def panel(self) -> float:
        """Height of a panel."""
        return 1.35 if self.narrow else 17 * self.text / 72

    @property
    def gap(self) -> float:
        """Between what belongs to two panels."""
        return 1.5 * self.text / 72


def extent(text: str, points: float) -> float:
    """Width of a text of one line, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=points), ismath=False)[0]) / 72


def wrapped(text: str, width: float, points: float) -> list[str]:
    """The text in lines that are no wider than so many inches, where no word is wider."""
    if not text:
        return []
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and extent(longer, points) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def elided(text: str, width: float, points: float) -> str:
    """The text, or if it is wider than so many inches, its beginning and its end."""
    kept = len(text)
    short = text
    while kept > 4 and extent(short, points) > width:
        kept -= 1
        short = f"{text[: kept // 3]}…{text[len(text) - (kept - kept // 3) :]}"
    return short


def spread_out(centres: Sequence[float], widths: Sequence[float], low: float, high: float) -> list[float]:
    """Centres of intervals that do not overlap and lie between ``low`` and ``high``, near those that are given.

    The order stays. If all together are too wide, they are laid out evenly and overlap.
    """
    order = sorted(range(len(centres)), key=lambda i: centres[i])
    total, room = sum(widths), high - low
    scale = min(1.0, room / total) if total > 0 else 1.0
    sizes = [scale * width for width in widths]
    placed = list(centres)
    edge = low
    for i in order:
        placed[i] = max(centres[i], edge + sizes[i] / 2)
        edge = placed[i] + sizes[i] / 2
    edge = high
    for i in reversed(order):
        placed[i] = min(placed[i], edge - sizes[i] / 2)
        edge = placed[i] - sizes[i] / 2
    return placed
