"""A second process with one more click against the first one, on a whole body at the model's spacing.

Wall time of `inference.py`, start-up included. A third process, without the cache, says what the second one's
mask must be.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks._cases import benchmark_model, more_and_more, whole_body
from benchmarks._runs import run_inference, write_job
from petclick.clicks import save_clicks

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
        source, output, cache = (Path(name) / part for part in ("in", "out", "cache"))
        write_job(source, case, clicks)
        first_s, _ = run_inference(source, output, "--cache", cache)
        save_clicks(one_more, source / "lesion-clicks.json")
        kept, seconds = set(cache.iterdir()), []
        for _ in range(REPEATS):
            for new in set(cache.iterdir()) - kept:
                new.unlink()
            second_s, mask = run_inference(source, output, "--cache", cache)
            seconds.append(second_s)
        if not np.array_equal(mask, run_inference(source, output, "--cache", "none")[1]):
            raise RuntimeError("the mask differs from that of a process without the cache")
    second_s = statistics.median(seconds)
    return {
        "first process, seconds": first_s,
        "one more click, median seconds": second_s,
        "first process / one more click": first_s / second_s,
    }
