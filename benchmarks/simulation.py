"""Clicks on a training patch of 192³ with 30 lesions, against a distance transform of it for each component.

The straightforward scheme is the tests' oracle as well: equal seeds give equal clicks.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from petclick.clicks import ClickSet, click_set
from petclick.simulate import simulate_errors, simulate_official, simulate_scribbles, simulate_varied
from petclick.simulate.components import JITTER_VOX
from petclick.simulate.schemes import OFFICIAL_PERCENTILE

SIDE = 192
LESIONS = 30
CLICKS = 10
REPEATS = 5

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
Voxels = npt.NDArray[np.int64]


def run() -> dict[str, float]:
    """Seconds for ten clicks of each kind (medians of several; one run of the loop), and the ratio."""
    lesion, pet = patch(np.random.default_rng(0))
    predicted = np.roll(lesion, (2, 3, 3), axis=(0, 1, 2))
    official, seconds = _timed(lambda rng: simulate_official(lesion, pet, CLICKS, CLICKS, rng), REPEATS)
    loop, loop_seconds = _timed(lambda rng: loop_official(lesion, pet, CLICKS, CLICKS, rng), 1)
    if not np.array_equal(official.index_zyx, loop.index_zyx):
        raise RuntimeError(f"different clicks: {official.index_zyx}, {loop.index_zyx}")
    return {
        "seconds": seconds,
        "loop_seconds": loop_seconds,
        "ratio": loop_seconds / seconds,
        "varied_seconds": _timed(lambda rng: simulate_varied(lesion, pet, CLICKS, CLICKS, rng), REPEATS)[1],
        "scribbles_seconds": _timed(lambda rng: simulate_scribbles(lesion, pet, 5, 5, rng), REPEATS)[1],
        "errors_seconds": _timed(
            lambda rng: simulate_errors(lesion, predicted, CLICKS, CLICKS, rng), REPEATS
        )[1],
    }


def patch(rng: np.random.Generator) -> tuple[Mask, Image]:
    """Ellipsoids of 3 to 10 voxels' radius, no two of which touch, and correlated noise with them in it."""
    step = 36
    axis = np.arange(step // 2, SIDE, step)
    centres = rng.permutation(np.reshape(np.meshgrid(axis, axis, axis), (3, -1)).T)[:LESIONS]
    lesion = np.zeros((SIDE,) * 3, np.bool_)
    for centre in centres:
        radii = rng.uniform(3, 10, 3)
        low, high = np.maximum(centre - 10, 0), centre + 11
        box = tuple(map(slice, low, np.minimum(high, SIDE)))
        z, y, x = ((o - c) / r for o, c, r in zip(np.ogrid[box], centre, radii, strict=True))
        lesion[box] |= z**2 + y**2 + x**2 <= 1
    noise = ndimage.gaussian_filter(rng.standard_normal(lesion.shape).astype(np.float32), 2)
    return lesion, (noise / noise.std() + 4 * lesion).astype(np.float32)


def loop_official(
    lesion: Mask, pet: Image, n_tumor: int, n_background: int, rng: np.random.Generator
) -> ClickSet:
    """What `simulate_official` draws, by passes over the whole patch for each component and each click."""
    tumor = _loop(lesion, n_tumor, rng)
    if not n_background or lesion.all():
        return click_set(tumor, [])
    hot = ~lesion & (pet >= np.percentile(pet[~lesion], OFFICIAL_PERCENTILE))
    return click_set(tumor, _loop(hot, n_background, rng))


def _loop(mask: Mask, n: int, rng: np.random.Generator) -> Voxels:
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    drawn = rng.permutation(count)[:n] + 1 if n else np.zeros(0, int)
    free = mask.copy()
    clicks: list[Voxels] = []
    depths = {label: ndimage.distance_transform_edt(labels == label) for label in drawn}
    rounds = 0
    most = min(n, int(np.isin(labels, drawn).sum()))
    while len(clicks) < most:
        for label in drawn:
            inside = free & (labels == label)
            if len(clicks) == n or not inside.any():
                continue
            depth = depths[label]
            places = np.argwhere(depth == (1 if rounds else depth.max()))
            exact = rng.choice(places) if rounds else places[0]
            voxels = np.argwhere(inside)
            near = voxels[np.abs(voxels - exact).max(axis=1) <= JITTER_VOX]
            clicks.append(rng.choice(near if len(near) else voxels))
            free[tuple(clicks[-1])] = False
        rounds += 1
    return np.reshape(clicks, (-1, 3)).astype(np.int64)


def _timed(draw: Callable[[np.random.Generator], ClickSet], repeats: int) -> tuple[ClickSet, float]:
    """The clicks, which are the same each time, and the median of the seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        clicks = draw(np.random.default_rng(0))
        seconds.append(time.perf_counter() - start)
    return clicks, statistics.median(seconds)
