"""Strokes on one axial slice, as autoPET V draws them: centre line, random line, boundary.

Source: the task page (autopet-v.grand-challenge.org) and the organisers' public code
(github.com/lab-midas/autoPETV, interactive/simulate_scribbles.py), which draws a third of the cases in each
way. A region is a connected 2-D mask, a line its voxels (N, 2), each once; a region of fewer than two places
for a line is taken as a whole.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.draw import line as straight_line
from skimage.graph import route_through_array
from skimage.morphology import skeletonize

Mask = npt.NDArray[np.bool_]
Voxels = npt.NDArray[np.int64]
Line = Callable[[Mask], Voxels]
"""Draws a stroke's voxels into a region."""

END_SHARE = 0.1
"""Share of a centre line that is cut off at each end."""
LONG_STROKE = 10
"""Centre lines of up to this many voxels are left whole."""
BOUNDARY_SHARE = 0.2
"""Length of a boundary stroke, in shares of the boundary's voxels."""


def largest_piece(mask: Mask) -> tuple[int, Mask]:
    """Slice z and region of the largest 8-connected piece of any axial slice; the first one among equals.

    Args:
        mask: (z, y, x), not empty.
    """
    largest, best, slice_z = 0, np.zeros((0, 0), bool), 0
    areas = mask.sum(axis=(1, 2))
    for z in np.flatnonzero(areas):
        if areas[z] <= largest:
            continue
        labels, _ = ndimage.label(mask[z], np.ones((3, 3)))
        voxels = np.bincount(labels[mask[z]])
        if voxels.max() > largest:
            largest, best, slice_z = int(voxels.max()), labels == voxels.argmax(), int(z)
    return slice_z, best


def centre_line(region: Mask) -> Voxels:
    """Voxels along the middle of a region, from one end to the other.

    It is the shortest way along the skeleton between the two of its voxels that lie farthest apart, without
    `END_SHARE` of it at each end.
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


def random_line(region: Mask, rng: np.random.Generator) -> Voxels:
    """The straight line between two voxels drawn from the region, as far as it lies inside."""
    points = np.argwhere(region)
    if len(points) < 2:
        return points
    start, end = rng.choice(points, 2)
    line = np.stack(straight_line(*start, *end), axis=1).astype(np.int64)
    return np.compress(region[tuple(line.T)], line, axis=0)


def boundary_line(region: Mask, rng: np.random.Generator) -> Voxels:
    """A walk along the region's outermost voxels over `BOUNDARY_SHARE` of them, from one that is drawn.

    The slice's own edges are no boundary.
    """
    points = np.argwhere(region & ~ndimage.binary_erosion(region, border_value=1))
    if len(points) < 2:
        return np.argwhere(region)
    left = {(int(y), int(x)) for y, x in points}
    y, x = map(int, rng.choice(points))
    line = [(y, x)]
    for _ in range(max(2, int(BOUNDARY_SHARE * len(points)))):
        left.discard((y, x))
        around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        following = next((voxel for voxel in around if voxel in left), None)
        if following is None:
            break
        y, x = following
        line.append(following)
    return np.array(line, np.int64)


def draw_stroke(mask: Mask, line: Line) -> Voxels:
    """(N, 3) voxels of a stroke on the largest piece of any axial slice; none on an empty mask."""
    if not mask.any():
        return np.zeros((0, 3), np.int64)
    z, region = largest_piece(mask)
    return np.insert(line(region), 0, z, axis=1)
