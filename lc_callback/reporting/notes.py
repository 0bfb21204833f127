"""What a timeline says and its rows do not: kept inside the picture, so that the rows can be drawn again with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lc_callback.detection.outliers import shares_in_columns
from lc_callback.run.seams import outliers_by_radius
from lc_callback.run.timeline import Panel, RunCurves

__all__ = ["Notes"]

_FIELD = "lc_callback"  # of the texts in a PNG file


@dataclass(frozen=True)
class Notes:
    """Models and captions by the first curve of a panel, layers of lone rows by curve and step, and what measures are.

    Of each measure, by the key of its seconds: its group, for `stable_rank/seconds` may be of `stable_rank`, or of
    `rank` with the prefix `stable_`; and its panels, for one of which only the files are there.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[tuple[str, int], str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    panels: Mapping[str, Sequence[Panel]] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Sequence[RunCurves]) -> Notes:
        """Those of a timeline."""
        return cls(
            {_first(panel): part.model for part in parts for panel in part.panels},
            {_first(panel): panel.caption for part in parts for panel in part.panels},
            {place: layer for part in parts for place, layer in part.made_by.items()},
            {_seconds(part): part.group for part in parts if part.group},
            {_seconds(part): part.panels for part in parts if part.group},
        )

    @classmethod
    def of_picture(cls, path: Path) -> Notes:
        """Those in a PNG file; none, if it is not there or has none that can be read."""
        from PIL import Image

        try:
            with Image.open(path) as picture:
                known = json.loads(picture.info[_FIELD])
            made_by = {(str(key), int(step)): str(layer) for key, step, layer in known["made_by"]}
            models, captions, groups = (
                {f"{key}": f"{text}" for key, text in known.get(name, {}).items()}
                for name in ("models", "captions", "groups")
            )
            panels = {f"{key}": [_panel(each) for each in own] for key, own in known.get("panels", {}).items()}
        except Exception:  # Pillow raises many kinds for a file that is damaged
            return cls()
        return cls(models, captions, made_by, groups, panels)

    def texts(self) -> dict[str, str]:
        """For a PNG file."""
        made_by = [[key, step, layer] for (key, step), layer in self.made_by.items()]
        known = {
            "models": dict(self.models),
            "captions": dict(self.captions),
            "made_by": made_by,
            "groups": dict(self.groups),
            "panels": {key: [asdict(panel) for panel in own] for key, own in self.panels.items()},
        }
        return {_FIELD: json.dumps(known)}

    def added_to(self, part: RunCurves) -> RunCurves:
        """The part with its captions and its model, and with the layers of lone rows that these or its columns tell."""
        panels = [replace(panel, caption=self.captions.get(_first(panel)) or panel.caption) for panel in part.panels]
        curves = [key for panel in panels for key in panel.keys]
        made_by = outliers_by_radius(part.rows, curves, shares_in_columns, part.prefix)
        made_by |= {place: layer for place, layer in self.made_by.items() if place[0] in curves}
        model = next((self.models[first] for panel in panels if (first := _first(panel)) in self.models), "")
        return replace(part, panels=panels, model=model, made_by=made_by)


def _seconds(part: RunCurves) -> str:
    return f"{part.prefix}{part.group}/seconds"


def _panel(fields: Mapping[str, Any]) -> Panel:
    """A panel as it was before it was written as JSON, which has no tuples."""
    known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Panel(**known)


def _first(panel: Panel) -> str:
    return next(iter(panel.lines.values()), "")
