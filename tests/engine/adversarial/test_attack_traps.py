"""The sixteen traps of torchattacks: each is shown on the bare package, then not to be there in `robust_accuracy`."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lc_callback.engine.adversarial.attacks import Attack, Box
from lc_callback.engine.adversarial.labels import Labels
from lc_callback.functional import robust_accuracy

EPS = 8 / 255


def flat_net(dim: int = 6, classes: int = 5, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(dim, 16), nn.ReLU(), nn.Linear(16, classes))


def image_net(channels: int = 1, size: int = 4, classes: int = 5, seed: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *flat_net(channels * size**2, classes, seed))


def images(n: int = 12, channels: int = 1, size: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def vectors(n: int = 12, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(n, dim, generator=torch.Generator().manual_seed(seed))


def classes_of(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1)


def moved(result, x: Tensor, eps: float) -> Tensor:
    return (result.adversarial[eps] - x).flatten(1)


@pytest.fixture
def no_square(monkeypatch):
    """AutoAttack without its last and longest stage, 5000 queries for each point left."""
    monkeypatch.setattr(torchattacks.Square, "forward", lambda self, x, y: x)


class Counted(nn.Module):
    """Counts the points it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.points, self.calls = net, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.points += len(x)
        self.calls += 1
        return self.net(x)


def test_1_points_outside_the_unit_box_are_moved_by_eps_not_clamped_to_it():
    net = image_net()
    x = (images() - 0.5) / 0.25
    y = classes_of(net, x)
    assert (torchattacks.PGD(net, eps=EPS)(x, y) - x).abs().max() > 0.9
    result = robust_accuracy(net, x, y, eps=EPS, return_adversarial=True)
    assert moved(result, x, EPS).abs().max() == pytest.approx(EPS, rel=1e-4)


def test_2_vectors_standardised_per_feature_are_attacked_in_their_own_domain():
    net = flat_net()
    mean, std = torch.linspace(0.3, 0.7, 6), torch.linspace(0.1, 0.5, 6)
    x = (vectors() - mean) / std
    y = classes_of(net, x)
    bare = torchattacks.PGD(net, eps=EPS)
    bare.set_normalization_used(mean.tolist(), std.tolist())
    with pytest.raises((ValueError, RuntimeError)):
        bare(x, y)
    low, high = -mean / std, (1 - mean) / std
    result = robust_accuracy(net, x, y, eps=0.5, bounds=(low, high), return_adversarial=True)
    assert moved(result, x, 0.5).abs().max() == pytest.approx(0.5, rel=1e-5)
    found = result.adversarial[0.5]
    assert (found >= low).all()
    assert (found <= high).all()
    assert (found == low).any()
    assert (found == high).any()


@pytest.mark.parametrize("name", ["PGDL2", "APGD", "APGDT", "Square", "AutoAttack"])
def test_3_vectors_are_attacked_by_all(name):
    net, x = flat_net(), vectors()
    y = classes_of(net, x)
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        getattr(torchattacks, name)(net, eps=0.8)(x, y)
    result = robust_accuracy(net, x, y, eps=0.8, attack=name, return_adversarial=True)
    delta = moved(result, x, 0.8)
    length = delta.norm(dim=1) if name == "PGDL2" else delta.abs().amax(1)
    assert 0.1 < length.max() <= 0.8 * (1 + 1e-5)
    assert result.robust_acc[0.8] < 1


def test_4_a_frozen_batch_norm_stays_frozen():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5))
    net.train()
    net[2].eval()
    before = [module.training for module in net.modules()]
    x, y = images(), torch.arange(12) % 5
    robust_accuracy(net, x, y, eps=EPS)
    assert [module.training for module in net.modules()] == before
    torchattacks.PGD(net, eps=EPS)(x, y)
    assert net[2].training


def test_4_modes_come_back_after_an_attack_that_raises():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad and x.grad_fn is None and len(x) > 2:
                raise KeyError("on purpose")
            return x.flatten(1)

    net = nn.Sequential(nn.Linear(4, 4), Fails())
    net.train()
    x, y = images(), torch.zeros(12, dtype=torch.long)

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise KeyError("on purpose")

    with pytest.raises(KeyError):
        robust_accuracy(net, x, y, eps=EPS, attack=attack)
    assert all(module.training for module in net.modules())
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net[0] = nn.Identity()
    with pytest.raises(KeyError):
        torchattacks.PGD(net, eps=EPS)(x, y)
    assert not net.training


