"""The patient as people look at one, however the case is stored: head up, the left on the right."""

import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet
from petclick.grid import Grid
from petclick.images import to_grid
from petclick.orientation import ScalarT, orient

Mask = npt.NDArray[np.uint8]


class Upright:
    """A case's grid turned to LPS, and what lies on it."""

    def __init__(self, grid: Grid) -> None:
        """Find the upright grid, in `grid`."""
        self._stored, self.grid = grid, orient(grid, "LPS")

    def image(self, array: npt.NDArray[ScalarT]) -> npt.NDArray[ScalarT]:
        """An image (z, y, x) on the upright grid, 0 where the case does not reach."""
        return to_grid(array, self._stored, self.grid, 0.0)

    def mask(self, array: Mask) -> Mask:
        """A mask likewise."""
        return to_grid(array, self._stored, self.grid, 0, linear=False)

    def clicks(self, clicks: ClickSet) -> ClickSet:
        """Clicks likewise."""
        to_upright = np.linalg.inv(self.grid.index_zyx_to_mm) @ self._stored.index_zyx_to_mm
        return clicks.mapped(to_upright, self.grid.shape_zyx)
