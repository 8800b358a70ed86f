"""autoPET's public data, an nnU-Net raw data set already, into a data set of nnUNet_raw, checked.

The archive (doi.org/10.57754/FDAT.6gjsg-zcg93, 120 GB, newest version on its page) holds imagesTr/CASE_0000
(CT resampled to PET) and _0001 (PET in SUV), labelsTr/CASE and splits_final.json. Click files of the
challenge (CASE_clicks.json) and organ masks by TotalSegmentator can come from folders beside it.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from petclick.clicks import load_clicks, save_clicks
from petclick.errors import InputError
from petclick.evaluation.cases import read_mask
from petclick.files import listing
from petclick.grid import Grid
from petclick.images import AIR_HU, describe, read_image, to_grid, write_image
from petclick.orientation import orient
from training.organs import ORGANS
from training.raw import ENDING, SPLITS, RawDataset, read_grid, read_splits, write_json

Mask = npt.NDArray[np.uint8]

ORGAN_FILE = "_seg_org"
"""Ends the names of organ masks that lie among some copies' labels; they are no cases."""
CHANNELS = ("_0000", "_0001")
"""End the names of CT and PET."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extras:
    """Folders beside the archive, None where there is none.

    organs: CASE.nii.gz of TotalSegmentator's task `total` (its flag `--ml`); glands: likewise of its task
    `head_glands_cavities`; clicks: CASE_clicks.json.
    """

    organs: Path | None = None
    glands: Path | None = None
    clicks: Path | None = None

    def mask(self, case: str) -> Path | None:
        """A case's organ mask; None where it has none."""
        path = self.organs / f"{case}{ENDING}" if self.organs else None
        return path if path and path.exists() else None

    def click_file(self, case: str) -> Path | None:
        """A case's clicks; None where it has none."""
        path = self.clicks / f"{case}_clicks.json" if self.clicks else None
        return path if path and path.exists() else None


def find_names(source: Path) -> list[str]:
    """Names of the archive's cases, all of whose files are there.

    Raises:
        InputError: there is none, or a case lacks a file.
    """
    stems = {path.name.removesuffix(ENDING) for path in (source / "imagesTr").glob(f"*{ENDING}")}
    labels = {path.name.removesuffix(ENDING) for path in (source / "labelsTr").glob(f"*{ENDING}")}
    names = {stem[:-5] for stem in stems if stem.endswith(CHANNELS)}
    names |= {label for label in labels if not label.endswith(ORGAN_FILE)}
    if not names:
        raise InputError(source, "must hold imagesTr and labelsTr in nnU-Net's form", "no case")
    missing = [
        *(f"imagesTr/{stem}" for stem in sorted({f"{name}{n}" for name in names for n in CHANNELS} - stems)),
        *(f"labelsTr/{name}" for name in sorted(names - labels)),
    ]
    if missing:
        raise InputError(source, "must hold CT (_0000), PET (_0001) and label of each case", listing(missing))
    return sorted(names)


def convert_autopet(
    source: Path,
    dataset: str,
    orientation: str | None,
    link: bool = False,
    extras: Extras | None = None,
    dry_run: bool = False,
) -> None:
    """Check and place the archive's cases; those that are there are kept, but get the given clicks.

    A case that lies as the orientation asks is copied or linked as it is; another is turned and written anew.

    Args:
        source: folder with imagesTr and labelsTr.
        dataset: `DatasetNNN_NAME`, made in nnUNet_raw, or there with cases of any source.
        orientation: axis code as which all shall lie; None for each as it is stored.
        link: link images and labels instead of copying them.
        extras: organ masks and clicks; a case that has an organ mask already keeps it.
        dry_run: only tell what would be done.

    Raises:
        InputError: a file is missing or refused, a case's files lie on different grids, a label holds more
            than 0 and 1, or cases that are there lie otherwise.
    """
    extras = extras or Extras()
    raw = RawDataset(dataset)
    raw.require_orientation(orientation)
    names = find_names(source)
    missing = [name for name in names if not raw.has(name, extras.mask(name) is not None)]
    clicks = {name: file for name in names if (file := extras.click_file(name))}
    masks = [name for name in names if extras.mask(name)]
    kept = len({*masks} - {*missing})
    logger.info(
        "%d cases found, %d with organ masks, %d with clicks; %d missing in %s, organ masks kept there: %d",
        *(len(names), len(masks), len(clicks), len(missing), raw.folder, kept),
    )
    if dry_run:
        return
    raw.note_orientation(orientation)
    for name in tqdm(missing, desc="autoPET", unit="case"):
        _place(raw, source, name, link, extras, orientation)
    for name, file in clicks.items():
        _place_clicks(raw, file, read_grid(source / "imagesTr" / f"{name}_0001{ENDING}"), orientation)
    splits = source / SPLITS
    if splits.is_file():
        write_json(read_splits(splits), raw.folder / SPLITS)
    raw.describe()


