"""The estimate of local complexity and the exact number of regions along training runs, round the same points.

    python benchmarks/lc_along_run.py [--init-scale 1 6] [--points 50] [--picture docs/accuracy_run.png]

The runs are those of ``examples/digits_grokking.py``. At log-spaced steps, round the first training points: the
estimate with 25 directions, the estimate with the first two of them, and in the square whose corners are the vertices
of those two, from ``slice_partition``, the units that switch and the regions. This is the comparison of figure 35 of
*Deep Networks Always Grok and Here is Why* (ICML 2024), where the regions are SplineCam's.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import matplotlib
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from lc_callback import detect_phases
from lc_callback.functional import cross_polytope_frame, local_complexity
from lc_callback.run.schedule import is_log_step

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from digits_grokking import DigitsMLP, batches, digits
from lc_accuracy import partition

matplotlib.use("Agg")
from matplotlib import pyplot as plt

KINDS = ("first_descent_end", "migration_start")
Floats = NDArray[np.float64]
CURVES = {
    "estimate, P = 25": {"color": "tab:blue"},
    "estimate, P = 2": {"color": "tab:orange"},
    "exact units in the square": {"color": "black", "linestyle": ":"},
    "exact regions in the square": {"color": "tab:red"},
}


class Snapshots(Callback):
    """Copies of the network at log-spaced steps."""

    def __init__(self) -> None:
        self.nets: dict[int, nn.Module] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The initialisation."""
        self.nets[0] = deepcopy(pl_module.net)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """What the step led to."""
        if is_log_step(trainer.global_step):
            self.nets[trainer.global_step] = deepcopy(pl_module.net)


def run(init_scale: float, steps: int, seed: int) -> dict[int, nn.Module]:
    seed_everything(seed, verbose=False)
    train, _ = digits()
    snapshots = Snapshots()
    trainer = Trainer(
        max_steps=steps,
        callbacks=[snapshots],
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(DigitsMLP(init_scale), batches(train, 200, steps))
    return snapshots.nets


def measure(net: nn.Module, x: Tensor, radius: float) -> Floats:
    """``(4,)``: the value of each curve, the mean over the points."""
    frame = cross_polytope_frame(64, 25, seed=0, dtype=torch.float64)
    estimates = [local_complexity(net, x, radius=radius, directions=some).mean for some in (frame, frame[:2])]
    found = [partition(net, point, frame[:2], radius) for point in x]
    return np.array([*estimates, np.mean([f.counts.sum() for f in found]), np.mean([f.n_regions for f in found])])


def report(steps: list[int], curves: Floats) -> None:
    """``curves``: ``(S, 4)``."""
    print("| step | " + " | ".join(CURVES) + " |\n" + "|---:" * (1 + len(CURVES)) + "|")
    for step, row in zip(steps, curves, strict=True):
        print(f"| {step:,} | " + " | ".join(f"{value:,.2f}" for value in row) + " |")
    heads = ["curve", "first descent ends", "highest after it", "migration starts", "last / highest"]
    heads += ["rank corr.", "of changes"]
    print("\n| " + " | ".join(heads) + " |\n|---" + "|---:" * 6 + "|")
    for name, curve in zip(CURVES, curves.T, strict=True):
        phases = {found.kind: found.step for found in detect_phases(steps, curve)}
        end, start = (f"{phases[kind]:,}" if kind in phases else "none" for kind in KINDS)
        top = max(range(len(steps)), key=lambda i: (steps[i] >= phases.get(KINDS[0], 0)) * curve[i])
        pairs = (curve, curves[:, -1]), (np.diff(curve), np.diff(curves[:, -1]))  # the curve and the regions
        agreement = [f"{spearmanr(*pair).statistic:.2f}" for pair in pairs]
        cells = [end, f"{steps[top]:,}", start, f"{curve[-1] / curve[top]:.2f}", *agreement]
        print(f"| {name} | " + " | ".join(cells) + " |")


def draw(path: Path, found: dict[tuple[float, float], tuple[list[int], Floats]]) -> None:
    scales, radii = (sorted({key[i] for key in found}) for i in (0, 1))
    size = (1 + 4 * len(scales), 0.9 + 2.3 * len(radii))
    fig, grid = plt.subplots(
        len(radii), len(scales), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for (scale, radius), (steps, curves) in found.items():
        axes = grid[radii.index(radius), scales.index(scale)]
        for (name, style), curve in zip(CURVES.items(), curves.T, strict=True):
            axes.plot(steps, curve / curve.max(), label=name, **style)
        axes.set_title(f"initialisation x {scale:g}, r = {radius:g}", fontsize=10)
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set(xlim=(0, steps[-1]), ylim=(0, 1.05))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("optimizer steps")
    fig.supylabel("mean over the points, as a share of its largest value", fontsize=10)
    fig.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(CURVES), frameon=False)
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init-scale", nargs="+", type=float, default=[1.0, 6.0])
    parser.add_argument("--radius", nargs="+", type=float, default=[0.05, 0.5])
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--steps", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    torch.set_num_threads(1)
    x = digits()[0].tensors[0][: args.points].double()
    found = {}
    for scale in args.init_scale:
        nets = run(scale, args.steps, args.seed)
        for radius in args.radius:
            curves = np.array([measure(net.double(), x, radius) for net in nets.values()])
            found[scale, radius] = list(nets), curves
            print(f"\nInitialisation x {scale:g}, seed {args.seed}, r = {radius:g}\n")
            report(*found[scale, radius])
    if args.picture:
        draw(args.picture, found)


if __name__ == "__main__":
    main()
