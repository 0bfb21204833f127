"""Derivatives by rules where the points are not on the first axis; and attention, which moves them and has no rule."""

import pytest
import torch
import torch.nn.functional as F
from networks import Call, counted, draw, measured, seq
from torch import nn

from lc_callback.engine.counting.critical_radius import CriticalRadii
from lc_callback.engine.counting.histogram import INFINITE


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Steps(nn.Module):
    """A network of ReLUs over the steps of a sequence, `(N, T, d)`, with something done to it on the way."""

    def __init__(self, within, width=8, act=F.relu):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(width, 8), nn.Linear(8, 4)
        self.within, self.act = within, act

    def forward(self, x):
        z = self.within(self.act(self.first(x.transpose(0, 1))))  # (T, N, 8)
        return self.act(self.third(self.act(self.second(z))))


class Heads(nn.Module):
    """Heads folded into the axis of the points, as in attention, and mixed over the steps by fixed weights."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first, self.project, self.out = batch_first, nn.Linear(4, 24), nn.Linear(8, 8)
        self.mix = nn.Linear(5, 5)

    def forward(self, x):
        n, steps = x.shape[:2]
        z = self.project(x if self.batch_first else x.transpose(0, 1))
        z = z.transpose(0, 1) if self.batch_first else z
        z = z.unflatten(-1, (3, 8)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        query, key, value = (each.reshape(steps, n * 2, 4).transpose(0, 1) for each in (z[0], z[1], z[2]))
        z = F.relu(query - key) + self.mix(value.transpose(1, 2)).transpose(1, 2)
        z = z.view(n, 2, steps, 4).permute(2, 0, 1, 3).reshape(steps * n, 8)
        return F.relu(self.out(F.relu(z)).view(steps, n, 8).transpose(0, 1))


SEQUENCES = draw(7, 5, 3)
ELSEWHERE = {
    "there": lambda: Steps(lambda z: z),
    "and back": lambda: Steps(lambda z: z.transpose(1, 0)),
    "and back, by negative axes": lambda: Steps(lambda z: z.transpose(-3, -2)),
    "permuted": lambda: Steps(lambda z: z.permute(1, 0, 2)),
    "steps last": lambda: Steps(lambda z: z.permute(1, 2, 0), width=5),
    "one step": lambda: Steps(lambda z: z[-1]),
    "some steps": lambda: Steps(lambda z: z[1:4]),
    "some steps, by name": lambda: Steps(lambda z: torch.narrow(z, dim=0, start=2, length=2)),
    "backwards": lambda: Steps(lambda z: z.flip(0)),
    "mean over steps": lambda: Steps(lambda z: z.mean(0)),
    "sum over steps, axis kept": lambda: Steps(lambda z: z.sum(dim=0, keepdim=True)),
    "one axis more": lambda: Steps(lambda z: z.unsqueeze(0)),
    "one axis more and less": lambda: Steps(lambda z: z[:1].squeeze(0)),
    "all axes of one": lambda: Steps(lambda z: z[:1].squeeze()),
    "steps side by side": lambda: Steps(lambda z: torch.cat([z, 0.5 - z[:2]])),
    "steps next to fixed ones": lambda: Steps(lambda z: torch.cat([z, torch.ones(2, *z.shape[1:], dtype=z.dtype)], -3)),
    "padded": lambda: Steps(lambda z: F.pad(z, (0, 0, 0, 0, 1, 0))),
    "shifted": lambda: Steps(lambda z: z + F.pad(z[:-1], (0, 0, 0, 0, 1, 0))),
    "a weight for each step": lambda: Steps(lambda z: z * torch.linspace(0.5, 2, 5, dtype=z.dtype)[:, None, None]),
    "folded": lambda: Steps(lambda z: z.reshape(-1, 8)),
    "kinks on both sides": lambda: Steps(lambda z: z, act=lambda z: F.leaky_relu(z, 0.1)),
    "absolute values": lambda: Steps(lambda z: z, act=torch.abs),
    "heads": lambda: Heads(True),
    "heads, steps first": lambda: Heads(False),
    "each point twice": lambda: seq(nn.Linear(4, 8), nn.ReLU(), Call(twice), nn.Linear(8, 8), nn.ReLU()),
}


def twice(x):
    return torch.cat([x, 2 * x]).unflatten(0, (2, -1)).sum(0)


def points_of(name):
    return draw(7, 5, 4) if name.startswith(("heads", "each")) else SEQUENCES


@pytest.mark.parametrize("chunk_size", [None, 9])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_rules_count_what_steps_count(name, chunk_size, monkeypatch):
    net, inputs = ELSEWHERE[name]().double().eval(), points_of(name)
    found, counter = counted(net, inputs, "linear", chunk_size=chunk_size)
    assert counter.route.uses_derivative_rules, counter.route.explain()
    monkeypatch.setattr(CriticalRadii, "has_rules", False)
    for repeat in (True, False):
        expected, plain = counted(net, inputs, "linear", repeat=repeat, chunk_size=chunk_size)
        assert not plain.route.uses_derivative_rules
        assert torch.equal(found.counts, expected.counts)
        differences = (found.histogram - expected.histogram)[:INFINITE]  # of units that switch anywhere
        assert differences.abs().sum() <= 2  # one on the edge of a bin
    assert found.counts.sum() > 10


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_output_moves_as_far_by_rules_as_by_steps(name, monkeypatch):
    net, inputs = ELSEWHERE[name]().double().eval(), points_of(name)
    found, counter = counted(net, inputs, "linear")
    assert counter.route.uses_derivative_rules
    assert counter.route.with_output
    monkeypatch.setattr(CriticalRadii, "has_rules", False)
    expected, _ = counted(net, inputs, "linear")
    assert torch.allclose(found.jacobian_norm, expected.jacobian_norm, rtol=1e-6)
    assert found.jacobian_norm.min() > 0


def test_a_rule_that_compares_the_values_of_a_row_needs_the_points_there():
    net = Steps(lambda z: z, act=F.relu6).double().eval()
    found, route = measured(net, SEQUENCES, "linear")
    assert "no rules: `hardtanh`" in route.explain()
    assert route.explain().endswith("has no derivative rule where samples are not rows of the first axis")
    assert torch.equal(found, measured(net, SEQUENCES, "linear", repeat=False)[0])
    back = Steps(lambda z: z, act=lambda z: F.relu6(z.transpose(0, 1)).transpose(0, 1)).double().eval()
    assert measured(back, SEQUENCES, "linear")[1].uses_derivative_rules


# Attention: what moves is multiplied by what moves, so small steps are taken


class Attends(nn.Module):
    """A module that attends, called as its users do; inside the steps may come first."""

    def __init__(self, module, call, batch_first, act=F.relu):
        super().__init__()
        self.module, self.call, self.batch_first, self.act = module, call, batch_first, act
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 8)

    def forward(self, x, mask=None):
        z = self.act(self.first(x))
        z = z if self.batch_first else z.transpose(0, 1)
        z = self.call(self.module, z, mask)
        z = z if self.batch_first else z.transpose(0, 1)
        return self.act(self.last(z))


def causal():
    return nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)


ATTENTION = {
    "encoder": (nn.TransformerEncoderLayer, lambda m, z, mask: m(z)),
    "encoder, causal": (nn.TransformerEncoderLayer, lambda m, z, mask: m(z, src_mask=causal(), is_causal=True)),
    "encoder, masked": (nn.TransformerEncoderLayer, lambda m, z, mask: m(z, src_mask=causal())),
    "encoder, padding": (nn.TransformerEncoderLayer, lambda m, z, mask: m(z, src_key_padding_mask=mask)),
    "attention": (nn.MultiheadAttention, lambda m, z, mask: m(z, z, z, need_weights=False)[0]),
    "attention, weights": (nn.MultiheadAttention, lambda m, z, mask: m(z, z, z)[0]),
    "attention, causal": (
        nn.MultiheadAttention,
        lambda m, z, mask: m(z, z, z, need_weights=False, attn_mask=causal(), is_causal=True)[0],
    ),
    "attention, padding": (nn.MultiheadAttention, lambda m, z, mask: m(z, z, z, mask, need_weights=False)[0]),
    "decoder": (nn.TransformerDecoderLayer, lambda m, z, mask: m(z, z)),
    "decoder, causal": (
        nn.TransformerDecoderLayer,
        lambda m, z, mask: m(z, z, tgt_mask=causal(), tgt_is_causal=True, memory_key_padding_mask=mask),
    ),
    "both": (nn.Transformer, lambda m, z, mask: m(z, z)),
    "both, causal": (nn.Transformer, lambda m, z, mask: m(z, z, tgt_mask=causal(), tgt_is_causal=True)),
}
SIZES = {
    nn.MultiheadAttention: {},
    nn.Transformer: {"num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 12},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_counted_by_steps_and_named(name, batch_first):
    kind, call = ATTENTION[name]
    module = kind(8, 2, batch_first=batch_first, **SIZES.get(kind, {"dim_feedforward": 12}))
    net, inputs = Attends(module, call, batch_first).double().eval(), {"x": SEQUENCES}
    if "padding" in name or "decoder, causal" in name:
        inputs["mask"] = torch.zeros(7, 5, dtype=torch.bool)
        inputs["mask"][::2, 3:] = True
    found, route = measured(net, inputs, "linear")
    assert route.program is not None
    _, reason = route.explain().split("no rules: ")
    if "mask" in inputs:
        assert reason == "it writes in place to a tensor of which other views are read"
    else:
        caller = "`einsum`, `matmul`" if "weights" in name else "`scaled_dot_product_attention`"
        assert f" (of {caller}) in 'module" in reason
        assert reason.endswith(" has no derivative rule")
    expected, _ = measured(net, inputs, "linear", repeat=False)
    assert torch.equal(found, expected)
    assert found.sum() > 10
