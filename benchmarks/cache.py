"""A second process with one more click against the first one, on a whole body at the model's spacing.

Wall time of `inference.py`, start-up included. A third process, without the cache, says what the second one's
mask must be.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks._cases import MODEL, benchmark_model, more_and_more, whole_body
from petclick.clicks import save_clicks
from petclick.images import read_image, write_image

REPEATS = 3
"""Of the second process, each with what the first one has kept."""


def run() -> dict[str, float]:
    """Seconds of both processes (median of several for the second one), and their ratio.

    Raises:
        RuntimeError: the second one's mask is not that of a process without the cache.
    """
    case, clicks = whole_body(benchmark_model())
    one_more = next(more_and_more(clicks, 1, np.argwhere(case.ct_hu > -500)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, array in (("ct", case.ct_hu), ("pet", case.pet_suv)):
            (folder / "in" / "images" / kind).mkdir(parents=True)
            write_image(array, case.grid, folder / "in" / "images" / kind / "phantom.mha")
        save_clicks(clicks, folder / "in" / "lesion-clicks.json")
        first_s = _seconds(folder, folder / "cache")
        save_clicks(one_more, folder / "in" / "lesion-clicks.json")
        kept, seconds = set((folder / "cache").iterdir()), []
        for _ in range(REPEATS):
            for new in set((folder / "cache").iterdir()) - kept:
                new.unlink()
            seconds.append(_seconds(folder, folder / "cache"))
        mask = _mask(folder)
        _seconds(folder, None)
        if not np.array_equal(mask, _mask(folder)):
            raise RuntimeError("the mask differs from that of a process without the cache")
    second_s = statistics.median(seconds)
    return {
        "first process, seconds": first_s,
        "one more click, median seconds": second_s,
        "first process / one more click": first_s / second_s,
    }


def _seconds(folder: Path, cache: Path | None) -> float:
    """Wall time of one process."""
    flags: list[str | Path] = [
        "--input",
        folder / "in",
        "--output",
        folder / "out",
        "--model",
        MODEL,
        "--quiet",
    ]
    flags += ["--cache", cache or "none", "--folds", os.environ.get("PETCLICK_BENCHMARK_FOLDS", "all")]
    others = {name: value for name, value in os.environ.items() if not name.startswith("PETCLICK_")}
    start = time.perf_counter()
    subprocess.run([sys.executable, MODEL.parent / "inference.py", *flags], env=others, check=True)
    return time.perf_counter() - start


def _mask(folder: Path) -> npt.NDArray[np.generic]:
    (path,) = (folder / "out").rglob("*.mha")
    return read_image(path)[0]