def organ_labels(total: Path, glands: Path | None, grid: Grid) -> Mask:
    """TotalSegmentator's classes (z, y, x) as organ labels 0 to 10.

    Args:
        total: mask of the task `total`.
        glands: mask of the task `head_glands_cavities`, which wins where both say something.
        grid: where both must lie.

    Raises:
        InputError: a mask lies elsewhere or has no whole numbers from 0 to 255.
    """
    labels = np.zeros(grid.shape_zyx, np.uint8)
    for path, task in ((total, "total"), (glands, "head_glands")):
        if path is None:
            continue
        table = np.zeros(256, np.uint8)
        for label, organ in enumerate(ORGANS, start=1):
            table[list(getattr(organ, task))] = label
        array, mask_grid = read_image(path, trusted=True)
        _require_grid(path, mask_grid, grid)
        classes = array.astype(np.uint8)
        if (classes != array).any():
            odd = ", ".join(f"{value:g}" for value in np.unique(array[classes != array])[:5])
            raise InputError(path, "must hold TotalSegmentator's class numbers, 0 to 255", odd)
        found = table[classes]
        labels = np.where(found > 0, found, labels)
    return labels


def _place(
    raw: RawDataset, source: Path, name: str, link: bool, extras: Extras, orientation: str | None
) -> None:
    """Check one case and bring its files into the data set."""
    files = {
        "ct": source / "imagesTr" / f"{name}_0000{ENDING}",
        "pet": source / "imagesTr" / f"{name}_0001{ENDING}",
        "lesions": source / "labelsTr" / f"{name}{ENDING}",
    }
    grid = read_grid(files["pet"])
    _require_grid(files["ct"], read_grid(files["ct"]), grid)
    lesion, label_grid = read_mask(files["lesions"])
    _require_grid(files["lesions"], label_grid, grid)
    target = grid if orientation is None else orient(grid, orientation)
    makers: dict[str, Callable[[Path], None]] = {}
    if total := extras.mask(name):
        glands = extras.glands / f"{name}{ENDING}" if extras.glands else None
        organs = organ_labels(total, glands if glands and glands.exists() else None, grid)
        makers["organs"] = partial(write_image, to_grid(organs, grid, target, 0, linear=False), target)
    if target.matches(grid):
        place = _link if link else shutil.copyfile
        makers |= {kind: partial(place, path.resolve()) for kind, path in files.items()}
    else:
        makers["ct"] = partial(_turn, files["ct"], target, AIR_HU)
        makers["pet"] = partial(_turn, files["pet"], target, 0.0)
        makers["lesions"] = partial(write_image, to_grid(lesion, grid, target, 0, linear=False), target)
    raw.put(name, makers)


def _place_clicks(raw: RawDataset, file: Path, grid: Grid, orientation: str | None) -> None:
    """Bring a click file on an archive's grid into the data set, turned as its case is."""
    target = grid if orientation is None else orient(grid, orientation)
    to_target = np.linalg.inv(target.index_zyx_to_mm) @ grid.index_zyx_to_mm
    (raw.folder / "clicksTr").mkdir(parents=True, exist_ok=True)
    moved = load_clicks(file, grid).mapped(to_target, target.shape_zyx)
    save_clicks(moved, raw.folder / "clicksTr" / file.name)


def _require_grid(path: Path, grid: Grid, pet: Grid) -> None:
    if not grid.matches(pet):
        raise InputError(path, f"must lie on PET's grid ({describe(pet)})", describe(grid))


def _turn(source: Path, target: Grid, outside: float, path: Path) -> None:
    """Write an image anew as it lies in another orientation."""
    array, grid = read_image(source, trusted=True)
    write_image(to_grid(array, grid, target, outside), target, path)


def _link(source: Path, path: Path) -> None:
    path.symlink_to(source)
