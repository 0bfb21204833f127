"""A training that goes on with another radius: from its rows, its files, and in a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from lc_callback import LocalComplexityCallback, compare_runs
from lc_callback.callbacks import MEASURES
from lc_callback.reporting.figure import draw
from lc_callback.reporting.run_dir import read_run
from lc_callback.run.timeline import RunCurves
from tests.helpers import Classifier, loader, make_trainer, points

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LIMITS: dict[str, Any] = {"every_n_train_steps": 1, "n_probes": 8, "random_probes": False}
SEAM = 9  # the first row of the run that goes on


def fit(folder: Path, callback: LocalComplexityCallback, steps: int, resume: Path | None = None) -> Path:
    logger = CSVLogger(folder, name="", version="")
    trainer = make_trainer(folder, callback, max_steps=steps, logger=logger)
    trainer.fit(Classifier(), loader(points(32)), loader(points(32)), ckpt_path=resume)
    trainer.save_checkpoint(folder / "end.ckpt")
    return folder


def drawn(part: RunCurves) -> tuple[list[float], str]:
    """The steps at which the curve of the train points has a gap, and the caption."""
    (ax, *_) = draw(Figure(), [part])
    steps, values = (np.asarray(each, np.float64) for each in (ax.lines[0].get_xdata(), ax.lines[0].get_ydata()))
    (caption,) = [" ".join(text.get_text().split()) for text in ax.texts if text.get_gid() == "caption"]
    return steps[np.isnan(values)].tolist(), caption


RADII = {
    "another_number": (1.0, 2.0, [SEAM]),
    "the_same": (1.0, 1.0, []),
    "found_and_then_given": ("auto", 2.0, [SEAM]),
    "given_and_then_several": (1.0, [2.0, 4.0], []),
}


@pytest.mark.parametrize("prefix", ["", pytest.param("wide/", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RADII)
def test_a_run_that_goes_on_with_another_radius(name: str, prefix: str, tmp_path: Path) -> None:
    first, second, at = RADII[name]
    before = LocalComplexityCallback(radius=first, log_key_prefix=prefix, **LIMITS)
    end = fit(tmp_path / "before", before, SEAM - 1) / "end.ckpt"
    after = LocalComplexityCallback(radius=second, log_key_prefix=prefix, **LIMITS)
    folder = fit(tmp_path / "after", after, 2 * SEAM, end)
    (of_files,) = read_run(folder, MEASURES)
    for part in (after.part(), of_files):
        assert part.seams(f"{prefix}lc/train") == at
        gaps, caption = drawn(part)
        assert gaps == at
        assert (f"Gap: another radius, 2 from step {SEAM} on" in caption) == bool(at)
    assert of_files.panels == after.part().panels
    assert all(abs(found.step - SEAM) > 1 for found in after.transitions if found.is_firm)


def test_only_rows_of_the_first_radius_are_compared(tmp_path: Path) -> None:
    end = fit(tmp_path / "before", LocalComplexityCallback(radius=1.0, **LIMITS), SEAM - 1) / "end.ckpt"
    folder = fit(tmp_path / "seed_0", LocalComplexityCallback(radius=2.0, **LIMITS), 2 * SEAM, end)
    with pytest.warns(UserWarning, match=f"`lc_radius` changes at step {SEAM} of .*seed_0"):
        (group,) = compare_runs([folder]).groups
    assert group.pooled["lc/train"].steps.tolist() == [*range(SEAM)]
    (part,) = read_run(folder, MEASURES)
    assert group.pooled["lc/train"].mean.tolist() == [row["lc/train"] for row in part.rows[:SEAM]]
