"""From margin to mask with the clicks obeyed: pure functions, chosen by a model's `guidance.json`.

Arrays are (z, y, x) on the case's grid. The margin is the lesion's logit minus the background's; without any
step the mask is where it is above 0. Components are 18-connected, as the challenges count them. The default
spec does nothing, so a foreign model's masks are its own.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from petclick.baselines import region_growing
from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError
from petclick.follow import follow_clicks
from petclick.grid import Grid
from petclick.metrics import CONNECTIVITY

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.unsignedinteger]

NEIGHBOURS = ndimage.generate_binary_structure(3, 2)
"""Connectivity 18 as a structuring element."""
CLOSE_GRID_MM = 6.0
"""Closing looks at every n-th voxel of an axis, as long as these lie no farther apart."""
GROWING = 0.41
"""Share of the local SUVmax down to which a lesion that the network missed is grown from its click."""
CLOSE_LEAST_ML = 5.0
"""Smaller components are not closed: only large tumours have a cold core."""
SPLIT_MM = 20.0
"""A background click takes no voxel farther away than this from a component that a tumour click is in."""
NEAR_MM = 15.0
"""A tumour click this close to a prediction belongs to it, and only extends it."""


@dataclass(frozen=True)
class PostprocessSpec:
    """Which steps run, in this order.

    threshold_prior: precision of the margin's common shift to the clicks (`follow_clicks`), 0 for no such
    shift; local_variance, local_mm: variance and width of its local corrections, variance 0 for none;
    suv_floor: voxels below it leave the mask, except in components with a tumour click;
    drop_background: a component with background clicks and no tumour click is removed;
    close_mm: each large component is closed by a ball of this radius (`close_large`);
    split: a component with clicks of both kinds is divided between them;
    grow: a tumour click outside the mask extends it, or grows a lesion of at most `grow_most_ml`;
    min_volume_ml: smaller components without a tumour click are removed;
    min_total_ml: without tumour clicks, a mask smaller than this is emptied.
    """

    threshold_prior: float = 0.0
    local_variance: float = 0.0
    local_mm: float = 20.0
    suv_floor: float = 0.0
    drop_background: bool = False
    close_mm: float = 0.0
    split: bool = False
    grow: bool = False
    grow_most_ml: float = 20.0
    min_volume_ml: float = 0.0
    min_total_ml: float = 0.0

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            InputError: one is negative or not finite, or `local_mm` is 0.
        """
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError("postprocess", f"{name} must be a number from 0", repr(value))
        if self.local_mm == 0:
            raise InputError("postprocess", "local_mm must be above 0", repr(self.local_mm))


def postprocess(
    margin: Image, pet_suv: Image, clicks: ClickSet, grid: Grid, spec: PostprocessSpec
) -> npt.NDArray[np.uint8]:
    """Decide each voxel.

    Args:
        margin: float32 (z, y, x), lesion logit minus background logit.
        pet_suv: float32 (z, y, x).
        clicks: all clicks so far, on the same grid.
        grid: of both arrays.
        spec: the steps.

    Returns:
        uint8 mask (z, y, x) of 0 and 1.
    """
    common_variance = 1 / (2 * spec.threshold_prior) if spec.threshold_prior > 0 else 0.0
    margin = follow_clicks(margin, clicks, grid, common_variance, spec.local_variance, spec.local_mm)
    mask = margin > 0
    if spec.suv_floor > 0:
        mask = drop_cold(mask, pet_suv, clicks, spec.suv_floor)
    if spec.drop_background:
        mask = drop_background_components(mask, clicks)
    if spec.close_mm > 0:
        mask = close_large(mask, clicks, grid, spec.close_mm)
    if spec.split:
        mask = split_at_clicks(mask, margin, clicks, grid)
    if spec.grow:
        mask = grow_at_clicks(mask, margin, pet_suv, clicks, grid, spec.grow_most_ml)
    if spec.min_volume_ml > 0:
        mask = drop_small(mask, clicks, spec.min_volume_ml / grid.voxel_ml)
    if not len(clicks.of_kind("tumor")) and np.count_nonzero(mask) * grid.voxel_ml < spec.min_total_ml:
        mask = np.zeros_like(mask)
    return mask.astype(np.uint8)


def close_large(mask: Mask, clicks: ClickSet, grid: Grid, radius_mm: float) -> Mask:
    """Close each component of at least `CLOSE_LEAST_ML` by a ball: cold cores and notches are filled.

    What would put a background click into a component without a tumour click is not filled.
    """
    labels = _components(mask)
    sizes, filled = np.bincount(labels.ravel()), mask.copy()
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if sizes[label] * grid.voxel_ml >= CLOSE_LEAST_ML:
            filled[box] |= _close(labels[box] == label, grid.spacing_zyx_mm, radius_mm)
    labels = _components(filled)
    refused = np.setdiff1d(_held(labels, clicks, "background"), _held(labels, clicks, "tumor"))
    return mask | (filled & ~_is_among(labels, refused))


def _close(component: Mask, spacing_zyx_mm: Sequence[float], radius_mm: float) -> Mask:
    """Closing by a ball, with nothing but background around the array.

    Two distance transforms on a grid of up to `CLOSE_GRID_MM` stand for dilation and erosion: any radius
    costs the same, and on finer grids the filling's border is exact to a voxel of that grid.
    """
    strides = [max(1, int(CLOSE_GRID_MM / mm)) for mm in spacing_zyx_mm]
    coarse_mm = [mm * n for mm, n in zip(spacing_zyx_mm, strides, strict=True)]
    margins = [int(radius_mm / mm) + 2 for mm in coarse_mm]
    inside = np.pad(component[tuple(slice(None, None, n) for n in strides)], [(n, n) for n in margins])
    dilated = ndimage.distance_transform_edt(~inside, sampling=coarse_mm) <= radius_mm
    closed = ndimage.distance_transform_edt(dilated, sampling=coarse_mm) > radius_mm
    closed = closed[tuple(slice(n, -n) for n in margins)]
    for axis, n in enumerate(strides):
        closed = closed.repeat(n, axis)
    return np.asarray(closed[tuple(map(slice, component.shape))], bool)


