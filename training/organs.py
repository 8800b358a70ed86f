"""The ten organs of the auxiliary task, and what they are in the phantoms and in TotalSegmentator's masks.

The choice is that of arXiv 2409.09478: what takes up tracers and what TotalSegmentator can give. Numbers are
those of its version 2, tasks `total` and `head_glands_cavities` (github.com/wasserth/TotalSegmentator,
totalsegmentator/map_to_binary.py).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from petclick.phantom.anatomy import LABEL

Mask = npt.NDArray[np.uint8]


class Organ(NamedTuple):
    """One organ: the phantom's tissues, and the classes of TotalSegmentator's two tasks."""

    name: str
    tissues: tuple[str, ...]
    total: tuple[int, ...] = ()
    head_glands: tuple[int, ...] = ()


ORGANS = (
    Organ("spleen", ("spleen",), (1,)),
    Organ("kidneys", ("kidneys", "renal pelvis"), (2, 3)),
    Organ("liver", ("liver",), (5,)),
    Organ("bladder", ("bladder",), (21,)),
    Organ("lungs", ("lungs",), (10, 11, 12, 13, 14)),
    Organ("brain", ("brain", "white matter"), (90,)),
    Organ("heart", ("heart chambers", "myocardium"), (51,)),
    Organ("stomach", ("stomach",), (6,)),
    Organ("prostate", ("prostate",), (22,)),
    Organ("head glands", ("parotid glands", "submandibular glands"), (), (7, 8, 9, 10)),
)
"""The organs; an organ's label in `labelsTr_organs` is its place here, from 1."""

ORGAN_LABEL = {organ.name: label for label, organ in enumerate(ORGANS, start=1)}
"""Label of each organ; 0 is everything else."""


def organs_of_tissues(tissues: Mask) -> Mask:
    """A phantom's tissues (z, y, x) as organ labels 0 to 10, uint8."""
    table = np.zeros(len(LABEL), np.uint8)
    for label, organ in enumerate(ORGANS, start=1):
        table[[LABEL[tissue] for tissue in organ.tissues]] = label
    return np.asarray(table[tissues])
