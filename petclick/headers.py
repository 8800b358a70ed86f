"""What the header of an image says, checked before ITK's readers see it.

Those readers trust headers: a long name or a missing number makes them write past their buffers, a header can
send them to other files, and a file that is cut off may count as read. So a header is read here first, and
refused where it is not plainly that of one image in one file. `test/fuzz.py` tells whether that is enough.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from petclick.errors import InputError
from petclick.files import Body, DamagedError
from petclick.grid import Grid
from petclick.text_headers import MAX_HEADER_BYTES, check_meta, check_nrrd
from petclick.tiff import check_tiff

MAX_VOXELS = 1_000_000_000
"""A header that promises more is refused before memory is taken; a whole body has 50 to 100 million."""
MAX_BYTES_OF_SMALL_FILE = 1 << 22
MAX_BYTES_PER_BYTE = 100
"""What files may promise, the larger of the two: real voxels have noise and shrink to a tenth, a bomb's to a
thousandth."""
FLOAT_BYTES = 4
"""Of a voxel in memory, at least."""
SPACING_LIMITS_MM = (0.01, 100.0)
MAX_ORIGIN_MM = 1e6
DIRECTION_TOLERANCE = 0.01
"""Largest error of the products of two axes' directions."""

NIFTI_HEADER_BYTES = 352
"""Smallest header of a single-file NIfTI-1; the voxels come after it."""
NIFTI_BITS = {
    **{2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64},
    **{1536: 128, 1792: 128, 2048: 256, 2304: 32},
}
"""Data type of NIfTI -> bits per voxel."""
NIFTI_GEOMETRY = ((76, "4f"), (256, "18f"))
"""Place and form of spacing, and of quaternion and matrix."""
MAX_NIFTI_NUMBER = 1e9
"""In a geometry; the NIfTI library never ends where its products are infinite."""

_CHUNK_BYTES = 1 << 20


def check_header(path: Path, reader: str) -> Body | None:
    """Check an image's header on behalf of one of ITK's readers.

    Args:
        path: the file.
        reader: 'MetaImageIO', 'NiftiImageIO', 'NrrdImageIO' or 'TIFFImageIO'.

    Returns:
        Where the voxels are; None for a TIFF, where they lie about.

    Raises:
        DamagedError: the header is not one that this reader can be trusted with.
        InputError: the image is not 3-D, or has several numbers per voxel.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            return CHECKS[reader](file)
        except (EOFError, OverflowError, ValueError, gzip.BadGzipFile, struct.error, zlib.error) as error:
            raise DamagedError(f"its header is cut off or damaged: {error}") from None


def check_geometry(path: Path, grid: Grid) -> None:
    """Check where a header says that the voxels lie.

    Raises:
        InputError: more voxels than `MAX_VOXELS`, or an impossible geometry.
    """
    if not 0 < math.prod(grid.size_xyz) <= MAX_VOXELS:
        raise InputError(path, f"must have 1 to {MAX_VOXELS} voxels", " x ".join(map(str, grid.size_xyz)))
    if not np.isfinite([*grid.spacing_mm, *grid.origin_mm, *grid.direction]).all():
        raise InputError(path, "must have a finite spacing, origin and direction")
    low, high = SPACING_LIMITS_MM
    if not (low <= min(grid.spacing_mm) and max(grid.spacing_mm) <= high):
        raise InputError(path, f"must have a spacing of {low:g} to {high:g} mm", grid.spacing_mm)
    if np.abs(grid.origin_mm).max() > MAX_ORIGIN_MM:
        raise InputError(path, f"must have an origin within {MAX_ORIGIN_MM:g} mm", grid.origin_mm)
    axes = np.reshape(grid.direction, (3, 3))
    if np.abs(axes.T @ axes - np.eye(3)).max() > DIRECTION_TOLERANCE:
        raise InputError(path, "must have a direction of three perpendicular unit vectors", grid.direction)


def check_length(path: Path, grid: Grid, bits: int) -> None:
    """Check that a file is long enough for its voxels of so many bits, before memory is taken for them.

    Raises:
        InputError: they take more bytes than a file of this length may promise.
    """
    voxel_bytes = math.prod(grid.size_xyz) * max(bits // 8, FLOAT_BYTES)
    file_bytes = path.stat().st_size
    if voxel_bytes > max(MAX_BYTES_OF_SMALL_FILE, MAX_BYTES_PER_BYTE * file_bytes):
        rule = f"must not promise more than {MAX_BYTES_PER_BYTE} times its length in voxels"
        raise InputError(path, rule, f"{voxel_bytes} bytes in {file_bytes}")


def check_body(path: Path, body: Body, voxel_bytes: int) -> None:
    """Check, before it is read, that a file holds as many bytes of voxels, and a gzip's checksum.

    The NIfTI library fills what it cannot unpack with zeros and reports success.

    Raises:
        DamagedError: the file is cut off or damaged.
    """
    with path.open("rb") as file:
        if body.packed == "":
            found = os.fstat(file.fileno()).st_size - body.start
        elif body.packed == "zlib":
            return
        else:
            skipped = body.start if body.packed == "all" else 0
            file.seek(body.start - skipped)
            found = _unpacked_bytes(file, skipped + voxel_bytes) - skipped
    if found < voxel_bytes:
        raise DamagedError("it ends before its last voxel")


def check_voxels(body: Body, array: npt.NDArray[Any]) -> None:
    """Check a compressed MetaImage's voxels, as they were read and of the type in the file.

    ITK's reader takes what it can unpack and says nothing of the rest. This costs a tenth of unpacking twice.

    Raises:
        DamagedError: they are not those that were written.
    """
    stored = array.byteswap() if body.big_endian else array
    if body.packed == "zlib" and zlib.adler32(stored.data) != body.adler32:
        raise DamagedError("its compressed voxels do not have their checksum")


def _unpacked_bytes(file: IO[bytes], most: int) -> int:
    """Length of what a gzip unpacks to; looks no further than to `most`, as a bomb's end may be far."""
    found = 0
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while found <= most and (chunk := stream.read(_CHUNK_BYTES)):
                found += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedError(f"its compressed voxels are cut off or damaged: {error}") from None
    return found


