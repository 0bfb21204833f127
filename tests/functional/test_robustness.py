"""Robust accuracy against closed forms and torchattacks itself, in any domain, on any model, without a trace."""

from __future__ import annotations

import copy
import functools
import math
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchattacks
from check_dist import ATTACKS
from helpers import Calls
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lc_callback.engine.adversarial.attacks import _NoiseOfTheCPU, lowered_confidence
from lc_callback.engine.adversarial.domain import find_bounds
from lc_callback.engine.chunks import Budget
from lc_callback.functional import robust_accuracy

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in SparseFool
NETS = {2: 1, 3: 5, 5: 5}  # seeds by number of classes, that leave some points robust and some not


def net_for(x: Tensor, classes: int = 5, seed: int | None = None) -> nn.Sequential:
    torch.manual_seed(NETS[classes] if seed is None else seed)
    layers = nn.Flatten(), nn.Linear(x[0].numel(), 16), nn.ReLU(), nn.Linear(16, classes)
    return nn.Sequential(*layers).to(x.dtype)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def classes_of(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1)


def attacked(*args, eps: float, **kwargs) -> Tensor:
    return robust_accuracy(*args, eps=eps, return_adversarial=True, **kwargs).adversarial[eps]


@pytest.fixture
def without_torchattacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)


# The same bits as torchattacks


@pytest.mark.parametrize("engine", ["torchattacks", "twin"])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 7])
def test_without_correction_pgd_is_torchattacks_pgd_bit_for_bit(engine, classes, seed, request):
    x = uniform(16, 1, 6, 6)
    net = net_for(x, classes)
    y = torch.arange(16) % classes
    torch.manual_seed(seed)
    direct = torchattacks.PGD(net, eps=0.1, alpha=0.02, steps=7)(x, y)
    if engine == "twin":
        request.getfixturevalue("without_torchattacks")
    found = attacked(net, x, y, eps=0.1, alpha=0.02, steps=7, bounds=(0, 1), seed=seed, normalize_logits=False)
    assert torch.equal(found, direct)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_other_attacks_are_those_of_torchattacks_bit_for_bit(classes):
    x = uniform(16, 1, 6, 6)
    net = net_for(x, classes)
    y = torch.arange(16) % classes
    for name, direct in (
        ("PGDL2", torchattacks.PGDL2(net, eps=0.5, alpha=0.125, steps=10)),
        ("FGSM", torchattacks.FGSM(net, eps=0.5)),
        ("APGD", torchattacks.APGD(net, eps=0.5, steps=10)),
    ):
        torch.manual_seed(0)
        expected = direct(x, y)
        assert torch.equal(attacked(net, x, y, eps=0.5, attack=name, bounds=(0, 1), normalize_logits=False), expected)


STILL = {"random_start": False}
BUILT_IN = [("PGD", {}), ("PGD", STILL), ("PGDL2", {}), ("PGDL2", STILL), ("FGSM", {})]


@pytest.mark.parametrize(("name", "arguments"), BUILT_IN)
@pytest.mark.parametrize("domain", ["images", "per feature", "infinite"])
def test_both_engines_find_the_same_bits(domain, name, arguments, monkeypatch):
    x = uniform(16, 1, 6, 6)
    bounds: tuple = (0, 1)
    if domain == "per feature":
        mean, std = uniform(20, seed=1), 0.1 + uniform(20, seed=2)
        x, bounds = (uniform(16, 20) - mean) / std, (-mean / std, (1 - mean) / std)
    elif domain == "infinite":
        x, bounds = normal(16, 5, 4), (-math.inf, math.inf)
    net = net_for(x)
    y = torch.arange(16) % 5
    settings = {"eps": 0.2, "bounds": bounds, "seed": 3, "attack": name, "attack_args": arguments}
    attack = functools.partial(attacked, net, x, y, **settings)
    through_torchattacks = attack()
    moved = (through_torchattacks - x).flatten(1).norm(2 if name == "PGDL2" else math.inf, dim=1)
    assert 0.1 < moved.max() < 0.2 * (1 + 1e-5)
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    assert torch.equal(attack(), through_torchattacks)


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "APGD"])
def test_standardised_inputs_are_attacked_like_the_plain_ones(name):
    mean, std = 0.3, 0.25
    x = uniform(24, 1, 6, 6, dtype=torch.float64)
    plain = net_for(x)

    class OfStandardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain

        def forward(self, z: Tensor) -> Tensor:
            return self.net(z * std + mean)

    y, z = classes_of(plain, x), (x - mean) / std
    eps = 0.4 if name == "PGDL2" else 0.1
    one = robust_accuracy(plain, x, y, eps=eps, attack=name, bounds=(0, 1), return_adversarial=True)
    wide, domain = eps / std, (-mean / std, (1 - mean) / std)
    other = robust_accuracy(OfStandardised(), z, y, eps=wide, attack=name, bounds=domain, return_adversarial=True)
    assert 0 < one.robust_acc[eps] < 1
    assert other.robust_acc[wide] == one.robust_acc[eps]
    # torchattacks computes parts of APGD in float32.
    tolerance = 1e-6 if name == "APGD" else 1e-12
    torch.testing.assert_close(other.adversarial[wide] * std + mean, one.adversarial[eps], rtol=0, atol=tolerance)


# Closed forms


def linear(d: int, seed: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    net = nn.Linear(d, 2, dtype=dtype)
    with torch.no_grad():
        net.weight.copy_(normal(2, d, seed=seed))
        net.bias.copy_(normal(2, seed=seed + 1))
    return net


def margins(net: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = net(x)
    return (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None]))[:, 0]


@pytest.mark.parametrize("engine", ["torchattacks", "twin"])
def test_linear_classifier_has_the_robust_accuracy_of_the_closed_form(engine, request):
    if engine == "twin":
        request.getfixturevalue("without_torchattacks")
    between = 0
    for seed in range(200):
        d, n = 1 + seed % 12, 20
        net, x = linear(d, 1000 + seed), normal(n, d, seed=seed, dtype=torch.float64)
        y = torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed))
        eps = 0.02 + 0.3 * float(uniform(1, seed=seed))
        result = robust_accuracy(net, x, y, eps=eps, steps=5, bounds=(-50, 50), seed=seed)
        exact = margins(net, x, y) > eps * float((net.weight[0] - net.weight[1]).detach().abs().sum())
        assert result.robust_acc[eps] == float(exact.double().mean())
        assert result.robust_acc[eps] <= result.clean_acc == float((margins(net, x, y) > 0).double().mean())
        between += 0 < result.robust_acc[eps] < result.clean_acc
    assert between > 100


def test_linear_classifier_under_the_euclidean_attack():
    excess = 0.0
    for seed in range(50):
        d, n = 1 + seed % 12, 40
        net, x = linear(d, 1000 + seed), normal(n, d, seed=seed, dtype=torch.float64)
        y = classes_of(net, x)
        eps = 0.1 + 0.5 * float(uniform(1, seed=seed))
        found = robust_accuracy(net, x, y, eps=eps, attack="PGDL2", steps=10, bounds=(-50, 50)).robust_acc[eps]
        norm = float((net.weight[0] - net.weight[1]).detach().norm())
        exact = float((margins(net, x, y) > eps * norm).double().mean())
        assert found >= exact
        excess += (found - exact) / 50
    assert excess < 0.01


