"""Scribbles for training, where no prediction exists yet: on lesions and on hot voxels outside them."""

from functools import partial

import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet, click_set
from petclick.simulate.components import Component, Components, Mask, Voxels, hot_mask
from petclick.simulate.schemes import OFFICIAL_PERCENTILE
from petclick.simulate.strokes import Line, boundary_line, centre_line, draw_stroke, random_line

Image = npt.NDArray[np.float32]


def simulate_scribbles(
    lesion: Mask, pet: Image, n_tumor: int, n_background: int, rng: np.random.Generator
) -> ClickSet:
    """Strokes of autoPET V, all of a sample's drawn in one of its three ways.

    As many components as there are strokes, drawn without replacement, get one on their largest slice; where
    there are more strokes, they get further ones, each on a slice drawn from those left.

    Args:
        lesion: (z, y, x) tumour mask.
        pet: (z, y, x) uptake; background strokes fall where the official scheme's clicks would.
        n_tumor: most tumour strokes.
        n_background: most background strokes.
        rng: source of all randomness.

    Returns:
        The strokes' voxels.
    """
    ways = (centre_line, partial(random_line, rng=rng), partial(boundary_line, rng=rng))
    line = ways[rng.integers(len(ways))]
    tumor = _strokes(lesion, n_tumor, line, rng)
    if not n_background:
        return click_set(tumor, [])
    hot = hot_mask(lesion, pet, OFFICIAL_PERCENTILE)
    return click_set(tumor, _strokes(hot, n_background, line, rng))


def _strokes(mask: Mask, n: int, line: Line, rng: np.random.Generator) -> Voxels:
    strokes = [np.zeros((0, 3), np.int64)]
    if n and mask.any():
        found = Components(mask)
        components = [found.cut_out(number) for number in rng.permutation(len(found.sizes))[:n]]
        strokes += [_taken(component, draw_stroke(component.free, line)) for component in components]
        while len(strokes) <= n and (components := [each for each in components if each.free.any()]):
            strokes += [_further(component, line, rng) for component in components[: n + 1 - len(strokes)]]
    return np.concatenate(strokes)


def _further(component: Component, line: Line, rng: np.random.Generator) -> Voxels:
    z = rng.choice(np.flatnonzero(component.free.any(axis=(1, 2))))
    stroke = draw_stroke(component.free[z : z + 1], line)
    return _taken(component, stroke + np.array([z, 0, 0]))


def _taken(component: Component, stroke: Voxels) -> Voxels:
    """Close the stroke's slice to later ones, and take the stroke to the volume's frame."""
    component.free[stroke[0, 0]] = False
    return stroke + component.lower_zyx
