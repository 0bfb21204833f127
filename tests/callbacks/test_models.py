"""Every common kind of model, trained by a real Trainer, against counts, features and accuracies taken by hand."""

import copy
import functools
import inspect
import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from all_kinds import blank
from helpers import KINDS, is_ours
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback, SplinePartitionCallback
from lc_callback.callbacks import loop, partition
from lc_callback.functional import cross_polytope_frame

pytestmark = [pytest.mark.filterwarnings("ignore:.*torch.jit.script.*"), pytest.mark.usefixtures("no_timeline")]
N, P, STEPS = 6, 5, 3
RADIUS = 0.5


# Modules that train themselves


class Lit(LightningModule):
    """`self.net(x)` on batches `(x, y)`; subclasses say how they are called."""

    def __init__(self, net=None):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def predict(self, batch):
        return self(batch[0])

    def training_step(self, batch, batch_idx):
        return self.predict(batch).float().square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val", self.predict(batch).float().square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class PreActBlock(nn.Module):
    def __init__(self, cin, cout, stride, batch_norm):
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else lambda c: nn.Identity()
        self.bn1, self.conv1 = norm(cin), nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = norm(cout), nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(cin, cout, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x):
        out = F.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + short


def preact_resnet(batch_norm):
    blocks = [PreActBlock(2, 2, 1, batch_norm), PreActBlock(2, 4, 2, batch_norm)]
    tail = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return Lit(nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), *blocks, *tail))


def preact_twin(m, batch, move, tap):
    x = m.net[0](move(batch[0]))
    for i in (1, 2):
        block = m.net[i]
        z = block.bn1(x)
        tap(f"net.{i}#1", z)
        out = z.clamp(min=0)
        short = x if block.shortcut is None else block.shortcut(out)
        z = block.bn2(block.conv1(out))
        tap(f"net.{i}#2", z)
        x = block.conv2(z.clamp(min=0)) + short
    tap("net.3", x)


def sequential_twin(counted: tuple[type, ...] = (nn.ReLU,)):
    """A twin for a plain `net` that taps the input of each module of the given types."""

    def twin(m, batch, move, tap):
        x = move(batch[0])
        for i, layer in enumerate(m.net):
            if isinstance(layer, counted):
                tap(f"net.{i}", x)
                x = x.clone()  # the layer may work in place
            x = layer(x)

    return twin


class ReusedReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 7), nn.Linear(7, 5), nn.Linear(5, 2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.c(self.act(self.b(self.act(self.a(x)))))


def reused_twin(m, batch, move, tap):
    z = m.net.a(move(batch[0]))
    tap("net.act#1", z)
    z = m.net.b(z.clamp(min=0))
    tap("net.act#2", z)


class FunctionalReLUs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))
        self.floor = nn.Parameter(torch.full((6,), 0.1))

    def forward(self, x):
        a, b, c, d, e, f = self.layers
        x = F.relu(a(x))
        x = torch.relu(b(x))
        x = c(x).relu()
        x = d(x).clamp_min(0)
        x = torch.maximum(e(x), self.floor)
        return f(x)


def functional_twin(m, batch, move, tap):
    x = move(batch[0])
    for i, layer in enumerate(m.net.layers[:4], start=1):
        z = layer(x)
        tap(f"net#{i}", z)
        x = z.clamp(min=0)
    tap("net#5", m.net.layers[4](x) - m.net.floor)


def two_kinks_net():
    first = [nn.Linear(6, 30), nn.ReLU6(), nn.Linear(30, 9), nn.Hardtanh()]
    first[0].bias.data = torch.linspace(0, 6, 30)  # so that both kinks are met
    first[2].bias.data = torch.linspace(-1, 1, 9)
    return Lit(nn.Sequential(*first, nn.Linear(9, 4), nn.Softplus(), nn.Linear(4, 1)))


def two_kinks_twin(m, batch, move, tap):
    z = m.net[0](move(batch[0]))
    tap("net.1", z, 0.0, 6.0)
    z = m.net[2](z.clamp(0, 6))
    tap("net.3", z, -1.0, 1.0)
    tap("net.5", m.net[4](z.clamp(-1, 1)))


class LSTMHead(Lit):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.head(self.lstm(x)[0][:, -1]))


def lstm_twin(m, batch, move, tap):
    x = move(batch[0])
    h = c = x.new_zeros(len(x), 4)
    w = m.lstm
    for t in range(x.shape[1]):
        z = x[:, t] @ w.weight_ih_l0.T + w.bias_ih_l0 + h @ w.weight_hh_l0.T + w.bias_hh_l0
        tap("lstm", z)
        i, f, g, o = z.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        tap("lstm", c)
        h = o.sigmoid() * c.tanh()
    tap("head.1", m.head[0](h))


class GRUHead(Lit):
    def __init__(self):
        super().__init__()
        self.gru, self.out = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.gru(x.transpose(0, 1))[0][-1])


def gru_twin(m, batch, move, tap):
    x = move(batch[0])
    h = x.new_zeros(len(x), 4)
    w = m.gru
    for t in range(x.shape[1]):
        ir, iz, i_n = (x[:, t] @ w.weight_ih_l0.T + w.bias_ih_l0).chunk(3, 1)
        hr, hz, hn = (h @ w.weight_hh_l0.T + w.bias_hh_l0).chunk(3, 1)
        r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
        candidate = i_n + r * hn
        for pre_activation in (ir + hr, iz + hz, candidate):
            tap("gru", pre_activation)
        h = (1 - z) * candidate.tanh() + z * h


