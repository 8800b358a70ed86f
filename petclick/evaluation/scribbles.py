"""Strokes on a prediction's largest error, as autoPET V's simulated interaction draws them.

Source: the task page (autopet-v.grand-challenge.org) and the organisers' public code
(github.com/lab-midas/autoPETV, interactive/). Among the 8-connected components of all axial slices the
largest is taken, once for what is missed and once for what is false, and a stroke is drawn along its centre
line. The stroke with more voxels is given to the model; the tumour stroke where both have as many.
"""

import cc3d
import numpy as np
import numpy.typing as npt
from skimage.graph import route_through_array
from skimage.morphology import skeletonize

from petclick.clicks import ClickSet, click_set

Mask = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]
Voxels = npt.NDArray[np.int64]

END_SHARE = 0.1
"""Share of a centre line that is cut off at each end."""
LONG_STROKE = 10
"""Centre lines of up to this many voxels are left whole."""


def error_scribble(truth: Mask, prediction: Mask) -> ClickSet:
    """Draw the next stroke: tumour clicks on a missed region, or background clicks on a false one.

    Args:
        truth: (z, y, x) mask of {0, 1}; slices along z are axial.
        prediction: likewise, on the same grid.

    Returns:
        The stroke's voxels, each once; none where the masks are equal.
    """
    missed, false = _stroke(truth > prediction), _stroke(prediction > truth)
    return click_set(missed, []) if len(missed) >= len(false) else click_set([], false)


def centre_line(region: BoolMask) -> Voxels:
    """Voxels (N, 2) along the middle of a connected 2-D region, from one end to the other.

    It is the shortest way along the skeleton between the two of its voxels that lie farthest apart, without
    `END_SHARE` of it at each end. A region whose skeleton is a single voxel is taken as a whole.
    """
    skeleton = skeletonize(region)
    points = np.argwhere(skeleton)
    if len(points) < 2:
        return np.argwhere(region)
    partners = np.array([((points - point) ** 2).sum(axis=1).argmax() for point in points])
    start = ((points - points[partners]) ** 2).sum(axis=1).argmax()
    costs = np.where(skeleton, 1, -1)  # a negative cost closes a voxel
    way, _ = route_through_array(
        costs, points[start], points[partners[start]], fully_connected=True, geometric=False
    )
    line = np.array(way, np.int64)
    if len(line) > LONG_STROKE:
        line = line[int(len(line) * END_SHARE) : int(len(line) * (1 - END_SHARE))]
    return line


def _stroke(error: BoolMask) -> Voxels:
    """Stroke (N, 3) on the largest component of any axial slice; the first one among equals."""
    largest, best, slice_z = 0, np.zeros((0, 0), bool), 0
    for z in np.flatnonzero(error.any(axis=(1, 2))):
        if np.count_nonzero(error[z]) <= largest:
            continue
        labels = cc3d.connected_components(error[z], connectivity=8)
        voxels = np.bincount(labels[error[z]])
        if voxels.max() > largest:
            largest, best, slice_z = int(voxels.max()), labels == voxels.argmax(), int(z)
    if not largest:
        return np.zeros((0, 3), np.int64)
    return np.insert(centre_line(best), 0, slice_z, axis=1)
