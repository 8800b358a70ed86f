"""Clicks on a prediction's errors, largest first, as a reader would correct it."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from petclick.clicks import ClickSet, click_set
from petclick.simulate.components import JITTER_VOX, Component, Components

Mask = npt.NDArray[np.bool_]
Voxels = npt.NDArray[np.int64]

MOST_VOXELS = 1 << 17
"""Larger crops are sampled, so that an error that fills the patch costs little more than a lesion."""
FAR_WEIGHT = 0.01
"""What distance to earlier clicks counts beside depth: little, but enough to decide between equal depths."""


def simulate_errors(
    lesion: Mask, predicted: Mask, n_tumor: int, n_background: int, rng: np.random.Generator
) -> ClickSet:
    """Clicks on what a prediction misses (tumour) and on what it invents (background).

    Each click goes to the component (connectivity 26) with the most voxels left, where every click before
    took the ball around it that lies inside: small errors get one, long ones several. Its place is the centre
    of the largest ball that fits in beside those, moved a little.

    Args:
        lesion: (z, y, x) tumour mask.
        predicted: likewise, the prediction.
        n_tumor: most tumour clicks.
        n_background: most background clicks.
        rng: source of all randomness.
    """
    return click_set(
        _on_errors(lesion & ~predicted, n_tumor, rng), _on_errors(predicted & ~lesion, n_background, rng)
    )


class _Error:
    """One component, with the clicks that it got."""

    def __init__(self, component: Component, size: int) -> None:
        self._component = component
        self._places, self._depth = _places(component)
        self._apart = np.full(len(self._places), 1e6)  # distance to the clicks
        self.left = float(size)
        self.full = False

    def click(self, rng: np.random.Generator) -> Voxels:
        """Place one more click."""
        component = self._component
        room = np.minimum(self._depth, self._apart / 2)  # radius of a ball that no other one overlaps
        score = room + FAR_WEIGHT * self._apart
        best = rng.choice(np.flatnonzero(score == score.max()))
        reach = min(JITTER_VOX, int(room[best] / 12**0.5))  # its corners stay within half the ball
        voxel = np.asarray(rng.choice(component.near(self._places[best], reach)))
        component.free[tuple(voxel)] = False
        self._apart = np.minimum(self._apart, np.linalg.norm(self._places - voxel, axis=1))
        self.left -= 4 / 3 * np.pi * float(room[best]) ** 3
        self.full = not component.free.any()
        return voxel + component.lower_zyx


def _on_errors(error: Mask, n: int, rng: np.random.Generator) -> Voxels:
    if n == 0 or not error.any():
        return np.zeros((0, 3), np.int64)
    components = Components(error)
    # n clicks can reach no component beyond the n largest
    numbers = np.argsort(-components.sizes, kind="stable")[:n]
    errors = [_Error(components.cut_out(number), components.sizes[number]) for number in numbers]
    clicks: list[Voxels] = []
    while errors and len(clicks) < n:
        largest = max(errors, key=lambda each: each.left)
        clicks.append(largest.click(rng))
        if largest.full:
            errors.remove(largest)
    return np.array(clicks)


def _places(component: Component) -> tuple[Voxels, npt.NDArray[np.float64]]:
    """Voxels (N, 3) where a click may go, and their distances to the nearest voxel outside."""
    free = component.free
    step = int(np.ceil((free.size / MOST_VOXELS) ** (1 / 3)))
    sample = free[::step, ::step, ::step]
    if not sample.any():  # thin: no place is better than another
        places = np.argwhere(free)
        return places, np.ones(len(places))
    # The crop's last plane, outside the component unless the volume ends there, may lie between two samples.
    padded = np.pad(sample, [(0, int(step > 1 and not free.take(-1, axis).any())) for axis in range(3)])
    # The volume's faces count as outside only where nothing else is.
    pad = int(padded.all())
    depth = ndimage.distance_transform_edt(np.pad(padded, pad))
    places = np.argwhere(sample)
    return places * step, depth[tuple((places + pad).T)] * step
