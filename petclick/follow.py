"""The margin after the clicks: a smooth correction that makes it agree with them, and moves little else."""

import numpy as np
import numpy.typing as npt
from scipy import linalg, optimize
from scipy.spatial.distance import cdist
from scipy.special import expit

from petclick.clicks import KINDS, ClickSet
from petclick.grid import Grid

Image = npt.NDArray[np.float32]

OUT_OF_REACH = 500.0
"""A click on the wrong side by more than this is not followed: no network is that sure, nothing is predicted
there (`preprocess.BACKGROUND_MARGIN`), and the shift that it asks for would be everyone's."""
MOST_CLICKS = 400
"""Of more, as in scribbles, every n-th voxel is followed: the cost grows with the cube."""
LOCAL_REACH = 4.0
"""A click's local correction ends at this many `local_mm`, where less than a thousandth of it is left."""


def follow_clicks(
    margin: Image,
    clicks: ClickSet,
    grid: Grid,
    common_variance: float,
    local_variance: float,
    local_mm: float,
) -> Image:
    """Shift the margin to what the clicks make likeliest, by as little as explains them.

    The shift is a Gaussian process of mean 0: a part common to all voxels, and a local one whose correlation
    falls with the distance, exp(-d**2 / (2 local_mm**2)). Each click observes the sign of its voxel's margin
    with a logistic likelihood, and the mode of the posterior is taken (Laplace's approximation; Rasmussen and
    Williams, Gaussian Processes for Machine Learning, 2006, section 3.4). Without clicks nothing moves, and a
    voxel that is clicked twice counts once.

    Args:
        margin: float32 (z, y, x), in logits.
        clicks: on its grid.
        grid: gives the spacing.
        common_variance: of the common part; alone it fits one threshold to the clicks.
        local_variance: of the local part.
        local_mm: the distance over which it changes, above 0.
    """
    if common_variance + local_variance == 0:
        return margin
    clicks = _worth_following(margin, clicks)
    if not len(clicks):
        return margin
    spacing_mm = np.array(grid.spacing_zyx_mm)
    places_mm = clicks.index_zyx * spacing_mm
    squared = cdist(places_mm, places_mm, "sqeuclidean")
    covariance = common_variance + local_variance * np.exp(-squared / (2 * local_mm**2))
    # Neighbouring clicks make the matrix singular up to rounding.
    covariance[np.diag_indices_from(covariance)] *= 1 + 1e-6
    root = linalg.cholesky(covariance, lower=True)
    before = margin[tuple(clicks.index_zyx.T)].astype(np.float64)
    sign = np.where(clicks.kind == KINDS.index("tumor"), 1.0, -1.0)

    def loss(white: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """Negative log posterior of the shift root @ white, and its gradient."""
        right = sign * (before + root @ white)
        value = np.logaddexp(0, -right).sum() + white @ white / 2
        return float(value), white - root.T @ (sign * expit(-right))

    white = optimize.minimize(loss, np.zeros(len(clicks)), jac=True, method="L-BFGS-B").x
    # At the mode the shift anywhere is its covariance with the clicks times the likelihood's gradient.
    pull = sign * expit(-sign * (before + root @ white))
    shifted = margin + np.float32(common_variance * pull.sum())
    if local_variance > 0:
        reach = np.ceil(LOCAL_REACH * local_mm / spacing_mm).astype(np.int64)
        for click, strength in zip(clicks.index_zyx, local_variance * pull, strict=True):
            lower, upper = np.maximum(click - reach, 0), np.minimum(click + reach + 1, margin.shape)
            box = tuple(map(slice, lower, upper))
            offsets_mm = [(o - at) * mm for o, at, mm in zip(np.ogrid[box], click, spacing_mm, strict=True)]
            z, y, x = (np.exp(-(o**2) / (2 * local_mm**2)).astype(np.float32) for o in offsets_mm)
            shifted[box] += np.float32(strength) * z * y * x
    return shifted


def _worth_following(margin: Image, clicks: ClickSet) -> ClickSet:
    """Each clicked voxel once, without those out of reach, and not too many."""
    index, kind = clicks.index_zyx, clicks.kind
    value = margin[tuple(index.T)] * np.where(kind == KINDS.index("tumor"), 1, -1)
    points = np.unique(np.column_stack((kind, index))[value > -OUT_OF_REACH], axis=0)
    points = points[:: len(points) // MOST_CLICKS + 1]
    return ClickSet(points[:, 1:], points[:, 0])
