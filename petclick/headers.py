"""What the header of an image says, checked before ITK's readers see it.

Those readers trust headers: a long name or a missing number makes them write past their buffers, a header can
send them to other files, and a file that is cut off may count as read. So a header is read here first, and
refused where it is not plainly that of one image in one file. `test/fuzz.py` tells whether that is enough.
"""

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from petclick.errors import InputError
from petclick.files import DamagedError
from petclick.grid import Grid
from petclick.tiff import check_tiff

MAX_VOXELS = 1_000_000_000
"""A header that promises more is refused before memory is taken; a whole body has 50 to 100 million."""
MAX_BYTES_OF_SMALL_FILE = 1 << 28
MAX_BYTES_PER_BYTE = 100
"""What a larger file may promise: real voxels have noise and shrink to a tenth, a bomb's to a thousandth."""
FLOAT_BYTES = 4
"""Of a voxel in memory, at least."""
SPACING_LIMITS_MM = (0.01, 100.0)
MAX_ORIGIN_MM = 1e6
DIRECTION_TOLERANCE = 0.01
"""Largest error of the products of two axes' directions."""

MAX_HEADER_BYTES = 1 << 20
"""Longest text header, and longest NIfTI extensions."""
MAX_FIELD_CHARS = 240
"""Longest value of a field that a reader knows; MetaImage's copies names into 255 bytes."""
NUMBER = r"[-+]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][-+]?\d{1,2})?"
META_NUMBERS = {
    **dict.fromkeys(("NDims", "ID", "ParentID", "ElementMin", "ElementMax", "CompressedDataSize"), 1),
    **dict.fromkeys(("ElementNumberOfChannels", "ElementNBits"), 1),
    **dict.fromkeys(("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"), 1),
    **dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin"), 3),
    **dict.fromkeys(("CenterOfRotation", "ImagePosition"), 3),
    **dict.fromkeys(("Color", "SequenceID"), 4),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 9),
}
"""Field of a 3-D MetaImage -> how many numbers it has; missing ones would be taken from the next line."""
META_TEXTS = {
    *("AcquisitionDate", "AnatomicalOrientation", "BinaryData", "BinaryDataByteOrderMSB", "Comment"),
    *("CompressedData", "DistanceUnits", "ElementByteOrderMSB", "ElementDataFile", "ElementType", "Modality"),
    *("Name", "ObjectSubType", "ObjectType", "TransformType"),
}
META_BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
META_END = re.compile(rb"\s*ElementDataFile\s*=\s*(LOCAL|Local|local)\s*$")
NRRD_FIELDS = {
    *("axis maxs", "axis mins", "axismaxs", "axismins", "centerings", "centers", "content", "dimension"),
    *("encoding", "endian", "kinds", "labels", "max", "measurement frame", "min", "number", "old max"),
    *("old min", "oldmax", "oldmin", "sample units", "sampleunits", "sizes", "space", "space dimension"),
    *("space directions", "space origin", "space units", "spacings", "thicknesses", "type", "units"),
}
"""Fields of a NRRD that holds its own voxels; the others skip bytes or name other files."""
NRRD_ENCODINGS: dict[str, Literal["", "gzip"]] = {"raw": "", "gzip": "gzip", "gz": "gzip"}
"""Encoding -> how the voxels are packed; there are others, of text, that nobody stores volumes in."""

NIFTI_HEADER_BYTES = 352
"""Smallest header of a single-file NIfTI-1; the voxels come after it."""
NIFTI_BITS = {
    **{2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64},
    **{1536: 128, 1792: 128, 2048: 256, 2304: 32},
}
"""Data type of NIfTI -> bits per voxel."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Body:
    """Where a file's voxels are, and how they can be checked.

    start: their first byte; packed: '' as they are, 'zlib' or 'gzip' from there on, or 'all' where the whole
    file is a gzip, and `start` counts unpacked bytes; bits: of a voxel, where ITK does not tell; adler32:
    checksum of a zlib's unpacked voxels; big_endian: how those are stored.
    """

    start: int
    packed: Literal["", "zlib", "gzip", "all"] = ""
    bits: int | None = None
    adler32: int = 0
    big_endian: bool = False


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


def check_promise(path: Path, grid: Grid, bits: int) -> None:
    """Check what a header promises, before memory is taken for it.

    Args:
        path: the file.
        grid: what the header says.
        bits: of a voxel in the file.

    Raises:
        InputError: more voxels than `MAX_VOXELS`, or than a file of this length has; an impossible geometry.
    """
    n_voxels, file_bytes = math.prod(grid.size_xyz), path.stat().st_size
    if not 0 < n_voxels <= MAX_VOXELS:
        raise InputError(path, f"must have 1 to {MAX_VOXELS} voxels", " x ".join(map(str, grid.size_xyz)))
    voxel_bytes = n_voxels * max(bits // 8, FLOAT_BYTES)
    if voxel_bytes > max(MAX_BYTES_OF_SMALL_FILE, MAX_BYTES_PER_BYTE * file_bytes):
        rule = f"must not promise more than {MAX_BYTES_PER_BYTE} times its length in voxels"
        raise InputError(path, rule, f"{voxel_bytes} bytes in {file_bytes}")
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


def _lines(file: IO[bytes], end: re.Pattern[bytes]) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a header, up to and without the one that `end` matches."""
    number, left = 0, MAX_HEADER_BYTES
    while (line := file.readline(left)).endswith(b"\n"):
        left -= len(line)
        number += 1
        text = line.rstrip(b"\r\n")
        if re.search(rb"[\0-\x08\x0a-\x1f\x7f]", text):
            break
        if end.match(text):
            return
        yield number, text.decode("latin-1")
    raise DamagedError("its header is cut off, too long, or no text")


