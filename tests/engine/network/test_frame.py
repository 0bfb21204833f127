import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lc_callback.functional import cross_polytope_frame, frame_deformation, local_complexity, local_complexity_map
from lc_callback.functional.radius import find_radius


@pytest.mark.parametrize("shape", [1, 7, (7,), (3, 4), (2, 3, 4), (1, 1, 5, 1)])
def test_directions_are_orthonormal_in_any_shape(shape):
    dim = int(np.prod(shape))
    frame = cross_polytope_frame(shape, dim, seed=3, dtype=torch.float64)
    assert frame.shape == (dim, *(shape if isinstance(shape, tuple) else (shape,)))
    flat = frame.flatten(1).numpy()
    np.testing.assert_allclose(flat @ flat.T, np.eye(dim), atol=1e-12)


@pytest.mark.parametrize(("few", "many"), [(1, 2), (3, 25), (24, 25), (25, 40)])
def test_frames_are_nested(few, many):
    small = cross_polytope_frame((5, 8), few, seed=1, dtype=torch.float64)
    large = cross_polytope_frame((5, 8), many, seed=1, dtype=torch.float64)
    torch.testing.assert_close(large[:few], small, atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_the_first_direction_is_the_first_draw(seed):
    # A QR factorisation is unique only up to signs, which a library may choose as it likes.
    drawn = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first = cross_polytope_frame(9, 1, seed=seed, dtype=torch.float64)[0]
    torch.testing.assert_close(first, drawn / drawn.norm())


def test_the_seed_decides():
    first, again = cross_polytope_frame((3, 5), 4, seed=7), cross_polytope_frame((3, 5), 4, seed=7)
    assert torch.equal(first, again)
    other = cross_polytope_frame((3, 5), 4, seed=8)
    assert not torch.allclose(first, other, atol=1e-2)


def test_shape_only_arranges_the_numbers():
    flat, folded = cross_polytope_frame(12, 5), cross_polytope_frame((3, 4), 5)
    assert torch.equal(flat, folded.flatten(1))


def test_type_only_rounds():
    double = cross_polytope_frame(10, 5, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert torch.equal(cross_polytope_frame(10, 5), double.float())
    assert torch.equal(cross_polytope_frame(10, 5, dtype=torch.bfloat16), double.bfloat16())


@pytest.mark.parametrize("dim", [10, 40_000])  # kept, and too large for it
def test_what_is_done_to_a_frame_stays_there(dim):
    frame = cross_polytope_frame(dim, 5, dtype=torch.float64)
    before = frame.clone()
    frame.zero_()
    assert torch.equal(cross_polytope_frame(dim, 5, dtype=torch.float64), before)


def test_random_streams_stay():
    torch.manual_seed(0)
    np.random.seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    cross_polytope_frame(20, 20, seed=4)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.slow
def test_same_in_another_process():
    program = (
        "import hashlib, torch; torch.manual_seed(99); from lc_callback.functional import cross_polytope_frame as f; "
        "print(hashlib.sha256(f((2, 30), 25, seed=11).numpy().tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    here = hashlib.sha256(cross_polytope_frame((2, 30), 25, seed=11).numpy().tobytes()).hexdigest()
    assert elsewhere.strip() == here


@pytest.mark.parametrize("n_directions", [0, -1, 13, 2.0, True, None])
def test_a_wrong_number_of_directions_is_named(n_directions):
    with pytest.raises(ValueError, match=r"`n_directions` must be an integer from 1 to 12.*\(3, 4\)"):
        cross_polytope_frame((3, 4), n_directions)


@pytest.mark.parametrize("shape", [0, (0,), (3, 0, 2)])
def test_an_empty_shape_is_named(shape):
    with pytest.raises(ValueError, match="`shape` must have at least one element"):
        cross_polytope_frame(shape, 1)


def test_the_default_is_the_papers_25_directions():
    assert cross_polytope_frame((1, 28, 28)).shape == (25, 1, 28, 28)


@pytest.mark.parametrize("method", ["vertices", "linear"])
def test_local_complexity_of_few_features_takes_all_directions(method):
    net, x = nn.Sequential(nn.Linear(13, 40), nn.ReLU(), nn.Linear(40, 2)), torch.randn(6, 13)
    found = local_complexity(net, x, radius=0.5, method=method)
    assert torch.equal(found.counts, local_complexity(net, x, radius=0.5, method=method, n_directions=13).counts)
    with pytest.raises(ValueError, match="`n_directions` must be an integer from 1 to 13"):
        local_complexity(net, x, radius=0.5, method=method, n_directions=25)


def test_the_others_that_draw_a_frame_take_all_directions_too():
    net, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 3)
    assert frame_deformation(net, x).diameter.shape == (3, 1)
    assert local_complexity_map(net, x, resolution=2).values.shape == (2, 2)
    assert find_radius(net, torch.randn(50, 3)).radius > 0
