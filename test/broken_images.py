"""Broken images for `fuzz.py`: damaged copies of valid files, and headers made up from a format's words."""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from mutations import EDGES, any_of, chance, damage, strange_text

SHAPE_ZYX = (5, 6, 7)
SPACING_MM = (2.0, 3.0, 2.5)
ORIGIN_MM = (10.0, -20.0, 30.0)
DIRECTION = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
DTYPES = (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64)
META_WORDS = {
    "ObjectType": ("Image", "Scene", "Tube"),
    "ObjectSubType": ("x",),
    "NDims": ("3",),
    "Name": ("x",),
    "ID": ("1",),
    "ParentID": ("-1",),
    "BinaryData": ("True", "False"),
    "BinaryDataByteOrderMSB": ("False", "True"),
    "ElementByteOrderMSB": ("True",),
    "CompressedData": ("True", "False"),
    "CompressedDataSize": ("40",),
    "TransformMatrix": ("1 0 0 0 1 0 0 0 1", "0 1 0 1 0 0 0 0 1", "1 1 1 1 1 1 1 1 1"),
    "Offset": ("0 0 0",),
    "Position": ("1 2 3",),
    "CenterOfRotation": ("0 0 0",),
    "AnatomicalOrientation": ("RAI", "???"),
    "DistanceUnits": ("mm", "um"),
    "Modality": ("MET_MOD_CT",),
    "HeaderSize": ("-1", "40"),
    "SequenceID": ("1 2 3",),
    "ElementMin": ("0",),
    "ElementMax": ("1",),
    "ElementNumberOfChannels": ("1", "2"),
    "ElementNBits": ("8",),
    "ElementToIntensityFunctionSlope": ("2",),
    "ElementToIntensityFunctionOffset": ("-1",),
    "ElementSize": ("2 3 2.5",),
    "ElementSpacing": ("2 3 2.5", "-2 3 2.5"),
    "DimSize": ("7 6 5", "7 6 50", "70 60 50", "7 6", "7 6 5 1"),
    "ElementType": ("MET_UCHAR", "MET_SHORT", "MET_FLOAT", "MET_DOUBLE", "MET_OTHER", "MET_STRING"),
}
META_ENDS = (*["LOCAL"] * 3, "a.raw", "LIST", "LIST 2", "%03d.raw 1 5 1", "/dev/zero", "a.mha", "Local", "")
NRRD_WORDS = {
    "type": ("short", "uchar", "float", "double", "block", "int64", "unsigned long long int"),
    "dimension": ("3", "2", "4", "16", "17"),
    "space": ("left-posterior-superior", "RAS", "scanner-xyz", "3D-right-handed"),
    "space dimension": ("3",),
    "sizes": ("7 6 5", "7 6 50", "7 6", "3 7 6 5", "-7 6 5"),
    "space directions": ("(2,0,0) (0,3,0) (0,0,2.5)", "none (2,0,0) (0,3,0)", "(0,0,0) (0,3,0) (0,0,2.5)"),
    "space origin": ("(0,0,0)", "(nan,0,0)", "none"),
    "kinds": ("domain domain domain", "vector domain domain", "3-color domain domain"),
    "endian": ("little", "big"),
    "encoding": ("raw", "gzip", "gz", "ascii", "hex", "bzip2", "txt"),
    "spacings": ("2 3 2.5", "nan nan nan"),
    "thicknesses": ("1 1 1",),
    "axis mins": ("0 0 0",),
    "centers": ("cell cell node",),
    "labels": ('"x" "y" "z"',),
    "units": ('"mm" "mm" "mm"',),
    "space units": ('"mm" "mm" "mm"',),
    "measurement frame": ("(1,0,0) (0,1,0) (0,0,1)",),
    "content": ("x",),
    "number": ("210",),
    "block size": ("4",),
    "min": ("0",),
    "old max": ("1",),
    "sample units": ("mm",),
    "line skip": ("0", "1", "1000000000"),
    "byte skip": ("0", "-1", "5", "1000000000000"),
    "data file": ("a.raw", "LIST", "LIST 2", "/dev/zero", "%03d.raw 1 5 1", "../ct/ct.mha"),
    "key:": ("=value", "= value\\n", "=" + "v" * 3000),
}
NIFTI_FIELDS = (
    *((0, "i"), *((place, "h") for place in (*range(40, 56, 2), 70, 72, 252, 254)), (344, "4s")),
    *((place, "f") for place in (*range(76, 120, 4), *range(256, 328, 4))),
)
"""Place and type of what a NIfTI-1 header holds of geometry and storage."""
TIFF_TAGS = (
    254,
    255,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    330,
    338,
    339,
)
TIFF_ENTRIES = ((254, 4, 1), (254, 4, 2), (258, 3, 64), (262, 3, 3), (262, 3, 6), (277, 3, 3), (322, 3, 16))
"""Tag, type and value."""