def test_5_the_same_points_are_found_again_and_the_training_stream_goes_on():
    net, x = image_net(), images()
    y = classes_of(net, x)
    bare = torchattacks.PGD(net, eps=EPS, steps=1)
    assert not torch.equal(bare(x, y), bare(x, y))
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        torchattacks.APGD(net, eps=EPS)(x, y)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)  # whatever the user's seed was

    for name in ("PGD", "PGDL2", "APGD", "APGDT", "FAB", "Square"):
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            arguments = {"n_queries": 5} if name == "Square" else {}
            result = robust_accuracy(
                net, x, y, eps=0.2, attack=name, attack_args=arguments, steps=2, return_adversarial=True
            )
            assert torch.equal(before, torch.get_rng_state())
            found.append(result.adversarial[0.2])
        assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("FAB", {"steps": 2}),
        ("CW", {"steps": 2}),
        ("DeepFool", {"steps": 2}),
        ("JSMA", {}),
        ("PIFGSM", {"num_iter_set": 2}),
        ("AutoAttack", {}),
    ],
)
def test_6_no_gradient_is_left_on_the_parameters(name, arguments, no_square):
    net, x = image_net(channels=3, size=8, classes=10), images(channels=3, size=8, n=2)
    y = classes_of(net, x)
    robust_accuracy(net, x, y, eps=1e-4, attack=name, attack_args=arguments)
    assert all(parameter.grad is None for parameter in net.parameters())
    budget = {"eps": 1e-4} if name in ("FAB", "AutoAttack") else {}
    getattr(torchattacks, name)(net, **arguments, **budget)(x, y)
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_7_works_where_gradients_are_off(mode):
    net, x = image_net(), images()
    y = classes_of(net, x)
    expected = robust_accuracy(net, x, y, eps=0.1, return_adversarial=True)
    with mode():
        with pytest.raises(RuntimeError):
            torchattacks.PGD(net, eps=0.1)(x, y)
        result = robust_accuracy(net, x.clone(), y.clone(), eps=0.1, return_adversarial=True)
    assert torch.equal(result.adversarial[0.1], expected.adversarial[0.1])
    assert not result.adversarial[0.1].is_inference()


def test_8_the_device_is_that_of_the_points_in_each_call(monkeypatch):
    net = image_net()
    bare = torchattacks.PGD(net)
    net.to("meta")
    assert bare.device.type == "cpu"  # stale

    seen = []

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        seen.append(self.device)
        return x

    monkeypatch.setattr(torchattacks.PGD, "forward", forward)
    for device in ("cpu", "meta"):
        points = torch.empty(12, 1, 4, 4, device=device)
        box = Box(torch.zeros(1, 4, 4), torch.ones(1, 4, 4))
        labels = Labels("multiclass", torch.zeros(12, device=device), None, (5,))
        Attack("PGD", EPS, None, 10, {}, 0).run(net, points, labels, box, 5)
    assert [device.type for device in seen] == ["cpu", "meta"]


def test_8_a_model_without_parameters_is_attacked_without_a_word(capsys):
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.sum((1, 2, 3)), 16 - x.sum((1, 2, 3))], 1)

    net, x = Sums(), images()
    y = classes_of(net, x)
    torchattacks.PGD(net)
    assert "Failed to set device" in capsys.readouterr().out
    assert robust_accuracy(net, x, y, eps=0.9, bounds=(0, 1)).robust_acc == {0.9: 0.0}
    assert not capsys.readouterr().out


def test_8_a_function_is_attacked_as_forward_fn():
    net, x = image_net(), images()
    y = classes_of(net, x)
    with pytest.raises(AttributeError):
        torchattacks.PGD(lambda x: net(x))(x, y)
    result = robust_accuracy(net, x, y, eps=0.1, forward_fn=lambda model, x: model(x))
    assert result.robust_acc == robust_accuracy(net, x, y, eps=0.1).robust_acc


@pytest.mark.parametrize("change", [lambda y: y.int(), lambda y: y[:, None]], ids=["int32", "column"])
def test_9_integer_targets_of_any_type_are_classes(change):
    net, x = image_net(), images()
    y = classes_of(net, x)
    with pytest.raises((RuntimeError, IndexError)):
        torchattacks.PGD(net)(x, change(y))
    assert robust_accuracy(net, x, change(y), eps=0.1).robust_acc == robust_accuracy(net, x, y, eps=0.1).robust_acc


