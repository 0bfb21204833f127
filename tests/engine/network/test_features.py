"""Ranks of the features of a model against features taken by hand."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Calls
from torch import nn

from lc_callback.engine.chunks import Budget
from lc_callback.engine.network import features as features_module
from lc_callback.engine.network.features import Features
from lc_callback.functional import feature_rank, feature_ranks


def points(n, *shape, seed=0, dtype=torch.float64):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tokens(n, *shape, below, seed=0):
    return torch.randint(0, below, (n, *shape), generator=torch.Generator().manual_seed(seed))


def channels_first(maps):
    """A row for each point and position of ``(N, C, ...)``."""
    return maps.movedim(1, -1).flatten(0, -2)


def channels_last(maps):
    return maps.flatten(0, -2)


def assert_ranks(found, expected, rtol=1e-9, **options):
    """The ranks are those of the matrices ``expected``, by name and in that order."""
    assert list(found) == list(expected)
    for name, matrix in expected.items():
        one, other = found[name], feature_rank(matrix.detach(), **options)
        assert (one.rank, one.n, one.d) == (other.rank, other.n, other.d), name
        assert torch.allclose(one.spectrum, other.spectrum, rtol=0, atol=rtol * float(other.spectrum[0])), name
        assert one.effective_rank == pytest.approx(other.effective_rank, rel=max(rtol, 1e-6))
        assert one.stable_rank == pytest.approx(other.stable_rank, rel=rtol)


class Model(nn.Module):
    """Parts by name, and a forward written as a function of them."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


def double(forward, seed=0, **parts):
    """A float64 model with weights from ``seed``: the parts are functions that make modules."""
    torch.manual_seed(seed)
    return Model(forward, **{name: make() for name, make in parts.items()}).double().eval()


# Networks of vectors


@pytest.mark.parametrize(
    "act",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.Tanh(), nn.GLU(), nn.LeakyReLU(inplace=True), nn.SiLU()],
    ids=str,
)
def test_an_mlp_by_hand(act):
    torch.manual_seed(0)
    narrow = 4 if isinstance(act, nn.GLU) else 8
    net = nn.Sequential(nn.Linear(5, 8), act, nn.Linear(narrow, 8), copy.deepcopy(act), nn.Linear(narrow, 3)).double()
    x = points(40, 5)
    first = act(net[0](x))
    assert_ranks(feature_ranks(net, x), {"1": first, "3": act(net[2](first))})


def test_one_module_used_twice_and_functions_are_layers_of_their_own():
    def forward(m, x):
        x = m.act(m.b(m.act(m.a(x))))
        return m.c(torch.tanh(F.relu(x) - 0.1)).sum(1)

    net = double(
        forward, a=lambda: nn.Linear(5, 7), b=lambda: nn.Linear(7, 6), c=lambda: nn.Linear(6, 4), act=lambda: nn.ReLU()
    )
    x = points(40, 5)
    first = net.a(x).relu()
    second = net.b(first).relu()
    third = second.relu()
    expected = {"act#1": first, "act#2": second, "relu": third, "tanh": (third - 0.1).tanh()}
    assert_ranks(feature_ranks(net, x), expected)


def test_features_are_taken_before_an_in_place_operation_overwrites_them():
    net = double(lambda m, x: m.a(x).relu_().mul_(0.0), a=lambda: nn.Linear(5, 7))
    x = points(30, 5)
    assert_ranks(feature_ranks(net, x), {"relu": net.a(x).relu()})


@pytest.mark.parametrize("link", [nn.Sigmoid(), nn.Tanh(), nn.LogSigmoid()], ids=str)
def test_a_squashing_function_that_makes_the_output_is_no_layer(link):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), link).double()
    x = points(30, 5)
    assert_ranks(feature_ranks(net, x), {"1": net[:2](x)})


def test_the_last_relu_is_a_layer():
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU()).double()
    assert list(feature_ranks(net, points(30, 5))) == ["1"]


