"""Sliding-window inference: which tiles, how they are weighted, and the passes over each.

Only the margin is kept, lesion logit minus background logit: for two classes its sign is the argmax. The
weights and sums are float32; where they are half precision, logits near a volume's border are rounded away.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import nn

from petclick.device import autocast

Corner = tuple[int, int, int]


@dataclass(frozen=True)
class Passes:
    """How each tile is run.

    networks: one a fold; mirrors: the axes that each pass flips, () first; batch: passes of one network that
    are run together; device, precision: of the forward passes.
    """

    networks: Sequence[nn.Module]
    mirrors: tuple[tuple[int, ...], ...]
    batch: int
    device: torch.device
    precision: torch.dtype


def all_mirrors(axes: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """Every combination of the spatial axes, the empty one first."""
    axes = tuple(axes)
    return tuple(flips for n in range(len(axes) + 1) for flips in itertools.combinations(axes, n))


def pad_to_patch(image: torch.Tensor, patch: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """Zero-pad (channel, *shape) on both sides to at least the patch; also the slices that undo it."""
    padded, back = pad_nd_image(image, tuple(patch), "constant", {"value": 0}, True, None)
    return padded, tuple(back)[1:]


def tile_corners(shape: Sequence[int], patch: Sequence[int], step_size: float) -> list[Corner]:
    """Lower corners of all tiles, evenly spread over each axis, at most `step_size` patches apart."""
    starts = compute_steps_for_sliding_window(tuple(shape), tuple(patch), step_size)
    return list(itertools.product(*starts))


def predict_tile(tile: torch.Tensor, passes: Passes, on_pass: Callable[[int], object]) -> torch.Tensor:
    """Mean margin of all folds and mirrored passes over one tile.

    Args:
        tile: float32 (channel, *patch) on the passes' device.
        passes: what to run.
        on_pass: called with the number of forward passes that have just ended.

    Returns:
        float32 (*patch).
    """
    total = torch.zeros(tile.shape[1:], dtype=torch.float32, device=tile.device)
    with autocast(passes.device, passes.precision):
        for network in passes.networks:
            for start in range(0, len(passes.mirrors), passes.batch):
                flips_here = passes.mirrors[start : start + passes.batch]
                # Flips count the tile's spatial axes, behind the channel.
                turned = [torch.flip(tile, [axis + 1 for axis in flips]) for flips in flips_here]
                logits = network(torch.stack(turned)).float()
                for margin, flips in zip(logits[:, 1] - logits[:, 0], flips_here, strict=True):
                    total += torch.flip(margin, flips)
                on_pass(len(flips_here))
    return total / (len(passes.networks) * len(passes.mirrors))


class KeptTiles:
    """Margins of a case's tiles, each with a digest of the clicks that it saw, within a bound of host memory.

    A click changes the input of the tiles that its stamp touches, and of no other.
    """

    def __init__(self, limit_gib: float) -> None:
        self._limit_bytes = limit_gib * 2**30
        self._tiles: dict[Corner, tuple[bytes, torch.Tensor]] = {}

    def clear(self) -> None:
        """Forget all: the images have changed."""
        self._tiles.clear()

    def find(self, corner: Corner, guidance: torch.Tensor) -> torch.Tensor | None:
        """The tile's margin, if it was run with this guidance, (2, *patch)."""
        digest, margin = self._tiles.get(corner, (b"", None))
        return margin if digest == _digest(guidance) else None

    def keep(self, corner: Corner, guidance: torch.Tensor, margin: torch.Tensor) -> None:
        """Keep a tile's margin instead of its last one, where the bound allows."""
        n_tiles = len(self._tiles.keys() | {corner})
        if n_tiles * margin.nbytes <= self._limit_bytes:
            self._tiles[corner] = (_digest(guidance), margin.cpu())


def _digest(guidance: torch.Tensor) -> bytes:
    return hashlib.blake2b(guidance.cpu().numpy().tobytes(), digest_size=16).digest()


class Accumulator:
    """Gaussian-weighted mean of overlapping tiles, float32 (*shape)."""

    def __init__(self, shape: Sequence[int], patch: Sequence[int], device: torch.device) -> None:
        self._patch = tuple(patch)
        self._weight = compute_gaussian(self._patch, 1.0 / 8, 10.0, torch.float32, device)
        self._sum = torch.zeros(tuple(shape), dtype=torch.float32, device=device)
        self._weights = torch.zeros_like(self._sum)

    def add(self, corner: Corner, margin: torch.Tensor) -> None:
        """Add one tile's margin at its lower corner."""
        where = tuple(slice(start, start + size) for start, size in zip(corner, self._patch, strict=True))
        self._sum[where] += margin.to(self._sum.device) * self._weight
        self._weights[where] += self._weight

    def mean(self) -> torch.Tensor:
        """The weighted mean; every voxel must be in some tile."""
        return self._sum / self._weights
