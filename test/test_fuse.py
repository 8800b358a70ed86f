"""Fused networks compute what they computed before."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from petclick.fuse import fuse_pools
from petclick.model import load_model, load_network


def test_a_fused_network_gives_the_same_logits(make_model: Callable[..., Path]) -> None:
    model = load_model(make_model())
    network, fused = (load_network(model, model.checkpoints[0]) for _ in range(2))
    assert fuse_pools(fused) == 2, "one for each stage but the first"
    assert fuse_pools(fused) == 0
    x = torch.randn(2, 4, *model.plan.patch_size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused(x), network(x), rtol=0, atol=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fused(x).float(), network(x).float(), rtol=0.1, atol=0.1)


class Block(nn.Module):
    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.conv(x))


@pytest.mark.parametrize(
    ("pool", "conv", "fused"),
    [
        (nn.AvgPool3d((1, 2, 2)), nn.Conv3d(2, 3, 1), 1),
        (nn.AvgPool3d(3, 2), nn.Conv3d(2, 3, 1), 0),
        (nn.AvgPool3d(2, padding=1), nn.Conv3d(2, 3, 1), 0),
        (nn.AvgPool3d(2, ceil_mode=True), nn.Conv3d(2, 3, 1), 0),
        (nn.AvgPool3d(2, divisor_override=3), nn.Conv3d(2, 3, 1), 0),
        (nn.AvgPool3d(2), nn.Conv3d(2, 3, 3, padding=1), 0),
        (nn.AvgPool3d(2), nn.Conv3d(2, 4, 1, groups=2), 0),
        (nn.MaxPool3d(2), nn.Conv3d(2, 3, 1), 0),
    ],
)
def test_only_what_is_the_same_is_fused(pool: nn.Module, conv: nn.Conv3d, fused: int) -> None:
    skip = nn.Sequential(pool, Block(conv)).requires_grad_(False)
    x = torch.randn(1, 2, 7, 8, 9, generator=torch.Generator().manual_seed(0))
    before = skip(x)
    assert fuse_pools(skip) == fused
    torch.testing.assert_close(skip(x), before)