@pytest.mark.parametrize("options", [{"matrix": "features", "center": False}, {"tol": 0.3}, {"precision": torch.half}])
def test_options_reach_the_rank(options):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 2)).double(), points(50, 5)
    found, default = feature_ranks(net, x, **options), feature_ranks(net, x)
    assert_ranks(found, {"1": net[:2](x)}, **options)
    assert found["1"].threshold != default["1"].threshold


def test_float32_networks_are_measured_in_float32():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 2)), points(60, 5)
    found = feature_ranks(net, x)
    assert_ranks(found, {"1": net[:2](x.float())}, rtol=1e-6)
    assert found["1"].threshold == pytest.approx(12 * 2**-23 * float(found["1"].spectrum[0]))


def test_bfloat16_weights_are_measured_in_float32():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 2)).bfloat16(), points(60, 5, dtype=torch.float32)
    found = feature_ranks(net, x.bfloat16())
    assert_ranks(found, {"1": copy.deepcopy(net).float()[:2](x.bfloat16().float())}, rtol=1e-6)
    assert net[0].weight.dtype == torch.bfloat16


def test_batch_norm_and_dropout_in_train_mode_are_measured_in_eval():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 6), nn.Tanh())
    net = nn.Sequential(*net, nn.Linear(6, 2)).double()
    x = points(40, 5)
    for _ in range(3):
        net(2 * points(40, 5, seed=1) + 1)  # running statistics far from those of x
    expected = copy.deepcopy(net).eval()
    assert_ranks(feature_ranks(net, x), {"2": expected[:3](x), "5": expected[:6](x)})


def test_a_compiled_network_has_the_same_ranks():
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 2)).double(),
        points(30, 5),
    )
    compiled = torch.compile(net, backend="eager")
    compiled(x)
    assert_ranks(feature_ranks(compiled, x), {"1": net[:2](x), "3": net[:4](x)})


# Maps and sequences


def test_a_cnn_has_a_row_for_each_position_and_a_column_for_each_channel():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5), nn.GELU()
    )
    net = nn.Sequential(*net, nn.Flatten(), nn.Linear(30, 7), nn.ReLU(), nn.Linear(7, 2)).double()
    x = points(12, 2, 6, 4)
    net(x)
    net.eval()
    expected = {"1": channels_first(net[:2](x)), "5": channels_first(net[:6](x)), "8": net[:9](x)}
    assert_ranks(feature_ranks(net, x), expected)
    assert expected["1"].shape == (12 * 6 * 4, 6)


def test_a_flattened_map_is_one_row_for_each_point():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU(), nn.Linear(12, 2)).double()
    x = points(30, 1, 4, 5)
    assert_ranks(feature_ranks(net, x), {"2": net[:3](x)})


