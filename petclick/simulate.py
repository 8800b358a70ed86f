"""Clicks simulated from a lesion mask: the challenge's scheme and a more varied one (arXiv 2508.21680).

Arrays are (z, y, x). Random code takes its generator; nothing is written into an argument. All clicks of one
kind are distinct voxels, and there are fewer than asked for where the mask has no voxel left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from petclick.clicks import ClickSet, click_set

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
Voxels = npt.NDArray[np.int64]

OFFICIAL_PERCENTILE = 99.75
"""PET percentile of the non-tumour voxels above which the official scheme places background clicks."""
VARIED_PERCENTILE = 98.0
"""The same for the varied scheme."""
JITTER_VOX = 3
"""How far (per axis) the official scheme moves a click from its exact place."""
BOUNDARY_VOX = 3
"""Depth up to which the varied scheme counts a voxel as near the boundary."""


@dataclass(frozen=True)
class SimulationSettings:
    """How training draws clicks.

    max_clicks: most clicks of each kind; official_share: share of samples by the official scheme, the rest by
    the varied one; no_click_share: share of samples without any click, beside those that the counts' own
    distribution draws.
    """

    max_clicks: int = 10
    official_share: float = 0.8
    no_click_share: float = 0.0


def simulate(lesion: Mask, pet: Image, settings: SimulationSettings, rng: np.random.Generator) -> ClickSet:
    """Draw one training sample's clicks: the numbers of each kind, the scheme, then the places.

    Args:
        lesion: (z, y, x) tumour mask.
        pet: (z, y, x) uptake, in any unit that grows with it.
        settings: the distribution.
        rng: source of all randomness.
    """
    no_click, varied = rng.random() < settings.no_click_share, rng.random() >= settings.official_share
    n_tumor, n_background = draw_count(settings.max_clicks, rng), draw_count(settings.max_clicks, rng)
    if no_click:
        n_tumor = n_background = 0
    scheme = simulate_varied if varied else simulate_official
    return scheme(lesion, pet, n_tumor, n_background, rng)


def draw_count(max_clicks: int, rng: np.random.Generator) -> int:
    """Number of clicks from 0 to `max_clicks` n, with probabilities proportional to ln(n + 2), …, ln(2)."""
    weights = np.log(np.arange(max_clicks + 2, 1, -1))
    return int(rng.choice(max_clicks + 1, p=weights / weights.sum()))


def simulate_official(
    lesion: Mask, pet: Image, n_tumor: int, n_background: int, rng: np.random.Generator
) -> ClickSet:
    """Clicks by the challenge's scheme: component centres first, then their boundaries, each moved a little.

    Tumour clicks go to the lesions (connectivity 26), background clicks to the components of the hottest
    voxels outside them.

    Args:
        lesion: (z, y, x) tumour mask.
        pet: (z, y, x) uptake.
        n_tumor: most tumour clicks.
        n_background: most background clicks.
        rng: source of all randomness.
    """
    hot = _hot_outside(lesion, pet, OFFICIAL_PERCENTILE) if n_background else np.zeros_like(lesion)
    return click_set(
        _by_component(lesion, n_tumor, rng, _official_centre, _official_boundary),
        _by_component(hot, n_background, rng, _official_centre, _official_boundary),
    )


def simulate_varied(
    lesion: Mask, pet: Image, n_tumor: int, n_background: int, rng: np.random.Generator
) -> ClickSet:
    """Clicks with more variety; arguments as in `simulate_official`.

    Tumour clicks maximise a random mixture of depth and noise, near the boundary after the first of each
    lesion; background clicks fall on hot voxels with probability proportional to uptake.
    """
    background: Voxels = np.zeros((0, 3), np.int64)
    if n_background:
        candidates = np.argwhere(_hot_outside(lesion, pet, VARIED_PERCENTILE))
        uptake = pet[tuple(candidates.T)].astype(np.float64) - pet.min()  # normalised PET can be negative
        count = min(n_background, int(np.count_nonzero(uptake)))
        if count:
            background = candidates[
                rng.choice(len(candidates), count, replace=False, p=uptake / uptake.sum())
            ]
    return click_set(_by_component(lesion, n_tumor, rng, _varied_centre, _varied_boundary), background)


def _hot_outside(lesion: Mask, pet: Image, percentile: float) -> Mask:
    """Voxels outside the lesions whose uptake reaches the percentile of all such voxels."""
    outside = ~lesion
    if not outside.any():
        return outside
    return outside & (pet >= np.percentile(pet[outside], percentile))


@dataclass(frozen=True)
class _Component:
    """One component in its own crop, with a margin of a voxel where the volume has one."""

    lower_zyx: Voxels
    depth: npt.NDArray[np.float64]  # distance to the nearest voxel outside, 0 there
    free: Mask  # voxels of the component that hold no click yet


_Pick = Callable[[_Component, np.random.Generator], Voxels]


def _by_component(mask: Mask, n: int, rng: np.random.Generator, first: _Pick, rest: _Pick) -> Voxels:
    """Up to n components, drawn without replacement, get a click each by `first`, the rest by `rest`."""
    clicks: list[Voxels] = []
    if n == 0 or not mask.any():
        return np.zeros((0, 3), np.int64)
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    boxes = cc3d.statistics(labels, no_slice_conversion=True)["bounding_boxes"]
    components = [_cut_out(labels, int(label), boxes[label]) for label in rng.permutation(count)[:n] + 1]
    pick = first
    while components and len(clicks) < n:
        for component in components[: n - len(clicks)]:
            voxel = pick(component, rng)
            component.free[tuple(voxel)] = False
            clicks.append(voxel + component.lower_zyx)
        components = [component for component in components if component.free.any()]
        pick = rest
    return np.array(clicks)


def _cut_out(labels: npt.NDArray[np.integer], label: int, box: npt.NDArray[np.integer]) -> _Component:
    """Cut one component out. The nearest voxel outside always lies in the margin, so its depth is exact."""
    lower, upper = box[0::2].astype(np.int64), box[1::2].astype(np.int64) + 1
    lower, upper = np.maximum(lower - 1, 0), np.minimum(upper + 1, labels.shape)
    free = labels[tuple(map(slice, lower, upper))] == label
    # A component that is the whole volume has no outside, and so no centre.
    depth = ndimage.distance_transform_edt(free) if not free.all() else np.ones(free.shape)
    return _Component(lower, depth, free)


def _official_centre(component: _Component, rng: np.random.Generator) -> Voxels:
    return _jitter(
        np.array(np.unravel_index(component.depth.argmax(), component.depth.shape)), component, rng
    )


def _official_boundary(component: _Component, rng: np.random.Generator) -> Voxels:
    depth = component.depth
    boundary = np.argwhere(depth == depth[depth > 0].min())
    return _jitter(rng.choice(boundary), component, rng)


def _jitter(voxel: Voxels, component: _Component, rng: np.random.Generator) -> Voxels:
    """One of the component's free voxels around `voxel`, uniformly; any free one where there is none."""
    lower = np.maximum(voxel - JITTER_VOX, 0)
    near = np.argwhere(component.free[tuple(map(slice, lower, voxel + JITTER_VOX + 1))]) + lower
    return np.asarray(rng.choice(near if len(near) else np.argwhere(component.free)))


