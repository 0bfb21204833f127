"""Networks that tests of several parts share, and points for them; and how to count with one of the counters."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lc_callback.engine.counting.task import CountingTask

METHODS = ("vertices", "linear")


def mlp(*widths, act=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1]).double()


def draw(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looked_at(x):
    """A value that reaches Python: so the model has to run each time."""
    float(x.sum())
    return x


def seq(*layers):
    return nn.Sequential(*layers)


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.body(x)


class Abs(nn.Module):
    def forward(self, x):
        return x.abs()


class Clamp(nn.Module):
    def forward(self, x):
        return x.clamp(-0.5, 1.0)


class Larger(nn.Module):
    def forward(self, x):
        return torch.maximum(*x.chunk(2, 1))


# Networks of which the regions can be told by hand


def dense():
    return seq(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (
        3,
    )


def conv():
    first = (nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
    return seq(*first, nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)), (1, 4, 4)


def residual():
    first = Residual(nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    return seq(nn.Linear(3, 5), first, Residual(nn.ReLU(), nn.Linear(5, 5)), nn.Linear(5, 3)), (3,)


def batchnorm():
    first = (nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    last = (nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    return seq(*first, *last), (1, 4, 4)


def maxpool():
    first = (nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2))
    return seq(*first, nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)), (1, 4, 4)


def overlapping():
    first = (nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten())
    return seq(*first, nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), (1, 4, 4)


def others():
    first = (nn.Linear(3, 6), nn.PReLU(init=0.3), nn.Linear(6, 4), nn.LeakyReLU(-0.5), nn.Linear(4, 4), nn.ReLU6())
    last = (nn.Linear(4, 4), nn.Hardtanh(), nn.Linear(4, 4), Abs(), nn.Linear(4, 4), Clamp(), nn.Linear(4, 6))
    return seq(*first, *last, Larger(), nn.Linear(3, 3)), (3,)


KINDS = [dense, conv, residual, batchnorm, maxpool, overlapping, others]


def made(kind, seed):
    """A network in eval mode and three points, float64."""
    torch.manual_seed(seed)
    net, shape = kind()
    for parameter in net.parameters():
        if parameter.numel() > 1:
            parameter.data *= 1.6
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net.double().eval(), torch.randn(3, *shape).double()


# Networks of many operations, and points of them


class ReadsTwice(nn.Module):
    """Reads what goes into its non-linearity once more, so that this must not be overwritten."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 9)

    def forward(self, x):
        z = self.first(x)
        z = z + F.relu(z)
        half = z[:, :5]
        return F.relu(self.second(torch.cat([F.relu(half), z[:, 5:]], 1))) + z


class Tokens(nn.Module):
    """Tokens and a mask; what is perturbed is inside, and the sizes are written in terms of the batch."""

    def __init__(self):
        super().__init__()
        self.embedding, self.position = nn.Embedding(11, 8), nn.Embedding(5, 8)
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 12)

    def forward(self, tokens, mask):
        n, length = tokens.shape
        x = self.embedding(tokens) + self.position(torch.arange(length, device=tokens.device))
        x = x + self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]
        x = F.gelu(self.out(x.reshape(n * length, 8)))
        return x.view(n, length, 12).masked_fill(mask[..., None], 0).sum(1).relu()


class Padded(nn.Module):
    def forward(self, x):
        zeros = torch.zeros(len(x), 2, dtype=x.dtype)
        return F.relu(torch.cat([x, zeros], 1) - torch.tensor(0.1, dtype=x.dtype))


def images():
    return seq(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.Hardtanh(),
    )


TOKENS = torch.randint(11, (7, 5), generator=torch.Generator().manual_seed(0))
NETS = {
    "mlp": (lambda: mlp(6, 9, 9, 2), draw(7, 6)),
    "in_place": (
        lambda: seq(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 4), nn.ELU(inplace=True)),
        draw(7, 6),
    ),
    "reused": (lambda: seq(nn.Linear(6, 6), *[nn.ReLU(), nn.Linear(6, 6)] * 3, nn.ReLU()), draw(7, 6)),
    "residual": (ReadsTwice, draw(7, 6)),
    "images": (images, draw(7, 2, 8, 8)),
    "attention": (Tokens, {"tokens": TOKENS, "mask": TOKENS > 8}),
    "padded": (Padded, 0.1 + 0.2 * draw(7, 6)),
    "maxout": (lambda: seq(nn.Linear(6, 8), Call(lambda x: torch.maximum(x[:, :4], x[:, 4:])), nn.PReLU()), draw(7, 6)),
    "recurrent": (lambda: seq(nn.LSTM(3, 4, batch_first=True), Call(lambda out: out[0][:, -1])), draw(7, 4, 3)),
    "own_view": (
        lambda: seq(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), Call(lambda z: z * z[:, :1]), nn.ReLU()),
        draw(7, 6),
    ),
    "second_first": (lambda: seq(Call(lambda x: x.transpose(0, 1)), nn.Linear(3, 4), nn.ReLU()), draw(7, 5, 3)),
    "weight_norm": (
        lambda: seq(nn.utils.parametrizations.weight_norm(nn.Linear(6, 9)), nn.Softplus(), nn.Linear(9, 3), nn.ReLU()),
        draw(7, 6),
    ),
}


def counted(net, inputs, method="vertices", repeat=True, chunk_size=None, directions=3, **arguments):
    """What was counted, and the counter."""
    task = CountingTask.by(method, net, inputs, records=repeat, **arguments)
    with task.ready(0.2, directions, chunk_size=chunk_size) as counter:
        return counter.count_set(0, [0.2, 0.9]), counter


def measured(*arguments, **named):
    """The counts, and the route."""
    found, counter = counted(*arguments, **named)
    return found.counts, counter.route


class Executed(TorchDispatchMode):
    """Counts the operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def executed(net, inputs, n):
    with Executed() as seen:
        measured(net, inputs[:n], chunk_size=6)
    return seen.names
