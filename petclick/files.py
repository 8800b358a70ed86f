"""Checks of a file before its content is believed, and JSON that is read strictly.

Shared by everything that reads what a user or the platform hands over.
"""

import gzip
import json
import os
import re
import reprlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from petclick.errors import InputError

MAX_VALUE_CHARS = 60
"""Longest text of one received value in a message."""

NIFTI_HEADER_BYTES = 352
"""Smallest header of a single-file NIfTI-1; the voxels come after it."""

META_HEADER_BYTES = 4096
"""How far into a MetaImage its number of axes is looked for; it is among the first lines."""

_GZIP_CHUNK_BYTES = 1 << 20
_TIFF_LAYOUTS = {42: (4, "H", 12, "I"), 43: (8, "Q", 20, "Q")}
"""Version (plain, BigTIFF) -> where the first offset is, count type, bytes per entry, offset type."""

_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = _repr.maxlong = MAX_VALUE_CHARS


@dataclass(frozen=True)
class RepeatedKey:
    """Stands for a JSON object in which one key comes twice; being no dict, it fails every type check."""

    key: str

    def __repr__(self) -> str:
        """What a message shows as the received value."""
        return f"an object with {self.key!r} twice"


def shorten(value: object) -> str:
    """`repr` of a received value, at most `MAX_VALUE_CHARS` long however deep or large the value is."""
    text = _repr.repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."


def listing(items: Sequence[str], most: int = 20) -> str:
    """The items in one readable line: the first `most`, then how many more there are."""
    rest = len(items) - most
    return "; ".join(items[:most]) + (f"; and {rest} more" if rest > 0 else "")


def require_file(path: Path) -> None:
    """Raise InputError unless `path` is a regular file or a link to one: reading a pipe might never end."""
    try:
        regular = path.is_file()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})") from error
    if not regular:
        raise InputError(path, "must be a regular file")


def require_writable(folder: Path) -> None:
    """Raise InputError unless files can be made in `folder`, or it can be made itself.

    Asked before minutes are spent on a result; makes nothing, so that a run that fails leaves nothing.
    """
    parent = folder
    while not os.path.lexists(parent) and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(folder, "must be a folder that can be written to", f"{parent}, which cannot")


def read_json(path: Path) -> object:
    """Read a JSON file in UTF-8, with or without a byte order mark.

    Objects become dicts, or `RepeatedKey` where a key comes twice. NaN and infinities are numbers here, as
    Python's parser has it: callers check that numbers are finite.

    Raises:
        InputError: the file cannot be read, is not UTF-8, is not JSON, or is nested too deeply.
    """
    require_file(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_object)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"must be JSON in UTF-8 ({error})") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object] | RepeatedKey:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            return RepeatedKey(key)
        found[key] = value
    return found


def meta_dimension(path: Path) -> int | None:
    """The number of axes that a MetaImage's header states, None where it states none.

    ITK's MetaImage reader writes past its buffers where the number is more than it reckons with.
    """
    with path.open("rb") as file:
        stated = re.search(rb"^\s*NDims\s*=\s*(\d{1,9})", file.read(META_HEADER_BYTES), re.MULTILINE)
    return int(stated[1]) if stated else None


def is_whole_nifti(path: Path, voxel_bytes: int, offset: int) -> bool:
    """Whether a .nii or .nii.gz holds `offset` + `voxel_bytes` bytes, and its compressed stream is intact.

    The NIfTI library fills what is missing with zeros and reports success, so a cut file needs its own check.
    """
    expected = max(offset, NIFTI_HEADER_BYTES) + voxel_bytes
    if not path.name.lower().endswith(".gz"):
        return path.stat().st_size >= expected
    found = 0
    try:
        with gzip.open(path) as stream:
            while chunk := stream.read(_GZIP_CHUNK_BYTES):
                found += len(chunk)
    except (EOFError, OSError, zlib.error):
        return False
    return found >= expected


def is_whole_tiff(path: Path) -> bool:
    """Whether the chain of a TIFF's pages comes to its end.

    ITK's reader takes a chain that breaks off as a volume of fewer slices, and reports success.
    """
    with path.open("rb") as file:

        def read(form: str) -> int:
            return int(struct.unpack(order + form, file.read(struct.calcsize(order + form)))[0])

        order = ">" if file.read(2) == b"MM" else "<"
        seen = {0}
        try:
            first, count_type, entry_bytes, offset_type = _TIFF_LAYOUTS[read("H")]
            file.seek(first)
            while (page := read(offset_type)) not in seen:
                seen.add(page)
                file.seek(page)
                file.seek(read(count_type) * entry_bytes, os.SEEK_CUR)
        except (KeyError, OSError, OverflowError, struct.error):
            return False
    return page == 0