# Robustness that is real


@pytest.fixture(scope="module")
def digits():
    """A network trained on digits until it is sure, with test points: (net, x, y)."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:1000]), y[:1000]).backward()
        optimizer.step()
    return net, x[1000:1400], y[1000:1400]


def scaled(net: nn.Sequential, factor: float) -> nn.Sequential:
    net = copy.deepcopy(net)
    with torch.no_grad():
        net[-1].weight.mul_(factor)
        net[-1].bias.mul_(factor)
    return net


@pytest.mark.parametrize(("name", "eps"), [("PGD", 0.05), ("PGD", 0.1), ("PGDL2", 0.5), ("APGD", 0.05), ("APGD", 0.1)])
def test_the_scale_of_the_logits_does_not_matter(digits, name, eps):
    net, x, y = digits

    def at_scales(**kwargs) -> list[float]:
        nets = [scaled(net, factor) for factor in (1, 10, 100, 1000)]
        return [robust_accuracy(n, x, y, eps=eps, attack=name, bounds=(0, 1), **kwargs).robust_acc[eps] for n in nets]

    corrected, raw = at_scales(), at_scales(normalize_logits=False)
    assert max(corrected) - min(corrected) <= 0.01
    assert max(raw) - min(raw) > 0.2  # the artefact
    assert max(corrected) <= min(raw) + 0.01  # nowhere weaker


def test_small_logits_do_not_matter_either(digits):
    net, x, y = digits
    values = [robust_accuracy(scaled(net, f), x, y, eps=0.1, bounds=(0, 1)).robust_acc[0.1] for f in (1, 1e-3, 1e-6)]
    assert max(values) - min(values) <= 0.01


def test_apgd_is_not_weaker_than_pgd(digits):
    net, x, y = digits
    radii = [0.01, 0.03, 0.05, 0.08, 0.1, 0.15]
    pgd, apgd = (robust_accuracy(net, x, y, eps=radii, attack=a, bounds=(0, 1)).robust_acc for a in ("PGD", "APGD"))
    assert pgd[0.01] > 0.9
    assert pgd[0.15] < 0.1
    assert all(apgd[eps] <= pgd[eps] + 0.01 for eps in radii)


@pytest.mark.parametrize("factor", [1, 1000])
def test_fab_follows_the_logits_themselves(digits, factor):
    net, x, y = digits
    fab, pgd = (
        robust_accuracy(scaled(net, factor), x[:100], y[:100], eps=0.08, attack=name, bounds=(0, 1)).robust_acc[0.08]
        for name in ("FAB", "PGD")
    )
    assert fab <= pgd + 0.1


def test_several_radii_are_several_measurements(digits):
    net, x, y = digits
    both = robust_accuracy(net, x, y, eps=[0, 0.02, 0.1], bounds=(0, 1), return_adversarial=True)
    assert list(both.robust_acc) == list(both.adversarial) == [0, 0.02, 0.1]
    assert both.clean_acc == both.robust_acc[0] > both.robust_acc[0.02] > both.robust_acc[0.1]
    assert torch.equal(both.adversarial[0], x)
    small, large = (attacked(net, x, y, eps=eps, bounds=(0, 1)) for eps in (0.02, 0.1))
    assert torch.equal(both.adversarial[0.02], small)
    fell = ((classes_of(net, x) == y) & (classes_of(net, small) != y))[:, None]
    assert fell.any()
    assert torch.equal(both.adversarial[0.1], torch.where(fell, small, large))  # what fell is not attacked again
    assert robust_accuracy(net, x, y, eps=0.1).adversarial is None


def test_lowered_confidence_keeps_decisions_and_order_of_margins():
    logits = normal(200, 6, dtype=torch.float64) * torch.logspace(-3, 3, 200, dtype=torch.float64)[:, None]
    seen = lowered_confidence(logits, margin=2.0)
    assert torch.equal(seen.argmax(1), logits.argmax(1))
    ladder = torch.zeros(100, 3, dtype=torch.float64)
    ladder[:, 0] = torch.linspace(-3, 1e4, 100)
    seen = lowered_confidence(ladder, margin=2.0)
    assert (seen[:, 0].diff() > 0).all()
    assert torch.equal(seen[:, 1:], ladder[:, 1:])


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0, 1e6])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_lowered_confidence_and_its_derivative_are_those_of_the_formula(n_classes, scale):
    generator = torch.Generator().manual_seed(0)
    logits, weights = torch.randn(2, 50, n_classes, generator=generator, dtype=torch.float64)
    logits = (scale * logits).requires_grad_()
    z = logits * 10 / 2.0
    top = z.argmax(1, keepdim=True)
    lead = (z.gather(1, top) - z.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)).clamp(min=0)
    twin = z.scatter_add(1, top, lead.log1p() - lead)
    seen = lowered_confidence(logits, margin=2.0)
    torch.testing.assert_close(seen, twin, rtol=1e-12, atol=1e-12 * scale)
    gradients = [torch.autograd.grad(output, logits, weights)[0] for output in (seen, twin)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_lowered_confidence_keeps_the_direction_of_ascent():
    x = normal(50, 8, dtype=torch.float64)
    net = net_for(x)
    y = classes_of(net, x)

    def gradient(of: str) -> Tensor:
        moved = x.clone().requires_grad_()
        logits = net(moved)
        seen = lowered_confidence(logits, margin=2.0) if of == "lowered" else 10 * logits / 2.0
        (result,) = torch.autograd.grad(nn.functional.cross_entropy(seen, y, reduction="sum"), moved)
        return result

    cosine = nn.functional.cosine_similarity(gradient("lowered"), gradient("scaled"))
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3, 1e6])
def test_lowered_confidence_never_loses_the_gradient(scale):
    x = normal(50, 8)
    net = net_for(x)
    y = classes_of(net, x)
    moved = x.clone().requires_grad_()
    seen = lowered_confidence(scale * net(moved), margin=1.0)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(seen, y), moved)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(1) > 1e-12).all()


# Any domain


@pytest.mark.parametrize("shape", [(16, 6), (16, 5, 4), (16, 1, 4, 4), (16, 3, 4, 4), (16, 2, 3, 2, 2)])
@pytest.mark.parametrize("name", ["PGD", "PGDL2", "APGD"])
def test_points_of_any_shape(shape, name):
    x = 4 * uniform(*shape) - 1
    net = net_for(x)
    y = classes_of(net, x)
    result = robust_accuracy(net, x, y, eps=0.5, attack=name, return_adversarial=True)
    low, high = result.bounds
    found, delta = result.adversarial[0.5], (result.adversarial[0.5] - x).flatten(1)
    assert torch.equal(low, x.amin(0))
    assert torch.equal(high, x.amax(0))
    assert found.shape == x.shape
    assert (found >= low).all()
    assert (found <= high).all()
    length = delta.norm(dim=1) if name == "PGDL2" else delta.abs().amax(1)
    assert 0.3 < length.max() <= 0.5 * (1 + 1e-4)
    assert result.robust_acc[0.5] < result.clean_acc == 1


def test_bounds_are_found_from_the_points():
    x = uniform(10, 3)
    x[0, 0], x[1, 1] = 0, 1
    low, high, text = find_bounds(x)
    assert low.tolist() == [0, 0, 0]
    assert high.tolist() == [1, 1, 1]
    assert "(0, 1)" in text
    low, high, text = find_bounds(2 * x)
    assert torch.equal(low, 2 * x.amin(0))
    assert torch.equal(high, 2 * x.amax(0))
    assert "bounds=" in text


def test_bounds_per_channel_and_per_feature():
    x = uniform(8, 3, 4, 4)
    net = net_for(x)
    y = classes_of(net, x)
    high = torch.tensor([1.0, 2.0, 3.0])
    per_channel = attacked(net, x, y, eps=0.4, bounds=([0, 0, 0], high))
    full = attacked(net, x, y, eps=0.4, bounds=(torch.zeros(3, 4, 4), high.view(3, 1, 1).expand(3, 4, 4)))
    assert torch.equal(per_channel, full)
    assert (per_channel >= 0).all()
    assert per_channel[:, 0].max() == 1
    assert (per_channel[:, 1:].amax((0, 2, 3)) > 1.1).all()


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "APGD", "Square"])
def test_infinite_bounds_let_every_point_move_by_eps(name):
    x = normal(10, 6)
    net = net_for(x)
    y = classes_of(net, x)
    arguments = {"n_queries": 20} if name == "Square" else {}
    found = attacked(net, x, y, eps=0.7, attack=name, attack_args=arguments, bounds=(-math.inf, math.inf))
    delta = found - x
    length = delta.norm(dim=1) if name == "PGDL2" else delta.abs().amax(1)
    assert length.max() == pytest.approx(0.7, rel=1e-4)
    if name == "PGD":  # no bound cut it off, anywhere
        standing = classes_of(net, found) == y  # the others stay where they fell
        assert standing.any()
        assert (length[standing] > 0.69).all()
    half = attacked(net, x, y, eps=0.7, bounds=(-math.inf, x.amax(0)))
    assert (half <= x.amax(0)).all()
    assert (half < x.amin(0)).any()


@pytest.mark.parametrize("bound", [1e2, 1e5, 1e6, 1e8])
@pytest.mark.parametrize("name", ["PGD", "PGDL2"])
def test_a_wide_domain_is_as_one_without_bounds(name, bound):
    x = normal(50, 4)
    net = net_for(x)
    y = classes_of(net, x)
    free, wide = (
        robust_accuracy(net, x, y, eps=0.03, attack=name, bounds=(-b, b), return_adversarial=True)
        for b in (math.inf, bound)
    )
    assert wide.robust_acc == free.robust_acc
    delta = (wide.adversarial[0.03] - x).flatten(1)
    length = delta.norm(dim=1) if name == "PGDL2" else delta.abs().amax(1)
    assert length.max() == pytest.approx(0.03, rel=1e-3)


def test_a_wide_domain_still_ends_where_it_ends():
    x = normal(20, 4)
    net = net_for(x)
    low, high = -1e6, float(x.max())
    found = attacked(net, x, classes_of(net, x), eps=0.5, bounds=(low, high))
    assert found.max() <= high
    assert (found - x).abs().max() == pytest.approx(0.5, rel=1e-3)


def test_constant_features_stay_where_they_are():
    x = uniform(10, 6) * 3
    x[:, 2] = 1.5
    net = net_for(x)
    found = attacked(net, x, classes_of(net, x), eps=0.5)
    assert torch.equal(found[:, 2], x[:, 2])
    assert ((found - x).abs().amax(0)[[0, 1, 3, 4, 5]] > 0.4).all()


def test_points_that_are_all_one_point_can_be_attacked_in_a_domain():
    x = torch.full((4, 6), 0.5)
    net = net_for(x)
    y = classes_of(net, x)
    assert torch.equal(attacked(net, x, y, eps=0.1), x)  # the observed range is this point
    assert (attacked(net, x, y, eps=0.1, bounds=(0, 1)) - x).abs().max() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="eps_unit='std'"):
        robust_accuracy(net, x, y, eps=0.1, eps_unit="std")


def test_eps_in_units_of_the_spread():
    x = normal(20, 6, dtype=torch.float64) * torch.arange(1, 7)
    net = net_for(x)
    y = classes_of(net, x)
    spread = float(np.sqrt(x.numpy().var(0).mean()))
    in_spreads = robust_accuracy(net, x, y, eps=0.3, alpha=0.1, eps_unit="std", return_adversarial=True)
    in_units = robust_accuracy(net, x, y, eps=0.3 * spread, alpha=0.1 * spread, return_adversarial=True)
    assert in_spreads.robust_acc == {0.3: in_units.robust_acc[0.3 * spread]}
    torch.testing.assert_close(in_spreads.adversarial[0.3], in_units.adversarial[0.3 * spread], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "in_spreads"),
    [
        ({}, False),
        ({"eps_unit": "auto"}, False),
        ({"eps_unit": "std"}, True),
        ({"eps_unit": "input"}, False),
        ({"at": "1"}, True),
        ({"at": "1", "eps_unit": "auto"}, True),
        ({"at": "1", "eps_unit": "std"}, True),
        ({"at": "1", "eps_unit": "input"}, False),
    ],
)
def test_the_unit_is_that_of_inputs_and_behind_a_module_the_spread(settings, in_spreads):
    x = normal(20, 6, dtype=torch.float64) * torch.arange(1, 7)
    net = net_for(x)
    y = classes_of(net, x)
    with torch.no_grad():
        there = net[:2](x) if "at" in settings else x
    unit = float(np.sqrt(there.numpy().var(0).mean())) if in_spreads else 1.0
    found = attacked(net, x, y, eps=0.1, alpha=0.03, **settings)
    expected = attacked(net, x, y, eps=0.1 * unit, alpha=0.03 * unit, **{**settings, "eps_unit": "input"})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("factor", [1 / 1024, 0.5, 8.0])
@pytest.mark.parametrize("tokens", [True, False])
def test_an_embedding_that_shrinks_while_the_next_layer_grows_is_the_same_function(tokens, factor):
    """Powers of 2: bit for bit."""
    torch.manual_seed(1)
    first = nn.Embedding(11, 6) if tokens else nn.Sequential(nn.Linear(1, 6), nn.Unflatten(1, (1, 6)))
    net = nn.Sequential(first, nn.Flatten(), nn.Linear(30 if tokens else 6, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    x = torch.randint(11, (60, 5)) if tokens else normal(60, 1, dtype=torch.float64)
    y = classes_of(net, x)
    settings = {"eps": [0.1, 0.4], **({} if tokens else {"at": "0"})}
    before, by_numbers = (robust_accuracy(net, x, y, **settings, **unit) for unit in ({}, {"eps_unit": "input"}))
    with torch.no_grad():
        for weight in first.parameters():
            weight.mul_(factor)
        net[2].weight.div_(factor)
    assert torch.equal(classes_of(net, x), y)
    assert robust_accuracy(net, x, y, **settings).robust_acc == before.robust_acc
    assert robust_accuracy(net, x, y, eps_unit="input", **settings).robust_acc != by_numbers.robust_acc


def test_a_spread_that_is_not_a_number_is_no_accuracy():
    net = Reader()
    with torch.no_grad():
        net.embedding.weight[3] = math.nan
    tokens = torch.randint(11, (12, 5), generator=torch.Generator().manual_seed(0))
    result = robust_accuracy(net, tokens, torch.zeros(12, dtype=torch.long), eps=[0.1, 0.2])
    assert all(map(math.isnan, [result.clean_acc, *result.robust_acc.values()]))


class Flipped(nn.Module):
    """A linear classifier whose decision is the opposite where ``flip`` is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.hidden = linear(4, seed=3), nn.Identity()

    def forward(self, x: Tensor, flip: Tensor) -> Tensor:
        return self.linear(self.hidden(x)) * (1 - 2 * flip[:, None])


