"""Make a phantom case from a seed: a person, tissues, lesions, and what the scanner shows of them."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from petclick.errors import InputError
from petclick.grid import Grid
from petclick.phantom.anatomy import TISSUES, Triple
from petclick.phantom.lesions import Lesion, place_lesions
from petclick.phantom.paint import Labels, paint_tissues
from petclick.phantom.person import Frame, draw_person
from petclick.phantom.scanner import Image, Scanner, draw_scanner, scan_ct, scan_pet
from petclick.phantom.tracers import (
    LESION_UNEVEN,
    TRACERS,
    UPTAKE,
    TracerName,
    draw_number,
    draw_uptake,
)

LEAST_SHAPE = 8
"""Fewest voxels along an axis."""
GRAIN_MM = 14.0
"""Size of the patches in which a tissue's uptake is uneven."""
DIAPHRAGM_Z_MM = 560.0
"""Height of the diaphragm in the reference person."""

_STREAMS = 4  # of random numbers: the body, its lesions, the scanner's settings, noise


@dataclass(frozen=True)
class Phantom:
    """A phantom case; every array is (z, y, x), z up, y to posterior, x to the left (ITK's identity, LPS).

    ct_hu, pet_suv: float32 images. lesions: uint8, 0 or a lesion's number from 1, with a gap between any two.
    tissues: uint8, an index into `anatomy.TISSUES`; it says what lies under a lesion, on PET's side where CT
    is displaced. ligand: the tracer, or which of its compounds. tissue_suv: the uptake drawn for each tissue.
    lesion_sites, lesion_suv: of lesions 1, 2, …; uptake before blur. scale: the person's size relative to the
    reference.
    """

    ct_hu: Image
    pet_suv: Image
    lesions: Labels
    tissues: Labels
    grid: Grid
    ligand: str
    tissue_suv: dict[str, float]
    lesion_sites: tuple[str, ...]
    lesion_suv: tuple[float, ...]
    scale: float
    scanner: Scanner


def make_phantom(
    shape_zyx: tuple[int, int, int],
    spacing_zyx_mm: Triple,
    seed: int,
    n_lesions: int,
    scanner: Scanner | None = None,
    tracer: TracerName = "fdg",
) -> Phantom:
    """Make a phantom whose size is that of the field of view.

    A small volume therefore holds a small person, in whom the scanner's resolution, which stays in true
    millimetres, is coarser than in an adult. Body, lesions and noise have a random stream each, so that
    another number of lesions leaves the body as it is.

    Args:
        shape_zyx: voxels along z, y, x.
        spacing_zyx_mm: voxel size.
        seed: equal arguments give equal phantoms.
        n_lesions: how many lesions, 0 to 255.
        scanner: resolution and noise; None for the usual ones.
        tracer: "fdg" or "psma".

    Raises:
        InputError: fewer than `LEAST_SHAPE` voxels along an axis, a spacing that is not positive, an unknown
            tracer, or more lesions than the body has room for.
    """
    _check(spacing_zyx_mm, shape_zyx)
    if not 0 <= n_lesions <= np.iinfo(np.uint8).max:
        raise InputError("phantom", "n_lesions must be from 0 to 255", n_lesions)
    body, lesion, _, noise = _streams(seed, tracer)
    person = draw_person(body, male=True if tracer == "psma" else None)
    frame = Frame(_grid(shape_zyx, spacing_zyx_mm), person, life_size=False)
    return _make(frame, spacing_zyx_mm, tracer, n_lesions, True, scanner or Scanner(), (body, lesion, noise))


def make_patient(
    tracer: TracerName,
    seed: int,
    spacing_zyx_mm: Triple,
    shape_zyx: tuple[int, int, int] | None = None,
) -> Phantom:
    """Make a life-size phantom of which all is drawn: build, organs, number of lesions, scanner.

    Args:
        tracer: "fdg" or "psma".
        seed: equal arguments give equal phantoms.
        spacing_zyx_mm: voxel size.
        shape_zyx: voxels along z, y, x, with the head at the upper end; None for a field of view that is
            tight around the person. 326 x 400 x 400 at 3, 2.04, 2.04 mm is the usual whole body.

    Raises:
        InputError: as `make_phantom`.
    """
    _check(spacing_zyx_mm, shape_zyx)
    body, lesion, settings, noise = _streams(seed, tracer)
    person = draw_person(body, male=True if tracer == "psma" else None)
    shape_zyx = shape_zyx or person.tight_shape(spacing_zyx_mm)
    frame = Frame(_grid(shape_zyx, spacing_zyx_mm), person, life_size=True)
    scanner = draw_scanner(person.girth, settings)
    n_lesions = draw_number(tracer, lesion)
    return _make(frame, spacing_zyx_mm, tracer, n_lesions, False, scanner, (body, lesion, noise))


