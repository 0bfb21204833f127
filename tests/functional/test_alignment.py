"""Centroid alignment against the full Jacobian."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import jacobian

from lc_callback.functional import centroid_alignment


def points(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def twin(function, x):
    """Cosine of each point and the summed rows of the Jacobian of ``function`` at the point."""
    cosines = []
    for point in x:
        rows = jacobian(lambda u: function(u[None])[0].flatten(), point)
        a, b = point.flatten(), rows.flatten(1).sum(0)
        cosines.append(float(a @ b / (a.norm() * b.norm())))
    return cosines


class Function(nn.Module):
    """A function of a network as a model."""

    def __init__(self, function, net):
        super().__init__()
        self.function, self.net = function, net

    def forward(self, *args, **kwargs):
        return self.function(self.net, *args, **kwargs)


def mlp(seed=0, act=nn.ReLU):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 9), act(), nn.Linear(9, 7), act(), nn.Linear(7, 3)).double()


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, nn.Tanh])
@pytest.mark.parametrize("seed", range(3))
def test_an_mlp_against_its_jacobian(act, seed):
    net, x = mlp(seed, act), points(8, 5, seed=seed)
    found = centroid_alignment(net, x)
    assert found.cosine.tolist() == pytest.approx(twin(net, x), rel=1e-10)
    assert found.mean == pytest.approx(np.mean(twin(net, x)))
    assert len(set(found.cosine.tolist())) > 4


def test_a_cnn_against_its_jacobian():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).double()
    net = nn.Sequential(*net, nn.Linear(16, 3).double())
    x = points(6, 2, 6, 6)
    net(x + 1)  # running statistics; left in train mode
    expected = twin(copy.deepcopy(net).eval(), x)
    assert centroid_alignment(net, x).cosine.tolist() == pytest.approx(expected, rel=1e-10)


def test_an_lstm_against_its_jacobian():
    torch.manual_seed(0)
    net, x = Function(lambda rnn, u: rnn(u)[0][:, -1], nn.LSTM(3, 4, batch_first=True)).double(), points(4, 5, 3)
    assert centroid_alignment(net, x).cosine.tolist() == pytest.approx(twin(net, x), rel=1e-10)


def test_a_linear_network_has_the_closed_form():
    net, x = nn.Linear(5, 3).double(), points(10, 5)
    expected = F.cosine_similarity(x, net.weight.sum(0)[None])
    assert torch.allclose(centroid_alignment(net, x).cosine, expected)
    along = net.weight.detach().sum(0)[None]
    assert centroid_alignment(net, torch.cat([2 * along, -along])).cosine.tolist() == pytest.approx([1, -1])


def test_every_output_of_a_map_is_summed():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Conv1d(3, 2, 2)).double(), points(4, 2, 6)
    assert centroid_alignment(net, x).cosine.tolist() == pytest.approx(twin(net, x), rel=1e-10)


def test_tokens_are_taken_at_their_embedding():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(11, 3), nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    x = torch.randint(0, 11, (9, 4), generator=torch.Generator().manual_seed(0))
    expected = twin(net[1:], net[0](x).detach())
    assert centroid_alignment(net, x).cosine.tolist() == pytest.approx(expected, rel=1e-10)
    assert centroid_alignment(net, x, at="0", chunk_size=2).cosine.tolist() == pytest.approx(expected, rel=1e-10)


def test_at_a_module_takes_its_output_even_if_the_next_works_in_place():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = points(8, 4)
    expected = twin(lambda u: net[2:](u.relu()), net[0](x).detach())
    assert centroid_alignment(net, x, at="0").cosine.tolist() == pytest.approx(expected, rel=1e-10)


def test_an_in_place_operation_on_the_input_does_not_move_the_point():
    net, x = Function(lambda net, u: net(u.relu_()), mlp()), points(8, 5)
    expected = twin(lambda u: net.net(u.relu()), x)
    assert centroid_alignment(net, x.clone()).cosine.tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: (z, z.detach() * 3),
        lambda z: [z],
        lambda z: {"loss": z.sum(), "logits": z},
        lambda z: SimpleNamespace(logits=z),
    ],
)
def test_logits_are_found_in_what_the_model_returns(wrap):
    net, x = mlp(), points(6, 5)
    assert centroid_alignment(Function(lambda net, u: wrap(net(u)), net), x).cosine.tolist() == pytest.approx(
        twin(net, x)
    )


def test_several_inputs_are_one_point():
    net, x, shift = mlp(), points(7, 5), points(7, 2, seed=1)
    model = Function(lambda net, x, shift, mask: net(x * mask) * shift.sum(1, keepdim=True), net)
    mask = torch.rand(7, 5, generator=torch.Generator().manual_seed(2)) > 0.3
    expected = [
        twin(lambda u, m=m: net(u[:, :5] * m) * u[:, 5:].sum(1, keepdim=True), torch.cat([a, b])[None])[0]
        for a, b, m in zip(x, shift, mask, strict=True)
    ]
    assert centroid_alignment(model, (x, shift, mask), chunk_size=3).cosine.tolist() == pytest.approx(expected)
    as_dict = {"mask": mask, "shift": shift, "x": x}
    assert centroid_alignment(model, as_dict).cosine.tolist() == pytest.approx(expected)


def test_forward_fn_says_what_is_differentiated():
    net, x = mlp(), points(7, 5)
    found = centroid_alignment(net, x, forward_fn=lambda model, u: model(u)[:, :1])
    assert found.cosine.tolist() == pytest.approx(twin(lambda u: net(u)[:, :1], x))


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_the_chunk_size_changes_nothing(chunk_size):
    net, x = mlp(), points(70, 5)
    assert torch.allclose(centroid_alignment(net, x, chunk_size=chunk_size).cosine, centroid_alignment(net, x).cosine)


def test_half_precision_is_differentiated_in_float32():
    net, x = mlp().bfloat16(), points(8, 5).bfloat16()
    expected = twin(copy.deepcopy(net).double(), x.double())
    assert centroid_alignment(net, x).cosine.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_whatever_is_around(around):
    net, x = mlp(), points(8, 5)
    with around():
        assert centroid_alignment(net, x).cosine.tolist() == pytest.approx(twin_outside(net, x))


def twin_outside(net, x):
    with torch.inference_mode(False), torch.enable_grad():
        return twin(net, points(8, 5))


# Degenerate


def test_a_point_or_gradient_of_zero_gives_zero():
    net, x = mlp(), points(4, 5)
    x[1] = 0
    found = centroid_alignment(net, x).cosine
    assert found[1] == 0
    assert (found[[0, 2, 3]] != 0).all()
    assert centroid_alignment(Function(lambda net, u: net(u) * 0, net), x).cosine.tolist() == [0] * 4


def test_what_is_not_finite_is_nan_and_leaves_the_others():
    net, x = mlp(), points(4, 5)
    x[2, 0] = math.nan
    assert centroid_alignment(net, x).cosine.isnan().tolist() == [False, False, True, False]
    with torch.no_grad():
        net[-1].weight[0, 0] = math.inf
        net[-1].weight[1, 0] = -math.inf
        net[2].bias[0] = 100.0  # so that the ReLU before is open
    assert centroid_alignment(net, points(4, 5)).cosine.isnan().all()


@pytest.mark.parametrize(
    "forward",
    [
        torch.no_grad()(lambda net, u: net(u)),
        torch.inference_mode()(lambda net, u: net(u)),
        lambda net, u: net(u.detach()),
        lambda net, u: net(u).detach(),
        lambda net, u: net(torch.ones_like(u)),
    ],
)
def test_a_forward_without_gradient_is_told_the_remedy(forward):
    with pytest.raises(ValueError, match=r"no gradient flows .*`at=`.*`forward_fn=`"):
        centroid_alignment(Function(forward, mlp()), points(4, 5))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"forward_fn": lambda model, u: {"out": model(u)}}, r"returns a dict with keys \['out'\].*`forward_fn=`"),
        ({"forward_fn": lambda model, u: model(u).argmax(1)}, "floating-point tensor is needed"),
        ({"at": "nope"}, r"`at='nope'` is not the name of a module"),
        ({"inputs": torch.zeros(4, 5, dtype=torch.long)}, "no floating-point tensor to perturb"),
        ({"inputs": []}, "`inputs` must be one or more tensors"),
        ({"model": F.relu}, "`model` must be a torch.nn.Module"),
        ({"chunk_size": 0}, "`chunk_size` must be a positive integer, but got 0"),
    ],
)
def test_what_cannot_be_differentiated_is_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        centroid_alignment(**{"model": mlp(), "inputs": points(4, 5), **arguments})


# Untouched


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2)).double()
    net[0].bias.requires_grad_(False)
    net[3].eval()
    x = points(20, 5)
    net(x).sum().backward()

    def forward(model, u):
        torch.rand(3), np.random.rand()
        return model(u).detach() if fails else model(u)

    state = copy.deepcopy(net.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    parameters, modes = [(id(p), p.requires_grad) for p in net.parameters()], [m.training for m in net.modules()]
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()
    if fails:
        with pytest.raises(ValueError, match="no gradient flows"):
            centroid_alignment(net, x, forward_fn=forward)
    else:
        centroid_alignment(net, x, forward_fn=forward, chunk_size=7)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [p.grad is None for p in net.parameters()] == [grad is None for grad in grads]
    assert all(grad is None or torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    assert [(id(p), p.requires_grad) for p in net.parameters()] == parameters
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert (np.random.get_state()[1] == numpy_rng).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert x.grad is None
    assert not x.requires_grad


def test_a_backward_in_the_forward_reaches_no_gradient():
    net, x = mlp(), points(4, 5)

    def forward(model, u):
        out = model(u)
        out.sum().backward(retain_graph=True)
        return out

    assert centroid_alignment(net, x, forward_fn=forward).cosine.tolist() == pytest.approx(twin(net, x))
    assert all(p.grad is None for p in net.parameters())
