"""A second process with one more click against the first one, on a whole-body phantom at the model's spacing.

Wall time of `inference.py`, start-up included, all folds and mirrors. A third process, without the cache,
says what the second one's mask must be.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from petclick import cli
from petclick.clicks import save_clicks
from petclick.evaluation.protocol import challenge_clicks, first_clicks
from petclick.images import Case, read_image
from petclick.model import load_model
from petclick.phantom import make_phantom
from training.convert import write_challenge_case

INFERENCE = Path(cli.__file__).resolve().parents[1] / "inference.py"
SIZE_ZYX_MM = (980.0, 500.0, 500.0)
LESIONS = 8
CLICKS = 3
"""Of each kind, in the first call."""
REPEATS = 3
"""Of the second call, each with an empty cache but for the first call's."""


def run() -> dict[str, float]:
    """Seconds of both calls (median of several for the second one), and their ratio."""
    spacing = load_model(cli.SHIPPED_MODEL).plan.spacing_mm
    z, y, x = (round(mm / step) for mm, step in zip(SIZE_ZYX_MM, spacing, strict=True))
    phantom = make_phantom((z, y, x), spacing, seed=0, n_lesions=LESIONS)
    case = Case(phantom.ct_hu, phantom.pet_suv, phantom.grid, "phantom")
    truth = (phantom.lesions > 0).astype(np.uint8)
    clicks = challenge_clicks(truth, case.pet_suv)
    fewer = first_clicks(clicks, CLICKS)
    more = first_clicks(clicks, CLICKS + 1)
    one_more = type(more)(
        np.concatenate((fewer.index_zyx, more.of_kind("tumor")[-1:])), np.append(fewer.kind, 0)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_challenge_case(case, truth, fewer, folder / "in")
        cold_s = _seconds(folder, folder / "cache")
        save_clicks(one_more, folder / "in" / "lesion-clicks.json")
        seconds = []
        for repeat in range(REPEATS):
            again = folder / f"cache-{repeat}"
            subprocess.run(["cp", "--recursive", "--preserve", folder / "cache", again], check=True)
            seconds.append(_seconds(folder, again))
        mask = _mask(folder)
        _seconds(folder, None)
        if not np.array_equal(mask, _mask(folder)):
            raise RuntimeError("the mask differs from that of a run without the cache")
    warm_s = statistics.median(seconds)
    return {"first_call_s": cold_s, "one_more_click_s": warm_s, "ratio": warm_s / cold_s}


def _seconds(folder: Path, cache: Path | None) -> float:
    """Wall time of one call in a process of its own."""
    flags: list[str | Path] = [
        "--input",
        folder / "in",
        "--output",
        folder / "out",
        "--cache",
        cache or "none",
        "--quiet",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PETCLICK_")}
    start = time.perf_counter()
    subprocess.run([sys.executable, INFERENCE, *flags], env=environment, check=True)
    return time.perf_counter() - start


def _mask(folder: Path) -> np.ndarray:
    (path,) = (folder / "out").rglob("*.mha")
    return read_image(path)[0]