@pytest.mark.parametrize(
    "name", ["PGD", *(pytest.param(n, marks=pytest.mark.slow) for n in ("APGD", "FAB", "Square", "PGDL2"))]
)
@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("held", ["integers", "what goes round a module"])
def test_what_is_held_stays_with_its_point(name, chunk_size, held):
    n, eps = 24, 0.5
    x, flip = normal(n, 4, dtype=torch.float64), (torch.arange(n) % 3 == 0).long()
    net = Flipped()
    y = net(x, flip).argmax(1)
    y[::5] = 1 - y[::5]  # attacks drop points that are wrong
    at_hidden = {"inputs": {"x": x, "flip": flip.double()}, "at": "hidden", "eps_unit": "input"}
    of_integers = {"inputs": {"x": x, "flip": flip}, "bounds": (-9, 9)}
    result = robust_accuracy(
        net,
        targets=y,
        eps=eps,
        attack=name,
        attack_args={"n_queries": 100} if name == "Square" else {},
        chunk_size=chunk_size,
        return_adversarial=True,
        **(of_integers if held == "integers" else at_hidden),
    )
    difference = (net.linear.weight[0] - net.linear.weight[1]).detach()
    slack = difference.norm() if name == "PGDL2" else difference.abs().sum()
    lead = margins(net.linear, x, y) * (1 - 2 * flip)
    exact = float((lead > eps * slack).double().mean())
    assert 0 < exact < result.clean_acc - 1 / n
    assert result.robust_acc[eps] == pytest.approx(exact, abs=1 / n if name in ("Square", "PGDL2", "FAB") else 0)
    right = net(result.adversarial[eps], flip).argmax(1) == y
    assert float((right & (lead > 0)).double().mean()) == result.robust_acc[eps]


