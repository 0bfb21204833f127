import numpy as np
import pytest

from lc_callback.engine.slices.subdivision import Subdivision, Table

SQUARE = (-1.0, 1.0, -1.0, 1.0)
CORNERS = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])


def affine(lines, uv):
    """Values (K, M) of the functions a u + b v + c."""
    lines = np.atleast_2d(lines)
    return uv @ lines[:, :2].T + lines[:, 2]


def cut_by(lines, extent=SQUARE):
    cells = Subdivision(extent)
    table = Table(affine(lines, cells.vertices))
    for i in range(len(lines)):
        cells.cut(table.values[:, i].copy(), table, i, (7, i))
    return cells, table


def envelope_of(lines, cells=None):
    cells = cells or Subdivision(SQUARE)
    cells.cut_maximum(Table(affine(lines, cells.vertices)), range(len(lines)), 3, 5)
    return cells


def polygons(cells):
    offsets, loop = cells.loops()
    return np.split(cells.vertices[loop], offsets[1:-1])


def turns(polygon):
    """Twice the areas of the triangles of successive vertices."""
    forward = np.roll(polygon, -1, 0) - polygon
    after = np.roll(forward, -1, 0)
    return forward[:, 0] * after[:, 1] - forward[:, 1] * after[:, 0]


def area(polygon):
    x, y = (polygon - polygon[0]).T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


def crossings(lines):
    inside = 0
    for i in range(len(lines)):
        for j in range(i):
            u, v = np.linalg.solve(lines[[i, j], :2], -lines[[i, j], 2])
            inside += -1 < u < 1 and -1 < v < 1
    return inside


def random_lines(rng, n):
    return rng.normal(size=(n, 3)) * [1, 1, 0.5]


def test_an_uncut_rectangle_is_one_face():
    cells = Subdivision((0, 2, 1, 4))
    assert (cells.n_faces, cells.euler) == (1, 1)
    np.testing.assert_array_equal(polygons(cells), [[[0, 1], [2, 1], [2, 4], [0, 4]]])
    assert (cells.made_by == -1).all()


@pytest.mark.parametrize("seed", range(50))
def test_faces_are_one_and_lines_and_crossings(seed):
    rng = np.random.default_rng(seed)
    lines = random_lines(rng, rng.integers(1, 30))
    cells, _ = cut_by(lines)
    at_corners = affine(lines, CORNERS)
    meeting = ((at_corners.max(0) > 0) & (at_corners.min(0) < 0)).sum()
    assert cells.n_faces == 1 + meeting + crossings(lines)
    assert cells.euler == 1


@pytest.mark.parametrize("seed", range(20))
def test_faces_are_convex_and_fill_the_rectangle(seed):
    cells, _ = cut_by(random_lines(np.random.default_rng(seed), 12))
    faces = polygons(cells)
    assert len(faces) == cells.n_faces
    assert min(turns(face).min() for face in faces) > -1e-13
    assert sum(map(area, faces)) == pytest.approx(4, abs=1e-12)
    assert min(map(area, faces)) > 0


def test_neighbours_share_their_vertices():
    cells, _ = cut_by(random_lines(np.random.default_rng(0), 40))
    distance = np.abs(cells.vertices[:, None] - cells.vertices).max(-1)
    assert (distance + np.eye(len(distance)) > 1e-9).all()


def test_values_at_new_vertices_are_those_of_the_functions():
    lines = random_lines(np.random.default_rng(1), 25)
    cells, table = cut_by(lines)
    assert len(table.values) == len(cells.vertices) > 100
    last = affine(lines, cells.vertices)[:, -1]  # wanted until the end
    np.testing.assert_allclose(table.values[:, -1], last, atol=1e-13)


def test_edges_know_the_cut_that_made_them():
    lines = random_lines(np.random.default_rng(2), 15)
    cells, _ = cut_by(lines)
    layer, unit = cells.made_by
    values = np.abs(affine(lines, cells.vertices))
    start, end = cells.edges[:2]
    inner = layer == 7
    for corner in (start, end):
        assert values[corner[inner], unit[inner]].max() < 1e-13
    assert (np.abs(cells.vertices[start[~inner]]).max(1) == 1).all()  # the frame


def test_edges_have_their_faces_on_the_right_sides():
    cells, _ = cut_by(random_lines(np.random.default_rng(3), 15))
    middle = np.array([face.mean(0) for face in polygons(cells)])
    start, end, left, right = cells.edges
    along = cells.vertices[end] - cells.vertices[start]
    for face, sign in ((left, 1), (right, -1)):
        there = face >= 0
        to = middle[face[there]] - cells.vertices[start[there]]
        assert (sign * (along[there, 0] * to[:, 1] - along[there, 1] * to[:, 0]) > 0).all()


def test_a_copy_is_cut_on_its_own():
    cells, _ = cut_by([[1.0, 0, 0]])
    twin = cells.copy()
    line = affine([[0.0, 1, 0]], twin.vertices)
    twin.cut(line[:, 0], Table(line), 1, (0, 0))
    assert (cells.n_faces, twin.n_faces) == (2, 4)
    assert len(cells.vertices) == 6
    assert (cells.euler, twin.euler) == (1, 1)


