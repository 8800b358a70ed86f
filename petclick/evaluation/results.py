"""metrics.csv: a row for each case, method and step, written so that a killed run loses nothing.

The rows of a case are appended in one piece; what a kill leaves of a torn row is not read.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_type_hints

from petclick.errors import InputError
from petclick.files import listing, require_file

METHODS = ("network", "growing41", "growing50", "suv2.5", "suv4")
"""The model, region growing from the clicks at 41 and 50 % of the local SUVmax, fixed SUV thresholds."""


@dataclass(frozen=True)
class StepResult:
    """One prediction, scored; NaN where a figure is not defined.

    fold: the fold that held the case out, empty without cross-validation. tumor_clicks, background_clicks:
    given so far (voxels, for scribbles). truth_ml: volume of the lesions. dice to dmm_f1: `metrics.Score`.
    surface_dice, hd95_mm: `metrics.SurfaceScore`. volume_error_ml: predicted minus true. tumor_obeyed,
    background_obeyed: share of the clicks given whose voxel is in the mask, and not in it.
    """

    case: str
    fold: str
    method: str
    protocol: str
    step: int
    tumor_clicks: int
    background_clicks: int
    truth_ml: float
    dice: float
    fpv_ml: float
    fnv_ml: float
    tp: int
    fp: int
    fn: int
    dmm_f1: float
    surface_dice: float
    hd95_mm: float
    volume_error_ml: float
    tumor_obeyed: float
    background_obeyed: float


@dataclass(frozen=True)
class Failure:
    """A case that a method could not be scored on, and why."""

    case: str
    fold: str
    method: str
    protocol: str
    error: str


Result = StepResult | Failure

COLUMNS = (*(field.name for field in fields(StepResult)), "error")


def append_results(path: Path, results: Sequence[Result]) -> None:
    """Add rows to the file in one write, and wait until they are on the disk."""
    data = _text(results, header=not path.is_file() or path.stat().st_size == 0).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Replace the file as a whole, rows in order of fold, case, method and step."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(_text(sorted(results, key=_order), header=True), "utf-8", newline="")
    partial.replace(path)


def read_results(path: Path) -> list[Result]:
    """The rows of a file; none where it is missing, and without a torn last one.

    Raises:
        InputError: the file is not a metrics.csv.
    """
    if not os.path.lexists(path):
        return []
    require_file(path)
    try:
        text = path.read_bytes().decode()
        whole = text[: text.rfind("\n") + 1]
        header, *rows = csv.reader(io.StringIO(whole), strict=True) if whole else [list(COLUMNS)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"must be a metrics.csv of this program ({error})") from error
    if tuple(header) != COLUMNS:
        missing = [column for column in COLUMNS if column not in header]
        raise InputError(path, f"must have the columns {', '.join(COLUMNS)}", f"none of {listing(missing)}")
    try:
        return [_result(dict(zip(COLUMNS, row, strict=True))) for row in rows]
    except ValueError as error:
        raise InputError(path, f"must be a metrics.csv of this program ({error})") from error


def _order(result: Result) -> tuple[int, str, int, int]:
    fold = int(result.fold) if result.fold else -1
    step = result.step if isinstance(result, StepResult) else -1
    return fold, result.case, METHODS.index(result.method), step


def _text(results: Iterable[Result], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    for result in results:
        row = asdict(result)
        writer.writerow({name: "" if value != value else value for name, value in row.items()})
    return text.getvalue()


def _result(row: dict[str, str]) -> Result:
    if row["error"]:
        return Failure(**{field.name: row[field.name] for field in fields(Failure)})
    kinds = get_type_hints(StepResult)
    return StepResult(
        **{name: kind(row[name] or "nan" if kind is float else row[name]) for name, kind in kinds.items()}
    )