def attention(layer, x, mask=None):
    """`(N, T, d)` through `nn.MultiheadAttention` with two heads, by hand."""
    n, t, d = x.shape
    q, k, v = (x @ layer.in_proj_weight.T + layer.in_proj_bias).view(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (d // 2) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    return layer.out_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, d))


def encoder_twin(layers, x, tap, prefix, mask=None, norm_first=False, act=torch.relu):
    for i, layer in enumerate(layers):
        if norm_first:
            x = x + attention(layer.self_attn, layer.norm1(x), mask)
            z = layer.linear1(layer.norm2(x))
            tap(f"{prefix}.layers.{i}", z)
            x = x + layer.linear2(act(z))
        else:
            x = layer.norm1(x + attention(layer.self_attn, x, mask))
            z = layer.linear1(x)
            tap(f"{prefix}.layers.{i}", z)
            x = layer.norm2(x + layer.linear2(act(z)))
    return x


class Encoder(Lit):
    """Batches `(x, padding, y)`."""

    def __init__(self, batch_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=batch_first)
        self.encoder, self.batch_first = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), batch_first

    def forward(self, x, padding):
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=padding)
        return x.mean(1 if self.batch_first else 0)

    def predict(self, batch):
        return self(batch[0], batch[1])


def padded_twin(m, batch, move, tap):
    encoder_twin(m.encoder.layers, move(batch[0]), tap, "encoder", mask=batch[1][:, None, None, :])


class GPT(Lit):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(9, 4), nn.Embedding(5, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 6, 0.0, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(4, 9, bias=False)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.block(x, src_mask=causal, is_causal=True))


def gpt_twin(m, batch, move, tap):
    x = move(m.wte(batch[0])) + m.wpe.weight
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    stack = [m.block]
    encoder_twin(stack, x, lambda _, z: tap("block", z), "", future, norm_first=True, act=F.gelu)


class Bert(Lit):
    """Dict batches and an output object, as Hugging Face has them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4, padding_idx=0)
        layer = nn.TransformerEncoderLayer(4, 2, 6, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.pooler, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        logits = self.head(self.pooler(x[:, 0]))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)

    def predict(self, batch):
        return self(**batch).loss


def bert_twin(m, batch, move, tap):
    mask = (batch["attention_mask"] == 0)[:, None, None, :]
    x = encoder_twin(m.encoder.layers, move(m.embed(batch["input_ids"])), tap, "encoder", mask, act=F.gelu)
    tap("pooler.1", m.pooler[0](x[:, 0]))


class ViT(Lit):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 3, 3)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 5, 4))
        layer = nn.TransformerEncoderLayer(4, 2, 6, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head(self.encoder(x)[:, 0])


def vit_twin(m, batch, move, tap):
    x = m.patches(move(batch[0])).flatten(2).transpose(1, 2)
    x = torch.cat([m.cls.repeat(len(x), 1, 1), x], 1) + m.pos
    encoder_twin(m.encoder.layers, x, tap, "encoder", norm_first=True, act=F.gelu)


def max_pool_cnn():
    conv = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 3), nn.ReLU()]
    return Lit(nn.Sequential(*conv, nn.Flatten(), nn.Linear(2, 2)))


def winners_twin(m, batch, move, tap):
    z = m.net[0](move(batch[0]))
    tap("net.1", z)
    windows = z.relu().unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    winner = windows.argmax(-1)
    tap("net.2", (winner != winner[:1]).float() - 0.5)  # the first vertex is never above
    tap("net.4", m.net[3](windows.amax(-1)))


def conv1d_net():
    first = [nn.Conv1d(2, 3, 3, padding=2, dilation=2), nn.GroupNorm(1, 3), nn.ReLU(), nn.AvgPool1d(2)]
    return Lit(nn.Sequential(*first, nn.Conv1d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 1)))


class OneKey(Lit):
    def __init__(self):
        super().__init__(mlp_net())

    def forward(self, image):
        return self.net(image)

    def predict(self, batch):
        return self(batch["image"])


def one_key_twin(m, batch, move, tap):
    tap_mlp(m.net, move(batch["image"]), tap, "net")


class Columns(Lit):
    """Dict batches with a scalar for each sample."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)))

    def forward(self, traits, age):
        return self.net(torch.cat([traits, age[:, None]], 1))

    def predict(self, batch):
        return self(batch["traits"], batch["age"])


def columns_twin(m, batch, move, tap):
    traits, age = move(batch["traits"], batch["age"])
    tap("net.1", m.net[0](torch.cat([traits, age[:, None]], 1)))


class TwoInputs(Lit):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x1, x2):
        return self.out(F.relu(self.left(x1) + self.right(x2)))

    def predict(self, batch):
        return self(batch[0], batch[1])


def two_inputs_twin(m, batch, move, tap):
    x1, x2 = move(batch[0], batch[1])
    tap("relu", m.left(x1) + m.right(x2))


class NoForward(LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.other = mlp_net(), nn.Linear(6, 2)

    def embed(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return (self.embed(batch[0]) + self.other(batch[0])).square().mean()

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def mlp_net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))


def tap_mlp(net, x, tap, prefix):
    z = net[0](x)
    tap(".".join(filter(None, [prefix, "1"])), z)
    tap(".".join(filter(None, [prefix, "3"])), net[2](z.clamp(min=0)))


def mlp_twin(prefix="net"):
    def twin(m, batch, move, tap):
        tap_mlp(m.net, move(batch[0]), tap, prefix)

    return twin


def compiled_in_place():
    module = Lit(mlp_net())
    module.net.compile(backend="eager")
    return module


def compiled_child_twin(m, batch, move, tap):
    tap_mlp(m.net._orig_mod, move(batch[0]), tap, "net")


