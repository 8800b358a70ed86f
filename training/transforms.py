"""Augmentation steps of this project, for batchgeneratorsv2's pipelines. Patches are (channel, z, y, x)."""

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from petclick.clicks import ClickSet
from petclick.guidance import GuidanceSpec, encode
from petclick.simulate import SimulationSettings, simulate

PET_CHANNEL = 1
LESION_CHANNEL = 0


class SimulateClicks(BasicTransform):  # type: ignore[misc]  # untyped base
    """Appends the two click channels to the image, drawn from the augmented lesion mask and PET.

    Comes after every step that moves or changes voxels, and before the targets are shrunk for deep
    supervision. The loader takes its batch's shape from what this returns.
    """

    def __init__(self, guidance: GuidanceSpec, simulation: SimulationSettings, seed: int) -> None:
        super().__init__()
        self.guidance = guidance
        self.simulation = simulation
        self.seed = seed
        self._rng: np.random.Generator | None = None

    @property
    def rng(self) -> np.random.Generator:
        """Made on first use, so that each of the loader's processes has a stream of its own."""
        if self._rng is None:
            # The loader seeds NumPy's global state apart in each process.
            self._rng = np.random.default_rng([self.seed, np.random.randint(2**31)])  # noqa: NPY002
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
