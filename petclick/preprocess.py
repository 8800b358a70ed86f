"""From a case to the network's image, and the map that takes clicks there: one path for all models.

Cropping, normalisation and resampling are nnU-Net's own functions, chosen by the model's plan.
"""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization import default_normalization_schemes
from nnunetv2.preprocessing.resampling import default_resampling, resample_torch

from petclick.body import find_body, resize_any
from petclick.clicks import ClickSet
from petclick.errors import InputError, raise_if_out_of_memory
from petclick.files import shorten
from petclick.grid import (
    FloatArray,
    Grid,
    apply_affine,
    crop_affine,
    resample_affine,
    transpose_affine,
)
from petclick.images import AIR_HU, Case, to_grid
from petclick.model import Plan
from petclick.orientation import orient

logger = logging.getLogger(__name__)

BACKGROUND_MARGIN = -1000.0
"""The lesion's margin where nothing is predicted: so far below 0 that no correction makes it a lesion."""
MAX_NETWORK_VOXELS = 400_000_000
"""Of a case once it is resampled; a whole body at 2 mm has 50 to 100 million."""
MAX_RATIO, RATIO_FREE_VOXELS = 32, 2_000_000
"""Voxels of the resampled case per voxel of a larger one: PET of 6 mm on a grid of 2 mm makes 27 of one."""
CROP_SLACK_VOX = 1.0
"""Clicks may lie this far outside the cropped image, in voxels of the network's grid, by rounding."""


@dataclass(frozen=True)
class Prepared:
    """A case on the network's grid, and the way back.

    image: float32 (2, *network shape), CT and PET, normalised; body: bool (*network shape), where
    `find_body` finds some; case_grid: the case as stored; upright: the same in the model's orientation;
    crop: half-open box ((lower, upper), …) of the upright, transposed arrays; spacing_mm: theirs, in the same
    axis order; to_network: 4 x 4, case (z, y, x) indices -> its.
    """

    image: npt.NDArray[np.float32]
    body: npt.NDArray[np.bool_]
    case_grid: Grid
    upright: Grid
    crop: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float, ...]
    to_network: FloatArray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the network's grid."""
        a, b, c = self.image.shape[1:]
        return a, b, c

    @property
    def crop_shape(self) -> tuple[int, ...]:
        """Shape of the crop, before resampling."""
        return tuple(upper - lower for lower, upper in self.crop)


def prepare(case: Case, plan: Plan, orientation: str | None) -> Prepared:
    """Orient, transpose, crop, normalise and resample a case as the model's training did.

    Args:
        case: CT and PET on one grid.
        plan: the model's.
        orientation: axis code that the model was trained in; None leaves the case as stored.

    Raises:
        InputError: every voxel of the case is 0, or it would be too large on the network's grid.
    """
    upright = case.grid if orientation is None else orient(case.grid, orientation)
    _require_moderate(case, "once turned upright", upright.size_xyz)
    axes = plan.transpose_forward
    images = [
        to_grid(array, case.grid, upright, outside).transpose(axes)
        for array, outside in ((case.ct_hu, AIR_HU), (case.pet_suv, 0.0))
    ]
    nonzero = np.stack([image != 0 for image in images])
    if not nonzero.any():
        raise InputError(case.name, "the case must have a voxel that is not 0")
    _, outside_mask, crop = crop_to_nonzero(nonzero)  # the box depends on nothing else
    images = [image[tuple(slice(*bounds) for bounds in crop)] for image in images]
    body = find_body(*images)
    spacing_mm = tuple(upright.spacing_zyx_mm[axis] for axis in axes)
    new_shape = default_resampling.compute_new_shape(body.shape, spacing_mm, plan.spacing_mm)
    new_shape = np.maximum(new_shape, 1)  # a slice thinner than half a voxel would vanish
    _require_moderate(case, f"at the network's spacing of {plan.spacing_mm} mm", new_shape)
    channels = [_normalisation(plan, index) for index in range(len(images))]
    resample = _resampling(plan.resampling)

    def run(index: int) -> npt.NDArray[np.float32]:
        # Normalisation works in place; the copy's memory has the order that nnU-Net's means are taken in.
        image = images[index].transpose(np.argsort(axes)).copy().transpose(axes)
        normalised = channels[index].run(image, outside_mask[0])
        resampled = resample(
            normalised[None], new_shape, spacing_mm, plan.spacing_mm, **plan.resampling_kwargs
        )
        return np.asarray(resampled[0], np.float32)

    with ThreadPoolExecutor(min(torch.get_num_threads(), len(images))) as pool:
        image = np.stack([*pool.map(run, range(len(images)))])
    to_network = (
        resample_affine(body.shape, image.shape[1:])
        @ crop_affine([lower for lower, _ in crop])
        @ transpose_affine(axes)
        @ np.linalg.inv(upright.index_zyx_to_mm)
        @ case.grid.index_zyx_to_mm
    )
    box = tuple((int(lower), int(upper)) for lower, upper in crop)
    return Prepared(image, resize_any(body, image.shape[1:]), case.grid, upright, box, spacing_mm, to_network)


