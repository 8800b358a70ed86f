"""What the pages of a TIFF say, checked before ITK's reader sees them.

That reader takes its memory by the first page and trusts the others to be alike, which is how a changed byte
makes it write past the end. One page of grey voxels in strips for each slice is what it writes itself.
"""

import os
import struct
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from petclick.errors import InputError
from petclick.files import DamagedError

MAX_PAGES = 10_000
MAX_ENTRIES = 100
"""Of a page; ITK writes about 15."""
MAX_VALUES = 65_536
"""Of an entry: as many as an image may have rows."""

LAYOUTS = {42: (4, "H", "I"), 43: (8, "Q", "Q")}
"""Version (plain, BigTIFF) -> where the first page's offset is, type of a page's count, type of offsets."""
INTEGERS = {3: "u2", 4: "u4", 16: "u8"}
"""Type of an entry -> NumPy's, for whole numbers."""
ABSENT = -1
ALIKE = {
    "subfile": (254, ABSENT),
    "width": (256, 0),
    "height": (257, 0),
    "bits": (258, 1),
    "compression": (259, 1),
    "photometric": (262, ABSENT),
    "fill order": (266, 1),
    "orientation": (274, 1),
    "samples": (277, 1),
    "rows per strip": (278, 2**32 - 1),
    "planar": (284, 1),
    "predictor": (317, 1),
    "format": (339, 1),
}
"""What must be the same on every page -> its tag, and what holds without it."""
ALLOWED = {
    "subfile": (ABSENT, 0, 2),  # a full image, a page of many
    "compression": (1, 5, 8, 32773, 32946),  # none, LZW, Deflate, PackBits, the older code of Deflate
    "photometric": (0, 1),  # grey
    "fill order": (1,),
    "orientation": (1, 4),  # the first row is at the top, or at the bottom
    "planar": (1, 2),
    "predictor": (1, 2, 3),
}
VOXELS = {(8, 1), (8, 2), (16, 1), (16, 2), (32, 1), (32, 2), (32, 3)}
"""Bits and format: 1 unsigned, 2 signed, 3 float."""
STRIPS = (273, 279)
"""Where each strip of rows is, and how many bytes it has."""
TILES = (322, 323, 324, 325)
TAGS = {*STRIPS, *TILES, *(tag for tag, _ in ALIKE.values())}

_Page = dict[int, list[int]]
"""Tag -> whole numbers."""


def check_tiff(file: IO[bytes]) -> None:
    """Check that all pages are alike, of a kind that ITK reads, and whole.

    Raises:
        DamagedError: they are not.
        InputError: there are several numbers per voxel.
        struct.error: a page is cut off; ValueError, OverflowError: it lies or reaches beyond the file.
    """
    first: dict[str, int] = {}
    for number, page in enumerate(_pages(file), start=1):
        values = {name: _only(page.get(tag, [default])) for name, (tag, default) in ALIKE.items()}
        first = first or values
        if values != first:
            raise DamagedError(f"page {number} differs from the first")
        if values["samples"] != 1:
            raise InputError(file.name, "must have one real number per voxel", values["samples"])
        _check_page(page, values, os.fstat(file.fileno()).st_size)


def _pages(file: IO[bytes]) -> Iterator[_Page]:
    """The entries that matter, page by page.

    The chain must come to its end: ITK takes one that breaks off as a volume of fewer slices.
    """
    order = ">" if file.read(2) == b"MM" else "<"

    def read(form: str) -> Any:
        return struct.unpack(order + form, file.read(struct.calcsize(order + form)))

    (version,) = read("H")
    if version not in LAYOUTS:
        raise DamagedError("it is not a TIFF")
    start, count_form, offset_form = LAYOUTS[version]
    inline_bytes = struct.calcsize(order + offset_form)
    file.seek(start)
    (place,) = read(offset_form)
    seen: set[int] = set()
    while place:
        if place in seen or len(seen) == MAX_PAGES:
            raise DamagedError(f"its pages form a ring, or are more than {MAX_PAGES}")
        seen.add(place)
        file.seek(place)
        (count,) = read(count_form)
        if not 0 < count <= MAX_ENTRIES:
            raise DamagedError(f"a page must have 1 to {MAX_ENTRIES} entries, not {count}")
        table = [(*read("HH" + offset_form), file.tell(), *read(offset_form)) for _ in range(count)]
        (place,) = read(offset_form)
        page: _Page = {}
        for tag, kind, n_values, inline_place, far_place in table:
            if tag not in TAGS:
                continue
            if tag in page or kind not in INTEGERS or not 0 < n_values <= MAX_VALUES:
                raise DamagedError(
                    f"tag {tag} of a page must come once, with 1 to {MAX_VALUES} whole numbers"
                )
            form = np.dtype(order + INTEGERS[kind])
            file.seek(inline_place if n_values * form.itemsize <= inline_bytes else far_place)
            page[tag] = np.frombuffer(file.read(n_values * form.itemsize), form, n_values).tolist()
        yield page


def _only(values: list[int]) -> int:
    if len({*values}) > 1:
        raise DamagedError("an entry of a page has several values")
    return values[0]


def _check_page(page: _Page, values: dict[str, int], file_bytes: int) -> None:
    odd = [f"{name} {values[name]}" for name, allowed in ALLOWED.items() if values[name] not in allowed]
    if (values["bits"], values["format"]) not in VOXELS:
        odd.append(f"{values['bits']} bits of format {values['format']}")
    if any(tag in page for tag in TILES):
        odd.append("tiles")
    if odd:
        raise DamagedError(f"a TIFF with {', '.join(odd)} is not supported")
    height = values["height"]
    n_strips = -(-height // max(1, min(height, values["rows per strip"])))
    places, lengths = (page.get(tag, []) for tag in STRIPS)
    if not len(places) == len(lengths) == n_strips > 0:
        raise DamagedError("a page must say where each strip of its rows is")
    whole = all(place + length <= file_bytes for place, length in zip(places, lengths, strict=True))
    stored = values["compression"] != 1 or sum(lengths) >= values["width"] * height * values["bits"] // 8
    if not (whole and stored):
        raise DamagedError("it ends before its last voxel")
