"""How many samples one forward pass takes, and what happens when memory does not suffice."""

import pytest
import torch

from lc_callback.engine.chunks import COUNTING, Budget, default_chunk, fitting


def computed(fits, errors=torch.cuda.OutOfMemoryError):
    """A computation that takes so many samples; and with how many it was tried."""
    tried = []

    def compute(chunk):
        tried.append(chunk)
        if chunk > fits:
            raise errors("out of memory")
        return f"with {chunk}"

    return compute, tried


def test_the_chunk_is_halved_until_it_fits():
    compute, tried = computed(3)
    assert fitting(compute, 20, lambda chunk: chunk) == ("with 2", 2)
    assert tried == [20, 10, 5, 2]


def test_halving_begins_at_what_is_in_use():
    compute, tried = computed(3)
    assert fitting(compute, 1000, lambda chunk: min(chunk, 12)) == ("with 3", 3)
    assert tried == [1000, 6, 3]


def test_one_sample_that_does_not_fit_is_an_error():
    compute, tried = computed(0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        fitting(compute, 3, lambda chunk: chunk)
    assert tried == [3, 1]


def test_other_errors_pass_through():
    def compute(chunk):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        fitting(compute, 8, lambda chunk: chunk)


@pytest.mark.parametrize(("device", "bytes_per_sample", "n"), [("cpu", 10, 10), ("cuda", 10, 40), ("mps", 10, 10)])
def test_a_budget_is_shared_out_among_the_samples(device, bytes_per_sample, n):
    budget = Budget(cpu=100, cuda=400)
    assert budget.samples(torch.device(device), bytes_per_sample) == n


def test_one_sample_is_the_least():
    assert Budget(cpu=100, cuda=100).samples(torch.device("cpu"), 10**9) == 1
    assert Budget(cpu=100, cuda=100).samples(torch.device("cpu"), 0) == 100
    assert default_chunk(torch.device("cpu"), 10**9) == 1
    assert default_chunk(torch.device("cpu"), COUNTING.cpu) == 12  # few samples may take more than the budget