def valid_image(rng: np.random.Generator, path: Path) -> None:
    """An image on the fuzzer's grid, of any number type, compressed or not."""
    voxels = np.random.default_rng(0).uniform(0, 90, SHAPE_ZYX)
    dtype = any_of(rng, DTYPES[:5] if path.suffix == ".tif" else DTYPES)
    image = sitk.GetImageFromArray(voxels.astype(dtype))
    image.SetSpacing(SPACING_MM)
    image.SetOrigin(ORIGIN_MM)
    image.SetDirection(DIRECTION)
    compressor = any_of(rng, ("PackBits", "LZW", "Deflate")) if path.suffix == ".tif" else ""
    sitk.WriteImage(image, str(path), chance(rng, 0.5), compressor=compressor)


def bomb(rng: np.random.Generator, path: Path) -> None:
    """A short file of very many voxels: too many, or as many as are let through."""
    size = any_of(rng, ((400, 400, 400), (100, 100, 100)))
    image = sitk.Image(*size, any_of(rng, (sitk.sitkUInt8, sitk.sitkInt16)))
    image.SetSpacing([float(any_of(rng, (0.1, 1.0, 5.0, 90.0)))] * 3)
    image.SetOrigin(ORIGIN_MM)
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(path), useCompression=True)


def change_lines(rng: np.random.Generator, data: bytes) -> bytes:
    """Lines of a text header lost, doubled, exchanged, or with other values."""
    end = data.find(b"ElementDataFile") if data.startswith(b"ObjectType") else data.find(b"\n\n")
    lines, body = data[:end].decode("latin-1").split("\n"), data[end:]
    for _ in range(any_of(rng, (1, 1, 2))):
        here, there = (int(place) for place in rng.integers(len(lines), size=2))
        match int(rng.integers(6)):
            case 0:
                lines.insert(there, lines[here])
            case 1:
                del lines[here]
                lines = lines or [""]
            case 2:
                lines[here], lines[there] = lines[there], lines[here]
            case _:
                separator = "=" if "=" in lines[here] else ":"
                key, _, value = lines[here].partition(separator)
                lines[here] = f"{key}{separator} {strange_text(rng, value.strip())}"
    return "\n".join(lines).encode("utf-8") + body


def made_up_meta(rng: np.random.Generator) -> bytes:
    keys = [key for key in META_WORDS if key in ("NDims", "DimSize", "ElementType") or chance(rng, 0.35)]
    if chance(rng, 0.2):
        rng.shuffle(keys)
    lines = [f"{key} = {_word(rng, META_WORDS[key])}" for key in keys]
    body = rng.bytes(int(any_of(rng, (0, 1, 210, 420, 840, 1680))))
    if chance(rng, 0.4):
        body = zlib.compress(body)
    return "\n".join([*lines, f"ElementDataFile = {any_of(rng, META_ENDS)}\n"]).encode() + body


def made_up_nrrd(rng: np.random.Generator) -> bytes:
    usual = ("type", "dimension", "sizes", "encoding", "endian")
    keys = [key for key in NRRD_WORDS if (chance(rng, 0.95) if key in usual else chance(rng, 0.15))]
    if chance(rng, 0.2):
        rng.shuffle(keys)
    lines = [f"{key}: {_word(rng, NRRD_WORDS[key])}" for key in keys]
    body = rng.bytes(int(any_of(rng, (0, 1, 210, 420, 840, 1680))))
    if chance(rng, 0.4):
        body = gzip.compress(body)
    return "\n".join([f"NRRD000{any_of(rng, '1245679')}", *lines, "", ""]).encode() + body


