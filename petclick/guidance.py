"""Clicks as network input: what `guidance.json` may say, and the channels drawn from it.

Training and inference both call `encode`; it runs over NumPy or CuPy arrays alike. The stamp follows the
Euclidean-distance encoding of arXiv 2508.21680: a ball filled with the distance to the nearest voxel outside.
"""

import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from petclick.clicks import KINDS, ClickSet
from petclick.errors import InputError
from petclick.files import read_json
from petclick.orientation import is_axis_code
from petclick.postprocess import PostprocessSpec
from petclick.records import from_mapping, to_mapping

FILE_NAME = "guidance.json"


@dataclass(frozen=True)
class GuidanceSpec:
    """A model's own contract on its input, beside nnU-Net's plans; the defaults are the published ensemble's.

    encoding: 'edt' or 'gaussian'; radius_vox: the stamp's radius on the network's grid ('edt');
    sigma_vox: the Gaussian's width there ('gaussian'); orientation: axis code (such as 'LPS') of the
    arrays (x, y, z) that the model was trained on, or None to take every case as it is stored;
    postprocess: what is done with its logits.
    """

    encoding: Literal["edt", "gaussian"] = "edt"
    radius_vox: int = 2
    sigma_vox: float = 1.0
    orientation: str | None = None
    postprocess: PostprocessSpec = field(default_factory=PostprocessSpec)

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: naming the key, its rule and the value.
        """
        if self.encoding not in ("edt", "gaussian"):
            raise InputError(FILE_NAME, "encoding must be 'edt' or 'gaussian'", repr(self.encoding))
        if type(self.radius_vox) is not int or not 1 <= self.radius_vox <= 16:
            rule = "radius_vox must be a whole number from 1 to 16"
            raise InputError(FILE_NAME, rule, repr(self.radius_vox))
        if type(self.sigma_vox) not in (int, float) or not 0 < self.sigma_vox <= 16:
            rule = "sigma_vox must be a number above 0, up to 16"
            raise InputError(FILE_NAME, rule, repr(self.sigma_vox))
        if not (self.orientation is None or is_axis_code(self.orientation)):
            rule = "orientation must be an axis code such as 'LPS', or null"
            raise InputError(FILE_NAME, rule, repr(self.orientation))


def load_spec(path: Path) -> GuidanceSpec:
    """Read a model folder's guidance.json.

    Args:
        path: the file; where there is none the defaults hold, as in the published ensemble.

    Raises:
        InputError: not JSON, not an object, an unknown key or a bad value.
    """
    if not path.is_file():
        return GuidanceSpec()
    return from_mapping(GuidanceSpec, read_json(path), path)


def save_spec(spec: GuidanceSpec, path: Path) -> None:
    """Write `spec` as guidance.json."""
    path.write_text(json.dumps(to_mapping(spec), indent=2) + "\n", "utf-8")


def reach(spec: GuidanceSpec) -> int:
    """Largest distance, in voxels, at which a stamp is not 0."""
    return spec.radius_vox if spec.encoding == "edt" else math.ceil(3 * spec.sigma_vox)


@lru_cache(maxsize=8)
def stamp(spec: GuidanceSpec) -> npt.NDArray[np.float32]:
    """One click's stamp: an odd cube of float32 in [0, 1], 1 at its centre.

    'edt': voxels within the radius hold their Euclidean distance to the nearest voxel outside the ball,
    divided by the maximum. The box ends with the ball, so only voxels of the box count as outside: at radius
    2 there are 33 voxels, with 1, (2/5) ** 0.5 and (1/5) ** 0.5. 'gaussian': exp(-d**2 / (2 * sigma**2)), cut
    at 3 sigma.
    """
    most = reach(spec)
    axis = np.arange(-most, most + 1)
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    if spec.encoding == "edt":
        values = ndimage.distance_transform_edt(squared <= most**2)
        values /= values.max()
    else:
        values = np.where(squared <= most**2, np.exp(-squared / (2 * spec.sigma_vox**2)), 0)
    result = values.astype(np.float32)
    result.flags.writeable = False
    return result


def encode(  # NumPy's and CuPy's arrays have no common type
    clicks: ClickSet,
    shape_zyx: tuple[int, int, int],
    spec: GuidanceSpec,
    xp: Any = np,
) -> Any:
    """Draw clicks into two channels; stamps that overlap combine by maximum and are cut at the border.

    Args:
        clicks: on the network's grid; stamps of those outside the volume are cut like any other.
        shape_zyx: the volume's shape.
        spec: how a click is drawn.
        xp: the array module, NumPy or CuPy. The stamp is SciPy's for both, so that they draw the same bits.

    Returns:
        float32 array (2, z, y, x) of `xp`, tumour first, values in [0, 1].
    """
    channels = xp.zeros((len(KINDS), *shape_zyx), dtype=xp.float32)
    one = stamp(spec)
    shape = xp.asarray(shape_zyx)
    # Scribbles repeat voxels; each is drawn once.
    points = xp.asarray(np.unique(np.column_stack((clicks.kind, clicks.index_zyx)), axis=0).astype(np.int64))
    # Values in ascending order, each for all clicks at once: the last one written is the maximum.
    for value in np.unique(one[one > 0]):
        offsets = xp.asarray(np.argwhere(one == value) - one.shape[0] // 2)
        voxels = (points[:, None, 1:] + offsets).reshape(-1, 3)
        channel = xp.repeat(points[:, 0], len(offsets))
        inside = ((voxels >= 0) & (voxels < shape)).all(axis=1)
        channels[(channel[inside], *voxels[inside].T)] = value
    return channels
