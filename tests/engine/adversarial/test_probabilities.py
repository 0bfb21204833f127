"""Models that return probabilities have the robust accuracy of the logits behind them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lc_callback.functional import robust_accuracy

EPS = 0.05


class Scaled(nn.Module):
    """An affine classifier, whose decisions depend neither on the scale of its logits nor on what squashes them."""

    def __init__(self, scale: float, out: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.scale, self.out = scale, out
        generator = torch.Generator().manual_seed(0)
        self.x, self.weight = (torch.rand(n, 6, generator=generator) for n in (100, 3))
        self.weight = 4 * self.weight - 2

    def forward(self, x: Tensor) -> Any:
        return self.out(self.scale * (x - self.x.mean(0)) @ self.weight.T)

    def exact(self) -> tuple[Tensor, float]:
        """Its classes, and the share of the points that no attack turns."""
        z = (self.x - self.x.mean(0)) @ self.weight.T
        y = z.argmax(1)
        lead = z.gather(1, y[:, None]) - z - EPS * (self.weight[y][:, None] - self.weight[None]).abs().sum(-1)
        return y, float((lead.scatter(1, y[:, None], 1.0) > 0).all(1).double().mean())


def measured(scale: float, out: Callable[[Tensor], Any], **arguments: Any) -> tuple[Any, float, list[str]]:
    net = Scaled(scale, out)
    y, exact = net.exact()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        settings = {"eps": EPS, "bounds": (-10.0, 10.0), "steps": 20, **arguments}
        found = robust_accuracy(net, net.x, y, **settings)
    return found, exact, [str(warning.message) for warning in seen]


def by_hand(z: Tensor) -> Tensor:
    exponentials = (z - z.amax(1, keepdim=True)).exp()
    return exponentials / exponentials.sum(1, keepdim=True)


# What comes last is seen, so nothing is lost, whatever the scale.
RECOVERED: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda z: z.softmax(1),
    "softmax of functional": lambda z: nn.functional.softmax(z, dim=-1),
    "module": nn.Softmax(dim=1),
    "sigmoid": torch.sigmoid,
    "sigmoid module": nn.Sigmoid(),
    "exp of log_softmax": lambda z: z.log_softmax(1).exp(),
    "by hand": by_hand,
    "in a dict": lambda z: {"logits": z.softmax(1)},
    "in a tuple": lambda z: (z.softmax(1), z),
    "clamped": lambda z: z.softmax(1).clamp(1e-7, 1 - 1e-7),
    "reshaped": lambda z: z.unsqueeze(1).softmax(2).squeeze(1),
    "cast": lambda z: z.double().softmax(1).float(),
    "some classes": lambda z: torch.cat([z, z[:, :1] - 1e9], 1).softmax(1)[:, :3],
    "sharpened": lambda z: (z / 0.01).softmax(1),
}


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("name", RECOVERED)
def test_probabilities_have_the_robust_accuracy_of_their_logits(name: str, scale: float) -> None:
    found, exact, said = measured(scale, RECOVERED[name])
    assert 0.5 < exact < 0.9
    assert found.clean_acc == 1
    assert found.robust_acc[EPS] == pytest.approx(exact)
    (text,) = said
    assert "the model returns probabilities" in text
    assert "`forward_fn=`" in text
    assert found.note == text


# Only the numbers show these, which keep what rounding has left.
BY_VALUE: dict[str, Callable[[Tensor], Any]] = {
    "mean of two": lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2,
    "one logit": lambda z: 0.5 * (1 + torch.tanh(z / 2)),
    "in place": lambda z: z.clone().sigmoid_(),
    "mixed with noise": lambda z: 0.999 * z.softmax(1) + 0.001 / 3,
}


@pytest.mark.parametrize("name", BY_VALUE)
def test_other_probabilities_are_seen_by_their_values(name: str) -> None:
    found, exact, said = measured(6, BY_VALUE[name])
    assert found.clean_acc == 1
    assert found.robust_acc[EPS] == pytest.approx(exact, abs=0.02)
    (text,) = said
    assert "their logarithms are attacked" in text
    assert "rounded" not in text


def test_what_rounding_has_taken_is_said() -> None:
    found, _, (text,) = measured(1000, lambda z: (z.softmax(1) + z.softmax(1)) / 2)
    assert found.clean_acc == 1
    assert "of them are rounded to 0 and 1" in text


LOGITS: dict[str, Callable[[Tensor], Any]] = {
    "logits": lambda z: z,
    "log_softmax": lambda z: z.log_softmax(1),
    "positive": lambda z: z - z.detach().min() + 1,
    "within the unit interval": lambda z: 0.5 + z / 100,
    "rows of sum 1": lambda z: z - z.mean(1, keepdim=True) + 1 / 3,
    "softmax inside": lambda z: z + 0 * z.softmax(1),
    "softmax over the points": lambda z: z + z.softmax(0).detach(),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_taken_as_they_are(name: str) -> None:
    found, exact, said = measured(1, LOGITS[name])
    assert found.robust_acc[EPS] == pytest.approx(exact)
    assert (said, found.note) == ([], "")


@pytest.mark.parametrize(
    "arguments",
    [{"chunk_size": 7}, {"attack": "PGDL2"}, {"attack": "APGD"}, {"normalize_logits": False}, {"eps": [0.01, EPS]}],
    ids=str,
)
def test_any_attack_gets_the_logits(arguments: dict[str, Any]) -> None:
    found, _, said = measured(5, lambda z: z.softmax(1), **arguments)
    expected, _, _ = measured(5, lambda z: z, **arguments)
    assert found.robust_acc == expected.robust_acc
    assert len(said) == 1
