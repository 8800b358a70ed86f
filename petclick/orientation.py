"""Axis codes: the grid on which a volume lies once its index axes point where a code such as 'LPS' says.

Turning axes around loses nothing, so a case stored in any of the 48 ways gives the same voxels to the
network, and the way back gives the same mask. Only oblique volumes need resampling.
"""

from itertools import permutations, product
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from petclick.grid import FloatArray, Grid, apply_affine

ScalarT = TypeVar("ScalarT", bound=np.generic)

STRAIGHT_TOLERANCE = 1e-3
"""Largest deviation of a direction cosine up to which index axes count as parallel to the patient's.

It is 0.06 degrees: far above what headers lose in float32, and less than half a voxel over a whole body.
"""

SAME_VOXEL_TOLERANCE = 0.01
"""Largest distance, in voxels, up to which two grids' voxels count as the same (as in `Grid.matches`)."""

AXIS_OF_LETTER = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Letter -> axis and sign in ITK's patient frame, whose axes point to the left, posterior and superior."""


def is_axis_code(code: object) -> bool:
    """Whether `code` has one letter each of L/R, P/A and S/I."""
    if not isinstance(code, str):
        return False
    return sorted(AXIS_OF_LETTER.get(letter, (3, 1))[0] for letter in code) == [0, 1, 2]


def orient(grid: Grid, code: str) -> Grid:
    """The grid of a volume that is brought to an axis code.

    Args:
        grid: where the volume lies.
        code: where the index axes x, y, z point to, as in ITK's DICOMOrient: 'LPS' means that x grows to the
            patient's left, y to posterior and z to superior, which is the identity direction.

    Returns:
        Where the index axes are parallel to the patient's within `STRAIGHT_TOLERANCE`: the same voxels, axes
        exchanged and turned around. Otherwise (oblique): a grid with exactly the code's directions, the
        spacing of the closest axes and the same centre, that covers the whole volume.

    Raises:
        ValueError: the code does not have one letter each of L/R, P/A and S/I.
    """
    wanted = _directions(code)
    direction = np.reshape(grid.direction, (3, 3))
    closeness = np.abs(wanted.T @ direction)
    # old axis that becomes new axis 0, 1, 2
    order = max(permutations(range(3)), key=lambda axes: float(closeness[range(3), axes].sum()))
    same_way = np.sum(wanted * direction[:, order], axis=0) >= 0
    turned = np.where(same_way, 1.0, -1.0) * direction[:, order]
    size, spacing_mm = np.take(grid.size_xyz, order), np.take(grid.spacing_mm, order)
    if np.abs(turned - wanted).max() <= STRAIGHT_TOLERANCE:
        first_xyz = np.zeros(3)
        first_xyz[list(order)] = np.where(same_way, 0, size - 1)
        return _grid(size, spacing_mm, apply_affine(grid.index_xyz_to_mm, first_xyz)[0], turned)
    low_mm, high_mm = grid.extent_mm()
    lengths_mm = np.abs(wanted.T @ (high_mm - low_mm))
    size = np.ceil(lengths_mm / spacing_mm - 1e-6).astype(np.int64)
    origin_mm = (low_mm + high_mm) / 2 - wanted @ ((size - 1) / 2 * spacing_mm)
    return _grid(size, spacing_mm, origin_mm, wanted)


def turned_view(array: npt.NDArray[ScalarT], source: Grid, target: Grid) -> npt.NDArray[ScalarT] | None:
    """A (z, y, x) array of `source` seen on `target`, where both grids have the same voxels.

    Returns:
        A view with axes exchanged or turned around, so its strides may be negative; None where the two grids
        differ by more than that.
    """
    to_target = np.linalg.inv(target.index_zyx_to_mm) @ source.index_zyx_to_mm
    turn = np.rint(to_target[:3, :3])
    if not ((np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()):
        return None
    axes, flipped = np.abs(turn).argmax(axis=1), turn.sum(axis=1) < 0
    size = np.take(source.shape_zyx, axes)
    corners = np.array([*product(*((-0.5, n - 0.5) for n in source.shape_zyx))])
    expected = corners @ turn.T + np.where(flipped, size - 1, 0)
    off_by = np.abs(apply_affine(to_target, corners) - expected).max()
    if tuple(size) != target.shape_zyx or off_by > SAME_VOXEL_TOLERANCE:
        return None
    return np.flip(array.transpose(axes), axis=tuple(np.flatnonzero(flipped)))


def _directions(code: str) -> FloatArray:
    """3 x 3 matrix whose column j is where index axis j points to."""
    if not is_axis_code(code):
        raise ValueError(f"an axis code has one letter each of L/R, P/A and S/I, got {code!r}")
    matrix = np.zeros((3, 3))
    for column, letter in enumerate(code):
        axis, sign = AXIS_OF_LETTER[letter]
        matrix[axis, column] = sign
    return matrix


def _grid(
    size: npt.NDArray[np.int64], spacing_mm: FloatArray, origin_mm: FloatArray, direction: FloatArray
) -> Grid:
    (nx, ny, nz), (sx, sy, sz), (ox, oy, oz) = size.tolist(), spacing_mm.tolist(), origin_mm.tolist()
    return Grid((nx, ny, nz), (sx, sy, sz), (ox, oy, oz), tuple(direction.ravel().tolist()))
