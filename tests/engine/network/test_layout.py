"""Which memory tensors are in, and in which order their axes lie there."""

from collections import OrderedDict, namedtuple

import pytest
import torch

from lc_callback.engine.network.layout import (
    memories_of,
    memory_of,
    memory_order,
    permuted,
    reduced,
    restored,
    surely_finite,
)

Pair = namedtuple("Pair", ["first", "second"])
A, B = torch.zeros(2, 3), torch.zeros(4)
BOTH = {memory_of(A), memory_of(B)}


@pytest.mark.parametrize(
    "tree",
    [
        [A, (1, None, [B, "text"])],
        {"a": A, "b": {"c": (B.view(2, 2), 2.5)}},
        (Pair(A, B[1:]), torch.float32),
        OrderedDict(a=A, b=[B, A.T]),
        [[], {}, (A,), torch.nn.Parameter(B)],
    ],
    ids=["lists", "dicts", "namedtuple", "ordered", "parameter"],
)
def test_the_memories_of_all_tensors_are_found(tree):
    assert memories_of(tree) == BOTH


def test_what_holds_no_tensor_has_no_memory():
    assert memories_of([1, "text", object(), None, ()]) == set()


def test_a_sparse_tensor_is_where_its_values_are():
    matrix = torch.eye(3).to_sparse_csr()
    assert memories_of(matrix) == {memory_of(matrix.values())}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_axes_are_put_in_the_order_of_the_memory_and_back(layout):
    z = torch.randn(5, 3, 4, 6).contiguous(memory_format=layout)
    order = memory_order(z, 1)
    assert permuted(z, order).is_contiguous()
    assert torch.equal(restored(permuted(z, order), order), z)
    assert torch.equal(reduced(z, lambda z: z.amax(0)), z.amax(0))


def test_a_sum_shows_that_all_is_finite():
    assert surely_finite(torch.ones(3))
    assert not surely_finite(torch.tensor([1.0, torch.nan]))
    assert not surely_finite(torch.tensor([1.0, -torch.inf]))
