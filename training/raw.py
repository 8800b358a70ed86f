"""nnU-Net's raw layout: cases written whole or not at all, the description, and folds.

A data set is `$nnUNet_raw/DatasetNNN_NAME` with imagesTr/CASE_0000 (CT) and _0001 (PET), labelsTr/CASE and,
for cases with organ masks, labelsTr_organs/CASE. Cases of several sources can share one data set.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from petclick.errors import InputError
from petclick.files import read_json, require_file, shorten
from petclick.grid import Grid
from petclick.images import AIR_HU, Case, describe, to_grid, write_image
from petclick.orientation import orient

Mask = npt.NDArray[np.uint8]

ENDING = ".nii.gz"
ORIENTATION = "orientation.json"
"""Beside dataset.json; tells how the cases lie: an axis code, or null for each as its source stored it."""
SPLITS = "splits_final.json"
"""Folds, as nnU-Net names their file; beside dataset.json where an archive brings its own."""
N_FOLDS = 5


class RawDataset:
    """One data set below nnUNet_raw."""

    def __init__(self, name: str) -> None:
        """Name it; nothing is made yet.

        Raises:
            InputError: the name is not nnU-Net's `DatasetNNN_NAME`, its number is another data set's, or
                nnUNet_raw is not set.
        """
        require_name(name)
        self.folder = nnunet_folder("nnUNet_raw") / name

    def files(self, case: str, organs: bool) -> dict[str, Path]:
        """Where a case's files lie: 'ct', 'pet', 'lesions' and, if it has that mask, 'organs'."""
        files = {
            "ct": self.folder / "imagesTr" / f"{case}_0000{ENDING}",
            "pet": self.folder / "imagesTr" / f"{case}_0001{ENDING}",
            "lesions": self.folder / "labelsTr" / f"{case}{ENDING}",
        }
        if organs:
            files["organs"] = self.folder / "labelsTr_organs" / f"{case}{ENDING}"
        return files

    def cases(self) -> list[str]:
        """Names of the cases that are whole, sorted."""
        labels = [path.name for path in (self.folder / "labelsTr").glob(f"*{ENDING}")]
        return sorted(name.removesuffix(ENDING) for name in labels)

    def has(self, case: str, organs: bool) -> bool:
        """Whether all files of a case are there; each was renamed when it was complete."""
        return all(path.is_file() for path in self.files(case, organs).values())

    def require_orientation(self, orientation: str | None) -> None:
        """Refuse an axis code (None: as stored) that is not that of the cases which are there.

        Raises:
            InputError: as `require_orientation`.
        """
        whole = [case for case in self.cases() if self.has(case, organs=False)]
        if whole:
            pets = (self.files(case, organs=False)["pet"] for case in whole)
            require_orientation(self.folder, pets, orientation)

    def note_orientation(self, orientation: str | None) -> None:
        """Write down how the cases lie; done before the first is added, lest a killed run leave no note."""
        write_json({"orientation": orientation}, self.folder / ORIENTATION)

    def add(
        self, case: Case, lesion: Mask, organs: Mask | None = None, orientation: str | None = None
    ) -> None:
        """Write one case, its lesion mask last.

        Args:
            case: CT and PET.
            lesion: uint8 (z, y, x) of {0, 1} on the case's grid.
            organs: likewise, of labels 0 to 10 (`training.organs`).
            orientation: axis code to which all are turned; None to keep the case's.

        Raises:
            InputError: a file cannot be written.
        """
        grid = case.grid if orientation is None else orient(case.grid, orientation)
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "ct": to_grid(case.ct_hu, case.grid, grid, AIR_HU),
            "pet": to_grid(case.pet_suv, case.grid, grid, 0.0),
        }
        masks = {"lesions": lesion} if organs is None else {"organs": organs, "lesions": lesion}
        arrays |= {name: to_grid(mask, case.grid, grid, 0, linear=False) for name, mask in masks.items()}
        self.put(case.name, {name: partial(write_image, array, grid) for name, array in arrays.items()})

    def put(self, case: str, makers: Mapping[str, Callable[[Path], None]]) -> None:
        """Let each maker make its file, 'ct', 'pet', 'organs' or 'lesions'; then name them, lesions last."""
        files = self.files(case, "organs" in makers)
        with partial_folder(self.folder, case) as folder:
            for name, make in makers.items():
                (folder / name).mkdir()
                make(folder / name / files[name].name)
            for name in files:
                files[name].parent.mkdir(parents=True, exist_ok=True)
            for name in sorted(files, key=lambda name: name == "lesions"):
                (folder / name / files[name].name).replace(files[name])

    def describe(self) -> None:
        """Write dataset.json for the cases that are there now."""
        content = {
            # Both channels get CTNormalization, as in the autoPET plans (arXiv 2409.09478).
            "channel_names": {"0": "CT", "1": "CT"},
            "labels": {"background": 0, "tumor": 1},
            "numTraining": len(self.cases()),
            "file_ending": ENDING,
        }
        write_json(content, self.folder / "dataset.json")


