"""Tiles under a time limit: sums of passes grow in the order of `petclick.schedule`, until time is up."""

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from petclick.clock import Clock
from petclick.kept import Store, TileKey
from petclick.schedule import Corner
from petclick.tiles import Passes, run_batches

SAVE_S, SAVE_S_PER_BYTE = 0.1, 1e-8
"""Time set aside for keeping the results of tiles that are not complete; what takes longer is not kept."""


@dataclass
class TileSum:
    """The sum of a tile's margins, float32 (*patch), over the first `n_batches` of `Passes.batches`.

    n_found: how many of these were found in the store, not run.
    """

    n_batches: int
    total: torch.Tensor
    n_found: int = 0

    @property
    def ran(self) -> bool:
        """Whether any batch was run."""
        return self.n_batches > self.n_found

    def mean(self, passes: Passes) -> torch.Tensor:
        """The mean margin, with the bits of `tiles.predict_tile` once all batches are in."""
        return self.total / sum(len(mirrors) for _, mirrors in passes.batches[: self.n_batches])


def refine(
    tiles: dict[Corner, TileKey],
    order: Iterable[tuple[int, list[Corner]]],
    passes: Passes,
    store: Store,
    load: Callable[[TileKey], torch.Tensor],
    clock: Clock,
    on_pass: Callable[[int], object],
) -> dict[Corner, TileSum]:
    """Run as many batches of passes over the tiles as the clock allows.

    Args:
        tiles: those that are to be run.
        order: a place in `passes.batches`, and the tiles to run it over, in turn.
        passes: what to run.
        store: has results that an earlier limit cut short, and gets those of this one and the whole ones.
        load: a tile's input, float32 (channel, *patch), where results are held.
        clock: says whether one more batch fits.
        on_pass: called with the number of passes that have just ended.

    Returns:
        What there is of each tile; those for which there was no time are left out.
    """
    sums: dict[Corner, TileSum] = {}
    n_batches = len(passes.batches)
    for corner, key in tiles.items():
        if begun := _begun(key, n_batches, store):
            sums[corner] = begun
    pending = (
        (corner, number)
        for number, corners in order
        for corner in corners
        if corner not in sums or sums[corner].n_batches <= number
    )
    while work := list(itertools.islice(pending, passes.workers)):
        if not clock.fits():
            _save(sums, tiles, n_batches, store)
            break
        inputs = [(load(tiles[corner]), number) for corner, number in work]
        results = run_batches([(tile.to(passes.device), number) for tile, number in inputs], passes)
        for (corner, number), (tile, _), margins in zip(work, inputs, results, strict=True):
            each = sums.setdefault(corner, TileSum(0, torch.zeros_like(tile[0])))
            for margin in margins:
                each.total += margin.to(each.total.device)  # a resumed sum lies where the store does
            each.n_batches = number + 1
            if each.n_batches == n_batches:
                store.keep(tiles[corner], each.mean(passes))
            on_pass(len(margins))
        if passes.device.type == "cuda":
            torch.cuda.synchronize(passes.device)  # pragma: cuda  # or the clock sees nothing of the work
    return sums


def save_s(n_bytes: int) -> float:
    """What keeping so much may take."""
    return SAVE_S + SAVE_S_PER_BYTE * n_bytes


def _begun(key: TileKey, n_batches: int, store: Store) -> TileSum | None:
    """The longest sum that is kept of a tile, a copy."""
    for n in range(n_batches - 1, 0, -1):
        total = store.find(replace(key, n_batches=n))
        if total is not None:
            return TileSum(n, total.clone(), n_found=n)
    return None


def _save(sums: dict[Corner, TileSum], tiles: dict[Corner, TileKey], n_batches: int, store: Store) -> None:
    until = time.monotonic() + save_s(sum(each.total.nbytes for each in sums.values()))
    for corner, each in sums.items():
        if time.monotonic() > until:
            return
        if each.n_batches < n_batches:
            store.keep(replace(tiles[corner], n_batches=each.n_batches), each.total)
