"""Paint a person's tissues: body, organs that vary from person to person, ribs."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from petclick.phantom import anatomy
from petclick.phantom.anatomy import LABEL, PARTS, TISSUES, Part
from petclick.phantom.person import Frame, Points

Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

LEAST_SEMI_AXIS_VOX = 0.7
"""Least semi-axis of an organ's solid along each axis, so that glands and ureters survive large voxels."""

_DENT = 0.05  # depth of an organ's dents, as a fraction of its radius
_TRUNK_Z_MM = (760.0, 830.0)  # fat thins out between these heights, up to the neck
_SKIN = 1.01  # where the skin of the head is, relative to the lean body
_LEAN = 0.97  # where fat begins
_SMOOTH = ("bone", "cortical bone", "soft tissue", "spinal cord", "brain", "white matter")
_MOVES_WITH = {
    "renal pelvis": "kidneys",
    "myocardium": "heart chambers",
    "white matter": "brain",
    "gallbladder": "liver",
}
_AFTER_PROSTATECTOMY = 0.4  # of men examined with PSMA


def paint_tissues(frame: Frame, prostatectomies: bool, rng: np.random.Generator) -> Labels:
    """Paint everything but lesions.

    Args:
        frame: where the voxels lie in the person.
        prostatectomies: some men have lost their prostate.
        rng: source of all variety.

    Returns:
        uint8 (z, y, x): labels as in `anatomy.LABEL`.
    """
    tissues = np.full(frame.shape, LABEL["air"], np.uint8)
    _paint_body(tissues, frame)
    lost = rng.random() < _AFTER_PROSTATECTOMY and prostatectomies
    absent = {"prostate"} if lost or not frame.person.male else set()
    for part in _varied([part for part in _all_parts(rng) if part.organ not in absent], rng):
        _paint_part(tissues, frame, part, rng)
    _paint_ribs(tissues, frame)
    return tissues


def dented(unit: list[Points], power: float, depth: float, rng: np.random.Generator) -> Mask:
    """A solid with a wavy surface.

    Args:
        unit: open grid of distances from its centre along z, y, x, in units of its semi-axes.
        power: of z's term, see `anatomy.Part`.
        depth: of the dents, relative to the radius; each of three waves has this depth.
        rng: source of the waves.
    """
    waves, phases = rng.normal(0, 2, (3, 3)), rng.uniform(0, 2 * np.pi, 3)
    z, y, x = unit
    distance = np.abs(z) ** power + y**2 + x**2
    if not depth:
        return np.asarray(distance <= 1)
    dents = sum(
        np.sin(wave[0] * z + wave[1] * y + wave[2] * x + phase)
        for wave, phase in zip(waves, phases, strict=True)
    )
    return np.asarray(np.sqrt(distance) <= 1 + depth * dents)


def _all_parts(rng: np.random.Generator) -> Iterator[Part]:
    """The table's solids, and those that run differently in every person: bowel and ureters."""
    bowel = [
        *anatomy.loops(anatomy.ABDOMEN, 11, 260, rng),
        *anatomy.loops(anatomy.LEFT_UPPER_ABDOMEN, 11, 60, rng),
        *anatomy.along("duodenum", anatomy.DUODENUM, 11),
    ]
    first = next(i for i, part in enumerate(PARTS) if part.organ == "stomach")
    yield from PARTS[:first]
    yield from bowel
    yield from PARTS[first:]
    for line in anatomy.URETERS:
        pieces = list(anatomy.along("ureters", line, 3.5))
        shown = np.repeat(rng.random(len(pieces) // 10 + 1) < rng.random(), 10)  # urine comes in portions
        yield from (part for part, show in zip(pieces, shown, strict=False) if show)


def _varied(parts: list[Part], rng: np.random.Generator) -> Iterator[Part]:
    """Each tissue's solids larger or smaller, and elsewhere, by the table's standard deviations."""
    n = len(TISSUES)
    deviates, shifts = np.clip(rng.standard_normal(n), -2, 2), np.clip(rng.standard_normal((n, 3)), -2, 2)
    for part in parts:
        label = LABEL[part.organ]
        centre = part.centre + TISSUES[label].shift_sd_mm * shifts[label]
        if leader := _MOVES_WITH.get(part.organ):
            centre = centre + TISSUES[LABEL[leader]].shift_sd_mm * shifts[LABEL[leader]]
        size = 1 + TISSUES[label].size_sd * deviates[label]
        z, y, x = centre
        semi_z, semi_y, semi_x = np.multiply(part.semi_axes, size)
        yield Part(part.organ, (z, y, x), (semi_z, semi_y, semi_x), part.power)


def _paint_part(tissues: Labels, frame: Frame, part: Part, rng: np.random.Generator) -> None:
    """Paint one solid where there is body under the fat."""
    depth = 0.0 if part.organ in _SMOOTH else _DENT
    semi_axes = np.maximum(part.semi_axes, LEAST_SEMI_AXIS_VOX * frame.spacing)
    box = frame.box(part.centre, (1 + 3 * depth) * semi_axes)
    unit = [offset / axis for offset, axis in zip(frame.offsets(box, part.centre), semi_axes, strict=True)]
    region = tissues[box]
    region[dented(unit, part.power, depth, rng) & (region > LABEL["fat"])] = LABEL[part.organ]


def _slices(tissues: Labels, frame: Frame) -> Iterator[tuple[float, Labels, Points, Points]]:
    """The body's slices: z and y (mm), labels (a view), and distance from the axis, 1 at the lean skin."""
    height, depth, width = anatomy.BODY_MM
    box = frame.box((height / 2, 0, 0), (height / 2, depth, width))
    z_mm, y_mm, x_mm = frame.offsets(box, (0, 0, 0))
    for labels, z in zip(tissues[box], z_mm.ravel(), strict=True):
        y_centre, leg_x, half_depth, half_width = anatomy.cross_section(z)
        if min(half_depth, half_width) > 0:
            radius = np.hypot((y_mm[0] - y_centre) / half_depth, (np.abs(x_mm[0]) - leg_x) / half_width)
            yield z, labels, y_mm[0], radius


def _paint_body(tissues: Labels, frame: Frame) -> None:
    """Paint the body, all muscle under a layer of fat."""
    for z, labels, _, radius in _slices(tissues, frame):
        labels[radius <= np.interp(z, _TRUNK_Z_MM, (frame.person.fat, _SKIN))] = LABEL["fat"]
        labels[radius <= _LEAN] = LABEL["muscle"]


def _paint_ribs(tissues: Labels, frame: Frame) -> None:
    """Paint the ribs: rings in the chest wall that fall to the front."""
    (low, high), (inner, outer) = anatomy.RIBS_Z_MM, anatomy.RIBS_WITHIN
    for z, labels, y, radius in _slices(tissues, frame):
        ring = (z - anatomy.RIB_SLOPE * y) % anatomy.RIB_PITCH_MM < anatomy.RIB_HEIGHT_MM
        if low <= z <= high:
            labels[ring & (radius >= inner) & (radius <= outer)] = LABEL["cortical bone"]
