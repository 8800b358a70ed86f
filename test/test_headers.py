"""Files that ITK's readers cannot be trusted with: found by `test/fuzz.py`, or made for what it found.

Without the checks, a reader may crash, never end, read beyond the file, or take a damaged file for whole.
"""

import contextlib
import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petclick.errors import InputError
from petclick.files import Body, DamagedError
from petclick.headers import CHECKS, check_header
from petclick.images import read_image

VOXELS = np.random.default_rng(0).normal(size=(11, 9, 7)).astype(np.float32)
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "ElementSpacing": "2 3 5",
    "DimSize": "7 9 11",
    "ElementType": "MET_FLOAT",
}
NRRD = {"type": "float", "dimension": "3", "sizes": "7 9 11", "endian": "little", "encoding": "raw"}
DAMAGED = "cannot be read, truncated or damaged ("


def write_meta(path: Path, body: bytes, **changed: str) -> Path:
    lines = [f"{key} = {value}\n" for key, value in {**META, **changed}.items()]
    path.write_bytes("".join([*lines, "ElementDataFile = LOCAL\n"]).encode("latin-1") + body)
    return path


def write_nrrd(path: Path, body: bytes, changed: dict[str, str]) -> Path:
    lines = [f"{key}: {value}\n" for key, value in {**NRRD, **changed}.items()]
    path.write_bytes("".join(["NRRD0004\n", *lines, "\n"]).encode("latin-1") + body)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_image(path)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a"


def packed(size: str | None = None, **options: bytes) -> tuple[bytes, dict[str, str]]:
    stream = zlib.compressobj(**options)  # type: ignore[arg-type]
    body = stream.compress(VOXELS.tobytes()) + stream.flush()
    return body, {"CompressedData": "True", "CompressedDataSize": size or str(len(body))}


def test_the_files_that_are_changed_below_are_read(path: Path) -> None:
    body, fields = packed()
    for whole in (
        write_meta(path.with_suffix(".mha"), VOXELS.tobytes(), Comment="A" * 200),
        write_meta(path.with_suffix(".mha"), body, **fields, Colour="B" * 5000),
        write_meta(path.with_suffix(".mha"), VOXELS.astype(">f4").tobytes(), ElementByteOrderMSB="True"),
        write_nrrd(
            path.with_suffix(".nrrd"), VOXELS.tobytes(), {"content": "x", "# a": "b", "key": "=value"}
        ),
        write_nrrd(path.with_suffix(".nrrd"), gzip.compress(VOXELS.tobytes()), {"encoding": "gzip"}),
    ):
        np.testing.assert_array_equal(read_image(whole)[0], VOXELS)


def test_a_stream_that_asks_for_a_dictionary(path: Path) -> None:
    """ITK's reader would ask zlib for more for ever."""
    body, fields = packed(zdict=b"abc")
    assert refusal(write_meta(path.with_suffix(".mha"), body, **fields)).startswith(DAMAGED)


@pytest.mark.parametrize("body", [b"", b"x", b"\x78\x9c", b"\x1f\x8b" * 20, b"\0" * 300])
def test_a_stream_that_is_none(path: Path, body: bytes) -> None:
    whole = write_meta(path.with_suffix(".mha"), body, CompressedData="True")
    assert refusal(whole).startswith(DAMAGED)


@pytest.mark.parametrize("size", ["1", "-1", "6", "999999999999999", "1e9", "9" * 400])
def test_a_wrong_length_of_the_stream(path: Path, size: str) -> None:
    body, fields = packed(size)
    assert refusal(write_meta(path.with_suffix(".mha"), body, **fields)).startswith(DAMAGED)


def test_a_stream_of_other_voxels(path: Path) -> None:
    body, fields = packed()
    changed = body[:-4] + bytes(4)  # the checksum
    assert refusal(write_meta(path.with_suffix(".mha"), changed, **fields)).startswith(DAMAGED)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Name", "A" * 300),
        ("Comment", "A" * 70_000),
        ("AnatomicalOrientation", "A" * 300),
        ("ElementType", "A" * 300),
        ("Offset", "1"),
        ("Offset", "1 2"),
        ("Offset", "1 2 3 4"),
        ("Offset", "nan 0 0"),
        ("Offset", "1e999 0 0"),
        ("ElementSpacing", "2"),
        ("TransformMatrix", "1 0 0"),
        ("TransformMatrix", "1 " * 5000),
        ("DimSize", "7 9 " + "9" * 400),
        ("DimSize", "7 9 11 1 1 1 1 1 1 1 1 1"),
        ("Color", "1"),
        ("HeaderSize", "-1"),
        ("HeaderSize", "1000000000000"),
        ("ElementNumberOfChannels", "1000000000"),
        ("ElementDataFile", "LIST"),
        ("BinaryData", "False"),
        ("A" * 300, "x"),
        ("A:B", "x"),
        ("Name", "a\0b"),
        ("Name", ""),
    ],
)
def test_fields_of_a_metaimage(path: Path, key: str, value: str) -> None:
    message = refusal(write_meta(path.with_suffix(".mha"), VOXELS.tobytes(), **{key: value}))
    assert message.startswith((DAMAGED, "must have one real number per voxel")), message


