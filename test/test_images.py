"""Reading, orientation, resampling and writing of images, against SimpleITK's own filters and plain maths."""

import gzip
import logging
import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from petclick.errors import InputError
from petclick.grid import Grid, apply_affine
from petclick.images import (
    AIR_HU,
    IMAGE_READERS,
    case_name,
    read_case,
    read_image,
    resample,
    to_grid,
    write_image,
    write_mask,
)
from petclick.orientation import is_axis_code, orient

SIZE, SPACING, ORIGIN = (7, 9, 11), (2.0, 3.0, 5.0), (100.0, -50.0, 20.0)
GRID = Grid(SIZE, SPACING, ORIGIN, (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
TILTED = Grid(
    SIZE,
    SPACING,
    ORIGIN,
    tuple(Rotation.from_euler("zyx", [12, -7, 20], degrees=True).as_matrix().ravel().tolist()),
)
VOXELS = np.random.default_rng(0).normal(size=GRID.shape_zyx).astype(np.float32)
MASK = (VOXELS > 0.5).astype(np.uint8)
CODES = ["".join(code) for order in permutations(("LR", "PA", "SI")) for code in product(*order)]


def itk_image(array: np.ndarray, grid: Grid = GRID) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    return image


def grid_of(image: sitk.Image) -> Grid:
    return Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def write(path: Path, array: np.ndarray = VOXELS, grid: Grid = GRID, compressed: bool = True) -> Path:
    sitk.WriteImage(itk_image(array, grid), str(path), useCompression=compressed)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300
    return message.removeprefix(f"{path}: ")


# Reading


@pytest.mark.parametrize("extension", [*IMAGE_READERS, ".MHA", ".NII.GZ", ".NRRD", ".TIF"])
def test_every_format_gives_the_voxels(tmp_path: Path, extension: str) -> None:
    write(tmp_path / f"a.b{extension.lower()}").rename(tmp_path / f"a.b{extension}")
    array, grid = read_image(tmp_path / f"a.b{extension}")
    np.testing.assert_array_equal(array, VOXELS)
    assert array.dtype == np.float32
    assert grid.size_xyz == SIZE
    if not extension.lower().startswith(".tif"):  # TIFF holds no origin and no direction
        np.testing.assert_allclose(grid.index_xyz_to_mm, GRID.index_xyz_to_mm, atol=1e-5)
    assert case_name(tmp_path / f"a.b{extension}") == "a.b"


@pytest.mark.parametrize("extension", [".mha", ".nii.gz", ".nrrd"])
def test_an_oblique_geometry_is_kept(tmp_path: Path, extension: str) -> None:
    _, grid = read_image(write(tmp_path / f"a{extension}", grid=TILTED))
    assert grid.matches(TILTED, tolerance_vox=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float64])
def test_every_number_type_becomes_float32(tmp_path: Path, dtype: type[np.generic]) -> None:
    array, _ = read_image(write(tmp_path / "a.mha", (VOXELS * 20 + 100).astype(dtype)))
    np.testing.assert_array_equal(array, (VOXELS * 20 + 100).astype(dtype).astype(np.float32))
    assert array.dtype == np.float32


@pytest.mark.parametrize("extension", IMAGE_READERS)
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.97])
def test_a_truncated_file_is_refused(tmp_path: Path, extension: str, kept: float) -> None:
    path = write(tmp_path / f"a{extension}", compressed=extension == ".mha")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    message = refusal(path)
    assert message.startswith("cannot be read, truncated or damaged (") or message == "must be 3-D, got 2-D"


def test_a_truncated_volume_in_an_intact_gzip_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-4]))
    assert refusal(path) == "cannot be read, truncated or damaged (it ends before its last voxel)"


def test_a_gzip_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert refusal(path).startswith("cannot be read, truncated or damaged (")


@pytest.mark.parametrize("extension", IMAGE_READERS)
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    path.write_text("hello\n" * 100)
    assert refusal(path).startswith("cannot be read, truncated or damaged (")


