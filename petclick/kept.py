"""Results of tiles, kept from one prediction to the next.

`SlidingWindow` knows a store only by the methods of `Store`.
"""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import numpy as np
import torch

from petclick.tiles import Corner, Work

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileKey:
    """All that a tile's margin depends on, beside the case and the model.

    corner: its place on the network's grid; clicks: (kind, z, y, x) there of those whose stamps touch the
    tile, sorted, each once; work: what was run; n_batches: None, or, where a time limit cut that short, how
    many of `Passes.batches` were run. Then their sum is kept, not the mean.
    """

    corner: Corner
    clicks: tuple[tuple[int, ...], ...]
    work: Work
    n_batches: int | None = None


class Store(Protocol):
    """Where margins of tiles are kept; it may forget any of them at any time."""

    def start(self) -> None:
        """A prediction starts: what it finds and keeps from now on is worth keeping most."""

    def __contains__(self, key: TileKey) -> bool:
        """Whether `find` would most likely find this tile."""

    def find(self, key: TileKey) -> torch.Tensor | None:
        """The tile's margin, float32 (*patch), to be read only until the next `keep`."""

    def keep(self, key: TileKey, margin: torch.Tensor) -> None:
        """Keep a tile's margin, if there is room; a copy is made."""


class KeptTiles:
    """A store within a bound, in host memory or in a file without a name that is gone with the process.

    Where the bound is reached, what the prediction under way has not used makes room, the longest unused
    first, and then nothing more is kept.
    """

    def __init__(self, limit_gib: float, folder: Path | None = None) -> None:
        """Keep at most `limit_gib`, in memory, or else mapped from a file in `folder` that has this size.

        Where that file cannot be made, nothing is kept, with one warning.
        """
        self._limit_bytes, self._folder = limit_gib * 2**30, folder
        self.clear()

    def clear(self) -> None:
        """Forget all: the images have changed."""
        self._tiles: dict[TileKey, torch.Tensor] = {}  # the longest unused first
        self._used: set[TileKey] = set()
        self._places: Iterator[torch.Tensor] | None = None

    def start(self) -> None:
        """As in `Store`."""
        self._used.clear()

    def __contains__(self, key: TileKey) -> bool:
        """Whether this tile is kept."""
        return key in self._tiles

    def find(self, key: TileKey) -> torch.Tensor | None:
        """As in `Store`."""
        if key not in self._tiles:
            return None
        margin = self._tiles[key] = self._tiles.pop(key)
        self._used.add(key)
        return margin

    def keep(self, key: TileKey, margin: torch.Tensor) -> None:
        """As in `Store`."""
        if key in self._tiles:
            return
        if self._places is None:
            self._places = self._new_places(margin.shape)
        place = next(self._places, None)
        oldest = next(iter(self._tiles), None)
        if place is None and oldest is not None and oldest not in self._used:
            place = self._tiles.pop(oldest)
        if place is not None:
            self._tiles[key] = place.copy_(margin)
            self._used.add(key)

    def _new_places(self, shape: torch.Size) -> Iterator[torch.Tensor]:
        """Memory for as many tiles as the bound allows."""
        n_tiles = int(self._limit_bytes // (shape.numel() * 4))
        if self._folder is None:
            return (torch.empty(shape) for _ in range(n_tiles))
        try:
            return iter(_mapped_file(self._folder, (n_tiles, *shape)) if n_tiles else ())
        except (OSError, OverflowError) as error:  # no job fails for want of what only saves time
            self._limit_bytes = 0
            logger.warning("%s: results of tiles are not kept (%s)", self._folder, error)
            return iter(())


def _mapped_file(folder: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 array in a new file, which is gone with the array.

    Raises:
        OSError: the file cannot be made, or the disk has no room.
        OverflowError: no file can be so large.
    """
    with TemporaryFile(dir=folder) as file:
        # a hole in the file would end the process, were the disk full once it is written to
        os.posix_fallocate(file.fileno(), 0, math.prod(shape) * 4)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", 0, shape))
