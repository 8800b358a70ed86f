"""Augmentation steps of this project, for batchgeneratorsv2's pipelines. Patches are (channel, z, y, x)."""

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.channel_misalignment import ChannelMisalignmentTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform

from petclick.clicks import ClickSet
from petclick.guidance import GuidanceSpec, encode
from petclick.simulate import SimulationSettings, simulate
from training.organ_task import LESION_CHANNEL
from training.settings import Misalignment

CT_CHANNEL, PET_CHANNEL = 0, 1


def misalign(pipeline: ComposeTransforms, settings: Misalignment) -> ComposeTransforms:
    """Let CT slip against PET and the masks, right after nnU-Net's spatial augmentation."""
    step = ChannelMisalignmentTransform(
        im_channels_2_misalign=(CT_CHANNEL,),
        rotation_ax_cor_sag=(settings.rotation_deg,) * 3,
        rad_or_deg="deg",
        p_rotation=settings.rotation_share,
        shift_zyx=settings.shift_vox,
        p_shift=settings.shift_share,
    )
    steps = list(pipeline.transforms)
    spatial = [isinstance(each, SpatialTransform | Convert2DTo3DTransform) for each in steps]
    steps.insert(len(spatial) - spatial[::-1].index(True), step)
    return ComposeTransforms(steps)


def with_clicks(pipeline: ComposeTransforms, clicks: "SimulateClicks") -> ComposeTransforms:
    """Put the clicks in before the targets are shrunk, and have the organs' `IGNORE` kept.

    nnU-Net turns -1, its padding, into background; of the organs nothing is known there.
    """
    steps = list(pipeline.transforms)
    for step in steps:
        if isinstance(step, RemoveLabelTransform):
            step.segmentation_channels = [LESION_CHANNEL]
    shrinks = [isinstance(step, DownsampleSegForDSTransform) for step in steps]
    steps.insert(shrinks.index(True) if any(shrinks) else len(steps), clicks)
    return ComposeTransforms(steps)


class SimulateClicks(BasicTransform):  # type: ignore[misc]  # untyped base
    """Appends the two click channels to the image, drawn from the augmented lesion mask and PET.

    Comes after every step that moves or changes voxels, and before the targets are shrunk for deep
    supervision. The loader takes its batch's shape from what this returns.
    """

    def __init__(
        self, guidance: GuidanceSpec, simulation: SimulationSettings, seeds: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.guidance = guidance
        self.simulation = simulation
        self.seeds = seeds
        self._rng: np.random.Generator | None = None

    @property
    def rng(self) -> np.random.Generator:
        """Made on first use, so that each of the loader's processes has a stream of its own."""
        if self._rng is None:
            # The loader seeds NumPy's global state apart in each process.
            self._rng = np.random.default_rng([*self.seeds, np.random.randint(2**31)])  # noqa: NPY002
        return self._rng

    def get_parameters(
        self, image: torch.Tensor, segmentation: torch.Tensor, **_: Any
    ) -> dict[str, ClickSet]:
        """Draw the clicks of one sample."""
        lesion = (segmentation[LESION_CHANNEL] > 0).numpy()
        return {"clicks": simulate(lesion, image[PET_CHANNEL].numpy(), self.simulation, self.rng)}

    def apply(self, data_dict: dict[str, Any], clicks: ClickSet) -> dict[str, Any]:
        """Draw the clicks into two more channels."""
        image = data_dict["image"]
        channels = encode(clicks, tuple(image.shape[1:]), self.guidance)
        data_dict["image"] = torch.cat((image, torch.from_numpy(channels)))
        return data_dict
