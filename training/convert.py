"""Data sets into nnU-Net's raw layout, and single patients into the challenge's layout.

    python -m training.convert sts SOURCE [--dataset Dataset601_STS]
    python -m training.convert challenge-case PATIENT_DIR OUT
    python -m training.convert phantom-case OUT [--seed N]

`sts` takes the soft-tissue-sarcoma part of the IBSI validation set: a clone of github.com/theibsi/data_sets,
or any folder above its STS_nnn folders. Cases are stored on PET's grid, CT resampled to it, all turned to one
orientation.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from petclick.clicks import ClickSet, save_clicks
from petclick.errors import InputError
from petclick.evaluation.protocol import MOST_CLICKS, challenge_clicks
from petclick.images import AIR_HU, Case, read_case, read_image, to_grid, write_image, write_mask
from petclick.orientation import orient
from petclick.phantom import make_phantom
from petclick.program import run
from training.preprocess import STARTER_SPLITS, nnunet_folder
from training.settings import load_settings

Mask = npt.NDArray[np.uint8]

DEMO_SHAPE_ZYX = (83, 46, 52)
DEMO_SPACING_ZYX_MM = (6.0, 4.3, 4.1)
DEMO_LESIONS = 6
DEMO_CLICKS = 6
DEMO_SEED = 12
DEMO_ORIENTATION = "RPS"
"""The demo case is stored flipped, as some scanners do; the mask must not depend on it."""

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


def convert_sts(source: Path, dataset: str, everyone: bool) -> None:
    """Write the sarcoma patients as an nnU-Net raw data set, in the orientation that the settings name.

    Args:
        source: folder at or above the patients' folders.
        dataset: `DatasetNNN_NAME`, made in nnUNet_raw.
        everyone: all patients found, not only those of the starter's splits.
    """
    orientation = load_settings().guidance.orientation
    chosen = {case for split in json.loads(STARTER_SPLITS.read_text("utf-8")) for case in split["val"]}
    patients = [path for path in find_patients(source) if everyone or path.name in chosen]
    folder = nnunet_folder("nnUNet_raw") / dataset
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for patient in tqdm(patients, desc="converting", unit="patient"):
        case, lesion = read_patient(patient)
        grid = case.grid if orientation is None else orient(case.grid, orientation)
        for channel, (array, outside) in enumerate(((case.ct_hu, AIR_HU), (case.pet_suv, 0.0))):
            path = folder / "imagesTr" / f"{case.name}_{channel:04d}.nii.gz"
            write_image(to_grid(array, case.grid, grid, outside), grid, path)
        write_image(
            to_grid(lesion, case.grid, grid, 0, linear=False),
            grid,
            folder / "labelsTr" / f"{case.name}.nii.gz",
        )
    description = {
        # Both channels get CTNormalization, as in the autoPET plans (arXiv 2409.09478).
        "channel_names": {"0": "CT", "1": "CT"},
        "labels": {"background": 0, "tumor": 1},
        "numTraining": len(patients),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    logger.info("%d patients are in %s", len(patients), folder)


def write_challenge_case(case: Case, lesion: Mask, clicks: ClickSet, out: Path) -> None:
    """Write a case as the container finds it in /input, and the truth to out/truth/<name>.mha."""
    for kind, array in (("ct", case.ct_hu), ("pet", case.pet_suv)):
        folder = out / "images" / kind
        folder.mkdir(parents=True, exist_ok=True)
        write_image(array, case.grid, folder / f"{case.name}.mha")
    save_clicks(clicks, out / "lesion-clicks.json")
    write_mask(lesion, case.grid, out / "truth" / f"{case.name}.mha")
    logger.info("wrote %s: %s", out, clicks.summary())


def phantom_case(seed: int) -> tuple[Case, Mask]:
    """The demo: a small whole-body phantom, stored flipped, rounded as scanners store it."""
    phantom = make_phantom(DEMO_SHAPE_ZYX, DEMO_SPACING_ZYX_MM, seed, DEMO_LESIONS)
    stored = orient(phantom.grid, DEMO_ORIENTATION)
    ct, pet = (
        to_grid(array, phantom.grid, stored, 0.0).round(digits)
        for array, digits in ((phantom.ct_hu, 0), (phantom.pet_suv, 2))
    )
    lesion = to_grid((phantom.lesions > 0).astype(np.uint8), phantom.grid, stored, 0)
    return Case(ct, pet, stored, f"phantom-{seed}"), lesion


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
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
    challenge = commands.add_parser(
        "challenge-case", help="one patient -> the challenge's layout, with clicks"
    )
    challenge.add_argument("patient", type=Path)
    challenge.add_argument("out", type=Path)
    challenge.add_argument(
        "--clicks", type=int, default=MOST_CLICKS, help="of each kind (default: %(default)s)"
    )
    phantom = commands.add_parser("phantom-case", help="a synthetic patient in the challenge's layout")
    phantom.add_argument("out", type=Path)
    phantom.add_argument("--seed", type=int, default=DEMO_SEED)
    options = parser.parse_args(arguments)
    if options.command == "sts":
        convert_sts(options.source, options.dataset, options.everyone)
    elif options.command == "challenge-case":
        case, lesion = read_patient(options.patient)
        write_challenge_case(
            case, lesion, challenge_clicks(lesion, case.pet_suv, options.clicks), options.out
        )
    else:
        case, lesion = phantom_case(options.seed)
        write_challenge_case(case, lesion, challenge_clicks(lesion, case.pet_suv, DEMO_CLICKS), options.out)


if __name__ == "__main__":
    run(main)
