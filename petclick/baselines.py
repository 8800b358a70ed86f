"""What a reader gets without a network: thresholds on PET, as in clinical practice.

Region growing from a click at a share of the local SUVmax (41 % after the EANM guideline for FDG,
doi 10.1007/s00259-014-2961-x, and 50 %), and fixed thresholds (SUV 2.5 and 4). They stand beside the network
in every table, so that one sees what it adds.
"""

import cc3d
import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet
from petclick.errors import InputError
from petclick.metrics import CONNECTIVITY

LOCAL_RADIUS_MM = 20.0
"""The local SUVmax is the maximum this close to a click."""


def region_growing(
    pet_suv: npt.NDArray[np.floating],
    clicks: ClickSet,
    spacing_zyx_mm: tuple[float, float, float],
    fraction: float,
) -> npt.NDArray[np.uint8]:
    """Grow a region from every tumour click, down to `fraction` of the local SUVmax.

    A click's region is the component of voxels at or above its threshold that holds the click: none if the
    click itself lies below; the regions are united. Background clicks are ignored: the challenge places them
    at the hottest voxels outside the truth, often at a lesion's rim, where they would undo its whole region.

    Args:
        pet_suv: (z, y, x) SUV, finite.
        clicks: on PET's grid, inside the volume.
        spacing_zyx_mm: the grid's spacing.
        fraction: of the maximum within `LOCAL_RADIUS_MM` of the click, such as 0.41.

    Returns:
        uint8 mask {0, 1} of PET's shape.

    Raises:
        InputError: `fraction` is not above 0 and up to 1.
    """
    if not 0 < fraction <= 1:
        raise InputError("fraction", "must be above 0, up to 1", fraction)
    mask = np.zeros(pet_suv.shape, np.uint8)
    tumor = clicks.of_kind("tumor")
    thresholds = np.array([fraction * _local_maximum(pet_suv, click, spacing_zyx_mm) for click in tumor])
    # Clicks in one lesion mostly share its maximum, so a scribble costs few labellings.
    for threshold in np.unique(thresholds[thresholds > 0]):
        labels = cc3d.connected_components(pet_suv >= float(threshold), connectivity=CONNECTIVITY)
        seeds = labels[tuple(tumor[thresholds == threshold].T)]
        mask[np.isin(labels, seeds[seeds > 0])] = 1
    return mask


def fixed_threshold(pet_suv: npt.NDArray[np.floating], suv: float) -> npt.NDArray[np.uint8]:
    """Every voxel of at least `suv`: uint8 mask {0, 1} of PET's shape (z, y, x)."""
    return (pet_suv >= suv).astype(np.uint8)


def _local_maximum(
    pet_suv: npt.NDArray[np.floating],
    click_zyx: npt.NDArray[np.int64],
    spacing_zyx_mm: tuple[float, float, float],
) -> float:
    """Largest SUV among the voxels whose centres lie within `LOCAL_RADIUS_MM` of the click."""
    reach = np.floor(LOCAL_RADIUS_MM / np.asarray(spacing_zyx_mm)).astype(int)
    low, high = np.maximum(click_zyx - reach, 0), np.minimum(click_zyx + reach + 1, pet_suv.shape)
    box = tuple(map(slice, low, high))
    offsets = np.ogrid[box]
    squared = sum(((o - c) * s) ** 2 for o, c, s in zip(offsets, click_zyx, spacing_zyx_mm, strict=True))
    return float(pet_suv[box][squared <= LOCAL_RADIUS_MM**2].max())