def check_plan(plan: Plan) -> None:
    """Prepare a case of a few voxels, so that a plan that cannot be followed is known before the first job.

    Raises:
        InputError: names plans.json, and what is wrong with its normalisation or resampling.
    """
    ones = np.ones((4, 4, 4), np.float32)
    spacing_mm = 1.5 * np.take(plan.spacing_mm, np.argsort(plan.transpose_forward))  # has to be resampled
    x, y, z = map(float, spacing_mm[::-1])
    try:
        prepare(Case(ones, ones, Grid(ones.shape, (x, y, z)), "plans.json"), plan, None)
    except InputError:
        raise
    except Exception as error:  # whatever nnU-Net's functions make of arguments that are not theirs
        raise_if_out_of_memory(error)
        rule = "normalisation and resampling must be such as nnU-Net plans them"
        raise InputError("plans.json", rule, shorten(error)) from error


def map_clicks(clicks: ClickSet, prepared: Prepared) -> ClickSet:
    """Take clicks from the case's grid to the network's.

    Clicks in the empty margin that was cropped away are left out, with a warning: nothing is predicted there.
    """
    index = apply_affine(prepared.to_network, clicks.index_zyx)
    shape = np.asarray(prepared.shape)
    inside = ((index >= -0.5 - CROP_SLACK_VOX) & (index < shape - 0.5 + CROP_SLACK_VOX)).all(axis=1)
    if not inside.all():
        logger.warning(
            "%d clicks lie where CT and PET are 0 up to the image's border; no lesion is predicted there",
            np.count_nonzero(~inside),
        )
    kept = ClickSet(clicks.index_zyx[inside], clicks.kind[inside])
    return kept.mapped(prepared.to_network, prepared.shape)


def restore(margin: torch.Tensor, prepared: Prepared, plan: Plan) -> npt.NDArray[np.float32]:
    """Take the lesion's logit margin from the network's grid back to the case's.

    It is resampled linearly by nnU-Net's torch function; for two classes its sign is the argmax.

    Args:
        margin: float32 (network shape), lesion logit minus background logit.
        prepared: the case.
        plan: the model's.

    Returns:
        float32 (z, y, x) margin on the case's grid, `BACKGROUND_MARGIN` where nothing was predicted.
    """
    cropped = resample_torch.resample_torch_fornnunet(
        margin[None],
        prepared.crop_shape,
        plan.spacing_mm,
        prepared.spacing_mm,
        num_threads=torch.get_num_threads(),
        device=margin.device,
    )[0]
    backward = np.argsort(plan.transpose_forward)
    shape = np.take(prepared.upright.shape_zyx, plan.transpose_forward)
    transposed = np.full(shape, BACKGROUND_MARGIN, np.float32)
    transposed[tuple(slice(*bounds) for bounds in prepared.crop)] = cropped.cpu().numpy()
    # The margin is what an oblique case needs: a mask would lose its outline in another resampling.
    upright = transposed.transpose(backward)
    return np.ascontiguousarray(to_grid(upright, prepared.upright, prepared.case_grid, BACKGROUND_MARGIN))


def _require_moderate(case: Case, grid: str, size: Sequence[int]) -> None:
    """Few voxels that lie far apart, or long ones that lie across, are many on another grid."""
    most = min(MAX_NETWORK_VOXELS, max(RATIO_FREE_VOXELS, MAX_RATIO * case.pet_suv.size))
    if math.prod(map(int, size)) > most:
        rule = f"the case must have at most {most} voxels {grid}"
        raise InputError(case.name, rule, " x ".join(map(str, size)))


def _normalisation(plan: Plan, channel: int) -> Any:
    """nnU-Net's normalisation of a channel."""
    name = plan.normalization[channel]
    scheme = getattr(default_normalization_schemes, str(name), None)
    if not isinstance(scheme, type) or not issubclass(
        scheme, default_normalization_schemes.ImageNormalization
    ):
        raise InputError("plans.json", "normalization_schemes must name schemes of nnU-Net", repr(name))
    return scheme(
        use_mask_for_norm=plan.use_mask_for_norm[channel], intensityproperties=plan.intensities[channel]
    )


def _resampling(name: str) -> Any:
    """nnU-Net's resampling function of this name."""
    for module in (default_resampling, resample_torch):
        if name.startswith("resample_") and hasattr(module, name):
            return getattr(module, name)
    raise InputError("plans.json", "resampling_fn_data must name a function of nnU-Net", repr(name))
