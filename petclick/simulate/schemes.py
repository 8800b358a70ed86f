"""Clicks simulated from a lesion mask: the challenge's scheme and a more varied one (arXiv 2508.21680)."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet, click_set
from petclick.simulate.components import JITTER_VOX, Component, Components, at, hot_mask, hot_outside

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
Voxels = npt.NDArray[np.int64]
Depth = npt.NDArray[np.float64]

OFFICIAL_PERCENTILE = 99.75
"""PET percentile of the non-tumour voxels above which the official scheme places background clicks."""
VARIED_PERCENTILE = 98.0
"""The same for the varied scheme."""
BOUNDARY_VOX = 3
"""Depth up to which the varied scheme counts a voxel as near the boundary."""


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
    tumor = _by_component(lesion, n_tumor, rng, _official_centre, _official_boundary)
    if not n_background:
        return click_set(tumor, [])
    hot = hot_mask(lesion, pet, OFFICIAL_PERCENTILE)
    return click_set(tumor, _by_component(hot, n_background, rng, _official_centre, _official_boundary))


def simulate_varied(
    lesion: Mask, pet: Image, n_tumor: int, n_background: int, rng: np.random.Generator
) -> ClickSet:
    """Clicks with more variety; arguments as in `simulate_official`.

    Tumour clicks maximise a random mixture of depth and noise, near the boundary after the first of each
    lesion; background clicks fall on hot voxels with probability proportional to uptake.
    """
    background: Voxels = np.zeros((0, 3), np.int64)
    if n_background:
        candidates = hot_outside(lesion, pet, VARIED_PERCENTILE)
        uptake = pet.reshape(-1)[candidates].astype(np.float64) - pet.min()  # normalised PET can be negative
        count = min(n_background, int(np.count_nonzero(uptake)))
        if count:
            drawn = rng.choice(candidates, count, replace=False, p=uptake / uptake.sum())
            background = at(drawn, lesion.shape)
    return click_set(_by_component(lesion, n_tumor, rng, _varied_centre, _varied_boundary), background)


_Pick = Callable[[Component, Depth, np.random.Generator], Voxels]


def _by_component(mask: Mask, n: int, rng: np.random.Generator, first: _Pick, rest: _Pick) -> Voxels:
    """Up to n components, drawn without replacement, get a click each by `first`, the rest by `rest`."""
    clicks: list[Voxels] = []
    if n == 0 or not mask.any():
        return np.zeros((0, 3), np.int64)
    found = Components(mask)
    drawn = [found.cut_out(number) for number in rng.permutation(len(found.sizes))[:n]]
    components = [(component, component.depth()) for component in drawn]
    pick = first
    while components and len(clicks) < n:
        for component, depth in components[: n - len(clicks)]:
            voxel = pick(component, depth, rng)
            component.free[tuple(voxel)] = False
            clicks.append(voxel + component.lower_zyx)
        components = [(component, depth) for component, depth in components if component.free.any()]
        pick = rest
    return np.array(clicks)


def _official_centre(component: Component, depth: Depth, rng: np.random.Generator) -> Voxels:
    centre = np.array(np.unravel_index(depth.argmax(), depth.shape))
    return np.asarray(rng.choice(component.near(centre, JITTER_VOX)))


def _official_boundary(component: Component, depth: Depth, rng: np.random.Generator) -> Voxels:
    boundary = np.argwhere(depth == depth[depth > 0].min())
    return np.asarray(rng.choice(component.near(rng.choice(boundary), JITTER_VOX)))


def _varied_centre(component: Component, depth: Depth, rng: np.random.Generator) -> Voxels:
    return _deepest_with_noise(component.free, depth, rng.uniform(0.4, 0.9), rng)


def _varied_boundary(component: Component, depth: Depth, rng: np.random.Generator) -> Voxels:
    near = component.free & (depth <= BOUNDARY_VOX)
    return _deepest_with_noise(near if near.any() else component.free, depth, rng.uniform(0.2, 0.6), rng)


def _deepest_with_noise(among: Mask, depth: Depth, weight: float, rng: np.random.Generator) -> Voxels:
    voxels = np.argwhere(among)
    depths = depth[among] / depth[among].max()
    return np.asarray(voxels[(weight * depths + (1 - weight) * rng.random(len(voxels))).argmax()])
