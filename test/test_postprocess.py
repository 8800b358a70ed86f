"""Post-processing on small volumes whose right answer can be told by hand, and what holds for any clicks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError
from petclick.follow import follow_clicks
from petclick.grid import Grid
from petclick.postprocess import (
    CLOSE_LEAST_ML,
    NEAR_MM,
    SPLIT_MM,
    PostprocessSpec,
    close_large,
    drop_background_components,
    drop_cold,
    drop_small,
    grow_at_clicks,
    postprocess,
    split_at_clicks,
)
from petclick.preprocess import BACKGROUND_MARGIN

SHAPE = (9, 14, 20)
GRID = Grid((20, 14, 9), (2.0, 2.5, 4.0), (5.0, -3.0, 11.0), (-1, 0, 0, 0, 1, 0, 0, 0, 1))
COARSE = Grid((20, 14, 9), (5.0, 6.0, 8.0), (5.0, -3.0, 11.0), (-1, 0, 0, 0, 1, 0, 0, 0, 1))
EVERYTHING = PostprocessSpec(0.3, 4.0, 10.0, 8.0, 1.0, True, True, True, 20.0, 0.1, 0.2)


def volume(
    *boxes: tuple[tuple[int, int, int], tuple[int, int, int], float], outside: float = -3.0
) -> np.ndarray:
    """A margin with boxes (lower, upper, value), later ones on top."""
    array = np.full(SHAPE, outside, np.float32)
    for lower, upper, value in boxes:
        array[tuple(map(slice, lower, upper))] = value
    return array


TWO = volume(((1, 2, 2), (4, 5, 6), 2.0), ((5, 8, 10), (8, 12, 17), 3.0))
PET = np.where(TWO > 0, 8.0, 1.0).astype(np.float32)


def test_nothing_is_changed_by_default() -> None:
    clicks = click_set([(0, 0, 0)], [(6, 9, 12)])
    mask = postprocess(TWO, PET, clicks, GRID, PostprocessSpec())
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, TWO > 0)


def test_common_shift_follows_the_clicks_and_its_variance() -> None:
    margin = volume(((0, 0, 0), (9, 14, 10), -1.0), ((0, 0, 10), (9, 14, 20), 2.5))
    lowered = click_set([(1, 1, 1), (2, 2, 2), (3, 3, 3)], [])
    raised = click_set([], [(1, 1, 15), (2, 2, 16)])

    def shift(clicks: ClickSet, prior: float, before: np.ndarray = margin) -> float:
        moved = follow_clicks(before, clicks, GRID, 1 / (2 * prior), 0.0, 20.0) - before
        assert np.ptp(moved) < 1e-5
        return float(moved[0, 0, 0])

    # The stationary point of the losses' sum plus prior * shift**2.
    for clicks, direction in ((lowered, 1), (raised, -1)):
        found = shift(clicks, 0.3)
        assert np.sign(found) == direction
        tumor, background = (margin[tuple(clicks.of_kind(kind).T)] for kind in ("tumor", "background"))
        pull = (1 / (1 + np.exp(tumor + found))).sum() - (1 / (1 + np.exp(-found - background))).sum()
        assert 2 * 0.3 * found == pytest.approx(pull, abs=1e-3)
    assert abs(shift(raised, 30.0)) < 0.05
    # Where the network agrees there is nothing to correct.
    assert abs(shift(click_set([], [(1, 1, 1)]), 0.3, volume(outside=-9))) < 1e-2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.0, 0.5]))
def test_local_shift_is_the_mode_of_its_posterior(
    seed: int, n_tumor: int, n_background: int, common: float
) -> None:
    """At the mode the shift is the covariance times the likelihood's gradient there, at every voxel."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 3, SHAPE).astype(np.float32)
    places = rng.permutation(np.argwhere(np.ones(SHAPE)))
    clicks = click_set(places[:n_tumor], places[n_tumor : n_tumor + n_background])
    shifted = follow_clicks(margin, clicks, GRID, common, 8.0, 3.0)
    sign = np.repeat([1.0, -1.0], [n_tumor, n_background])
    pull = sign / (1 + np.exp(sign * shifted[tuple(clicks.index_zyx.T)]))
    spacing = np.array(GRID.spacing_zyx_mm)
    every = np.argwhere(np.ones(SHAPE)) * spacing
    squared = ((every[:, None] - clicks.index_zyx * spacing) ** 2).sum(axis=2)
    expected = (common + 8.0 * np.exp(-squared / (2 * 3.0**2))) @ pull
    np.testing.assert_allclose((shifted - margin).ravel(), expected, atol=0.02)


