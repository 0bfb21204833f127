"""The experiments on MNIST, the papers' own data: 1,000 images, as ``mnist_sweep.yaml`` says.

``REPORTED`` are those that docs/results.md reports; ``DEFINED`` are further ones, which it does not report yet.
"""

from __future__ import annotations

from typing import Any

from sweeps.columns import (
    LC,
    PGD,
    RAW,
    TEST,
    TRAIN,
    WEAK_PGD,
    Measure,
    agreement,
    at_start,
    by_step,
    falls_to,
    half_rise,
    highest,
    largest_ratio,
    last,
    lowest,
    milestone,
    phase,
    rank_turn,
    same_order,
    second_surge,
    step_of_highest,
)
from sweeps.experiment import Experiment, varied

STRONG_PGD, RANK, NC1 = "robust_acc/test_eps0.2", "effective_rank/last", "nc/nc1_train"
RANDOM = "lc/random"
TV, BOUNDARY, LOCAL_RANK = "lc_tv/train", "lc_boundary/train", "local_rank/effective_train"
KEYS = {
    "lc": [LC],
    "robust_acc": [TRAIN, TEST, PGD],
    "rank": [r"effective_rank/.*\d=last"],
}
COLLAPSE_KEYS = {"lc": [LC], "robust_acc": [TRAIN, TEST, PGD], "nc": [NC1, "nc/nc2_simplex_train", "nc/nc3_train"]}
INTERPOLATION = milestone("interpolation", TRAIN)
DELAYED = milestone("delayed_robustness", TRAIN, TEST, PGD)
MIGRATION = phase("migration_start")
COLLAPSED = falls_to(NC1, 0.1)
COLUMNS: dict[str, Measure] = {
    "LC at step 0": at_start(LC),
    "lowest to 200": lowest(LC, until=200),
    "first descent ends": phase("first_descent_end"),
    "highest since 25": highest(LC, since=25),
    "at": step_of_highest(LC, since=25),
    "migration starts": MIGRATION,
    "last LC": last(LC),
    "train acc. is 1": INTERPOLATION,
    "test acc., half": half_rise(TEST),
    "test acc.": last(TEST),
    "delayed robustness": DELAYED,
    "PGD(0.1), highest": highest(PGD),
    "PGD(0.1)": last(PGD),
}
COLLAPSE_COLUMNS: dict[str, Measure] = {
    "train acc. is 1": INTERPOLATION,
    "NC1 falls to 0.1": COLLAPSED,
    "migration starts": MIGRATION,
    "delayed robustness": DELAYED,
    "last NC1": last(NC1),
    "last NC2": last("nc/nc2_simplex_train"),
    "last NC3": last("nc/nc3_train"),
}
BOUND_COLUMNS: dict[str, Measure] = {
    "density of boundaries at step 0": at_start(BOUNDARY),
    "highest since 25": highest(BOUNDARY, since=25),
    "last": last(BOUNDARY),
    "TV at step 0": at_start(TV),
    "highest TV": highest(TV),
    "last TV": last(TV),
    "largest TV / density": largest_ratio(TV, BOUNDARY),
    "order of LC and TV since 1,000": same_order(LC, TV, since=1000),
    "of LC and PGD(0.1)": same_order(LC, PGD, since=1000),
    "of TV and PGD(0.1)": same_order(TV, PGD, since=1000),
    "local rank at step 0": at_start(LOCAL_RANK),
    "last local rank": last(LOCAL_RANK),
}
DEEP_COLUMNS: dict[str, Measure] = {
    "train acc. is 1": INTERPOLATION,
    "test acc., half": half_rise(TEST),
    "second surge": second_surge,
    "test acc.": last(TEST),
    "rank falls": rank_turn("rank_descent"),
    "falls again": rank_turn("second_rank_descent"),
    "tunnel": last("tunnel_length"),
}
CNN_COLUMNS: dict[str, Measure] = {
    "LC at step 0": at_start(LC),
    "lowest to 200": lowest(LC, until=200),
    "highest since 25": highest(LC, since=25),
    "last LC": last(LC),
    "random points, step 0": at_start(RANDOM),
    "their lowest to 200": lowest(RANDOM, until=200),
    "highest": highest(RANDOM, since=25),
    "last": last(RANDOM),
    "train acc. is 1": INTERPOLATION,
    "test acc.": last(TEST),
    "PGD(0.03), highest": highest(WEAK_PGD),
    "PGD(0.03)": last(WEAK_PGD),
    "PGD(0.1), highest": highest(PGD),
    "PGD(0.1)": last(PGD),
}
AUTOATTACK_KEY = f"autoattack/{PGD}"
ATTACKS = {
    "test accuracy, its 128 points": "autoattack/clean_acc/test",
    "AutoAttack(0.1)": AUTOATTACK_KEY,
    "AutoAttack(0.1), raw logits": f"autoattack/{RAW}",
    "PGD(0.1), 256 points": PGD,
}
PANELS = {"LC, train points": LC, "test accuracy": TEST, "accuracy, PGD(0.1)": PGD}
FIGURE2_PANELS = {
    "local complexity": {"train": LC, "test": "lc/test", "random": "lc/random"},
    "accuracy": {
        "train": TRAIN,
        "test": TEST,
        "PGD(0.06)": "robust_acc/test_eps0.06",
        "PGD(0.1)": PGD,
        "PGD(0.2)": STRONG_PGD,
    },
    "rank, last hidden layer": {"effective": RANK},
}
BOUND_PANELS = {
    "LC, r = 0.05": {"train": LC},
    "density of boundaries": {"train": BOUNDARY},
    "total variation": {"train": TV},
    "effective rank": {"local, of the Jacobian": LOCAL_RANK, "of the features": RANK},
    "accuracy": {"test": TEST, "PGD(0.1)": PGD, "PGD(0.2)": STRONG_PGD},
}

