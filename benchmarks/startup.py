"""From the start of `inference.py` to its first tile, on the case in test/input, beside `import torch`."""

import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks._cases import MODEL, timed

REPEATS = 5
READY = "ready after"
"""What the log says before the first tile."""


def run() -> dict[str, float]:
    """Median seconds to the first tile, reading and preprocessing included, and of `import torch`."""
    torch_s = [
        timed(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))[0]
        for _ in range(REPEATS)
    ]
    return {
        "to the first tile, seconds": statistics.median(_to_first_tile() for _ in range(REPEATS)),
        "import torch in a process of its own, seconds": statistics.median(torch_s),
    }


def _to_first_tile() -> float:
    root = MODEL.parent
    with tempfile.TemporaryDirectory() as output:
        places = ["--input", root / "test" / "input", "--output", output, "--model", MODEL]
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, str(root / "inference.py"), *map(str, places), "--cache", "none"],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            if not any(READY in line for line in process.stderr):
                raise RuntimeError("inference.py ended before its first tile")
            seconds = time.perf_counter() - start
            process.stderr.read()
    return seconds
