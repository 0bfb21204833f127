"""Models that round on the way, by quantisation or a cast, and models with sparse tensors."""

import warnings

import pytest
import torch
from networks import Call
from torch import nn
from torch.ao import quantization

from lc_callback.functional import centroid_alignment, feature_ranks, local_complexity, robust_accuracy, slice_partition

RADII = [1e-4, 1e-3, 1e-2]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense():
    return nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3))


def trained_for(qconfig):
    net = quantization.QuantWrapper(dense())
    net.qconfig = qconfig
    net = quantization.prepare_qat(net.train())
    for seed in range(5):
        net(draw(12, 8, seed=seed))
    net.apply(quantization.disable_observer)
    return net.eval()


QUANTISED = {
    "fused_observer": lambda: trained_for(quantization.get_default_qat_qconfig("fbgemm")),
    "fake_quantize": lambda: trained_for(quantization.get_default_qat_qconfig("fbgemm", version=0)),
    "dynamic": lambda: quantization.quantize_dynamic(dense(), {nn.Linear}),
    "dynamic_and_relu": lambda: quantization.quantize_dynamic(nn.Sequential(dense(), nn.ReLU()), {nn.Linear}),
    "bfloat16": lambda: nn.Sequential(nn.Linear(8, 30), Call(lambda z: z.bfloat16().float()), dense_behind()),
    "half": lambda: nn.Sequential(nn.Linear(8, 30), Call(lambda z: z.half().float() + 0), dense_behind()),
}


def dense_behind():
    return nn.Sequential(nn.ReLU(), nn.Linear(30, 30), nn.ReLU())


@pytest.mark.filterwarnings("ignore:.*(deprecat|torch.ao|observer|reduce_range|TypedStorage)")
@pytest.mark.parametrize("name", QUANTISED)
def test_what_is_quantised_is_counted_by_vertices(name):
    torch.manual_seed(0)
    net, x = QUANTISED[name](), draw(12, 8)
    with pytest.warns(UserWarning, match="the model jumps"):
        linear = local_complexity(net, x, radius=0.2, n_directions=8, method="linear")
    vertices = local_complexity(net, x, radius=0.2, n_directions=8)
    assert torch.equal(linear.counts, vertices.counts)
    assert vertices.counts.sum() > 5


class RMSNorm(nn.Module):
    def forward(self, x):
        h = x.float()
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


CASTS = {
    "rms_norm": RMSNorm(),
    "layer_norm": Call(lambda x: nn.functional.layer_norm(x.float(), (64,)).to(x.dtype)),
    "softmax": Call(lambda x: x + torch.softmax(x.to(torch.float32), -1).type_as(x)),
    "norm": Call(lambda x: x / x.to(dtype=torch.float32).norm(dim=-1, keepdim=True).to(x.dtype)),
    "product": Call(lambda x: (x.float() @ torch.eye(64)).double()),
}


@pytest.mark.parametrize("name", CASTS)
def test_layers_in_float32_inside_a_model_of_float64(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), CASTS[name], nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 2)).double()
    x = draw(64, 16).double()
    linear = local_complexity(net, x, radius=RADII, n_directions=16, method="linear")
    vertices = local_complexity(net, x, radius=RADII, n_directions=16)
    assert linear.dtype is torch.float64
    assert vertices.counts[2].sum() > 20
    assert linear.counts.sum() == pytest.approx(int(vertices.counts.sum()), rel=0.02)


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_radius_that_drowns_in_a_cast_is_told(method, dtype):
    net = nn.Sequential(nn.Linear(16, 64), RMSNorm(), nn.Linear(64, 9), nn.SiLU()).to(dtype)
    with pytest.warns(UserWarning, match="rounds to torch.float32 on the way"):
        local_complexity(net, draw(4, 16).to(dtype), radius=1e-7, n_directions=4, method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        local_complexity(net, draw(4, 16).to(dtype), radius=1e-2, n_directions=4, method=method)


class Graph(nn.Module):
    """Each feature is mixed with its neighbours by a fixed matrix, sparse or dense."""

    def __init__(self, matrix, module=None):
        super().__init__()
        self.register_buffer("matrix", matrix)
        torch.manual_seed(1)
        self.net = dense() if module is None else module

    def forward(self, x):
        return self.net((self.matrix @ x.T).T)


class Between(Graph):
    def forward(self, x):
        return torch.relu(torch.mm(self.matrix, torch.relu(self.net[0](x).T[:8])).T)


class OnTheWay(Graph):
    """What the model makes of its matrix is sparse as well."""

    def __init__(self, matrix, use=None):
        super().__init__(matrix)
        self.use = use

    def forward(self, x):
        return self.net(self.use(self.matrix, x.T).T)


LAYOUTS = {
    "coo": lambda a: a.to_sparse(),
    "uncoalesced": lambda a: torch.sparse_coo_tensor(
        torch.cat([a.to_sparse().indices()] * 2, 1), torch.cat([a.to_sparse().values() / 2] * 2), a.shape
    ),
    "csr": lambda a: a.to_sparse_csr(),
    "csc": lambda a: a.to_sparse_csc(),
}
CALLS = {
    "vertices": lambda net, x, y: local_complexity(net, x, radius=0.2, n_directions=4).total.tolist(),
    "linear": lambda net, x, y: local_complexity(net, x, radius=0.2, n_directions=4, method="linear").total.tolist(),
    "ranks": lambda net, x, y: [found.rank for found in feature_ranks(net, x).values()],
    "robust": lambda net, x, y: robust_accuracy(net, x, y, eps=0.05).robust_acc,
    "alignment": lambda net, x, y: round(centroid_alignment(net, x).cosine.mean().item(), 4),
    "slice": lambda net, x, y: slice_partition(net, x[:3]).n_regions,
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [Graph, Between])
def test_a_sparse_matrix_is_a_matrix(kind, layout, call):
    matrix = (draw(8, 8, seed=3) > 0.5).float() + torch.eye(8)
    x, y = draw(12, 8), torch.arange(12) % 3
    expected = CALLS[call](kind(matrix), x, y)
    assert CALLS[call](kind(LAYOUTS[layout](matrix)), x, y) == expected


def over(matrix):
    """Written to in place, as one that is normalised once more in each forward."""
    return matrix.detach().clone().mul_(2)


ON_THE_WAY = {
    "product": lambda a, x: torch.sparse.mm(a, x),
    "scaled": lambda a, x: (a * 2) @ x,
    "in_place": lambda a, x: over(a) @ x,
    "in_place_of_a_view": lambda a, x: a.detach().mul_(1.0) @ x,
    "absolute": lambda a, x: a.abs() @ x,
    "dense_after_all": lambda a, x: a.to_dense() @ x,
    "sum": lambda a, x: (a + a) @ x,
    "beside": lambda a, x: x + 0 * (a @ x),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
@pytest.mark.parametrize("call", ["vertices", "linear", "ranks", "slice"])
@pytest.mark.parametrize("layout", ["coo", "uncoalesced", "csr"])
@pytest.mark.parametrize("use", ON_THE_WAY)
def test_a_sparse_result_is_a_result(use, layout, call):
    matrix = (draw(8, 8, seed=3) > 0.5).float() + torch.eye(8)
    x, y = draw(12, 8), torch.arange(12) % 3
    expected = CALLS[call](OnTheWay(matrix, ON_THE_WAY[use]), x, y)
    assert CALLS[call](OnTheWay(LAYOUTS[layout](matrix), ON_THE_WAY[use]), x, y) == expected
