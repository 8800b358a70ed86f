"""False-positive volume inside organs, of masks that `python -m petclick evaluate … --masks` has left.

    python -m training.organ_fpv CASES EVALUATION [--method network] [--step 10] [--organs brain,heart,…]

CASES are those of `python -m training.convert phantom-cases`: their organs/NAME.mha tells where organs are.
"""

import argparse
from pathlib import Path

import cc3d
import numpy as np
import numpy.typing as npt

from petclick.errors import InputError
from petclick.evaluation.cases import (
    ChallengeFolder,
    find_cases,
    read_mask,
    read_truth_case,
    require_same_grid,
)
from petclick.images import read_image
from petclick.metrics import CONNECTIVITY
from petclick.program import run
from training.organs import ORGAN_LABEL

Mask = npt.NDArray[np.uint8]

HOT_ORGANS = ("brain", "heart", "kidneys", "bladder")
"""Organs whose physiological uptake is most often taken for a lesion."""


def organ_fpv_ml(truth: Mask, prediction: Mask, organs: Mask, voxel_ml: float) -> dict[str, float]:
    """Volume (ml) in each organ of the predicted components that share no voxel with a lesion.

    That is the challenge's FPV (18-connected components), of which only the voxels in the organ count.

    Args:
        truth: (z, y, x) of {0, 1}.
        prediction: likewise.
        organs: labels 0 to 10, see `training.organs`.
        voxel_ml: volume of a voxel.
    """
    components = cc3d.connected_components(prediction > 0, connectivity=CONNECTIVITY)
    right = np.unique(components[truth > 0])
    false = (components > 0) & ~np.isin(components, right)
    voxels = np.bincount(organs[false], minlength=len(ORGAN_LABEL) + 1)
    return {organ: float(voxels[label] * voxel_ml) for organ, label in ORGAN_LABEL.items()}


def measure(cases: Path, evaluation: Path, method: str, step: int) -> dict[str, dict[str, float]]:
    """Case -> `organ_fpv_ml` of its mask evaluation/masks/CASE/METHOD/step-NN.mha.

    Raises:
        InputError: a file is missing or refused, or lies on another grid than the case.
    """
    result = {}
    for found in find_cases(cases):
        if not isinstance(found, ChallengeFolder):
            raise InputError(
                cases, "must hold cases in the challenge's layout, with organs/NAME.mha", found.name
            )
        case = read_truth_case(found)
        grid = case.case.grid
        mask_file = evaluation / "masks" / found.name / method / f"step-{step:02d}.mha"
        mask, mask_grid = read_mask(mask_file)
        require_same_grid(mask_file, mask_grid, grid, "the case")
        organ_file = found.folder / "organs" / f"{case.case.name}.mha"
        organs, organ_grid = read_image(organ_file, trusted=True)
        require_same_grid(organ_file, organ_grid, grid, "the case")
        if not np.isin(organs, range(len(ORGAN_LABEL) + 1)).all():
            raise InputError(organ_file, f"must hold labels 0 to {len(ORGAN_LABEL)}")
        result[found.name] = organ_fpv_ml(case.truth, mask, organs.astype(np.uint8), grid.voxel_ml)
    return result


def table(measured: dict[str, dict[str, float]], organs: tuple[str, ...]) -> str:
    """Markdown: a row for each case and one of means; columns are the organs and their sum, in ml."""
    rows = {case: [fpv[organ] for organ in organs] for case, fpv in measured.items()}
    rows = {case: [*values, sum(values)] for case, values in rows.items()}
    rows["mean"] = np.mean(list(rows.values()), axis=0).tolist()
    lines = [f"| FPV, ml | {' | '.join(organs)} | together |", "|---" * (len(organs) + 2) + "|"]
    lines += [f"| {case} | {' | '.join(f'{value:.2f}' for value in row)} |" for case, row in rows.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.organ_fpv", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("cases", type=Path, help="folder of challenge cases with organs/NAME.mha")
    parser.add_argument("evaluation", type=Path, help="--out of `petclick evaluate … --masks`")
    parser.add_argument("--method", default="network", help="default: %(default)s")
    parser.add_argument("--step", type=int, default=10, help="clicks of each kind (default: %(default)s)")
    parser.add_argument("--organs", type=_organs, default=HOT_ORGANS, help=f"default: {','.join(HOT_ORGANS)}")
    options = parser.parse_args(arguments)
    measured = measure(options.cases, options.evaluation, options.method, options.step)
    print(table(measured, options.organs))


def _organs(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not {*names} <= {*ORGAN_LABEL}:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(ORGAN_LABEL)}, got {text!r}")
    return names


if __name__ == "__main__":
    run(main)