@pytest.mark.parametrize(("conv", "shape"), [(nn.Conv1d, (9,)), (nn.Conv3d, (4, 3, 5))])
def test_convolutions_of_other_dimensions(conv, shape):
    torch.manual_seed(0)
    net = nn.Sequential(conv(2, 7, 2), nn.ReLU(), conv(7, 3, 2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
    x = points(10, 2, *shape)
    net(x)
    assert_ranks(feature_ranks(net, x), {"1": channels_first(net[:2](x)), "3": channels_first(net[:4](x))})


def convnext(m, x):
    x = m.stem(x)
    h = m.depthwise(x).permute(0, 2, 3, 1)
    h = m.down(F.gelu(m.up(m.norm(h))))
    x = x + h.permute(0, 3, 1, 2)
    return m.head(F.relu(m.last(x)).mean((2, 3)))


def test_a_convnext_block_has_channels_last_then_first():
    net = double(
        convnext,
        stem=lambda: nn.Conv2d(3, 4, 2, 2),
        depthwise=lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
        norm=lambda: nn.LayerNorm(4),
        up=lambda: nn.Linear(4, 9),
        down=lambda: nn.Linear(9, 4),
        last=lambda: nn.Conv2d(4, 6, 1),
        head=lambda: nn.Linear(6, 2),
    )
    x = points(10, 3, 10, 8)
    stem = net.stem(x)
    wide = F.gelu(net.up(net.norm(net.depthwise(stem).permute(0, 2, 3, 1))))
    last = net.last(stem + net.down(wide).permute(0, 3, 1, 2)).relu()
    assert_ranks(feature_ranks(net, x), {"gelu": channels_last(wide), "relu": channels_first(last)})


def squeeze_excite(m, x):
    h = m.conv(x)
    gate = torch.sigmoid(m.excite(F.relu(m.squeeze(h.mean((2, 3))))))
    return m.head(F.relu(h * gate[:, :, None, None]).mean((2, 3)))


def test_a_linear_layer_on_the_side_does_not_move_the_channels():
    net = double(
        squeeze_excite,
        conv=lambda: nn.Conv2d(3, 6, 3, padding=1),
        squeeze=lambda: nn.Linear(6, 3),
        excite=lambda: nn.Linear(3, 6),
        head=lambda: nn.Linear(6, 2),
    )
    x = points(12, 3, 7, 5)
    h = net.conv(x)
    small = net.squeeze(h.mean((2, 3))).relu()
    gate = net.excite(small).sigmoid()
    scaled = (h * gate[:, :, None, None]).relu()
    expected = {"relu#1": small, "sigmoid": gate, "relu#2": channels_first(scaled)}
    assert_ranks(feature_ranks(net, x), expected)


@pytest.mark.parametrize(
    "between",
    [
        lambda m, h: h.permute(0, 2, 3, 1),
        lambda m, h: m.norm(h.permute(0, 2, 3, 1)),
        lambda m, h: m.norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda m, h: m.norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous(),
        lambda m, h: h.contiguous(memory_format=torch.channels_last),
        lambda m, h: h.flatten(2),
        lambda m, h: h.flatten(2).transpose(1, 2),
        lambda m, h: torch.cat([h, h.flip(3)], 1),
        lambda m, h: h.chunk(2, 1)[1],
        lambda m, h: F.avg_pool2d(h, 2, 1),
        lambda m, h: h.mean(3),
        lambda m, h: h.mean((2, 3), keepdim=True),
        lambda m, h: m.norm(h.mean((2, 3), keepdim=True).permute(0, 2, 3, 1)),
        lambda m, h: m.one(h),
        lambda m, h: F.pixel_shuffle(m.four(h), 2),
        lambda m, h: m.four(h).unflatten(1, (2, 12)).transpose(1, 2).flatten(1, 2),
        lambda m, h: h[:, :, None, :, :].expand(-1, -1, 2, -1, -1).reshape(len(h), 6, 14, 5),
    ],
)
def test_channels_are_followed_through_permutations_and_pooling(between):
    net = double(
        lambda m, x: m.head(F.gelu(between(m, m.conv(x))).sum()[None]),
        conv=lambda: nn.Conv2d(3, 6, 3, padding=1),
        norm=lambda: nn.LayerNorm(6),
        four=lambda: nn.Conv2d(6, 24, 1),
        one=lambda: nn.Conv2d(6, 1, 1),
        head=lambda: nn.Linear(1, 1),
    )
    x = points(12, 3, 7, 5)
    maps = F.gelu(between(net, net.conv(x)))
    last = maps.shape[-1] == 6
    expected = channels_last(maps) if last else channels_first(maps)
    assert expected.shape[1] in (1, 3, 6, 12, 24)
    assert_ranks(feature_ranks(net, x), {"gelu": expected})


def test_frames_that_are_folded_into_the_batch_keep_their_channels():
    net = double(
        lambda m, x: m.head(F.relu(m.conv(x.flatten(0, 1))).mean((2, 3))).unflatten(0, x.shape[:2]).sum(1),
        conv=lambda: nn.Conv2d(2, 7, 2),
        head=lambda: nn.Linear(7, 2),
    )
    x = points(9, 4, 2, 5, 3)
    expected = {"relu": channels_first(net.conv(x.flatten(0, 1)).relu())}
    assert_ranks(feature_ranks(net, x, chunk_size=4), expected)


def test_sequences_that_no_layer_made_have_their_features_last():
    net = double(lambda m, x: F.relu(x[:, None].expand(-1, 3, -1, -1)).sum((1, 2, 3)))
    x = points(9, 5, 4)
    assert_ranks(feature_ranks(net, x), {"relu": channels_last(x.relu().repeat_interleave(3, 0))})


def test_channels_may_stand_before_the_batch():
    net = double(lambda m, x: F.relu(m.conv(x).transpose(0, 1)).sum((0, 2)), conv=lambda: nn.Conv1d(2, 7, 2))
    x = points(9, 2, 6)
    assert_ranks(feature_ranks(net, x, chunk_size=4), {"relu": channels_first(net.conv(x).relu())})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_layer_has_a_row_for_each_token(batch_first, training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first, activation="gelu").double().eval()

    def turned(x):
        return x if batch_first else x.transpose(0, 1)

    x = points(9, 5, 8)
    attended = turned(layer.self_attn(*[turned(x)] * 3)[0])
    expected = F.gelu(layer.linear1(layer.norm1(x + attended)))
    net = Model(lambda m, x: turned(m.layer(turned(x))).mean(1), layer=layer).train(training)
    assert_ranks(feature_ranks(net, x), {"layer": channels_last(expected)})


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_recurrent_module_is_one_layer_of_its_outputs(kind, batch_first):
    torch.manual_seed(0)
    rnn = kind(4, 5, num_layers=2, bidirectional=True, batch_first=batch_first)

    def forward(m, x):
        out, _ = m.rnn(F.relu(x) if batch_first else F.relu(x).transpose(0, 1))
        return m.head(out.mean(1 if batch_first else 0))

    net = Model(forward, rnn=rnn, head=nn.Linear(10, 2)).double()
    x = points(20, 6, 4)
    out = rnn(x.relu() if batch_first else x.relu().transpose(0, 1))[0]
    assert_ranks(feature_ranks(net, x), {"relu": channels_last(x.relu()), "rnn": channels_last(out)})


def test_packed_sequences_are_refused_with_a_hint():
    def forward(m, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(m.embed(x).relu(), lengths, batch_first=True, enforce_sorted=False)
        return m.rnn(packed)[1][0][-1]

    net = double(forward, embed=lambda: nn.Linear(3, 4), rnn=lambda: nn.LSTM(4, 5, batch_first=True))
    inputs = points(8, 5, 3), tokens(8, below=5) + 1
    with pytest.raises(ValueError, match=r"'rnn' returns no tensor but a PackedSequence: .*`layers=`.*`forward_fn=`"):
        feature_ranks(net, inputs)
    assert list(feature_ranks(net, inputs, layers=["embed"])) == ["embed"]


# Inputs


def test_tokens_go_through_the_embedding_untouched():
    net = double(
        lambda m, x: m.head(F.relu(m.up(m.embed(x))).mean(1)),
        embed=lambda: nn.Embedding(11, 4),
        up=lambda: nn.Linear(4, 9),
        head=lambda: nn.Linear(9, 2),
    )
    x = tokens(20, 6, below=11)
    assert_ranks(feature_ranks(net, x), {"relu": channels_last(net.up(net.embed(x)).relu())})


def test_integers_need_no_embedding():
    net = double(lambda m, x: m.up(F.one_hot(x, 5).double().flatten(1)).relu().sum(1), up=lambda: nn.Linear(15, 8))
    x = tokens(40, 3, below=5)
    assert_ranks(feature_ranks(net, x), {"relu": net.up(F.one_hot(x, 5).double().flatten(1)).relu()})


def test_a_dict_with_a_mask_and_a_tuple_are_passed_as_they_are():
    def forward(m, x, mask=None, scale=None):
        h = torch.tanh(m.up(x * (1 if scale is None else scale)))
        h = h if mask is None else h * mask[..., None]
        return m.head(F.relu(m.mid(h)).sum(1))

    net = double(forward, up=lambda: nn.Linear(4, 7), mid=lambda: nn.Linear(7, 6), head=lambda: nn.Linear(6, 2))
    x, mask = points(20, 3, 4), tokens(20, 3, below=2).bool()
    scale = points(20, 1, 1, seed=1)
    first = net.up(x * scale).tanh()
    expected = {"tanh": channels_last(first), "relu": channels_last(net.mid(first * mask[..., None]).relu())}
    assert_ranks(feature_ranks(net, {"scale": scale, "mask": mask, "x": x}, chunk_size=7), expected)
    assert_ranks(feature_ranks(net, (x, mask, scale), chunk_size=7), expected)
    assert_ranks(
        feature_ranks(net, [x], forward_fn=lambda model, x: model(x, mask[: len(x)], scale[: len(x)])), expected
    )


def test_the_points_are_not_all_alike_although_the_first_are():
    net = double(lambda m, x: m.up(x).relu().sum(1), up=lambda: nn.Linear(4, 7))
    x = torch.cat([torch.zeros(5, 4, dtype=torch.float64), points(30, 4)])
    assert_ranks(feature_ranks(net, x), {"relu": net.up(x).relu()})


# layers=


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["stem"], ["stem"]),
        (["blocks.*.0", "stem"], ["stem", "blocks.0.0", "blocks.1.0"]),
        (["blocks.?"], ["blocks.0", "blocks.1"]),
        (["Linear"], ["stem", "blocks.0.0", "blocks.1.0", "head"]),
        ([nn.Linear], ["stem", "blocks.0.0", "blocks.1.0", "head"]),
        ([nn.GELU, "Sigmoid"], ["blocks.0.1", "blocks.1.1", "link"]),
    ],
)
def test_layers_take_the_outputs_of_modules(layers, names):
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(7, 7), nn.GELU()) for _ in range(2)))
    net = nn.Sequential()
    for name, part in {
        "stem": nn.Linear(4, 7),
        "blocks": blocks,
        "head": nn.Linear(7, 3),
        "link": nn.Sigmoid(),
    }.items():
        net.add_module(name, part)
    net.double()
    outputs, x = {}, points(30, 4)
    for name, module in net.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: outputs.update({name: output.detach()}))
    net(x)
    assert_ranks(feature_ranks(net, x, layers=layers), {name: outputs[name] for name in names})


