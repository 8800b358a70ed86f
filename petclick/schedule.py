"""In which order tiles and passes are worth running when time may run out: the plan of a limited run.

A tile's result is the mean of its passes, networks by mirrors, so any number of them is a valid result, and
the more the better. The passes have one order, `pass_order`: first every network on the first batch of
mirrors, then every network on the next batch, and so on. What a limit takes away is thus mirrors first, then
folds (docs/time-limit.md has what each costs). A run without a limit sums each tile's passes in the very same
order, so that a limit within which everything fits changes no bit of the result.

`stages` spreads this order over the tiles:

1. the first pass over the fewest tiles that cover the volume, in effect a step of up to one patch;
2. the first pass over the others: the step that was asked for;
3. each further pass over all tiles.

Within each stage, tiles that hold clicks come first, then those with the highest uptake. Wherever the time
ends, what has been computed is used, and the tiles of a stage that is half done simply have a pass more than
the others.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Corner = tuple[int, int, int]
"""A tile's lowest voxel."""


def pass_order(n_networks: int, n_batches: int) -> list[tuple[int, int]]:
    """All pairs of a network and a batch of mirrors, the most valuable first."""
    return [(network, batch) for batch in range(n_batches) for network in range(n_networks)]


def stages(
    n_passes: int, by_value: Sequence[Corner], first: set[Corner]
) -> Iterator[tuple[int, list[Corner]]]:
    """What to run in turn: a place in `pass_order`, and the tiles to run it over.

    Args:
        n_passes: of each tile.
        by_value: the tiles' lower corners, the most valuable first.
        first: those that cover the volume.
    """
    yield 0, [corner for corner in by_value if corner in first]
    yield 0, [corner for corner in by_value if corner not in first]
    for number in range(1, n_passes):
        yield number, list(by_value)


def covering(corners: Collection[Corner], patch: Sequence[int]) -> set[Corner]:
    """Of a grid of tiles, the fewest that cover what all of them cover.

    Along each axis the tile that reaches farthest without a gap is taken. Without some tiles of the grid, the
    voxels that only these had are lost, but no others.
    """
    chosen = []
    for axis, size in enumerate(patch):
        starts = sorted({corner[axis] for corner in corners})
        taken = starts[:1]
        while taken and taken[-1] < starts[-1]:
            taken.append(max(start for start in starts if start <= taken[-1] + size))
        chosen.append(set(taken))
    return {corner for corner in corners if all(map(set.__contains__, chosen, corner))}


def by_value(
    corners: Collection[Corner],
    patch: Sequence[int],
    uptake: npt.NDArray[np.float32],
    clicks_zyx: npt.NDArray[np.int64],
) -> list[Corner]:
    """The most valuable tile first: by the clicks in it, then by its highest uptake.

    Args:
        corners: lower corners of the tiles.
        patch: their size.
        uptake: the volume, in any unit that grows with PET's.
        clicks_zyx: (N, 3) voxels of the same grid.
    """

    def value(corner: Corner) -> tuple[int, float]:
        upper = np.add(corner, patch)
        inside = ((clicks_zyx >= corner) & (clicks_zyx < upper)).all(axis=1)
        return -int(np.count_nonzero(inside)), -float(uptake[tuple(map(slice, corner, upper))].max())

    return sorted(corners, key=value)
