"""`inference.py` as a process of its own: a job's input folder, its wall time, and its mask."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks._cases import MODEL
from petclick.clicks import ClickSet, save_clicks
from petclick.images import Case, read_image, write_image

Mask = npt.NDArray[np.uint8]


def write_job(folder: Path, case: Case, clicks: ClickSet) -> None:
    """Write an input folder in the platform's layout."""
    for kind, array in (("ct", case.ct_hu), ("pet", case.pet_suv)):
        (folder / "images" / kind).mkdir(parents=True)
        write_image(array, case.grid, folder / "images" / kind / "phantom.mha")
    save_clicks(clicks, folder / "lesion-clicks.json")


def run_inference(source: Path, output: Path, *flags: str | Path) -> tuple[float, Mask]:
    """Wall time of one run with the shipped model, and its mask, which replaces an earlier one.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    folds = os.environ.get("PETCLICK_BENCHMARK_FOLDS", "all")
    places: list[str | Path] = ["--input", source, "--output", output, "--model", MODEL, "--folds", folds]
    others = {name: value for name, value in os.environ.items() if not name.startswith("PETCLICK_")}
    command = [sys.executable, MODEL.parent / "inference.py", *places, *flags, "--quiet"]
    start = time.perf_counter()
    subprocess.run(command, env=others, check=True)
    seconds = time.perf_counter() - start
    (path,) = output.rglob("*.mha")
    return seconds, (read_image(path, trusted=True)[0] > 0).astype(np.uint8)


def dice(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(np.logical_and(a, b)) / total if total else 1.0