def test_layers_of_a_map_are_per_channel_whatever_ran_before():
    net = double(
        squeeze_excite,
        conv=lambda: nn.Conv2d(3, 6, 3),
        squeeze=lambda: nn.Linear(6, 3),
        excite=lambda: nn.Linear(3, 6),
        head=lambda: nn.Linear(6, 2),
    )
    x = points(12, 3, 7, 5)
    found = feature_ranks(net, x, layers=["excite", "conv"])
    conv = net.conv(x)
    excite = net.excite(net.squeeze(conv.mean((2, 3))).relu())
    assert_ranks(found, {"conv": channels_first(conv), "excite": excite})


def test_layers_that_did_not_run_and_networks_without_any_are_named():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"no non-linearity was executed.*`layers=`"):
        feature_ranks(net, points(5, 3))
    unused = double(lambda m, x: m.a(x), a=lambda: nn.Linear(3, 3), b=lambda: nn.Linear(3, 3))
    with pytest.raises(ValueError, match="`layers` names modules that were not executed"):
        feature_ranks(unused, points(5, 3), layers=["b"])


@pytest.mark.parametrize(
    ("argument", "value", "text"),
    [
        ("chunk_size", 0, "`chunk_size` must be a positive integer, but got 0"),
        ("chunk_size", 2.5, "`chunk_size` must be a positive integer, but got 2.5"),
        ("max_width", -1, "`max_width` must be a positive integer, but got -1"),
        ("matrix", "gram", "`matrix` must be one of"),
        ("tol", -1, "`tol` must be a number"),
        ("layers", ["nope"], "matches no module"),
        ("inputs", 3, "`inputs` must be one or more tensors"),
        ("inputs", torch.zeros(0, 3), "at least 1"),
        ("inputs", torch.zeros(1, 3), "at least 2 rows of features are needed, but 1 were added"),
        ("model", F.relu, "`model` must be a torch.nn.Module"),
    ],
)
def test_arguments_out_of_range_are_named(argument, value, text):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(ValueError, match=text):
        feature_ranks(**{"model": net, "inputs": torch.zeros(5, 3), argument: value})


