"""A seeded whole-body FDG PET/CT phantom: a person of ellipses, with organs and lesions known to the voxel.

The person (vertex to mid-thigh, arms out of the field of view) is that of `petclick.anatomy`, scaled as a
whole to the field of view. A small volume therefore holds a small person, in whom the scanner's resolution,
which stays in true millimetres, is coarser than in an adult. Body, lesions and noise have a random stream
each, so that another number of lesions leaves the body as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from petclick import anatomy
from petclick.anatomy import LABEL, ORGANS, PARTS, SITES, Site
from petclick.errors import InputError
from petclick.grid import Grid

Labels = npt.NDArray[np.uint8]
Image = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]

LEAST_SHAPE = 8
"""Fewest voxels along an axis."""
LESION_FLOOR_VOX = 1.2
"""Least semi-axis of a lesion along each axis, so that it keeps some voxels."""
LESION_RANGE = 2.0
"""Least ratio of the largest to the smallest radius at a site, where that floor cuts the site's own range."""

_MARGIN = 0.96  # of the field of view may be filled
_GIRTH_SD, _SIZE_SD, _SHIFT_SD_MM = 0.04, 0.03, 1.5  # spread of the body's girth, of organs' sizes and places
_DENT = 0.12  # depth of a lesion's dents, as a fraction of its radius
_CT_BLUR_VOX, _LOWEST_HU = 0.5, -1024.0
_TRIES, _TRIES_PER_SITE, _SHRINK = 2000, 200, 0.99  # of one lesion; it shrinks a little with each try
_FWHM_PER_SIGMA = 2.3548


@dataclass(frozen=True)
class Scanner:
    """What the scanner does to the truth.

    psf_fwhm_mm: PET's resolution; pet_noise: standard deviation where SUV is 1 (it grows with the square root
    of uptake, as counting noise does); noise_fwhm_mm: size of the noise's grains; ct_noise_hu: standard
    deviation of CT.
    """

    psf_fwhm_mm: float = 6.0
    pet_noise: float = 0.12
    noise_fwhm_mm: float = 5.0
    ct_noise_hu: float = 12.0


@dataclass(frozen=True)
class Phantom:
    """A phantom case; every array is (z, y, x), z up, y to posterior, x to the left (ITK's identity, LPS).

    ct_hu, pet_suv: float32 images. lesions: uint8, 0 or a lesion's number from 1, with a gap between any two.
    organs: uint8, an index into `anatomy.ORGANS`; it says what lies under a lesion. organ_suv: the uptake
    drawn for each organ. lesion_sites, lesion_suv: of lesions 1, 2, …; uptake before blur. scale: the
    person's size relative to the reference.
    """

    ct_hu: Image
    pet_suv: Image
    lesions: Labels
    organs: Labels
    grid: Grid
    organ_suv: dict[str, float]
    lesion_sites: tuple[str, ...]
    lesion_suv: tuple[float, ...]
    scale: float


def make_phantom(
    shape_zyx: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float],
    seed: int,
    n_lesions: int,
    scanner: Scanner | None = None,
) -> Phantom:
    """Make one phantom case.

    Args:
        shape_zyx: voxels along z, y, x; 326 x 400 x 400 is the usual whole-body size and takes about 1.5 GB.
        spacing_zyx_mm: voxel size; 3, 2.04, 2.04 there. The field of view decides the person's size.
        seed: equal arguments give equal phantoms.
        n_lesions: how many lesions, 0 to 255.
        scanner: resolution and noise; None for the usual ones.

    Raises:
        InputError: fewer than `LEAST_SHAPE` voxels along an axis, a spacing that is not positive, or more
            lesions than the body has room for.
    """
    if min(shape_zyx) < LEAST_SHAPE or not all(0 < step < np.inf for step in spacing_zyx_mm):
        rule = f"needs {LEAST_SHAPE} voxels or more along each axis, and spacings above 0 mm"
        raise InputError("phantom", rule, f"{shape_zyx} and {spacing_zyx_mm}")
    if not 0 <= n_lesions <= np.iinfo(np.uint8).max:
        raise InputError("phantom", "n_lesions must be from 0 to 255", n_lesions)
    scanner = scanner or Scanner()
    body_rng, lesion_rng, noise_rng = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(3))
    z, y, x = spacing_zyx_mm
    grid = Grid((shape_zyx[2], shape_zyx[1], shape_zyx[0]), (x, y, z))
    frame = _Frame(grid, body_rng)
    organs = np.full(shape_zyx, LABEL["air"], np.uint8)
    _paint_body(organs, frame)
    _paint_organs(organs, frame, body_rng)
    _paint_ribs(organs, frame)
    organ_suv = {organ.name: float(body_rng.uniform(*organ.fdg_suv)) for organ in ORGANS}
    lesions, sites = _place_lesions(organs, frame, n_lesions, lesion_rng)
    lesion_suv = [float(np.exp(lesion_rng.uniform(*np.log(site.fdg_suv)))) for site in sites]

    ct = _look_up(organs, [organ.hu for organ in ORGANS], lesions, [site.hu for site in sites])
    pet = _look_up(organs, list(organ_suv.values()), lesions, lesion_suv)
    return Phantom(
        ct_hu=_scan_ct(ct, scanner, noise_rng),
        pet_suv=_scan_pet(pet, spacing_zyx_mm, scanner, noise_rng),
        lesions=lesions,
        organs=organs,
        grid=grid,
        organ_suv=organ_suv,
        lesion_sites=tuple(site.name for site in sites),
        lesion_suv=tuple(lesion_suv),
        scale=frame.scale,
    )


