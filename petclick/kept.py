"""Results of tiles, kept from one prediction to the next.

`SlidingWindow` knows a store only by the methods of `Store`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import numpy as np
import torch

from petclick.tiles import Corner, Work


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
        """Keep at most `limit_gib`, in memory, or else mapped from a file in `folder`."""
        self._limit_bytes, self._folder = limit_gib * 2**30, folder
        self.clear()

    def clear(self) -> None:
        """Forget all: the images have changed."""
        self._tiles: dict[TileKey, torch.Tensor] = {}  # the longest unused first
        self._used: set[TileKey] = set()
        self._file = None if self._folder is None else TemporaryFile(dir=self._folder)  # noqa: SIM115

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
        n_most = int(self._limit_bytes // margin.nbytes)
        if len(self._tiles) < n_most:
            place = self._new_place(margin)
        else:
            oldest = next(iter(self._tiles), None)
            place = None if oldest is None or oldest in self._used else self._tiles.pop(oldest)
        if place is not None:
            self._tiles[key] = place.copy_(margin)
            self._used.add(key)

    def _new_place(self, margin: torch.Tensor) -> torch.Tensor | None:
        """Memory for one more tile; None where the file's disk is full."""
        if self._file is None:
            return torch.empty(margin.shape)
        offset = len(self._tiles) * margin.nbytes
        try:  # a hole in the file would end the process, were the disk full once it is written to
            os.posix_fallocate(self._file.fileno(), offset, margin.nbytes)
        except OSError:
            return None
        return torch.from_numpy(np.memmap(self._file, np.float32, "r+", offset, tuple(margin.shape)))