def nnunet_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Raises:
        InputError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise InputError(
            variable, "this environment variable must name a folder (nnU-Net's layout)", "nothing"
        )
    return Path(value)


def require_name(dataset: str) -> None:
    """Refuse what nnU-Net cannot take for a data set's name.

    Raises:
        InputError: it is not `DatasetNNN_NAME`, or a folder of nnU-Net's has its number with another name.
    """
    if not re.fullmatch(r"Dataset\d{3}_[\w.-]+", dataset):
        raise InputError("the data set", "must be named such as Dataset601_STS", dataset)
    number = dataset[: len("Dataset000")]
    for folder in (os.environ.get(f"nnUNet_{kind}") for kind in ("raw", "preprocessed", "results")):
        for other in sorted(Path(folder).glob(f"{number}*/")) if folder else ():
            if other.is_dir() and other.name != dataset:
                raise InputError(other, f"no other data set may have the number of {dataset}")


def require_orientation(folder: Path, images: Iterable[Path], orientation: str | None) -> None:
    """Refuse a raw data set whose cases lie otherwise than inference will turn its cases.

    Args:
        folder: the data set.
        images: one of each case, looked at where the data set was made elsewhere and has no note.
        orientation: the settings' axis code; None for cases as they are stored.

    Raises:
        InputError: the note names another orientation, or an image lies otherwise or cannot be read.
    """
    note = folder / ORIENTATION
    if note.is_file():
        content = read_json(note)
        if content != {"orientation": orientation}:
            wanted = json.dumps({"orientation": orientation})
            raise InputError(note, f"must be {wanted}, as in the settings' guidance", json.dumps(content))
    elif orientation is not None:
        for image in images:
            grid = read_grid(image)
            if not orient(grid, orientation).matches(grid):
                rule = f"must lie as {orientation}, the orientation in the settings' guidance"
                raise InputError(image, rule, describe(grid))


def read_grid(path: Path) -> Grid:
    """Geometry of an image, from its header alone.

    Raises:
        InputError: the file cannot be read, or is not 3-D.
    """
    require_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(path, "must be an image that ITK can read") from error
    if reader.GetDimension() != 3:
        raise InputError(path, "must be 3-D", f"{reader.GetDimension()}-D")
    return Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


@contextmanager
def partial_folder(folder: Path, name: str) -> Iterator[Path]:
    """A hidden folder in `folder` for the half-written files of one case; removed afterwards."""
    place = folder / ".partial" / name
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place)
        with suppress(OSError):  # another process is at work there
            place.parent.rmdir()


def write_json(content: object, path: Path) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    part.replace(path)


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """Folds as nnU-Net has them: a list of {'train', 'val'}.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    splits = read_json(path)
    folds: list[Any] = splits if isinstance(splits, list) and splits else [None]
    names = [fold.get(key) if isinstance(fold, dict) else None for fold in folds for key in ("train", "val")]
    if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in names):
        rule = "must be a list of folds, each with lists of names 'train' and 'val'"
        raise InputError(path, rule, shorten(splits))
    return folds


def patient_of(case: str) -> str:
    """A case's patient: the name without the study's date and what follows it, as autoPET's names have it.

    psma_aa11_2018-04-23 is of psma_aa11, fdg_01_03-23-2003-NA-PET-CT of fdg_01; other names are their own.
    """
    return re.sub(r"_(\d{4}-\d\d-\d\d|\d\d-\d\d-\d{4})(?!\d).*$", "", case)


def spread_splits(cases: list[str], base: list[dict[str, list[str]]]) -> list[dict[str, list[str]]]:
    """Folds over all cases: those of `base` stay in their fold, the others are dealt out evenly, by patient.

    Patients that differ only in their last number (phantom_fdg_0001, phantom_fdg_0002) are of one kind; each
    kind is dealt out by itself, to the folds that hold fewest. A new case of a patient whom `base` has goes
    to that patient's fold.

    Args:
        cases: all names; those of `base` that are not among them are left out.
        base: folds as nnU-Net has them, each case once in 'val'; empty for `N_FOLDS` new ones.

    Returns:
        A list of {'train', 'val'}, sorted names, equal for equal arguments.
    """
    held_out = [[case for case in split["val"] if case in cases] for split in base]
    held_out = held_out or [[] for _ in range(N_FOLDS)]
    fold_of = {patient_of(case): fold for fold in held_out for case in fold}
    kinds: dict[str, dict[str, list[str]]] = {}
    for case in sorted(set(cases) - {case for fold in held_out for case in fold}):
        patient = patient_of(case)
        if patient in fold_of:
            fold_of[patient].append(case)
        else:
            kind = kinds.setdefault(re.sub(r"\d+$", "", patient), {})
            kind.setdefault(patient, []).append(case)
    for patients in kinds.values():
        smallest_first = sorted(held_out, key=len)
        for place, studies in enumerate(patients.values()):
            smallest_first[place % len(held_out)].extend(studies)
    return [{"train": sorted(set(cases) - set(fold)), "val": sorted(fold)} for fold in held_out]