def test_a_file_is_read_as_what_it_is_called(tmp_path: Path) -> None:
    write(tmp_path / "a.nrrd").rename(tmp_path / "a.mha")
    assert refusal(tmp_path / "a.mha").startswith("cannot be read, truncated or damaged (")
    write(tmp_path / "a.nrrd").rename(tmp_path / "a.dat")
    assert refusal(tmp_path / "a.dat").startswith("must have an image's extension (.mha, .nii.gz")


@pytest.mark.parametrize("extension", [".mha", ".nii.gz", ".nrrd", ".tif"])
def test_other_dimensions_are_refused(tmp_path: Path, extension: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS[0]), str(tmp_path / f"two{extension}"))
    assert refusal(tmp_path / f"two{extension}") == "must be 3-D, got 2-D"
    if extension != ".tif":
        four = sitk.JoinSeries([itk_image(VOXELS)])  # a last axis of length 1
        sitk.WriteImage(four, str(tmp_path / f"four{extension}"))
        assert refusal(tmp_path / f"four{extension}") == "must be 3-D, got 4-D"


@pytest.mark.parametrize("extension", [".mha", ".nii.gz", ".nrrd"])
def test_vectors_and_complex_numbers_are_refused(tmp_path: Path, extension: str) -> None:
    vectors = sitk.GetImageFromArray(np.stack([VOXELS, VOXELS], axis=-1), isVector=True)
    sitk.WriteImage(vectors, str(tmp_path / f"v{extension}"))
    rule = "must have one real number per voxel, got "
    assert refusal(tmp_path / f"v{extension}") == rule + "vector of 32-bit float"
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.astype(np.complex64)), str(tmp_path / f"c{extension}"))
    assert refusal(tmp_path / f"c{extension}").startswith(rule)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_voxels_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    array = VOXELS.astype(np.float64)
    array[3, 4, 5] = array[0, 0, 1] = value
    message = refusal(write(tmp_path / "a.mha", array))
    assert message == "must have finite voxels (float32), got 2 that are NaN or infinite"


META_HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "2 3 5",
    "DimSize": "7 9 11",
    "ElementType": "MET_FLOAT",
    "ElementDataFile": "LOCAL",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        (
            {"DimSize": "100000 100000 100000"},
            "must have 1 to 1000000000 voxels, got 100000 x 100000 x 100000",
        ),
        ({"DimSize": "1001 1000 1000"}, "must have 1 to 1000000000 voxels, got 1001 x 1000 x 1000"),
        ({"DimSize": "-7 9 11"}, "must have 1 to 1000000000 voxels, got "),
        ({"DimSize": "0 9 11"}, "must have 1 to 1000000000 voxels, got 0 x 9 x 11"),
        ({"DimSize": "7 9 12"}, "cannot be read, truncated or damaged ("),
        ({"DimSize": "7 9"}, "cannot be read, truncated or damaged ("),
        ({"ElementSpacing": "0 3 5"}, "must have a spacing of 0.01 to 100 mm, got (0.0, 3.0, 5.0)"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "must have a direction of three perpendicular unit"),
        ({"ElementType": "MET_FOO"}, "cannot be read, truncated or damaged (Unknown PixelType"),
        ({"ElementDataFile": "elsewhere.raw"}, "cannot be read, truncated or damaged ("),
        ({"NDims": "93"}, "must be 3-D, got 93-D"),
        ({"NDims": "x"}, "cannot be read, truncated or damaged ("),
    ],
)
def test_headers(tmp_path: Path, change: dict[str, str], message: str | None) -> None:
    header = "".join(f"{key} = {value}\n" for key, value in (META_HEADER | change).items())
    (tmp_path / "a.mha").write_bytes(header.encode() + VOXELS.tobytes())
    if message is None:
        np.testing.assert_array_equal(read_image(tmp_path / "a.mha")[0], VOXELS)
    else:
        assert refusal(tmp_path / "a.mha").startswith(message)