class _Frame:
    """Where the voxels lie in the reference person, once this person's size and girth are divided out."""

    def __init__(self, grid: Grid, rng: np.random.Generator) -> None:
        girth = np.array([1.0, *np.clip(1 + _GIRTH_SD * rng.standard_normal(2), 0.9, 1.1)])
        self.shape = np.asarray(grid.shape_zyx)
        spacing = np.asarray(grid.spacing_zyx_mm)
        self.scale = float(np.min(_MARGIN * self.shape * spacing / (girth * anatomy.BODY_MM)))
        self.spacing = spacing / (self.scale * girth)
        self.first = (anatomy.BODY_MM[0] / 2, 0, 0) - (self.shape - 1) / 2 * self.spacing

    def box(self, centre: npt.ArrayLike, reach: npt.ArrayLike) -> Box:
        """The voxels whose centres lie within `reach` (mm) of `centre` along each axis."""
        lower = np.ceil((np.subtract(centre, reach) - self.first) / self.spacing)
        upper = np.floor((np.add(centre, reach) - self.first) / self.spacing) + 1
        z, y, x = (slice(int(a), int(b)) for a, b in np.clip([lower, upper], 0, self.shape).T)
        return z, y, x

    def offsets(self, box: Box, centre: npt.ArrayLike) -> list[Points]:
        """Open grid of the box's voxels: distance (mm) from `centre` along z, y and x."""
        starts = self.first - np.asarray(centre)
        return list(
            np.ix_(
                *(
                    start + step * np.arange(part.start, part.stop)
                    for start, step, part in zip(starts, self.spacing, box, strict=True)
                )
            )
        )


def _slices(organs: Labels, frame: _Frame) -> Iterator[tuple[float, Labels, Points, Points]]:
    """The body's slices: z and y (mm), the labels (a view), and the distance from the axis, 1 at the skin."""
    height, depth, width = anatomy.BODY_MM
    box = frame.box((height / 2, 0, 0), (height / 2, depth / 2, width / 2))
    z_mm, y_mm, x_mm = frame.offsets(box, (0, 0, 0))
    for labels, z in zip(organs[box], z_mm.ravel(), strict=True):
        y_centre, leg_x, half_depth, half_width = anatomy.cross_section(z)
        if min(half_depth, half_width) > 0:
            radius = np.hypot((y_mm[0] - y_centre) / half_depth, (np.abs(x_mm[0]) - leg_x) / half_width)
            yield z, labels, y_mm[0], radius


def _paint_body(organs: Labels, frame: _Frame) -> None:
    """Paint the body, all muscle under a layer of fat."""
    for _, labels, _, radius in _slices(organs, frame):
        labels[radius <= 1] = LABEL["fat"]
        labels[radius <= anatomy.FAT_FROM] = LABEL["muscle"]


def _paint_ribs(organs: Labels, frame: _Frame) -> None:
    """Paint the ribs: rings in the chest wall that fall to the front."""
    (low, high), (inner, outer) = anatomy.RIBS_Z_MM, anatomy.RIBS_WITHIN
    for z, labels, y, radius in _slices(organs, frame):
        ring = (z - anatomy.RIB_SLOPE * y) % anatomy.RIB_PITCH_MM < anatomy.RIB_HEIGHT_MM
        if low <= z <= high:
            labels[ring & (radius >= inner) & (radius <= outer)] = LABEL["cortical bone"]


