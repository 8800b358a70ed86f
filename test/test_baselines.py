import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from petclick.baselines import fixed_threshold, region_growing
from petclick.clicks import click_set
from petclick.errors import InputError

SHAPE = (9, 14, 20)
SPACING_ZYX_MM = (5.0, 4.0, 3.0)
FACES_AND_EDGES = np.abs(np.indices((3, 3, 3)) - 1).sum(axis=0) <= 2

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]
Suv = npt.NDArray[np.float32]


def pet(hot: dict[Triple, float]) -> Suv:
    """SUV 1 everywhere but at the given voxels."""
    suv = np.ones(SHAPE, np.float32)
    for index, value in hot.items():
        suv[index] = value
    return suv


def voxels(mask: npt.NDArray[np.uint8]) -> list[tuple[int, ...]]:
    return [tuple(index) for index in np.argwhere(mask).tolist()]


def loop_growing(
    suv: Suv, tumor: list[list[int]], spacing: Spacing, fraction: float
) -> npt.NDArray[np.bool_]:
    """The same by one full-volume pass per click."""
    mask = np.zeros(suv.shape, bool)
    grid = np.indices(suv.shape)
    for click in tumor:
        distance_mm = np.sqrt(sum(((grid[a] - click[a]) * spacing[a]) ** 2 for a in range(3)))
        peak = suv[distance_mm <= 20].max()
        labels, _ = ndimage.label(suv >= np.float32(fraction * float(peak)), FACES_AND_EDGES)
        label = labels[tuple(click)]
        if peak > 0 and label:
            mask |= labels == label
    return mask


@st.composite
def clicked_cases(draw: st.DrawFn) -> tuple[Suv, list[list[int]], list[list[int]], Spacing, float]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    suv = ndimage.gaussian_filter(rng.random(SHAPE), draw(st.sampled_from([0.0, 1.0]))).astype(np.float32)
    suv = (suv - draw(st.sampled_from([0.0, suv.mean()]))) * 10

    def points(most: int) -> list[list[int]]:
        return [rng.integers(SHAPE).tolist() for _ in range(draw(st.integers(0, most)))]

    spacing = draw(st.permutations([2.0, 3.3, 7.0]))
    return suv, points(6), points(3), tuple(spacing), draw(st.sampled_from([0.41, 0.5, 1.0]))


@given(clicked_cases())
@settings(max_examples=150, deadline=None)
def test_growing_equals_a_pass_per_click(
    case: tuple[Suv, list[list[int]], list[list[int]], Spacing, float],
) -> None:
    suv, tumor, background, spacing, fraction = case
    mask = region_growing(suv, click_set(tumor, background), spacing, fraction)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, loop_growing(suv, tumor, spacing, fraction))


def test_grows_down_to_the_share_of_the_local_maximum() -> None:
    suv = pet({(4, 7, 5): 10.0, (4, 7, 6): 5.0, (4, 7, 7): 4.2, (4, 7, 8): 4.0, (4, 7, 9): 9.0})
    click = click_set([(4, 7, 5)], [])
    assert voxels(region_growing(suv, click, SPACING_ZYX_MM, 0.5)) == [(4, 7, 5), (4, 7, 6)]
    assert voxels(region_growing(suv, click, SPACING_ZYX_MM, 0.41)) == [(4, 7, 5), (4, 7, 6), (4, 7, 7)]


@pytest.mark.parametrize(
    ("hotter", "counts"),
    [
        ((8, 2, 2), True),  # 4 voxels of 5 mm: 20 mm
        ((4, 7, 2), True),  # 5 voxels of 4 mm: 20 mm
        ((4, 8, 2), False),  # 24 mm
        ((4, 2, 8), True),  # 6 voxels of 3 mm: 18 mm
        ((4, 2, 9), False),  # 21 mm
        ((7, 6, 2), False),  # 15 and 16 mm: 21.9 mm
    ],
)
def test_local_maximum_is_taken_within_two_centimetres(hotter: Triple, counts: bool) -> None:
    suv = pet({(4, 2, 2): 10.0})
    suv[hotter] = 100.0
    mask = region_growing(suv, click_set([(4, 2, 2)], []), SPACING_ZYX_MM, 0.5)
    assert voxels(mask) == ([] if counts else [(4, 2, 2)])


def test_several_clicks_give_the_union() -> None:
    suv = pet({(1, 2, 3): 10.0, (1, 2, 4): 6.0, (7, 11, 17): 4.0})
    mask = region_growing(suv, click_set([(1, 2, 3), (1, 2, 4), (7, 11, 17)], []), SPACING_ZYX_MM, 0.5)
    assert voxels(mask) == [(1, 2, 3), (1, 2, 4), (7, 11, 17)]


def test_background_clicks_are_ignored() -> None:
    suv = pet({(1, 2, 3): 10.0, (1, 2, 4): 6.0, (7, 11, 17): 4.0})
    clicks = click_set([(1, 2, 3), (7, 11, 17)], [(1, 2, 4), (3, 3, 3)])
    assert voxels(region_growing(suv, clicks, SPACING_ZYX_MM, 0.5)) == [(1, 2, 3), (1, 2, 4), (7, 11, 17)]


def test_edges_connect_but_corners_do_not() -> None:
    suv = pet({(4, 7, 5): 10.0, (5, 8, 5): 9.0, (6, 9, 6): 8.0})
    mask = region_growing(suv, click_set([(4, 7, 5)], []), SPACING_ZYX_MM, 0.5)
    assert voxels(mask) == [(4, 7, 5), (5, 8, 5)]


@pytest.mark.parametrize("suv", [np.zeros(SHAPE, np.float32), np.full(SHAPE, -1, np.float32)])
def test_nothing_grows_where_there_is_no_uptake(suv: Suv) -> None:
    assert not region_growing(suv, click_set([(4, 7, 5)], []), SPACING_ZYX_MM, 0.41).any()


def test_no_clicks_give_an_empty_mask() -> None:
    assert not region_growing(pet({(1, 1, 1): 9.0}), click_set([], [(1, 1, 1)]), SPACING_ZYX_MM, 0.41).any()


@pytest.mark.parametrize("fraction", [0.0, -0.4, 41, float("nan")])
def test_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(InputError, match=r"^fraction: must be above 0, up to 1, got"):
        region_growing(pet({}), click_set([], []), SPACING_ZYX_MM, fraction)


def test_fixed_threshold_includes_its_value() -> None:
    suv = pet({(1, 1, 1): 2.5, (2, 2, 2): 2.4999, (3, 3, 3): 4.0, (5, 6, 7): 11.0})
    mask = fixed_threshold(suv, 2.5)
    assert mask.dtype == np.uint8
    assert voxels(mask) == [(1, 1, 1), (3, 3, 3), (5, 6, 7)]
    assert voxels(fixed_threshold(suv, 4)) == [(3, 3, 3), (5, 6, 7)]
