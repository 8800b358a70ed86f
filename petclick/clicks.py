"""Clicks on a case's grid, and the click JSON in its two forms."""

import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from petclick.errors import InputError
from petclick.files import listing, read_json, shorten
from petclick.grid import FloatArray, Grid, apply_affine, to_voxels

logger = logging.getLogger(__name__)

KINDS = ("tumor", "background")
"""The two kinds of click; a click's `kind` is its place here, and so the order of the channels."""

PLATFORM_TYPE = "Multiple points"
"""What the platform's form says under `type`."""

BadClicks = Literal["error", "warn"]
"""What to do about clicks outside the volume: refuse the file, or leave them out with a warning each."""

MOST_WARNINGS = 200
"""Lines about clicks that were left out; the platform keeps 500 lines in all."""

_Entry = tuple[str, int, list[float]]
"""One click of a file: its place in the file, its kind, its (x, y, z) index."""


@dataclass(frozen=True)
class ClickSet:
    """Clicks on one grid: `index_zyx` (N, 3) int64 voxels, `kind` (N,) int64, an index into `KINDS`."""

    index_zyx: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of clicks."""
        return len(self.kind)

    def of_kind(self, name: str) -> npt.NDArray[np.int64]:
        """(M, 3) voxels of one kind, 'tumor' or 'background', in the order given."""
        return self.index_zyx[np.flatnonzero(self.kind == KINDS.index(name))]

    def mapped(self, matrix: FloatArray, shape_zyx: tuple[int, int, int]) -> "ClickSet":
        """The same clicks on another grid: the nearest voxels there, kept inside it.

        The only place where clicks change frames; `matrix` (4 x 4) takes these indices to the other grid's.
        """
        return ClickSet(to_voxels(apply_affine(matrix, self.index_zyx), shape_zyx), self.kind)

    def summary(self) -> str:
        """How many of each kind, for log lines."""
        return ", ".join(f"{np.count_nonzero(self.kind == i)} {name} clicks" for i, name in enumerate(KINDS))


def click_set(tumor: npt.ArrayLike, background: npt.ArrayLike) -> ClickSet:
    """Make a ClickSet of two (N, 3) lists of voxels in (z, y, x)."""
    parts = [np.reshape(np.asarray(points, dtype=np.int64), (-1, 3)) for points in (tumor, background)]
    return ClickSet(np.concatenate(parts), np.repeat(np.arange(len(KINDS)), [len(part) for part in parts]))


def load_clicks(path: Path | None, grid: Grid, bad_clicks: BadClicks = "error") -> ClickSet:
    """Read a click file in the platform's form or in the data sets' form.

    The platform's form is `{"type": "Multiple points", "points": [{"point": [x, y, z], "name": "tumor"}]}`,
    the data sets' `{"tumor": [[x, y, z], ...], "background": [...]}`. Coordinates are voxel indices in ITK's
    order, floats allowed: they must lie within the volume's faces, -0.5 <= i < n - 0.5, and are then rounded,
    halves up. A click's `probability` and `type`, and the file's `version`, have no bearing here.

    Args:
        path: the file; None or a missing file means no clicks, as does an empty list.
        grid: the grid that the indices refer to.
        bad_clicks: 'error' refuses a file with clicks outside the volume, 'warn' leaves those clicks out with
            one warning each, up to `MOST_WARNINGS`. Anything else that is wrong with a file is refused in
            either case.

    Returns:
        The clicks, in the order of the file.

    Raises:
        InputError: the file is not as above; one message lists every bad entry.
    """
    if path is None or not os.path.lexists(path):
        return click_set([], [])
    content = read_json(path)
    bad: list[str] = []
    entries = _entries(content, bad)
    index_xyz = np.array([entry[2] for entry in entries], dtype=np.float64).reshape(-1, 3)
    inside = grid.contains(index_xyz[:, ::-1])
    rule = f"must lie in the volume of {' x '.join(map(str, grid.size_xyz))} voxels (x, y, z)"
    outside = [f"{entries[i][0]} {rule}, got {shorten(entries[i][2])}" for i in np.flatnonzero(~inside)]
    if bad_clicks == "error":
        bad += outside
    if bad:
        raise InputError(path, f"{len(bad)} bad {'entry' if len(bad) == 1 else 'entries'}: {listing(bad)}")
    for text in outside[:MOST_WARNINGS]:
        logger.warning("%s: %s: left out", path, text)
    if len(outside) > MOST_WARNINGS:
        logger.warning("%s: and %d more, left out likewise", path, len(outside) - MOST_WARNINGS)
    kind = np.array([entry[1] for entry in entries], dtype=np.int64)
    return ClickSet(to_voxels(index_xyz[inside][:, ::-1], grid.shape_zyx), kind[inside])


def save_clicks(clicks: ClickSet, path: Path) -> None:
    """Write clicks in the platform's form, (x, y, z).

    Raises:
        InputError: the file cannot be written.
    """
    points = [
        {"point": index_xyz, "name": KINDS[kind]}
        for index_xyz, kind in zip(clicks.index_zyx[:, ::-1].tolist(), clicks.kind, strict=True)
    ]
    content = {"version": {"major": 1, "minor": 0}, "type": PLATFORM_TYPE, "points": points}
    try:
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(path, f"cannot be written ({error.strerror})") from error


def _entries(content: object, bad: list[str]) -> list[_Entry]:
    """The well-formed clicks of a file; what is wrong with the others goes to `bad`."""
    if content == []:  # an empty list means no clicks, with or without the form around it
        return []
    if not isinstance(content, dict) or not content.keys() & {"points", *KINDS}:
        bad.append(f"must be an object with 'points', or with {_either(KINDS)}, got {shorten(content)}")
        return []
    if "points" in content:
        return _platform_entries(content, bad)
    return _dataset_entries(content, bad)


def _platform_entries(content: dict[str, object], bad: list[str]) -> list[_Entry]:
    bad += [f"{key!r} must not stand beside 'points'" for key in KINDS if key in content]
    if content.get("type", PLATFORM_TYPE) != PLATFORM_TYPE:
        bad.append(f"type must be {PLATFORM_TYPE!r}, got {shorten(content['type'])}")
    entries: list[_Entry] = []
    for place, value in _items("points", content["points"], bad):
        if not isinstance(value, dict):
            bad.append(f"{place} must be an object with 'point' and 'name', got {shorten(value)}")
            continue
        name = value.get("name")
        if name not in KINDS:
            bad.append(f"{place}.name must be {_either(KINDS)}, got {shorten(name)}")
        point = _point(f"{place}.point", value.get("point"), bad)
        if name in KINDS and point is not None:
            entries.append((place, KINDS.index(name), point))
    return entries


def _dataset_entries(content: dict[str, object], bad: list[str]) -> list[_Entry]:
    entries: list[_Entry] = []
    for key, values in content.items():
        if key not in KINDS:
            bad.append(f"key must be {_either(KINDS)}, got {shorten(key)}")
            continue
        for place, value in _items(key, values, bad):
            point = _point(place, value, bad)
            if point is not None:
                entries.append((place, KINDS.index(key), point))
    return entries


def _items(key: str, values: object, bad: list[str]) -> list[tuple[str, object]]:
    if not isinstance(values, list):
        bad.append(f"{key} must be a list, got {shorten(values)}")
        return []
    return [(f"{key}[{index}]", value) for index, value in enumerate(values)]


def _point(place: str, value: object, bad: list[str]) -> list[float] | None:
    if isinstance(value, list) and len(value) == 3 and all(map(_is_finite_number, value)):
        return value
    bad.append(f"{place} must be three finite numbers [x, y, z], got {shorten(value)}")
    return None


def _is_finite_number(value: object) -> bool:
    # a comparison is false for NaN, and exact for integers too large for a float
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(map(repr, names))
