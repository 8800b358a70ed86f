"""How far methods agree with each other, beside how far each agrees with the truth.

    python -m training.agreement CASES EVALUATION[:METHOD] EVALUATION[:METHOD] … [--step N]

Each EVALUATION is the folder of a `python -m petclick evaluate … --masks`, METHOD one of its methods
(default: network). Prints the mean Dice of each pair over the cases that all of them hold. Where methods
agree with each other much better than with the truth, they and the truth see different things: what is left
is either an error that the methods share, since they learned from the same truths, or noise of the truth.
"""

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from petclick.errors import InputError
from petclick.evaluation.cases import find_cases, read_mask, read_truth_case, require_same_grid
from petclick.metrics import score
from petclick.program import run

TRUTH = "truth"


def dice_of_pairs(masks: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    """Symmetric matrix of the Dice of each two masks (z, y, x), none of them empty; 1 on the diagonal."""
    result = np.eye(len(masks))
    for first, second in combinations(range(len(masks)), 2):
        result[first, second] = result[second, first] = score(masks[first], masks[second], 1.0).dice
    return result


def agreement(
    cases: Path, methods: Sequence[tuple[Path, str]], step: int
) -> tuple[npt.NDArray[np.float64], int]:
    """Mean of `dice_of_pairs` over cases, of the truth and each method's masks, and the number of cases.

    Args:
        cases: as for `petclick evaluate`.
        methods: folder of an evaluation, and the method's name there.
        step: clicks of each kind.

    Raises:
        InputError: no case is in all evaluations, or a mask is refused or empty.
    """
    matrices = []
    for found in find_cases(cases):
        files = [folder / "masks" / found.name / name / f"step-{step:02d}.mha" for folder, name in methods]
        if not all(file.is_file() for file in files):
            continue
        case = read_truth_case(found)
        masks = [case.truth]
        for file in files:
            mask, grid = read_mask(file)
            require_same_grid(file, grid, case.case.grid, "the case")
            masks.append(mask)
        if not all(mask.any() for mask in masks):
            raise InputError(found.name, "must have a lesion in the truth and in each method's mask", "none")
        matrices.append(dice_of_pairs(masks))
    if not matrices:
        raise InputError(cases, f"must hold a case with a mask of step {step} in each evaluation", "none")
    return np.mean(matrices, axis=0), len(matrices)


def table(matrix: npt.NDArray[np.float64], names: Sequence[str]) -> str:
    """The matrix as Markdown, with the truth first."""
    names = [TRUTH, *names]
    lines = [f"| mean Dice | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{value:.3f}' for value in row)} |"
        for name, row in zip(names, matrix, strict=True)
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.agreement", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("cases", type=Path, help="as for petclick evaluate")
    parser.add_argument("evaluations", nargs="+", help="FOLDER or FOLDER:METHOD, with masks")
    parser.add_argument("--step", type=int, default=0, help="clicks of each kind (default: %(default)s)")
    options = parser.parse_args(arguments)
    parts = [text.rpartition(":") for text in options.evaluations]
    methods = [(Path(folder), name) if colon else (Path(name), "network") for folder, colon, name in parts]
    matrix, n_cases = agreement(options.cases, methods, options.step)
    print(table(matrix, [f"{folder.name} {name}" for folder, name in methods]))
    print(f"\n{n_cases} cases, {options.step} clicks of each kind.")


if __name__ == "__main__":
    run(main)
