"""Clicks land where the image that they point at lands, and the way back ends on the case's own grid."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import INTENSITIES, stored_otherwise
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError
from petclick.grid import Grid, apply_affine
from petclick.images import Case
from petclick.model import Plan
from petclick.preprocess import map_clicks, prepare, restore

SIGNED_PERMUTATIONS = [
    np.eye(3)[list(axes)] * signs for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)
]
Voxel = tuple[int, int, int]


def make_plan(
    transpose: Sequence[int] = (0, 1, 2),
    spacing_mm: Sequence[float] = (3.0, 2.0, 2.5),
    order: int = 3,
    separate_z: bool | None = None,
) -> Plan:
    return Plan(
        transpose_forward=tuple(transpose),
        spacing_mm=tuple(spacing_mm),
        patch_size=(16, 24, 20),
        normalization=("NoNormalization", "NoNormalization"),
        use_mask_for_norm=(False, False),
        intensities=(INTENSITIES["0"], INTENSITIES["1"]),
        resampling="resample_data_or_seg_to_shape",
        resampling_kwargs={"is_seg": False, "order": order, "order_z": 0, "force_separate_z": separate_z},
        network_class="",
        network_kwargs={},
        network_imports=(),
    )


def as_case(ct_hu: npt.NDArray[np.float64], pet_suv: npt.NDArray[np.float64], grid: Grid) -> Case:
    return Case(ct_hu.astype(np.float32), pet_suv.astype(np.float32), grid, "patient")


@st.composite
def stored_grids(draw: st.DrawFn) -> Grid:
    size = draw(st.lists(st.integers(12, 17), min_size=3, max_size=3))
    spacing = draw(st.lists(st.floats(1, 4), min_size=3, max_size=3))
    direction = draw(st.sampled_from(SIGNED_PERMUTATIONS))
    return Grid(tuple(size), tuple(spacing), (-40.0, 12.5, 77.0), tuple(direction.ravel()))


@settings(deadline=None, max_examples=60)
@given(
    grid=stored_grids(),
    margins=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=3),
    transpose=st.permutations(range(3)),
    spacing_mm=st.lists(st.floats(1.2, 3.5), min_size=3, max_size=3),
    orientation=st.sampled_from([None, "LPS", "RAS", "SRP"]),
    data=st.data(),
)
def test_clicks_land_on_the_voxel_that_shows_their_place(
    grid: Grid,
    margins: list[tuple[int, int]],
    transpose: list[int],
    spacing_mm: list[float],
    orientation: str | None,
    data: st.DataObject,
) -> None:
    """Images whose values are their own indices tell, after preprocessing, what each voxel shows.

    Linear resampling keeps such ramps as they are; zeros around them are cropped away.
    """
    shape = grid.shape_zyx
    box = tuple(slice(low, n - high) for n, (low, high) in zip(shape, margins, strict=True))
    ramps = np.zeros((3, *shape))
    ramps[(slice(None), *box)] = 1 + np.indices(shape)[(slice(None), *box)]
    voxel = st.tuples(*(st.integers(cut.start, cut.stop - 1) for cut in box))
    points = data.draw(st.lists(voxel, min_size=1, max_size=8))

    plan = make_plan(transpose, spacing_mm, order=1, separate_z=False)
    first = prepare(as_case(ramps[0], ramps[1], grid), plan, orientation)
    second = prepare(as_case(ramps[2], ramps[2], grid), plan, orientation)
    shown = [*first.image, second.image[0]]
    mapped = map_clicks(click_set(points, []), first).index_zyx
    np.testing.assert_array_equal(mapped, map_clicks(click_set([], points), second).index_zyx)
    for axis, ramp in enumerate(shown):
        step = max(np.abs(np.diff(ramp, axis=each)).max() for each in range(3))
        off_by = np.abs(ramp[tuple(mapped.T)] - 1 - np.array(points)[:, axis])
        assert off_by.max() <= 0.5 * step + 1e-3


@settings(deadline=None, max_examples=40)
@given(
    grid=stored_grids(),
    transpose=st.permutations(range(3)),
    orientation=st.sampled_from([None, "LPS", "RIA"]),
    data=st.data(),
)
def test_one_bright_voxel_is_where_its_click_is(
    grid: Grid, transpose: list[int], orientation: str | None, data: st.DataObject
) -> None:
    """Without resampling, exactly; every voxel up to the volume's corners."""
    voxel = data.draw(st.tuples(*(st.integers(0, n - 1) for n in grid.shape_zyx)))
    pet = np.zeros(grid.shape_zyx)
    pet[voxel] = 1
    case = as_case(np.full(grid.shape_zyx, -1000.0), pet, grid)
    unchanged = prepare(case, make_plan(transpose), orientation).spacing_mm
    prepared = prepare(case, make_plan(transpose, unchanged), orientation)
    clicks = map_clicks(click_set([voxel], []), prepared)
    np.testing.assert_array_equal(np.argwhere(prepared.image[1]), clicks.index_zyx)
    assert prepared.image[1].max() == 1