#: The runs of figure 2, which are the baseline of all others.
BASE = "--trainer.callbacks+=measures.LocalRank --trainer.callbacks.n_probes 16"
DECAY, SCALE = "model.optimizer.weight_decay", "model.network.init_scale"
SAM_WITH = (
    "--model.optimizer pytorch_optimizer.SAM --model.optimizer.base_optimizer torch.optim.AdamW "
    "--model.optimizer.dict_kwargs.lr 0.001 --model.optimizer.dict_kwargs.weight_decay {} "
    "--model.optimizer.dict_kwargs.fused true"
)
SGD_WITH = (
    "--model.optimizer torch.optim.SGD --model.optimizer.lr 0.1 --model.optimizer.momentum 0.9 "
    "--model.optimizer.weight_decay {}"
)
SAM, SGD = SAM_WITH.format("0.01"), SGD_WITH.format("0.0001")
BATCH_NORM = "--model.network.batch_norm true"
POOLED = "--data.pool 4 --model.network.inputs 49"
AUTOATTACK = (
    "--trainer.callbacks+=lc_callback.PGDRobustnessCallback --trainer.callbacks.attack AutoAttack "
    "--trainer.callbacks.eps [0.1] --trainer.callbacks.n_probes 128 --trainer.callbacks.raw true "
    "--trainer.callbacks.schedule [10,25,100,1000,3981,10000,19953,39811,63096,100000] "
    "--trainer.callbacks.log_key_prefix autoattack/"
)
DEEP = (
    "--model.network.width 400 --model.network.init_scale 8 --model.network.depth {} --data.n_train {} "
    "--rank.linear_probe true"
)
SOME_LAYERS = range(2, 24, 4)  # of twelve, each second: as many as colours tell apart
LAYERS_PANELS = {
    "rank": {f"layer {place // 2}": f"rank/network.{place}" for place in SOME_LAYERS},
    "accuracy": {"train": TRAIN, "test": TEST, "PGD(0.1)": PGD},
    "accuracy of a linear probe": {f"layer {place // 2}": f"linear_probe/network.{place}" for place in SOME_LAYERS},
}