# Chunks and memory


def small_cnn():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 2), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(24, 9))
    return nn.Sequential(*net, nn.GELU(), nn.Linear(9, 2)).double()


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 23, 100])
@pytest.mark.parametrize("matrix", ["covariance", "features"])
def test_the_chunk_size_changes_nothing(chunk_size, matrix):
    net, x = small_cnn(), points(23, 2, 4, 3) + 10
    whole, parts = (feature_ranks(net, x, chunk_size=size, matrix=matrix) for size in (None, chunk_size))
    assert list(whole) == list(parts) == ["1", "3", "6"]
    for name in whole:
        largest = float(whole[name].spectrum[0])
        np.testing.assert_allclose(parts[name].spectrum, whole[name].spectrum, rtol=0, atol=1e-10 * largest)
        assert parts[name].rank == whole[name].rank
        assert parts[name].effective_rank == pytest.approx(whole[name].effective_rank, rel=1e-10)


def test_a_pass_holds_a_chunk_and_never_all_points():
    net, x = small_cnn(), points(23, 2, 4, 3)
    batches, seen = Calls(), {}
    net[0].register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    Features(net, x).stream(lambda name, rows: seen.setdefault(name, []).append(tuple(rows.shape)), 5)
    assert max(batches) == 5
    assert seen == {
        "1": [(5, 6, 5)] * 4 + [(3, 6, 5)],
        "3": [(5, 6, 4)] * 4 + [(3, 6, 4)],
        "6": [(5, 1, 9)] * 4 + [(3, 1, 9)],
    }


