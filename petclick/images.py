"""Reading, bringing to another grid, and writing images: the only user of SimpleITK.

Arrays are (z, y, x), as SimpleITK gives them; `Grid` holds what ITK says about where they lie.
"""

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from petclick.errors import InputError, raise_if_out_of_memory
from petclick.files import Body, DamagedError, require_file
from petclick.grid import Grid
from petclick.headers import check_body, check_geometry, check_header, check_length, check_voxels
from petclick.orientation import ScalarT, turned_view

logger = logging.getLogger(__name__)

FloatVolume = npt.NDArray[np.float32]

IMAGE_READERS = {
    ".mha": "MetaImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".tif": "TIFFImageIO",
    ".tiff": "TIFFImageIO",
}
"""Extension -> ITK's reader: a file is read as what it is called, never as what it could be taken for."""

PARTIAL = re.compile(r"\.partial-\d+\.mha")
"""Name of a mask that is being written; of a run that was killed it may stay."""

AIR_HU = -1024.0
"""CT value where PET reaches beyond CT."""

MAX_SUV = 1000.0
"""A PET with more than this somewhere is in Bq/ml rather than SUV."""

_REASON_CHARS = 200


@dataclass(frozen=True)
class Case:
    """CT and PET of one patient on one grid.

    ct_hu, pet_suv: float32 (z, y, x); grid: the PET's; name: the CT file's, without its extension.
    """

    ct_hu: FloatVolume
    pet_suv: FloatVolume
    grid: Grid
    name: str


def case_name(ct_path: Path) -> str:
    """The CT file's name without the image extension, '.nii.gz' included."""
    extension = next((each for each in IMAGE_READERS if ct_path.name.lower().endswith(each)), ct_path.suffix)
    return ct_path.name[: len(ct_path.name) - len(extension)]


def describe(grid: Grid) -> str:
    """A grid in words, for log lines and messages."""
    size, spacing, origin = (
        separator.join(f"{value:.7g}" for value in values)
        for separator, values in ((" x ", grid.size_xyz), (" x ", grid.spacing_mm), (", ", grid.origin_mm))
    )
    return f"{size} voxels of {spacing} mm from ({origin}) mm"


def read_case(ct_path: Path, pet_path: Path) -> Case:
    """Read CT (HU) and PET (SUV) of one patient, and bring CT to PET's grid where it lies on another.

    Raises:
        InputError: an image is refused (`read_image`), or CT and PET do not overlap in space.
    """
    ct, ct_grid = read_image(ct_path)
    pet, grid = read_image(pet_path)
    if not ct_grid.matches(grid):
        ct = _on_pet_grid(ct, ct_grid, grid, ct_path, pet_path)
    if pet.max() > MAX_SUV:
        logger.warning("%s: PET looks like Bq/ml rather than SUV: its maximum is %.6g", pet_path, pet.max())
    return Case(ct, pet, grid, case_name(ct_path))


def _on_pet_grid(ct: FloatVolume, ct_grid: Grid, grid: Grid, ct_path: Path, pet_path: Path) -> FloatVolume:
    rule = "must overlap in space with the PET"
    extents = f"CT {_extent(ct_grid)}, PET {_extent(grid)} ({pet_path})"
    if not ct_grid.overlaps(grid):
        raise InputError(ct_path, rule, extents)
    ct = resample(ct, ct_grid, grid, outside=math.nan)
    missing = np.isnan(ct)
    if missing.all():
        raise InputError(ct_path, rule, extents)
    ct[missing] = AIR_HU
    logger.warning(
        "%s: CT is on another grid than PET (%s; PET: %s): resampled to PET's; it covers %.1f %% of it",
        *(ct_path, describe(ct_grid), describe(grid), 100.0 * (1.0 - missing.mean())),
    )
    return ct


def _extent(grid: Grid) -> str:
    ranges = zip("xyz", *grid.extent_mm(), strict=True)
    return ", ".join(f"{axis} {low:.1f} to {high:.1f} mm" for axis, low, high in ranges)


