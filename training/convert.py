"""Data sets into nnU-Net's raw layout, and single patients into the challenge's layout.

    python -m training.convert sts SOURCE [--dataset Dataset601_STS] [--settings FILE]
    python -m training.convert autopet SOURCE --dataset Dataset221_AutoPET --settings FILE [--link]
    python -m training.convert phantom --dataset Dataset602_Lesions --cases 20 [--tracers fdg,psma] [--seed 0]
    python -m training.convert splits Dataset602_Lesions splits.json
    python -m training.convert challenge-case PATIENT_DIR OUT
    python -m training.convert phantom-case OUT [--tracer fdg] [--seed N] [--full-size]
    python -m training.convert phantom-cases OUT --cases 5 --seed 1000

`sts` takes the soft-tissue-sarcoma part of the IBSI validation set: a clone of github.com/theibsi/data_sets,
or any folder above its STS_nnn folders. Cases are stored on PET's grid, CT resampled to it, all turned to the
orientation that the training's settings name, since inference turns its cases so as well.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from petclick.errors import InputError
from petclick.evaluation.protocol import MOST_CLICKS, challenge_clicks
from petclick.images import Case, read_case, read_image
from petclick.phantom import TRACERS, TracerName
from petclick.phantom.anatomy import Triple
from petclick.program import run
from training.autopet import Extras, convert_autopet
from training.phantoms import (
    DEMO_CLICKS,
    DEMO_SEED,
    SPACING_ZYX_MM,
    add_phantoms,
    demo_case,
    full_size_case,
    write_challenge_case,
    write_phantom_cases,
)
from training.preprocess import STARTER_SPLITS
from training.raw import SPLITS, RawDataset, read_splits, spread_splits, write_json
from training.settings import load_settings

Mask = npt.NDArray[np.uint8]

logger = logging.getLogger(__name__)


def read_patient(patient: Path) -> tuple[Case, Mask]:
    """One patient of the IBSI set on PET's grid: the case, and the lesion mask (z, y, x).

    Raises:
        InputError: a file is missing or unreadable, or the mask is on another grid.
    """
    case = read_case(patient / "CT_image.nii.gz", patient / "PET_image.nii.gz")
    mask_file = patient / "PET_mask.nii.gz"
    mask, mask_grid = read_image(mask_file, trusted=True)
    if not mask_grid.matches(case.grid):
        raise InputError(mask_file, f"must lie on PET's grid {case.grid}", mask_grid)
    return Case(case.ct_hu, case.pet_suv, case.grid, patient.name), (mask > 0.5).astype(np.uint8)


def find_patients(source: Path) -> list[Path]:
    """Patient folders of the IBSI set at or below `source`, by name.

    Raises:
        InputError: there is none.
    """
    patients = {
        path.parent for path in source.rglob("PET_image.nii.gz") if path.parent.name.startswith("STS_")
    }
    if not patients:
        raise InputError(source, "must hold folders STS_nnn with PET_image.nii.gz", "none")
    return sorted(patients, key=lambda path: path.name)


def convert_sts(
    source: Path, dataset: str, everyone: bool, orientation: str | None, dry_run: bool = False
) -> None:
    """Write the sarcoma patients as an nnU-Net raw data set.

    Args:
        source: folder at or above the patients' folders.
        dataset: `DatasetNNN_NAME`, made in nnUNet_raw, or there with cases of any source, which are kept.
        everyone: all patients found, not only those of the starter's splits.
        orientation: axis code to which all are turned; None to keep each as it is stored.
        dry_run: only tell what would be done.

    Raises:
        InputError: a file is missing or refused, or cases that are there lie otherwise.
    """
    chosen = {case for split in read_splits(STARTER_SPLITS) for case in split["val"]}
    patients = [path for path in find_patients(source) if everyone or path.name in chosen]
    raw = RawDataset(dataset)
    raw.require_orientation(orientation)
    missing = [patient for patient in patients if not raw.has(patient.name, organs=False)]
    logger.info("%d patients found, %d of them missing in %s", len(patients), len(missing), raw.folder)
    if dry_run:
        return
    raw.note_orientation(orientation)
    for patient in tqdm(missing, desc="converting", unit="patient"):
        case, lesion = read_patient(patient)
        raw.add(case, lesion, orientation=orientation)
    raw.describe()


def write_splits(dataset: str, out: Path, base: Path | None = None) -> None:
    """Write folds over a data set's cases: those of `base` as there, all others dealt out evenly, by patient.

    Args:
        dataset: `DatasetNNN_NAME` in nnUNet_raw.
        out: the JSON file.
        base: folds to keep; None for the data set's own, which an archive brought, else the starter's.

    Raises:
        InputError: the data set has no cases, or `base` holds no folds.
    """
    raw = RawDataset(dataset)
    own = raw.folder / SPLITS
    base = base or (own if own.is_file() else STARTER_SPLITS)
    if not (cases := raw.cases()):
        raise InputError(raw.folder / "labelsTr", "must hold cases", "none")
    write_json(spread_splits(cases, read_splits(base)), out)
    logger.info("folds of %d cases, with those of %s kept, are in %s", len(cases), base, out)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "autopet" and options.glands and not options.organs:
        parser.error("--glands needs --organs: a case's mask there is what glands are drawn into")
    if options.command == "sts":
        convert_sts(options.source, options.dataset, options.everyone, _orientation(options), options.dry_run)
    elif options.command == "phantom":
        counts = (options.tracers, options.cases, options.seed)
        add_phantoms(options.dataset, *counts, _orientation(options), options.spacing, options.dry_run)
        if options.splits and not options.dry_run:
            write_splits(options.dataset, options.splits, options.base)
    elif options.command == "autopet":
        extras = Extras(options.organs, options.glands, options.clicks)
        places = (options.source, options.dataset, _orientation(options))
        convert_autopet(*places, options.link, extras, options.dry_run)
    elif options.command == "splits":
        write_splits(options.dataset, options.out, options.base)
    elif options.command == "challenge-case":
        case, lesion = read_patient(options.patient)
        clicks = challenge_clicks(lesion, case.pet_suv, options.clicks)
        write_challenge_case(case, lesion, clicks, options.out)
    elif options.command == "phantom-case":
        make = full_size_case if options.full_size else demo_case
        case, lesion, organs = make(options.seed, options.tracer)
        clicks = challenge_clicks(lesion, case.pet_suv, MOST_CLICKS if options.full_size else DEMO_CLICKS)
        write_challenge_case(case, lesion, clicks, options.out, organs)
    else:
        counts = (options.tracers, options.cases, options.seed)
        write_phantom_cases(options.out, *counts, options.spacing, options.dry_run)


def _orientation(options: argparse.Namespace) -> str | None:
    return load_settings(options.settings).guidance.orientation


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.convert", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sts = commands.add_parser("sts", help="the IBSI set's sarcoma patients -> an nnU-Net data set")
    sts.add_argument("source", type=Path, help="folder at or above the STS_nnn folders")
    sts.add_argument("--dataset", default="Dataset601_STS", help="name in nnUNet_raw (default: %(default)s)")
    sts.add_argument(
        "--everyone", action="store_true", help="also patients that the starter's folds do not hold"
    )
    _add_settings(sts)
    _add_dry_run(sts)

    autopet = commands.add_parser("autopet", help="autoPET's public archive -> an nnU-Net data set, checked")
    autopet.add_argument("source", type=Path, help="the archive's folder, with imagesTr and labelsTr")
    autopet.add_argument("--dataset", required=True, help="name in nnUNet_raw; cases there are kept")
    autopet.add_argument("--link", action="store_true", help="link files instead of copying them")
    autopet.add_argument("--organs", type=Path, help="masks of TotalSegmentator's task total, CASE.nii.gz")
    autopet.add_argument("--glands", type=Path, help="likewise of its task head_glands_cavities")
    autopet.add_argument("--clicks", type=Path, help="the challenge's click files, CASE_clicks.json")
    _add_settings(autopet)
    _add_dry_run(autopet)

    phantom = commands.add_parser("phantom", help="synthetic patients -> an nnU-Net data set with organs")
    phantom.add_argument("--dataset", required=True, help="name in nnUNet_raw; cases there are kept")
    _add_numbers(phantom)
    _add_settings(phantom)
    phantom.add_argument("--splits", type=Path, help="also write folds of the data set into this JSON file")
    _add_base(phantom)

    splits = commands.add_parser("splits", help="folds over the cases of a data set, as nnU-Net has them")
    splits.add_argument("dataset", help="name in nnUNet_raw")
    splits.add_argument("out", type=Path, help="the JSON file")
    _add_base(splits)

    challenge = commands.add_parser(
        "challenge-case", help="one patient -> the challenge's layout, with clicks"
    )
    challenge.add_argument("patient", type=Path)
    challenge.add_argument("out", type=Path)
    challenge.add_argument(
        "--clicks", type=int, default=MOST_CLICKS, help="of each kind (default: %(default)s)"
    )

    one = commands.add_parser("phantom-case", help="a synthetic patient in the challenge's layout")
    one.add_argument("out", type=Path)
    one.add_argument("--tracer", choices=TRACERS, default="fdg", help="default: %(default)s")
    one.add_argument("--seed", type=int, default=DEMO_SEED, help="default: %(default)s")
    one.add_argument(
        "--full-size", action="store_true", help="400 x 400 x 326 voxels (default: a small demo)"
    )

    many = commands.add_parser("phantom-cases", help="held-out synthetic patients in the challenge's layout")
    many.add_argument("out", type=Path, help="folder of the cases' folders")
    _add_numbers(many)
    return parser


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tracers", type=_tracers, default=TRACERS, help="such as fdg,psma (default: both)")
    add("--cases", type=int, required=True, help="number of cases of each tracer")
    add("--seed", type=int, default=0, help="seed and number of each tracer's first case (default: 0)")
    z, y, x = SPACING_ZYX_MM
    add("--spacing", type=_spacing, default=SPACING_ZYX_MM, help=f"z,y,x in mm (default: {z},{y},{x})")
    _add_dry_run(parser)


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", type=Path, help=f"folds to keep (default: the data set's {SPLITS}, else the starter's)"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--settings", type=Path, help="the training's, for the orientation (default: training/starter.yaml)"
    )


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")


def _tracers(text: str) -> tuple[TracerName, ...]:
    chosen = tuple(tracer for tracer in TRACERS if tracer in text.split(","))
    if len(chosen) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"must be among {', '.join(TRACERS)}, got {text!r}")
    return chosen


def _spacing(text: str) -> Triple:
    try:
        z, y, x = (float(step) for step in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be three numbers z,y,x, got {text!r}") from None
    return z, y, x


if __name__ == "__main__":
    run(main)