def test_local_shift_stays_near_its_click() -> None:
    margin = volume(outside=-2.0)
    shifted = follow_clicks(margin, click_set([(4, 7, 10)], []), GRID, 0.0, 16.0, 4.0)
    assert shifted[4, 7, 10] > 0
    assert shifted[4, 7, 11] < shifted[4, 7, 10]
    assert shifted[0, 0, 0] == -2
    np.testing.assert_array_equal(follow_clicks(margin, click_set([], []), GRID, 1.0, 16.0, 4.0), margin)


def test_scribbles_of_neighbours_and_hard_margins_are_followed() -> None:
    """The covariance of neighbouring voxels is singular up to rounding, and -40 is far from 0."""
    stroke = [(4, 6, x) for x in range(2, 18)] + [(4, 7, x) for x in range(2, 18)]
    shifted = follow_clicks(volume(outside=-40.0), click_set(stroke, [(0, 0, 0)]), GRID, 0.5, 16.0, 20.0)
    assert np.isfinite(shifted).all()
    assert (shifted[4, 6, 2:18] > -5).all()
    assert shifted[0, 0, 0] < -5


def test_what_was_not_predicted_stays_background_whatever_is_clicked() -> None:
    """Ten lesions that the network missed surely, beside air that was left out."""
    margin = volume(outside=-8.0)
    margin[:, :, 12:] = BACKGROUND_MARGIN
    missed = [(z, y, 3) for z in (1, 4, 7) for y in (1, 5, 9, 12)]
    shifted = follow_clicks(margin, click_set(missed, []), GRID, 0.5, 16.0, 3.0)
    assert (shifted[:, :, 12:] < BACKGROUND_MARGIN / 2).all()
    assert shifted[4, 5, 3] > margin[4, 5, 3]
    outside = click_set([(4, 6, 15)], [])
    np.testing.assert_array_equal(follow_clicks(margin, outside, GRID, 0.5, 16.0, 3.0), margin)


def test_a_voxel_that_is_clicked_often_counts_once() -> None:
    margin = volume(outside=-2.0)
    once, often = click_set([(4, 7, 10)], []), click_set([(4, 7, 10)] * 50, [])
    expected = follow_clicks(margin, once, GRID, 0.5, 16.0, 20.0)
    np.testing.assert_array_equal(follow_clicks(margin, often, GRID, 0.5, 16.0, 20.0), expected)


def test_of_very_many_clicks_some_are_followed() -> None:
    margin = volume(outside=-2.0)
    every = click_set(np.argwhere(margin[:, :, :10] < 0), np.argwhere(margin < 0)[-1:])
    shifted = follow_clicks(margin, every, GRID, 0.5, 16.0, 20.0)
    assert (shifted[:, :, :8] > 0).all()


def hollow() -> np.ndarray:
    """A box of 5 ml and more around a core of 2 x 2 x 4 voxels, open to one side, and a small one."""
    mask = np.zeros(SHAPE, bool)
    mask[1:8, 2:12, 1:13] = True
    mask[4:6, 6:8, 5:13] = False
    mask[2:4, 4:6, 17:19] = True
    return mask


def test_large_components_are_closed_as_by_a_ball() -> None:
    mask = hollow()
    spacing = np.array(COARSE.spacing_zyx_mm)
    radius_mm = 14.0
    reach = np.ceil(radius_mm / spacing).astype(int)
    offsets = np.ogrid[tuple(slice(-n, n + 1) for n in reach)]
    ball = sum((o * mm) ** 2 for o, mm in zip(offsets, spacing, strict=True)) <= radius_mm**2
    large = mask.copy()
    large[:, :, 15:] = False
    assert large.sum() * COARSE.voxel_ml >= CLOSE_LEAST_ML
    padded = np.pad(large, 8)
    expected = ndimage.binary_closing(padded, ball)[8:-8, 8:-8, 8:-8] | mask
    closed = close_large(mask, click_set([], []), COARSE, radius_mm)
    np.testing.assert_array_equal(closed, expected)
    assert closed.sum() > mask.sum()
    assert not closed[:, :, 13:17].any()
    small = mask & ~large
    np.testing.assert_array_equal(close_large(small, click_set([], []), COARSE, radius_mm), small)


