"""What two tracers do in the tissues of the phantom, and where and how their lesions arise: tables.

Uptake is mean SUV an hour or two after injection. `python -m petclick.phantom` compares phantoms with
published figures, where there are some; the others are round figures of the same order. PSMA stands for two
ligands of different excretion, of which each case gets one: PSMA-11 (kidneys and bladder) and PSMA-1007
(liver and gallbladder).
"""

from typing import Literal, NamedTuple

import numpy as np

from petclick.phantom.anatomy import PARTS, Part, Range, Triple, both

TracerName = Literal["fdg", "psma"]

TRACERS: tuple[TracerName, ...] = ("fdg", "psma")
LIGANDS = {"fdg": ("fdg",), "psma": ("psma-11", "psma-1007")}
"""The ligands among which a tracer's cases are drawn."""


class Uptake(NamedTuple):
    """Typical SUV in a tissue and its range over patients, by ligand; how uneven it is (1 sd of ln)."""

    fdg: Triple
    psma_11: Triple
    psma_1007: Triple
    uneven: float = 0.08


# tissue: (typical, lowest, highest) of FDG, PSMA-11, PSMA-1007
UPTAKE = {
    "air": Uptake((0, 0, 0), (0, 0, 0), (0, 0, 0)),
    "fat": Uptake((0.3, 0.2, 0.45), (0.35, 0.2, 0.5), (0.35, 0.2, 0.5)),
    "muscle": Uptake((0.7, 0.5, 1.0), (0.7, 0.45, 1.0), (0.75, 0.5, 1.1), 0.12),
    "soft tissue": Uptake((0.8, 0.5, 1.1), (0.8, 0.5, 1.1), (0.9, 0.6, 1.3), 0.15),
    "cortical bone": Uptake((0.6, 0.4, 0.9), (0.6, 0.4, 0.9), (0.7, 0.4, 1.1)),
    "bone": Uptake((1.2, 0.7, 2.2), (0.9, 0.6, 1.4), (1.1, 0.7, 1.8), 0.12),
    "lungs": Uptake((0.5, 0.35, 0.7), (0.5, 0.3, 0.7), (0.5, 0.35, 0.8), 0.15),
    "blood": Uptake((1.6, 1.2, 2.2), (1.6, 1.1, 2.2), (1.9, 1.3, 2.8)),
    "spinal cord": Uptake((1.9, 1.4, 2.6), (0.8, 0.5, 1.1), (0.9, 0.6, 1.3)),
    "heart chambers": Uptake((1.6, 1.2, 2.2), (1.6, 1.1, 2.2), (1.9, 1.3, 2.8)),
    "myocardium": Uptake((4.0, 1.6, 14.0), (1.8, 1.3, 2.5), (2.1, 1.4, 3.0), 0.2),
    "liver": Uptake((2.3, 1.6, 3.2), (5.2, 3.0, 8.5), (11.5, 6.5, 19.0)),
    "gallbladder": Uptake((1.0, 0.5, 2.0), (3.0, 1.0, 8.0), (30.0, 6.0, 90.0)),
    "stomach": Uptake((2.0, 1.1, 3.8), (3.2, 1.6, 5.5), (3.6, 2.0, 6.5), 0.25),
    "spleen": Uptake((1.9, 1.3, 2.6), (7.8, 3.5, 15.0), (11.0, 5.5, 19.0)),
    "pancreas": Uptake((1.5, 1.0, 2.2), (2.4, 1.5, 4.0), (3.2, 2.0, 5.0)),
    "kidneys": Uptake((2.8, 1.8, 4.2), (42.0, 24.0, 65.0), (14.0, 8.0, 25.0), 0.12),
    "renal pelvis": Uptake((9.0, 3.0, 30.0), (40.0, 20.0, 80.0), (11.0, 5.0, 22.0)),
    "duodenum": Uptake((2.0, 1.2, 3.6), (9.5, 4.5, 17.0), (10.0, 5.0, 17.0), 0.25),
    "jejunum": Uptake((1.7, 0.9, 3.6), (6.0, 2.5, 12.0), (7.0, 3.0, 13.0), 0.4),
    "small bowel": Uptake((1.5, 0.8, 3.6), (2.2, 1.1, 4.5), (2.8, 1.3, 5.5), 0.4),
    "colon": Uptake((1.7, 0.8, 6.5), (1.8, 1.0, 3.5), (1.9, 1.0, 3.5), 0.4),
    "ureters": Uptake((7.0, 2.0, 25.0), (12.0, 4.0, 40.0), (3.5, 1.5, 10.0), 0.4),
    "prostate": Uptake((1.6, 1.0, 2.4), (2.5, 1.5, 4.5), (3.0, 1.8, 5.0), 0.15),
    "bladder": Uptake((18.0, 4.0, 60.0), (25.0, 5.0, 90.0), (4.0, 1.5, 10.0)),
    "thyroid": Uptake((1.4, 0.9, 2.8), (1.3, 0.8, 2.2), (1.8, 1.0, 3.2)),
    "tonsils": Uptake((3.4, 1.8, 6.5), (3.0, 1.8, 5.0), (3.5, 2.0, 6.0)),
    "nasal mucosa": Uptake((1.7, 1.0, 2.8), (3.5, 2.0, 6.0), (4.0, 2.2, 7.0), 0.2),
    "parotid glands": Uptake((1.8, 1.0, 3.0), (14.5, 8.0, 23.0), (18.0, 9.5, 28.0), 0.12),
    "submandibular glands": Uptake((2.1, 1.2, 3.4), (13.0, 7.0, 21.0), (17.0, 9.0, 26.0), 0.12),
    "lacrimal glands": Uptake((1.7, 1.0, 2.8), (12.0, 6.0, 22.0), (13.0, 6.5, 24.0)),
    "brain": Uptake((10.0, 6.5, 14.0), (0.25, 0.1, 0.5), (0.25, 0.1, 0.5)),
    "white matter": Uptake((4.2, 2.8, 6.0), (0.2, 0.1, 0.4), (0.2, 0.1, 0.4)),
}
"""Uptake of each tissue of `anatomy.TISSUES`."""