def penalty(kind: str, weight: str, target: int, more: str = "") -> str:
    """A term of the loss at 25 points of each batch."""
    settings = {"radius": "0.5", "n_points": "25", "weight": weight, "target": target}
    named = " ".join(f"--model.penalty.{name} {value}" for name, value in settings.items())
    return f"--model.penalty penalties.{kind} {named}{more}"


def short(variants: dict[str, str], steps: int = 25_119, **arguments: Any) -> Experiment:
    """Three seeds of runs that see the migration begin and, with the standard initialisation, delayed robustness."""
    named: dict[str, Any] = {"seeds": 3, "keys": KEYS, "columns": COLUMNS, "panels": PANELS} | arguments
    return Experiment(named.pop("config", "mnist_sweep"), variants, steps, **named)


def of(setting: str, name: str, *values: object, default: object) -> dict[str, str]:
    """Variants of one setting; with its default it is the baseline."""
    return varied(setting, name, *values, default=default, base=BASE)


def deep(*settings: tuple[int, int]) -> Experiment:
    """*Deep Grokking*: networks of several depths with so many images, one seed each."""
    return short(
        {f"depth {depth}, {n:,} images": DEEP.format(depth, n) for depth, n in settings},
        100_000,
        seeds=1,
        keys=KEYS | {"rank": [r"rank/.*\d=last", "tunnel_length", "weight_norm/total"]},
        columns=DEEP_COLUMNS | {"migration starts": MIGRATION, "PGD(0.1)": last(PGD)},
        panels=PANELS | {"rank, last hidden layer": "rank/last", "weight norm": "weight_norm/total"},
    )


def layers(n: int) -> Experiment:
    """Figure 1 of *Deep Grokking*: one column of it, twelve layers with so many images."""
    return short(
        {f"depth 12, {n:,} images": DEEP.format(12, n)},
        100_000,
        seeds=1,
        keys={
            "robust_acc": [TRAIN, TEST, PGD],
            "rank": [
                *(f"{key}/network.{place}" for key in ("rank", "linear_probe") for place in SOME_LAYERS),
                *(r"rank/.*\d=last", "tunnel_length"),
            ],
        },
        columns=DEEP_COLUMNS,
        panels=LAYERS_PANELS,
        is_timeline=True,
    )