def test_a_nan_in_the_geometry_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[292:296] = struct.pack("<f", np.nan)  # srow_x[3], the origin's x
    path.write_bytes(data)
    assert refusal(path) == "must have a finite spacing, origin and direction"


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mha")
    (tmp_path / "folder.mha").mkdir()
    for name in ("pipe.mha", "folder.mha", "absent.mha"):
        assert refusal(tmp_path / name) == "must be a regular file"


def test_no_right_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    write(tmp_path / "a.mha")
    monkeypatch.setattr(Path, "open", deny)
    assert refusal(tmp_path / "a.mha") == "cannot be read, truncated or damaged (Permission denied)"


def test_itk_warnings_stay_off_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[252:254] = data[254:256] = b"\0\0"  # no qform, no sform: ITK warns about such a header
    path.write_bytes(data)
    read_image(path)
    assert capfd.readouterr().err == ""


# A case


def test_a_case_on_one_grid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ct_path, pet_path = write(tmp_path / "uuid.1.nii.gz", VOXELS * 100), write(tmp_path / "pet.mha")
    with caplog.at_level(logging.WARNING):
        case = read_case(ct_path, pet_path)
    np.testing.assert_array_equal(case.ct_hu, VOXELS * 100)
    np.testing.assert_array_equal(case.pet_suv, VOXELS)  # negative values included
    assert case.grid == GRID
    assert case.name == "uuid.1"
    assert caplog.messages == []


def test_pet_in_becquerel_is_warned_about_and_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pet = np.abs(VOXELS) * 1e6
    case = read_case(write(tmp_path / "ct.mha"), write(tmp_path / "pet.mha", pet))
    np.testing.assert_array_equal(case.pet_suv, pet)
    assert caplog.messages == [
        f"{tmp_path / 'pet.mha'}: PET looks like Bq/ml rather than SUV: its maximum is {pet.max():.6g}"
    ]


def plane(grid: Grid) -> np.ndarray:
    """A function of the place in mm that linear interpolation gives without error."""
    points_mm = apply_affine(grid.index_zyx_to_mm, np.indices(grid.shape_zyx).reshape(3, -1).T)
    return (points_mm @ [0.5, -0.25, 0.125] + 30).reshape(grid.shape_zyx).astype(np.float32)


def voxels_in(target: Grid, source: Grid, margin: float) -> np.ndarray:
    """Which voxels of `target` lie within `source`, at least `margin` voxels from its faces."""
    points_mm = apply_affine(target.index_zyx_to_mm, np.indices(target.shape_zyx).reshape(3, -1).T)
    index = apply_affine(np.linalg.inv(source.index_zyx_to_mm), points_mm)
    low, high = -0.5 + margin, np.array(source.shape_zyx) - 0.5 - margin
    return ((index >= low) & (index <= high)).all(axis=1).reshape(target.shape_zyx)