def test_two_float_inputs_are_one_product_space():
    x = uniform(12, 10)
    net = net_for(x)

    class OfTwo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.net(torch.cat([a.flatten(1), b], 1))

    y = classes_of(net, x)
    two = attacked(OfTwo(), (x[:, :6].view(12, 2, 3), x[:, 6:]), y, eps=0.2, bounds=(0, 1))
    assert torch.equal(two, attacked(net, x, y, eps=0.2, bounds=(0, 1)))
    assert (two - x).abs().max() == pytest.approx(0.2)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(11, 3)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(15, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


@pytest.mark.parametrize("name", ["PGD", "APGD"])
def test_tokens_are_attacked_as_embeddings(name):
    net = Reader()
    tokens = torch.randint(11, (12, 5), generator=torch.Generator().manual_seed(0))
    vectors = net.embedding(tokens).detach()
    y = classes_of(net, tokens)
    result = robust_accuracy(net, tokens, y, eps=0.5, attack=name, eps_unit="input", return_adversarial=True)
    found = result.adversarial[0.5]
    assert found.shape == (12, 5, 3)
    assert torch.equal(result.bounds[1], torch.full((5, 3), math.inf))
    assert 0.49 < (found - vectors).abs().max() <= 0.5 * (1 + 1e-4)
    assert result.robust_acc[0.5] == net.head(found).argmax(1).eq(y).double().mean() < 1
    if name == "PGD":
        assert torch.equal(found, attacked(net.head, vectors, y, eps=0.5, bounds=(-math.inf, math.inf)))


def test_any_module_can_be_attacked_behind():
    x = uniform(12, 6)
    net = net_for(x)
    y = classes_of(net, x)
    hidden = net[:2](x).detach()
    behind = attacked(net, x, y, eps=0.2, at="1", eps_unit="input")
    assert torch.equal(behind, attacked(net[2:], hidden, y, eps=0.2, bounds=(-math.inf, math.inf)))
    with pytest.raises(ValueError, match="`at="):
        robust_accuracy(net, x, y, eps=0.2, at="nowhere")


# All attacks of torchattacks

INF, TWO, FREE = "inf", "two", "free"
BY_NAME = [
    *((name, {}, INF) for name in ("PGD", "FGSM", "BIM", "RFGSM", "FFGSM", "MIFGSM", "NIFGSM", "SINIFGSM", "VMIFGSM")),
    *((name, {}, INF) for name in ("VNIFGSM", "EOTPGD", "TPGD", "UPGD", "Jitter", "APGD", "APGDT", "PGDRS", "FAB")),
    *((name, {}, INF) for name in ("DIFGSM", "TIFGSM", "PIFGSM", "PIFGSMPP")),
    ("APGD", {"loss": "dlr"}, INF),
    ("APGD", {"norm": "L2"}, TWO),
    ("FAB", {"norm": "L2"}, TWO),
    ("Square", {"n_queries": 20}, INF),
    ("Square", {"n_queries": 20, "norm": "L2"}, TWO),
    ("SPSA", {"nb_sample": 8, "max_batch_size": 8}, INF),
    ("PGDL2", {}, TWO),
    ("PGDRSL2", {}, TWO),
    ("CW", {"steps": 5}, FREE),
    ("DeepFool", {"steps": 10}, FREE),
    ("EADL1", {"max_iterations": 10, "binary_search_steps": 2}, FREE),
    ("EADEN", {"max_iterations": 10, "binary_search_steps": 2}, FREE),
    ("JSMA", {}, FREE),
    ("SparseFool", {"steps": 2}, FREE),
    ("OnePixel", {"steps": 2}, FREE),
    ("Pixle", {"restarts": 2}, FREE),
]


def test_every_attack_of_torchattacks_is_tried_here():
    names = {*torchattacks.__all__} - {"VANILA", "GN", "LGV", "MultiAttack", "AutoAttack"}  # AutoAttack: below
    assert {name for name, _, _ in BY_NAME} == names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "arguments", "norm"), BY_NAME)
def test_attacks_keep_to_budget_and_bounds(name, arguments, norm, dtype):
    x = 4 * uniform(6, 3, 8, 8, dtype=dtype) - 1
    net = net_for(x, 3)
    y = classes_of(net, x)
    y[0] = (y[0] + 1) % 3
    result = robust_accuracy(
        net, x, y, eps=0.4, attack=name, attack_args=arguments, steps=3, bounds=(-1, 3), return_adversarial=True
    )
    found = result.adversarial[0.4]
    delta = (found - x).flatten(1)
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert (found >= -1).all()
    assert (found <= 3).all()
    if norm == INF:
        assert delta.abs().max() <= 0.4 * (1 + 1e-4)
    if norm == TWO or name in ("CW", "DeepFool"):
        assert delta.norm(dim=1).max() <= 0.4 * (1 + 1e-4)
    assert result.clean_acc == pytest.approx(5 / 6)
    kept = classes_of(net, found) == y
    assert result.robust_acc[0.4] == (kept & (classes_of(net, x) == y)).double().mean()
    if norm == INF and name not in ("SPSA", "TPGD", "FAB"):
        assert result.robust_acc[0.4] < result.clean_acc


