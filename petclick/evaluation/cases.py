"""Cases with a ground truth: where their files lie, and what is in them.

Finding names the files; reading checks them. A case with a bad or missing file is thus found like the others,
and fails on its own.
"""

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet, load_clicks
from petclick.errors import InputError
from petclick.evaluation.protocol import challenge_clicks
from petclick.files import listing, require_file
from petclick.grid import Grid
from petclick.images import IMAGE_READERS, Case, case_name, describe, read_case, read_image
from petclick.sockets import find_inputs

Mask = npt.NDArray[np.uint8]

CSV_COLUMNS = ("ct", "pet", "truth")
CSV_OPTIONAL = ("clicks", "name")


@dataclass(frozen=True)
class CaseFiles:
    """One case's files, found but not looked into; `clicks` is None where they are to be simulated."""

    name: str
    ct: Path
    pet: Path
    truth: Path
    clicks: Path | None = None


@dataclass(frozen=True)
class ChallengeFolder:
    """A case in the challenge's layout, as /input has it, with its truth in truth/<CT's name>.mha."""

    name: str
    folder: Path


@dataclass(frozen=True)
class TruthCase:
    """A case, its lesion mask (z, y, x) of {0, 1} on the case's grid, and its clicks in their order."""

    case: Case
    truth: Mask
    clicks: ClickSet


AnyCase = CaseFiles | ChallengeFolder


def find_cases(path: Path) -> list[AnyCase]:
    """Find the cases of a data set, by name.

    Args:
        path: one of these.
            A case folder in the challenge's layout (images/ct, images/pet, lesion-clicks.json), or a folder
            of such; a case is called as its folder.
            An nnU-Net raw data set: imagesTr/<name>_0000 is CT, _0001 PET, labelsTr/<name> the truth, and
            clicksTr/<name>_clicks.json, as the organisers name them, the clicks if they are there.
            A CSV with columns ct, pet, truth and optionally clicks and name; paths are relative to it, and a
            case without a name is called as its CT.

    Raises:
        InputError: there is no case, a bad CSV, or a name that comes twice.
    """
    if path.suffix.lower() == ".csv":
        cases: list[AnyCase] = [*_csv_cases(path)]
    elif not path.is_dir():
        raise InputError(path, "must be a folder of cases or a CSV")
    elif (path / "imagesTr").is_dir():
        cases = [*_nnunet_cases(path)]
    elif (path / "images").is_dir():
        cases = [ChallengeFolder(path.resolve().name, path)]
    else:
        cases = [ChallengeFolder(each.name, each) for each in path.iterdir() if (each / "images").is_dir()]
    if not cases:
        raise InputError(
            path, "must hold cases: images/ in each folder, imagesTr/ and labelsTr/, or a CSV's rows"
        )
    unfit = [case.name for case in cases if Path(case.name).name != case.name]
    if unfit:
        raise InputError(path, "must give cases names that can be file names", listing(unfit))
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if twice:
        raise InputError(path, "must give each case a name of its own", listing(twice))
    return sorted(cases, key=lambda case: case.name)


def read_truth_case(found: AnyCase) -> TruthCase:
    """Read a case; clicks are simulated by the official scheme where there is no file, or none in it.

    Raises:
        InputError: a file is missing or refused, the mask lies on another grid than PET or holds more than 0
            and 1, or a click lies outside.
    """
    files = _challenge_files(found) if isinstance(found, ChallengeFolder) else found
    case = read_case(files.ct, files.pet)
    truth, grid = read_mask(files.truth)
    require_same_grid(files.truth, grid, case.grid, "PET")
    if files.clicks is not None:
        require_file(files.clicks)
    clicks = load_clicks(files.clicks, case.grid)
    return TruthCase(case, truth, clicks if len(clicks) else challenge_clicks(truth, case.pet_suv))


def read_mask(path: Path) -> tuple[Mask, Grid]:
    """Read a mask of {0, 1} as uint8 (z, y, x), and its grid; any format that SimpleITK reads.

    Raises:
        InputError: the image is refused (`read_image`), or holds other values.
    """
    array, grid = read_image(path, trusted=True)
    mask = array == 1
    others = np.unique(array[~mask & (array != 0)])
    if len(others):
        raise InputError(path, "must hold only 0 and 1", ", ".join(f"{value:g}" for value in others[:5]))
    return mask.astype(np.uint8), grid


def require_same_grid(path: Path, grid: Grid, other: Grid, whose: str) -> None:
    """Raise InputError unless the grid of `path` is `other`, the grid of `whose`."""
    if not grid.matches(other):
        raise InputError(path, f"must lie on the grid of {whose} ({describe(other)})", describe(grid))


def _challenge_files(found: ChallengeFolder) -> CaseFiles:
    inputs = find_inputs(found.folder)
    truth = found.folder / "truth" / f"{case_name(inputs.ct)}.mha"
    return CaseFiles(found.name, inputs.ct, inputs.pet, truth, inputs.clicks)


def _nnunet_cases(dataset: Path) -> list[CaseFiles]:
    images, labels = dataset / "imagesTr", dataset / "labelsTr"
    names = {stem[:-5] for stem in _stems(images) if stem.endswith(("_0000", "_0001"))} | set(_stems(labels))
    cases = []
    for name in names:
        clicks = dataset / "clicksTr" / f"{name}_clicks.json"
        cases.append(
            CaseFiles(
                name,
                ct=_with_extension(images, f"{name}_0000"),
                pet=_with_extension(images, f"{name}_0001"),
                truth=_with_extension(labels, name),
                clicks=clicks if os.path.lexists(clicks) else None,
            )
        )
    return cases


def _stems(folder: Path) -> list[str]:
    """Names of a folder's images, without extension."""
    files = folder.iterdir() if folder.is_dir() else []
    return [case_name(file) for file in files if file.name.lower().endswith(tuple(IMAGE_READERS))]


def _with_extension(folder: Path, stem: str) -> Path:
    """The image of that name; nnU-Net's usual one where there is none, for the message."""
    paths = [folder / f"{stem}{extension}" for extension in IMAGE_READERS]
    return next((path for path in paths if path.is_file()), folder / f"{stem}.nii.gz")


def _csv_cases(path: Path) -> list[CaseFiles]:
    require_file(path)
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"must be a CSV in UTF-8 ({error})") from error
    columns = reader.fieldnames or []
    if not {*CSV_COLUMNS} <= {*columns} <= {*CSV_COLUMNS, *CSV_OPTIONAL}:
        rule = f"must have the columns {', '.join(CSV_COLUMNS)}, and may have {', '.join(CSV_OPTIONAL)}"
        raise InputError(path, rule, ", ".join(columns))
    bad = [
        f"row {number}"
        for number, row in enumerate(rows, 1)
        if not all(row[column] for column in CSV_COLUMNS) or None in row
    ]
    if bad:
        raise InputError(
            path, "must name ct, pet and truth in each row, and no more cells than columns", listing(bad)
        )
    return [
        CaseFiles(
            name=row.get("name") or case_name(Path(row["ct"])),
            ct=path.parent / row["ct"],
            pet=path.parent / row["pet"],
            truth=path.parent / row["truth"],
            clicks=path.parent / row["clicks"] if row.get("clicks") else None,
        )
        for row in rows
    ]
