"""A case as a picture for a web page: the coronal projection of PET, outlines of masks, places of clicks.

Everything is plain JSON: the projection a base64 JPEG, outlines SVG paths in its pixels, clicks in
millimetres from its upper left corner.
"""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from petclick.clicks import KINDS
from petclick.evaluation.protocol import Step
from petclick.images import Case
from petclick.overlay import BODY_SUV, SUV_WINDOW, pixel_edges
from petclick.upright import Upright

Mask = npt.NDArray[np.uint8]

MARGIN_MM = 15.0
"""Air left around the body."""
JPEG_QUALITY = 88


class CaseView:
    """One case's projection, and what is drawn over it."""

    def __init__(self, case: Case, truth: Mask) -> None:
        """Project PET along the patient's depth, head up, and cut off the air around."""
        self._upright = Upright(case.grid)
        pet, lesion = self._upright.image(case.pet_suv).max(axis=1)[::-1], self._flat(truth)
        step_down, _, step_across = self._upright.grid.spacing_zyx_mm
        self._steps_mm = (step_across, step_down)
        shown = (pet > BODY_SUV) | lesion
        self._rows = _used(shown.any(axis=1), step_down)
        self._columns = _used(shown.any(axis=0), step_across)
        cut = pet[self._rows, self._columns]
        self._picture = {
            "columns": cut.shape[1],
            "rows": cut.shape[0],
            "pixel_mm": list(self._steps_mm),
            "jpeg": _jpeg(cut),
            "truth": self._outline(lesion),
        }

    def as_json(self, methods: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """The whole view: method -> its steps, each from `step`."""
        return self._picture | {"methods": methods}

    def step(self, step: Step) -> dict[str, Any]:
        """What one prediction adds: its outline, and the clicks given."""
        clicks = self._upright.clicks(step.clicks)
        return {
            "step": step.number,
            "outline": self._outline(self._flat(step.mask)),
            **{kind: self._points_mm(clicks.of_kind(kind)) for kind in KINDS},
        }

    def _flat(self, mask: Mask) -> npt.NDArray[np.bool_]:
        return np.asarray((self._upright.mask(mask) > 0).any(axis=1))[::-1]

    def _outline(self, flat: npt.NDArray[np.bool_]) -> str:
        return svg_path(flat[self._rows, self._columns])

    def _points_mm(self, index_zyx: npt.NDArray[np.int64]) -> list[list[float]]:
        down = self._upright.grid.shape_zyx[0] - 1 - index_zyx[:, 0] - self._rows.start
        across = index_zyx[:, 2] - self._columns.start
        points_mm = (np.column_stack([across, down]) + 0.5) * self._steps_mm
        places: list[list[float]] = np.unique(points_mm.round(1), axis=0).tolist()
        return places


def svg_path(flat: npt.NDArray[np.bool_]) -> str:
    """The border of a (row, column) mask along pixel faces as an SVG path, x to the right and y down."""
    edges = pixel_edges(flat)
    lying = edges[:, 0, 1] == edges[:, 1, 1]
    parts = []
    for letter, along, chosen in (("h", 0, edges[lying, 0]), ("v", 1, edges[~lying, 0])):
        order = np.lexsort((chosen[:, along], chosen[:, 1 - along]))
        starts = chosen[order]
        follows = np.zeros(len(starts), bool)
        follows[1:] = (np.diff(starts[:, along]) == 1) & (np.diff(starts[:, 1 - along]) == 0)
        first = np.flatnonzero(~follows)
        lengths = np.diff([*first, len(starts)])
        parts += [f"M{x} {y}{letter}{n}" for (x, y), n in zip(starts[first], lengths, strict=True)]
    return "".join(parts)


def _used(shown: npt.NDArray[np.bool_], step_mm: float) -> slice:
    """From the first to the last pixel in use, with a margin; all of them where none is."""
    used = np.flatnonzero(shown)
    margin = round(MARGIN_MM / step_mm)
    if not len(used):
        return slice(0, len(shown))
    return slice(max(int(used[0]) - margin, 0), min(int(used[-1]) + 1 + margin, len(shown)))


def _jpeg(pet_suv: npt.NDArray[np.float32]) -> str:
    low, high = SUV_WINDOW
    grey = 255 * (1 - np.clip((pet_suv - low) / (high - low), 0, 1))
    file = io.BytesIO()
    Image.fromarray(grey.round().astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(file.getbuffer()).decode()
