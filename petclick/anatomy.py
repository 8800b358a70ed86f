"""The reference person of the phantom: organs, body outline, solids and places of lesions, as tables.

Millimetres in (z, y, x): z up from mid-thigh, y to posterior and x to the left, both from the midline. HU
and SUV are round textbook figures of adults an hour after injection of FDG; their order (bladder and brain,
heart, kidneys, liver, spleen, blood pool, muscle, lungs) matters more than any one of them.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

Triple = tuple[float, float, float]
Range = tuple[float, float]


class Organ(NamedTuple):
    """A tissue of its own label: CT value, and the range of FDG uptake from which each phantom draws one."""

    name: str
    hu: float
    fdg_suv: Range


ORGANS = (
    Organ("air", -1000, (0.0, 0.0)),
    Organ("fat", -100, (0.25, 0.4)),
    Organ("muscle", 50, (0.6, 0.8)),
    Organ("soft tissue", -20, (0.8, 1.0)),
    Organ("cortical bone", 700, (0.5, 0.8)),
    Organ("bone", 400, (1.0, 1.4)),
    Organ("lungs", -800, (0.4, 0.6)),
    Organ("blood", 45, (1.3, 1.8)),
    Organ("heart", 45, (3.0, 8.0)),
    Organ("liver", 60, (1.9, 2.5)),
    Organ("stomach", 35, (1.3, 2.0)),
    Organ("spleen", 55, (1.6, 2.0)),
    Organ("kidneys", 35, (3.0, 5.0)),
    Organ("gut", 20, (1.0, 1.8)),
    Organ("prostate", 40, (1.2, 1.8)),
    Organ("bladder", 10, (15.0, 30.0)),
    Organ("head glands", 30, (1.5, 2.5)),
    Organ("brain", 35, (8.0, 10.0)),
)
"""The organs; an organ's label in `Phantom.organs` is its place here."""

LABEL = {organ.name: label for label, organ in enumerate(ORGANS)}

BODY_MM = (1060.0, 240.0, 380.0)
"""Height, depth and width of the reference person."""

# Cross-sections of the body: two ellipses, at x = +offset and -offset (one in head and trunk, then the legs).
# Columns: z, y centre, offset, half depth, half width.
_PROFILE = np.array(
    [
        (1060, 4, 0, 0, 0),
        (1055, 4, 0, 36, 30),
        (1035, 4, 0, 72, 56),
        (985, 2, 0, 97, 78),
        (930, -2, 0, 97, 75),
        (880, -8, 0, 88, 67),
        (850, -10, 0, 75, 58),
        (828, 8, 0, 60, 58),
        (800, 12, 0, 62, 66),
        (780, 10, 0, 78, 125),
        (755, 5, 0, 95, 176),
        (720, 0, 0, 106, 186),
        (600, 0, 0, 116, 172),
        (500, 0, 0, 112, 160),
        (420, 0, 0, 110, 156),
        (330, 0, 0, 112, 174),
        (260, 0, 0, 114, 182),
        (210, 2, 45, 112, 138),
        (160, 2, 88, 100, 96),
        (120, 2, 92, 94, 88),
        (0, 4, 92, 80, 74),
    ],
    dtype=np.float64,
)[::-1]
_SECTION = PchipInterpolator(_PROFILE[:, 0], _PROFILE[:, 1:])

FAT_FROM = 0.94
"""Fraction of a cross-section's radius where the fat under the skin begins."""
RIBS_WITHIN = (0.83, 0.88)
"""The same for the ribs' inner and outer face."""
RIBS_Z_MM = (540.0, 735.0)
"""The ribs' lower and upper end."""
RIB_PITCH_MM, RIB_HEIGHT_MM, RIB_SLOPE = 24.0, 10.0, 0.35
"""Distance from rib to rib, a rib's height, and how far it falls per mm to the front."""


def cross_section(z_mm: float) -> tuple[float, float, float, float]:
    """The body at a height: y centre, the ellipses' distance from the midline, their half depth and width."""
    y_centre, offset, half_depth, half_width = _SECTION(z_mm)
    return float(y_centre), float(offset), float(half_depth), float(half_width)


class Part(NamedTuple):
    """One solid of an organ: |z|^power + y² + x² <= 1 in units of its semi-axes (power 2: an ellipsoid)."""

    organ: str
    centre: Triple
    semi_axes: Triple
    power: float = 2.0


def _both(organ: str, centre: Triple, semi_axes: Triple, power: float = 2.0) -> tuple[Part, Part]:
    """The part and its mirror image on the other side."""
    z, y, x = centre
    return Part(organ, centre, semi_axes, power), Part(organ, (z, y, -x), semi_axes, power)


def _spine() -> tuple[Part, ...]:
    """24 vertebrae with their spinous processes, along the curve of the back."""
    z = np.linspace(352, 846, 24)
    y = PchipInterpolator([350, 430, 520, 640, 720, 800, 850], [52, 46, 54, 66, 60, 28, 18])(z)
    size = np.interp(z, [352, 600, 846], [21, 16, 11])
    bodies = [Part("bone", (a, b, 0), (9, 0.8 * c, c), 6) for a, b, c in zip(z, y, size, strict=True)]
    spines = [Part("bone", (a - 4, b + 1.7 * c, 0), (5, c, 4)) for a, b, c in zip(z, y, size, strict=True)]
    return *bodies, *spines


