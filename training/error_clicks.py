"""Clicks where the network errs, as a clinician would place them, beside those that a sample has already."""

import numpy as np
import numpy.typing as npt
import torch

from petclick.clicks import KINDS
from petclick.guidance import encode
from petclick.simulate import draw_count, simulate_errors
from training.settings import TrainingSettings


def add_error_clicks(
    data: torch.Tensor,
    lesion: torch.Tensor,
    predicted: torch.Tensor,
    chosen: npt.NDArray[np.int64],
    settings: TrainingSettings,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Samples with further clicks, as many of each kind as the simulation's counts have it.

    Args:
        data: (batch, channel, z, y, x) images, then the click channels; not changed.
        lesion: (batch, z, y, x) bool, the truth.
        predicted: (len(chosen), z, y, x) bool, the network's masks of the chosen samples, on any device.
        chosen: which samples.
        settings: the training's.
        rng: source of all randomness.

    Returns:
        Like `data`; stamps that overlap combine by maximum, as everywhere.
    """
    data = data.clone()
    for sample, mask in zip(chosen, predicted.cpu().numpy(), strict=True):
        n_tumor, n_background = (draw_count(settings.simulation.max_clicks, rng) for _ in KINDS)
        clicks = simulate_errors(lesion[sample].cpu().numpy(), mask, n_tumor, n_background, rng)
        channels = encode(clicks, mask.shape, settings.guidance)
        data[sample, -len(KINDS) :].clamp_(min=torch.from_numpy(channels).to(data.device))
    return data
