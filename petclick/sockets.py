"""The platform's interface: where a job's inputs lie, and where its output goes.

The sockets of autoPET/CT IV and V. `inputs.json`, the platform's list of a job's sockets, is honoured where
it is there; what it does not name is looked for at the sockets' usual places.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from petclick.errors import InputError
from petclick.files import listing, read_json, require_file, shorten
from petclick.images import IMAGE_READERS, PARTIAL

logger = logging.getLogger(__name__)

OUTPUT_FOLDER = "images/tumor-lesion-segmentation"
"""Folder of the mask below the output folder."""

SOCKETS = {
    "ct": ("images/ct", {"ct", "ct-image"}),
    "pet": ("images/pet", {"pet", "pet-image"}),
    "clicks": ("lesion-clicks.json", {"lesion-clicks"}),
}
"""Role -> usual place below the input folder, and the slugs by which the platform may call the socket."""

MAX_PATH_CHARS = 1000
"""Of a relative path: an error's line should stay readable."""

_MOST_NAMES = 8


@dataclass(frozen=True)
class Inputs:
    """The files of one job; `clicks` is None where there is no click file."""

    ct: Path
    pet: Path
    clicks: Path | None


def find_inputs(input_dir: Path) -> Inputs:
    """Find a job's CT, PET and clicks.

    Raises:
        InputError: an image folder does not hold exactly one image, an input is not a regular file or lies
            outside `input_dir`, links included, or inputs.json is malformed or points outside.
    """
    places = {role: input_dir / usual for role, (usual, _) in SOCKETS.items()}
    if os.path.lexists(input_dir / "inputs.json"):
        places |= _listed_places(input_dir, input_dir / "inputs.json")
    clicks = places["clicks"] if os.path.lexists(places["clicks"]) else None
    if clicks is not None:
        _require_inside(input_dir, clicks)
        require_file(clicks)
    ct, pet = (_only_image(input_dir, places[role]) for role in ("ct", "pet"))
    return Inputs(ct, pet, clicks)


def output_path(output_dir: Path, case_name: str) -> Path:
    """Where the mask of a case goes."""
    return output_dir / OUTPUT_FOLDER / f"{case_name}.mha"


def make_room(target: Path) -> None:
    """Leave no other image in the folder where a mask is about to be written: the platform expects one.

    What a killed run left half-written is removed; another case's mask is kept, as `NAME.mha.old`.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        for entry in sorted(target.parent.iterdir()) if target.parent.is_dir() else []:
            if PARTIAL.fullmatch(entry.name):
                entry.unlink()
            elif entry.name.lower().endswith(tuple(IMAGE_READERS)) and entry.name != target.name:
                entry.replace(entry.with_name(f"{entry.name}.old"))
                logger.warning("%s: the folder is for one mask; renamed to %s.old", entry, entry.name)
    except OSError as error:
        raise InputError(target, f"cannot be written ({error.strerror})") from error


def _listed_places(input_dir: Path, inputs_json: Path) -> dict[str, Path]:
    """Role -> path for the sockets in inputs.json that are ours; others are the platform's own business."""
    content = read_json(inputs_json)
    if not isinstance(content, list):
        raise InputError(inputs_json, "must be a list with an object per socket", shorten(content))
    bad: list[str] = []
    places: dict[str, Path] = {}
    for number, entry in enumerate(content):
        fields = entry if isinstance(entry, dict) else {}
        socket = fields.get("socket", fields.get("interface"))  # the platform's older name for a socket
        socket = socket if isinstance(socket, dict) else {}
        slug, relative = socket.get("slug"), socket.get("relative_path")
        if not (isinstance(slug, str) and isinstance(relative, str)):
            bad.append(f"[{number}] must have a socket with slug and relative_path, got {shorten(entry)}")
            continue
        role = _role(slug, relative)
        if role is None:
            continue
        if role in places:
            bad.append(f"[{number}] must not be a second socket for {role!r}, got {shorten(slug)}")
        if len(relative) > MAX_PATH_CHARS or not _stays_inside(input_dir, relative):
            bad.append(f"[{number}] relative_path must stay in the input folder, got {shorten(relative)}")
        places[role] = input_dir / relative
    if bad:
        raise InputError(inputs_json, listing(bad))
    return places


def _role(slug: str, relative: str) -> str | None:
    roles = (role for role, (usual, slugs) in SOCKETS.items() if slug in slugs or relative == usual)
    return next(roles, None)


def _stays_inside(input_dir: Path, relative: str) -> bool:
    if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
        return False
    try:  # links may lead out
        return (input_dir / relative).resolve().is_relative_to(input_dir.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL byte
        return False


def _require_inside(input_dir: Path, path: Path) -> None:
    if not _stays_inside(input_dir, str(path.relative_to(input_dir))):
        raise InputError(path, "must stay in the input folder, but a link leads out of it")


def _only_image(input_dir: Path, folder: Path) -> Path:
    _require_inside(input_dir, folder)
    rule = f"must be a folder with exactly one image ({', '.join(IMAGE_READERS)})"
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(folder, rule, f"'{error.strerror}'") from error
    images = [entry for entry in entries if entry.name.lower().endswith(tuple(IMAGE_READERS))]
    if len(images) != 1:
        names = listing([entry.name for entry in images or entries], _MOST_NAMES)
        raise InputError(folder, rule, f"{len(images)}: {names}" if entries else "an empty folder")
    _require_inside(input_dir, images[0])
    require_file(images[0])
    return images[0]
