"""Time limits on a full-size case: whether each is kept, and what it costs, also on a machine that gets busy.

`inference.py` on 400 x 400 x 326 voxels of 2.04 x 2.04 x 3 mm. Halfway through the limit, or through what an
unlimited run takes, two processes that only count begin to compete for the cores.
"""

import contextlib
import functools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks._cases import N_CLICKS, random_clicks
from benchmarks._runs import dice, run_inference, write_job
from petclick.clicks import ClickSet
from petclick.images import Case
from petclick.phantom import make_patient

LIMITS_S = (60, 120, 300, 840)
HOGS = 2
HOG = [sys.executable, "-c", "while True: pass"]


def run() -> dict[str, float]:
    """Wall time of each limited run, and Dice of its mask to the unlimited one's; without and with hogs.

    Raises:
        subprocess.CalledProcessError: a run failed.
    """
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "in", Path(name) / "out"
        write_job(source, *_full_size())
        run = functools.partial(run_inference, source, output, "--cache", "none")
        unlimited_s, whole = run()
        figures["no limit: seconds"] = unlimited_s
        for limit_s in LIMITS_S:
            seconds, mask = run("--time-limit", str(limit_s))
            figures[f"{limit_s} s: seconds"] = seconds
            figures[f"{limit_s} s: Dice"] = dice(mask, whole)
            with _hogs(min(limit_s, unlimited_s) / 2):
                seconds, mask = run("--time-limit", str(limit_s))
            figures[f"{limit_s} s, busy from halfway: seconds"] = seconds
            figures[f"{limit_s} s, busy from halfway: Dice"] = dice(mask, whole)
    return figures


def _full_size() -> tuple[Case, ClickSet]:
    phantom = make_patient("fdg", 0, (3.0, 2.04, 2.04), (326, 400, 400))
    case = Case(phantom.ct_hu, phantom.pet_suv, phantom.grid, "phantom")
    return case, random_clicks(phantom.lesions > 0, phantom.tissues > 0, N_CLICKS, 0)


@contextlib.contextmanager
def _hogs(after_s: float) -> Iterator[None]:
    hogs: list[subprocess.Popen[bytes]] = []
    timer = threading.Timer(after_s, lambda: hogs.extend(subprocess.Popen(HOG) for _ in range(HOGS)))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for hog in hogs:
            hog.kill()
            hog.wait()
