"""The sliding window over one case: each prediction runs only the tiles whose input has changed.

A tile's margin depends on the images and on the clicks whose stamps touch it. What a prediction changes is
summed anew, from all tiles that reach there and in the same order, so that the result is that of a prediction
from scratch to the bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from petclick.body import MARGIN_MM, has_body
from petclick.clicks import KINDS, ClickSet
from petclick.clock import Clock
from petclick.guidance import reach
from petclick.kept import Store, TileKey
from petclick.model import Model
from petclick.preprocess import BACKGROUND_MARGIN, Prepared
from petclick.refine import TileSum, refine, save_s
from petclick.schedule import by_value, covering, stages
from petclick.tiles import (
    Accumulator,
    Corner,
    Passes,
    pad_to_patch,
    predict_tile,
    tile_box,
    tile_corners,
)

Draw = Callable[[ClickSet, tuple[int, int, int]], torch.Tensor]
"""Draws clicks into two channels of a shape, as `guidance.encode` does; they may lie outside, but near."""

MOST_CHANGED = 0.25
"""Of all tiles: where more have changed, the whole volume is summed anew, once."""


@dataclass
class Report:
    """What a prediction did, in tiles: `total`, `empty` (nothing to see there), `ran` (none, some or all).

    batches: where time was limited, how many of `Passes.batches` each tile that was not complete has got,
    with those of earlier predictions.
    """

    total: int = 0
    empty: int = 0
    ran: int = 0
    batches: list[int] = field(default_factory=list)


class SlidingWindow:
    """The tiles of one case, and the margin of the last prediction."""

    def __init__(
        self, case: Prepared, model: Model, step_size: float, skip_air: bool, device: torch.device
    ) -> None:
        """Lay the tiles over a case; images and results are held on `device`."""
        self._patch, self._spec, self._shape = model.plan.patch_size, model.spec, case.shape
        image, self._unpad = pad_to_patch(torch.from_numpy(case.image), self._patch)
        self._image = image.to(device)
        self._corners = tile_corners(image.shape[1:], self._patch, step_size)
        margin_vox = [math.ceil(MARGIN_MM / mm) for mm in model.plan.spacing_mm]
        self._has_body = {
            corner: not skip_air or self._sees_body(case, corner, margin_vox) for corner in self._corners
        }
        self._shown: dict[Corner, TileKey] | None = None  # of the tiles that the margin is made of
        self._margin = torch.empty(0)

    def to(self, device: torch.device) -> None:
        """Hold images and results on another device."""
        self._image, self._margin = self._image.to(device), self._margin.to(device)

    @torch.inference_mode()
    def predict(
        self,
        clicks: ClickSet,
        passes: Passes,
        store: Store,
        draw: Draw,
        bar: "tqdm[Any]",
        clock: Clock | None = None,
    ) -> tuple[torch.Tensor, Report]:
        """Mean margin of all tiles.

        Args:
            clicks: on the network's grid.
            passes: what to run on each tile.
            store: has margins of tiles, and gets those that are run.
            draw: draws clicks on the images' device.
            bar: gets its total, and the passes that have ended.
            clock: limits the time; what does not fit is left out, and tiles that get nothing are background.

        Returns:
            float32 margin on the network's grid, valid until the next call; and what was done.
        """
        store.start()
        wanted = self._keys(clicks, passes)
        sums = self._sums_of_changes(wanted)
        reached = {corner: [each for each in sums if each.overlaps(corner)] for corner in wanted}
        to_run = {
            corner: key
            for corner, key in wanted.items()
            if reached[corner] and (key not in store or (clock is not None and store.find(key) is None))
        }
        bar.reset(len(to_run) * len(passes.networks) * len(passes.mirrors))
        report = Report(len(self._corners), len(self._corners) - len(wanted))
        shown = dict(wanted)
        limited: dict[Corner, TileSum] = {}
        if clock is not None:
            limited = self._refine(to_run, clicks, passes, store, draw, bar, clock)
            report.batches = [limited[corner].n_batches if corner in limited else 0 for corner in to_run]
            report.ran = sum(each.ran for each in limited.values())
        for corner, key in wanted.items():
            if not reached[corner]:
                continue
            if corner in limited:
                margin = limited[corner].mean(passes)
                if limited[corner].n_batches < len(passes.batches):
                    shown[corner] = replace(key, n_batches=limited[corner].n_batches)
            elif corner in to_run and clock is not None:
                del shown[corner]
                continue
            elif (found := store.find(key)) is not None:
                margin = found
            else:
                margin = predict_tile(self._load(key, draw).to(passes.device), passes, bar.update)
                store.keep(key, margin)
                report.ran += 1
            for each in reached[corner]:
                each.add(corner, margin)
        for each in sums:
            self._show(each)
        self._shown = shown
        return self._margin[self._unpad], report

    def _keys(self, clicks: ClickSet, passes: Passes) -> dict[Corner, TileKey]:
        """Of the tiles that are run, in their order: those with some body, and those that a click touches."""
        starts = [part.start for part in self._unpad]
        # Scribbles repeat voxels; each counts once.
        points = np.unique(np.column_stack((clicks.kind, clicks.index_zyx)), axis=0)
        keys = {}
        for corner in self._corners:
            lower = np.subtract(corner, starts)
            upper = lower + self._patch - 1
            away = np.maximum(np.maximum(lower - points[:, 1:], points[:, 1:] - upper), 0)
            near = points[(away**2).sum(axis=1) <= reach(self._spec) ** 2]
            if len(near) or self._has_body[corner]:
                keys[corner] = TileKey(corner, tuple(map(tuple, near.tolist())), passes.work)
        return keys

    def _sums_of_changes(self, wanted: dict[Corner, TileKey]) -> list[Accumulator]:
        """Empty sums over the boxes that differ from what is shown: changed tiles, or simply the volume."""
        boxes = [tile_box((0, 0, 0), self._image.shape[1:])]
        if self._shown is not None:
            changed = [c for c in self._corners if wanted.get(c) != self._shown.get(c)]
            if len(changed) <= MOST_CHANGED * len(self._corners):
                boxes = [tile_box(corner, self._patch) for corner in changed]
        return [Accumulator(box, self._patch, self._image.device) for box in boxes]

    def _refine(
        self,
        tiles: dict[Corner, TileKey],
        clicks: ClickSet,
        passes: Passes,
        store: Store,
        draw: Draw,
        bar: "tqdm[Any]",
        clock: Clock,
    ) -> dict[Corner, TileSum]:
        """Run what the clock allows, the most valuable first."""
        places = clicks.index_zyx + [part.start for part in self._unpad]
        ranked = by_value(tiles, self._patch, self._image[1].cpu().numpy(), places)
        order = stages(len(passes.batches), ranked, covering(self._corners, self._patch))
        clock.reserve(save_s(len(tiles) * 4 * math.prod(self._patch)))
        return refine(tiles, order, passes, store, lambda key: self._load(key, draw), clock, bar.update)

    def _load(self, key: TileKey, draw: Draw) -> torch.Tensor:
        """A tile's input: its part of the images, and its clicks as drawn there."""
        box = tile_box(key.corner, self._patch)
        cut = [
            (max(part.start, inner.start), min(part.stop, inner.stop))
            for part, inner in zip(box, self._unpad, strict=True)
        ]
        z, y, x = (stop - start for start, stop in cut)
        points = np.reshape(np.array(key.clicks, np.int64), (-1, 4))
        shift = [inner.start - start for inner, (start, _) in zip(self._unpad, cut, strict=True)]
        clicks = ClickSet(points[:, 1:] + shift, points[:, 0])
        guidance = self._image.new_zeros((len(KINDS), *self._patch))
        inside = tuple(
            slice(start - low, stop - low) for (start, stop), low in zip(cut, key.corner, strict=True)
        )
        guidance[(slice(None), *inside)] = draw(clicks, (z, y, x))
        return torch.cat((self._image[(slice(None), *box)], guidance))

    def _show(self, sums: Accumulator) -> None:
        """Put new means into the margin."""
        mean = sums.mean(BACKGROUND_MARGIN)
        if mean.shape == self._image.shape[1:]:
            self._margin = mean
        else:
            self._margin[sums.box] = mean

    def _sees_body(self, case: Prepared, corner: Corner, margin_vox: Sequence[int]) -> bool:
        lower = [low - inner.start for low, inner in zip(corner, self._unpad, strict=True)]
        upper = [low + size for low, size in zip(lower, self._patch, strict=True)]
        return has_body(case.body, lower, upper, margin_vox)
