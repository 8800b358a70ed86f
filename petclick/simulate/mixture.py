"""What training draws for a sample: the source, the numbers of clicks, then the places (arXiv 2508.21680)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet
from petclick.errors import InputError
from petclick.simulate.schemes import simulate_official, simulate_varied
from petclick.simulate.scribbles import simulate_scribbles

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]
Scheme = Callable[[Mask, Image, int, int, np.random.Generator], ClickSet]

SCHEMES: Mapping[str, Scheme] = {
    "official": simulate_official,
    "varied": simulate_varied,
    "scribbles": simulate_scribbles,
}
"""The scheme that each share of `Sources` stands for."""
MOST_STROKES = 5
"""Most scribbles of each kind; autoPET V gives a case so many in all of its steps."""


@dataclass(frozen=True)
class Sources:
    """Share of the samples that each scheme draws; the shares add up to 1."""

    official: float = 0.8
    varied: float = 0.2
    scribbles: float = 0.0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: naming the key, its rule and the value.
        """
        shares = asdict(self)
        for name, share in shares.items():
            _check_share(f"sources.{name}", share)
        if not math.isclose(total := sum(shares.values()), 1, abs_tol=1e-6):
            text = " + ".join(f"{name} {share:g}" for name, share in shares.items())
            raise InputError("simulation", "sources must add up to 1", f"{text} = {total:g}")


@dataclass(frozen=True)
class SimulationSettings:
    """How training draws clicks.

    max_clicks: most clicks of each kind; sources: how often each scheme is taken;
    no_click_share: share of samples without any click, beside those that the counts' own distribution draws;
    error_share: share of samples that get clicks on the errors of the network's own prediction, in the
    training step.
    """

    max_clicks: int = 10
    sources: Sources = field(default_factory=Sources)
    no_click_share: float = 0.0
    error_share: float = 0.0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: naming the key, its rule and the value.
        """
        if type(self.max_clicks) is not int or not 0 <= self.max_clicks <= 1000:
            rule = "max_clicks must be a whole number from 0 to 1000"
            raise InputError("simulation", rule, repr(self.max_clicks))
        _check_share("no_click_share", self.no_click_share)
        _check_share("error_share", self.error_share)


def _check_share(key: str, value: object) -> None:
    if type(value) not in (int, float) or not 0 <= value <= 1:  # type: ignore[operator]
        raise InputError("simulation", f"{key} must be a number from 0 to 1", repr(value))


def simulate(lesion: Mask, pet: Image, settings: SimulationSettings, rng: np.random.Generator) -> ClickSet:
    """Draw one training sample's clicks: the scheme, the numbers of each kind, then the places.

    Args:
        lesion: (z, y, x) tumour mask.
        pet: (z, y, x) uptake, in any unit that grows with it.
        settings: the distribution.
        rng: source of all randomness.
    """
    shares = asdict(settings.sources)
    no_click = rng.random() < settings.no_click_share
    source = rng.choice(list(shares), p=[*shares.values()])
    most = min(settings.max_clicks, MOST_STROKES) if source == "scribbles" else settings.max_clicks
    n_tumor, n_background = draw_count(most, rng), draw_count(most, rng)
    if no_click:
        n_tumor = n_background = 0
    return SCHEMES[source](lesion, pet, n_tumor, n_background, rng)


def draw_count(max_clicks: int, rng: np.random.Generator) -> int:
    """Number of clicks from 0 to `max_clicks` n, with probabilities proportional to ln(n + 2), …, ln(2)."""
    weights = np.log(np.arange(max_clicks + 2, 1, -1))
    return int(rng.choice(max_clicks + 1, p=weights / weights.sum()))
