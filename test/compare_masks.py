"""Compare the masks of two folders: `python test/compare_masks.py EXPECTED WRITTEN`.

Every .mha file below EXPECTED must lie at the same place below WRITTEN, and no other, as uint8 of the values
0 and 1 on the same grid, with a Dice of at least 0.99. Prints each Dice; exits with 1 and the reasons where
something differs.
"""

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LEAST_DICE = 0.99
TOLERANCE = 1e-6
"""Of spacing and origin in mm and of direction cosines: what a text header may lose."""


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero((one > 0) & (other > 0)) / total if total else 1.0


def differences(expected_path: Path, written_path: Path) -> list[str]:
    """What is wrong with a written mask; prints its Dice where the sizes allow one."""
    expected, written = sitk.ReadImage(str(expected_path)), sitk.ReadImage(str(written_path))
    found = []
    if written.GetPixelID() != sitk.sitkUInt8:
        found.append(f"pixels are {written.GetPixelIDTypeAsString()}, not 8-bit unsigned integer")
    if written.GetSize() != expected.GetSize():
        return [*found, f"size is {written.GetSize()}, not {expected.GetSize()}"]
    for name in ("Spacing", "Origin", "Direction"):
        got, wanted = getattr(written, f"Get{name}")(), getattr(expected, f"Get{name}")()
        if not np.allclose(got, wanted, rtol=0, atol=TOLERANCE):
            found.append(f"{name.lower()} is {got}, not {wanted}")
    mask = sitk.GetArrayViewFromImage(written)
    if not np.isin(mask, (0, 1)).all():
        found.append(f"values are {np.unique(mask).tolist()}, not 0 and 1")
    score = dice(sitk.GetArrayViewFromImage(expected), mask)
    print(f"{written_path.name}: Dice {score:.4f}")
    if score < LEAST_DICE:
        found.append(f"Dice is {score:.4f}, below {LEAST_DICE}")
    return found


def main(expected: Path, written: Path) -> int:
    """Compare two folders; the exit code."""
    wanted, got = (
        {path.relative_to(folder) for path in folder.rglob("*.mha")} for folder in (expected, written)
    )
    problems = [f"{name}: not written" for name in sorted(wanted - got)]
    problems += [f"{name}: not expected" for name in sorted(got - wanted)]
    for name in sorted(wanted & got):
        problems += [f"{name}: {problem}" for problem in differences(expected / name, written / name)]
    if not wanted:
        problems.append(f"{expected}: holds no mask to compare with")
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
