"""Post-processing on small volumes whose right answer can be told by hand, and what holds for any clicks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from petclick.clicks import ClickSet, click_set
from petclick.grid import Grid
from petclick.postprocess import (
    NEAR_MM,
    SPLIT_MM,
    PostprocessSpec,
    drop_background_components,
    drop_cold,
    drop_small,
    fit_threshold,
    grow_at_clicks,
    postprocess,
    split_at_clicks,
)

SHAPE = (9, 14, 20)
GRID = Grid((20, 14, 9), (2.0, 2.5, 4.0), (5.0, -3.0, 11.0), (-1, 0, 0, 0, 1, 0, 0, 0, 1))
EVERYTHING = PostprocessSpec(0.3, 1.0, True, True, True, 20.0, 0.1, 0.2)


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


def test_threshold_follows_the_clicks_and_the_prior() -> None:
    margin = volume(((0, 0, 0), (9, 14, 10), -1.0), ((0, 0, 10), (9, 14, 20), 2.5))
    assert fit_threshold(margin, click_set([], []), 0.3) == pytest.approx(0, abs=1e-3)
    lowered = click_set([(1, 1, 1), (2, 2, 2), (3, 3, 3)], [])
    raised = click_set([], [(1, 1, 15), (2, 2, 16)])
    # The stationary point of the stated loss: prior * 2 * t = sum of the losses' slopes.
    for clicks, sign in ((lowered, -1), (raised, 1)):
        t = float(fit_threshold(margin, clicks, 0.3))
        assert np.sign(t) == sign
        tumor, background = (
            margin[tuple(clicks.of_kind("tumor").T)],
            margin[tuple(clicks.of_kind("background").T)],
        )
        slope = (1 / (1 + np.exp(tumor - t))).sum() - (1 / (1 + np.exp(t - background))).sum()
        assert slope + 2 * 0.3 * t == pytest.approx(0, abs=1e-3)
    assert abs(fit_threshold(margin, raised, 30.0)) < 0.05
    # Both kinds where the network agrees: nothing to correct.
    assert abs(fit_threshold(volume(outside=-9), click_set([], [(1, 1, 1)]), 0.3)) < 1e-2


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
@given(clicked_margins())
def test_every_click_is_obeyed(case: tuple[np.ndarray, np.ndarray, ClickSet]) -> None:
    margin, pet, clicks = case
    before = margin.copy(), pet.copy()
    spec = PostprocessSpec(threshold_prior=0.3, drop_background=True, split=True, grow=True)
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
