"""The interaction that the challenges measure: which clicks a model has seen at each step.

autoPET/CT IV: k clicks of each kind at step k, simulated beforehand. autoPET V: no click at first, then at
each step one more stroke on the largest error of the last prediction; a case without lesions gets none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet, click_set
from petclick.evaluation.scribbles import error_scribble
from petclick.metrics import ProtocolName
from petclick.simulate import simulate_official

Mask = npt.NDArray[np.uint8]
Method = Callable[[ClickSet], Mask]
"""All clicks so far, on the case's grid -> mask (z, y, x) there."""

PROTOCOL_STEPS: Mapping[ProtocolName, tuple[int, ...]] = {
    "autopet4": tuple(range(11)),
    "autopet5": tuple(range(6)),
}
"""The steps of each challenge; step 0 is without clicks."""
MOST_CLICKS = 10
"""Clicks of each kind that autoPET/CT IV simulates beforehand."""
CLICK_SEED = 0


@dataclass(frozen=True)
class Step:
    """One prediction: its number in the protocol, the clicks given so far, and the mask."""

    number: int
    clicks: ClickSet
    mask: Mask


def challenge_clicks(lesion: Mask, pet_suv: npt.NDArray[np.float32], n: int = MOST_CLICKS) -> ClickSet:
    """The official scheme's clicks for a case, n of each kind, the same in every run."""
    return simulate_official(lesion > 0, pet_suv, n, n, np.random.default_rng(CLICK_SEED))


def first_clicks(clicks: ClickSet, n: int) -> ClickSet:
    """The first n clicks of each kind, in the order in which they were placed."""
    return click_set(clicks.of_kind("tumor")[:n], clicks.of_kind("background")[:n])


def interact(
    method: Method, truth: Mask, clicks: ClickSet, protocol: ProtocolName, steps: Sequence[int]
) -> Iterator[Step]:
    """Run one case through a protocol, and yield the steps asked for as they come.

    A step that adds no click keeps the last mask: the model would see the same input again.

    Args:
        method: predicts from all clicks so far.
        truth: (z, y, x) mask of {0, 1}.
        clicks: the case's clicks in their order; autopet5 makes its own.
        protocol: which one.
        steps: numbers in ascending order. What autopet5 gives at a step depends on all steps before, so those
            are predicted, too.
    """
    given = click_set([], [])
    mask: Mask | None = None
    for number in steps if protocol == "autopet4" else range(steps[-1] + 1):
        wanted = given
        if protocol == "autopet4":
            wanted = first_clicks(clicks, number)
        elif mask is not None and truth.any():
            wanted = _joined(given, error_scribble(truth, mask))
        if mask is None or len(wanted) > len(given):
            given, mask = wanted, method(wanted)
        if number in steps:
            yield Step(number, given, mask)


def _joined(given: ClickSet, stroke: ClickSet) -> ClickSet:
    """Both, without voxels that come twice."""
    index_zyx = np.concatenate([given.index_zyx, stroke.index_zyx])
    kind = np.concatenate([given.kind, stroke.kind])
    kept = np.sort(np.unique(index_zyx, axis=0, return_index=True)[1])
    return ClickSet(index_zyx[kept], kind[kept])
