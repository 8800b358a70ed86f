"""Phantoms as nnU-Net data sets and as cases in the challenge's layout."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from petclick.clicks import ClickSet, save_clicks
from petclick.errors import InputError
from petclick.evaluation.protocol import challenge_clicks
from petclick.grid import Grid
from petclick.images import Case, to_grid, write_image, write_mask
from petclick.orientation import orient
from petclick.phantom import Phantom, Scanner, TracerName, make_patient, make_phantom
from petclick.phantom.anatomy import Triple
from petclick.phantom.make import LEAST_SHAPE
from training.organs import organs_of_tissues
from training.raw import RawDataset, partial_folder, read_grid

Mask = npt.NDArray[np.uint8]

SPACING_ZYX_MM = (3.27, 5.47, 5.47)
"""About the median of the sarcoma patients' PET."""
DEMO_SHAPE_ZYX = (83, 46, 52)
DEMO_SPACING_ZYX_MM = (6.0, 4.3, 4.1)
DEMO_LESIONS = 6
DEMO_SCANNER = Scanner(psf_fwhm_mm=4.0, counts=2.0, noise_fwhm_mm=4.0, ct_noise_hu=8.0)
DEMO_CLICKS = 6
DEMO_SEED = 12
DEMO_ORIENTATION = "RPS"
"""The demo case is stored flipped, as some scanners do; the mask must not depend on it."""
FULL_SHAPE_ZYX, FULL_SPACING_ZYX_MM = (326, 400, 400), (3.0, 2.04, 2.04)
"""Of the challenge's cases."""

logger = logging.getLogger(__name__)


def case_of(phantom: Phantom, name: str) -> tuple[Case, Mask, Mask]:
    """A phantom as a case rounded as scanners store it, its lesion mask, and its organ labels 0 to 10."""
    case = Case(phantom.ct_hu.round(), phantom.pet_suv.round(2), phantom.grid, name)
    return case, (phantom.lesions > 0).astype(np.uint8), organs_of_tissues(phantom.tissues)


def names_and_seeds(
    tracers: Sequence[TracerName], n_cases: int, seed: int
) -> list[tuple[str, TracerName, int]]:
    """Name, tracer and seed of `n_cases` of each tracer; seeds count up from `seed`.

    Raises:
        InputError: no case, or a negative seed.
    """
    if n_cases < 1 or seed < 0:
        raise InputError("phantoms", "need --cases of 1 or more and a --seed of 0 or more", (n_cases, seed))
    return [
        (f"phantom_{tracer}_{n:04d}", tracer, n) for tracer in tracers for n in range(seed, seed + n_cases)
    ]


def add_phantoms(
    dataset: str,
    tracers: Sequence[TracerName],
    n_cases: int,
    seed: int,
    orientation: str | None,
    spacing_zyx_mm: Triple = SPACING_ZYX_MM,
    dry_run: bool = False,
) -> None:
    """Write phantoms into a raw data set; cases there are kept.

    Args:
        dataset: `DatasetNNN_NAME`, made in nnUNet_raw, or there with cases of any source.
        tracers: of these, `n_cases` each.
        n_cases: cases of each tracer.
        seed: of the first case of each tracer.
        orientation: axis code to which all are turned; None to keep them as they are made.
        spacing_zyx_mm: voxel size.
        dry_run: only tell what would be done.

    Raises:
        InputError: bad numbers, cases are there with another spacing or orientation, or a file cannot be
            written.
    """
    raw = RawDataset(dataset)
    raw.require_orientation(orientation)
    wanted = names_and_seeds(tracers, n_cases, seed)
    missing = [each for each in wanted if not raw.has(each[0], organs=True)]
    logger.info("%d phantoms wanted, %d of them missing in %s", len(wanted), len(missing), raw.folder)
    z, y, x = spacing_zyx_mm
    grid = Grid((LEAST_SHAPE,) * 3, (x, y, z))
    spacing_mm = (grid if orientation is None else orient(grid, orientation)).spacing_mm
    for name, _, _ in [each for each in wanted if each not in missing]:
        _require_spacing(raw.files(name, organs=True)["pet"], spacing_mm)
    if dry_run:
        return
    raw.note_orientation(orientation)
    for name, tracer, number in tqdm(missing, desc="phantoms", unit="case"):
        case, lesion, organs = case_of(make_patient(tracer, number, spacing_zyx_mm), name)
        raw.add(case, lesion, organs, orientation)
    raw.describe()