@pytest.mark.parametrize(
    "value", ["/etc/passwd", "../ct/ct.mha", "LIST", "%03d.raw 1 5 1", "a.raw", "LOCALx", ""]
)
def test_a_metaimage_that_names_other_files(path: Path, value: str) -> None:
    whole = write_meta(path.with_suffix(".mha"), VOXELS.tobytes())
    whole.write_bytes(whole.read_bytes().replace(b"LOCAL", value.encode()))
    assert refusal(whole).startswith(DAMAGED)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data file", "/etc/passwd"),
        ("datafile", "LIST"),
        ("line skip", "1000000000"),
        ("byte skip", "-1"),
        ("encoding", "hex"),
        ("encoding", "bzip2"),
        ("sizes", "7 9"),
        ("sizes", "7 9 " + "9" * 400),
        ("sizes", "-7 9 11"),
        ("dimension", "17"),
        ("type", "block"),
        ("space directions", "(1,0,0)"),
        ("space origin", "(nan,0,0)"),
        ("content", "A" * 70_000),
        ("a field", "x"),
    ],
)
def test_fields_of_a_nrrd(path: Path, key: str, value: str) -> None:
    assert refusal(write_nrrd(path.with_suffix(".nrrd"), VOXELS.tobytes(), {key: value})).startswith(DAMAGED)


@pytest.mark.parametrize(
    ("place", "form", "value"),
    [
        (40, "<h", 0),  # axes
        (40, "<h", -1),
        (40, "<h", 8),
        (42, "<h", -7),  # size
        (42, "<h", 0),
        (70, "<h", 1),  # data type
        (70, "<h", 1792),
        (72, "<h", 8),  # bits
        (108, "<f", -352.0),  # start of the voxels
        (108, "<f", 100.0),
        (108, "<f", 3e38),
        (108, "<f", float("nan")),
        (344, "4s", b"ni1\0"),
        (0, "<i", 540),
    ],
)
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_fields_of_a_nifti(path: Path, extension: str, place: int, form: str, value: float | bytes) -> None:
    whole = path.with_suffix(".nii")
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(whole))
    data = bytearray(whole.read_bytes())
    struct.pack_into(form, data, place, value)
    changed = path.with_suffix(extension)
    changed.write_bytes(gzip.compress(data) if extension == ".nii.gz" else data)
    assert refusal(changed).startswith((DAMAGED, "must be 3-D"))


@pytest.mark.parametrize("place", [76, 84, 256, 268, 280, 316, 324])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30])
def test_numbers_with_which_a_niftis_geometry_never_ends(path: Path, place: int, value: float) -> None:
    whole = path.with_suffix(".nii")
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(whole))
    data = bytearray(whole.read_bytes())
    struct.pack_into("<f", data, place, value)
    whole.write_bytes(data)
    assert refusal(whole) == "must have a finite spacing, origin and direction"


def entry(data: bytes, tag: int) -> int:
    """Where the first page of a TIFF has this tag."""
    (page,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, page)
    places = [page + 2 + 12 * number for number in range(count)]
    return next(place for place in places if struct.unpack_from("<H", data, place)[0] == tag)


def ring(data: bytearray) -> None:
    """The first page is followed by itself."""
    (page,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, page)
    struct.pack_into("<I", data, page + 2 + 12 * count, page)


def other(tag: int, value: int, offset: int = 8) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        struct.pack_into("<I" if offset > 2 else "<H", data, entry(data, tag) + offset, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        ring,
        other(256, 700),  # a first page wider than the others
        other(257, 90_000),
        other(258, 64),
        other(259, 7),
        other(277, 2**31),
        other(278, 1),
        other(273, 2**32 - 1),
        other(279, 2**32 - 1),
        other(279, 2**31, offset=4),
        other(256, 322, offset=0),  # tiles instead of a width
        other(256, 12, offset=2),  # a width of another type
    ],
)
def test_pages_of_a_tiff(path: Path, change: Callable[[bytearray], None]) -> None:
    whole = path.with_suffix(".tif")
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(whole))
    data = bytearray(whole.read_bytes())
    change(data)
    whole.write_bytes(data)
    assert refusal(whole).startswith((DAMAGED, "must have one real number per voxel"))


@pytest.mark.parametrize("extension", [".mha", ".nii.gz", ".nrrd"])
def test_a_bomb(path: Path, extension: str) -> None:
    """Nothing that shrinks so much is a patient; a truth may."""
    bomb = path.with_suffix(extension)
    sitk.WriteImage(sitk.Image(300, 300, 100, sitk.sitkUInt8), str(bomb), useCompression=True)
    assert bomb.stat().st_size < 100_000
    assert refusal(bomb).startswith(
        "must not promise more than 100 times its length in voxels, got 36000000 bytes in "
    )
    assert read_image(bomb, trusted=True)[0].size == 9_000_000


HEADS = {
    "MetaImageIO": b"NDims = 3\nBinaryData = True\n",
    "NiftiImageIO": struct.pack("<i", 348) + bytes(36),
    "NrrdImageIO": b"NRRD0004\n",
    "TIFFImageIO": b"II*\0\x08\0\0\0",
}
LINES = st.lists(
    st.tuples(st.sampled_from([*META, *NRRD, "key:", "#"]), st.text(max_size=20)), max_size=9
).map(lambda pairs: "".join(f"{key}: {value}\n" for key, value in pairs).encode())


@pytest.mark.parametrize("reader", CHECKS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=400) | LINES)
def test_any_bytes_are_a_body_or_refused(path: Path, reader: str, body: bytes) -> None:
    path.write_bytes(HEADS[reader] + body)
    with contextlib.suppress(DamagedError, InputError):
        found = check_header(path, reader)
        assert found is None or isinstance(found, Body)