def test_9_missing_and_soft_targets_are_refused_in_words():
    net, x = image_net(), images()
    with pytest.raises(AttributeError):
        torchattacks.PGD(net)(x, None)
    soft = torch.softmax(net(x).detach(), 1)
    torchattacks.PGD(net)(x, soft)  # no error
    for targets in (None, soft):
        with pytest.raises(ValueError, match=r"targets.*integer classes.*target_fn="):
            robust_accuracy(net, x, targets, eps=0.1)


def test_9_no_points_are_refused_in_words():
    net, x = image_net(), images()[:0]
    with pytest.raises(RuntimeError):
        torchattacks.PGDL2(net)(x, torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="at least 1"):
        robust_accuracy(net, x, torch.zeros(0, dtype=torch.long), eps=0.1, attack="PGDL2")


def test_9_nan_is_reported_as_nan():
    net, x = image_net(), images()
    y = classes_of(net, x)
    with torch.no_grad():
        net[1].weight[0, 0] = math.nan
    assert classes_of(net, torchattacks.PGD(net)(x, y)).eq(y).double().mean().isfinite()  # a number
    result = robust_accuracy(net, x, y, eps=[0.1, 0.2])
    assert math.isnan(result.clean_acc)
    assert all(math.isnan(value) for value in result.robust_acc.values())


def test_9_bytes_are_refused_in_words():
    net, x = image_net(), (images() * 255).to(torch.uint8)
    y = torch.zeros(12, dtype=torch.long)
    with pytest.raises(RuntimeError):
        torchattacks.PGD(net)(x, y)
    with pytest.raises(ValueError, match="convert the inputs to float"):
        robust_accuracy(net, x, y, eps=8)


def test_9_an_output_with_logits_in_a_dict_is_understood():
    class Named(nn.Sequential):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": super().forward(x)}

    net, x = image_net(), images()
    y = classes_of(net, x)
    named = Named(*net)
    with pytest.raises((TypeError, AttributeError)):
        torchattacks.PGD(named)(x, y)
    assert robust_accuracy(named, x, y, eps=0.1).robust_acc == robust_accuracy(net, x, y, eps=0.1).robust_acc


def test_10_autoattack_runs_in_float64(no_square):
    net, x = image_net(classes=10).double(), images().double()
    y = classes_of(net, x)
    with pytest.raises(RuntimeError, match="dtype"):
        torchattacks.AutoAttack(net, eps=0.1)(x, y)
    result = robust_accuracy(net, x, y, eps=0.1, attack="AutoAttack", bounds=(0, 1), return_adversarial=True)
    assert 0 < result.robust_acc[0.1] < 1
    assert result.adversarial[0.1].dtype == torch.float64
    assert moved(result, x, 0.1).abs().max() <= 0.1 + 1e-6


def test_10_in_half_precision_the_budget_is_kept():
    net, x = image_net().bfloat16(), images().bfloat16()
    y = classes_of(net, x)
    assert (torchattacks.PGD(net, eps=EPS)(x, y) - x).float().abs().max() > EPS * 1.02
    result = robust_accuracy(net, x, y, eps=EPS, return_adversarial=True)
    assert result.adversarial[EPS].dtype == torch.float32
    assert moved(result, x.float(), EPS).abs().max() <= EPS * (1 + 1e-5)


@pytest.mark.parametrize(
    ("name", "classes", "arguments"), [("APGD", 2, {"loss": "dlr"}), ("APGDT", 3, {}), ("AutoAttack", 3, {})]
)
def test_11_few_classes_are_enough(name, classes, arguments, no_square):
    net, x = image_net(classes=classes, seed=5), images(64)
    y = classes_of(net, x)
    with pytest.raises(IndexError):
        getattr(torchattacks, name)(net, eps=0.1, **arguments)(x, y)
    result = robust_accuracy(net, x, y, eps=0.1, attack=name, attack_args=arguments, bounds=(0, 1))
    assert 0 < result.robust_acc[0.1] < 1
    assert result.robust_acc[0.1] <= robust_accuracy(net, x, y, eps=0.1, bounds=(0, 1)).robust_acc[0.1] + 1 / 64


