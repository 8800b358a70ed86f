"""Place lesions into a painted person, each wholly in its site's tissues and apart from the others."""

from dataclasses import dataclass

import numpy as np

from petclick.errors import InputError
from petclick.phantom.anatomy import LABEL
from petclick.phantom.paint import Labels, dented
from petclick.phantom.person import Frame
from petclick.phantom.tracers import LEAST_CONTRAST, SITES, Site, TracerName

FLOOR_VOX = 1.2
"""Least semi-axis of a lesion along each axis, so that it keeps some voxels."""
LEAST_RANGE = 2.0
"""Least ratio of the largest to the smallest radius at a site, where that floor cuts the site's own range."""

_DENT = 0.12  # depth of a lesion's dents, as a fraction of its radius
_TRIES, _TRIES_PER_SITE, _SHRINK = 2000, 200, 0.99  # of one lesion; it shrinks a little with each try
_PATTERN = 0.8  # shape of the gamma factors that make each patient prefer some sites


@dataclass(frozen=True)
class Lesion:
    """A placed lesion: its site, and its uptake before blur."""

    site: Site
    suv: float


def place_lesions(
    tissues: Labels,
    frame: Frame,
    tracer: TracerName,
    tissue_suv: list[float],
    n_lesions: int,
    strict: bool,
    rng: np.random.Generator,
) -> tuple[Labels, list[Lesion]]:
    """Place and number lesions.

    Args:
        tissues: labels (z, y, x).
        frame: where the voxels lie in the person.
        tracer: whose sites.
        tissue_suv: uptake by label, above which lesions stand out.
        n_lesions: how many, at most 255.
        strict: refuse to place fewer where there is no room.
        rng: source of all places and sizes.

    Returns:
        uint8 (z, y, x), 0 or a lesion's number from 1; the lesions by number.

    Raises:
        InputError: no room for all of them, and `strict`.
    """
    numbers = np.zeros_like(tissues)
    sites = [site for site in SITES[tracer] if frame.person.male or not site.male]
    usual = np.array([site.share for site in sites])
    preferred = usual * rng.gamma(_PATTERN, size=len(sites))
    floor_mm = FLOOR_VOX * float(np.prod(frame.spacing)) ** (1 / 3)
    lesions: list[Lesion] = []
    for number in range(1, n_lesions + 1):
        for attempt in range(_TRIES):
            if attempt % _TRIES_PER_SITE == 0:
                shares = usual if attempt else preferred  # a preferred site may be full
                site = sites[rng.choice(len(sites), p=shares / shares.sum())]
                smallest, largest = (np.cbrt(1000 * ml / (4 / 3 * np.pi)) for ml in site.volume_ml)
                smallest = max(smallest, floor_mm)
                largest = max(largest, LEAST_RANGE * smallest)
                radius = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
            if _place_one(numbers, tissues, frame, site, radius, number, rng):
                under = np.bincount(tissues[numbers == number], minlength=len(tissue_suv))
                around = float(np.average(tissue_suv, weights=under))
                suv = float(np.exp(rng.uniform(*np.log(site.suv))))
                lesions.append(Lesion(site, max(suv, LEAST_CONTRAST * around)))
                break
            radius *= _SHRINK
        else:
            if strict:
                raise InputError("phantom", f"found no room for lesion {number} of n_lesions", n_lesions)
            break
    return numbers, lesions


def _place_one(
    numbers: Labels,
    tissues: Labels,
    frame: Frame,
    site: Site,
    radius: float,
    number: int,
    rng: np.random.Generator,
) -> bool:
    """Try one place for a lesion: a dented ellipsoid about a random point of one of the site's solids."""
    place = site.places[rng.integers(len(site.places))]
    direction = rng.standard_normal(3)
    direction *= rng.random() ** (1 / 3) / np.linalg.norm(direction)  # uniform in the unit ball
    centre = place.centre + direction * place.semi_axes
    semi_axes = np.maximum(radius * rng.uniform(0.75, 1.3, 3), FLOOR_VOX * frame.spacing)

    # Two voxels of margin, within which there may be no other lesion.
    box = frame.box(centre, (1 + 3 * _DENT) * semi_axes + 2 * frame.spacing)
    unit = [offset / axis for offset, axis in zip(frame.offsets(box, centre), semi_axes, strict=True)]
    solid = dented(unit, 2, _DENT, rng)
    allowed = [LABEL[tissue] for tissue in site.within]
    if not solid.any() or numbers[box].any() or not np.isin(tissues[box][solid], allowed).all():
        return False
    numbers[box][solid] = number
    return True
