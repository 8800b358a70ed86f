"""The order of work under a limit: everything once, the volume covered early, clicks first."""

from collections.abc import Collection

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from petclick.schedule import Corner, by_value, covering, pass_order, stages
from petclick.tiles import tile_corners

PATCH = (6, 10, 8)
SHAPES = st.tuples(st.integers(6, 40), st.integers(10, 40), st.integers(8, 40))


def covered(shape: tuple[int, int, int], corners: Collection[Corner]) -> np.ndarray:
    count = np.zeros(shape, int)
    for corner in corners:
        count[tuple(slice(i, i + n) for i, n in zip(corner, PATCH, strict=True))] += 1
    return count


def test_mirrors_are_given_up_before_folds() -> None:
    order = pass_order(3, 2)
    assert order == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]


TILES = [(z, 0, x) for z in range(3) for x in (1, 5)]


@given(n_passes=st.integers(1, 12), tiles=st.permutations(TILES), first=st.sets(st.sampled_from(TILES)))
def test_every_tile_gets_every_pass_once_and_in_order(
    n_passes: int, tiles: list[Corner], first: set[Corner]
) -> None:
    done: dict[Corner, list[int]] = {tile: [] for tile in tiles}
    for number, where in stages(n_passes, tiles, first):
        assert where == sorted(where, key=tiles.index)
        for tile in where:
            done[tile].append(number)
        least, most = min(map(len, done.values())), max(map(len, done.values()))
        assert most - least <= 1, "no tile is ahead of another by more than a pass"
    assert all(numbers == list(range(n_passes)) for numbers in done.values())


@settings(deadline=None)
@given(shape=SHAPES, step=st.sampled_from([0.25, 0.5, 0.7, 1.0]))
def test_few_tiles_cover_the_volume(shape: tuple[int, int, int], step: float) -> None:
    corners = tile_corners(shape, PATCH, step)
    chosen = covering(corners, PATCH)
    assert chosen <= set(corners)
    assert covered(shape, chosen).min() >= 1
    # The tile after next never touches a chosen one, so that an axis of n patches takes at most 2n - 1.
    most = np.prod([2 * -(-n // size) - 1 for n, size in zip(shape, PATCH, strict=True)])
    assert len(chosen) <= min(most, len(corners))


@settings(deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_what_some_tile_has_is_covered_where_others_are_left_out(
    shape: tuple[int, int, int], seed: int
) -> None:
    """Tiles without a body are not run; the body is still covered by the chosen ones among the rest."""
    corners = tile_corners(shape, PATCH, 0.5)
    body = np.zeros(shape, bool)
    body[tuple(np.random.default_rng(seed).integers(0, shape, (5, 3)).T)] = True
    chosen = covering(corners, PATCH)
    run = [
        corner
        for corner in chosen
        if body[tuple(slice(i, i + n) for i, n in zip(corner, PATCH, strict=True))].any()
    ]
    assert covered(shape, run)[body].min() >= 1


def test_clicks_come_first_then_uptake() -> None:
    corners = [(0, 0, 0), (0, 0, 8), (0, 10, 0), (0, 10, 8), (3, 10, 8)]
    uptake = np.zeros((9, 20, 16), np.float32)
    uptake[1, 12, 2], uptake[2, 1, 9] = 5, 9
    clicks = np.array([[8, 19, 15], [5, 12, 9], [4, 12, 9]])
    assert by_value(corners, PATCH, uptake, clicks) == [corners[i] for i in (4, 3, 1, 2, 0)]
    none = np.zeros((0, 3), np.int64)
    assert by_value(corners, PATCH, uptake, none) == [corners[i] for i in (1, 2, 0, 3, 4)]


def test_no_tiles_no_work() -> None:
    assert covering([], PATCH) == set()
    assert not [tiles for _, tiles in stages(3, [], set()) if tiles]