def drop_cold(mask: Mask, pet_suv: Image, clicks: ClickSet, suv_floor: float) -> Mask:
    """Remove voxels below `suv_floor`; components that hold a tumour click stay whole."""
    labels = _components(mask)
    return mask & ((pet_suv >= suv_floor) | _is_among(labels, _held(labels, clicks, "tumor")))


def drop_background_components(mask: Mask, clicks: ClickSet) -> Mask:
    """Remove the components that hold a background click and no tumour click."""
    labels = _components(mask)
    refused = np.setdiff1d(_held(labels, clicks, "background"), _held(labels, clicks, "tumor"))
    return mask & ~_is_among(labels, refused)


def split_at_clicks(mask: Mask, margin: Image, clicks: ClickSet, grid: Grid) -> Mask:
    """Divide components with clicks of both kinds by a watershed on the margin, and keep the tumour's part.

    Flooding starts at the clicks and takes voxels from the surest lesion down: a background click at a rim
    costs the rim. It never reaches farther than `SPLIT_MM`, so that one click cannot take a large lesion; an
    attached organ that is larger needs several.
    """
    # scikit-image takes a while to import, and most runs have nothing to split.
    from skimage.segmentation import watershed

    labels = _components(mask)
    result = mask.copy()
    disputed = np.intersect1d(_held(labels, clicks, "tumor"), _held(labels, clicks, "background"))
    boxes = cc3d.statistics(labels)["bounding_boxes"] if len(disputed) else []
    for label in disputed:
        box = boxes[int(label)]
        component = labels[box] == label
        markers = np.zeros(component.shape, np.int8)
        lower = np.array([part.start for part in box])
        for value, name in ((1, "tumor"), (2, "background")):
            local = clicks.of_kind(name) - lower
            inside = ((local >= 0) & (local < component.shape)).all(axis=1)
            markers[tuple(local[inside].T)] = value
        owner = watershed(-margin[box], np.where(component, markers, 0), NEIGHBOURS, mask=component)
        away_mm = ndimage.distance_transform_edt(markers != 2, sampling=grid.spacing_zyx_mm)
        result[box][(owner == 2) & (away_mm <= SPLIT_MM)] = False
    return result


def grow_at_clicks(
    mask: Mask, margin: Image, pet_suv: Image, clicks: ClickSet, grid: Grid, most_ml: float
) -> Mask:
    """Make sure that every tumour click lies in the mask, with a region that fits the images.

    A click within `NEAR_MM` of the mask extends it by the voxels around the click, no farther away than the
    mask, that are at least as likely as the clicked one. A click far from it grows a lesion down to `GROWING`
    of its local SUVmax; where that would exceed `most_ml`, voxels as above within `NEAR_MM` are taken.
    Background clicks stay outside.
    """
    result = mask.copy()
    spacing = np.array(grid.spacing_zyx_mm)
    for click in clicks.of_kind("tumor"):
        if result[tuple(click)]:
            continue
        reach = np.floor(NEAR_MM / spacing).astype(np.int64)
        lower, upper = np.maximum(click - reach, 0), np.minimum(click + reach + 1, mask.shape)
        box = tuple(map(slice, lower, upper))
        offsets = [(axis - at) * mm for axis, at, mm in zip(np.ogrid[box], click, spacing, strict=True)]
        away_mm = np.sqrt(sum(offset**2 for offset in offsets))
        predicted = result[box] & (away_mm <= NEAR_MM)
        if not predicted.any():
            region = region_growing(pet_suv, click_set([click], []), grid.spacing_zyx_mm, GROWING) > 0
            if region.any() and np.count_nonzero(region) * grid.voxel_ml <= most_ml:
                result |= region
        reach_mm = away_mm[predicted].min() if predicted.any() else NEAR_MM
        if not result[tuple(click)]:
            likely = (margin[box] >= margin[tuple(click)]) & (away_mm <= reach_mm)
            around = _components(likely)
            result[box] |= around == around[tuple(click - lower)]
    result[tuple(clicks.of_kind("background").T)] &= mask[tuple(clicks.of_kind("background").T)]
    return result


def drop_small(mask: Mask, clicks: ClickSet, least_voxels: float) -> Mask:
    """Remove components of fewer voxels, except those that hold a tumour click."""
    labels = _components(mask)
    return mask & ~_is_among(
        labels, np.setdiff1d(_below(labels, least_voxels), _held(labels, clicks, "tumor"))
    )


def _components(mask: Mask) -> Labels:
    return np.asarray(cc3d.connected_components(mask, connectivity=CONNECTIVITY))


def _below(labels: Labels, least_voxels: float) -> npt.NDArray[np.integer]:
    """Labels of the components of fewer voxels."""
    return np.flatnonzero(np.bincount(labels.ravel()) < least_voxels)


def _held(labels: Labels, clicks: ClickSet, kind: str) -> Labels:
    """Labels of the components that hold a click of this kind; 0, the outside, is none."""
    found = np.unique(labels[tuple(clicks.of_kind(kind).T)])
    return found[found > 0]


def _is_among(labels: Labels, chosen: npt.NDArray[np.integer]) -> Mask:
    """Mask of the chosen components; 0 is never one."""
    table = np.zeros(int(labels.max()) + 1, bool)
    table[chosen] = True
    table[0] = False
    return table[labels]
