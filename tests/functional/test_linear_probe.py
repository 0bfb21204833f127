"""Linear probes against a ridge regression that is recorded once more, in NumPy."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lc_callback.functional import linear_probe


def points(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(n, below, seed=0):
    return torch.randint(0, below, (n,), generator=torch.Generator().manual_seed(seed))


def mlp(*widths, seed=0):
    torch.manual_seed(seed)
    parts = [part for n, m in itertools.pairwise(widths) for part in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*parts[:-1]).double()


def twin(features, y, test_features, y_test):
    """Accuracy of a ridge regression with an intercept that is not penalised, by its normal equations."""
    x, test = (np.column_stack([f, np.ones(len(f))]) for f in (features, test_features))
    n, d = features.shape
    targets = np.eye(int(max(y.max(), y_test.max())) + 1)[y]
    penalty = 1e-4 * n * features.var(0).mean() * np.eye(d + 1)
    penalty[d, d] = 0
    head = np.linalg.solve(x.T @ x + penalty, x.T @ targets)
    return np.mean((test @ head).argmax(1) == y_test)


def hidden(net, x):
    """What the ReLUs return, averaged over positions."""
    found = {}
    for name, part in net.named_children():
        x = part(x)
        if isinstance(part, nn.ReLU):
            found[name] = (x if x.ndim == 2 else x.flatten(2).mean(2)).detach().numpy()
    return found


def assert_twin(net, train, test, **arguments):
    features, test_features = hidden(net, train[0]), hidden(net, test[0])
    expected = {name: twin(features[name], train[1].numpy(), test_features[name], test[1].numpy()) for name in features}
    found = linear_probe(net, train, test, **arguments)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-12)
    return found


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 64, 1000])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_accuracy_is_that_of_the_twin(chunk_size, mean):
    net, x, y = mlp(6, 20, 15, 3), points(150, 6) + mean, classes(150, 4)
    y[x[:, 0] > mean] = 0
    found = assert_twin(net, (x[:100], y[:100]), (x[100:], y[100:]), chunk_size=chunk_size)
    assert 0.3 < min(found.values()) < 0.95  # a figure that an error would change


def test_the_penalty_matters_where_features_outnumber_points():
    for seed in range(10):
        net, x, y = mlp(4, 40, 3, seed=seed), points(50, 4, seed=seed), classes(50, 3, seed=seed)
        assert_twin(net, (x[:20], y[:20]), (x[20:], y[20:]), chunk_size=6)


def test_maps_are_averaged_over_positions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 2), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    x, y = points(120, 2, 4, 3), classes(120, 3)
    y[x.mean((1, 2, 3)) > 0] = 1
    net.double()(x)
    assert_twin(net, (x[:70], y[:70]), (x[70:], y[70:]), chunk_size=9)


def test_a_class_that_was_not_trained_on_is_never_right():
    net, x = mlp(4, 12, 3), points(60, 4)
    y = (x[:, 0] > 0).long()
    y[50:] = 2
    found = assert_twin(net, (x[:40], y[:40]), (x[40:], y[40:]))
    assert found["1"] <= 0.5


def test_features_that_tell_the_class_are_perfect():
    y = classes(90, 5)
    x = 3 * nn.functional.one_hot(y, 5).double() + 0.1 * points(90, 5)
    net = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(5, 5)).double()
    assert linear_probe(net, (x[:60], y[:60]), (x[60:], y[60:])) == {"1": 1.0}


def test_random_labels_are_guessed():
    net, x, y = mlp(6, 20, 3), points(3000, 6), classes(3000, 4, seed=5)
    assert linear_probe(net, (x[:1500], y[:1500]), (x[1500:], y[1500:]))["1"] == pytest.approx(0.25, abs=0.04)


def test_layers_that_say_nothing_predict_the_most_frequent_class():
    net, x, y = mlp(6, 5, 7, 2), points(97, 6), classes(97, 3)
    y[:60] = 1
    with torch.no_grad():
        net[0].bias.fill_(-100.0)  # the first layer is 0 and the second constant
    found = linear_probe(net, (x, y), (x, y), chunk_size=10)
    assert found == pytest.approx(dict.fromkeys(["1", "3"], float((y == 1).double().mean())))


def test_an_lstm_is_probed_at_its_outputs():
    torch.manual_seed(0)
    rnn, head = nn.LSTM(3, 6, batch_first=True).double(), nn.Linear(6, 2).double()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = rnn, head

        def forward(self, x):
            return self.head(torch.relu(self.rnn(x)[0]).mean(1))

    x, y = points(90, 5, 3), classes(90, 3)
    y[x.mean((1, 2)) > 0] = 1
    out = rnn(x)[0].detach()
    expected = {
        name: twin(rows[:60].numpy(), y[:60].numpy(), rows[60:].numpy(), y[60:].numpy())
        for name, rows in {"rnn": out.mean(1), "relu": out.relu().mean(1)}.items()
    }
    assert linear_probe(Net(), (x[:60], y[:60]), (x[60:], y[60:]), chunk_size=13) == pytest.approx(expected)


def test_targets_may_be_one_hot_or_a_column():
    net, x, y = mlp(6, 20, 3), points(100, 6), classes(100, 3)
    plain = linear_probe(net, (x[:60], y[:60]), (x[60:], y[60:]))
    assert linear_probe(net, (x[:60], nn.functional.one_hot(y[:60])), (x[60:], y[60:, None].int())) == plain


def test_other_arguments_reach_the_layers():
    net, x, y = mlp(6, 20, 15, 3), points(80, 6), classes(80, 3)
    train, test = (x[:50], y[:50]), (x[50:], y[50:])
    assert list(linear_probe(net, train, test, layers=[nn.Linear])) == ["0", "2", "4"]
    assert list(linear_probe(net, train, test, max_width=17)) == ["1_proj17", "3"]
    flipped = linear_probe(net, train, test, forward_fn=lambda model, x: model(-x))
    assert flipped == linear_probe(net, (-x[:50], y[:50]), (-x[50:], y[50:]))
    assert flipped != linear_probe(net, train, test)
    keywords = linear_probe(net, ({"input": x[:50]}, y[:50]), ({"input": x[50:]}, y[50:]))
    assert keywords == linear_probe(net, train, test)


@pytest.mark.parametrize("where", ["weight", "test point"])
def test_features_that_are_not_finite_are_nan_never_an_accuracy(where):
    net, x, y = mlp(6, 20, 15, 3), points(80, 6), classes(80, 3)
    with torch.no_grad():
        (net[2].weight if where == "weight" else x)[-1, 0] = math.nan
    found = linear_probe(net, (x[:50], y[:50]), (x[50:], y[50:]))
    assert math.isnan(found["3"])
    assert math.isnan(found["1"]) == (where == "test point")


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (torch.randn(40), r"the targets are torch.float32 of shape \(40,\), from .*`linear_probe` out.*`target_fn=`"),
        (torch.zeros(40, 3, dtype=torch.long), r"the targets are torch.int64 of shape \(40, 3\)"),
        (torch.arange(40) - 1, "go down to -1, where classes count from 0"),
        (None, "no targets were found"),
        ([0] * 40, "the targets are a list"),
        (torch.zeros(39, dtype=torch.long), "one target for each point, but got 39 targets for 40 points"),
        (torch.zeros(41, dtype=torch.long), "one target for each point, but got 41 targets for 40 points"),
    ],
)
def test_targets_that_are_no_classes_are_named(targets, text):
    net, x, y = mlp(6, 20, 3), points(40, 6), classes(40, 3)
    for train, test in (((x, targets), (x, y)), ((x, y), (x, targets))):
        with pytest.raises(ValueError, match=text):
            linear_probe(net, train, test)


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(), *mlp(6, 20, 3)).double()
    x, y = points(60, 6), classes(60, 3)
    net(x).sum().backward()
    state, grads = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()]
    rng = torch.get_rng_state()
    first = linear_probe(net, (x[:40], y[:40]), (x[40:], y[40:]), max_width=10)
    assert first == linear_probe(net, (x[:40], y[:40]), (x[40:], y[40:]), max_width=10)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
