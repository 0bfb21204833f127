"""Attacks at several eps, from the smallest up: what has fallen stays fallen, and costs nothing more."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchattacks
from helpers import Calls
from torch import Tensor, nn

from lc_callback.engine.adversarial.attacks import lowered_confidence
from lc_callback.functional import robust_accuracy

EPS = [0.1, 0.02, 0.3, 0.05]
N, CLASSES = 40, 4


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Held(nn.Module):
    """Reads tokens that belong to the points, and writes to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 5), nn.Linear(5, CLASSES)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh())

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.head(self.body(x.mul_(2)) + self.embedding(tokens))


class Squeezes(nn.Module):
    """Takes the batch axis of a single point for none."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 12), nn.ReLU()), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[:, None]).squeeze())


def images() -> nn.Module:
    conv = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU()
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *conv, nn.Flatten(), nn.Linear(24, CLASSES))


def case(name: str, seed: int) -> tuple[nn.Module, Tensor, tuple[Any, ...], tuple[float, float]]:
    """A model, points, what is held, and the domain."""
    torch.manual_seed(seed)
    flat = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, CLASSES))
    tokens = torch.arange(N) % 7
    models: dict[str, tuple[nn.Module, Tensor, tuple[Any, ...], tuple[float, float]]] = {
        "mlp": (flat, uniform(N, 6, seed=seed), (), (0.0, 1.0)),
        "mlp, standardised": (flat, 4 * uniform(N, 6, seed=seed) - 2, (), (-2.0, 2.0)),
        "no bounds": (flat, 4 * uniform(N, 6, seed=seed) - 2, (), (-math.inf, math.inf)),
        "cnn": (images(), uniform(N, 36, seed=seed), (), (0.0, 1.0)),
        "tokens are held": (Held(), uniform(N, 6, seed=seed), (tokens,), (0.0, 1.0)),
        "squeezes": (Squeezes(), uniform(N, 6, seed=seed), (), (0.0, 1.0)),
    }
    model, x, held, bounds = models[name]
    model = model.double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
        middle = model(x.clone(), *held).mean(0)  # all classes occur
        last = [
            module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == CLASSES
        ]
        last[-1].bias.sub_(middle)
    return model, x, held, bounds


CASES = ("mlp", "mlp, standardised", "no bounds", "cnn", "tokens are held", "squeezes")


def labels(model: nn.Module, x: Tensor, held: tuple[Any, ...]) -> Tensor:
    """The network's own classes, but for every seventh point."""
    with torch.no_grad():
        y = model(x.clone(), *held).argmax(1)
    y[::7] = (y[::7] + 1) % CLASSES
    return y


def iterates(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, bounds: Any, eps: float, seed: int) -> Any:
    """All points that plain PGD visits, in input units and each attack by itself."""
    low, high = bounds
    scale = high - low if math.isfinite(high - low) else 1.0
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty_like(x).uniform_(-eps / scale, eps / scale, generator=generator) * scale
    at = (x + noise).clamp(low, high)
    top = logits(x).detach().topk(2, 1).values
    margin = float((top[:, 0] - top[:, 1]).median())
    yield at
    for _ in range(10):
        moved = at.clone().requires_grad_()
        loss = nn.functional.cross_entropy(lowered_confidence(logits(moved), margin), y)
        (gradient,) = torch.autograd.grad(loss, moved)
        at = (x + (at + 0.25 * eps * gradient.sign() - x).clamp(-eps, eps)).clamp(low, high)
        yield at


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_a_slow_and_obvious_attack_says_the_same(name: str, seed: int) -> None:
    model, x, held, bounds = case(name, seed)
    y = labels(model, x, held)

    def logits(points: Tensor) -> Tensor:
        return model(points.clone(), *held)

    stands = last_stands = logits(x).argmax(1) == y
    expected: dict[float, float] = {}
    by_last: dict[float, float] = {}
    for eps in sorted(EPS):
        visited = [logits(at).argmax(1) == y for at in iterates(logits, x, y, bounds, eps, seed)]
        last_stands = (logits(x).argmax(1) == y) & visited[-1]
        stands = stands & torch.stack(visited).all(0)
        expected[eps], by_last[eps] = (float(s.double().mean()) for s in (stands, last_stands))
    inputs = (x, *held) if held else x
    measure = functools.partial(robust_accuracy, model, inputs, y, eps=EPS, bounds=bounds, seed=seed)
    chunks = [{"chunk_size": size} for size in ((7,) if name == "squeezes" else (1, 3, 7))]
    for settings in ({}, {"return_adversarial": True}, *chunks):
        assert measure(**settings).robust_acc == expected, settings
    falling = [expected[eps] for eps in sorted(EPS)]
    assert falling == sorted(falling, reverse=True)
    assert all(expected[eps] <= by_last[eps] for eps in EPS)  # nowhere higher than what the last iterates say
    assert falling[-1] < falling[0]
    assert list(measure().robust_acc) == EPS