REPORTED = {
    "mnist_figure2": short(
        {"1,000 images": BASE},
        100_000,
        seeds=5,
        keys=KEYS | {"lc": ["lc/(train|test|random)"], "robust_acc": [TRAIN, TEST, "robust_acc/test_eps.*"]},
        panels=FIGURE2_PANELS,
        is_timeline=True,
    ),
    "mnist_bound": short(
        {"1,000 images": BASE},
        100_000,
        seeds=5,
        keys={
            "lc": [LC, "lc_density/train", BOUNDARY, TV],
            "robust_acc": [TEST, PGD, STRONG_PGD],
            "rank": [r"effective_rank/.*\d=last"],
            "local_rank": ["local_rank/.*train"],
        },
        columns=BOUND_COLUMNS,
        panels=BOUND_PANELS,
        is_timeline=True,
    ),
    "mnist_scale": short(
        of(SCALE, "scale {}", 1, 2, 4, 8, default=1),
        100_000,
        few={"scale 2": 1, "scale 4": 1},
        keys=KEYS | {"nc": [NC1]},
        columns=COLUMNS | {"NC1 falls to 0.1": COLLAPSED},
        panels=PANELS | {"NC1, train points": NC1},
    ),
    "mnist_batchnorm": short({"without": BASE, "BatchNorm": BATCH_NORM}),
    "mnist_weight_decay": short(of(DECAY, "decay {}", "0", "0.01", "0.1", "1", default="0.01")),
    "mnist_optimizer": short({"AdamW": BASE, "SAM (AdamW)": SAM, "SGD, momentum 0.9": SGD}),
    # The weights shrink by as much in a step as with AdamW and decays of 0, 0.01, 0.1 and 1.
    "mnist_sgd_decay": short(
        {f"SGD, decay {decay}": SGD_WITH.format(decay) for decay in ("0", "0.0001", "0.001", "0.01")}
    ),
    # With a decay of 0.01 see mnist_optimizer.
    "mnist_sam_decay": short({f"SAM, decay {decay}": SAM_WITH.format(decay) for decay in ("0", "0.1", "1")}),
    "mnist_collapse": short(
        {
            "standard": BASE,
            "BatchNorm": BATCH_NORM,
            "decay 0": f"--{DECAY} 0",
            "decay 0.1": f"--{DECAY} 0.1",
            "decay 1": f"--{DECAY} 1",
            "SAM (AdamW)": SAM,
            "SGD, momentum 0.9": SGD,
        },
        keys=COLLAPSE_KEYS,
        columns=COLLAPSE_COLUMNS,
        note=agreement(COLLAPSED, MIGRATION, ("the fall of NC1 to 0.1", "the start of the migration")),
        panels={"LC, train points": LC, "NC1": NC1, "NC3": "nc/nc3_train"},
    ),
    "mnist_causal": short(
        {
            "no penalty": BASE,
            "regions pushed away": penalty("RegionPenalty", "1e-4", 0),
            "slopes lowered": penalty("SlopePenalty", "1e-5", 0),
            "regions held": penalty("RegionPenalty", "1e-6", 8, " --model.penalty.hold true"),
        },
        19_953,
        keys=KEYS | {"lc": [LC, TV]},
        columns=COLUMNS | {"last TV": last(TV)},
        panels=PANELS | {"total variation": TV},
    ),
    "mnist_random_labels": short({"true labels": BASE, "random labels": "--data.random_labels true"}),
    "mnist_data_size": short(of("data.n_train", "{:,} images", 200, 1000, 10000, default=1000)),
    "mnist_depth": short(of("model.network.depth", "depth {}", 2, 4, 6, default=4)),
    "mnist_width": short(of("model.network.width", "width {:,}", 100, 200, 1000, default=200), few={"width 1,000": 1}),
    "mnist_batch": short(of("data.batch_size", "batch {:,}", 50, 200, 1000, default=200)),
    "mnist_dimensions": short({"784 pixels": BASE, "49 pixels": POOLED}),
    "mnist_autoattack": short(
        {"1,000 images": AUTOATTACK},
        100_000,
        seeds=1,
        keys=KEYS | {"autoattack_robust_acc": ["autoattack/clean_acc/test", "autoattack/robust_acc(_raw)?/.*_eps.*"]},
        note=by_step(ATTACKS, AUTOATTACK_KEY),
        panels=PANELS | {"accuracy, AutoAttack(0.1)": AUTOATTACK_KEY},
    ),
    "mnist_float64": short({"float32": BASE, "float64": "--trainer.precision 64-true"}, 100_000, seeds=1),
    "mnist_deep_grokking": deep(*((depth, n) for depth in (4, 8, 12) for n in (2000, 7000))),
    "mnist_layers_2000": layers(2000),
    "mnist_layers_7000": layers(7000),
    "fashion_cnn": short(
        {"CNN": "", "CNN, BatchNorm": BATCH_NORM},
        10_000,
        config="fashion_cnn",
        seeds=1,
        keys={"lc": [LC, RANDOM], "robust_acc": [TRAIN, TEST, WEAK_PGD, PGD]},
        columns=CNN_COLUMNS,
        panels={"LC, train points": LC, "LC, random points": RANDOM, "accuracy, PGD(0.03)": WEAK_PGD},
    ),
}
DEFINED = {
    "mnist_deep_grokking_5000": deep(*((depth, 5000) for depth in (4, 8, 12))),
}