def test_a_gap_between_two_large_components_stays() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[1:8, 2:12, 1:9] = mask[1:8, 2:12, 11:19] = True
    hole = mask.copy()
    hole[4, 6, 4] = False
    closed = close_large(hole, click_set([], []), COARSE, 45.0)
    np.testing.assert_array_equal(closed, mask)


def test_on_a_finer_grid_cores_are_closed_too() -> None:
    mask = hollow()
    closed = close_large(mask, click_set([], []), GRID, 7.0)
    # The core is filled but for its mouth, where a voxel of the coarse grid ends.
    assert closed[:, :, :10].sum() == 7 * 10 * 9
    assert mask[:, :, :10].sum() < 7 * 10 * 9
    assert not closed[:, :, 13:17].any()
    assert not closed[0].any()
    np.testing.assert_array_equal(closed[:, :, 15:], mask[:, :, 15:])


def test_nothing_is_filled_around_a_background_click_alone() -> None:
    mask, hole = hollow(), (4, 6, 7)
    np.testing.assert_array_equal(close_large(mask, click_set([], [hole]), GRID, 7.0), mask)
    # With a tumour click in the component too, the two share it by `split_at_clicks`.
    both = click_set([(2, 3, 2)], [hole])
    assert close_large(mask, both, GRID, 7.0)[hole]


@pytest.mark.parametrize(
    ("name", "value"),
    [("suv_floor", -1.0), ("close_mm", float("nan")), ("local_mm", 0.0), ("min_total_ml", np.inf)],
)
def test_bad_numbers_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"postprocess: {name} must be "):
        PostprocessSpec(**{name: value})


def test_only_components_with_background_and_no_tumour_click_are_dropped() -> None:
    clicks = click_set([(6, 9, 12)], [(2, 3, 3), (7, 10, 14)])
    np.testing.assert_array_equal(drop_background_components(TWO > 0, clicks), TWO == 3)
    np.testing.assert_array_equal(drop_background_components(TWO > 0, click_set([], [(0, 0, 0)])), TWO > 0)


def test_split_gives_an_attached_organ_to_its_background_click() -> None:
    # A lesion and a hot organ, joined by a bridge of low margin.
    margin = volume(((2, 3, 2), (6, 9, 7), 4.0), ((2, 3, 12), (6, 9, 18), 5.0), ((3, 5, 7), (4, 6, 12), 0.5))
    clicks = click_set([(4, 6, 4)], [(4, 6, 15)])
    mask = split_at_clicks(margin > 0, margin, clicks, GRID)
    np.testing.assert_array_equal(mask[margin == 4], True)
    np.testing.assert_array_equal(mask[margin == 5], False)
    assert not mask[margin < 0].any()
    alone = click_set([(4, 6, 4)], [])
    np.testing.assert_array_equal(split_at_clicks(margin > 0, margin, alone, GRID), margin > 0)


def test_a_background_click_cannot_take_a_large_lesion() -> None:
    margin = volume(((0, 0, 0), (9, 14, 20), 2.0))
    margin[4, 7, 5:] = 6.0  # the flood from the background click runs along this ridge first
    mask = split_at_clicks(margin > 0, margin, click_set([(0, 0, 0)], [(4, 7, 19)]), GRID)
    taken = np.argwhere(~mask)
    away_mm = np.linalg.norm((taken - (4, 7, 19)) * GRID.spacing_zyx_mm, axis=1)
    assert not mask[4, 7, 19]
    assert 15 < away_mm.max() <= SPLIT_MM


def test_split_leaves_other_components_alone() -> None:
    clicks = click_set([(2, 2, 2)], [(3, 4, 5)])
    mask = split_at_clicks(TWO > 0, TWO, clicks, GRID)
    np.testing.assert_array_equal(mask[TWO == 3], True)
    assert mask[2, 2, 2]
    assert not mask[3, 4, 5]


def test_click_beside_the_mask_extends_it_by_voxels_at_least_as_likely() -> None:
    margin = volume(((2, 3, 2), (6, 9, 7), 4.0), ((2, 3, 7), (6, 9, 9), -0.5), ((2, 3, 9), (6, 9, 11), -1.5))
    mask = grow_at_clicks(margin > 0, margin, PET, click_set([(4, 6, 8)], []), GRID, 20.0)
    grown = mask & ~(margin > 0)
    assert grown[4, 6, 8]
    np.testing.assert_array_equal(margin[grown], -0.5)
    away_mm = np.abs(np.argwhere(grown) - (4, 6, 8)) * GRID.spacing_zyx_mm
    assert np.linalg.norm(away_mm, axis=1).max() <= 4.0  # the mask is two voxels of 2 mm away