@pytest.mark.parametrize("seed", [2])
@pytest.mark.parametrize("name", CASES)
def test_a_point_does_not_depend_on_those_beside_it(name: str, seed: int) -> None:
    """Others fall in their time, or are not there."""
    model, x, held, bounds = case(name, seed)
    y = labels(model, x, held)
    inputs = (x, *held) if held else x
    found = robust_accuracy(model, inputs, y, eps=EPS, bounds=bounds, return_adversarial=True)
    hard = y.clone()
    with torch.no_grad():
        hard[20:] = (model(x.clone(), *held).argmax(1)[20:] + 1) % CLASSES  # these are not attacked
    margin_is_kept = {"return_adversarial": True, "eps": EPS, "bounds": bounds}
    other = robust_accuracy(model, inputs, hard, **margin_is_kept)
    for eps in EPS:
        torch.testing.assert_close(found.adversarial[eps][:20], other.adversarial[eps][:20], rtol=0, atol=1e-12)


def test_what_is_returned_is_where_a_point_fell() -> None:
    model, x, held, bounds = case("mlp", 0)
    y = labels(model, x, held)
    found = robust_accuracy(model, x, y, eps=EPS, bounds=bounds, return_adversarial=True)
    right = model(x).argmax(1) == y
    before = None
    for eps in sorted(EPS):
        moved = found.adversarial[eps]
        wrong = right & (model(moved).argmax(1) != y)
        assert found.robust_acc[eps] == float((right & ~wrong).double().mean())
        assert ((moved - x).abs().amax(1) <= eps + 1e-12).all()
        if before is not None:
            fell, at = before
            assert wrong[fell].all()
            assert torch.equal(moved[fell], at[fell])  # not moved again
        before = wrong, moved
    assert ((found.adversarial[0.3] - x).abs().amax(1)[~right] > 0.05).all()  # wrong as they are: to the end


def test_a_row_costs_what_the_standing_points_cost() -> None:
    model, x, held, bounds = case("mlp", 0)
    y = labels(model, x, held)
    asked = Calls()
    model.register_forward_pre_hook(lambda module, args: asked.append(len(args[0])))
    fallen = robust_accuracy(model, x, y, eps=[0.3, 9.0], steps=10, bounds=(-9, 10), alpha=0.3)
    assert fallen.robust_acc[9.0] == 0
    before = 2 + N
    assert sum(asked) < before + 11 * N  # of one attack that turns no point
    asked.clear()
    robust_accuracy(model, x, y, eps=[1e-9, 2e-9], steps=10, bounds=bounds)
    right = N - len(y[::7])
    assert sum(asked) == before + 2 * 11 * right


@pytest.mark.parametrize("name", ["PGDL2", "FGSM", "APGD", "FAB", pytest.param("DeepFool", marks=pytest.mark.slow)])
def test_other_attacks_keep_what_a_smaller_eps_has_found(name: str) -> None:
    model, x, held, bounds = case("mlp", 1)
    y = labels(model, x, held)
    alone = {
        eps: robust_accuracy(model, x, y, eps=eps, attack=name, bounds=bounds, return_adversarial=True) for eps in EPS
    }
    together = robust_accuracy(model, x, y, eps=EPS, attack=name, bounds=bounds, return_adversarial=True)
    stands = model(x).argmax(1) == y
    for eps in sorted(EPS):
        stands = stands & (model(alone[eps].adversarial[eps].double()).argmax(1) == y)
        assert together.robust_acc[eps] == float(stands.double().mean()) <= alone[eps].robust_acc[eps]
        moved = model(together.adversarial[eps]).argmax(1) == y
        assert torch.equal(stands, moved & (model(x).argmax(1) == y))


