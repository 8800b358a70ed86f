"""Strokes on a prediction's largest error, as autoPET V's simulated interaction draws them.

Source: the task page (autopet-v.grand-challenge.org) and the organisers' public code
(github.com/lab-midas/autoPETV, interactive/). Among the 8-connected components of all axial slices the
largest is taken, once for what is missed and once for what is false, and a stroke is drawn along its centre
line. The stroke with more voxels is given to the model; the tumour stroke where both have as many.
"""

import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet, click_set
from petclick.simulate.strokes import centre_line, draw_stroke

Mask = npt.NDArray[np.uint8]


def error_scribble(truth: Mask, prediction: Mask) -> ClickSet:
    """Draw the next stroke: tumour clicks on a missed region, or background clicks on a false one.

    Args:
        truth: (z, y, x) mask of {0, 1}; slices along z are axial.
        prediction: likewise, on the same grid.

    Returns:
        The stroke's voxels, each once; none where the masks are equal.
    """
    missed, false = (draw_stroke(error, centre_line) for error in (truth > prediction, prediction > truth))
    return click_set(missed, []) if len(missed) >= len(false) else click_set([], false)