def scripted_twin(m, batch, move, tap):
    z = m.first(move(batch[0]))
    tap("act", z)
    script = m.script
    tap("script", getattr(script, "0")(z.relu()))


class Scripted(Lit):
    """A scripted child between plain modules."""

    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Linear(6, 5), nn.ReLU()
        self.script = torch.jit.script(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))

    def forward(self, x):
        return self.script(self.act(self.first(x)))


def rounded_to_bf16(twin):
    return lambda m, *rest: twin(copy.deepcopy(m).bfloat16().to(next(m.parameters()).dtype), *rest)


class AutoEncoder(Lit):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.SiLU())
        self.decoder = nn.Sequential(nn.ConvTranspose2d(3, 2, 2, 2), nn.ELU(), nn.Conv2d(2, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return self.decoder(self.encoder(x))


def autoencoder_twin(m, batch, move, tap):
    z = m.encoder[0](move(batch[0]))
    tap("encoder.1", z)
    tap("decoder.1", m.decoder[0](F.silu(z)))


class FrozenBackbone(Lit):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(48, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        self.backbone.requires_grad_(False)
        self.backbone[1].running_mean.normal_()

    def forward(self, x):
        return self.head(self.backbone(x))

    def on_train_epoch_start(self):
        self.backbone.eval()


def frozen_twin(m, batch, move, tap):
    z = m.backbone[1](m.backbone[0](move(batch[0])))
    tap("backbone.2", z)
    tap("head.2", m.head[1](m.head[0](z.relu().flatten(1))))


class Experts(Lit):
    """A softmax mixture of gated linear units."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 2)) for _ in range(3))

    def forward(self, x):
        weights = self.gate(x).softmax(-1)
        return sum(weights[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


def experts_twin(m, batch, move, tap):
    x = move(batch[0])
    for i, expert in enumerate(m.experts):
        tap(f"experts.{i}.1", expert[0](x)[:, 4:])


# Data: what a dataset of N samples holds


def vectors(*shape):
    return lambda: (torch.randn(N, *shape), torch.randint(0, 2, (N,)))


def padded_sequences():
    padding = torch.zeros(N, 4, dtype=torch.bool)
    padding[::2, 3] = True
    return torch.randn(N, 4, 4), padding, torch.zeros(N)


def tokens():
    return torch.randint(0, 9, (N, 5)), torch.zeros(N)


def bert_batch():
    mask = torch.ones(N, 5, dtype=torch.long)
    mask[::2, 4] = 0
    ids = torch.randint(1, 9, (N, 5)) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (N,))}


def image_dict():
    return {"image": torch.randn(N, 6), "label": torch.arange(N), "id": torch.arange(N)}


def columns():
    return {"age": torch.randn(N), "label": torch.zeros(N), "traits": torch.randn(N, 5)}


def two_inputs():
    return torch.randn(N, 3), torch.randn(N, 4), torch.zeros(N)


@dataclass
class Case:
    """A model, its data, the layers it should have with their units, and its forward with taps."""

    make: Callable[[], Any]
    data: Callable[[], Any]
    layers: dict[str, int]
    twin: Callable[..., None]
    callback: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


MLP = {"net.1": 8, "net.3": 5}
LSTM = {"lstm": 3 * 5 * 4, "head.1": 5}
RESNET = {"net.1#1": 72, "net.1#2": 72, "net.2#1": 72, "net.2#2": 36, "net.3": 36}

CASES = {
    "mlp": Case(lambda: Lit(mlp_net()), vectors(6), MLP, mlp_twin()),
    "preact_resnet_bn": Case(lambda: preact_resnet(True), vectors(1, 6, 6), RESNET, preact_twin),
    "preact_resnet_no_bn": Case(lambda: preact_resnet(False), vectors(1, 6, 6), RESNET, preact_twin),
    "inplace_relu": Case(
        lambda: Lit(nn.Sequential(nn.Linear(6, 8), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(8, 2))),
        vectors(6),
        {"net.1": 8},
        sequential_twin(),
    ),
    "reused_relu": Case(lambda: Lit(ReusedReLU()), vectors(6), {"net.act#1": 7, "net.act#2": 5}, reused_twin),
    "functional_relus": Case(
        lambda: Lit(FunctionalReLUs()), vectors(6), {f"net#{i}": 6 for i in range(1, 6)}, functional_twin
    ),
    "gelu_silu": Case(
        lambda: Lit(nn.Sequential(nn.Linear(6, 8), nn.GELU("tanh"), nn.Linear(8, 5), nn.SiLU(), nn.Linear(5, 1))),
        vectors(6),
        {"net.1": 8, "net.3": 5},
        sequential_twin((nn.GELU, nn.SiLU)),
    ),
    "prelu_leaky": Case(
        lambda: Lit(nn.Sequential(nn.Linear(6, 8), nn.PReLU(8), nn.Linear(8, 5), nn.LeakyReLU(), nn.Linear(5, 1))),
        vectors(6),
        {"net.1": 8, "net.3": 5},
        sequential_twin((nn.PReLU, nn.LeakyReLU)),
    ),
    "relu6_hardtanh_softplus": Case(
        two_kinks_net,
        vectors(6),
        {"net.1": 30, "net.3": 9, "net.5": 4},
        two_kinks_twin,
    ),
    "lstm_head": Case(LSTMHead, vectors(3, 3), LSTM, lstm_twin),
    "gru": Case(GRUHead, vectors(3, 3), {"gru": 3 * 3 * 4}, gru_twin),
    "encoder_batch_first": Case(
        lambda: Encoder(True), padded_sequences, {"encoder.layers.0": 24, "encoder.layers.1": 24}, padded_twin
    ),
    "encoder_time_first": Case(
        lambda: Encoder(False), padded_sequences, {"encoder.layers.0": 24, "encoder.layers.1": 24}, padded_twin
    ),
    "gpt_tokens": Case(GPT, tokens, {"block": 30}, gpt_twin),
    "bert_dict": Case(Bert, bert_batch, {"encoder.layers.0": 30, "pooler.1": 4}, bert_twin),
    "vit": Case(ViT, vectors(1, 6, 6), {"encoder.layers.0": 30, "encoder.layers.1": 30}, vit_twin),
    "max_pool_cnn": Case(max_pool_cnn, vectors(1, 6, 6), {"net.1": 108, "net.4": 2}, sequential_twin((nn.ReLU,))),
    "max_pool_counted": Case(
        max_pool_cnn, vectors(1, 6, 6), {"net.1": 108, "net.2": 27, "net.4": 2}, winners_twin, {"max_pool": True}
    ),
    "conv1d": Case(
        conv1d_net,
        vectors(2, 8),
        {"net.2": 24, "net.5": 6},
        sequential_twin(),
    ),
    "dict_one_key": Case(OneKey, image_dict, MLP, one_key_twin),
    "dict_forward_fn": Case(
        OneKey, image_dict, MLP, one_key_twin, {"forward_fn": lambda module, batch: module(batch["image"])}
    ),
    "dict_scalar_column": Case(Columns, columns, {"net.1": 8}, columns_twin),
    "two_inputs": Case(TwoInputs, two_inputs, {"relu": 5}, two_inputs_twin),
    "no_forward_forward_fn": Case(
        NoForward, vectors(6), MLP, mlp_twin(), {"forward_fn": lambda module, x: module.embed(x)}
    ),
    "no_forward_method_name": Case(NoForward, vectors(6), MLP, mlp_twin(), {"forward_fn": "embed"}),
    "no_forward_submodule": Case(NoForward, vectors(6), {"1": 8, "3": 5}, mlp_twin(""), {"submodule": "net"}),
    "compiled_module": Case(lambda: torch.compile(Lit(mlp_net()), backend="eager"), vectors(6), MLP, mlp_twin()),
    "compiled_child": Case(
        lambda: Lit(torch.compile(mlp_net(), backend="eager")), vectors(6), MLP, compiled_child_twin
    ),
    "compiled_in_place": Case(compiled_in_place, vectors(6), MLP, mlp_twin()),
    "scripted_child": Case(Scripted, vectors(6), {"act": 5, "script": 4}, scripted_twin),
    "float64": Case(
        lambda: Lit(mlp_net()), vectors(6), MLP, mlp_twin(), {}, {"precision": "64-true"}, dtype=torch.float64
    ),
    "bf16_true": Case(
        lambda: Lit(mlp_net()), vectors(6), MLP, rounded_to_bf16(mlp_twin()), {}, {"precision": "bf16-true"}
    ),
    "bf16_true_lstm": Case(LSTMHead, vectors(3, 3), LSTM, rounded_to_bf16(lstm_twin), {}, {"precision": "bf16-true"}),
    "bf16_mixed": Case(lambda: Lit(mlp_net()), vectors(6), MLP, mlp_twin(), {}, {"precision": "bf16-mixed"}),
    "fp16_mixed": Case(lambda: Lit(mlp_net()), vectors(6), MLP, mlp_twin(), {}, {"precision": "16-mixed"}),
    "autoencoder_sigmoid": Case(AutoEncoder, vectors(1, 6, 6), {"encoder.1": 27, "decoder.1": 72}, autoencoder_twin),
    "frozen_batch_norm": Case(FrozenBackbone, vectors(1, 6, 6), {"backbone.2": 48, "head.2": 4}, frozen_twin),
    "experts_glu": Case(Experts, vectors(6), {f"experts.{i}.1": 4 for i in range(3)}, experts_twin),
}


# Counts, with taps placed by hand


def count(case: Case, module: Any, data: Any) -> tuple[dict[str, float], dict[str, int]]:
    """Mean number of switching units of each tapped layer over the points of `data`, and its units."""
    switching: Counter[str] = Counter()
    units: Counter[str] = Counter()

    def move(*tensors: Tensor) -> Any:
        flat = torch.cat([t.reshape(2 * P, -1) for t in tensors], 1)
        frame = cross_polytope_frame(flat.shape[1], P, dtype=flat.dtype)
        flat = flat + RADIUS * torch.cat([frame, -frame])
        parts = [p.view_as(t) for p, t in zip(flat.split([t[0].numel() for t in tensors], 1), tensors, strict=True)]
        return parts[0] if len(parts) == 1 else parts

    def tap(name: str, z: Tensor, *kinks: float) -> None:
        crossed = torch.zeros(z.shape[1:], dtype=torch.bool)
        for kink in kinks or (0.0,):
            crossed |= (z > kink).any(0) & (z <= kink).any(0)
        switching[name] += int(crossed.sum())
        units[name] += crossed.numel()

    module = copy.deepcopy(module).to(case.dtype).eval()
    data = tree_map(lambda t: t.to(case.dtype) if t.is_floating_point() else t, data)
    for point in torch.arange(N):
        with torch.no_grad():
            case.twin(module, tree_map(operator.itemgetter(point.repeat(2 * P)), data), move, tap)
    return {key: total / N for key, total in switching.items()}, {key: total // N for key, total in units.items()}


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


def samples(data: Any) -> list[Any]:
    if isinstance(data, dict):
        return [{key: value[i] for key, value in data.items()} for i in range(N)]
    return list(zip(*data, strict=True))


def fit(case: Case, module: Any, data: Any, folder: Any, callbacks: list[Any]) -> list[str]:
    """Train for a few steps. Returns the warnings that were given."""
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            logger=CSVLogger(folder),
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            **case.trainer,
        )
        train, test = (DataLoader(samples(part), batch_size=3) for part in data)
        trainer.fit(module, train, test)
    return [str(w.message) for w in caught]


# Features, taken by hand: what the taps see, after the activation

ACTIVATIONS: dict[str, Callable[[Any], dict[str, Any]]] = {  # where they are not ReLU
    "functional_relus": lambda m: {"net#5": lambda z: z.relu() + m.net.floor},
    "gelu_silu": lambda m: {"net.1": functools.partial(F.gelu, approximate="tanh"), "net.3": F.silu},
    "prelu_leaky": lambda m: {"net.1": m.net[1], "net.3": m.net[3]},
    "relu6_hardtanh_softplus": lambda m: {"net.1": F.relu6, "net.3": F.hardtanh, "net.5": F.softplus},
    "gpt_tokens": lambda m: {"block": F.gelu},
    "bert_dict": lambda m: {"encoder.layers.0": F.gelu, "pooler.1": torch.tanh},
    "vit": lambda m: {"encoder.layers.0": F.gelu, "encoder.layers.1": F.gelu},
    "dict_scalar_column": lambda m: {"net.1": torch.tanh},
    "autoencoder_sigmoid": lambda m: {"encoder.1": F.silu, "decoder.1": F.elu},
}


def lstm_features(m, batch):
    out = m.lstm(batch[0])[0]
    return {"lstm": out, "head.1": m.head(out[:, -1])}


OWN_FEATURES = {
    "lstm_head": lstm_features,
    "bf16_true_lstm": lstm_features,
    "gru": lambda m, batch: {"gru": m.gru(batch[0].transpose(0, 1))[0]},
    "experts_glu": lambda m, batch: {f"experts.{i}.1": e[:2](batch[0]) for i, e in enumerate(m.experts)},
    "max_pool_counted": lambda m, batch: {"net.1": m.net[:2](batch[0]), "net.4": m.net[:5](batch[0])},
}
MAPS = ("conv1d",)  # (N, C, L); what else has three axes is a sequence (N, T, d)


def as_measured(case: Case, module: Any) -> Any:
    """A copy in eval mode with the weights as the trainer keeps them, in the precision of a measurement."""
    module = copy.deepcopy(module)
    if case.trainer.get("precision") == "bf16-true":
        module = module.bfloat16()
    return module.to(case.dtype).eval()


def features_by_hand(name: str, module: Any, data: Any) -> dict[str, np.ndarray]:
    """One row for each point, position or token."""
    case, found = CASES[name], {}
    module = as_measured(case, module)
    data = tree_map(lambda t: t.to(case.dtype) if t.is_floating_point() else t, data)
    with torch.no_grad():
        if name in OWN_FEATURES:
            found = OWN_FEATURES[name](module, data)
        else:
            activations = ACTIVATIONS.get(name, lambda m: {})(module)

            def tap(layer: str, z: Tensor, *kinks: float) -> None:
                found[layer] = activations.get(layer, torch.relu)(z)

            case.twin(module, data, lambda *tensors: tensors[0] if len(tensors) == 1 else tensors, tap)
        maps = {layer: x.movedim(1, -1) if x.ndim == 4 or name in MAPS else x for layer, x in found.items()}
        return {layer: x.flatten(0, -2).double().numpy() for layer, x in maps.items()}


def spectrum_by_hand(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(0)
    return np.linalg.svd(rows.T @ rows / (len(rows) - 1), compute_uv=False)[: min(rows.shape)]


# Classes, taken by hand


@dataclass
class Labels:
    """Why a model is refused by the attack, what is passed then, and its logits and classes by hand."""

    found: str
    hint: str
    arguments: dict[str, Any]
    logits: Callable[[Any, Any], Tensor]
    classes: Callable[[Any], Tensor]


def second(batch):
    return batch[1]


PADDED = Labels(
    "targets are torch.float32",
    "`target_fn=`",
    {"target_fn": lambda batch: batch[1].sum(1)},
    lambda m, batch: m(batch[0], batch[1]),
    lambda batch: batch[1].any(1).long(),
)
PARITY = Labels(
    "targets range from 0 to 5, but the model returns 2 logits",
    "`target_fn=`",
    {"target_fn": lambda batch: batch["label"] % 2},
    lambda m, batch: m(batch["image"]),
    lambda batch: torch.arange(N) % 2,
)
NOT_CLASSIFIERS = {
    **dict.fromkeys(("encoder_batch_first", "encoder_time_first"), PADDED),
    **dict.fromkeys(("dict_one_key", "dict_forward_fn"), PARITY),
    "gpt_tokens": Labels(
        "outputs of shape (6, 5, 9)",
        "`forward_fn=`",
        {"forward_fn": lambda m, tokens: m(tokens)[:, -1], "target_fn": lambda batch: batch[0][:, 0]},
        lambda m, batch: m(batch[0])[:, 4],
        lambda batch: batch[0][:, 0],
    ),
    "dict_scalar_column": Labels(
        "targets are torch.float32",
        "`target_fn=`",
        {"target_fn": lambda batch: (batch["age"] > 0).long()},
        lambda m, batch: m(batch["traits"], batch["age"]),
        lambda batch: (batch["age"] > 0).long(),
    ),
    "two_inputs": Labels(
        "targets are torch.float32",
        "`target_fn=`",
        {"target_fn": lambda batch: (batch[0][:, 0] > 0).long()},
        lambda m, batch: m(batch[0], batch[1]),
        lambda batch: (batch[0][:, 0] > 0).long(),
    ),
    "autoencoder_sigmoid": Labels(
        "returns shape (6, 1, 6, 6)",
        "`forward_fn=`",
        {"forward_fn": lambda m, x: m.encoder(x).mean((2, 3))},
        lambda m, batch: F.silu(m.encoder[0](batch[0])).mean((2, 3)),
        second,
    ),
}
NO_FORWARD = ("no_forward_forward_fn", "no_forward_method_name", "no_forward_submodule")
ONE_LOGIT = ("gelu_silu", "prelu_leaky", "relu6_hardtanh_softplus", "conv1d")
LOGITS = {
    **dict.fromkeys(ONE_LOGIT, lambda m, batch: m(batch[0]) * torch.tensor([-1.0, 1.0])),
    "bert_dict": lambda m, batch: m(batch["input_ids"], batch["attention_mask"]).logits,
    **dict.fromkeys(NO_FORWARD, lambda m, batch: m.net(batch[0])),
}
CLASSES = {"bert_dict": lambda batch: batch["labels"]}


def clean_accuracy_by_hand(name: str, module: Any, data: Any) -> float:
    case, labels = CASES[name], NOT_CLASSIFIERS.get(name)
    module = as_measured(case, module)
    data = tree_map(lambda t: t.to(case.dtype) if t.is_floating_point() else t, data)
    logits = labels.logits if labels else LOGITS.get(name, lambda m, batch: m(batch[0]))
    classes = labels.classes if labels else CLASSES.get(name, second)
    with torch.no_grad():
        return (logits(module, data).argmax(1) == classes(data)).double().mean().item()


# Regions, told apart by hand: by which units are on

UNNAMED = "something else in it is nonlinear, such as a softmax, a LayerNorm"
BENDS = {
    "gelu_silu": "'gelu' at 'net.1'",
    "relu6_hardtanh_softplus": "'softplus' at 'net.5'",
    "lstm_head": "'LSTM' at 'lstm'",
    "bf16_true_lstm": "'LSTM' at 'lstm'",
    "gru": "'GRU' at 'gru'",
    "encoder_batch_first": UNNAMED,
    "encoder_time_first": UNNAMED,
    "conv1d": UNNAMED,
    "gpt_tokens": "'gelu' at 'block'",
    "bert_dict": "'gelu' at 'encoder.layers.0'",
    "vit": "'gelu' at 'encoder.layers.0'",
    "dict_scalar_column": "'tanh' at 'net.1'",
    "autoencoder_sigmoid": "'silu' at 'encoder.1'",
    "experts_glu": "'glu' at 'experts.0.1'",
}
LARGE = ("preact_resnet_bn", "preact_resnet_no_bn")
CUT = [name for name in CASES if name not in BENDS and name != "max_pool_counted"]  # that is max_pool_cnn once more


def small_window() -> Any:
    generator = torch.Generator().manual_seed(0)
    return 0.2 * torch.randn(N, 1, 6, 6, generator=generator), torch.arange(N) % 2


def grid(extent: Any) -> np.ndarray:
    u, v = np.linspace(*extent[:2], 30), np.linspace(*extent[2:], 30)
    return np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)


def units_on(name: str, module: Any, data: Any, plane: Any, uv: np.ndarray) -> Tensor:
    """Whether each tapped unit is above its kink, one row for each point of the plane."""
    values, found = plane.to_input(uv).flatten(1), []

    def move(*tensors: Tensor) -> Any:
        parts = values.split([t[0].numel() for t in tensors], 1)
        parts = [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]
        return parts[0] if len(parts) == 1 else parts

    batch = tree_map(lambda t: t[:1].repeat(len(uv), *[1] * (t.ndim - 1)), data)
    with torch.no_grad():
        CASES[name].twin(as_measured(CASES[name], module).double(), batch, move, lambda layer, z: found.append(z > 0))
    return torch.cat([on.flatten(1) for on in found], 1)


# The tests


@pytest.fixture(autouse=True)
def slow_is_no_fault(monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_TO_SAY", math.inf)


@dataclass
class Trained:
    """A training, its data, and the module before and after."""

    data: Any
    before: Any
    module: Any
    warned: list[str]


def trained(name: str, folder: Any, *callbacks: Any) -> Trained:
    case = CASES[name]
    torch.manual_seed(0)
    data = case.data(), case.data()
    before, module = (seeded(case.make) for _ in range(2))
    return Trained(data, before, module, fit(case, module, data, folder, [*callbacks]))


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The training without us, by case; run once."""
    return functools.cache(lambda name: trained(name, tmp_path_factory.mktemp("without")))


def with_callbacks(name: str, folder: Any, *kinds: str) -> tuple[dict[str, Any], Trained]:
    callbacks = {kind: measuring(name, kind) for kind in kinds}
    return callbacks, trained(name, folder, *callbacks.values())


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The training with all three callbacks, by case; run once."""
    return functools.cache(lambda name: with_callbacks(name, tmp_path_factory.mktemp("together"), *KINDS))


@pytest.fixture(scope="module", params=["together", pytest.param("alone", marks=pytest.mark.slow)])
def measured(request, together, tmp_path_factory):
    """The training with the callback of that kind, and the two others or not, by case."""
    if request.param == "together":
        return lambda name, kind: together(name)
    return lambda name, kind: with_callbacks(name, tmp_path_factory.mktemp("alone"), kind)


def assert_untouched(given: Trained, twin: Trained) -> None:
    assert set(given.warned) - set(twin.warned) == set()
    for key, tensor in twin.module.state_dict().items():
        assert torch.equal(given.module.state_dict()[key], tensor), key


def measuring(name: str, kind: str, **arguments: Any) -> Any:
    own = dict(CASES[name].callback)
    if kind == "lc":
        return LocalComplexityCallback(RADIUS, P, n_probes=N, per_layer=True, **own)
    own.pop("max_pool", None)
    if kind == "rank":
        return FeatureRankCallback(n_probes=N, **own)
    hint = NOT_CLASSIFIERS[name].arguments if name in NOT_CLASSIFIERS else {}
    return PGDRobustnessCallback(**{"eps": 0.3, "steps": 2, "n_probes": N, **own, **hint, **arguments})


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_model(name, without, measured):
    case = CASES[name]
    callbacks, given = measured(name, "lc")
    callback = callbacks["lc"]
    module, data = given.module, given.data
    expected, units = count(case, given.before, data[0])
    assert units == case.layers
    expected_test, _ = count(case, given.before, data[1])

    rows = callback.history
    assert rows.steps == [0, 1, 2, 3]
    for split in ("train", "test", "random"):
        assert all(0 <= value <= sum(case.layers.values()) for value in rows[f"lc/{split}"])  # NaN is not
        assert [k.split("/", 2)[2] for k in rows.keys if k.startswith(f"lc_layer/{split}/")] == list(case.layers)
    assert {k: rows[f"lc_layer/train/{k}"][0] for k in case.layers} == pytest.approx(expected)
    assert {k: rows[f"lc_layer/test/{k}"][0] for k in case.layers} == pytest.approx(expected_test)
    assert rows["lc/train"][0] == pytest.approx(sum(expected.values())) != 0
    assert rows["lc/train"][-1] == pytest.approx(sum(count(case, module, data[0])[0].values()))
    sizes = dict(zip(callback._latest["train"].layer_names, callback._latest["train"].layer_sizes, strict=True))
    assert sizes == case.layers
    assert_untouched(given, without(name))


@pytest.mark.parametrize("name", CASES)
def test_ranks_of_every_kind_of_model(name, without, measured):
    callbacks, given = measured(name, "rank")
    rows = callbacks["rank"].history
    assert rows.steps == [0, 1, 2, 3]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    for i, module in ((0, given.before), (-1, given.module)):
        by_hand = features_by_hand(name, module, given.data[0])
        assert [key.split("/", 1)[1] for key in rows.keys if key.startswith("rank/")][:-1] == list(by_hand)
        for layer, x in by_hand.items():
            spectrum = spectrum_by_hand(x)
            tolerance = max(x.shape) * torch.finfo(CASES[name].dtype).eps
            assert rows[f"rank/{layer}"][i] == (spectrum > tolerance * spectrum[0]).sum() > 0
            found = rows.arrays[rows.steps[i]][f"spectrum/{layer}"].numpy()
            assert found == pytest.approx(spectrum, rel=1e-3, abs=1e-5 * spectrum[0])
    widths = {layer: (found.n, found.d) for layer, found in callbacks["rank"]._latest.items()}
    assert widths == {layer: x.shape for layer, x in by_hand.items()}
    squares = sum(p.double().square().sum().item() for p in given.module.parameters())
    if "submodule" not in CASES[name].callback:
        assert rows["weight_norm/total"][-1] == pytest.approx(squares**0.5)
    assert_untouched(given, without(name))


@pytest.mark.parametrize("name", CASES)
def test_accuracies_of_every_kind_of_model(name, without, measured):
    callbacks, given = measured(name, "robustness")
    rows = callbacks["robustness"].history
    assert rows.steps == [0, 1, 2, 3]
    for i, module in ((0, given.before), (-1, given.module)):
        for split, data in zip(("train", "test"), given.data, strict=True):
            assert rows[f"clean_acc/{split}"][i] == pytest.approx(clean_accuracy_by_hand(name, module, data))
    robust, clean = rows["robust_acc/test_eps0.3"], rows["clean_acc/test"]
    assert all(0 <= r <= c for r, c in zip(robust, clean, strict=True))  # NaN is not
    assert_untouched(given, without(name))


def test_attacks_do_fool_some_of_these_models(tmp_path):
    found = []
    for name in ("mlp", "inplace_relu", "gru", "two_inputs", "dict_scalar_column", "no_forward_submodule"):
        callback = measuring(name, "robustness", eps=3.0)
        trained(name, tmp_path, callback)
        found += list(zip(callback.history["clean_acc/test"], callback.history["robust_acc/test_eps3"], strict=True))
    assert sum(robust < clean for clean, robust in found) >= len(found) / 4


@pytest.mark.parametrize("name", NOT_CLASSIFIERS)
def test_what_is_no_classifier_is_refused_before_the_first_step(name, tmp_path):
    case, labels = CASES[name], NOT_CLASSIFIERS[name]
    module = seeded(case.make)
    callback = PGDRobustnessCallback(eps=0.3, steps=2, n_probes=N, schedule=[2], **case.callback)
    with pytest.raises(ValueError, match=r"^PGDRobustnessCallback: train probes: ") as caught:
        fit(case, module, (case.data(), case.data()), tmp_path, [callback])
    assert [part for part in (labels.found, labels.hint) if part not in str(caught.value)] == []
    for key, tensor in seeded(case.make).state_dict().items():
        assert torch.equal(module.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", CASES)
def test_all_three_of_every_kind_of_model(name, without, together):
    callbacks, given = together(name)
    for callback in callbacks.values():
        assert callback.history.steps == [0, 1, 2, 3]
        assert all(math.isfinite(value) for row in callback.history for value in row.values())
    assert all(is_ours(key) for callback in callbacks.values() for key in callback.history.keys)
    assert_untouched(given, without(name))


@pytest.fixture
def drawn(monkeypatch):
    """The slices of each row, which are not drawn."""
    found = []
    monkeypatch.setattr(partition, "draw_slices", lambda slices: found.append(slices[0]) or blank(slices))
    return found


def slicing(name: str, steps: list[int]) -> Any:
    own = {**CASES[name].callback, **({"train_probes": small_window()} if name in LARGE else {})}
    own.pop("max_pool", None)
    return SplinePartitionCallback(n_probes=N, schedule=steps, **own)


@pytest.mark.parametrize("name", CUT)
def test_regions_of_every_kind_of_model_that_has_some(name, without, drawn, tmp_path):
    callback = slicing(name, [0, STEPS])
    given = trained(name, tmp_path, callback)
    rows = callback.history
    assert rows.steps == [0, STEPS]
    for row, found, module in zip(rows, drawn, (given.before, given.module), strict=True):
        at_centres = units_on(name, module, given.data[0], found.plane, found.centres)
        n_patterns = len(at_centres.unique(dim=0))
        assert row["partition/n_regions"] == found.n_regions > 8
        pooled = name == "max_pool_cnn"  # cut where the winner changes, too
        assert n_patterns <= found.n_regions if pooled else n_patterns == found.n_regions
        anywhere = units_on(name, module, given.data[0], found.plane, grid(found.extent))
        assert len(torch.cat([at_centres, anywhere]).unique(dim=0)) == n_patterns  # no region was missed
    assert_untouched(given, without(name))


@pytest.mark.parametrize("name", BENDS)
def test_what_is_not_piecewise_affine_is_refused_before_the_first_step(name, tmp_path):
    case = CASES[name]
    module = seeded(case.make)
    with pytest.raises(ValueError, match=r"^SplinePartitionCallback: .*`local_complexity_map`") as caught:
        fit(case, module, (case.data(), case.data()), tmp_path, [slicing(name, [2])])
    assert BENDS[name] in str(caught.value)
    for key, tensor in seeded(case.make).to(next(module.parameters()).dtype).state_dict().items():
        assert torch.equal(module.state_dict()[key], tensor), key
    assert all(part.training for part in module.modules())


# The same kinds of models behind a wrapper that only forwards keywords, on batches that are dicts


class Wrapped(LightningModule):
    """`forward(self, **inputs)`, as in Lightning's examples of text and in wrappers of Hugging Face's models."""

    def __init__(self, net, call):
        super().__init__()
        self.net, self.call = net, call

    def forward(self, **inputs):
        return self.call(self.net, **inputs)

    def training_step(self, batch, batch_idx):
        return self.net.training_step([*batch.values()], batch_idx)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class WrappedDicts(Wrapped):
    def training_step(self, batch, batch_idx):
        return self.net.training_step(batch, batch_idx)


class WrappedPositions(Wrapped):
    def forward(self, *args, **kwargs):
        return self.call(self.net, *args, **kwargs)

    def training_step(self, batch, batch_idx):
        return self.net.training_step(batch, batch_idx)


CALLS = {
    **dict.fromkeys(NO_FORWARD, lambda net, *args, **inputs: net.embed(*args, **inputs)),
    "dict_forward_fn": lambda net, image: net(image),
}


def names_of(module: Any) -> list[str]:
    """What the forward calls its inputs."""
    if isinstance(module, NoForward):
        return ["x"]
    return [*inspect.signature(getattr(module, "_orig_mod", module).forward).parameters]


def assert_counts_of_the_inner_model(name: str, kind: type[Wrapped], folder: Any) -> None:
    case = CASES[name]
    inner = seeded(case.make)
    data = case.data(), case.data()
    names = names_of(inner)
    batches: list[Any] = [*data]
    if kind is Wrapped:
        batches = [dict(zip([*names, "y"], part, strict=True)) for part in data]
    if kind is WrappedDicts:  # in the order in which the twin moves them
        batches = [{key: part[key] for key in sorted(part, key=[*names, *part].index)} for part in data]
    module = kind(inner, CALLS.get(name, lambda net, *args, **inputs: net(*args, **inputs)))
    own = {key: value for key, value in case.callback.items() if key == "max_pool"}
    callback = LocalComplexityCallback(RADIUS, P, n_probes=N, per_layer=True, random_probes=False, **own)
    before = seeded(case.make)
    fit(case, module, batches, folder, [callback])
    assert callback.history.steps == [0, 1, 2, 3]
    for split, part in zip(("train", "test"), data, strict=True):
        expected, units = count(case, before, part)
        found = [callback.history[key][0] for key in callback.history.keys if key.startswith(f"lc_layer/{split}/")]
        assert found == pytest.approx([*expected.values()])
        assert [*callback._latest[split].layer_sizes] == [*units.values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_model_behind_keywords_that_are_forwarded(name, tmp_path):
    kind = WrappedDicts if isinstance(CASES[name].data(), dict) else Wrapped
    assert_counts_of_the_inner_model(name, kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if not isinstance(CASES[name].data(), dict)])
def test_every_kind_of_model_behind_arguments_that_are_forwarded(name, tmp_path):
    assert_counts_of_the_inner_model(name, WrappedPositions, tmp_path)


def test_the_tables_name_cases() -> None:
    assert {*ACTIVATIONS, *OWN_FEATURES, *MAPS, *NOT_CLASSIFIERS, *LOGITS, *CLASSES, *BENDS, *LARGE} <= {*CASES}
