"""What the scanner does to the truth: PET's blur and noise, CT's noise, and CT that does not lie on PET.

Arrays are float32 (z, y, x); images are worked on slice by slice or in place, because a whole body at full
size has 52 million voxels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from petclick.phantom.anatomy import Triple

Image = npt.NDArray[np.float32]

NOISE_AT_SUV_1 = 0.12
"""Standard deviation of PET where SUV is 1, in a usual scan (`counts` 1)."""
DIAPHRAGM_MM = 60.0
"""Reach of breathing's displacement above and below the diaphragm (1 sd of a bell curve)."""

_CT_BLUR_VOX, _LOWEST_HU = 0.5, -1024.0
_FWHM_PER_SIGMA = 2.3548


@dataclass(frozen=True)
class Scanner:
    """What the scanner does to the truth.

    psf_fwhm_mm: PET's resolution; counts: registered events relative to a usual scan, infinite for none of
    the noise, which grows with the root of uptake and falls with the root of counts; noise_fwhm_mm: size of
    the noise's grains; ct_noise_hu: standard deviation of CT; breathing_mm: how far CT's diaphragm lies above
    PET's; shift_yx_mm: how far the patient moved between both.
    """

    psf_fwhm_mm: float = 6.0
    counts: float = 1.0
    noise_fwhm_mm: float = 5.0
    ct_noise_hu: float = 12.0
    breathing_mm: float = 0.0
    shift_yx_mm: tuple[float, float] = (0.0, 0.0)


def draw_scanner(girth: float, rng: np.random.Generator) -> Scanner:
    """Draw a scan: dose, time and scanner vary; a wider body (relative girth) lets fewer counts out."""
    counts = np.exp(rng.uniform(np.log(0.5), np.log(2.5))) * np.exp(-2.5 * (girth - 1))
    misaligned = rng.random() < 0.5
    breathing, dy, dx = rng.normal(0, (7, 2, 2)) if misaligned else (0.0, 0.0, 0.0)
    return Scanner(
        psf_fwhm_mm=rng.uniform(4.5, 7.5),
        counts=float(np.clip(counts, 0.3, 3)),
        noise_fwhm_mm=rng.uniform(4, 6.5),
        ct_noise_hu=rng.uniform(8, 25),
        breathing_mm=float(breathing),
        shift_yx_mm=(float(dy), float(dx)),
    )


def scan_ct(
    truth: Image, spacing_zyx_mm: Triple, diaphragm_vox: float, scanner: Scanner, rng: np.random.Generator
) -> Image:
    """CT of the true HU, displaced against PET, with half a voxel of blur, noise, and the scale's lower end.

    Args:
        truth: HU.
        spacing_zyx_mm: voxel size.
        diaphragm_vox: slice of the diaphragm, where breathing displaces most.
        scanner: noise and displacement.
        rng: source of the noise.
    """
    if scanner.breathing_mm or any(scanner.shift_yx_mm):
        truth = _displaced(truth, spacing_zyx_mm, diaphragm_vox, scanner)
    ct = ndimage.gaussian_filter(truth, _CT_BLUR_VOX)
    for part in ct:
        part += scanner.ct_noise_hu * rng.standard_normal(part.shape, dtype=np.float32)
    return np.maximum(ct, _LOWEST_HU, out=ct)


def scan_pet(truth: Image, spacing_zyx_mm: Triple, scanner: Scanner, rng: np.random.Generator) -> Image:
    """PET of the true SUV: the scanner's blur, then grainy noise that grows with the root of uptake."""
    spacing = np.asarray(spacing_zyx_mm)
    pet = ndimage.gaussian_filter(truth, scanner.psf_fwhm_mm / _FWHM_PER_SIGMA / spacing)
    if np.isinf(scanner.counts):
        return pet
    noise = rng.standard_normal(pet.shape, dtype=np.float32)
    ndimage.gaussian_filter(noise, scanner.noise_fwhm_mm / _FWHM_PER_SIGMA / spacing, output=noise)
    noise *= NOISE_AT_SUV_1 / np.sqrt(scanner.counts) / noise.std()
    for part, grains in zip(pet, noise, strict=True):
        part += grains * np.sqrt(part)
    return np.maximum(pet, 0, out=pet)


def _displaced(truth: Image, spacing_zyx_mm: Triple, diaphragm_vox: float, scanner: Scanner) -> Image:
    """Move slices up or down around the diaphragm, and all of them within their plane; linear."""
    rise_z, *step_yx = spacing_zyx_mm
    n = len(truth)
    bell = np.exp(-0.5 * ((np.arange(n) - diaphragm_vox) * rise_z / DIAPHRAGM_MM) ** 2)
    source = np.clip(np.arange(n) - scanner.breathing_mm / rise_z * bell, 0, n - 1)
    shift = np.divide(scanner.shift_yx_mm, step_yx)
    moved = np.empty_like(truth)
    for out, position in zip(moved, source, strict=True):
        low = min(int(position), n - 2)
        above = np.float32(position - low)
        blend = (1 - above) * truth[low] + above * truth[low + 1]
        ndimage.shift(blend, shift, output=out, order=1, mode="nearest")
    return moved