def _make(
    frame: Frame,
    spacing_zyx_mm: Triple,
    tracer: TracerName,
    n_lesions: int,
    strict: bool,
    scanner: Scanner,
    streams: tuple[np.random.Generator, np.random.Generator, np.random.Generator],
) -> Phantom:
    """Paint, place, and scan what a frame holds; `streams` are those of body, lesions and noise."""
    body, lesion, noise = streams
    tissues = paint_tissues(frame, tracer == "psma", body)
    ligand, tissue_suv = draw_uptake(tracer, body)
    suv = [tissue_suv[tissue.name] for tissue in TISSUES]
    uneven = [UPTAKE[tissue.name].uneven for tissue in TISSUES]
    numbers, lesions = place_lesions(tissues, frame, tracer, suv, n_lesions, strict, lesion)
    pet = _uneven(tissues, suv, uneven, numbers, lesions, spacing_zyx_mm, body)
    pet = scan_pet(pet, spacing_zyx_mm, scanner, noise)
    hu = np.asarray([tissue.hu for tissue in TISSUES], np.float32)[tissues]
    inside = numbers > 0
    hu[inside] = np.asarray([0, *(each.site.hu for each in lesions)], np.float32)[numbers[inside]]
    diaphragm = (DIAPHRAGM_Z_MM - frame.first[0]) / frame.spacing[0]
    return Phantom(
        ct_hu=scan_ct(hu, spacing_zyx_mm, diaphragm, scanner, noise),
        pet_suv=pet,
        lesions=numbers,
        tissues=tissues,
        grid=frame.grid,
        ligand=ligand,
        tissue_suv=tissue_suv,
        lesion_sites=tuple(each.site.name for each in lesions),
        lesion_suv=tuple(each.suv for each in lesions),
        scale=frame.scale,
        scanner=scanner,
    )


def _uneven(
    tissues: Labels,
    suv: list[float],
    uneven: list[float],
    numbers: Labels,
    lesions: list[Lesion],
    spacing_zyx_mm: Triple,
    rng: np.random.Generator,
) -> Image:
    """True uptake: each tissue's and lesion's, uneven in patches of `GRAIN_MM`; slice by slice."""
    extent_mm = np.multiply(tissues.shape, spacing_zyx_mm)
    coarse_shape = np.ceil(extent_mm / GRAIN_MM).astype(int) + 1
    coarse = rng.standard_normal(coarse_shape, dtype=np.float32)
    base = np.log(np.maximum([*suv, 1, *(each.suv for each in lesions)], 1e-6)).astype(np.float32)
    spread = np.asarray([*uneven, 0, *(LESION_UNEVEN for _ in lesions)], np.float32)
    spread[0] = 0  # air
    pet = np.empty(tissues.shape, np.float32)
    heights = np.linspace(0, coarse_shape[0] - 1, len(tissues))
    zoom = np.divide(tissues.shape[1:], coarse_shape[1:])
    for out, labels, lesion, height in zip(pet, tissues, numbers, heights, strict=True):
        low = min(int(height), coarse_shape[0] - 2)
        above = np.float32(height - low)
        patches = ndimage.zoom((1 - above) * coarse[low] + above * coarse[low + 1], zoom, order=1)
        index = np.where(lesion > 0, lesion.astype(np.intp) + len(suv), labels)
        np.exp(base[index] + spread[index] * patches, out=out)
        out[labels == 0] = 0
    return pet


def _check(spacing_zyx_mm: Triple, shape_zyx: tuple[int, int, int] | None) -> None:
    if (shape_zyx and min(shape_zyx) < LEAST_SHAPE) or not all(0 < step < np.inf for step in spacing_zyx_mm):
        rule = f"needs {LEAST_SHAPE} voxels or more along each axis, and spacings above 0 mm"
        raise InputError("phantom", rule, f"{shape_zyx} and {spacing_zyx_mm}")


def _streams(seed: int, tracer: str) -> list[np.random.Generator]:
    """Independent generators; the tracers' cases of one seed are different people."""
    if tracer not in TRACERS:
        raise InputError("phantom", f"tracer must be one of {', '.join(TRACERS)}", tracer)
    sequence = np.random.SeedSequence([seed, TRACERS.index(tracer)])
    return [np.random.default_rng(each) for each in sequence.spawn(_STREAMS)]


def _grid(shape_zyx: tuple[int, int, int], spacing_zyx_mm: Triple) -> Grid:
    z, y, x = spacing_zyx_mm
    return Grid((shape_zyx[2], shape_zyx[1], shape_zyx[0]), (x, y, z))
