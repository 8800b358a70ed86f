"""`python -m petclick score`: masks in, one JSON object out."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from petclick.__main__ import main
from petclick.errors import InputError
from petclick.grid import Grid
from petclick.images import write_image
from petclick.metrics import score

SHAPE = (6, 9, 11)
GRID = Grid((11, 9, 6), (2.0, 2.5, 4.0), (-7.0, 3.0, 12.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
ML = 0.02
Box = tuple[slice, slice, slice]
FIRST = (slice(1, 3), slice(1, 3), slice(1, 5))  # 16 voxels
SECOND = (slice(4, 5), slice(5, 8), slice(6, 10))  # 12 voxels
FAR = (slice(0, 1), slice(6, 8), slice(0, 3))  # 6 voxels, in no lesion
TOUCH = (slice(4, 5), slice(5, 6), slice(6, 7))  # 1 voxel of SECOND: IoU 1 / 12


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, *boxes: Box, grid: Grid = GRID) -> Path:
        mask = np.zeros(SHAPE, np.uint8)
        for box in boxes:
            mask[box] = 1
        write_image(mask, grid, tmp_path / name)
        return tmp_path / name

    return write


def run_score(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    main(["score", *map(str, arguments)])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result: dict[str, Any] = json.loads(out)
    return result


def test_hand_computed_steps(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    truth = write("truth.nii.gz", FIRST, SECOND)
    steps = [write("0.mha", FAR), write("1.nrrd", FIRST, FAR), write("2.nii", FIRST, TOUCH)]
    result = run_score(capsys, truth, *steps)
    assert list(result) == ["predictions", "auc"]
    none, one, touching = result["predictions"]
    assert [each["file"] for each in result["predictions"]] == [str(step) for step in steps]
    assert list(none) == ["file", "dice", "fpv_ml", "fnv_ml", "tp", "fp", "fn", "dmm_f1"]
    assert none == {
        **{"file": str(steps[0]), "dice": 0, "fpv_ml": pytest.approx(6 * ML)},
        **{"fnv_ml": pytest.approx(28 * ML), "tp": 0, "fp": 1, "fn": 2, "dmm_f1": 0},
    }
    assert one["dice"] == pytest.approx(2 * 16 / (28 + 22))
    assert (one["tp"], one["fp"], one["fn"], one["dmm_f1"]) == (1, 1, 1, pytest.approx(0.5))
    # one shared voxel saves a lesion from FNV, but does not match it
    assert (touching["fpv_ml"], touching["fnv_ml"]) == (0, 0)
    assert (touching["tp"], touching["fp"], touching["fn"]) == (1, 1, 1)
    assert touching["dice"] == pytest.approx(2 * 17 / (28 + 17))
    dice = [each["dice"] for each in result["predictions"]]
    assert result["auc"] == {
        "dice": pytest.approx(dice[0] / 2 + dice[1] + dice[2] / 2),
        "fpv_ml": pytest.approx((3 + 6) * ML),
        "fnv_ml": pytest.approx((14 + 12) * ML),
        "dmm_f1": pytest.approx(0.75),
    }


def test_autopet5_counts_volumes_by_iou(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_score(
        capsys, write("t.mha", FIRST, SECOND), write("p.mha", FIRST, TOUCH), "--protocol", "autopet5"
    )
    (found,) = result["predictions"]
    assert found["fpv_ml"] == pytest.approx(1 * ML)
    assert found["fnv_ml"] == pytest.approx(12 * ML)
    assert result["auc"] == {"dice": 0, "fpv_ml": 0, "fnv_ml": 0, "dmm_f1": 0}  # one step has no area


def test_what_is_not_defined_is_null(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    empty, one = write("empty.mha"), write("one.mha", FAR)
    four = run_score(capsys, empty, one, empty)
    assert four["predictions"][0]["dice"] is None
    assert four["predictions"][0]["fnv_ml"] is None
    assert four["predictions"][0]["dmm_f1"] is None
    assert four["predictions"][0]["fpv_ml"] == pytest.approx(6 * ML)
    assert four["auc"] == {"dice": None, "fpv_ml": pytest.approx(3 * ML), "fnv_ml": None, "dmm_f1": None}
    five = run_score(capsys, empty, one, empty, "--protocol", "autopet5")
    assert [each["dice"] for each in five["predictions"]] == [0, 1]


def test_agrees_with_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    truth, prediction = (rng.random((2, *SHAPE)) > 0.8).astype(np.uint8)
    write_image(truth, GRID, tmp_path / "t.mha")
    write_image(prediction, GRID, tmp_path / "p.mha")
    (found,) = run_score(capsys, tmp_path / "t.mha", tmp_path / "p.mha")["predictions"]
    expected = score(truth, prediction, GRID.voxel_ml)
    assert found["fp"] == expected.fp
    assert found["dice"] == pytest.approx(expected.dice)
    assert found["fnv_ml"] == pytest.approx(expected.fnv_ml)


def test_masks_on_other_grids_are_refused(write: Callable[..., Path]) -> None:
    truth = write("truth.mha", FIRST)
    moved = Grid(GRID.size_xyz, GRID.spacing_mm, (-7.0, 3.0, 12.5), GRID.direction)
    turned = Grid(GRID.size_xyz, GRID.spacing_mm, GRID.origin_mm)
    for name, grid in (("moved.mha", moved), ("turned.mha", turned)):
        with pytest.raises(InputError, match=rf"{name}: must lie on the grid of the truth .*truth\.mha"):
            main(["score", str(truth), str(truth), str(write(name, FIRST, grid=grid))])


def test_exit_codes_and_last_line(write: Callable[..., Path], tmp_path: Path) -> None:
    """As a process: 2 and a last line that names the file; bad usage is 2 as well."""
    write_image(np.full(SHAPE, 3, np.uint8), GRID, tmp_path / "labels.mha")
    command = [sys.executable, "-m", "petclick", "score", str(write("t.mha", FIRST))]
    root = Path(__file__).resolve().parents[1]
    refused = subprocess.run(
        [*command, str(tmp_path / "labels.mha")], capture_output=True, encoding="utf-8", cwd=root, check=False
    )
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.splitlines()[-1].endswith("labels.mha: must hold only 0 and 1, got 3")
    with pytest.raises(SystemExit) as unused:
        main(["score", str(tmp_path / "t.mha")])
    assert unused.value.code == 2