def test_the_default_chunk_keeps_the_largest_tensor_within_the_budget(monkeypatch):
    net, x = small_cnn(), points(50, 2, 4, 3)
    largest = 6 * 5 * 8  # bytes of a point in the first feature map, and no tensor is larger
    monkeypatch.setattr(features_module, "FEATURES", Budget(cpu=8 * largest, cuda=1))
    batches = Calls()
    net[0].register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    feature_ranks(net, x)
    assert max(batches) == 8
    assert batches[-7:] == [8] * 6 + [2]


# Projection


def names_of(net, x, max_width):
    names = []
    Features(net, x, layers=["0"], max_width=max_width).stream(lambda name, rows: names.append(name))
    return names


def test_a_projected_layer_says_so_and_keeps_its_rank():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 2048)).double(), points(60, 3)
    with torch.no_grad():
        net[0].weight[1024:] = -net[0].weight[:1024]  # one half must not cancel the other
    found = feature_ranks(net, x, layers=["0"], max_width=16)
    assert list(found) == ["0_proj16"]
    assert (found["0_proj16"].n, found["0_proj16"].d) == (60, 16)
    assert found["0_proj16"].rank == feature_rank(net(x).detach()).rank == 3
    assert names_of(net, x, 2047) == ["0_proj2047"]
    assert names_of(net, x, 2048) == ["0"]


