"""Parts of a patch that simulation works on, found without a pass over the patch for each of them."""

from dataclasses import dataclass
from typing import Final

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
Voxels = npt.NDArray[np.int64]

CONNECTIVITY: Final = 26
JITTER_VOX = 3
"""How far (per axis) a click is moved from its exact place."""
SAMPLE_STEP = 61
"""Every so manieth voxel gives a first guess of a percentile."""


@dataclass(frozen=True)
class Component:
    """One component in its own crop, with a margin of a voxel where the volume has one."""

    lower_zyx: Voxels
    free: Mask  # voxels of the component that hold no click yet

    def depth(self) -> npt.NDArray[np.float64]:
        """Distance to the nearest voxel outside, exact, since that one lies in the margin; 0 outside."""
        # A component that is the whole volume has no outside, and so no centre.
        if self.free.all():
            return np.ones(self.free.shape)
        return np.asarray(ndimage.distance_transform_edt(self.free))

    def near(self, voxel: Voxels, reach: int) -> Voxels:
        """(N, 3) free voxels up to `reach` from `voxel` along each axis, or all free ones if none is."""
        lower = np.maximum(voxel - reach, 0)
        near = np.argwhere(self.free[tuple(map(slice, lower, voxel + reach + 1))]) + lower
        return near if len(near) else np.argwhere(self.free)


class Components:
    """The components of a mask: how large each is, and its crop when asked for."""

    def __init__(self, mask: Mask) -> None:
        """Label the mask; `sizes` holds the components' voxels, by their number."""
        # cc3d 4.1 errs on booleans with 26 neighbours where an axis has length 1.
        self._labels = cc3d.connected_components(mask.view(np.uint8), connectivity=CONNECTIVITY)
        self._voxels = np.flatnonzero(mask)  # few, nearly always
        self._label_of = self._labels.reshape(-1)[self._voxels]
        self.sizes = np.bincount(self._label_of)[1:]

    def cut_out(self, number: int) -> Component:
        """The component of a number from 0."""
        label = number + 1
        first, last = self._voxels[np.flatnonzero(self._label_of == label)[[0, -1]]]
        slice_size = self._labels[0].size
        lower_z = max(first // slice_size - 1, 0)
        slab = self._labels[lower_z : last // slice_size + 2] == label
        lower_y, y = _with_margin(slab.any(axis=(0, 2)))
        lower_x, x = _with_margin(slab.any(axis=(0, 1)))
        return Component(np.array([lower_z, lower_y, lower_x]), slab[:, y, x].copy())


def _with_margin(used: npt.NDArray[np.bool_]) -> tuple[int, slice]:
    """From where to where an axis is used, and one more at each end; slices end with the volume."""
    places = np.flatnonzero(used)
    lower = max(int(places[0]) - 1, 0)
    return lower, slice(lower, int(places[-1]) + 2)


def at(voxels: npt.NDArray[np.int64], shape: tuple[int, ...]) -> Voxels:
    """(N, 3) voxels of their places in the flattened volume."""
    return np.stack(np.unravel_index(voxels, shape), axis=1)


def hot_mask(lesion: Mask, pet: Image, percentile: float) -> Mask:
    """`hot_outside` as a mask (z, y, x)."""
    mask = np.zeros(lesion.size, np.bool_)
    mask[hot_outside(lesion, pet, percentile)] = True
    return mask.reshape(lesion.shape)


def hot_outside(lesion: Mask, pet: Image, percentile: float) -> npt.NDArray[np.int64]:
    """Voxels outside the lesions whose uptake reaches the percentile of all such voxels.

    Args:
        lesion: (z, y, x) tumour mask.
        pet: (z, y, x) uptake, finite.
        percentile: from 0 to 100.

    Returns:
        Their places in the flattened volume, ascending.
    """
    n_outside = lesion.size - np.count_nonzero(lesion)
    # So many have at least the uptake that lies at the percentile, or next above it.
    n_hot = n_outside - int(np.ceil((n_outside - 1) * (percentile / 100)))
    if n_outside == 0:
        return np.zeros(0, np.int64)
    uptake, inside = pet.reshape(-1), lesion.reshape(-1)
    # A sample's percentile a little lower leaves few voxels to rank.
    sample = np.sort(uptake[::SAMPLE_STEP][~inside[::SAMPLE_STEP]])
    guess = max(0, int(len(sample) * (percentile / 100 - 0.25 * (1 - percentile / 100)) - 10))
    voxels = np.zeros(0, np.int64)
    if guess:
        voxels = np.flatnonzero(uptake >= sample[guess])
        voxels = voxels[~inside[voxels]]
    if len(voxels) < n_hot:
        voxels = np.flatnonzero(~inside)
    values = uptake[voxels]
    rank = len(values) - n_hot
    hot: npt.NDArray[np.int64] = voxels[values >= np.partition(values, rank)[rank]]
    return hot