CT_GRID = Grid(
    (23, 19, 13), (0.9, 1.3, 2.1), (99.0, -47.0, 11.0), (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
)


@pytest.mark.parametrize(
    "ct_grid", [CT_GRID, Grid(CT_GRID.size_xyz, (1.1, 1.3, 3.9), (97, -47, 11), TILTED.direction)]
)
def test_ct_on_another_grid_is_resampled_onto_pets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ct_grid: Grid
) -> None:
    if ct_grid != CT_GRID:
        ct_grid = orient(ct_grid, "LPI")  # a grid that overlaps with the tilted one
    case = read_case(write(tmp_path / "ct.mha", plane(ct_grid), ct_grid), write(tmp_path / "pet.mha"))
    sure, possible = voxels_in(GRID, ct_grid, 0.501), voxels_in(GRID, ct_grid, -1e-6)
    assert 20 < np.count_nonzero(sure) < GRID.shape_zyx[0] * 50
    np.testing.assert_allclose(case.ct_hu[sure], plane(GRID)[sure], atol=1e-3)
    np.testing.assert_array_equal(case.ct_hu[~possible], AIR_HU)
    np.testing.assert_array_equal(case.pet_suv, VOXELS)
    assert case.grid == GRID
    assert case.ct_hu.dtype == np.float32
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'ct.mha'}: CT is on another grid than PET (")
    assert "PET: 7 x 9 x 11 voxels of 2 x 3 x 5 mm from (100, -50, 20) mm" in message


def test_equal_sizes_are_not_equal_grids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shifted = Grid(SIZE, SPACING, (98.0, -50.0, 20.0), GRID.direction)  # one voxel to the right
    case = read_case(write(tmp_path / "ct.mha", VOXELS, shifted), write(tmp_path / "pet.mha"))
    np.testing.assert_allclose(case.ct_hu[:, :, 1:], VOXELS[:, :, :-1], atol=1e-5)
    np.testing.assert_array_equal(case.ct_hu[:, :, 0], AIR_HU)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("origin", [(200.0, -50.0, 20.0), (100.0, -50.0, 80.0)])
def test_no_overlap_is_refused_with_both_extents(tmp_path: Path, origin: tuple[float, float, float]) -> None:
    far = Grid(SIZE, SPACING, origin, GRID.direction)
    ct_path, pet_path = write(tmp_path / "ct.mha", VOXELS, far), write(tmp_path / "pet.mha")
    with pytest.raises(InputError) as caught:
        read_case(ct_path, pet_path)
    x, z = origin[0], origin[2]
    assert str(caught.value) == (
        f"{ct_path}: must overlap in space with the PET, "
        f"got CT x {x - 13:.1f} to {x + 1:.1f} mm, y -51.5 to -24.5 mm, "
        f"z {z - 52.5:.1f} to {z + 2.5:.1f} mm, "
        f"PET x 87.0 to 101.0 mm, y -51.5 to -24.5 mm, z -32.5 to 22.5 mm ({pet_path})"
    )


def test_boxes_that_overlap_where_no_voxels_do_are_refused(tmp_path: Path) -> None:
    # a thin plate across a corner: its bounding box overlaps, the plate itself passes by
    direction = Rotation.from_euler("z", 45, degrees=True).as_matrix()
    plate = Grid((40, 1, 11), (2.0, 0.5, 5.0), (85.0, -72.0, -30.0), tuple(direction.ravel().tolist()))
    assert plate.overlaps(GRID)
    ct_path = write(tmp_path / "ct.mha", np.zeros(plate.shape_zyx, np.float32), plate)
    with pytest.raises(InputError, match="must overlap in space with the PET, got CT x"):
        read_case(ct_path, write(tmp_path / "pet.mha"))


# Orientation and other grids


@pytest.mark.parametrize("code", CODES)
def test_orientation_agrees_with_itk_and_goes_back_bit_for_bit(code: str) -> None:
    source = Grid(SIZE, SPACING, ORIGIN, (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    expected = sitk.DICOMOrient(itk_image(VOXELS, source), code)
    target = orient(source, code)
    np.testing.assert_allclose(target.index_xyz_to_mm, grid_of(expected).index_xyz_to_mm, atol=1e-12)
    assert target.size_xyz == expected.GetSize()
    turned = to_grid(VOXELS, source, target, outside=0.0)
    np.testing.assert_array_equal(turned, sitk.GetArrayFromImage(expected))
    assert np.shares_memory(turned, VOXELS)
    mask = (turned > 0.5).astype(np.uint8)
    np.testing.assert_array_equal(to_grid(mask, target, source, outside=0, linear=False), MASK)


@pytest.mark.parametrize("code", ["LP", "LPSS", "LRS", "LPX", "lps", "", None, 3])
def test_a_code_needs_each_axis_once(code: str) -> None:
    assert not is_axis_code(code)
    with pytest.raises(ValueError, match="an axis code has one letter each"):
        orient(GRID, code)


def test_a_hair_off_the_axes_is_still_exact() -> None:
    nearly = Grid(SIZE, SPACING, ORIGIN, (-1.0, 5e-4, 0.0, 5e-4, 1.0, 0.0, 0.0, 0.0, -1.0))
    target = orient(nearly, "SRA")
    assert target.size_xyz == (11, 7, 9)
    turned = to_grid(VOXELS, nearly, target, outside=0.0)
    np.testing.assert_array_equal(turned, VOXELS.transpose(1, 2, 0)[::-1, :, ::-1])
    np.testing.assert_array_equal(to_grid(turned, target, nearly, outside=0.0), VOXELS)


@pytest.mark.parametrize("code", ["LPS", "RAS", "SLA", "PIR"])
def test_an_oblique_volume_is_covered_by_an_upright_grid(code: str) -> None:
    target = orient(TILTED, code)
    itk_code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(target.direction)
    assert itk_code == code
    assert set(np.abs(target.direction)) == {0.0, 1.0}
    by_letter = dict(zip("LPS", SPACING, strict=True)) | dict(zip("RAI", SPACING, strict=True))
    assert target.spacing_mm == tuple(by_letter[letter] for letter in code)  # tilted by less than 45 degrees
    corners = np.array([*product(*((-0.5, n - 0.5) for n in TILTED.shape_zyx))])
    moved = apply_affine(np.linalg.inv(target.index_zyx_to_mm) @ TILTED.index_zyx_to_mm, corners)
    shape = np.array(target.shape_zyx)
    assert (moved >= -0.5 - 1e-6).all()
    assert (moved <= shape - 0.5 + 1e-6).all()
    assert (shape - np.ptp(moved, axis=0) < 1.0).all()  # and by no more than it takes
    np.testing.assert_allclose(
        apply_affine(target.index_zyx_to_mm, (shape - 1) / 2),
        apply_affine(TILTED.index_zyx_to_mm, (np.array(TILTED.shape_zyx) - 1) / 2),
        atol=1e-9,
    )


def test_an_oblique_volume_is_resampled_in_place() -> None:
    target = orient(TILTED, "RAS")
    values = to_grid(plane(TILTED), TILTED, target, outside=-7.0)
    sure, possible = voxels_in(target, TILTED, 0.501), voxels_in(target, TILTED, -1e-6)
    assert np.count_nonzero(sure) > 100
    np.testing.assert_allclose(values[sure], plane(target)[sure], atol=1e-3)
    np.testing.assert_array_equal(values[~possible], -7.0)


def test_an_oblique_mask_takes_the_nearest_voxel() -> None:
    target = orient(TILTED, "LPS")
    values = to_grid(MASK, TILTED, target, outside=0, linear=False)
    assert values.dtype == np.uint8
    points_mm = apply_affine(target.index_zyx_to_mm, np.indices(target.shape_zyx).reshape(3, -1).T)
    index = apply_affine(np.linalg.inv(TILTED.index_zyx_to_mm), points_mm)
    clear = (np.abs(index - np.floor(index) - 0.5) > 1e-6).all(axis=1)
    inside = TILTED.contains(index)
    expected = np.zeros(len(index), np.uint8)
    expected[inside] = MASK[tuple(np.rint(index[inside]).astype(int).T)]
    np.testing.assert_array_equal(values.ravel()[clear], expected[clear])


def test_grids_that_only_look_turned_are_resampled() -> None:
    half_off = Grid(SIZE, SPACING, (99.0, -50.0, 20.0), GRID.direction)  # half a voxel to the right
    moved = to_grid(VOXELS, GRID, half_off, outside=-7.0)
    np.testing.assert_allclose(moved[:, :, :-1], (VOXELS[:, :, 1:] + VOXELS[:, :, :-1]) / 2, atol=1e-5)
    wider = Grid((7, 9, 12), SPACING, ORIGIN, GRID.direction)
    added = to_grid(VOXELS, GRID, wider, outside=-7.0)
    np.testing.assert_array_equal(added[:11], VOXELS)
    np.testing.assert_array_equal(added[11], -7.0)


def test_resampling_takes_views() -> None:
    view = VOXELS.transpose(2, 0, 1)[::-1]
    grid = Grid((9, 11, 7), SPACING, ORIGIN)
    np.testing.assert_array_equal(resample(view, grid, grid, outside=0.0), view)


# Writing


@contextmanager
def small_disk() -> Iterator[None]:
    """No file can grow beyond 300 bytes, so that writing fails midway as it does on a full disk.

    No fixture: pytest's own output may go to a file, before fixtures end.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("grid", [GRID, TILTED])
def test_a_mask_is_written_whole(tmp_path: Path, grid: Grid) -> None:
    path = tmp_path / "images" / "tumor-lesion-segmentation" / "uuid.1.mha"
    write_mask(MASK, grid, path)
    saved = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(saved), MASK)
    assert saved.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_allclose(grid_of(saved).index_xyz_to_mm, grid.index_xyz_to_mm, rtol=1e-15, atol=1e-15)
    assert b"CompressedData = True" in path.read_bytes()[:400]
    assert [entry.name for entry in path.parent.iterdir()] == ["uuid.1.mha"]
    write_mask(1 - MASK, grid, path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), 1 - MASK)


def test_a_mask_may_be_a_view(tmp_path: Path) -> None:
    grid = Grid(SIZE[::-1], SPACING, ORIGIN)
    write_mask(MASK.T[::-1], grid, tmp_path / "a.mha")
    np.testing.assert_array_equal(read_image(tmp_path / "a.mha")[0], MASK.T[::-1])


def assert_not_written(path: Path, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        write_mask(MASK, GRID, path)
    assert str(caught.value).startswith(f"{path}: cannot be written ({reason}")
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with small_disk():
        assert_not_written(tmp_path / "a.mha", "")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_older_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mask(MASK, GRID, tmp_path / "a.mha")
    before = (tmp_path / "a.mha").read_bytes()

    def write_something_else(image: sitk.Image, name: str, **_: bool) -> None:
        Path(name).write_bytes(before)

    monkeypatch.setattr(sitk, "WriteImage", write_something_else)
    with pytest.raises(InputError, match=r"cannot be written \(what was written differs when read back\)"):
        write_mask(1 - MASK, GRID, tmp_path / "a.mha")
    shifted = Grid(SIZE, SPACING, (100.5, -50.0, 20.0), GRID.direction)
    with pytest.raises(InputError, match=r"cannot be written \(what was written differs when read back\)"):
        write_mask(MASK, shifted, tmp_path / "a.mha")
    assert (tmp_path / "a.mha").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mha"]


def test_a_silently_cut_write_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = sitk.WriteImage

    def write_half(image: sitk.Image, name: str, **options: bool) -> None:
        honest(image, name, **options)
        Path(name).write_bytes(Path(name).read_bytes()[:-20])

    monkeypatch.setattr(sitk, "WriteImage", write_half)
    assert_not_written(tmp_path / "a.mha", "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_not_written(tmp_path / "file" / "a.mha", "File exists")
    assert_not_written(tmp_path / "file" / "deeper" / "a.mha", "Not a directory")
    (tmp_path / "a.mha").mkdir()
    assert_not_written(tmp_path / "a.mha", "Is a directory")
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "a.mha"}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a file system that takes no files")
def test_a_file_system_that_takes_no_files() -> None:
    assert_not_written(Path("/proc/a.mha"), "File cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_not_written(tmp_path / "a.mha", "")


@pytest.mark.parametrize(
    ("mask", "name"), [(MASK.astype(np.int16), "a.mha"), (MASK[1:], "a.mha"), (MASK, "a.nii.gz")]
)
def test_only_a_mask_of_the_grid_is_written(tmp_path: Path, mask: np.ndarray, name: str) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_mask(mask, GRID, tmp_path / name)


@pytest.mark.parametrize("extension", [".mha", ".nii.gz", ".nrrd"])
def test_an_image_is_written_in_the_format_of_its_name(tmp_path: Path, extension: str) -> None:
    write_image(VOXELS, TILTED, tmp_path / f"a{extension}")
    array, grid = read_image(tmp_path / f"a{extension}")
    np.testing.assert_array_equal(array, VOXELS)
    assert grid.matches(TILTED, tolerance_vox=1e-4)


def test_an_image_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_image(VOXELS, GRID, tmp_path / "absent" / "a.mha")