def _check_meta(file: IO[bytes]) -> Body:
    fields: dict[str, str] = {}
    for number, line in _lines(file, META_END):
        key, _, value = (part.strip() for part in line.partition("="))
        most = MAX_FIELD_CHARS if key in META_NUMBERS or key in META_TEXTS else MAX_HEADER_BYTES
        if not (key and value) or ":" in key or len(key) > MAX_FIELD_CHARS or len(value) > most:
            raise DamagedError(f"line {number} of its header must be 'Key = Value', of moderate length")
        if key in fields or key == "ElementDataFile":
            raise DamagedError(f"{key} must come once, and ElementDataFile be LOCAL")
        fields[key] = value
    if (dimension := re.fullmatch(r"\d{1,9}", fields.get("NDims", ""))) and dimension[0] != "3":
        raise InputError(file.name, "must be 3-D", f"{dimension[0]}-D")
    for key, count in META_NUMBERS.items():
        if key in fields and not re.fullmatch(rf"{NUMBER}(\s+{NUMBER}){{{count - 1}}}", fields[key]):
            raise DamagedError(f"{key} must have {count} finite numbers")
    compressed = fields.get("CompressedData", "False").lower()
    if fields.get("BinaryData", "").lower() != "true" or "HeaderSize" in fields:
        raise DamagedError("its voxels must be binary, right behind the header")
    if compressed not in ("true", "false"):
        raise DamagedError("CompressedData must be True or False")
    start, file_bytes = file.tell(), os.fstat(file.fileno()).st_size
    if compressed == "false":
        return Body(start)
    packed_bytes = int(float(fields.get("CompressedDataSize", file_bytes - start)))
    if not 4 < packed_bytes <= file_bytes - start:
        raise DamagedError("it ends before its last voxel")
    file.seek(start + packed_bytes - 4)
    big_endian = any(fields.get(key, "").lower() == "true" for key in META_BYTE_ORDERS)
    return Body(start, "zlib", adler32=int.from_bytes(file.read(4), "big"), big_endian=big_endian)


def _check_nrrd(file: IO[bytes]) -> Body:
    fields: dict[str, str] = {}
    for number, line in _lines(file, re.compile(rb"$")):
        key, separator, value = line.partition(":")
        if number == 1:
            if not re.fullmatch("NRRD000[1-5]", line):
                raise DamagedError("it is not a NRRD of version 1 to 5")
        elif not (line.startswith("#") or (separator and value.startswith("="))):  # the user's own keys
            if key not in NRRD_FIELDS or key in fields or len(value) > MAX_FIELD_CHARS:
                rule = "must be a field of a file with its own voxels, come once, and be of moderate length"
                raise DamagedError(f"line {number} of its header {rule}")
            fields[key] = value.strip()
    encoding = fields.get("encoding", "").lower()
    if encoding not in NRRD_ENCODINGS:
        raise DamagedError(f"its encoding must be one of {', '.join(NRRD_ENCODINGS)}")
    if not re.fullmatch(r"\d{1,10}(\s+\d{1,10}){0,15}", fields.get("sizes", "")):
        raise DamagedError("its sizes must be 1 to 16 numbers")
    return Body(file.tell(), NRRD_ENCODINGS[encoding])


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
    if not (offset == 0 or NIFTI_HEADER_BYTES <= offset <= MAX_HEADER_BYTES):
        raise DamagedError(f"its voxels must not start at byte {offset:g}")
    return Body(max(int(offset), NIFTI_HEADER_BYTES), "all" if compressed else "", bits)


CHECKS: dict[str, Callable[[IO[bytes]], Body | None]] = {
    "MetaImageIO": _check_meta,
    "NiftiImageIO": _check_nifti,
    "NrrdImageIO": _check_nrrd,
    "TIFFImageIO": check_tiff,
}
"""ITK's reader -> the check of what it reads."""