TIES = {
    "concurrent in the middle": ([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, -2, 0], [3, 1, 0]], 10),
    "concurrent elsewhere": ([[1, 0, -0.3], [0, 1, -0.1], [1, 1, -0.4], [1, -3, 0]], 8),
    "concurrent on the frame": ([[1, 0, 0], [1, 1, 1], [1, -1, -1]], 4),
    "duplicate": ([[1, 0.3, 0.1]] * 3, 2),
    "multiple": ([[1, 0.3, 0.1], [7, 2.1, 0.7]], 2),
    "opposite": ([[1, 0.3, 0.1], [-1, -0.3, -0.1]], 2),
    "opposite, then crossed": ([[1, 0.3, 0.1], [-3, -0.9, -0.3], [0.2, 1, 0]], 4),
    "a rounding apart": ([[1, 0.3, 0.1], [1, 0.3, 0.1 + 1e-15]], 2),
    "1e-9 apart": ([[1, 0.3, 0.1], [1, 0.3, 0.1 + 1e-9]], 3),
    "1e-9 apart, crossed": ([[1, 0.3, 0.1], [1, 0.3, 0.1 + 1e-9], [0.2, 1, 0]], 6),
    "a triangle of 1e-9": ([[1, 0, 0], [0, 1, 0], [1, 1, 1e-9]], 7),
    "on the frame": ([[1, 0, -1], [0, 1, 1]], 1),
    "through one corner only": ([[1, 1, -2]], 1),
    "diagonal": ([[1, -1, 0], [1, 1, 0]], 4),
    "through a corner": ([[2, -1, -1]], 2),
    "outside": ([[1, 0, 5], [0, 1, -1.0001]], 1),
    "constant": ([[0, 0, 1], [0, 0, -1]], 1),
    "zero": ([[0, 0, 0], [1, 0, 0], [0, 0, 0]], 2),
}


@pytest.mark.parametrize("case", TIES)
@pytest.mark.parametrize("order", [1, -1])
def test_ties(case, order):
    lines, expected = TIES[case]
    cells, _ = cut_by(np.array(lines, float)[::order])
    assert cells.n_faces == expected
    assert cells.euler == 1
    assert sum(map(area, polygons(cells))) == pytest.approx(4)
    assert min(map(area, polygons(cells))) > 0


def test_a_function_that_is_zero_on_a_face_leaves_it_alone():
    cells, _ = cut_by([[1.0, 0, 0]])
    dead = np.maximum(cells.vertices[:, 0], 0)  # a ReLU: zero on the left
    shifted = dead - 0.5
    for values in (dead, -dead):
        cells.cut(values, Table(values[:, None]), 1, (0, 0))
        assert cells.n_faces == 2
    cells.cut(shifted, Table(shifted[:, None]), 1, (0, 0))
    assert cells.n_faces == 3


# The upper envelope


@pytest.mark.parametrize("seed", range(60))
def test_an_envelope_has_one_face_for_each_winner(seed):
    rng = np.random.default_rng(seed)
    lines = random_lines(rng, rng.integers(2, 10))
    cells = envelope_of(lines)
    faces = polygons(cells)
    inside = np.concatenate([rng.dirichlet(np.ones(len(face)), 20) @ face for face in faces])
    winners = affine(lines, inside).argmax(1).reshape(len(faces), 20)
    assert (winners == winners[:, :1]).all()
    assert len(set(winners[:, 0])) == len(faces)
    u, v = np.meshgrid(*[np.linspace(-1, 1, 101)] * 2)
    assert set(affine(lines, np.stack([u.ravel(), v.ravel()], 1)).argmax(1)) <= set(winners[:, 0])
    assert cells.euler == 1
    assert sum(map(area, faces)) == pytest.approx(4)


def test_an_envelope_marks_its_edges():
    cells, _ = cut_by([[0.0, 1, 0.2]])
    envelope_of(np.array([[0.0, 0, 0], [1, 0, 0], [-1, 0, -0.5]]), cells)
    assert cells.n_faces == 6
    assert sorted(set(zip(*cells.made_by.tolist(), strict=True))) == [(-1, -1), (3, 5), (7, 0)]


def test_a_fold_on_an_edge_that_was_covered_before():
    # The second function folds at u = 0, the third covers that, the fourth folds there again.
    lines = np.array([[0.0, 0, 0], [1, 0, 0], [0.5, 0, 0.25], [2, 0, 0.25]])
    cells = envelope_of(lines)
    assert cells.n_faces == 3
    ends = cells.vertices[cells.edges[:2, cells.made_by[0] == 3]]
    assert sorted(set(ends[..., 0].ravel().round(9))) == [-0.5, 0]


def test_equal_functions_make_no_fold_between_them():
    lines = np.array([[1.0, 0, 0], [1, 0, 0], [-1, 0, 0], [-1, 0, 0], [0, 0, -3]])
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [0, 2, 1, 3, 4]):
        assert envelope_of(lines[order]).n_faces == 2


def test_several_envelopes_in_one_table():
    rng = np.random.default_rng(4)
    lines = random_lines(rng, 12)
    cells = Subdivision(SQUARE)
    table = Table(affine(lines, cells.vertices))
    for unit in range(3):
        cells.cut_maximum(table, range(4 * unit, 4 * unit + 4), 3, unit)
    faces = polygons(cells)
    inside = np.concatenate([rng.dirichlet(np.ones(len(face)), 9) @ face for face in faces])
    winners = affine(lines, inside).reshape(-1, 3, 4).argmax(2).reshape(len(faces), 9, 3)
    assert (winners == winners[:, :1]).all()
    assert len({tuple(row) for row in winners[:, 0].tolist()}) == len(faces) > 8
    assert (cells.euler, set(cells.made_by[1].tolist())) == (1, {-1, 0, 1, 2})