def _varied_centre(component: _Component, rng: np.random.Generator) -> Voxels:
    return _deepest_with_noise(component, component.free, rng.uniform(0.4, 0.9), rng)


def _varied_boundary(component: _Component, rng: np.random.Generator) -> Voxels:
    near = component.free & (component.depth <= BOUNDARY_VOX)
    return _deepest_with_noise(component, near if near.any() else component.free, rng.uniform(0.2, 0.6), rng)


def _deepest_with_noise(
    component: _Component, among: Mask, weight: float, rng: np.random.Generator
) -> Voxels:
    voxels = np.argwhere(among)
    depth = component.depth[among] / component.depth[among].max()
    return np.asarray(voxels[(weight * depth + (1 - weight) * rng.random(len(voxels))).argmax()])


def simulate_errors(
    lesion: Mask, predicted: Mask, n_tumor: int, n_background: int, rng: np.random.Generator
) -> ClickSet:
    """Clicks on a prediction's errors, largest component first: tumour clicks on what it misses.

    Args:
        lesion: (z, y, x) tumour mask.
        predicted: (z, y, x) predicted mask.
        n_tumor: most tumour clicks.
        n_background: most background clicks.
        rng: source of all randomness.
    """
    return click_set(
        _largest_first(lesion & ~predicted, n_tumor, rng),
        _largest_first(predicted & ~lesion, n_background, rng),
    )


def _largest_first(mask: Mask, n: int, rng: np.random.Generator) -> Voxels:
    """One click near the centre of each of the n largest components."""
    labels = cc3d.connected_components(mask, connectivity=26)
    found = cc3d.statistics(labels, no_slice_conversion=True)
    order = np.argsort(-found["voxel_counts"][1:].astype(np.int64), kind="stable")[:n] + 1
    components = [_cut_out(labels, int(label), found["bounding_boxes"][label]) for label in order]
    clicks = [_official_centre(each, rng) + each.lower_zyx for each in components]
    return np.array(clicks, np.int64).reshape(-1, 3)
