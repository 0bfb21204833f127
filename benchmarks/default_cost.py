"""What the default settings of the callbacks cost in a 100-epoch ResNet-18 run on CIFAR-10-sized data.

    python benchmarks/default_cost.py [--width 64] [--repeats 3]
    python benchmarks/default_cost.py --whole [--width 16] [--rows 3] [--part 1]

The first measures one training step (batch of 128, SGD with momentum) and the time of a few probe points of each
measure, all of them right before they are attacked, alternating, and prints the sums: rows of the default schedule
times points of a row times seconds a point, over steps times seconds a step. The second trains a narrower network for
so many steps that these rows of each callback are its share, and adds up all time in the callbacks: drawing the points,
trying out and a look at each step included.
What a run has once, its start, is also given by itself: in so short a run it weighs more than in the long one.
``--part 8`` takes an eighth of the steps and of the points of each row.
"""

from __future__ import annotations

import argparse
import statistics
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from models import PreActResNet18
from timing import seconds
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback
from lc_callback.functional import feature_ranks, local_complexity, robust_accuracy
from lc_callback.run.schedule import is_log_step

BATCH, EPOCHS, SAMPLES = 128, 100, 50_000
N_STEPS = EPOCHS * -(-SAMPLES // BATCH)
N_ROWS = sum(is_log_step(s) for s in range(N_STEPS + 1)) + (not is_log_step(N_STEPS))


POINTS = {  # of a row; "auto" gives local complexity the fewest, for this network has 139,000 units or more
    LocalComplexityCallback: 64,
    PGDRobustnessCallback: PGDRobustnessCallback().n_probes,
    FeatureRankCallback: FeatureRankCallback().n_probes,
}


class Classifier(LightningModule):
    """What is trained in ``--whole``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = PreActResNet18(width)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum. The labels are random: with lr=0.1 a wide network diverges."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def run(width: int, callbacks: list[object], steps: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(10_000, 3, 32, 32), torch.randint(0, 10, (10_000,))
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    with TemporaryDirectory() as folder:
        trainer = Trainer(default_root_dir=folder, max_steps=steps, callbacks=callbacks, logger=False, **quiet)
        trainer.fit(Classifier(width), loader, DataLoader(TensorDataset(x[:1000], y[:1000]), BATCH))


def whole(width: int, rows: int, part: int) -> None:
    each = N_STEPS // N_ROWS // part
    steps = rows * each
    kinds = (LocalComplexityCallback, PGDRobustnessCallback, FeatureRankCallback)
    schedule = [row * each + each // 2 for row in range(rows)]
    callbacks = [kind(schedule=schedule, n_probes=POINTS[kind] // part) for kind in kinds]
    at_start = ("setup", "on_train_start")
    hooks = (*at_start, "on_train_batch_end", "on_train_epoch_end", "on_train_end", "teardown")
    taken = {type(callback).__name__: dict.fromkeys(hooks, 0.0) for callback in callbacks}
    for callback in callbacks:
        for name in hooks:
            own, hook = taken[type(callback).__name__], getattr(callback, name)

            def timed(*args: Any, own: Any = own, name: str = name, hook: Any = hook, **named: Any) -> None:
                own[name] += seconds(lambda: hook(*args, **named))

            setattr(callback, name, timed)
    total = seconds(lambda: run(width, [*callbacks], steps))
    whole_of = {name: sum(own.values()) for name, own in taken.items()}
    start_of = {name: sum(own[hook] for hook in at_start) for name, own in taken.items()}
    training = total - sum(whole_of.values())
    print(f"ResNet-18 of width {width}, {steps} steps, {rows} rows of 1 / {part} of the points: {total:.0f} s")
    for name, start in start_of.items():
        print(f"  {name}: {whole_of[name]:.2f} s, of which {start:.2f} s at the start")
    # Of starts there is one, of rows as many as fit the steps.
    for length, starts in ((steps, 1.0), (N_STEPS, steps / N_STEPS)):
        shares = [(whole_of[name] - start + starts * start) / training for name, start in start_of.items()]
        each_of = ", ".join(f"{share:.1%}" for share in shares)
        print(f"  of the training in a run of {length} steps: {each_of}; together {sum(shares):.1%}")
    history, shown = callbacks[1].history, ("clean_acc", "robust_acc/test")
    last = {key: round(value, 3) for key, value in history.rows[-1].items() if key.startswith(shown)}
    print(f"  rows at {history.steps}; in the last {last}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--part", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.whole:
        whole(args.width or 16, args.rows, args.part)
        return
    width = args.width or 64
    torch.manual_seed(0)
    model = PreActResNet18(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    linear = {"radius": 0.005, "method": "linear"}  # as with radius="auto"
    right = torch.empty(64, dtype=torch.long)  # classes that it predicts, for what is wrong is not attacked
    measures = {  # points of a row, points that are timed, the measure
        "LocalComplexityCallback": (
            3 * POINTS[LocalComplexityCallback],
            16,
            lambda x, y: local_complexity(model, x, **linear),
        ),
        "PGDRobustnessCallback": (
            POINTS[PGDRobustnessCallback],
            len(right),
            lambda x, y: robust_accuracy(model, x, right, eps=PGDRobustnessCallback().eps),
        ),
        "FeatureRankCallback": (POINTS[FeatureRankCallback], BATCH, lambda x, y: feature_ranks(model, x)),
    }
    model.train()
    step()
    steps: list[float] = []
    points: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(args.repeats):
        steps.append(seconds(step))
        with torch.no_grad():
            right.copy_(model.eval()(x[: len(right)]).argmax(1))
        model.train()
        for name, (_, few, measure) in measures.items():
            points[name].append(seconds(lambda few=few, measure=measure: measure(x[:few], y[:few])) / few)
    training = N_STEPS * statistics.median(steps)
    print(
        f"ResNet-18 of width {width}, {EPOCHS} epochs of {SAMPLES}: {N_STEPS} steps x "
        f"{statistics.median(steps):.3f} s = {training / 3600:.2f} h"
    )
    for name, (n_points, _, _) in measures.items():
        total = N_ROWS * n_points * statistics.median(points[name])
        print(
            f"{name}: {N_ROWS} rows x {n_points} points x {statistics.median(points[name]):.3f} s = "
            f"{total / 3600:.2f} h, {total / training:.1%} of the training"
        )


if __name__ == "__main__":
    main()
