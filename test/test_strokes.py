"""The ways in which scribbles are drawn, and where those of training fall."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage, stats

from petclick.simulate import simulate_scribbles
from petclick.simulate.strokes import boundary_line, centre_line, draw_stroke, largest_piece, random_line

Mask = npt.NDArray[np.bool_]
SQUARE = np.ones((3, 3))


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: float) -> Mask:
    y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@settings(max_examples=60, deadline=None)
@given(
    noise=hnp.arrays(np.bool_, (12, 15), elements=st.booleans(), fill=st.nothing()),
    seed=st.integers(0, 2**32),
)
def test_every_line_is_connected_and_lies_in_its_region(noise: Mask, seed: int) -> None:
    labels, n = ndimage.label(noise, SQUARE)
    for region in (labels == label for label in range(1, n + 1)):
        rng = np.random.default_rng(seed)
        for line in (centre_line(region), boundary_line(region, rng), random_line(region, rng)):
            assert 1 <= len(line) == len(np.unique(line, axis=0))
            assert region[tuple(line.T)].all()
            assert line.dtype == np.int64
        boundary = boundary_line(region, np.random.default_rng(seed))
        if len(boundary) < np.count_nonzero(region):
            assert (np.abs(np.diff(boundary, axis=0)).max(axis=1) == 1).all()


def test_boundary_line_walks_a_fifth_of_the_rim() -> None:
    region = disc((31, 31), (15, 15), 12.3)
    rim = region & ~ndimage.binary_erosion(region)
    starts = set()
    for seed in range(30):
        line = boundary_line(region, np.random.default_rng(seed))
        assert rim[tuple(line.T)].all()
        assert len(line) <= int(0.2 * np.count_nonzero(rim)) + 1
        starts.add(tuple(line[0]))
    assert len(starts) > 20


def test_edge_of_the_slice_is_no_boundary() -> None:
    region = np.zeros((9, 20), bool)
    region[:, :8] = True
    for seed in range(10):
        line = boundary_line(region, np.random.default_rng(seed))
        assert set(line[:, 1]) == {7}


def test_random_line_is_straight_and_leaves_out_what_lies_outside() -> None:
    ring = disc((31, 31), (15, 15), 12.3) & ~disc((31, 31), (15, 15), 8.3)
    lengths = []
    for seed in range(50):
        line = random_line(ring, np.random.default_rng(seed)).astype(float)
        lengths.append(np.abs(line[-1] - line[0]).max() + 1 - len(line))
        if len(line) > 2:
            along = line - line[0]
            across = along @ np.array([along[-1][1], -along[-1][0]]) / np.linalg.norm(along[-1])
            assert np.abs(across).max() <= 1
    assert max(lengths) > 10  # through the hole


def test_scribbles_are_drawn_in_three_ways_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    from petclick.simulate import scribbles

    ways: Counter[str] = Counter()

    def noting(mask: Mask, line: object) -> npt.NDArray[np.int64]:
        ways[getattr(line, "func", line).__name__] += 1  # type: ignore[attr-defined]
        return np.argwhere(mask)[:1]

    monkeypatch.setattr(scribbles, "draw_stroke", noting)
    lesion = np.zeros((3, 4, 5), bool)
    lesion[1, 1, 1] = True
    for seed in range(600):
        simulate_scribbles(lesion, lesion.astype(np.float32), 1, 0, np.random.default_rng(seed))
    numbers = [ways[line.__name__] for line in (centre_line, random_line, boundary_line)]
    assert sum(numbers) == 600
    assert stats.chisquare(numbers).pvalue > 0.001


def test_first_stroke_falls_on_the_largest_slice_and_later_ones_on_others() -> None:
    z, y, x = np.ogrid[:15, :21, :21]
    lesion = ((z - 7) / 6) ** 2 + ((y - 10) / 8) ** 2 + ((x - 10) / 8) ** 2 <= 1
    pet = lesion.astype(np.float32)
    for seed in range(10):
        one = simulate_scribbles(lesion, pet, 1, 0, np.random.default_rng(seed)).index_zyx
        assert set(one[:, 0]) == {7}
        four = simulate_scribbles(lesion, pet, 4, 0, np.random.default_rng(seed)).index_zyx
        assert 7 in four[:, 0]
        assert len(np.unique(four[:, 0])) == 4


def test_largest_piece_is_taken_from_a_slice_with_less_in_all() -> None:
    mask = np.zeros((3, 9, 20), bool)
    mask[0, ::2, ::2] = True  # 50 voxels, none of which touch
    mask[2, 2:6, 3:8] = True  # 20
    z, region = largest_piece(mask)
    assert z == 2
    np.testing.assert_array_equal(region, mask[2])


def test_nothing_is_drawn_on_nothing() -> None:
    assert draw_stroke(np.zeros((2, 3, 4), bool), centre_line).shape == (0, 3)