def _paint_organs(organs: Labels, frame: _Frame, rng: np.random.Generator) -> None:
    """Paint the solids into the body; bones stand as in the table, other organs vary a little."""
    names = [organ.name for organ in ORGANS]
    sizes = dict(zip(names, np.clip(1 + _SIZE_SD * rng.standard_normal(len(names)), 0.9, 1.1), strict=True))
    shifts = dict(zip(names, _SHIFT_SD_MM * rng.standard_normal((len(names), 3)), strict=True))
    for part in PARTS:
        fixed = "bone" in part.organ
        centre = part.centre if fixed else np.add(part.centre, shifts[part.organ])
        semi_axes = np.multiply(part.semi_axes, 1 if fixed else sizes[part.organ])
        box = frame.box(centre, semi_axes)
        z, y, x = (offset / axis for offset, axis in zip(frame.offsets(box, centre), semi_axes, strict=True))
        solid = np.abs(z) ** part.power + y**2 + x**2 <= 1
        region = organs[box]
        region[solid & (region > LABEL["fat"])] = LABEL[part.organ]


def _place_lesions(
    organs: Labels, frame: _Frame, n_lesions: int, rng: np.random.Generator
) -> tuple[Labels, list[Site]]:
    """Number lesions into a new label array, each wholly in its site's tissues and apart from the others."""
    lesions = np.zeros_like(organs)
    shares = np.array([site.share for site in SITES])
    floor_mm = LESION_FLOOR_VOX * float(np.prod(frame.spacing)) ** (1 / 3)
    sites: list[Site] = []
    for number in range(1, n_lesions + 1):
        for attempt in range(_TRIES):
            if attempt % _TRIES_PER_SITE == 0:
                site = SITES[rng.choice(len(SITES), p=shares / shares.sum())]
                smallest = max(site.radius_mm[0], floor_mm)
                largest = max(site.radius_mm[1], LESION_RANGE * smallest)
                radius = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
            if _place_one(lesions, organs, frame, site, radius, number, rng):
                sites.append(site)
                break
            radius *= _SHRINK
        else:
            raise InputError("phantom", f"found no room for lesion {number} of n_lesions", n_lesions)
    return lesions, sites


def _place_one(
    lesions: Labels,
    organs: Labels,
    frame: _Frame,
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
    semi_axes = np.maximum(radius * rng.uniform(0.75, 1.3, 3), LESION_FLOOR_VOX * frame.spacing)
    waves, phases = rng.normal(0, 2, (3, 3)), rng.uniform(0, 2 * np.pi, 3)

    # Two voxels of margin, within which there may be no other lesion.
    box = frame.box(centre, (1 + 3 * _DENT) * semi_axes + 2 * frame.spacing)
    unit = [offset / axis for offset, axis in zip(frame.offsets(box, centre), semi_axes, strict=True)]
    distance = np.sqrt(unit[0] ** 2 + unit[1] ** 2 + unit[2] ** 2)
    dents = sum(
        np.sin(wave[0] * unit[0] + wave[1] * unit[1] + wave[2] * unit[2] + phase)
        for wave, phase in zip(waves, phases, strict=True)
    )
    solid = distance <= 1 + _DENT * dents
    allowed = [LABEL[organ] for organ in site.within]
    if not solid.any() or lesions[box].any() or not np.isin(organs[box][solid], allowed).all():
        return False
    lesions[box][solid] = number
    return True


def _look_up(organs: Labels, organ_values: list[float], lesions: Labels, lesion_values: list[float]) -> Image:
    """Float32 image of one value for each organ, and for each lesion on top."""
    image = np.asarray(organ_values, np.float32)[organs]
    inside = lesions > 0
    image[inside] = np.asarray([0.0, *lesion_values], np.float32)[lesions[inside]]
    return image


def _scan_ct(truth: Image, scanner: Scanner, rng: np.random.Generator) -> Image:
    """CT of the true HU: half a voxel of blur, noise, and the scale's lower end."""
    ct = ndimage.gaussian_filter(truth, _CT_BLUR_VOX)
    ct += scanner.ct_noise_hu * rng.standard_normal(ct.shape, dtype=np.float32)
    return np.maximum(ct, _LOWEST_HU, out=ct)


def _scan_pet(
    truth: Image, spacing_zyx_mm: anatomy.Triple, scanner: Scanner, rng: np.random.Generator
) -> Image:
    """PET of the true SUV: the scanner's blur, then grainy noise that grows with the root of uptake."""
    spacing = np.asarray(spacing_zyx_mm)
    pet = ndimage.gaussian_filter(truth, scanner.psf_fwhm_mm / _FWHM_PER_SIGMA / spacing)
    noise = rng.standard_normal(pet.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, scanner.noise_fwhm_mm / _FWHM_PER_SIGMA / spacing)
    noise *= scanner.pet_noise / noise.std()
    noise *= np.sqrt(pet)
    pet += noise
    return np.maximum(pet, 0, out=pet)
