"""What keeps a run fast and small: imports, memory, and incremental predictions with the shipped weights."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from petclick.clicks import ClickSet, click_set
from petclick.grid import Grid
from petclick.images import Case
from petclick.model import load_model
from petclick.predictor import Predictor, Settings

ROOT = Path(__file__).resolve().parents[1]
NOT_NEEDED = ("torchvision", "timm", "matplotlib", "nnunetv2.training", "scipy.stats")
GIB = 2**30


def test_the_first_tile_needs_no_heavy_imports(tmp_path: Path) -> None:
    """Nor does reading a case, loading the folds and preparing."""
    script = f"""
import sys
from petclick import cli, predictor
def stop(*_):
    print([name for name in {NOT_NEEDED!r} if name in sys.modules])
    sys.exit()
predictor.Predictor.predict = stop
cli.main(["--input", "test/input", "--output", sys.argv[1], "--model", "resources", "--folds", "0"])
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stderr


def test_any_sequence_of_clicks_on_the_starter_gives_the_bits_of_a_prediction_from_scratch() -> None:
    """More, undo and move; in the CPU's own precision, mirrored along one axis."""
    model = load_model(ROOT / "resources", ("0",))
    z, y, x = model.plan.patch_size
    z = 2 * z  # three tiles
    rng = np.random.default_rng(0)
    inside = np.hypot(*np.ogrid[-1 : 1 : y * 1j, -1 : 1 : x * 1j]) < 0.8
    ct = np.where(inside, 100 * rng.standard_normal((z, y, x)), -1000).astype(np.float32)
    pet = np.where(inside, 4 * rng.random((z, y, x)), 0).astype(np.float32)
    spacing_zyx_mm = model.plan.spacing_mm
    grid = Grid((x, y, z), (spacing_zyx_mm[2], spacing_zyx_mm[1], spacing_zyx_mm[0]))
    case = Case(ct, pet, grid, "cylinder")
    settings = Settings("cpu", mirror_axes=(2,))
    incremental, scratch = Predictor(model, settings), Predictor(model, settings)
    incremental.set_case(case)
    far, near = [z - 3, y // 2, x // 2], [5, y // 2, x // 3]
    steps = [click_set([near], []), click_set([near], [far]), click_set([near], []), click_set([far], [near])]
    ran = []
    for clicks in steps:
        mask = incremental.predict(clicks)
        ran.append(incremental.last_report.ran)
        scratch.set_case(case)
        np.testing.assert_array_equal(mask, scratch.predict(clicks))
        assert incremental.predict_margin(clicks).equal(scratch.predict_margin(clicks))
    assert 0 < ran[1] < ran[0]
    assert ran[2] == 0, "undo"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape_zyx", "most_gib"),
    [((326, 400, 400), 6), ((405, 497, 497), 10)],
    ids=["full size", "100 million voxels"],
)
def test_memory_of_a_whole_run_is_bounded(
    tmp_path: Path,
    write_case: Callable[[Path, Case, ClickSet], Path],
    shape_zyx: tuple[int, int, int],
    most_gib: int,
) -> None:
    """From the files to the mask, with all folds, under a limit, as by `ulimit -d`."""
    z, y, x = shape_zyx
    inside = np.hypot(*np.ogrid[-1 : 1 : y * 1j, -1 : 1 : x * 1j]) < 0.3
    ct = np.where(inside, np.float32(40), np.float32(-1000))[None].repeat(z, 0)
    pet = inside.astype(np.float32)[None].repeat(z, 0)
    case = Case(ct, pet, Grid((x, y, z), (2.04, 2.04, 3.0)), "cylinder")
    write_case(tmp_path / "in", case, click_set([[z // 2, y // 2, x // 2]], []))
    del ct, pet, case
    command = [sys.executable, "inference.py", "--input", str(tmp_path / "in"), "--output", str(tmp_path)]
    limit = most_gib * GIB
    result = subprocess.run(
        [*command, "--model", "resources", "--mirror-axes", "none", "--step-size", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert result.returncode == 0, result.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= limit
    assert len([*(tmp_path / "images" / "tumor-lesion-segmentation").glob("*.mha")]) == 1
