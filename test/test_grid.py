"""Geometry against SimpleITK, and point maps against what the same operation does to an image."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from skimage.transform import resize

from petclick.grid import (
    Grid,
    apply_affine,
    crop_affine,
    resample_affine,
    to_voxels,
    transpose_affine,
)

few = settings(max_examples=40, deadline=None)

FLIPPED = (-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
"""x runs to the right; y to inferior; z to posterior: a determinant of -1 and two axes exchanged."""


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    size = draw(st.lists(st.integers(1, 60), min_size=3, max_size=3, unique=True))
    spacing = draw(st.lists(st.floats(0.3, 8), min_size=3, max_size=3))
    origin = draw(st.lists(st.floats(-900, 900), min_size=3, max_size=3))
    # tenths of degrees, as subnormal cosines make ITK's own inverse fail
    angles = [tenths / 10 for tenths in draw(st.lists(st.integers(-1800, 1800), min_size=3, max_size=3))]
    signs = draw(st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3))
    direction = Rotation.from_euler("zyx", angles, degrees=True).as_matrix() * signs
    return Grid(tuple(size), tuple(spacing), tuple(origin), tuple(direction.ravel().tolist()))


def itk_image(grid: Grid) -> sitk.Image:
    image = sitk.Image(grid.size_xyz, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    return image


def faces_xyz(grid: Grid) -> list[tuple[float, float, float]]:
    x, y, z = ((-0.5, n - 0.5) for n in grid.size_xyz)
    return [(i, j, k) for i in x for j in y for k in z]


@few
@given(grids(), st.lists(st.tuples(*[st.floats(-80, 80)] * 3), min_size=1, max_size=6))
def test_indices_map_to_the_points_that_itk_gives(grid: Grid, points: list[tuple[float, ...]]) -> None:
    image = itk_image(grid)
    expected = [image.TransformContinuousIndexToPhysicalPoint(point) for point in points]
    np.testing.assert_allclose(apply_affine(grid.index_xyz_to_mm, points), expected, atol=1e-8)
    reversed_points = np.array(points)[:, ::-1]
    np.testing.assert_allclose(apply_affine(grid.index_zyx_to_mm, reversed_points), expected, atol=1e-8)


@few
@given(grids(), st.tuples(*[st.floats(-80, 80)] * 3))
def test_millimetres_map_back_to_the_index(grid: Grid, index_zyx: tuple[float, ...]) -> None:
    point_mm = apply_affine(grid.index_zyx_to_mm, index_zyx)[0]
    back_xyz = itk_image(grid).TransformPhysicalPointToContinuousIndex(point_mm)
    np.testing.assert_allclose(back_xyz[::-1], index_zyx, atol=1e-6)


@few
@given(grids())
def test_extent_is_the_box_around_the_faces(grid: Grid) -> None:
    image = itk_image(grid)
    corners = np.array([image.TransformContinuousIndexToPhysicalPoint(face) for face in faces_xyz(grid)])
    low, high = grid.extent_mm()
    np.testing.assert_allclose(low, corners.min(axis=0), atol=1e-8)
    np.testing.assert_allclose(high, corners.max(axis=0), atol=1e-8)


def test_a_flipped_grid_in_numbers() -> None:
    grid = Grid((7, 9, 11), (2.0, 3.0, 5.0), (100.0, -50.0, 20.0), FLIPPED)
    # index (1, 2, 3): 2 mm along x's axis (right), 6 mm along y's (inferior), 15 mm along z's (posterior)
    np.testing.assert_allclose(apply_affine(grid.index_xyz_to_mm, [1, 2, 3]), [[98.0, -35.0, 14.0]])
    np.testing.assert_allclose(apply_affine(grid.index_zyx_to_mm, [3, 2, 1]), [[98.0, -35.0, 14.0]])
    assert grid.shape_zyx == (11, 9, 7)
    assert grid.spacing_zyx_mm == (5.0, 3.0, 2.0)
    assert grid.voxel_ml == pytest.approx(0.03)


def test_bounds_are_voxel_faces() -> None:
    grid = Grid((7, 9, 11), (2.0, 3.0, 5.0), (100.0, -50.0, 20.0), FLIPPED)
    inside = [[-0.5, -0.5, -0.5], [10.499, 8.499, 6.499], [10, 0, 0], [0, 8, 0], [0, 0, 6]]
    outside = [[-0.501, 0, 0], [0, -0.501, 0], [0, 0, -0.501], [10.5, 0, 0], [0, 8.5, 0], [0, 0, 6.5]]
    assert grid.contains(np.array(inside)).all()
    assert not grid.contains(np.array(outside)).any()
    assert not grid.contains(np.array([[np.nan, 0, 0], [0, np.inf, 0]])).any()
    assert grid.contains(np.zeros((0, 3))).shape == (0,)


def test_overlap_needs_shared_volume() -> None:
    grid = Grid((7, 9, 11), (2.0, 3.0, 5.0), (0.0, 0.0, 0.0))
    reach = (14.0, 27.0, 55.0)
    for axis in range(3):
        for sign in (-1, 1):
            origin = [0.0, 0.0, 0.0]
            origin[axis] = sign * reach[axis]
            assert not grid.overlaps(Grid(grid.size_xyz, grid.spacing_mm, tuple(origin)))
            origin[axis] = sign * (reach[axis] - 0.1)
            assert grid.overlaps(Grid(grid.size_xyz, grid.spacing_mm, tuple(origin)))


def test_matching_grids_agree_at_every_corner() -> None:
    grid = Grid((70, 90, 110), (2.0, 3.0, 5.0), (100.0, -50.0, 20.0), FLIPPED)
    assert grid.matches(Grid(grid.size_xyz, grid.spacing_mm, (100.019, -50.0, 20.0), FLIPPED))
    assert not grid.matches(Grid(grid.size_xyz, grid.spacing_mm, (100.021, -50.0, 20.0), FLIPPED))
    # 0.0001 mm a voxel is harmless for one voxel, and adds up over 110
    assert not grid.matches(Grid(grid.size_xyz, (2.0, 3.0, 5.001), grid.origin_mm, FLIPPED))
    assert not grid.matches(Grid(grid.size_xyz, grid.spacing_mm, grid.origin_mm))
    assert not grid.matches(Grid((70, 90, 111), grid.spacing_mm, grid.origin_mm, FLIPPED))


def one_voxel(shape: tuple[int, ...], index: tuple[int, ...]) -> np.ndarray:
    image = np.zeros(shape)
    image[index] = 1.0
    return image


def centre_of_mass(image: np.ndarray) -> np.ndarray:
    return np.argwhere(image).T @ image[image != 0] / image.sum()


@few
@given(st.permutations(range(3)), st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6)))
def test_transposition_moves_points_with_the_image(axes: list[int], index: tuple[int, int, int]) -> None:
    moved = one_voxel((5, 6, 7), index).transpose(axes)
    np.testing.assert_array_equal(apply_affine(transpose_affine(axes), index), np.argwhere(moved))


@few
@given(st.tuples(st.integers(2, 4), st.integers(1, 5), st.integers(3, 6)))
def test_cropping_moves_points_with_the_image(index: tuple[int, int, int]) -> None:
    moved = one_voxel((5, 6, 7), index)[2:, 1:, 3:]
    np.testing.assert_array_equal(apply_affine(crop_affine((2, 1, 3)), index), np.argwhere(moved))


@pytest.mark.parametrize("new_shape", [(15, 14, 36), (10, 28, 18), (5, 21, 27)])
@few
@given(index=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7)))
def test_resampling_moves_points_with_a_one_voxel_image(
    new_shape: tuple[int, int, int], index: tuple[int, int, int]
) -> None:
    old_shape = (5, 7, 9)
    # by whole factors the samples lie evenly about the voxel, so that its centre of mass is its place
    moved = resize(one_voxel(old_shape, index), new_shape, order=1, mode="edge", anti_aliasing=False)
    mapped = apply_affine(resample_affine(old_shape, new_shape), index)[0]
    np.testing.assert_allclose(mapped, centre_of_mass(moved), atol=1e-9)


@pytest.mark.parametrize("new_length", [4, 7, 13, 23, 60])
def test_resampling_by_any_factor_agrees_with_a_resized_ramp(new_length: int) -> None:
    old_shape, new_shape = (5, 13, 9), (5, new_length, 9)
    ramp = np.broadcast_to(np.arange(13.0)[:, None], old_shape)
    old_place = resize(ramp, new_shape, order=1, mode="edge", anti_aliasing=False)[2, :, 4]
    inner = np.flatnonzero((old_place > 0) & (old_place < 12))  # at the ends the edge voxel is repeated
    points = np.array([(2, place, 4) for place in old_place[inner]])
    mapped = apply_affine(resample_affine(old_shape, new_shape), points)
    np.testing.assert_allclose(mapped, [(2, place, 4) for place in inner], atol=1e-9)


@few
@given(st.tuples(*[st.integers(1, 40)] * 6), st.tuples(*[st.floats(0, 1)] * 3))
def test_resampling_keeps_points_inside_and_goes_back(
    sizes: tuple[int, ...], fraction: tuple[float, ...]
) -> None:
    old_shape, new_shape = np.array(sizes[:3]), np.array(sizes[3:])
    point = np.array(fraction) * old_shape - 0.5
    there = apply_affine(resample_affine(old_shape, new_shape), point)
    assert ((there >= -0.5 - 1e-9) & (there <= new_shape - 0.5 + 1e-9)).all()
    np.testing.assert_allclose(
        apply_affine(resample_affine(new_shape, old_shape), there)[0], point, atol=1e-9
    )


def test_halves_round_up_and_faces_stay_inside() -> None:
    index = np.array([[-0.5, 0.5, 1.5], [0.49, 2.5, 3.51], [4.4999, 5.5, 6.49]])
    expected = [[0, 1, 2], [0, 3, 4], [4, 6, 6]]
    np.testing.assert_array_equal(to_voxels(index, (5, 7, 9)), expected)
    just_inside = np.nextafter(np.array([[4.5, 6.5, 8.5]]), 0)
    np.testing.assert_array_equal(to_voxels(just_inside, (5, 7, 9)), [[4, 6, 8]])