def read_image(path: Path, trusted: bool = False) -> tuple[FloatVolume, Grid]:
    """Read a scalar 3-D image.

    Args:
        path: the file.
        trusted: the user made it, such as a truth that is mostly empty: it may have any extension, to be
            read as whatever ITK takes it for, and shrink to any length.

    Returns:
        float32 array (z, y, x), all finite, and its grid.

    Raises:
        InputError: not a regular file of a known extension, unreadable, cut off, not 3-D, more than one
            component per voxel, more voxels than it can hold, an impossible geometry, or voxels that are not
            finite in float32.
    """
    require_file(path)
    name = path.name.lower()
    kind = next((reader for extension, reader in IMAGE_READERS.items() if name.endswith(extension)), None)
    if kind is None and not trusted:
        raise InputError(path, f"must have an image's extension ({', '.join(IMAGE_READERS)})")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(kind or "")
    try:
        body = None if kind is None else check_header(path, kind)
        with _quiet():
            reader.ReadImageInformation()
            grid, bits = _check_information(path, kind, reader, body, trusted)
            if body is not None:
                check_body(path, body, math.prod(grid.size_xyz) * bits // 8)
            image = reader.Execute()
        array = sitk.GetArrayFromImage(image)
        if body is not None:
            check_voxels(body, array)
    except (DamagedError, OSError, RuntimeError) as error:
        raise_if_out_of_memory(error)
        raise InputError(path, f"cannot be read, truncated or damaged ({_reason(error)})") from error
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    n_bad = array.size - np.count_nonzero(np.isfinite(array))
    if n_bad:
        raise InputError(path, "must have finite voxels (float32)", f"{n_bad} that are NaN or infinite")
    return array, _grid_of(image)


def _check_information(
    path: Path, kind: str | None, reader: Any, body: Body | None, trusted: bool
) -> tuple[Grid, int]:
    """Check what ITK makes of a header: one number per voxel, 3-D, and not too much; its grid, and bits."""
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    if reader.GetNumberOfComponents() != 1 or "complex" in pixel:
        raise InputError(path, "must have one real number per voxel", pixel)
    # ITK drops a NIfTI's trailing axes of length 1
    dimension = int(reader.GetMetaData("dim[0]")) if kind == "NiftiImageIO" else reader.GetDimension()
    if dimension != 3:
        raise InputError(path, "must be 3-D", f"{dimension}-D")
    # of a NIfTI with a scale, ITK tells the type after scaling
    bits = body.bits if body and body.bits else int(pixel.split("-bit")[0])
    grid = _grid_of(reader)
    check_geometry(path, grid)
    if not trusted:
        check_length(path, grid, bits)
    return grid, bits


def resample(
    array: npt.NDArray[ScalarT], source: Grid, target: Grid, outside: float, linear: bool = True
) -> npt.NDArray[ScalarT]:
    """Sample an array at the voxel centres of another grid.

    Args:
        array: (z, y, x) on `source`; floats, or any scalar type where `linear` is False.
        source: the array's grid.
        target: the grid wanted.
        outside: value beyond the source's voxel faces.
        linear: trilinear, otherwise nearest neighbour.

    Returns:
        An array of the same type on `target`.
    """
    interpolator = sitk.sitkLinear if linear else sitk.sitkNearestNeighbor
    frame = (target.origin_mm, target.spacing_mm, target.direction)
    image = sitk.Resample(
        _image_of(array, source), target.size_xyz, sitk.Transform(), interpolator, *frame, outside
    )
    result: npt.NDArray[ScalarT] = sitk.GetArrayFromImage(image)
    return result


def to_grid(
    array: npt.NDArray[ScalarT], source: Grid, target: Grid, outside: float, linear: bool = True
) -> npt.NDArray[ScalarT]:
    """Bring an array to another grid, exactly where that takes only exchanged or turned axes.

    Arguments and types as for `resample`. In the exact case the result is a view whose strides may be
    negative (`numpy.ascontiguousarray` before torch sees it); otherwise the array is resampled.
    """
    view = turned_view(array, source, target)
    return resample(array, source, target, outside, linear) if view is None else view


def write_mask(mask: npt.NDArray[np.uint8], grid: Grid, path: Path) -> None:
    """Write a mask as a compressed .mha: whole and verified, or not at all.

    The file is written under a hidden name in the same folder (made if missing), read back, compared, and
    renamed when it is complete.

    Args:
        mask: uint8 (z, y, x) on `grid`.
        grid: the mask's grid.
        path: where to; an older file there is replaced.

    Raises:
        InputError: the folder cannot be written to, or the disk is full; nothing is left behind.
    """
    if mask.dtype != np.uint8 or mask.shape != grid.shape_zyx or path.suffix != ".mha":
        raise ValueError(f"uint8 {grid.shape_zyx} to .mha, not {mask.dtype} {mask.shape} to {path.name}")
    partial = path.with_name(f".partial-{os.getpid()}.mha")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            sitk.WriteImage(_image_of(mask, grid), str(partial), useCompression=True)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            saved = sitk.ReadImage(str(partial), imageIO="MetaImageIO")
            same = _grid_of(saved).matches(grid, tolerance_vox=1e-4)
            if not same or not np.array_equal(sitk.GetArrayViewFromImage(saved), mask):
                raise OSError(0, "what was written differs when read back")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise_if_out_of_memory(error)
        raise InputError(path, f"cannot be written ({_reason(error)})") from error


def write_image(array: npt.NDArray[np.generic], grid: Grid, path: Path) -> None:
    """Write an array (z, y, x) on `grid`, compressed, in the format that the path's extension names.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        sitk.WriteImage(_image_of(array, grid), str(path), useCompression=True)
    except RuntimeError as error:
        raise InputError(path, f"cannot be written ({_reason(error)})") from error


def _image_of(array: npt.NDArray[Any], grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    return image


def _grid_of(image: Any) -> Grid:  # an image, or a reader of one
    return Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _reason(error: Exception) -> str:
    """What the system or ITK says, in one short line: no source file, object address or stale errno."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = " ".join(re.split(r"ERROR:", str(error))[-1].split())
    text = re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", text)
    text = re.sub(r" Reason: (Success|No such file or directory)$", "", text)
    return text if len(text) <= _REASON_CHARS else f"{text[:80]} ... {text[-100:]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ITK's own warnings off stderr."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
