"""How the keys of a measure are drawn of which nothing is known but its files."""

from __future__ import annotations

from collections.abc import Sequence

from lc_callback.run.timeline import Panel

__all__ = ["panels_of_keys"]


def panels_of_keys(group: str, keys: Sequence[str]) -> list[Panel]:
    """One panel for the keys that begin with the group, and one for each other beginning, up to the last slash.

    Args:
        group: of the measure. Its seconds are not drawn.
        keys: of a row, without the prefix.

    Example::

        >>> from lc_callback.run.key_panels import panels_of_keys
        >>> panels = panels_of_keys("sharp", ["sharp/train", "sharp/test", "trace/train", "step_size", "sharp/seconds"])
        >>> [(panel.label, [*panel.lines]) for panel in panels]
        [('sharp', ['train', 'test']), ('trace', ['train']), ('step_size', ['step_size'])]
    """
    titles: dict[str, dict[str, str]] = {}
    for key in keys:
        if key in ("step", f"{group}/seconds"):
            continue
        title = group if key.startswith(f"{group}/") else key.rpartition("/")[0] or key
        titles.setdefault(title, {})[key.removeprefix(f"{title}/")] = key
    return [Panel(title, lines) for title, lines in titles.items()]
