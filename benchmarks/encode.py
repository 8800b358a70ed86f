"""Clicks drawn as channels of a whole body, against a loop that draws one stamp after another."""

from functools import partial

import numpy as np

from benchmarks._cases import TIGHT_ZYX, alternate
from petclick.clicks import ClickSet
from petclick.guidance import GuidanceSpec, encode, stamp

POINTS = (10, 1000, 30000)  # clicks, and scribbles
REPEATS = 5


def run() -> dict[str, float]:
    """Seconds of both for several numbers of points, and their ratio.

    Raises:
        RuntimeError: they differ.
    """
    rng, spec = np.random.default_rng(0), GuidanceSpec()
    figures = {}
    for n in POINTS:
        clicks = ClickSet(rng.integers(0, TIGHT_ZYX, (n, 3)), rng.integers(0, 2, n))
        if not np.array_equal(encode(clicks, TIGHT_ZYX, spec), _loop(clicks, spec)):
            raise RuntimeError("the loop draws something else")
        seconds = alternate(
            {
                "ours": partial(encode, clicks, TIGHT_ZYX, spec),
                "loop": partial(_loop, clicks, spec),
            },
            REPEATS,
        )
        figures[f"{n} points, seconds"] = seconds["ours"]
        figures[f"{n} points, times as fast"] = seconds["loop"] / seconds["ours"]
    return figures


def _loop(clicks: ClickSet, spec: GuidanceSpec) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    one = stamp(spec)
    reach = one.shape[0] // 2
    channels = np.zeros((2, *(size + 2 * reach for size in TIGHT_ZYX)), np.float32)
    for kind, index in zip(clicks.kind, clicks.index_zyx, strict=True):
        box = (kind, *(slice(start, start + 2 * reach + 1) for start in index))
        channels[box] = np.maximum(channels[box], one)
    return channels[:, reach:-reach, reach:-reach, reach:-reach]
