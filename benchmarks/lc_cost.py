"""What one measurement of local complexity costs, relative to a bare forward pass of the same vertices.

    python benchmarks/lc_cost.py [--threads 2] [--repeats 9]

*Bare* runs the model under ``inference_mode`` on the same vertices, in chunks, with nothing recorded. *Naive* is the
published algorithm as it is written: all vertices are made, hooks keep the pre-activation of every layer, and the signs
are compared with those of the first vertex (``--naive-points``: of so many points at once). Ours is
`local_complexity` by vertices at one radius, and with ``method="linear"`` at one and at five radii. All alternate; a
ratio is the median of the ratios of neighbours. Seconds differ from machine to machine.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from models import PreActResNet18, TinyGPT, mlp
from timing import in_turn, ratio, seconds
from torch import Tensor, nn

from lc_callback.functional import cross_polytope_frame, local_complexity

RADIUS = 0.05
FIVE = [0.005, 0.01, 0.05, 0.1, 0.5]


def hull(x: Tensor, n_directions: int) -> Tensor:
    """The vertices ``(2P, *shape)`` as offsets."""
    frame = RADIUS * cross_polytope_frame(x.shape[1:], n_directions)
    return torch.cat([frame, -frame])


def bare(model: nn.Module, x: Tensor, n_directions: int, chunk: int) -> None:
    offsets = hull(x, n_directions)
    with torch.inference_mode():
        for points in x.split(max(1, chunk // len(offsets))):
            model((points[:, None] + offsets[None]).flatten(0, 1))


def best_chunk(model: nn.Module, x: Tensor, n_directions: int) -> int:
    """That of bare, so that the ratio does not flatter us."""
    chunks = (64, 128, 256, 512, 1024)
    return min(chunks, key=lambda chunk: min(seconds(lambda: bare(model, x, n_directions, chunk)) for _ in range(3)))


def naive(model: nn.Module, x: Tensor, n_directions: int, layers: list[nn.Module], at_once: int | None) -> int:
    offsets, kept, total = hull(x, n_directions), [], 0
    hooks = [layer.register_forward_hook(lambda module, args, output: kept.append(output)) for layer in layers]
    with torch.no_grad():
        hulls = x[:, None] + offsets[None]
        for some in hulls.split(at_once or len(x)):
            kept.clear()
            model(some.flatten(0, 1))
            for z in kept:
                signs = torch.sign(z.reshape(len(some), len(offsets), -1))
                total += int((signs != signs[:, :1]).any(1).sum())
    for hook in hooks:
        hook.remove()
    return total


class Behind(nn.Module):
    """A GPT behind its embedding: the tokens' vectors come in."""

    def __init__(self, gpt: TinyGPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, width)`` to logits."""
        x = x + self.gpt.position.weight[: x.shape[1]]
        return self.gpt.head(self.gpt.norm(self.gpt.blocks(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--naive-points", type=int)
    parser.add_argument("--models", nargs="+", default=["MLP", "ResNet", "GPT"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {args.threads} thread(s), median of {args.repeats} alternating repeats")
    net = mlp(784, 200, 200, 200, 10).eval()
    resnet, gpt = PreActResNet18(16).eval(), TinyGPT().eval()
    tokens = torch.randint(0, 65, (16, 64))
    images, vectors = torch.rand(64, 3, 32, 32), gpt.embedding(tokens).detach()
    cases = {
        "MLP": ("MLP 784-200-200-200-10, 1000 points, P=25", net, torch.rand(1000, 1, 28, 28), None, 25, nn.Linear),
        "ResNet": ("pre-activation ResNet-18, width 16, 64 of 3x32x32, P=20", resnet, images, None, 20, nn.BatchNorm2d),
        "GPT": ("GPT of 4 blocks, width 128, 16 of 64 tokens, P=25", gpt, vectors, tokens, 25, nn.GELU),
    }
    for name in args.models:
        compare(*cases[name], args.repeats, args.naive_points)


def compare(
    name: str,
    model: nn.Module,
    x: Tensor,
    tokens: Tensor | None,
    n_directions: int,
    kind: type[nn.Module],
    repeats: int,
    at_once: int | None,
) -> None:
    inputs = x if tokens is None else tokens
    behind = model if tokens is None else Behind(model)  # type: ignore[arg-type]
    layers = [module for module in model.modules() if isinstance(module, kind)][: -1 if kind is nn.Linear else None]
    best = best_chunk(behind, x, n_directions)
    settings = {"n_directions": n_directions}
    runs: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(behind, x, n_directions, best),
        "naive": lambda: naive(behind, x, n_directions, layers, at_once),
        "vertices": lambda: local_complexity(model, inputs, radius=RADIUS, **settings),
        "linear": lambda: local_complexity(model, inputs, radius=RADIUS, method="linear", **settings),
        "linear, 5 radii": lambda: local_complexity(model, inputs, radius=FIVE, method="linear", **settings),
    }
    taken = in_turn(runs, repeats)
    print(f"{name}, bare in chunks of {best}")
    for run, own in taken.items():
        to_bare, to_naive = (ratio(own, taken[base]) for base in ("bare", "naive"))
        radii = 5 if "5" in run else 1
        print(
            f"  {run}: {statistics.median(own):.3f} s, {to_bare:.2f} x bare, naive / this {radii / to_naive:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
