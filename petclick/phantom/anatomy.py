"""The reference person of the phantom: tissues, body outline and solids, as tables.

Millimetres in (z, y, x): z up from mid-thigh, y to posterior and x to the left, both from the midline. HU
are round textbook figures of adults. What a tracer does in these tissues is in `petclick.phantom.tracers`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

Triple = tuple[float, float, float]
Range = tuple[float, float]


class Tissue(NamedTuple):
    """A tissue of its own label: CT value, and how far size (a fraction) and place (mm) vary (1 sd)."""

    name: str
    hu: float
    size_sd: float = 0.0
    shift_sd_mm: float = 0.0


TISSUES = (
    Tissue("air", -1000),
    Tissue("fat", -100),
    Tissue("muscle", 50),
    Tissue("soft tissue", -20),
    Tissue("cortical bone", 700),
    Tissue("bone", 300),
    Tissue("lungs", -800, 0.05, 3),
    Tissue("blood", 45, 0.08, 2),
    Tissue("spinal cord", 35),
    Tissue("heart chambers", 45, 0.08, 5),
    Tissue("myocardium", 50, 0.08, 5),
    Tissue("liver", 60, 0.09, 7),
    Tissue("gallbladder", 12, 0.2, 5),
    Tissue("stomach", 35, 0.15, 7),
    Tissue("spleen", 55, 0.14, 7),
    Tissue("pancreas", 40, 0.1, 4),
    Tissue("kidneys", 35, 0.09, 7),
    Tissue("renal pelvis", 10, 0.2, 2),
    Tissue("duodenum", 25, 0.1, 4),
    Tissue("jejunum", 25, 0.1, 6),
    Tissue("small bowel", 20, 0.1, 6),
    Tissue("colon", 5, 0.15, 5),
    Tissue("ureters", 15, 0.1, 2),
    Tissue("prostate", 40, 0.15, 2),
    Tissue("bladder", 10, 0.25, 4),
    Tissue("thyroid", 100, 0.15, 2),
    Tissue("tonsils", 50, 0.15, 2),
    Tissue("nasal mucosa", 0, 0.1, 2),
    Tissue("parotid glands", 10, 0.12, 2),
    Tissue("submandibular glands", 40, 0.12, 2),
    Tissue("lacrimal glands", 40, 0.15, 1),
    Tissue("brain", 38, 0.02, 1),
    Tissue("white matter", 32, 0.03, 1),
)
"""The tissues; a tissue's label in `Phantom.tissues` is its place here."""

LABEL = {tissue.name: label for label, tissue in enumerate(TISSUES)}

BODY_MM = (1060.0, 240.0, 380.0)
"""Height, depth and width of the reference person without the fat under the skin."""

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

RIBS_WITHIN = (0.88, 0.94)
"""Fractions of a cross-section's radius: the ribs' inner and outer face."""
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