def test_the_projection_is_seeded_unbiased_and_leaves_narrow_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 2500), nn.Tanh(), nn.Linear(2500, 2)).double()
    x = points(30, 4)
    state = torch.get_rng_state()
    one, same, other = (feature_ranks(net, x, max_width=300, seed=seed, chunk_size=11) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(one) == ["1", "3_proj300"]
    assert torch.equal(one["3_proj300"].spectrum, same["3_proj300"].spectrum)
    assert torch.equal(one["1"].spectrum, other["1"].spectrum)
    assert not torch.equal(one["3_proj300"].spectrum, other["3_proj300"].spectrum)
    exact = feature_rank(net[:4](x)).spectrum
    assert float(one["3_proj300"].spectrum.sum() / exact.sum()) == pytest.approx(1, abs=0.1)


def test_maps_are_projected_over_channels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 12, 2), nn.ReLU()).double()
    found = feature_ranks(net, points(20, 1, 4, 3), max_width=5)
    assert {name: (rank.n, rank.d) for name, rank in found.items()} == {"1_proj5": (120, 5)}


# What is not finite, and what stays


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_give_nan_ranks(value):
    net, x = small_cnn(), points(23, 2, 4, 3)
    with torch.no_grad():
        net[2].weight[0, 0] = value
    found = feature_ranks(net, x, chunk_size=10)
    assert found["1"].rank == 5
    assert math.isnan(found["6"].rank)
    assert math.isnan(found["6"].effective_rank)
    assert found["6"].spectrum.isnan().all()


class Busy(nn.Module):
    """Counts its calls, draws random numbers, and may fail."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))
        self.frozen = nn.BatchNorm1d(4).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.fails = False

    def forward(self, x):
        self.calls += 1
        torch.rand(3), np.random.rand()
        if self.fails:
            raise ZeroDivisionError
        return self.inner(self.frozen(x))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    torch.manual_seed(0)
    net, x = Busy(), points(30, 4, dtype=torch.float32)
    net(x).sum().backward()
    net.fails = fails
    state, grads = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.inner.parameters()]
    modes, rng, numpy_rng = [m.training for m in net.modules()], torch.get_rng_state(), np.random.get_state()[1].copy()
    if fails:
        with pytest.raises(ZeroDivisionError):
            feature_ranks(net, x)
    else:
        feature_ranks(net, x, chunk_size=9)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.inner.parameters(), grads, strict=True))
    assert all(p.requires_grad for p in net.parameters())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert (np.random.get_state()[1] == numpy_rng).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_inference_mode_around_the_call_changes_nothing():
    net, x = small_cnn(), points(23, 2, 4, 3)
    outside = feature_ranks(net, x)
    with torch.inference_mode():
        inside = feature_ranks(net, x)
    assert all(torch.equal(inside[name].spectrum, outside[name].spectrum) for name in outside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("matrix", ["covariance", "features"])
@pytest.mark.parametrize(("side", "n"), [(28, 4), (28, 256), (224, 4)])
def test_the_rank_of_a_feature_map_is_the_same_for_any_number_of_positions(side, n, matrix, dtype):
    torch.manual_seed(0)
    full = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU()).to(dtype)
    planted = nn.Conv2d(5, 16, 1).to(dtype)
    with torch.no_grad():
        full[0].weight.copy_(torch.linalg.qr(full[0].weight.flatten(1))[0].view_as(full[0].weight))
    x = torch.randn(n, 16, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)
    assert feature_ranks(full, x, matrix=matrix)["1"].rank == 16
    found = feature_ranks(nn.Sequential(planted), x[:, :5], layers=["0"], matrix=matrix, precision=torch.float32)
    assert (found["0"].rank, found["0"].n) == (5, n * side**2)


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        ({}, False),
        ({"precision": torch.float64}, False),
        ({"precision": torch.bfloat16}, True),
        ({"precision": torch.bfloat16, "tol": 0.1}, False),
        ({"precision": torch.bfloat16, "matrix": "features"}, True),
    ],
    ids=str,
)
def test_only_a_coarse_precision_is_warned_of(arguments, warned):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 300**2, 2), nn.Tanh())
    x = torch.randn(2, 1, 300, 300)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        feature_ranks(net, x, **arguments)
    texts = [str(warning.message) for warning in seen]
    assert len(texts) == warned
    assert all("the rank of 1 leaves out" in text and "`tol=`" in text for text in texts)
