"""Sliding-window inference: which tiles, how they are weighted, and the passes over each.

Only the margin is kept, lesion logit minus background logit: for two classes its sign is the argmax. The
weights and sums are float32; where they are half precision, logits near a volume's border are rounded away.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import nn

from petclick.device import autocast, workers
from petclick.schedule import Corner as Corner
from petclick.schedule import pass_order

Box = tuple[slice, slice, slice]
Work = tuple[int, tuple[tuple[int, ...], ...], int, str]
"""What `Passes.work` gives."""


@dataclass(frozen=True)
class Passes:
    """How each tile is run.

    networks: one a fold; mirrors: the axes that each pass flips, () first; batch: passes of one network that
    are run together; device, precision: of the forward passes; workers, threads: on a CPU, how many batches
    run beside each other, and with how many threads each.
    """

    networks: Sequence[nn.Module]
    mirrors: tuple[tuple[int, ...], ...]
    batch: int
    device: torch.device
    precision: torch.dtype
    workers: int = 1
    threads: int = 1

    @property
    def work(self) -> Work:
        """What the bits of a result depend on: number of folds, the mirrors, passes in a batch, and how."""
        where = f"{self.device}, {self.precision}, {self.threads} threads"
        return len(self.networks), self.mirrors, self.batch, where

    @property
    def batches(self) -> list[tuple[nn.Module, tuple[tuple[int, ...], ...]]]:
        """What is run together, in the order of `schedule.pass_order`: a network, and the axes to flip."""
        mirrors = [self.mirrors[i : i + self.batch] for i in range(0, len(self.mirrors), self.batch)]
        order = pass_order(len(self.networks), len(mirrors))
        return [(self.networks[network], mirrors[batch]) for network, batch in order]


def all_mirrors(axes: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """Every combination of the spatial axes, the empty one first."""
    axes = tuple(axes)
    return tuple(flips for n in range(len(axes) + 1) for flips in itertools.combinations(axes, n))


def tile_box(corner: Corner, patch: Sequence[int]) -> Box:
    """The voxels of a tile."""
    z, y, x = (slice(low, low + size) for low, size in zip(corner, patch, strict=True))
    return z, y, x


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
    with contextlib.closing(run_batches([(tile, i) for i in range(len(passes.batches))], passes)) as results:
        for margins in results:
            for margin in margins:
                total += margin
            on_pass(len(margins))
    return total / (len(passes.networks) * len(passes.mirrors))


def run_batches(work: Iterable[tuple[torch.Tensor, int]], passes: Passes) -> Generator[list[torch.Tensor]]:
    """The margins, float32 (*patch), of the passes of some batches, by the passes' workers.

    Args:
        work: a tile, float32 (channel, *patch) on the passes' device, and a place in `passes.batches`.
        passes: what to run.

    Yields:
        The batches' margins in the order of `work`, whichever ends first; none is started once it is closed.
    """
    calls = [functools.partial(_run_batch, tile, *passes.batches[place], passes) for tile, place in work]
    if passes.workers == 1:
        yield from (call() for call in calls)
        return
    futures = [workers(passes.workers, passes.threads).submit(call) for call in calls]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _run_batch(
    tile: torch.Tensor, network: nn.Module, flips: Sequence[tuple[int, ...]], passes: Passes
) -> list[torch.Tensor]:
    """Margins of a tile's mirrored passes, flipped back."""
    with torch.inference_mode(), autocast(passes.device, passes.precision):
        # Flips count the tile's spatial axes, behind the channel.
        turned = torch.stack([torch.flip(tile, [axis + 1 for axis in axes]) for axes in flips])
        logits = network(turned).float()
        margins = logits[:, 1] - logits[:, 0]
        return [torch.flip(margin, axes) for margin, axes in zip(margins, flips, strict=True)]


class Accumulator:
    """Gaussian-weighted mean of overlapping tiles, float32, over a box of a volume."""

    def __init__(self, box: Box, patch: Sequence[int], device: torch.device) -> None:
        """Start with no tile; every slice of `box` has a start and a stop."""
        self.box, self._patch = box, tuple(patch)
        self._weight = compute_gaussian(self._patch, 1.0 / 8, 10.0, torch.float32, device)
        self._sum = torch.zeros([part.stop - part.start for part in box], dtype=torch.float32, device=device)
        self._weights = torch.zeros_like(self._sum)

    def overlaps(self, corner: Corner) -> bool:
        """Whether a tile reaches into the box."""
        return all(
            low < part.stop and low + size > part.start
            for low, size, part in zip(corner, self._patch, self.box, strict=True)
        )

    def add(self, corner: Corner, margin: torch.Tensor) -> None:
        """Add a tile's margin, (*patch); every voxel gets the same sum in any box that holds it."""
        both = [
            (max(low, part.start), min(low + size, part.stop))
            for low, size, part in zip(corner, self._patch, self.box, strict=True)
        ]
        of_tile = tuple(slice(a - low, b - low) for (a, b), low in zip(both, corner, strict=True))
        of_box = tuple(
            slice(a - part.start, b - part.start) for (a, b), part in zip(both, self.box, strict=True)
        )
        weight = self._weight[of_tile]
        self._sum[of_box] += margin[of_tile].to(weight.device) * weight
        self._weights[of_box] += weight

    def mean(self, elsewhere: float) -> torch.Tensor:
        """The weighted mean, `elsewhere` where no tile was added; ends the accumulator."""
        return self._sum.div_(self._weights).masked_fill_(self._weights == 0, elsewhere)