def test_a_function_that_does_worse_with_more_is_not_counted_as_more_robust() -> None:
    model, x, held, _ = case("mlp", 1)
    y = labels(model, x, held)

    def only_small(victim: nn.Module, points: Tensor, targets: Tensor, eps: float) -> Tensor:
        if eps > 0.2:
            return points
        points.requires_grad_()
        loss = nn.functional.cross_entropy(victim(points), targets)
        return points + eps * torch.autograd.grad(loss, points)[0].sign()

    found = robust_accuracy(model, x, y, eps=[0.5, 0.2], attack=only_small, bounds=(-9, 9))
    assert found.robust_acc[0.5] == found.robust_acc[0.2] < found.clean_acc


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("arguments", [{}, {"alpha": 0.01}, {"steps": 4}, {"attack_args": {"random_start": False}}])
def test_raw_logits_are_attacked_as_torchattacks_does_at_each_eps(arguments: dict[str, Any], seed: int) -> None:
    """Bit for bit, also where the last iterate of a larger eps is classified correctly again."""
    model, x, held, _ = case("mlp", seed)
    y = labels(model, x, held)
    whole = {"chunk_size": N, "return_adversarial": True, "normalize_logits": False, "bounds": (0, 1), "seed": seed}
    found = robust_accuracy(model, x, y, eps=EPS, **whole, **arguments)
    for eps in EPS:
        steps = arguments.get("steps", 10)
        settings = {"alpha": arguments.get("alpha", 2.5 * eps / steps), "steps": steps}
        torch.manual_seed(seed)
        direct = torchattacks.PGD(model, eps=eps, **settings, **arguments.get("attack_args", {}))(x, y)
        assert torch.equal(found.adversarial[eps], direct)
        right = (model(x).argmax(1) == y) & (model(direct).argmax(1) == y)
        assert found.robust_acc[eps] == float(right.double().mean())


def test_arguments_that_only_torchattacks_knows_reach_it() -> None:
    model, x, held, bounds = case("mlp", 1)
    y = labels(model, x, held)
    found = robust_accuracy(model, x, y, eps=EPS, bounds=bounds, attack_args={"steps": 3, "alpha": 0.1})
    assert [found.robust_acc[eps] for eps in sorted(EPS)] == sorted(found.robust_acc.values(), reverse=True)


@pytest.mark.parametrize("at_step", [0, 1, 5, 10])
def test_logits_that_are_not_finite_at_any_step_are_no_accuracy(at_step: int) -> None:
    model, x, held, _ = case("mlp", 0)
    y = labels(model, x, held)
    calls = [0]

    def forward_fn(module: nn.Module, points: Tensor) -> Tensor:
        calls[0] += 1
        broken = calls[0] == 3 + at_step  # after the look at memory and at the points
        return torch.cat([module(points[:-1]), module(points[-1:]) * (math.nan if broken else 1)])

    found = robust_accuracy(model, x, y, eps=[1e-9, 1e-3], bounds=(-9, 9), forward_fn=forward_fn)
    assert math.isnan(found.robust_acc[1e-9])
    assert math.isnan(found.robust_acc[1e-3])  # the smaller budget is a part of it
    assert found.clean_acc == pytest.approx(1 - len(y[::7]) / N)


def test_points_whose_logits_are_not_finite_fall_where_they_are_finite() -> None:
    net = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x, y = torch.tensor([[0.05], [0.5]], dtype=torch.float64), torch.tensor([0, 0])

    def forward_fn(module: nn.Module, points: Tensor) -> Tensor:
        return torch.where((points > 0.005) & (points < 0.045), math.nan, module(points))

    found = robust_accuracy(
        net,
        x,
        y,
        eps=[0.01, 0.2],
        alpha=0.2,
        steps=1,
        bounds=(-1, 1),
        forward_fn=forward_fn,
        attack_args={"random_start": False},
    )
    assert math.isnan(found.robust_acc[0.01])
    assert found.robust_acc[0.2] == 0.5