@pytest.mark.parametrize("name", ["APGD", "FAB", "Square"])
def test_12_points_at_which_an_attack_fails_are_moved_by_the_default(name):
    net, x = image_net(), images()
    y = classes_of(net, x)
    tiny = 1e-4  # fools nobody
    arguments = {"n_queries": 5} if name == "Square" else {}
    assert torch.equal(getattr(torchattacks, name)(net, eps=tiny, **arguments)(x, y), x)
    result = robust_accuracy(net, x, y, eps=tiny, bounds=(0, 1), return_adversarial=True)
    assert result.robust_acc[tiny] == 1
    assert (moved(result, x, tiny).abs().amax(1) > 0.9 * tiny).all()
    assert "return the point itself where they fail" in " ".join(inspect.getdoc(type(result)).split())


def test_13_nothing_is_printed(capsys):
    net, x = image_net(), images()
    y = classes_of(net, x)
    bare = torchattacks.PGD(net)
    bare.set_mode_targeted_random()
    bare.set_mode_default()
    assert "Attack mode is changed" in capsys.readouterr().out
    quick = {"Square": {"n_queries": 3}, "AutoAttack": {"version": "rand"}}
    for name in ("PGD", "PGDL2", "APGD", "APGDT", "FAB", "Square", "JSMA", "CW", "DeepFool", "AutoAttack"):
        robust_accuracy(net, x, y, eps=0.9, attack=name, attack_args=quick.get(name), steps=2, bounds=(0, 1))
    captured = capsys.readouterr()
    assert not captured.out
    assert not captured.err


class Misled(nn.Module):
    """Gradients that point the wrong way: an attack makes wrong points right."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return 2 * logits.detach() - logits


def test_14_a_point_that_only_the_attack_puts_right_is_not_robust():
    net, x = Misled(image_net(classes=2)), images()
    wrong = 1 - classes_of(net, x)
    last = torchattacks.PGD(net, eps=0.9, alpha=0.2, steps=20)(x, wrong)
    assert (classes_of(net, last) == wrong).any()
    result = robust_accuracy(net, x, wrong, eps=0.9, bounds=(0, 1), return_adversarial=True)
    assert (classes_of(net, result.adversarial[0.9]) == wrong).any()
    assert result.clean_acc == 0
    assert result.robust_acc == {0.9: 0.0}


def test_14_holds_for_a_function_too():
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    x = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]])
    y = torch.tensor([0, 1, 0, 1])
    result = robust_accuracy(
        net, x, y, eps=2, attack=lambda model, x, y: (1.0 - 2.0 * y[:, None]).to(x), bounds=(-1, 1)
    )
    assert result.clean_acc == 0.5
    assert result.robust_acc == {2.0: 0.5}


@pytest.mark.parametrize("name", ["PGD", "PGDL2"])
def test_15_large_logits_do_not_hide_that_points_can_be_fooled(name):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():  # decides at the centre of the box
        plain[1].bias.copy_(-plain[1].weight.sum(1) / 2)
    x = images(64)
    y = classes_of(plain, x)
    sharp = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        sharp[1].weight.copy_(1e5 * plain[1].weight)
        sharp[1].bias.copy_(1e5 * plain[1].bias)
    kind = getattr(torchattacks, name)

    def bare(net: nn.Module) -> float:
        torch.manual_seed(0)
        return float((classes_of(net, kind(net, eps=0.1, alpha=0.025)(x, y)) == y).double().mean())

    def ours(net: nn.Module) -> float:
        return robust_accuracy(net, x, y, eps=0.1, attack=name, alpha=0.025, bounds=(0, 1)).robust_acc[0.1]

    assert bare(sharp) > bare(plain) + 0.1
    assert ours(sharp) == ours(plain) == bare(plain)


def test_16_costs_the_steps_of_pgd_and_two_passes_more():
    net, x = Counted(image_net()), images()
    y = classes_of(net, x)
    net.points = 0
    torchattacks.PGD(net, steps=10)(x, y)
    of_pgd, net.points = net.points, 0
    robust_accuracy(net, x, y, eps=EPS, steps=10)
    assert of_pgd == 10 * len(x)
    assert (
        net.points <= of_pgd + 2 * len(x) + 2
    )  # at the points, at the attacked points, and to see the memory it takes
    net.points = net.calls = 0
    torchattacks.AutoAttack(net, eps=1e-4, n_classes=5, version="rand")(x, y)
    assert net.calls > 400
