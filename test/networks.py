"""Networks whose masks are known, and a predictor with a case, for the tests that need them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from petclick.images import Case
from petclick.model import load_model
from petclick.predictor import Predictor, Settings

MakeModel = Callable[..., Path]
MakeCase = Callable[..., Case]

CPU = Settings(device="cpu", precision="fp32", mirror_axes=())


class ClickNetwork(nn.Module):
    """A lesion is where the tumour channel exceeds the background channel by more than a threshold."""

    def __init__(self, threshold: float = 0.2) -> None:
        super().__init__()
        self.threshold = threshold
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return torch.stack((x[:, 3] + self.threshold, x[:, 2]), 1)


def balls(shape: tuple[int, int, int], points: npt.ArrayLike, radius: float = 2.0) -> npt.NDArray[np.bool_]:
    """Voxels within `radius` voxels of some point."""
    mask = np.zeros(shape, bool)
    z, y, x = np.indices(shape)
    for point in np.reshape(points, (-1, 3)):
        mask |= (z - point[0]) ** 2 + (y - point[1]) ** 2 + (x - point[2]) ** 2 <= radius**2
    return mask


def dice(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    return float(2 * np.count_nonzero((a > 0) & (b > 0)) / (np.count_nonzero(a) + np.count_nonzero(b)))


def ready(folder: Path, case: Case, settings: Settings = CPU) -> Predictor:
    result = Predictor(load_model(folder), settings)
    result.set_case(case)
    return result
