"""Faster forms of parts of a network that compute the same, up to rounding."""

import math

from torch import nn


def fuse_pools(network: nn.Module) -> int:
    """Turn each average pooling before a 1 x 1 x 1 convolution into a strided convolution, in place.

    nnU-Net's residual blocks have such pairs in their skips: a Sequential of the pooling and of a block whose
    first operation is `block.conv`. PyTorch's pooling is slow on CPUs, and in half precision it would cost
    two conversions as well.

    Returns:
        How many pairs there were.
    """
    n_pairs = 0
    for skip in network.modules():
        if not isinstance(skip, nn.Sequential) or len(skip) < 2:
            continue
        pool, conv = skip[0], getattr(skip[1], "conv", None)
        if isinstance(pool, nn.AvgPool3d) and isinstance(conv, nn.Conv3d) and _is_pair(pool, conv):
            size = _three(pool.kernel_size)
            shares = conv.weight.data / math.prod(size)
            conv.weight.data = shares.expand(*conv.weight.shape[:2], *size).contiguous()
            conv.kernel_size = conv.stride = size
            skip[0] = nn.Identity()
            n_pairs += 1
    return n_pairs


def _is_pair(pool: nn.AvgPool3d, conv: nn.Conv3d) -> bool:
    tiles = _three(pool.stride) == _three(pool.kernel_size) and _three(pool.padding) == (0, 0, 0)
    plain = not pool.ceil_mode and pool.divisor_override is None
    alone = {*conv.kernel_size, *conv.stride} == {1} and {*conv.padding} == {0} and conv.groups == 1
    return tiles and plain and alone


def _three(value: int | list[int] | tuple[int, ...]) -> tuple[int, int, int]:
    a, b, c = (value,) * 3 if isinstance(value, int) else value
    return a, b, c
