"""The experiments on MNIST, the papers' own data: 1,000 images, as ``mnist_sweep.yaml`` says."""

from __future__ import annotations

from typing import Any

from sweeps.columns import (
    LC,
    PGD,
    TEST,
    TRAIN,
    Measure,
    at_start,
    half_fall,
    half_rise,
    highest,
    last,
    lowest,
    milestone,
    phase,
    step_of_highest,
)
from sweeps.experiment import Experiment, varied

STRONG_PGD = "robust_acc/test_eps0.2"
KEYS = {
    "lc": [LC, "lc/test", "lc/random"],
    "robust_acc": [TRAIN, TEST, PGD, STRONG_PGD],
    "rank": [r"effective_rank/.*\d=last", r"rank/.*\d=last", "weight_norm/total"],
    "nc": ["nc/nc1_train", "nc/nc2_simplex_train", "nc/nc3_train"],
}
FULL_KEYS = {
    **KEYS,
    "lc": ["lc(_ci99|_density|_boundary|_tv)?/(train|test|random)"],
    "robust_acc": [TRAIN, TEST, "robust_acc/test_eps.*"],
    "nc": ["nc/nc1_(train|test)", "nc/nc2_(simplex|norms)_train", "nc/nc3_train", "nc/nc4_(train|test)"],
    "local_rank": ["local_rank/.*"],
}
INTERPOLATION = milestone("interpolation", TRAIN)
DELAYED = milestone("delayed_robustness", TRAIN, TEST, PGD)
COLUMNS: dict[str, Measure] = {
    "LC at step 0": at_start(LC),
    "lowest to 200": lowest(LC, until=200),
    "first descent ends": phase("first_descent_end"),
    "highest since 25": highest(LC, since=25),
    "at": step_of_highest(LC, since=25),
    "migration starts": phase("migration_start"),
    "last LC": last(LC),
    "train acc. is 1": INTERPOLATION,
    "test acc., half": half_rise(TEST),
    "test acc.": last(TEST),
    "delayed robustness": DELAYED,
    "PGD(0.1), highest": highest(PGD),
    "PGD(0.1)": last(PGD),
}
COLLAPSE: dict[str, Measure] = {
    "train acc. is 1": INTERPOLATION,
    "migration starts": phase("migration_start"),
    "NC1, half of the late fall": half_fall("nc/nc1_train", INTERPOLATION),
    "last NC1": last("nc/nc1_train"),
    "last NC2": last("nc/nc2_simplex_train"),
    "last NC3": last("nc/nc3_train"),
    "delayed robustness": DELAYED,
}
PANELS = {"LC, train points": LC, "test accuracy": TEST, "accuracy, PGD(0.1)": PGD, "NC1, train points": "nc/nc1_train"}


def short(variants: dict[str, str], config: str = "mnist_sweep", **arguments: Any) -> Experiment:
    """Runs that see the migration begin, and delayed robustness with the standard initialisation."""
    named: dict[str, Any] = {"seeds": 3, "keys": KEYS, "columns": COLUMNS, "panels": PANELS} | arguments
    return Experiment(config, variants, 39_811, **named)


DECAY, SCALE = "model.optimizer.weight_decay", "model.network.init_scale"
SAM = (
    "--model.optimizer pytorch_optimizer.SAM --model.optimizer.base_optimizer torch.optim.AdamW "
    "--model.optimizer.dict_kwargs.lr 0.001 --model.optimizer.dict_kwargs.weight_decay 0.01 "
    "--model.optimizer.dict_kwargs.fused true"
)
SGD = (
    "--model.optimizer torch.optim.SGD --model.optimizer.lr 0.1 --model.optimizer.momentum 0.9 "
    "--model.optimizer.weight_decay 0.0001"
)
PENALTY = "--model.penalty RegionPenalty --model.penalty.radius 0.5"
MNIST = {
    "mnist_figure2": Experiment("mnist_sweep", {"AdamW": ""}, 100_000, keys=FULL_KEYS, columns=COLUMNS, panels={}),
    "mnist_scale": Experiment(
        "mnist_sweep", varied(SCALE, "scale {}", 1, 8, default=1), 100_000, seeds=3, keys=KEYS, columns=COLUMNS
    ),
    "mnist_batchnorm": short({"without": "", "BatchNorm": "--model.network.batch_norm true"}),
    "mnist_weight_decay": short(varied(DECAY, "decay {}", "0", "0.01", "0.1", "1", default="0.01")),
    "mnist_optimizer": short({"AdamW": "", "SAM (AdamW)": SAM, "SGD, momentum 0.9": SGD}),
    "mnist_depth": short(varied("model.network.depth", "depth {}", 2, 4, 6, default=4)),
    "mnist_width": short(varied("model.network.width", "width {}", 100, 200, 1000, default=200)),
    "mnist_data_size": short(varied("data.n_train", "{} images", 200, 1000, 10000, default=1000)),
    "mnist_random_labels": short({"true labels": "", "random labels": "--data.random_labels true"}),
    "mnist_batch": short(varied("data.batch_size", "batch {}", 50, 200, 1000, default=200)),
}