PARTS = (
    Part("soft tissue", (700, -5, 0), (100, 75, 34), 6),
    Part("soft tissue", (400, -10, 0), (210, 88, 132), 4),
    *_both("lungs", (655, 2, 80), (125, 84, 60), 3),
    *_spine(),
    Part("bone", (690, -92, 0), (78, 7, 17), 4),  # sternum
    *_both("cortical bone", (778, -22, 82), (7, 8, 56)),  # clavicles
    *_both("cortical bone", (700, 72, 98), (60, 6, 36)),  # scapulae
    *_both("bone", (742, 5, 150), (22, 22, 20)),  # humeral heads
    Part("bone", (318, 70, 0), (48, 14, 40)),  # sacrum
    *_both("bone", (318, 28, 92), (64, 42, 11)),  # ilia
    *_both("bone", (222, 10, 88), (42, 30, 20)),  # hip sockets
    *_both("bone", (190, -45, 32), (11, 11, 32)),  # pubic bones
    *_both("bone", (212, 2, 108), (24, 24, 24)),  # femoral heads
    *_both("cortical bone", (95, 2, 98), (118, 15, 15), 12),  # femoral shafts
    *_both("bone", (95, 2, 98), (112, 8, 8), 12),
    Part("cortical bone", (985, 2, 0), (68, 89, 71)),  # skull
    Part("cortical bone", (930, 38, 0), (32, 38, 52)),
    Part("cortical bone", (880, -58, 0), (38, 24, 42), 4),  # face
    Part("muscle", (880, -46, 0), (34, 26, 34), 4),
    Part("blood", (640, 38, 14), (88, 11, 11), 12),  # aorta
    Part("blood", (475, 20, 10), (88, 10, 10), 12),
    Part("blood", (500, 16, -15), (110, 10, 11), 12),  # caval vein
    Part("blood", (710, -22, 2), (32, 28, 26)),  # great vessels
    Part("heart", (632, -30, 34), (44, 42, 50)),
    Part("blood", (638, -28, 36), (28, 26, 33)),  # its cavity
    Part("gut", (375, -42, 0), (62, 42, 78), 3),
    *_both("gut", (405, -5, 112), (78, 22, 20), 4),  # ascending and descending colon
    Part("gut", (450, -68, 0), (18, 18, 110)),  # transverse colon
    Part("gut", (245, 42, 12), (52, 20, 22)),  # sigmoid colon and rectum
    Part("stomach", (528, -28, 62), (46, 36, 40)),
    Part("liver", (524, -2, -70), (66, 72, 66), 2.5),
    Part("liver", (540, -36, 4), (34, 38, 60)),
    Part("spleen", (540, 50, 104), (48, 30, 24)),
    Part("kidneys", (458, 44, 62), (52, 24, 27)),
    Part("kidneys", (440, 44, -62), (52, 24, 27)),
    Part("bladder", (212, -38, 0), (30, 34, 40)),
    Part("prostate", (170, -14, 0), (17, 17, 21)),
    *_both("head glands", (892, 18, 52), (24, 16, 10)),
    *_both("head glands", (862, -18, 36), (11, 13, 9)),
    Part("brain", (987, 2, 0), (58, 79, 62)),
    Part("brain", (930, 38, 0), (24, 30, 44)),
)
"""The solids in the order of painting: a later one covers those before it."""


class Site(NamedTuple):
    """Where lesions arise: how often, how large, in which organs, around which solids; their HU and SUV."""

    name: str
    share: float
    radius_mm: Range
    within: tuple[str, ...]
    places: tuple[Part, ...]
    hu: float
    fdg_suv: Range


def _parts_of(*organs: str) -> tuple[Part, ...]:
    return tuple(part for part in PARTS if part.organ in organs)


SITES = (
    Site("liver", 0.15, (6, 28), ("liver",), _parts_of("liver"), 40, (5, 12)),
    Site("lungs", 0.2, (5, 24), ("lungs",), _parts_of("lungs"), 20, (3, 12)),
    Site("bone", 0.2, (5, 18), ("bone", "muscle", "soft tissue"), _parts_of("bone"), 250, (4, 14)),
    Site(
        "lymph nodes",
        0.3,
        (4, 15),
        ("muscle", "soft tissue"),
        (
            *_both("soft tissue", (835, 12, 38), (14, 8, 5)),  # cervical
            *_both("soft tissue", (788, -10, 55), (8, 10, 12)),  # supraclavicular
            *_both("soft tissue", (738, -5, 148), (10, 12, 8)),  # axillary
            Part("soft tissue", (715, 15, 0), (40, 15, 14)),  # mediastinal
            Part("soft tissue", (425, 22, 0), (60, 10, 34)),  # retroperitoneal
            *_both("soft tissue", (275, 5, 62), (30, 14, 8)),  # iliac
            *_both("soft tissue", (175, -62, 84), (16, 8, 14)),  # inguinal
        ),
        40,
        (4, 14),
    ),
    Site(
        "soft tissue",
        0.15,
        (6, 32),
        ("muscle",),
        (
            *_both("muscle", (235, 75, 75), (35, 12, 35)),  # buttocks
            *_both("muscle", (90, 5, 92), (70, 50, 45)),  # thighs
            *_both("muscle", (480, 80, 45), (120, 8, 15)),  # along the spine
            *_both("muscle", (765, 15, 110), (10, 20, 30)),  # shoulders
        ),
        45,
        (3.5, 12),
    ),
)
"""Places of lesions and how they look there."""
