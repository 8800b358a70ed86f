"""Where a case has a body: only there can a lesion be, and only there are tiles run.

A voxel is empty if CT shows air and PET no uptake. A lung's voxels count as empty too, except for its vessels
and walls, but hardly a tile has none of these; a lesion is denser than air or takes up tracer.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]

AIR_BELOW_HU = -500.0
"""CT of air; between that of a lung (-850) and of fat (-100)."""
UPTAKE_FROM_SUV = 0.5
"""Less than any lesion has, more than the noise around a body."""
MARGIN_MM = 20.0
"""Voxels this close to a body count as body, along each axis."""


def find_body(ct_hu: Image, pet_suv: Image) -> Mask:
    """The voxels of a case that are not empty.

    Args:
        ct_hu: (z, y, x), any axis order.
        pet_suv: on the same grid.
    """
    return (ct_hu >= AIR_BELOW_HU) | (pet_suv >= UPTAKE_FROM_SUV)


def resize_any(mask: Mask, shape: Sequence[int]) -> Mask:
    """A mask on another grid over the same box: True where any of the voxels that a new one covers is."""
    for axis, (old, new) in enumerate(zip(mask.shape, shape, strict=True)):
        edges = np.arange(new + 1) * old / new
        lower, upper = np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int)
        # reduceat takes pairs of bounds; an upper one of the last voxel would be out of range.
        bounds = np.column_stack((lower, np.minimum(upper, old - 1))).ravel()
        result = np.logical_or.reduceat(mask, bounds, axis=axis).take(range(0, 2 * new, 2), axis=axis)
        ends = (slice(None),) * axis
        result[(*ends, upper == old)] |= mask[(*ends, slice(old - 1, old))]
        mask = result
    return mask


def has_body(body: Mask, lower: Sequence[int], upper: Sequence[int], margin_vox: Sequence[int]) -> bool:
    """Whether a half-open box, made larger by a margin on all sides, has a voxel of the body."""
    box = tuple(
        slice(max(low - more, 0), max(high + more, 0))
        for low, high, more in zip(lower, upper, margin_vox, strict=True)
    )
    return bool(body[box].any())
