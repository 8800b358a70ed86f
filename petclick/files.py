"""Checks of a file before its content is believed, and JSON that is read strictly.

Shared by everything that reads what a user or the platform hands over.
"""

import json
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from petclick.errors import InputError

MAX_VALUE_CHARS = 60
"""Longest text of one received value in a message."""

MAX_JSON_BYTES = 4_000_000
"""Longest JSON file: 25,000 clicks in the platform's form, one number per line."""

_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = _repr.maxlong = MAX_VALUE_CHARS


class DamagedError(Exception):
    """Says what is wrong inside a file; its reader adds the file's name."""


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
        InputError: the file cannot be read, is too long, is not UTF-8, is not JSON, or is nested too deeply.
    """
    require_file(path)
    try:
        if (n_bytes := path.stat().st_size) > MAX_JSON_BYTES:
            raise InputError(path, f"must have at most {MAX_JSON_BYTES} bytes", n_bytes)
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