def _check_nifti(file: IO[bytes]) -> Body:
    compressed = file.name.lower().endswith(".gz")
    header = (gzip.GzipFile(fileobj=file) if compressed else file).read(NIFTI_HEADER_BYTES)
    order = "<" if header[:4] == struct.pack("<i", 348) else ">"
    (header_bytes,) = struct.unpack_from(order + "i", header)
    n_axes, *sizes = struct.unpack_from(order + "8h", header, 40)
    data_type, bits = struct.unpack_from(order + "2h", header, 70)
    (offset,) = struct.unpack_from(order + "f", header, 108)
    if header_bytes != 348 or header[344:348] != b"n+1\0":
        raise DamagedError("it is not a NIfTI-1 with its own voxels")
    if not 1 <= n_axes <= 7 or min(sizes[:n_axes]) < 1:
        raise DamagedError(f"its size must be 1 to 7 numbers above 0, not {sizes[: max(0, n_axes)]}")
    if NIFTI_BITS.get(data_type) != bits:
        raise DamagedError(f"its data type {data_type} does not have {bits} bits")
    geometry = [
        number for place, form in NIFTI_GEOMETRY for number in struct.unpack_from(order + form, header, place)
    ]
    if not all(abs(number) <= MAX_NIFTI_NUMBER for number in geometry):
        raise InputError(file.name, "must have a finite spacing, origin and direction")
    if not (offset == 0 or NIFTI_HEADER_BYTES <= offset <= MAX_HEADER_BYTES):
        raise DamagedError(f"its voxels must not start at byte {offset:g}")
    return Body(max(int(offset), NIFTI_HEADER_BYTES), "all" if compressed else "", bits)


CHECKS: dict[str, Callable[[IO[bytes]], Body | None]] = {
    "MetaImageIO": check_meta,
    "NiftiImageIO": _check_nifti,
    "NrrdImageIO": check_nrrd,
    "TIFFImageIO": check_tiff,
}
"""ITK's reader -> the check of what it reads."""