@pytest.fixture
def brief_square(monkeypatch):
    """AutoAttack with few queries in its last stage."""
    module = sys.modules["torchattacks.attacks.autoattack"]
    square = module.Square
    monkeypatch.setattr(module, "Square", lambda *args, **kwargs: square(*args, **{**kwargs, "n_queries": 20}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.2), ("L2", 0.5)])
def test_autoattack_with_few_classes(classes, dtype, norm, eps, brief_square):
    x = 4 * uniform(24, *((6,) if norm == "Linf" else (1, 5, 5)), dtype=dtype) - 1
    net = net_for(x, classes)
    y = classes_of(net, x)
    arguments = {"norm": norm}
    result = robust_accuracy(net, x, y, eps=eps, attack="AutoAttack", attack_args=arguments, return_adversarial=True)
    delta = (result.adversarial[eps] - x).flatten(1)
    length = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    assert 0 < length.max() <= eps * (1 + 1e-4)
    plain = robust_accuracy(net, x, y, eps=eps, attack="PGD" if norm == "Linf" else "PGDL2").robust_acc[eps]
    assert 0 < result.robust_acc[eps] <= plain < 1


def test_an_attack_without_a_budget_that_leaves_the_domain_is_cut_back_to_it(monkeypatch):
    monkeypatch.setattr(torchattacks.EADL1, "forward", lambda self, x, y: x - 0.1)  # as it can happen
    x = 3 * uniform(6, 6) - 1
    net = net_for(x)
    found = attacked(net, x, classes_of(net, x), eps=9, attack="EADL1")
    assert (found >= x.amin(0)).all()
    assert (found < x)[x > x.amin(0)].all()


@pytest.mark.parametrize("name", ["CW", "DeepFool", "SparseFool", "FAB"])
def test_smallest_changes_count_only_within_eps(name):
    x = uniform(12, 6)
    net = net_for(x)
    y = classes_of(net, x)
    arguments = {"steps": 100, "lr": 0.02} if name == "CW" else {}
    values = [
        robust_accuracy(net, x, y, eps=eps, attack=name, attack_args=arguments, bounds=(0, 1)).robust_acc[eps]
        for eps in (1e-5, 1.5)
    ]
    assert values[0] == 1 > values[1]


def test_attacks_of_images_say_so():
    x = uniform(6, 8)
    net = net_for(x)
    for name in ("DIFGSM", "TIFGSM", "PIFGSM", "PIFGSMPP"):
        with pytest.raises(ValueError, match=rf"{name}.*images \(N, .*\(6, 8\)"):
            robust_accuracy(net, x, classes_of(net, x), eps=0.1, attack=name)
    for name in ("Square", "AutoAttack"):
        with pytest.raises(ValueError, match=rf"{name}.*in L2 is for images .*5 x 5.*\(6, 8\)"):
            robust_accuracy(net, x, classes_of(net, x), eps=0.1, attack=name, attack_args={"norm": "L2"})


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "APGD", "APGDT", "FAB", "Square", "DeepFool", "JSMA"])
def test_a_single_point(name):
    x = uniform(1, 6)
    net = net_for(x)
    arguments = {"n_queries": 5} if name == "Square" else {}
    for y in (classes_of(net, x), (classes_of(net, x) + 1) % 5):
        result = robust_accuracy(net, x, y, eps=0.1, attack=name, attack_args=arguments, bounds=(0, 1))
        assert result.robust_acc[0.1] in (0, 1)
        assert result.robust_acc[0.1] <= result.clean_acc


# Chunks


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "APGD", "FAB"])
def test_the_chunk_size_changes_nothing(name):
    x = uniform(20, 6, dtype=torch.float64)
    net = net_for(x)
    y = torch.arange(20) % 5
    measure = functools.partial(
        robust_accuracy, net, x, y, eps=0.1, attack=name, bounds=(0, 1), return_adversarial=True
    )
    whole, parts = measure(), measure(chunk_size=3)
    assert whole.clean_acc == parts.clean_acc
    assert whole.robust_acc == parts.robust_acc
    torch.testing.assert_close(whole.adversarial[0.1], parts.adversarial[0.1], rtol=0, atol=1e-6)


class Small(nn.Module):
    """Has memory for a few points."""

    def __init__(self, net: nn.Module, most: int) -> None:
        super().__init__()
        self.net, self.most = net, most
        self.sizes = Calls()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        self.sizes.append(len(x))
        return self.net(x)


def moved_up(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """An attack that asks the model nothing."""
    return x + eps


@pytest.mark.parametrize("attack", ["PGD", "APGD", moved_up])
@pytest.mark.parametrize("chunk_size", [None, 9])
def test_out_of_memory_halves_the_chunk(attack, chunk_size):
    x = uniform(20, 6, dtype=torch.float64)
    net = net_for(x)
    y = classes_of(net, x)
    bounds = (-math.inf, math.inf)
    expected = robust_accuracy(net, x, y, eps=0.2, attack=attack, bounds=bounds)
    small = Small(net, 5)
    result = robust_accuracy(small, x, y, eps=0.2, attack=attack, bounds=bounds, chunk_size=chunk_size)
    assert (result.clean_acc, result.robust_acc) == (expected.clean_acc, expected.robust_acc)
    assert max(small.sizes) in (4, 5)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        robust_accuracy(Small(net, 0), x, y, eps=0.2, attack=attack)


def test_memory_of_the_backward_pass_is_budgeted(monkeypatch):
    monkeypatch.setattr("lc_callback.engine.adversarial.logits.ATTACKS", Budget(cpu=1000, cuda=1000))
    x = uniform(20, 6)
    net = net_for(x)
    y = classes_of(net, x)
    sizes = Calls()
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    assert robust_accuracy(net, x, y, eps=0.1).clean_acc == 1
    assert 1 < max(sizes) < 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ["torchattacks", "twin"])
def test_parts_draw_the_noise_of_the_whole(engine, dtype, request):
    if engine == "twin":
        request.getfixturevalue("without_torchattacks")
    x = uniform(50, 3, 5, 5, dtype=dtype)
    net = net_for(x)
    y = classes_of(net, x)
    settings = {"eps": 0.1, "alpha": 1e-6, "steps": 1, "bounds": (-1, 2)}  # next to nothing but noise
    whole, parts = (attacked(net, x, y, chunk_size=size, **settings) for size in (50, 7))
    assert float((whole - x).abs().max()) > 0.09
    torch.testing.assert_close(whole, parts, rtol=0, atol=3e-6)
    assert len({*(whole - x).flatten(1)[:, 0].tolist()}) == 50


