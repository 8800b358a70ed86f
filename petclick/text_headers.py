"""Text headers, of MetaImage and NRRD, checked before ITK's readers see them.

Where a value is too long, or a number is missing or not what a field should have, those readers write past
their buffers, take the next line for what is missing, or never end; and a header may name other files. So
each line has to be plain: a known field with what belongs there, or some words of the user's.
"""

import os
import re
from collections.abc import Iterator
from typing import IO, Literal

from petclick.errors import InputError
from petclick.files import Body, DamagedError

MAX_HEADER_BYTES = 1 << 20
MAX_FIELD_CHARS = 240
"""Longest value of a field that a reader knows; MetaImage's copies names into 255 bytes."""

NUMBER = r"[-+]?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][-+]?\d{1,2})?"
WHOLE = r"-?\d{1,15}"
META_FIELDS = {
    **dict.fromkeys(
        ("ID", "ParentID", "CompressedDataSize", "ElementNumberOfChannels", "ElementNBits"), (WHOLE, 1)
    ),
    **dict.fromkeys(("ElementMin", "ElementMax"), (NUMBER, 1)),
    **dict.fromkeys(("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"), (NUMBER, 1)),
    "DimSize": (WHOLE, 3),
    **dict.fromkeys(("ElementSpacing", "ElementSize", "Offset", "Position", "Origin"), (NUMBER, 3)),
    **dict.fromkeys(("CenterOfRotation", "ImagePosition"), (NUMBER, 3)),
    **dict.fromkeys(("Color", "SequenceID"), (NUMBER, 4)),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), (NUMBER, 9)),
    **dict.fromkeys(("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB"), ("True|False", 1)),
    "CompressedData": ("True|False", 1),
    **dict.fromkeys(("AcquisitionDate", "AnatomicalOrientation", "Comment", "DistanceUnits"), (".+", 1)),
    **dict.fromkeys(("ElementType", "Modality", "Name", "ObjectSubType", "ObjectType"), (".+", 1)),
    "TransformType": (".+", 1),
    "NDims": ("3", 1),
}
"""Field of a 3-D MetaImage -> what it must have, and how many of it."""
META_END = re.compile(rb"\s*ElementDataFile\s*=\s*(LOCAL|Local|local)\s*$")
ZLIB_DEFLATE, ZLIB_DICTIONARY = 8, 32
"""Method of a zlib stream (RFC 1950), and the flag at which MetaImage's reader never ends."""

NRRD_FIELDS = {
    *("axis maxs", "axis mins", "axismaxs", "axismins", "centerings", "centers", "content", "dimension"),
    *("encoding", "endian", "kinds", "labels", "max", "measurement frame", "min", "number", "old max"),
    *("old min", "oldmax", "oldmin", "sample units", "sampleunits", "sizes", "space", "space dimension"),
    *("space directions", "space origin", "space units", "spacings", "thicknesses", "type", "units"),
}
"""Fields of a NRRD that holds its own voxels; the others skip bytes or name other files."""
NRRD_ENCODINGS: dict[str, Literal["", "gzip"]] = {"raw": "", "gzip": "gzip", "gz": "gzip"}
"""Encoding -> how the voxels are packed; there are others, of text, that nobody stores volumes in."""


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


def check_meta(file: IO[bytes]) -> Body:
    """Check the header of a MetaImage; arguments and errors as for `petclick.headers.check_header`."""
    fields: dict[str, str] = {}
    for number, line in _lines(file, META_END):
        key, _, value = (part.strip() for part in line.partition("="))
        most = MAX_FIELD_CHARS if key in META_FIELDS else MAX_HEADER_BYTES
        if not (key and value) or ":" in key or len(key) > MAX_FIELD_CHARS or len(value) > most:
            raise DamagedError(f"line {number} of its header must be 'Key = Value', of moderate length")
        if key in fields or key in ("ElementDataFile", "HeaderSize"):
            raise DamagedError(f"{key} must come once, and the voxels LOCAL, right behind the header")
        fields[key] = value
    dimension = fields.get("NDims", "")
    if re.fullmatch(r"\d{1,9}", dimension) and dimension != "3":
        raise InputError(file.name, "must be 3-D", f"{dimension}-D")
    for key, (form, count) in META_FIELDS.items():
        if key in fields and not re.fullmatch(rf"({form})(\s+({form})){{{count - 1}}}", fields[key]):
            raise DamagedError(f"{key} must not be {fields[key][:60]!r}")
    if not fields.keys() >= {"NDims", "BinaryData"} or fields["BinaryData"] != "True":
        raise DamagedError("NDims must be there, and BinaryData be True")
    start, file_bytes = file.tell(), os.fstat(file.fileno()).st_size
    if fields.get("CompressedData") != "True":
        return Body(start)
    packed_bytes = int(fields.get("CompressedDataSize", file_bytes - start))
    if not 6 < packed_bytes <= file_bytes - start:
        raise DamagedError("it ends before its last voxel")
    method, flags = file.read(2)
    if method % 16 != ZLIB_DEFLATE or flags & ZLIB_DICTIONARY:
        raise DamagedError("its compressed voxels are damaged")
    file.seek(start + packed_bytes - 4)
    adler32 = int.from_bytes(file.read(4), "big")
    big_endian = "True" in (fields.get("BinaryDataByteOrderMSB"), fields.get("ElementByteOrderMSB"))
    return Body(start, "zlib", adler32=adler32, big_endian=big_endian)


def check_nrrd(file: IO[bytes]) -> Body:
    """Check the header of a NRRD, likewise."""
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