def both(organ: str, centre: Triple, semi_axes: Triple, power: float = 2.0) -> tuple[Part, Part]:
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
    Part("soft tissue", (400, -10, 0), (210, 92, 136), 4),
    *both("lungs", (655, 2, 82), (125, 88, 62), 3),
    *_spine(),
    Part("spinal cord", (640, 72, 0), (190, 6, 7), 12),
    Part("bone", (690, -96, 0), (78, 7, 17), 4),  # sternum
    *both("cortical bone", (778, -22, 82), (7, 8, 56)),  # clavicles
    *both("cortical bone", (700, 76, 98), (60, 6, 36)),  # scapulae
    *both("bone", (742, 5, 150), (22, 22, 20)),  # humeral heads
    Part("bone", (318, 70, 0), (48, 14, 40)),  # sacrum
    *both("bone", (318, 28, 92), (64, 42, 11)),  # ilia
    *both("bone", (222, 10, 88), (42, 30, 20)),  # hip sockets
    *both("bone", (190, -45, 32), (11, 11, 32)),  # pubic bones
    *both("bone", (212, 2, 108), (24, 24, 24)),  # femoral heads
    *both("cortical bone", (95, 2, 98), (118, 15, 15), 12),  # femoral shafts
    *both("bone", (95, 2, 98), (112, 9, 9), 12),
    Part("cortical bone", (985, 2, 0), (68, 89, 71)),  # skull
    Part("cortical bone", (930, 38, 0), (32, 38, 52)),
    Part("cortical bone", (880, -58, 0), (38, 24, 42), 4),  # face
    Part("muscle", (880, -46, 0), (34, 26, 34), 4),
    Part("nasal mucosa", (915, -62, 0), (16, 18, 13)),
    *both("tonsils", (872, -22, 15), (10, 7, 5)),
    *both("thyroid", (815, -22, 17), (20, 9, 8)),
    Part("blood", (640, 38, 14), (88, 11, 11), 12),  # aorta
    Part("blood", (475, 20, 10), (88, 10, 10), 12),
    Part("blood", (500, 16, -15), (110, 10, 11), 12),  # caval vein
    Part("blood", (710, -22, 2), (32, 26, 24)),  # great vessels
    Part("heart chambers", (638, -28, 18), (46, 42, 56)),
    Part("myocardium", (622, -32, 40), (38, 34, 38)),  # left ventricle
    Part("heart chambers", (627, -28, 34), (26, 22, 28)),
    Part("stomach", (528, -28, 62), (46, 34, 38)),
    Part("pancreas", (488, -4, 22), (12, 11, 48)),
    Part("liver", (524, -2, -72), (70, 74, 66), 2.5),
    Part("liver", (540, -36, 2), (34, 38, 60)),
    Part("gallbladder", (478, -52, -58), (24, 14, 13)),
    Part("spleen", (540, 50, 104), (48, 30, 24)),
    Part("kidneys", (458, 44, 62), (54, 26, 28)),
    Part("renal pelvis", (456, 38, 50), (20, 9, 9)),
    Part("kidneys", (440, 44, -62), (54, 26, 28)),
    Part("renal pelvis", (438, 38, -50), (20, 9, 9)),
    *both("colon", (405, -5, 112), (78, 22, 20), 4),  # ascending and descending
    Part("colon", (450, -68, 0), (16, 16, 110)),  # transverse
    Part("colon", (255, 40, 12), (52, 18, 20)),  # sigmoid and rectum
    Part("bladder", (212, -38, 0), (30, 34, 40)),
    Part("prostate", (170, -14, 0), (17, 17, 21)),
    *both("parotid glands", (892, 12, 54), (25, 17, 10)),
    *both("submandibular glands", (856, -20, 34), (11, 15, 9)),
    *both("lacrimal glands", (946, -66, 40), (5, 6, 5)),
    Part("brain", (987, 2, 0), (58, 79, 62)),
    Part("white matter", (985, 2, 0), (34, 58, 42)),
    Part("brain", (982, 4, 0), (13, 26, 24)),  # deep nuclei
    Part("brain", (930, 38, 0), (24, 30, 44)),  # cerebellum
)
"""The solids in the order of painting: a later one covers those before it."""

ABDOMEN = Part("small bowel", (370, -48, 0), (70, 38, 78))
"""Where loops of small bowel lie."""
LEFT_UPPER_ABDOMEN = Part("jejunum", (410, -48, 48), (36, 34, 42))
"""Where loops of jejunum lie."""
DUODENUM = ((492, -22, -28), (486, -12, -44), (462, 2, -48), (440, 8, -40), (430, 12, -10), (438, 4, 24))
"""The duodenum's middle line."""
URETERS = (
    ((438, 34, 46), (400, 30, 38), (330, 26, 32), (280, 30, 42), (238, 12, 36), (216, -8, 20)),
    ((420, 34, -46), (390, 30, -38), (330, 26, -32), (280, 30, -42), (238, 12, -36), (216, -8, -20)),
)
"""The ureters' middle lines."""


def along(tissue: str, line: tuple[Triple, ...], radius_mm: float) -> Iterator[Part]:
    """Balls along a line through points, close enough to make a tube."""
    points = np.asarray(line, float)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    curve = PchipInterpolator(length, points)
    for z, y, x in curve(np.arange(0, length[-1], 0.8 * radius_mm)):
        yield Part(tissue, (z, y, x), (radius_mm, radius_mm, radius_mm))


def loops(within: Part, radius_mm: float, n_balls: int, rng: np.random.Generator) -> Iterator[Part]:
    """Balls along a random walk within a solid: loops of bowel."""
    place, heading = np.zeros(3), rng.standard_normal(3)  # in units of the solid's semi-axes
    step = radius_mm / np.asarray(within.semi_axes)
    for _ in range(n_balls):
        heading = 0.8 * heading / np.linalg.norm(heading) + 0.45 * rng.standard_normal(3)
        moved = place + step * heading / np.linalg.norm(heading)
        if np.linalg.norm(moved) > 1:
            heading = -place + 0.5 * rng.standard_normal(3)
            continue
        place = moved
        z, y, x = within.centre + place * within.semi_axes
        yield Part(within.organ, (z, y, x), (radius_mm, radius_mm, radius_mm))