@pytest.mark.parametrize("settings", [{}, {"chunk_size": 7}])
def test_pgd_computes_no_logits_twice(settings, monkeypatch):
    monkeypatch.setattr("lc_callback.engine.adversarial.logits._FAST", 0)
    x = uniform(50, 6)
    net = net_for(x)
    y = classes_of(net, x)
    sizes = Calls()
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    assert robust_accuracy(net, x, y, eps=1e-6, steps=4, **settings).robust_acc == {1e-6: 1.0}
    tried = 2  # to see what a point keeps
    assert sum(sizes) == tried + 50 * (1 + 4 + 1)  # at the points, each step, at the attacked points
    assert max(sizes[2:]) == settings.get("chunk_size", 25)  # even parts of no more than 32


@pytest.mark.parametrize("wrong", [[0, 1, 5, 30, 31, 32, 48], [3, 49], range(1, 49), range(50)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("engine", ["torchattacks", "twin"])
def test_pgd_leaves_out_what_is_wrong_already_and_changes_nothing_else(engine, layout, wrong, request):
    if engine == "twin":
        request.getfixturevalue("without_torchattacks")
    x = uniform(50, 3, 5, 5, dtype=torch.float64).contiguous(memory_format=layout)
    net = net_for(x)
    y = classes_of(net, x)
    y[[*wrong]] += 1
    y %= net(x).shape[1]
    settings = {"eps": [0.03, 0.1], "steps": 3, "bounds": (-1, 2), "chunk_size": 9}
    every = robust_accuracy(net, x, y, return_adversarial=True, **settings)
    calls = Calls()
    net.register_forward_pre_hook(lambda module, args: calls.append(args[0].detach().clone()))
    found = robust_accuracy(net, x, y, **settings)
    assert found.robust_acc == every.robust_acc
    before = 1 + 6  # to see what a point keeps, and at the points, in parts of 9
    asked = torch.cat([torch.zeros_like(x[:1]), *calls[before:]]).flatten(1)
    right = torch.tensor([row not in wrong for row in range(50)])
    # All that is asked for lies around points that are right, and what is found at them is found with the others, too.
    nearest = torch.cdist(asked[1:], x.flatten(1), p=math.inf).min(1)
    assert right[nearest.indices].all()
    assert (nearest.values <= 0.1 + 1e-12).all()
    distance = torch.cdist(every.adversarial[0.1].flatten(1), asked, p=math.inf).amin(1)
    assert (distance[right] <= 1e-12).all()
    assert (distance[~right] > 1e-3).all()


# Nothing is left behind


class Lived(nn.Module):
    """A module with everything that an attack could change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.frozen, self.dropout, self.last = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        noise = 1e-3 * torch.rand(1, generator=self.generator)
        return self.last(self.dropout(self.frozen(self.norm(self.first(x)).relu()))) + noise


def lived() -> tuple[Lived, Tensor, Tensor]:
    net, x = Lived(), normal(10, 6)
    y = torch.arange(10) % 3
    nn.functional.cross_entropy(net(x), y).backward()  # gradients and statistics
    net.frozen.eval()
    net.first.bias.requires_grad_(False)
    return net, x, y


def state_of(net: Lived) -> dict[str, object]:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        **{name: (id(t), t._version, t.requires_grad, t.tolist()) for name, t in tensors.items()},
        **{f"grad {name}": None if t.grad is None else (id(t.grad), t.grad.tolist()) for name, t in tensors.items()},
        "modes": [module.training for module in net.modules()],
        "hooks": [len(module._forward_hooks) for module in net.modules()],
        "generator": net.generator.get_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "modes of torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def by_backward(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """One step, as rudely as possible."""
    model.train()
    random.random(), np.random.rand()
    x.requires_grad_()
    nn.functional.cross_entropy(model(x), y).backward()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return x + eps * x.grad.sign()


def raises(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    by_backward(model, x, y, 0.1)
    raise KeyError("on purpose")


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attack", ["PGD", "PGDL2", "APGD", "FAB", "DeepFool", "CW", "Square", by_backward, raises])
def test_everything_is_left_as_it_was(attack, context):
    net, x, y = lived()
    before, kept = state_of(net), (x.clone(), y.clone())
    arguments = {"n_queries": 3} if attack == "Square" else {"steps": 2} if attack in ("CW", "DeepFool") else {}
    measure = functools.partial(robust_accuracy, net, x, y, eps=0.1, attack=attack, attack_args=arguments, steps=2)
    with context():
        inside = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        if attack is raises:
            with pytest.raises(KeyError):
                measure(bounds=(-9, 9))
        else:
            assert 0 <= measure(bounds=(-9, 9)).robust_acc[0.1] <= 1
        assert inside == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert state_of(net) == before
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert not x.requires_grad


@pytest.mark.parametrize("inside", [False, True])
def test_inference_tensors_are_points_too(inside):
    x = uniform(10, 6)
    net = net_for(x)
    y = classes_of(net, x)
    expected = attacked(net, x, y, eps=0.1)
    with torch.inference_mode():
        x, y = x.clone(), y.clone()
        if inside:
            found = attacked(net, x, y, eps=0.1)
    if not inside:
        found = attacked(net, x, y, eps=0.1)
    assert torch.equal(found, expected)


# Seeds


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "APGD", "Square"])
def test_the_seed_alone_decides(name):
    x = uniform(12, 6)
    net = net_for(x)
    y = classes_of(net, x)
    arguments = {"n_queries": 3} if name == "Square" else {}

    def found(seed: int, world: int) -> Tensor:
        torch.manual_seed(world)
        return attacked(net, x, y, eps=0.3, attack=name, attack_args=arguments, steps=1, alpha=0.01, seed=seed)

    assert torch.equal(found(0, 1), found(0, 2))
    assert not torch.equal(found(0, 1), found(1, 1))


def test_a_model_that_draws_gives_the_same_row_twice():
    x = uniform(200, 6)
    net = net_for(x)
    y = classes_of(net, x)
    rows = []
    for world in (1, 2, 3):
        torch.manual_seed(world)
        rows.append(robust_accuracy(net, x, y, eps=0.1, forward_fn=lambda m, p: m(p) + torch.randn(len(p), 5)))
    assert rows[0].clean_acc == rows[1].clean_acc == rows[2].clean_acc < 1
    assert rows[0].robust_acc == rows[1].robust_acc == rows[2].robust_acc


DRAWS = {
    "uniform_": lambda: torch.empty(3, 2).uniform_(-1, 2),
    "normal_": lambda: torch.empty(3, dtype=torch.float64).normal_(1, 2),
    "random_": lambda: torch.empty(3).random_(10),
    "bernoulli_": lambda: torch.empty(9).bernoulli_(0.3),
    "rand": lambda: torch.rand(3, 2),
    "rand of a size": lambda: torch.rand(torch.Size([3, 2]), dtype=torch.float64),
    "randn": lambda: torch.randn((3, 2)),
    "randint": lambda: torch.randint(3, 9, (5,)),
    "randint by keywords": lambda: torch.randint(low=0, high=9, size=(5,)),
    "rand_like": lambda: torch.rand_like(torch.zeros(3), dtype=torch.float64),
    "randn_like": lambda: torch.randn_like(torch.zeros(3, 2)),
    "randperm": lambda: torch.randperm(7),
    "in place, changed": lambda: torch.zeros(3).uniform_(0, 1).mul_(2),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_noise_of_the_cpu_is_that_of_the_seed(draw):
    torch.manual_seed(0)
    expected, following = draw(), torch.rand(1)
    torch.manual_seed(0)
    with _NoiseOfTheCPU():
        found = draw()
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    assert torch.equal(torch.rand(1), following)


@pytest.mark.parametrize("name", ["rand", "randn", "randperm", "uniform_", "rand_like"])
def test_noise_for_another_device_is_drawn_on_the_cpu(name):
    draws = {
        "rand": lambda device: torch.rand(5, device=device),
        "randn": lambda device: torch.randn(5, device=device),
        "randperm": lambda device: torch.randperm(5, device=device),
        "uniform_": lambda device: torch.empty(5, device=device).uniform_(-1, 1),
        "rand_like": lambda device: torch.rand_like(torch.empty(5, device=device)),
    }
    states = []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        with _NoiseOfTheCPU():
            assert draws[name](device).device.type == device
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# Errors


def measure(**changed):
    x = uniform(8, 6)
    net = net_for(x)
    arguments = {"model": net, "inputs": x, "targets": classes_of(net, x), "eps": 0.1, **changed}
    return robust_accuracy(arguments.pop("model"), arguments.pop("inputs"), arguments.pop("targets"), **arguments)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        *(
            ({"eps": eps}, "`eps` must be")
            for eps in (-0.1, "0.1", [], [0.1, 0.1], [0.1, -1], math.inf, math.nan, True)
        ),
        *(({"alpha": alpha}, "`alpha` must be") for alpha in (0, -1, "a", math.inf, True)),
        *(({"steps": steps}, "`steps` must be") for steps in (0, 1.5, None, True)),
        *(({"chunk_size": size}, "`chunk_size` must be") for size in (0, 2.5, True)),
        *(({"bounds": bounds}, r"`bounds` must be a pair") for bounds in (1, (0,), (0, 1, 2))),
        *(
            ({"bounds": bounds}, r"`bounds=.*` must be a pair \(low, high\) with low below high")
            for bounds in ((1, 0), (0.5, 0.5), (math.inf, -math.inf), (math.nan, 1), (torch.ones(()), 0))
        ),
        ({"bounds": (0, 0.5)}, "must hold all points, which range from .* to .*domain of the inputs"),
        ({"bounds": (0, torch.ones(5))}, r"shape \(6,\) of one point, but one has shape \(5,\)"),
        ({"eps_unit": "sd"}, "`eps_unit` must be 'auto', 'input' or 'std', but got 'sd'"),
        ({"attack_args": ["random_start"]}, "`attack_args` must be a mapping"),
        ({"attack_args": {"start": True}}, r"`attack_args` of 'PGD' holds \['start'\]; possible .*random_start"),
        ({"at": 1}, "`at` must be the name"),
        ({"attack": None}, "`attack` must be the name of an attack or a function"),
        ({"attack": "PGDD"}, "`attack='PGDD'` is not one of .*APGD.*PGDL2"),
        ({"attack": "VANILA"}, "is not one of"),
        ({"model": lambda x: x}, "`model` must be a torch.nn.Module"),
    ],
)
def test_arguments_are_checked_in_words(changed, text):
    with pytest.raises(ValueError, match=text):
        measure(**changed)


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (None, "no targets were found"),
        ([0] * 8, "the targets are a list"),
        (torch.zeros(8), r"torch.float32 of shape \(8,\), where accuracy needs 8 integer classes"),
        (torch.zeros(7, dtype=torch.long), r"shape \(7,\), where accuracy needs 8"),
        (torch.zeros(8, 2, dtype=torch.long), r"shape \(8, 2\)"),
        (torch.full((8, 5), 0.2), r"torch.float32 of shape \(8, 5\)"),
        (torch.full((8,), 5), "from 5 to 5, but the model returns 5 logits, for classes 0 to 4"),
        (torch.full((8,), -1), "from -1 to -1"),
    ],
)
def test_targets_that_are_no_classes_are_refused_in_words(targets, text):
    with pytest.raises(ValueError, match=f"(?s){text}.*target_fn="):
        measure(targets=targets)


@pytest.mark.parametrize("change", [lambda y: nn.functional.one_hot(y, 5), lambda y: y[:, None], lambda y: y.byte()])
def test_one_hot_rows_columns_and_bytes_are_classes(change):
    x = uniform(8, 6)
    y = classes_of(net_for(x), x)
    assert measure(targets=change(y)).robust_acc == measure().robust_acc


@pytest.mark.parametrize(
    ("shape_of", "text"),
    [
        (lambda z: z[:, 0], r"shape \(8,\); they range from 0 to 3, where task='binary' needs 0 and 1: .*target_fn="),
        (lambda z: z[:, :1], r"shape \(8, 1\); they range from 0 to 3.*target_fn="),
        (lambda z: z[:, :, None], r"shape \(8, 5, 1\)"),
        (lambda z: {"probabilities": z}, r"dict with keys \['probabilities'\].*forward_fn="),
        (lambda z: "logits", "str.*forward_fn="),
        (lambda z: z.argmax(1), "Tensor.*floating-point.*forward_fn="),
    ],
)
def test_outputs_that_are_no_logits_are_refused_in_words(shape_of, text):
    with pytest.raises(ValueError, match=text):
        measure(forward_fn=lambda model, x: shape_of(model(x)))


def without_gradient(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("forward_fn", [without_gradient, lambda model, x: model((10 * x).long().float())])
@pytest.mark.parametrize("name", ["PGD", "PGDL2", "APGD", "FAB"])
def test_a_model_without_gradient_is_an_error_that_names_the_remedy(forward_fn, name):
    with pytest.raises(ValueError, match=r"no gradient flows.*at=.*forward_fn=.*attack='Square'"):
        measure(forward_fn=forward_fn, attack=name)
    assert measure(forward_fn=forward_fn, attack="Square", attack_args={"n_queries": 3}).clean_acc <= 1


def test_without_torchattacks_one_line_names_the_extra(without_torchattacks):
    with pytest.raises(ValueError, match=r"`attack='APGD'`.*pip install lc_callback\[attacks\]") as caught:
        measure(attack="APGD")
    assert "\n" not in str(caught.value)
    for words in ATTACKS:  # which tools/check_dist.py follows in an empty environment
        assert f"`pip install {' '.join(words)}`" in str(caught.value)
    assert "use one of PGD, PGDL2, FGSM, which are built in; did you mean 'PGD'?" in str(caught.value)
    for name, arguments in BUILT_IN:
        assert measure(attack=name, attack_args=arguments).clean_acc == 1
    for name in ("PGD", "PGDL2"):
        with pytest.raises(ValueError, match=rf"'{name}' takes 'random_start' only, but got \['start'\]"):
            measure(attack=name, attack_args={"start": 1})
    with pytest.raises(ValueError, match=r"'FGSM' takes nothing, but got \['random_start'\]"):
        measure(attack="FGSM", attack_args={"random_start": True})


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        (lambda model, x, y: x + 0.2, "moved points by 0.2 .*more than eps = 0.1.*parameter `eps`"),
        (lambda model, x, y: x - 2, "left the bounds"),
        (lambda model, x, y: x[:3], r"must return a tensor \(8, 6\).*gave \(3, 6\)"),
        (lambda model, x, y: None, "gave NoneType"),
    ],
)
def test_functions_are_checked(attack, text):
    x = uniform(8, 6)
    net = net_for(x)
    with pytest.raises(ValueError, match=text):
        robust_accuracy(net, x, classes_of(net, x), eps=0.1, attack=attack, bounds=(-1, 2))


def test_a_function_gets_a_model_points_targets_and_the_budget():
    x = uniform(8, 6) * 4 - 2
    net = net_for(x)
    y = classes_of(net, x)
    seen = []

    def attack(model, points, targets, *, eps):
        seen.append((torch.equal(points, x), torch.equal(targets, y), eps, model.training))
        assert isinstance(model, nn.Module)
        assert torch.equal(model(points).argmax(1), y)
        points += eps  # a copy
        return points

    result = robust_accuracy(net, x, y, eps=[0.1, 0.2], attack=attack, bounds=(-9, 9), return_adversarial=True)
    assert seen == [(True, True, 0.1, False), (True, True, 0.2, False)]
    stood = classes_of(net, x + 0.1) == y
    assert 0 < stood.sum() < 8
    torch.testing.assert_close(result.adversarial[0.2], torch.where(stood[:, None], x + 0.2, x + 0.1))
    assert result.robust_acc[0.2] == (stood & (classes_of(net, x + 0.2) == y)).double().mean()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_no_accuracy(bad):
    x = uniform(8, 6)
    net = net_for(x)
    y = classes_of(net, x)

    def forward_fn(model: nn.Module, points: Tensor) -> Tensor:
        return torch.where((points == x[3]).all(1, keepdim=True), bad, model(points))

    result = robust_accuracy(net, x, y, eps=[0.1, 0.2], forward_fn=forward_fn, return_adversarial=True)
    assert math.isnan(result.clean_acc)
    assert all(map(math.isnan, result.robust_acc.values()))
    assert result.adversarial[0.1].isnan().all()


def test_logits_that_are_not_finite_only_under_attack_are_no_robust_accuracy():
    x = uniform(8, 6)
    net = net_for(x)
    y = classes_of(net, x)
    result = robust_accuracy(
        net, x, y, eps=0.5, forward_fn=lambda m, p: m(p) + 0 * p.sqrt().sum(1, keepdim=True), bounds=(-1, 2)
    )
    assert result.clean_acc == 1
    assert math.isnan(result.robust_acc[0.5])


# Models


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, wrap) -> None:
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x: Tensor):
        return self.wrap(self.net(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: {"logits": z, "loss": z.sum()},
        lambda z: (z, z.sum()),
        lambda z: [z],
        lambda z: SimpleNamespace(logits=z, hidden=None),
    ],
    ids=["dict", "tuple", "list", "attribute"],
)
def test_logits_are_found_in_the_output(wrap):
    x = uniform(12, 6)
    net = net_for(x)
    y = classes_of(net, x)
    assert torch.equal(attacked(Wrapped(net, wrap), x, y, eps=0.2), attacked(net, x, y, eps=0.2))


@pytest.mark.usefixtures("looks_into_compiled_modules")
def test_compiled_and_in_place_models():
    x = uniform(12, 6)
    net = net_for(x)
    y = classes_of(net, x)
    expected = attacked(net, x, y, eps=0.2)
    in_place = copy.deepcopy(net)
    in_place[2] = nn.ReLU(inplace=True)
    assert torch.equal(attacked(in_place, x, y, eps=0.2), expected)
    assert torch.equal(attacked(in_place, x, y, eps=0.2, at="1"), attacked(net, x, y, eps=0.2, at="1"))
    assert torch.equal(attacked(torch.compile(net, backend="eager"), x, y, eps=0.2), expected)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_a_model_that_writes_to_its_input(chunk_size):
    class Shifts(nn.Module):
        def __init__(self, net: nn.Module, rude: bool) -> None:
            super().__init__()
            self.net, self.rude = net, rude

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.sub_(0.5) if self.rude else x - 0.5)

    x = uniform(12, 6)
    kept, net = x.clone(), net_for(x)
    y = classes_of(net, x - 0.5)
    for name in ("PGD", "APGD", "Square"):
        rude, polite = (
            robust_accuracy(
                Shifts(net, rude),
                x,
                y,
                eps=0.2,
                attack=name,
                attack_args={"n_queries": 9} if name == "Square" else {},
                bounds=(0, 1),
                chunk_size=chunk_size,
                return_adversarial=True,
            )
            for rude in (True, False)
        )
        assert rude.clean_acc == 1
        assert rude.robust_acc == polite.robust_acc
        assert torch.equal(rude.adversarial[0.2], polite.adversarial[0.2])
    assert torch.equal(x, kept)


def test_recurrent_networks_in_training_mode():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.lstm, self.head = nn.LSTM(4, 8, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(8, 3)
            nn.init.zeros_(self.head.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    net, x = Recurrent().train(), normal(30, 6, 4)
    y = classes_of(copy.deepcopy(net).eval(), x)
    result = robust_accuracy(net, x, y, eps=3.0, bounds=(-9, 9), return_adversarial=True)
    assert net.training
    assert result.clean_acc == 1 > result.robust_acc[3.0]
    assert (result.adversarial[3.0] - x).abs().max() == pytest.approx(3, rel=1e-5)
    robust_accuracy(net, x, y, eps=0.1, attack=by_backward, bounds=(-9, 9))
    assert all(parameter.grad is None for parameter in net.parameters())
    nn.functional.cross_entropy(net(x), y).backward()  # still whole
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_half_precision_weights_are_measured_in_float32():
    x = uniform(12, 6)
    net = net_for(x).bfloat16()
    wide = copy.deepcopy(net).float()
    y = classes_of(wide, x)
    assert torch.equal(attacked(net, x, y, eps=0.2), attacked(wide, x, y, eps=0.2))
    assert net[1].weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attacked(wide, x, y, eps=0.2), attacked(wide, x, y, eps=0.2))


def test_dropout_and_batch_norm_are_measured_in_eval_mode():
    x = normal(24, 6)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    net(x)  # statistics
    still = copy.deepcopy(net).eval()
    y = classes_of(still, x)
    one, other = (robust_accuracy(n, x, y, eps=0.3, return_adversarial=True) for n in (net.train(), still))
    assert one.clean_acc == other.clean_acc == 1
    assert torch.equal(one.adversarial[0.3], other.adversarial[0.3])


def test_each_point_is_attacked_with_its_name():
    class Signed(nn.Module):
        def forward(self, x, names):
            signs = torch.tensor([1.0 if name == "plus" else -1.0 for name in names]).to(x)
            return torch.stack([x[:, 0] * signs, -x[:, 0] * signs], 1)

    x = torch.tensor([[0.5], [-0.5], [0.2], [-0.2]])
    names, y = ["plus", "minus", "minus", "plus"], torch.tensor([0, 0, 1, 1])
    found = robust_accuracy(Signed(), (x, names), y, eps=[0.3, 0.6], bounds=(-1, 1), chunk_size=3)
    assert (found.clean_acc, found.robust_acc) == (1.0, {0.3: 0.5, 0.6: 0.0})
