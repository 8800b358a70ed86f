"""Challenge metrics of a full-size mask with 200 lesions, against a loop over components.

The loop passes over the volume for each component, as the organisers' public code does, and is the tests'
oracle as well.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import astuple

import cc3d
import numpy as np
import numpy.typing as npt

from petclick.metrics import CONNECTIVITY, DMM_IOU, ProtocolName, Score, score

SHAPE_ZYX = (326, 400, 400)
LESIONS = 200
VOXEL_ML = 3.0 * 2.04 * 2.04 / 1000
REPEATS = 5

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.integer]


def run() -> dict[str, float]:
    """Seconds of both (median of several for ours, one run of the loop) and their ratio."""
    truth, prediction = masks(np.random.default_rng(0))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        ours = score(truth, prediction, VOXEL_ML)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    loop = loop_score(truth.astype(bool), prediction.astype(bool), VOXEL_ML, "autopet4", _label)
    loop_seconds = time.perf_counter() - start
    if not np.allclose(astuple(ours), astuple(loop)):
        raise RuntimeError(f"different results: {ours}, {loop}")
    median = statistics.median(seconds)
    return {"seconds": median, "loop_seconds": loop_seconds, "ratio": loop_seconds / median}


def masks(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Truth and prediction, uint8, full size: ellipsoids, of which some are shifted, missed or invented."""
    truth, prediction = np.zeros(SHAPE_ZYX, np.uint8), np.zeros(SHAPE_ZYX, np.uint8)
    step = 36  # a lattice with at most one lesion at a point, so that no two touch
    lattice = np.meshgrid(*[np.arange(step // 2, n - step // 2, step) for n in SHAPE_ZYX], indexing="ij")
    centres = rng.permutation(np.reshape(lattice, (3, -1)).T)
    for i, centre in enumerate(centres[: LESIONS * 5 // 4]):
        radii = rng.uniform(2, 10, 3)
        if i < LESIONS:
            _draw(truth, centre, radii)
        if i >= LESIONS // 4:  # a quarter is missed, and as many are invented
            _draw(prediction, centre + rng.integers(-5, 6, 3), radii)
    return truth, prediction


def loop_score(
    truth: Mask,
    prediction: Mask,
    voxel_ml: float,
    protocol: ProtocolName,
    label: Callable[[Mask], Labels],
) -> Score:
    """What `petclick.metrics.score` gives, by passes over the volume for each component.

    Args:
        truth: (z, y, x) booleans.
        prediction: likewise.
        voxel_ml: a voxel's volume.
        protocol: whose rules hold.
        label: gives the components of a mask as 1 ... n.
    """
    truth_labels, labels = label(truth), label(prediction)
    found: set[int] = set()
    right: set[int] = set()
    touched: set[int] = set()
    touching: set[int] = set()
    for t in range(1, truth_labels.max() + 1):
        lesion = truth_labels == t
        for p in np.unique(labels[lesion & prediction]).tolist():
            component = labels == p
            touched.add(t)
            touching.add(p)
            if (lesion & component).sum() / (lesion | component).sum() >= DMM_IOU:
                found.add(t)
                right.add(p)
    by_overlap = protocol == "autopet4"
    fpv_ml = fnv_ml = 0.0
    for p in set(range(1, labels.max() + 1)) - (touching if by_overlap else right):
        fpv_ml += (labels == p).sum() * voxel_ml
    for t in set(range(1, truth_labels.max() + 1)) - (touched if by_overlap else found):
        fnv_ml += (truth_labels == t).sum() * voxel_ml
    tp, fp, fn = len(found), labels.max() - len(right), truth_labels.max() - len(found)
    if truth.any():
        dice = 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum())
        return Score(dice, fpv_ml, fnv_ml, tp, fp, fn, 2 * tp / (2 * tp + fp + fn))
    nan = float("nan")
    return Score(nan if by_overlap else float(not prediction.any()), fpv_ml, nan, tp, fp, fn, nan)


def _draw(mask: npt.NDArray[np.uint8], centre: npt.NDArray[np.int64], radii: npt.NDArray[np.float64]) -> None:
    """Set an axis-aligned ellipsoid to 1."""
    low = np.maximum(np.ceil(centre - radii), 0).astype(int)
    high = np.minimum(np.floor(centre + radii) + 1, mask.shape).astype(int)
    box = tuple(map(slice, low, high))
    z, y, x = ((o - c) / r for o, c, r in zip(np.ogrid[box], centre, radii, strict=True))
    mask[box][z**2 + y**2 + x**2 <= 1] = 1


def _label(mask: Mask) -> Labels:
    """18-connected components by connected-components-3d, as in the organisers' code."""
    return cc3d.connected_components(mask, connectivity=CONNECTIVITY)