def _require_spacing(image: Path, spacing_mm: Triple) -> None:
    """Refuse a case that an earlier run made with voxels of another size (x, y, z)."""
    there = read_grid(image).spacing_mm
    if not np.allclose(there, spacing_mm, rtol=1e-5):
        raise InputError(image, f"must have the spacing asked for, {spacing_mm} mm", there)


def demo_case(seed: int, tracer: TracerName = "fdg") -> tuple[Case, Mask, Mask]:
    """The demo: a small person in a small volume, stored flipped; lesion mask and organ labels with it."""
    phantom = make_phantom(DEMO_SHAPE_ZYX, DEMO_SPACING_ZYX_MM, seed, DEMO_LESIONS, DEMO_SCANNER, tracer)
    case, lesion, organs = case_of(phantom, f"phantom-{seed}")
    grid = orient(case.grid, DEMO_ORIENTATION)
    ct, pet = (to_grid(array, case.grid, grid, 0.0) for array in (case.ct_hu, case.pet_suv))
    lesion, organs = (to_grid(mask, case.grid, grid, 0, linear=False) for mask in (lesion, organs))
    return Case(ct, pet, grid, case.name), lesion, organs


def full_size_case(seed: int, tracer: TracerName) -> tuple[Case, Mask, Mask]:
    """A case of the size that the challenge's have; lesion mask and organ labels with it."""
    phantom = make_patient(tracer, seed, FULL_SPACING_ZYX_MM, FULL_SHAPE_ZYX)
    return case_of(phantom, f"phantom_{tracer}_{seed:04d}")


def write_challenge_case(
    case: Case, lesion: Mask, clicks: ClickSet, out: Path, organs: Mask | None = None
) -> None:
    """Write a case as the container finds it in /input.

    The truth goes to out/truth/<name>.mha, and organ labels, where given, to out/organs/<name>.mha.
    """
    for kind, array in (("ct", case.ct_hu), ("pet", case.pet_suv)):
        folder = out / "images" / kind
        folder.mkdir(parents=True, exist_ok=True)
        write_image(array, case.grid, folder / f"{case.name}.mha")
    save_clicks(clicks, out / "lesion-clicks.json")
    write_mask(lesion, case.grid, out / "truth" / f"{case.name}.mha")
    if organs is not None:
        write_mask(organs, case.grid, out / "organs" / f"{case.name}.mha")


def write_phantom_cases(
    out: Path,
    tracers: Sequence[TracerName],
    n_cases: int,
    seed: int,
    spacing_zyx_mm: Triple = SPACING_ZYX_MM,
    dry_run: bool = False,
) -> None:
    """Write cases with truth, clicks and organ labels, for `python -m petclick evaluate` and `organ_fpv`.

    Arguments as in `add_phantoms`, but for `out`, the folder of the cases' folders; cases there are kept.
    They lie as they are made: the predictor turns them.

    Raises:
        InputError: bad numbers, a case is there with another spacing, or a file cannot be written.
    """
    wanted = names_and_seeds(tracers, n_cases, seed)
    missing = [each for each in wanted if not (out / each[0]).is_dir()]
    logger.info("%d phantoms wanted, %d of them missing in %s", len(wanted), len(missing), out)
    z, y, x = spacing_zyx_mm
    for name, _, _ in [each for each in wanted if each not in missing]:
        _require_spacing(out / name / "images" / "pet" / f"{name}.mha", (x, y, z))
    if dry_run:
        return
    for name, tracer, number in tqdm(missing, desc="phantoms", unit="case"):
        case, lesion, organs = case_of(make_patient(tracer, number, spacing_zyx_mm), name)
        with partial_folder(out, name) as folder:
            clicks = challenge_clicks(lesion, case.pet_suv)
            write_challenge_case(case, lesion, clicks, folder / name, organs)
            (folder / name).replace(out / name)