def test_click_far_from_the_mask_grows_the_hot_lesion_around_it() -> None:
    pet = volume(((1, 2, 14), (3, 5, 18), 6.0), outside=1.0)
    margin = volume(((6, 8, 1), (8, 12, 4), 2.0))
    mask = grow_at_clicks(margin > 0, margin, pet, click_set([(2, 3, 15)], []), GRID, 20.0)
    np.testing.assert_array_equal(mask, (margin > 0) | (pet == 6))


def test_growth_that_would_leak_stays_near_the_click() -> None:
    margin = volume(((6, 8, 1), (8, 12, 4), 2.0))
    flat = np.ones(SHAPE, np.float32)  # 41 % of the maximum is everywhere
    mask = grow_at_clicks(margin > 0, margin, flat, click_set([(2, 3, 15)], []), GRID, 2.0)
    grown = mask & ~(margin > 0)
    assert grown[2, 3, 15]
    distance_mm = np.linalg.norm((np.argwhere(grown) - (2, 3, 15)) * GRID.spacing_zyx_mm, axis=1)
    assert distance_mm.max() <= NEAR_MM


def test_cold_voxels_leave_unless_their_component_is_clicked() -> None:
    pet = np.where(TWO > 0, 1.0, 9.0).astype(np.float32)
    np.testing.assert_array_equal(drop_cold(TWO > 0, pet, click_set([(2, 3, 3)], []), 2.0), TWO == 2)


def test_small_components_leave_unless_clicked() -> None:
    small = int((TWO == 2).sum())
    assert (drop_small(TWO > 0, click_set([], []), small + 1) == (TWO == 3)).all()
    assert (drop_small(TWO > 0, click_set([], []), small) == (TWO > 0)).all()
    assert (drop_small(TWO > 0, click_set([(2, 3, 3)], []), small + 1) == (TWO > 0)).all()


def test_little_is_emptied_only_without_tumour_clicks() -> None:
    total_ml = (TWO > 0).sum() * GRID.voxel_ml
    spec = PostprocessSpec(min_total_ml=total_ml * 1.01)
    assert not postprocess(TWO, PET, click_set([], [(0, 0, 0)]), GRID, spec).any()
    assert postprocess(TWO, PET, click_set([(2, 3, 3)], []), GRID, spec).any()
    assert postprocess(TWO, PET, click_set([], []), GRID, PostprocessSpec(min_total_ml=total_ml * 0.99)).any()


@st.composite
def clicked_margins(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, ClickSet]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    margin = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.5).astype(np.float32) * 20
    pet = np.exp(ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.0)).astype(np.float32)
    places = rng.permutation(np.argwhere(np.ones(SHAPE)))
    n_tumor, n_background = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    return margin, pet, click_set(places[:n_tumor], places[n_tumor : n_tumor + n_background])


@settings(max_examples=60, deadline=None)
@given(clicked_margins(), st.sampled_from([0.0, 8.0]), st.sampled_from([0.0, 6.0]))
def test_every_click_is_obeyed(
    case: tuple[np.ndarray, np.ndarray, ClickSet], local_variance: float, close_mm: float
) -> None:
    margin, pet, clicks = case
    before = margin.copy(), pet.copy()
    spec = PostprocessSpec(
        threshold_prior=0.3,
        local_variance=local_variance,
        local_mm=10.0,
        close_mm=close_mm,
        drop_background=True,
        split=True,
        grow=True,
    )
    mask = postprocess(margin, pet, clicks, GRID, spec)
    assert mask[tuple(clicks.of_kind("tumor").T)].all()
    assert not mask[tuple(clicks.of_kind("background").T)].any()
    np.testing.assert_array_equal(margin, before[0])
    np.testing.assert_array_equal(pet, before[1])


@settings(max_examples=20, deadline=None)
@given(clicked_margins())
def test_every_step_together_keeps_clicked_tumours(case: tuple[np.ndarray, np.ndarray, ClickSet]) -> None:
    margin, pet, clicks = case
    mask = postprocess(margin, pet, clicks, GRID, EVERYTHING)
    assert set(np.unique(mask)) <= {0, 1}
    assert mask[tuple(clicks.of_kind("tumor").T)].all()