@pytest.mark.parametrize(
    ("spacing_mm", "n_voxels"),
    [
        ((2.0, 2.4, 2.2), "alike"),
        ((1.1, 0.9, 1.0), "more"),
        ((5.0, 4.3, 4.9), "fewer"),
        ((7, 1.5, 2), "apart"),
    ],
)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 2, 0)])
def test_one_blob_is_where_its_click_is(
    transpose: Sequence[int], spacing_mm: tuple[float, float, float], n_voxels: str
) -> None:
    """With the resampling that models use: cubic, but nearest along an axis that is 3 times coarser."""
    grid = Grid((34, 30, 26), (2.1, 2.5, 1.9), (5.0, -8.0, 3.0), (0, 1, 0, -1, 0, 0, 0, 0, -1))
    z, y, x = np.indices(grid.shape_zyx)
    plan = make_plan(transpose, spacing_mm)
    width = 1.0 if n_voxels in ("alike", "more") else 2.5
    rng = np.random.default_rng(0)
    for place in rng.integers(9, [17, 21, 25], (4, 3)):
        distance2 = (z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2
        blob = np.exp(-distance2 / (2 * width**2))
        prepared = prepare(as_case(np.full(grid.shape_zyx, -1000.0), blob, grid), plan, "LPS")
        weight = np.clip(prepared.image[1], 0.01, None) - 0.01
        indices = np.indices(weight.shape)
        centroid = (indices * weight).sum(axis=(1, 2, 3)) / weight.sum()
        clicks = map_clicks(click_set([place], []), prepared)
        assert np.abs(clicks.index_zyx[0] - centroid).max() <= 0.5 + 0.1
        np.testing.assert_allclose(apply_affine(prepared.to_network, place)[0], centroid, atol=0.1)


def test_every_way_of_storing_a_patient_gives_the_same_network_image(
    make_case: Callable[..., Case], clicks: ClickSet
) -> None:
    case = make_case(margin=((1, 2), (0, 3), (2, 0)))
    clicks = click_set(clicks.index_zyx, [[5, 8, 22], [7, 20, 9]])
    plan = make_plan((2, 0, 1), (2.9, 2.2, 2.7))
    expected = prepare(case, plan, "LPS")
    expected_clicks = map_clicks(clicks, expected)
    for axes in permutations(range(3)):
        for flipped in ((), (0,), (1, 2), (0, 1, 2)):
            other, to_other = stored_otherwise(case, axes, flipped)
            prepared = prepare(other, plan, "LPS")
            np.testing.assert_array_equal(prepared.image, expected.image)
            moved = map_clicks(clicks.mapped(to_other, other.grid.shape_zyx), prepared)
            np.testing.assert_array_equal(moved.index_zyx, expected_clicks.index_zyx)


def test_without_an_orientation_a_case_is_taken_as_it_is_stored(make_case: Callable[..., Case]) -> None:
    case = make_case()
    plan = make_plan(spacing_mm=case.grid.spacing_zyx_mm)
    np.testing.assert_array_equal(prepare(case, plan, None).image, np.stack((case.ct_hu, case.pet_suv)))
    upright = prepare(case, plan, "LPS").image  # x and y run the other way in this case
    np.testing.assert_array_equal(upright[:, :, ::-1, ::-1], np.stack((case.ct_hu, case.pet_suv)))


def test_inputs_are_not_changed(make_case: Callable[..., Case]) -> None:
    case = make_case()
    before = case.ct_hu.copy(), case.pet_suv.copy()
    schemes = ("ZScoreNormalization", "CTNormalization")
    prepare(case, replace(make_plan(), normalization=schemes), None)
    np.testing.assert_array_equal(case.ct_hu, before[0])
    np.testing.assert_array_equal(case.pet_suv, before[1])


def test_clicks_in_the_margin_that_is_cropped_are_left_out(
    make_case: Callable[..., Case], caplog: pytest.LogCaptureFixture
) -> None:
    case = make_case(margin=((6, 0), (0, 8), (0, 0)))
    prepared = prepare(case, make_plan(), None)
    kept = map_clicks(click_set([[10, 5, 5], [0, 5, 5], [6, 22, 0]], [[10, 30, 5]]), prepared)
    np.testing.assert_array_equal(kept.kind, [0, 0])
    expected = map_clicks(click_set([[10, 5, 5], [6, 22, 0]], []), prepared)
    np.testing.assert_array_equal(kept.index_zyx, expected.index_zyx)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "2 clicks lie where CT and PET are 0" in caplog.text


def test_a_slice_thinner_than_half_a_network_voxel_does_not_vanish() -> None:
    grid = Grid((20, 30, 1), (2.0, 2.5, 0.5))
    case = as_case(np.full((1, 30, 20), -1000.0), np.ones((1, 30, 20)), grid)
    prepared = prepare(case, make_plan(spacing_mm=(3.0, 2.5, 2.0)), None)
    assert prepared.shape == (1, 30, 20)
    assert restore(torch.ones(1, 30, 20), prepared, make_plan()).shape == (1, 30, 20)


def test_empty_case_is_refused() -> None:
    empty = as_case(np.zeros((4, 5, 6)), np.zeros((4, 5, 6)), Grid((6, 5, 4), (1.0, 1.0, 1.0)))
    with pytest.raises(InputError, match="patient: the case must have a voxel that is not 0"):
        prepare(empty, make_plan(), None)


@pytest.mark.parametrize("name", ["np", "ImageNorm", "ABC", "os.system", 3])
def test_unknown_normalization_is_refused(make_case: Callable[..., Case], name: str) -> None:
    plan = replace(make_plan(), normalization=(name, "CTNormalization"))
    with pytest.raises(InputError, match=r"plans\.json: normalization_schemes must name .* of nnU-Net, got"):
        prepare(make_case(), plan, None)


@pytest.mark.parametrize("name", ["np", "resample_nothing", "compute_new_shape", "None"])
def test_unknown_resampling_is_refused(make_case: Callable[..., Case], name: str) -> None:
    plan = replace(make_plan(), resampling=name)
    with pytest.raises(InputError, match=r"plans\.json: resampling_fn_data must name .*, got"):
        prepare(make_case(), plan, None)


def test_nnunets_torch_resampling_can_be_chosen(make_case: Callable[..., Case]) -> None:
    by_torch = replace(
        make_plan(), resampling="resample_torch_fornnunet", resampling_kwargs={"force_separate_z": False}
    )
    linear = make_plan(order=1, separate_z=False)
    case = make_case()
    expected = prepare(case, linear, "LPS").image
    np.testing.assert_allclose(prepare(case, by_torch, "LPS").image, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_restore_puts_the_crop_back_in_its_place(
    make_case: Callable[..., Case], transpose: tuple[int, int, int]
) -> None:
    margin = ((4, 1), (0, 3), (2, 5))
    case = make_case(margin=margin)
    spacing_mm = [case.grid.spacing_zyx_mm[axis] for axis in transpose]
    plan = make_plan(transpose, spacing_mm)
    for orientation in (None, "SAR"):
        plan = make_plan(transpose, prepare(case, plan, orientation).spacing_mm)
        prepared = prepare(case, plan, orientation)
        lesions = prepared.image[1] - prepared.image[1].mean()
        inside = case.pet_suv - prepared.image[1].mean() > 0
        margin = restore(torch.from_numpy(lesions), prepared, plan)
        assert margin.dtype == np.float32
        mask = margin > 0
        np.testing.assert_array_equal(mask, inside & (case.pet_suv > 0))


def test_a_margin_of_zero_is_background(make_case: Callable[..., Case]) -> None:
    prepared = prepare(make_case(), make_plan(), None)
    assert not (restore(torch.zeros(prepared.shape), prepared, make_plan()) > 0).any()


def test_an_oblique_case_keeps_its_outline() -> None:
    """A plane of margin 0 across an oblique volume comes back within half a voxel."""
    direction = Rotation.from_euler("zx", (14, 9), degrees=True).as_matrix()
    grid = Grid((33, 28, 24), (2.0, 2.2, 2.6), (-30.0, -25.0, 10.0), tuple(direction.ravel()))
    ones = np.ones(grid.shape_zyx)
    plan = make_plan(spacing_mm=(2.5, 2.0, 2.1))
    prepared = prepare(as_case(-1000 * ones, ones, grid), plan, "LPS")
    middle_mm = apply_affine(grid.index_zyx_to_mm, [(11.5, 13.5, 16)])[0]
    normal = np.array([0.6, 0.64, 0.48])

    network = np.argwhere(np.ones(prepared.shape))
    stored = np.argwhere(ones)
    network_mm = apply_affine(grid.index_zyx_to_mm, apply_affine(np.linalg.inv(prepared.to_network), network))
    margin = ((network_mm - middle_mm) @ normal).reshape(prepared.shape).astype(np.float32)
    height_mm = ((apply_affine(grid.index_zyx_to_mm, stored) - middle_mm) @ normal).reshape(grid.shape_zyx)

    mask = restore(torch.from_numpy(margin), prepared, plan) > 0
    wrong = mask != (height_mm > 0)
    assert np.abs(height_mm[wrong]).max(initial=0) < 0.1
