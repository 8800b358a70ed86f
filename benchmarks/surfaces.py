"""Surface Dice and HD95 of a full-size mask with 200 lesions, against grand-challenge-metrics' HD95.

The library, needed for development only, makes two volumes of distances; ours a k-d tree of surface points.
"""

import time

import numpy as np
from grand_challenge_metrics.stats import percentile_hausdorff_distance

from benchmarks.metrics import masks
from petclick.metrics import surface_score

SPACING_ZYX_MM = (3.0, 2.04, 2.04)
TOLERANCE_MM = 5.0


def run() -> dict[str, float]:
    """Seconds of one run of each, and their ratio."""
    truth, prediction = masks(np.random.default_rng(0))
    start = time.perf_counter()
    ours = surface_score(truth, prediction, SPACING_ZYX_MM, TOLERANCE_MM)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    hd95_mm = percentile_hausdorff_distance(truth, prediction, percentile=0.95, voxelspacing=SPACING_ZYX_MM)
    library_seconds = time.perf_counter() - start
    if not np.isclose(ours.hd95_mm, hd95_mm):
        raise RuntimeError(f"different results: {ours.hd95_mm}, {hd95_mm}")
    return {"seconds": seconds, "library_seconds": library_seconds, "ratio": library_seconds / seconds}
