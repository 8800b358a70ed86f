"""From margin to mask with the clicks obeyed: pure functions, chosen by a model's `guidance.json`.

Arrays are (z, y, x) on the case's grid. The margin is the lesion's logit minus the background's; without any
step the mask is where it is above 0. Components are 18-connected, as the challenges count them. The default
spec does nothing, so a foreign model's masks are its own.
"""

from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize

from petclick.baselines import region_growing
from petclick.clicks import KINDS, ClickSet, click_set
from petclick.grid import Grid
from petclick.metrics import CONNECTIVITY

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.unsignedinteger]

NEIGHBOURS = ndimage.generate_binary_structure(3, 2)
"""Connectivity 18 as a structuring element."""
GROWING = 0.41
"""Share of the local SUVmax down to which a lesion that the network missed is grown from its click."""
MOST_SHIFT = 6.0
"""Farthest that clicks can move the margin's threshold, in logits."""
SPLIT_MM = 20.0
"""A background click takes no voxel farther away than this from a component that a tumour click is in."""
NEAR_MM = 15.0
"""A tumour click this close to a prediction belongs to it, and only extends it."""


@dataclass(frozen=True)
class PostprocessSpec:
    """Which steps run, in this order.

    threshold_prior: the margin's threshold is fitted to the clicks (`fit_threshold`), 0 leaves it at 0;
    suv_floor: voxels below it leave the mask, except in components with a tumour click;
    drop_background: a component with background clicks and no tumour click is removed;
    split: a component with clicks of both kinds is divided between them;
    grow: a tumour click outside the mask extends it, or grows a lesion of at most `grow_most_ml`;
    min_volume_ml: smaller components without a tumour click are removed;
    min_total_ml: without tumour clicks, a mask smaller than this is emptied.
    """

    threshold_prior: float = 0.0
    suv_floor: float = 0.0
    drop_background: bool = False
    split: bool = False
    grow: bool = False
    grow_most_ml: float = 20.0
    min_volume_ml: float = 0.0
    min_total_ml: float = 0.0


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
    if spec.threshold_prior > 0:
        margin = margin - fit_threshold(margin, clicks, spec.threshold_prior)
    mask = margin > 0
    if spec.suv_floor > 0:
        mask = drop_cold(mask, pet_suv, clicks, spec.suv_floor)
    if spec.drop_background:
        mask = drop_background_components(mask, clicks)
    if spec.split:
        mask = split_at_clicks(mask, margin, clicks, grid)
    if spec.grow:
        mask = grow_at_clicks(mask, margin, pet_suv, clicks, grid, spec.grow_most_ml)
    if spec.min_volume_ml > 0:
        mask = drop_small(mask, clicks, spec.min_volume_ml / grid.voxel_ml)
    if not len(clicks.of_kind("tumor")) and np.count_nonzero(mask) * grid.voxel_ml < spec.min_total_ml:
        mask = np.zeros_like(mask)
    return mask.astype(np.uint8)


def fit_threshold(margin: Image, clicks: ClickSet, prior: float) -> np.float32:
    """The margin's threshold that the clicks make likeliest, near 0 unless they say otherwise.

    Each click is an observation of its voxel: the sum of the logistic losses at threshold t, plus the prior
    times t**2, is smallest at the result, which lies within `MOST_SHIFT`. Without clicks it is 0.
    """

    def loss(threshold: float) -> float:
        tumor, background = (margin[tuple(clicks.of_kind(kind).T)] - threshold for kind in KINDS)
        data = np.logaddexp(0, -tumor).sum() + np.logaddexp(0, background).sum()
        return float(data + prior * threshold**2)

    return np.float32(optimize.minimize_scalar(loss, bounds=(-MOST_SHIFT, MOST_SHIFT), method="bounded").x)


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
    small = np.flatnonzero(np.bincount(labels.ravel()) < least_voxels)
    return mask & ~_is_among(labels, np.setdiff1d(small, _held(labels, clicks, "tumor")))


def _components(mask: Mask) -> Labels:
    return np.asarray(cc3d.connected_components(mask, connectivity=CONNECTIVITY))


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
