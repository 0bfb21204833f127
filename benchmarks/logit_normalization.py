"""Which logits should an attack see? The experiment behind ``normalize_logits``, its table and its picture.

    python benchmarks/logit_normalization.py [--picture docs/logit_scale.png]

Digits classifiers are attacked with raw logits at several scales (median margin 1 to 1000: the same decisions) and with
candidates that do not depend on the scale. An attack is the better, the lower the accuracy it leaves. The picture
follows one run without weight decay, where logits grow for ever.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lc_callback.engine.adversarial import attacks
from lc_callback.functional import robust_accuracy, robustness

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SEEDS = (0, 1)
ATTACKS = {"PGD": 0.1, "PGDL2": 0.8, "APGD": 0.1}
Logits = Callable[[Tensor, float], Tensor]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    return x[:500], y[:500], x[500:900], y[500:900]


def mlp(scale: float = 1.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([64, 200, 200, 200, 10]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    return net


def cnn() -> nn.Sequential:
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def train(
    net: nn.Sequential, steps: int, weight_decay: float, loss: str, look: Callable[[int], None] | None = None
) -> nn.Sequential:
    x, y, _, _ = digits()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=weight_decay, fused=True)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps + 1):
        if look is not None:
            look(step)
        chosen = torch.randint(0, len(x), (200,), generator=generator)
        logits, classes = net(x[chosen]), y[chosen]
        target = F.one_hot(classes, 10).float()
        value = F.cross_entropy(logits, classes) if loss == "ce" else F.mse_loss(logits, target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return net


def at_margin(m: float) -> Logits:
    """Raw logits, scaled to a median margin of ``m``."""
    return lambda z, margin: z * (m / margin)


def lowered(sharpness: float) -> Logits:
    """What the library does, with another sharpness."""

    def logits(z: Tensor, margin: float) -> Tensor:
        kept, attacks._SHARPNESS = attacks._SHARPNESS, sharpness
        try:
            return attacks.lowered_confidence(z, margin)
        finally:
            attacks._SHARPNESS = kept

    return logits


CANDIDATES: dict[str, Logits] = {
    **{f"raw, margin {m}": at_margin(m) for m in (1, 3, 10, 30, 100, 1000)},
    "over detached spread": lambda z, _: (z - z.mean(1, keepdim=True)) / z.detach().std(1, keepdim=True),
    "10 x over detached range": lambda z, _: 10 * z / (z.detach().amax(1) - z.detach().amin(1))[:, None],
    **{f"lowered, sharpness {k}": lowered(k) for k in (1, 3, 10, 30)},
}


def accuracy(net: nn.Module, attack: str, eps: float, logits: Logits) -> float:
    _, _, x, y = digits()
    kept, robustness.lowered_confidence = robustness.lowered_confidence, logits
    try:
        found = [robust_accuracy(net, x, y, eps=eps, attack=attack, seed=seed).robust_acc[eps] for seed in SEEDS]
    finally:
        robustness.lowered_confidence = kept
    return statistics.mean(found)


def table() -> None:
    torch.manual_seed(0)
    nets = {
        "MLP, CE": train(mlp(), 5_000, 0.0, "ce"),
        "CNN, CE": train(cnn(), 3_000, 0.0, "ce"),
        "MLP, MSE": train(mlp(), 10_000, 0.1, "mse"),
        "MLP x 6": train(mlp(6.0), 8_000, 0.1, "mse"),
    }
    columns = [(net, attack) for net in nets for attack in ATTACKS]
    print("| logits | " + " | ".join(f"{net}: {attack}" for net, attack in columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, logits in CANDIDATES.items():
        cells = [f"{accuracy(nets[net], attack, ATTACKS[attack], logits):.3f}" for net, attack in columns]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def picture(path: Path, steps: int) -> None:
    torch.manual_seed(0)
    net, (_, _, x, y) = mlp(), digits()
    shown = sorted({round(10 ** (k / 8)) for k in range(4, 60)} & {*range(steps + 1)})
    corrected, raw, clean = [], [], []

    def look(step: int) -> None:
        if step in shown:
            for values, normalize in ((corrected, True), (raw, False)):
                values.append(robust_accuracy(net, x, y, eps=0.1, normalize_logits=normalize).robust_acc[0.1])
            clean.append(robust_accuracy(net, x, y, eps=0.0).clean_acc)

    train(net, steps, 0.0, "ce", look)
    for step in (0, len(shown) // 2, -1):
        print(f"step {shown[step]}: clean {clean[step]:.3f}, raw {raw[step]:.3f}, normalised {corrected[step]:.3f}")
    scales = [10 ** (k / 4) for k in range(-12, 13)]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    weights, bias = net[-1].weight.detach().clone(), net[-1].bias.detach().clone()
    for normalize, colour, label in ((False, "tab:gray", "raw logits"), (True, "tab:purple", "normalised logits")):
        values = []
        for scale in scales:
            with torch.no_grad():
                net[-1].weight.copy_(weights * scale), net[-1].bias.copy_(bias * scale)
            values.append(robust_accuracy(net, x, y, eps=0.1, normalize_logits=normalize).robust_acc[0.1])
        left.plot(scales, values, color=colour, label=label)
    right.plot(shown, clean, color="tab:orange", label="no attack")
    right.plot(shown, raw, color="tab:gray", label="PGD, raw logits")
    right.plot(shown, corrected, color="tab:purple", label="PGD, normalised logits")
    left.set(xscale="log", xlabel="factor on the logits", ylabel="test accuracy under PGD(0.1)", ylim=(0, 1))
    left.set_title("One network, one decision boundary", fontsize=10)
    right.set(xscale="log", xlabel="optimizer steps")
    right.set_title("Training without weight decay", fontsize=10)
    left.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.6))
    right.legend(frameon=False, loc="center left", bbox_to_anchor=(0.3, 0.7))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, help="draw the picture instead of the table")
    parser.add_argument("--steps", type=int, default=100_000, help="of the run in the picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.picture:
        picture(args.picture, args.steps)
    else:
        table()


if __name__ == "__main__":
    main()
