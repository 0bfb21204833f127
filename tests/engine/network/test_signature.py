"""Models whose parameters do not show what they take: forwards of ``**kwargs`` and ``*args``."""

import pytest
import torch
from torch import nn

from lc_callback.engine.network.signature import Signature, call_in_words, example_of_call

N = 4
IDS, MASK, LABELS = torch.arange(8).view(N, 2), torch.ones(N, 2, dtype=torch.long), torch.arange(N) % 2
X, Z, WEIGHT, NAMES = torch.randn(N, 3), torch.randn(N, 3), torch.rand(N), ["a", "b", "c", "d"]


class Inner(nn.Module):
    """As Hugging Face has them."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 3), nn.Linear(3, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self.head((self.embed(input_ids) * mask[..., None]).sum(1))
        return logits if labels is None else (nn.functional.cross_entropy(logits, labels), logits)


class InnerLabels(Inner):
    def forward(self, input_ids, labels):
        return super().forward(input_ids) + nn.functional.one_hot(labels, 2)


class Vectors(nn.Module):
    def forward(self, x, z=None):
        return x if z is None else x + z


class Both(nn.Module):
    def forward(self, x, z):
        return x + z


class KeywordOnly(nn.Module):
    def forward(self, *, x, labels):
        return x * labels[:, None]


class Wrapper(nn.Module):
    """Its forward is ``call(net, *args, **kwargs)``, and its parameters say nothing."""

    def __init__(self, net, call):
        super().__init__()
        self.net, self.call = net, call

    def forward(self, *args, **kwargs):
        return self.call(self.net, *args, **kwargs)


class Keywords(Wrapper):
    def forward(self, **inputs):
        return self.call(self.net, **inputs)


class XAndMore(Wrapper):
    def forward(self, x, **more):
        return self.call(self.net, x=x, **more)


class BatchAndMore(Wrapper):
    def forward(self, batch, **more):
        return self.call(self.net, **batch)


class OneBatch(Wrapper):
    def forward(self, batch):
        return self.call(self.net, batch)


class OnePair(Wrapper):
    def forward(self, pair):
        return self.call(self.net, *pair)


def forwarded(net, *args, **kwargs):
    return net(*args, **kwargs)


def pops_labels(net, **inputs):
    inputs.pop("labels")
    return net(**inputs)


TEXT = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
BY_NAME = {"input_ids": IDS, "attention_mask": MASK}
# Model, batch, inputs, targets.
CASES = {
    "keywords, dict": (Keywords(Inner(), forwarded), TEXT, BY_NAME, LABELS),
    "both, dict": (Wrapper(Inner(), forwarded), TEXT, BY_NAME, LABELS),
    "a key that is refused": (Keywords(Inner(), forwarded), {**TEXT, "idx": LABELS}, BY_NAME, LABELS),
    "two keys and names that are refused": (
        Keywords(Inner(), forwarded),
        {"idx": LABELS, **TEXT, "weight": WEIGHT, "name": NAMES},
        BY_NAME,
        LABELS,
    ),
    "targets that are required": (
        Keywords(InnerLabels(), forwarded),
        TEXT,
        {"input_ids": IDS, "labels": LABELS},
        LABELS,
    ),
    "targets that are read": (Keywords(Inner(), pops_labels), TEXT, {**BY_NAME, "labels": LABELS}, LABELS),
    "a keyword-only target": (
        Keywords(KeywordOnly(), forwarded),
        {"x": X, "labels": LABELS},
        {"x": X, "labels": LABELS},
        LABELS,
    ),
    "floats that are not read": (
        Keywords(Vectors(), lambda net, **inputs: net(inputs["x"])),
        {"x": X, "weight": WEIGHT, "y": LABELS},
        {"x": X},
        LABELS,
    ),
    "floats that are read": (
        Keywords(Vectors(), lambda net, x, weight: net(x) * weight[:, None]),
        {"x": X, "weight": WEIGHT, "y": LABELS},
        {"x": X, "weight": WEIGHT},
        LABELS,
    ),
    "a name and more": (XAndMore(Vectors(), forwarded), {"x": X, "z": Z, "y": LABELS}, {"x": X, "z": Z}, LABELS),
    "a name and one that is refused": (XAndMore(Vectors(), forwarded), {"x": X, "id": Z}, {"x": X}, None),
    "a batch and more": (BatchAndMore(Vectors(), forwarded), {"x": X, "y": LABELS}, ({"x": X},), LABELS),
    "one dict among any arguments": (
        Wrapper(Vectors(), lambda net, batch: net(batch["x"])),
        {"x": X, "y": LABELS},
        ({"x": X},),
        LABELS,
    ),
    "one dict with its targets": (
        OneBatch(InnerLabels(), lambda net, batch: net(**batch)),
        {"input_ids": IDS, "labels": LABELS},
        ({"input_ids": IDS, "labels": LABELS},),
        LABELS,
    ),
    "both, pair": (Wrapper(Vectors(), forwarded), (X, LABELS), X, LABELS),
    "both, list": (Wrapper(Vectors(), forwarded), [X, LABELS], X, LABELS),
    "both, one entry": (Wrapper(Vectors(), forwarded), (X,), X, None),
    "both, two inputs": (Wrapper(Both(), forwarded), (X, Z, LABELS), (X, Z), LABELS),
    "unpacked by itself": (Wrapper(Both(), lambda net, *a: net(a[0], a[1])), (X, Z, LABELS), (X, Z), LABELS),
    "tokens, mask and targets": (
        Wrapper(Inner(), lambda net, ids, mask: net(ids, mask)),
        (IDS, MASK, LABELS),
        (IDS, MASK),
        LABELS,
    ),
    "dict and targets": (Wrapper(Inner(), forwarded), (BY_NAME, LABELS), BY_NAME, LABELS),
    "pair and targets": (Wrapper(Both(), forwarded), ((X, Z), LABELS), (X, Z), LABELS),
    "pair as one argument": (OnePair(Both(), forwarded), ((X, Z), LABELS), ((X, Z),), LABELS),
    "tensor": (Wrapper(Vectors(), forwarded), X, X, None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_parameters_leave_open_the_model_says(name):
    model, batch, inputs, targets = CASES[name]
    keys = list(batch) if isinstance(batch, dict) else None
    found, found_targets = Signature.of(model, None).split(batch)
    assert str(found) == str(inputs)
    assert found_targets is targets
    assert keys is None or list(batch) == keys


@pytest.mark.parametrize("name", ["keywords, dict", "both, two inputs", "targets that are required", "a name and more"])
def test_a_forward_fn_leaves_it_open_as_well(name):
    model, batch, inputs, targets = CASES[name]
    found = Signature.of(model, lambda model, *args, **kwargs: model(*args, **kwargs)).split(batch)
    assert str(found) == str((inputs, targets))


def test_a_model_that_never_runs_is_asked_a_few_times_and_left_alone():
    model = Keywords(nn.Linear(2, 2), lambda net, **inputs: 1 / 0)
    assert Signature.of(model, None).split(TEXT) == (BY_NAME, LABELS)
    assert all(module.training for module in model.modules())


def test_targets_that_are_no_classes_stay_out():
    """Else they were perturbed."""
    model = Keywords(Both(), lambda net, x, y: net(x, y))
    assert Signature.of(model, None).split({"x": X, "y": Z}) == ({"x": X}, Z)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (X, "one argument, a torch.float32 tensor (4, 3)"),
        ((X,), "one argument, a torch.float32 tensor (4, 3)"),
        ((X, MASK), "2 arguments: a torch.float32 tensor (4, 3), a torch.int64 tensor (4, 2)"),
        ({"x": X, "n": NAMES}, "the keywords x=a torch.float32 tensor (4, 3), n=a list"),
        (({"x": X},), "one argument, a dict of x=a torch.float32 tensor (4, 3)"),
        (((X, X),), "one argument, a tuple of a torch.float32 tensor (4, 3), a torch.float32 tensor (4, 3)"),
    ],
)
def test_a_call_in_words(inputs, text):
    assert call_in_words(inputs) == text


@pytest.mark.parametrize(
    ("inputs", "module", "text"),
    [
        (X, "", ""),
        ((X, MASK), "net", ""),
        ({"n": NAMES}, "", ""),
        ({"x": X}, "", "forward_fn=lambda module, batch: module(batch['x'])"),
        (({"n": NAMES, "mask": MASK, "x": X},), "a.net", "forward_fn=lambda module, batch: module.a.net(batch['x'])"),
        ({"n": NAMES, "ids": MASK}, "", "forward_fn=lambda module, batch: module(batch['ids'])"),
    ],
)
def test_an_example_of_a_call_passes_one_tensor_of_a_dict(inputs, module, text):
    assert example_of_call(inputs, module) == text
