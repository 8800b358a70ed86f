"""A person: size, girth and sex from a seed, and where a volume's voxels lie in the reference person."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from petclick.grid import Grid
from petclick.phantom.anatomy import BODY_MM, Triple

Points = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]

MARGIN_MM = 12.0
"""Air around a life-size person whose field of view is tight, and above the head in any field of view."""

_FILLED = 0.96  # of a field of view is filled by a person that is scaled to it
_FEMALE_SCALE = 0.94
_LEGS_CUT_MM = (20.0, 100.0)  # above mid-thigh


@dataclass(frozen=True)
class Person:
    """One patient's build, relative to the reference person.

    scale: of all lengths; girth_yx: further factors of depth and width; fat: where the fat under the trunk's
    skin ends, relative to the lean body; legs_from_mm: where a tight field of view cuts the legs (reference).
    """

    male: bool
    scale: float
    girth_yx: tuple[float, float]
    fat: float
    legs_from_mm: float

    @property
    def girth(self) -> float:
        """Relative width of the trunk: 1 for a lean reference person."""
        return float(np.mean(self.girth_yx)) * self.fat

    def tight_shape(self, spacing_zyx_mm: Triple) -> tuple[int, int, int]:
        """Voxels along z, y, x of the smallest field of view around this person, life-size."""
        height, depth, width = BODY_MM
        extent_mm = self.scale * np.array(
            [
                height - self.legs_from_mm,
                depth * self.fat * self.girth_yx[0],
                width * self.fat * self.girth_yx[1],
            ]
        ) + (MARGIN_MM, 2 * MARGIN_MM, 2 * MARGIN_MM)
        z, y, x = np.ceil(extent_mm / spacing_zyx_mm).astype(int).tolist()
        return z, y, x


def draw_person(rng: np.random.Generator, male: bool | None = None) -> Person:
    """Draw a person; `male` None lets that be drawn too."""
    is_male = bool(rng.random() < 0.5)
    tall, wide, deep, other = rng.standard_normal(4)
    male = is_male if male is None else male
    return Person(
        male=male,
        scale=float(np.clip((1.0 if male else _FEMALE_SCALE) * (1 + 0.04 * tall), 0.84, 1.12)),
        girth_yx=(
            float(np.clip(1 + 0.05 * wide + 0.04 * deep, 0.86, 1.16)),
            float(np.clip(1 + 0.05 * wide + 0.02 * other, 0.88, 1.14)),
        ),
        fat=float(rng.uniform(1.02, 1.22)),
        legs_from_mm=float(rng.uniform(*_LEGS_CUT_MM)),
    )


class Frame:
    """Where the voxels lie in the reference person, once this person's size and girth are divided out."""

    def __init__(self, grid: Grid, person: Person, life_size: bool) -> None:
        """Place a person: life-size with the head at the top, else scaled so that the whole body fits."""
        girth = np.array([1.0, *person.girth_yx])
        self.person, self.grid = person, grid
        self.shape = np.asarray(grid.shape_zyx)
        spacing_mm = np.asarray(grid.spacing_zyx_mm)
        extent_mm = girth * BODY_MM * (1, person.fat, person.fat)
        self.scale = (
            person.scale if life_size else float(np.min(_FILLED * self.shape * spacing_mm / extent_mm))
        )
        self.spacing = spacing_mm / (self.scale * girth)
        self.first = (BODY_MM[0] / 2, 0, 0) - (self.shape - 1) / 2 * self.spacing
        if life_size:
            top = BODY_MM[0] + MARGIN_MM / self.scale
            self.first[0] = top - (self.shape[0] - 0.5) * self.spacing[0]

    def box(self, centre: npt.ArrayLike, reach: npt.ArrayLike) -> Box:
        """The voxels whose centres lie within `reach` (mm) of `centre` along each axis."""
        lower = np.ceil((np.subtract(centre, reach) - self.first) / self.spacing)
        upper = np.floor((np.add(centre, reach) - self.first) / self.spacing) + 1
        z, y, x = (slice(int(a), int(b)) for a, b in np.clip([lower, upper], 0, self.shape).T)
        return z, y, x

    def offsets(self, box: Box, centre: npt.ArrayLike) -> list[Points]:
        """Open grid of the box's voxels: distance (mm) from `centre` along z, y and x."""
        starts = self.first - np.asarray(centre)
        return list(
            np.ix_(
                *(
                    start + step * np.arange(part.start, part.stop)
                    for start, step, part in zip(starts, self.spacing, box, strict=True)
                )
            )
        )
