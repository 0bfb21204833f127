"""The local rank of the experiments: the rank of the Jacobian of the last features at each point."""

import pytest
import torch
from helpers import DIM, Classifier, loader, make_trainer, mlp, points
from local_rank import LocalRank, feature_jacobians
from torch import nn


def bottleneck(narrow):
    return nn.Sequential(nn.Linear(DIM, narrow), nn.Linear(narrow, 12), nn.Tanh(), nn.Linear(12, 3)).double()


@pytest.mark.parametrize("shape", [(DIM,), (2, DIM // 2)])
def test_jacobians_are_those_of_each_point_alone(shape):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), *mlp()[:-1], nn.Linear(16, 3)) if len(shape) > 1 else mlp()
    head, x = network[-1], torch.randn(5, *shape)
    with torch.no_grad():  # as in a measurement
        found = feature_jacobians(network, head, x)
    for point, jacobian in zip(x, found, strict=True):
        twin = torch.autograd.functional.jacobian(lambda one: network[:-1](one[None])[0], point)
        assert torch.allclose(jacobian, twin.flatten(1), atol=1e-6)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("narrow", [1, 3, DIM])
def test_features_move_in_as_many_directions_as_the_narrowest_layer_lets_through(narrow):
    torch.manual_seed(0)
    network = bottleneck(narrow)

    class Called:
        module = network

        def __call__(self, x):
            return network(x)

    class Some:
        inputs = torch.randn(6, DIM).double()

    values = LocalRank(tolerance=1e-6).measure(Called(), {"train": Some()})
    assert values["local_rank/train"] == narrow
    assert 1 <= values["local_rank_effective/train"] <= narrow + 1e-6


def test_it_is_measured_in_a_run(tmp_path):
    callback = LocalRank(n_probes=6, schedule=[0, 2], random_probes=False)
    make_trainer(tmp_path, callback, max_steps=2).fit(Classifier(), loader(points()), loader(points(seed=1)))
    assert [row["step"] for row in callback.history.rows] == [0, 2]
    for row in callback.history.rows:
        assert all(1 <= row[f"local_rank/{split}"] <= 16 for split in ("train", "test"))


def test_a_tolerance_must_be_positive():
    with pytest.raises(ValueError, match=r"`tolerance` must be positive, but got -1"):
        LocalRank(tolerance=-1)