def _word(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return strange_text(rng, words[0]) if chance(rng, 0.08) else str(any_of(rng, words))


def change_nifti(rng: np.random.Generator, data: bytes) -> bytes:
    """Fields of a NIfTI-1 header, each of its own width, at the edges of its type."""
    changed = bytearray(data.ljust(352, b"\0"))
    for _ in range(any_of(rng, (1, 1, 2, 3))):
        place, form = any_of(rng, NIFTI_FIELDS)
        if form == "f":
            value: Any = any_of(rng, (0.0, -1.0, 1e-30, 1e30, np.nan, np.inf, -np.inf, 1e9, 352.0, 3e38))
        elif form == "4s":
            value = any_of(rng, (b"n+1\0", b"ni1\0", b"n+2\0", b"\0\0\0\0", b"n+9\0"))
        else:
            bits = 15 if form == "h" else 31
            value = any_of(rng, [edge for edge in EDGES if edge < 2**bits]) * any_of(rng, (1, -1))
        struct.pack_into("<" + form, changed, place, value)
    return bytes(changed)


def change_tiff(rng: np.random.Generator, data: bytes) -> bytes:
    """Entries of a TIFF's pages: other tags, types, counts and values; pages that lead elsewhere."""
    changed, entries, page = bytearray(data), [], struct.unpack_from("<I", data, 4)[0]
    ends = [4]
    while page and len(ends) < 99:
        (count,) = struct.unpack_from("<H", data, page)
        entries += [page + 2 + 12 * number for number in range(count)]
        ends.append(page + 2 + 12 * count)
        (page,) = struct.unpack_from("<I", data, ends[-1])
    for _ in range(any_of(rng, (1, 1, 2, 3))):
        place = any_of(rng, entries)
        match int(rng.integers(7)):
            case 0:
                struct.pack_into("<H", changed, place, any_of(rng, TIFF_TAGS))
            case 1:
                struct.pack_into("<H", changed, place + 2, int(rng.integers(19)))
            case 2:
                struct.pack_into("<I", changed, place + 4, any_of(rng, EDGES))
            case 3:
                next_page = any_of(rng, (0, 4, 8, place, len(data), 2**32 - 1))
                struct.pack_into("<I", changed, any_of(rng, ends), next_page)
            case 4:
                tag, kind, value = any_of(rng, TIFF_ENTRIES)
                struct.pack_into("<HHII", changed, place, tag, kind, 1, value)
            case _:
                struct.pack_into("<I", changed, place + 8, any_of(rng, EDGES))
    return bytes(changed)


def broken_image(rng: np.random.Generator, path: Path) -> None:
    """Write one broken image at `path`, whose extension says of which kind."""
    text = path.suffix in (".mha", ".nrrd")
    if path.suffix != ".nii" and chance(rng, 0.005):
        bomb(rng, path)
    elif text and chance(rng, 0.3):
        path.write_bytes(made_up_meta(rng) if path.suffix == ".mha" else made_up_nrrd(rng))
    else:
        valid_image(rng, path)
        data = path.read_bytes()
        if path.suffix == ".gz" and chance(rng, 0.8):
            path.write_bytes(gzip.compress(_broken(rng, gzip.decompress(data), change_nifti), mtime=0))
        else:
            own = {".mha": change_lines, ".nrrd": change_lines, ".nii": change_nifti, ".tif": change_tiff}
            path.write_bytes(_broken(rng, data, own.get(path.suffix, damage)))


def _broken(
    rng: np.random.Generator, data: bytes, own: Callable[[np.random.Generator, bytes], bytes]
) -> bytes:
    data = own(rng, data) if chance(rng, 0.65) else damage(rng, data)
    return damage(rng, data) if chance(rng, 0.1) else data