class Site(NamedTuple):
    """Where lesions arise: how often, how large, in which tissues, around which solids; their HU and SUV.

    share: of lesions at this site over many patients; volume_ml, suv: ranges, drawn evenly on a logarithmic
    scale; male: only in men.
    """

    name: str
    share: float
    volume_ml: Range
    within: tuple[str, ...]
    places: tuple[Part, ...]
    hu: float
    suv: Range
    male: bool = False


def _parts_of(*tissues: str) -> tuple[Part, ...]:
    return tuple(part for part in PARTS if part.organ in tissues)


_NECK_AND_CHEST = (
    *both("soft tissue", (835, 12, 38), (16, 10, 7)),  # cervical
    *both("soft tissue", (788, -10, 55), (8, 12, 16)),  # supraclavicular
    *both("soft tissue", (738, -5, 148), (12, 14, 10)),  # axillary
    Part("soft tissue", (715, 15, 0), (44, 18, 16)),  # mediastinal
)
_RETROPERITONEAL = Part("soft tissue", (425, 22, 0), (62, 12, 34))
_ILIAC = both("soft tissue", (275, 5, 62), (34, 18, 10))
_INGUINAL = both("soft tissue", (175, -62, 84), (16, 8, 14))
_MUSCLES = (
    *both("muscle", (235, 75, 75), (35, 12, 35)),  # buttocks
    *both("muscle", (110, 5, 92), (60, 50, 45)),  # thighs
    *both("muscle", (480, 80, 45), (120, 8, 15)),  # along the spine
    *both("muscle", (765, 15, 110), (10, 20, 30)),  # shoulders
)
_SOFT = ("muscle", "soft tissue")

SITES: dict[TracerName, tuple[Site, ...]] = {
    "fdg": (
        Site("liver", 0.15, (0.8, 90), ("liver",), _parts_of("liver"), 40, (4.5, 14)),
        Site("lungs", 0.2, (0.5, 60), ("lungs",), _parts_of("lungs"), 20, (2.5, 14)),
        Site("bone", 0.2, (0.6, 25), ("bone", *_SOFT), _parts_of("bone"), 250, (3.5, 15)),
        Site(
            "lymph nodes",
            0.33,
            (0.4, 25),
            _SOFT,
            (*_NECK_AND_CHEST, _RETROPERITONEAL, *_ILIAC, *_INGUINAL),
            40,
            (3, 16),
        ),
        Site("soft tissue", 0.12, (1, 150), ("muscle",), _MUSCLES, 45, (3, 14)),
    ),
    "psma": (
        Site(
            "prostate bed",
            0.18,
            (0.4, 15),
            ("prostate", *_SOFT),
            (Part("prostate", (172, -14, 0), (16, 15, 20)),),
            45,
            (5, 40),
            male=True,
        ),
        Site("pelvic nodes", 0.24, (0.3, 8), _SOFT, (*_ILIAC, *_INGUINAL), 40, (3, 45)),
        Site("retroperitoneal nodes", 0.14, (0.3, 12), _SOFT, (_RETROPERITONEAL,), 40, (3, 40)),
        Site("distant nodes", 0.06, (0.3, 8), _SOFT, _NECK_AND_CHEST, 40, (3, 30)),
        Site("bone", 0.32, (0.4, 25), ("bone", *_SOFT), _parts_of("bone"), 400, (3, 45)),
        Site("lungs", 0.03, (0.4, 8), ("lungs",), _parts_of("lungs"), 20, (2, 15)),
        Site("liver", 0.03, (1, 40), ("liver",), _parts_of("liver"), 40, (8, 35)),
    ),
}
"""Places of lesions and how they look there."""

LEAST_CONTRAST = 2.0
"""Least ratio of a lesion's uptake to that of the tissue it lies in."""
LESION_UNEVEN = 0.15
"""How uneven uptake is within a lesion (1 sd of ln)."""

_FREE_SHARE = {"fdg": 0.1, "psma": 0.12}  # of patients without any lesion
_TYPICAL_NUMBER, _NUMBER_SPREAD, _MOST_LESIONS = 4.0, 1.0, 40


def draw_uptake(tracer: TracerName, rng: np.random.Generator) -> tuple[str, dict[str, float]]:
    """Draw a ligand of the tracer, and this patient's uptake of each tissue, log-normal within its range."""
    ligand = str(rng.choice(LIGANDS[tracer]))
    suv = {}
    for tissue, uptake in UPTAKE.items():
        typical, low, high = getattr(uptake, ligand.replace("-", "_"))
        deviate = rng.standard_normal()
        spread = np.log(high / low) / 4 if low else 0.0
        suv[tissue] = float(np.clip(typical * np.exp(spread * deviate), low, high))
    suv["heart chambers"] = suv["blood"]
    return ligand, suv


def draw_number(tracer: TracerName, rng: np.random.Generator) -> int:
    """Draw how many lesions a patient has: none, a few, or many."""
    free, deviate = rng.random() < _FREE_SHARE[tracer], rng.standard_normal()
    number = round(_TYPICAL_NUMBER * np.exp(_NUMBER_SPREAD * deviate))
    return 0 if free else int(np.clip(number, 1, _MOST_LESIONS))
