"""The experiments on the digits of scikit-learn, and on sums, which need no download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.columns import (
    LC,
    PGD,
    RAW,
    TEST,
    TRAIN,
    WEAK_PGD,
    at_end,
    at_half_rise,
    half_rise,
    highest,
    last,
    phase,
    rank_turn,
    reaches,
    second_surge,
    step_of_highest,
)
from sweeps.experiment import LC_COLUMNS, STANDARD_KEYS, Experiment, varied

PENALTY = "--model.penalty RegionPenalty --model.penalty.weight 1e-4 --model.penalty.n_points 25"


def short(variants: Mapping[str, str], config: str = "digits_mlp", **arguments: Any) -> Experiment:
    """Runs that see the migration of the MLP begin (2,512 to 4,467 with the standard initialisation), on 200 points."""
    cheaper = {name: f"--lc.n_probes 200 {text}".strip() for name, text in variants.items()}
    return Experiment(config, cheaper, 10_000, **arguments)


DIGITS = {
    "scale": Experiment("digits_mlp", varied("model.network.init_scale", "scale {}", 1, 2, 4, 6, 8, default=1), 32_000),
    "depth": short(varied("model.network.depth", "depth {}", 2, 4, 6, default=4)),
    "width": short(varied("model.network.width", "width {}", 20, 200, 500, default=200)),
    "batch": short(varied("data.batch_size", "batch {}", 16, 50, 200, 500, default=200)),
    "weight_decay": short(varied("model.optimizer.weight_decay", "decay {}", "0", "1e-4", "0.1", "1", default="0.1")),
    "optimizer": short(
        {
            "AdamW": "",
            "SAM (AdamW)": "--model.optimizer pytorch_optimizer.SAM --model.optimizer.base_optimizer torch.optim.AdamW "
            "--model.optimizer.dict_kwargs.lr 0.001 --model.optimizer.dict_kwargs.weight_decay 0.1 "
            "--model.optimizer.dict_kwargs.fused true",
            "SGD, momentum 0.9": "--model.optimizer torch.optim.SGD --model.optimizer.lr 0.1 "
            "--model.optimizer.momentum 0.9 --model.optimizer.weight_decay 0.001",
        }
    ),
    "init": short(varied("model.network.init", "{}", "torch", "kaiming", "orthogonal", default="torch")),
    "random_labels": short(
        varied("data.n_train", "{} images", 125, 1000),
        "digits_random_labels",
        columns={
            **LC_COLUMNS,
            "at random points": last("lc/random"),
            "train acc., half": half_rise(TRAIN),
            "train acc.": last(TRAIN),
        },
        panels={"LC, train points": LC, "LC, random points": "lc/random", "train accuracy": TRAIN},
    ),
    "data_size": short(varied("data.n_train", "{} images", 125, 500, 1000, default=500)),
    "batchnorm": short({"without": "", "BatchNorm": "--model.network.batch_norm true"}),
    "batchnorm_scale6": Experiment(
        "digits_mlp",
        {
            "without": "--model.network.init_scale 6",
            "BatchNorm": "--model.network.init_scale 6 --model.network.batch_norm true",
        },
        32_000,
    ),
    "causal": Experiment(
        "digits_mlp",
        {
            "no penalty": "--model.network.init_scale 6",
            "pushed away": f"--model.network.init_scale 6 {PENALTY} --model.penalty.target 0",
            "held": f"--model.network.init_scale 6 {PENALTY} --model.penalty.target 9 --model.penalty.hold true",
        },
        25_119,
        seeds=3,
        keys=STANDARD_KEYS | {"lc": [LC, "lc/test", "lc/random"], "robust_acc": [TRAIN, TEST, WEAK_PGD, PGD]},
        columns={
            "highest LC": highest(LC),
            "last LC": last(LC),
            "last LC, test points": last("lc/test"),
            "test acc., half": half_rise(TEST),
            "test acc.": last(TEST),
            "PGD(0.03), half": half_rise(WEAK_PGD),
            "PGD(0.03)": last(WEAK_PGD),
            "PGD(0.1), half": half_rise(PGD),
            "PGD(0.1) reaches 0.3": reaches(PGD, 0.3),
            "PGD(0.1), highest": highest(PGD),
            "PGD(0.1)": last(PGD),
        },
        panels={
            "LC, train points": LC,
            "LC, test points": "lc/test",
            "test accuracy": TEST,
            "accuracy, PGD(0.1)": PGD,
        },
    ),
    "cnn": Experiment("digits_cnn", {"CNN": "", "CNN, BatchNorm": "--model.network.batch_norm true"}, 10_000),
    "resnet": Experiment("digits_resnet", {"ResNet-18": ""}, 10_000),
    "modular": Experiment(
        "modular_addition",
        {"40 % of the pairs": ""},
        10_000,
        seeds=3,
        keys={
            "lc": [LC, "lc/test"],
            "robust_acc": [TRAIN, TEST, "robust_acc/.*_eps.*"],
            "rank": [r"rank/.*\d=last", "weight_norm/total"],
        },
        columns={
            "train acc., half": half_rise(TRAIN),
            "test acc., half": half_rise(TEST),
            "highest LC": highest(LC),
            "at": step_of_highest(LC),
            "migration starts": phase("migration_start"),
            "last LC": last(LC),
            "PGD(0.03), half": half_rise("robust_acc/test_eps0.03"),
            "PGD(0.03)": last("robust_acc/test_eps0.03"),
            "PGD(0.1), half": half_rise("robust_acc/test_eps0.1"),
            "PGD(0.1)": last("robust_acc/test_eps0.1"),
        },
        panels={
            "LC": {"train": LC, "test": "lc/test"},
            "accuracy": {
                "train": TRAIN,
                "test": TEST,
                "PGD(0.03)": "robust_acc/test_eps0.03",
                "PGD(0.1)": "robust_acc/test_eps0.1",
            },
        },
    ),
    "deep_grokking": Experiment(
        "deep_grokking",
        {
            **varied("model.network.depth", "depth {}", 4, 8, 12),
            "depth 4, 500 images": "--model.network.depth 4 --data.n_train 500",
        },
        12_000,
        few={"depth 12": 3},
        keys={
            "lc": [LC],
            "robust_acc": [TRAIN, TEST, PGD],
            "rank": [r"rank/.*\d", r"rank/.*\d=last", r"linear_probe/.*\d=last", "tunnel_length", "weight_norm/total"],
        },
        columns={
            "train acc., half": half_rise(TRAIN),
            "test acc., half": half_rise(TEST),
            "second surge": second_surge,
            "test acc.": last(TEST),
            "rank falls": rank_turn("rank_descent"),
            "falls again": rank_turn("second_rank_descent"),
            "tunnel": last("tunnel_length"),
            "rank there": at_half_rise("rank/last"),
            "norm there": at_half_rise("weight_norm/total", relative=True),
        },
        panels={
            "rank, last hidden layer": "rank/last",
            "weight norm": "weight_norm/total",
            "train accuracy": TRAIN,
            "test accuracy": TEST,
            "linear probe, last hidden layer": "linear_probe/last",
        },
    ),
    "robustness_real": Experiment(
        "robustness_real",
        {"no weight decay": ""},
        32_000,
        seeds=3,
        keys={
            "lc": [LC],
            "robust_acc": [TRAIN, TEST, "robust_acc(_raw)?/.*_eps.*"],
            "autoattack_robust_acc": ["autoattack/robust_acc(_raw)?/.*_eps.*"],
        },
        columns={
            "test acc.": at_end(TEST),
            "PGD(0.1), raw": at_end(RAW),
            "PGD(0.1)": at_end(PGD),
            "AutoAttack(0.1), raw": at_end(f"autoattack/{RAW}"),
            "AutoAttack(0.1)": at_end(f"autoattack/{PGD}"),
            "PGD(0.1), highest": highest(PGD),
            "raw, half": half_rise(RAW),
            "highest LC": highest(LC),
            "last LC": last(LC),
        },
        panels={
            "LC": {"train": LC},
            "accuracy": {
                "test": TEST,
                "PGD(0.1), raw logits": RAW,
                "PGD(0.1)": PGD,
                "AutoAttack(0.1)": f"autoattack/{PGD}",
            },
        },
    ),
}
