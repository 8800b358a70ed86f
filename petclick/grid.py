"""Where voxels lie: the geometry of an image, and maps of points between two grids.

Points never travel without their frame: `index_xyz` is in ITK's index order, `index_zyx` in that of a NumPy
array, `point_mm` in the patient's frame (LPS, as ITK has it). Integer indices are voxel centres, so a volume
of n voxels reaches from -0.5 to n - 0.5 along an axis.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ROUNDING = 1e-6
"""Keeps a half from being rounded down where a map of coordinates is inexact in its last digits."""


@dataclass(frozen=True)
class Grid:
    """An image's geometry, as ITK has it.

    size_xyz: voxels per axis; spacing_mm: (x, y, z); origin_mm: centre of voxel (0, 0, 0);
    direction: nine cosines, row by row; column j is the direction of index axis j.
    """

    size_xyz: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Shape of the array that SimpleITK gives for this grid."""
        x, y, z = self.size_xyz
        return z, y, x

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Spacing in the array's axis order."""
        x, y, z = self.spacing_mm
        return z, y, x

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @cached_property
    def index_xyz_to_mm(self) -> FloatArray:
        """4 x 4 matrix from homogeneous (x, y, z) indices to millimetres."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing_mm)
        matrix[:3, 3] = self.origin_mm
        return matrix

    @cached_property
    def index_zyx_to_mm(self) -> FloatArray:
        """4 x 4 matrix from homogeneous (z, y, x) indices to millimetres."""
        return self.index_xyz_to_mm[:, [2, 1, 0, 3]]

    def contains(self, index_zyx: FloatArray) -> npt.NDArray[np.bool_]:
        """(N, 3) points in (z, y, x) -> (N,): inside the voxel faces, -0.5 <= i < n - 0.5."""
        index_zyx = np.reshape(index_zyx, (-1, 3))
        return np.asarray(((index_zyx >= -0.5) & (index_zyx < np.asarray(self.shape_zyx) - 0.5)).all(axis=1))

    def extent_mm(self) -> tuple[FloatArray, FloatArray]:
        """Lower and upper corner, (3,) each in (x, y, z) mm, of the axis-aligned box around all voxels."""
        faces = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in self.size_xyz], indexing="ij")).reshape(3, -1)
        corners = apply_affine(self.index_xyz_to_mm, faces.T)
        return corners.min(axis=0), corners.max(axis=0)

    def overlaps(self, other: "Grid") -> bool:
        """Whether the two extents share any volume."""
        (low, high), (other_low, other_high) = self.extent_mm(), other.extent_mm()
        return bool(np.all(np.minimum(high, other_high) > np.maximum(low, other_low)))

    def matches(self, other: "Grid", tolerance_vox: float = 0.01) -> bool:
        """Same size, and every corner within `tolerance_vox` voxels of the other grid's."""
        if self.size_xyz != other.size_xyz:
            return False
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in self.size_xyz], indexing="ij")).reshape(3, -1).T
        moved = apply_affine(np.linalg.inv(other.index_xyz_to_mm) @ self.index_xyz_to_mm, ends)
        return bool(np.abs(moved - ends).max() <= tolerance_vox)


def apply_affine(matrix: FloatArray, points: npt.ArrayLike) -> FloatArray:
    """Map (N, 3) points through a 4 x 4 matrix of homogeneous coordinates."""
    points = np.reshape(np.asarray(points, dtype=np.float64), (-1, 3))
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def crop_affine(lower_zyx: npt.ArrayLike) -> FloatArray:
    """Matrix that maps indices of a volume to those of a crop which starts at `lower_zyx`."""
    matrix = np.eye(4)
    matrix[:3, 3] = -np.asarray(lower_zyx, dtype=np.float64)
    return matrix


def transpose_affine(axes: npt.ArrayLike) -> FloatArray:
    """Matrix that maps indices of `a` to those of `a.transpose(axes)`."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3)[np.asarray(axes)]
    return matrix


def resample_affine(old_shape: npt.ArrayLike, new_shape: npt.ArrayLike) -> FloatArray:
    """Matrix for a centre-aligned resize: i -> (i + 0.5) * new / old - 0.5, as scikit-image and torch do."""
    scale = np.asarray(new_shape, dtype=np.float64) / np.asarray(old_shape, dtype=np.float64)
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = 0.5 * scale - 0.5
    return matrix


def to_voxels(index: FloatArray, shape: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Nearest voxel of (N, 3) float indices, halves up, kept inside 0 ... n - 1."""
    return np.clip(
        np.floor(index + 0.5 + ROUNDING).astype(np.int64), 0, np.asarray(shape, dtype=np.int64) - 1
    )
