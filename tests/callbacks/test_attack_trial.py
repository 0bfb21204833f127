"""The trial before the first step attacks: a model through which no gradient flows is refused, whatever is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Classifier, loader, make_trainer, mlp, our_warnings, points
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lc_callback import PGDRobustnessCallback
from lc_callback.functional import robust_accuracy

pytestmark = pytest.mark.usefixtures("no_timeline")


def in_inference_mode(f: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return f(x)


def without_gradient(f: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return f(x)


BLOCKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "no_grad": without_gradient,
    "inference_mode": in_inference_mode,
    "detach": lambda f, x: f(x).detach(),
    "data": lambda f, x: f(x).data,
    "detached first": lambda f, x: f(x.detach().requires_grad_()),
    "numpy": lambda f, x: f(torch.from_numpy(x.numpy())),
    "reentrant checkpoint": lambda f, x: checkpoint(f, x, use_reentrant=True),
    "integers": lambda f, x: f((x * 255).long().float()),
}


class Frozen(Classifier):
    """A body without gradients under a head with them, as in transfer learning."""

    def __init__(self, block: str) -> None:
        super().__init__()
        self.block, self.head = BLOCKS[block], nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.net, x))


def all_wrong(net: nn.Module) -> Any:
    data = points()
    with torch.no_grad():
        wrong = (net(data.tensors[0]).argmax(1) + 1) % 3
    return torch.utils.data.TensorDataset(data.tensors[0], wrong)


@pytest.mark.parametrize("eps", [0.01, 50.0])  # with the larger one all points fall at the start
@pytest.mark.parametrize("block", BLOCKS)
def test_a_model_without_gradients_is_refused_before_the_first_step(block: str, eps: float, tmp_path: Any) -> None:
    torch.manual_seed(0)
    module = Frozen(block)
    data = all_wrong(module)
    trainer = make_trainer(tmp_path, PGDRobustnessCallback(eps=eps, n_probes=8), max_steps=1)
    with pytest.raises(ValueError, match=r"no gradient reaches the inputs.*`at=`.*`forward_fn=`.*attack='Square'"):
        trainer.fit(module, loader(data), loader(data))
    assert trainer.global_step == 0


@pytest.mark.parametrize("settings", [{"eps": 0.0}, {"attack": "Square", "attack_args": {"n_queries": 3}}], ids=str)
@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block != "inference_mode"]
)  # which cannot be trained on
def test_where_no_gradient_is_needed_none_is_asked_for(block: str, settings: Any, tmp_path: Any) -> None:
    callback = PGDRobustnessCallback(**{"eps": 0.1, "n_probes": 8, "schedule": [0], **settings})
    make_trainer(tmp_path, callback, max_steps=1).fit(Frozen(block), loader(), loader())
    assert callback.history.steps == [0]


@pytest.mark.parametrize("keep", ["checkpoint", "dead", "frozen weights"])
def test_a_model_with_gradients_is_attacked(keep: str) -> None:
    net = mlp()
    forward = None
    if keep == "checkpoint":
        forward = lambda model, x: checkpoint(model, x, use_reentrant=False)  # noqa: E731
    elif keep == "dead":  # gradients of 0 are gradients
        nn.init.zeros_(net[4].weight)
    else:
        net.requires_grad_(False)
    x, y = points().tensors
    assert 0 <= robust_accuracy(net, x, y, eps=0.1, forward_fn=forward).robust_acc[0.1] <= 1


def test_probabilities_are_said_once_in_a_run(tmp_path: Any) -> None:
    callback = PGDRobustnessCallback(eps=0.1, n_probes=8, every_n_train_steps=1)
    net = nn.Sequential(mlp(), nn.Softmax(dim=1))
    with our_warnings("PGDRobustnessCallback") as warned:
        make_trainer(tmp_path, callback, max_steps=3).fit(Classifier(net), loader(), loader(points(seed=1)))
    (text,) = [text for text in warned if "returns probabilities" in text]
    assert re.search(r"PGDRobustnessCallback: .*`forward_fn=`", text)
    assert callback.history.steps == [0, 1, 2, 3]


def test_probabilities_that_show_later_cost_no_row(tmp_path: Any) -> None:
    class Sharper(Classifier):
        """The values alone show that these are probabilities, once they are sure."""

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * (1 + torch.tanh(self.net(x) * (0.1 if self.global_step < 2 else 100)))

    callback = PGDRobustnessCallback(eps=0.1, n_probes=8, every_n_train_steps=1)
    with our_warnings("PGDRobustnessCallback") as warned:
        make_trainer(tmp_path, callback, max_steps=4).fit(Sharper(), loader(), loader(points(seed=1)))
    assert sum("returns probabilities" in text for text in warned) == 1
    assert callback.history.steps == [0, 1, 2, 3, 4]
