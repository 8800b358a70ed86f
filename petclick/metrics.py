"""The metrics of autoPET/CT IV (clicks) and autoPET V (scribbles), and distances between surfaces.

Masks are (z, y, x) arrays of {0, 1}; volumes are in ml, distances in mm. A lesion is an 18-connected
component of the truth. Components are found once for each mask and then counted by label, in the box around
both masks, so the cost does not grow with their number.

Sources: the two challenges' evaluation pages (autopet-iv and autopet-v on grand-challenge.org) and public
evaluation code (github.com/lab-midas/autoPETCTIV and autoPETV). IV's code gives FNV 0 on an empty truth and a
Dice above 1 on labels above 1; here the first is NaN and the second is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from petclick.errors import InputError

MaskArray = npt.NDArray[np.generic]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
ProtocolName = Literal["autopet4", "autopet5"]

CONNECTIVITY: Final = 18
"""Voxels that share a face or an edge belong together, in both challenges."""

DMM_IOU = 0.1
"""The smallest intersection over union at which a lesion and a predicted component match."""

RANK_WEIGHTS: Mapping[ProtocolName, Mapping[str, float]] = {
    "autopet4": {
        "dice_last": 0.25,
        "fpv_ml_last": 0.125,
        "fnv_ml_last": 0.125,
        "dice_auc": 0.25,
        "fpv_ml_auc": 0.125,
        "fnv_ml_auc": 0.125,
    },
    "autopet5": {"dice_auc": 0.5, "dmm_f1_auc": 0.5},
}
"""What each figure of `case_summary` weighs in a challenge's ranking."""

_LOWER_IS_BETTER = ("fpv_ml", "fnv_ml")


@dataclass(frozen=True)
class LesionCounts:
    """Lesions found (tp) and missed (fn), and predicted components that match no lesion (fp)."""

    tp: int
    fp: int
    fn: int

    @property
    def f1(self) -> float:
        """The detection-matching metric (DMM) of one mask; NaN where the truth has no lesion."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp + self.fn else float("nan")


@dataclass(frozen=True)
class Overlaps:
    """The components of two masks, and which of them share voxels.

    truth_voxels, predicted_voxels: size of each component, (T,) and (P,);
    pairs: (K, 2), the truth's and the prediction's component, counted from 0; shared_voxels: (K,).
    """

    truth_voxels: IntArray
    predicted_voxels: IntArray
    pairs: IntArray
    shared_voxels: IntArray

    def matched(self, iou: float) -> tuple[BoolArray, BoolArray]:
        """Which lesions (T,) and which predicted components (P,) have a partner.

        Args:
            iou: the smallest intersection over union that counts; 0 asks for a shared voxel only. One
                component may match several.
        """
        lesion, component = self.pairs.T
        union = self.truth_voxels[lesion] + self.predicted_voxels[component] - self.shared_voxels
        matching = self.shared_voxels / union >= iou
        truth = np.isin(np.arange(len(self.truth_voxels)), lesion[matching])
        predicted = np.isin(np.arange(len(self.predicted_voxels)), component[matching])
        return truth, predicted

    def counts(self, iou: float = DMM_IOU) -> LesionCounts:
        """Count lesions that any component matches or none does, and components that match no lesion."""
        truth, predicted = self.matched(iou)
        return LesionCounts(tp=int(truth.sum()), fp=int((~predicted).sum()), fn=int((~truth).sum()))


@dataclass(frozen=True)
class Score:
    """One mask's figures; NaN where a figure is not defined, as on a truth without lesions.

    fpv_ml, fnv_ml: volume of the predicted components, and of the lesions, that have no partner.
    """

    dice: float
    fpv_ml: float
    fnv_ml: float
    tp: int
    fp: int
    fn: int
    dmm_f1: float


@dataclass(frozen=True)
class SurfaceScore:
    """How far two masks' surfaces lie apart: share within a tolerance, and 95th percentile in mm."""

    dice: float
    hd95_mm: float


def score(
    truth: MaskArray, prediction: MaskArray, voxel_ml: float, protocol: ProtocolName = "autopet4"
) -> Score:
    """Score a mask as a challenge does.

    autopet4: FPV and FNV count components without a shared voxel; Dice is NaN where the truth is empty.
    autopet5: they count components without a partner at `DMM_IOU`; where the truth is empty, Dice is 1 for an
    empty prediction and 0 for any other. In both, tp, fp, fn and dmm_f1 are at `DMM_IOU`, and FNV and
    dmm_f1 are NaN where the truth is empty.

    Args:
        truth: (z, y, x), any dtype, values 0 and 1.
        prediction: likewise, on the same grid.
        voxel_ml: a voxel's volume in ml.
        protocol: whose rules hold.

    Raises:
        InputError: not 3-D, different shapes, values other than 0 and 1, a bad volume or protocol.
    """
    if protocol not in get_args(ProtocolName):
        raise InputError("protocol", f"must be one of {', '.join(get_args(ProtocolName))}", repr(protocol))
    if not (np.isfinite(voxel_ml) and voxel_ml > 0):
        raise InputError("voxel_ml", "must be a finite number above 0", voxel_ml)
    found = overlaps(truth, prediction)
    counts = found.counts()
    truth_found, predicted_right = found.matched(0.0 if protocol == "autopet4" else DMM_IOU)
    without_lesion = len(found.truth_voxels) == 0
    return Score(
        dice=_dice(found, protocol),
        fpv_ml=float(found.predicted_voxels[~predicted_right].sum() * voxel_ml),
        fnv_ml=float("nan") if without_lesion else float(found.truth_voxels[~truth_found].sum() * voxel_ml),
        tp=counts.tp,
        fp=counts.fp,
        fn=counts.fn,
        dmm_f1=counts.f1,
    )


def overlaps(truth: MaskArray, prediction: MaskArray) -> Overlaps:
    """Find the components of two masks, (z, y, x) arrays of {0, 1}, and the voxels that they share.

    Raises:
        InputError: not 3-D, different shapes, or values other than 0 and 1.
    """
    truth, prediction = _cropped_masks(truth, prediction)
    truth_labels, labels = _components(truth), _components(prediction)
    truth_voxels, voxels = np.bincount(truth_labels[truth])[1:], np.bincount(labels[prediction])[1:]
    both = truth & prediction
    code = (truth_labels[both].astype(np.int64) - 1) * len(voxels) + (labels[both].astype(np.int64) - 1)
    pair, shared = np.unique(code, return_counts=True)
    pairs = np.column_stack(np.divmod(pair, max(len(voxels), 1)))
    return Overlaps(truth_voxels, voxels, pairs, shared)


def auc(values: Sequence[float]) -> float:
    """Area under a figure over steps 0, 1, 2, ...: trapezoids, not normalised; NaN if any step is."""
    return float(np.trapezoid(values))


def step_aucs(steps: Sequence[Score]) -> dict[str, float]:
    """`auc` of dice, fpv_ml, fnv_ml and dmm_f1 over one case's steps in order."""
    names = ("dice", "fpv_ml", "fnv_ml", "dmm_f1")
    return {name: auc([getattr(step, name) for step in steps]) for name in names}


def case_summary(steps: Sequence[Score]) -> dict[str, float]:
    """One case's figures: every field of the last step as `<field>_last`, and the areas as `<field>_auc`."""
    last = {f"{field.name}_last": float(getattr(steps[-1], field.name)) for field in fields(Score)}
    return last | {f"{name}_auc": value for name, value in step_aucs(steps).items()}


def weighted_ranks(models: Mapping[str, Mapping[str, float]], protocol: ProtocolName) -> dict[str, float]:
    """Compare models as a challenge compares teams: weighted mean of ranks, 1 is best, ties share theirs.

    Args:
        models: name -> its figures, means over cases; those of `RANK_WEIGHTS[protocol]` must be there.
        protocol: whose weights hold.
    """
    from scipy.stats import rankdata  # slow to import, and inference, which has no use for it, comes by here

    total = np.zeros(len(models))
    for name, weight in RANK_WEIGHTS[protocol].items():
        values = np.array([figures[name] for figures in models.values()])
        total += weight * rankdata(values if name.startswith(_LOWER_IS_BETTER) else -values)
    return dict(zip(models, total.tolist(), strict=True))


def volume_error_ml(truth: MaskArray, prediction: MaskArray, voxel_ml: float) -> float:
    """Predicted minus true volume in ml; arguments and errors as in `score`."""
    truth, prediction = _checked_masks(truth, prediction)
    return (np.count_nonzero(prediction) - np.count_nonzero(truth)) * voxel_ml


def surface_score(
    truth: MaskArray,
    prediction: MaskArray,
    spacing_zyx_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> SurfaceScore:
    """Compare two masks' surfaces, taken as the voxels with a face neighbour outside the mask or the volume.

    The surface Dice (arXiv 1809.04430, with each surface voxel counted as one) is the share of both surfaces
    within `tolerance_mm` of the other. HD95 is the larger of the two directed distances' 95th percentiles,
    and equals grand-challenge-metrics'. Distances come from SciPy's k-d tree of the surfaces' points. That
    library's two volumes of distances take long on a whole body (`python -m benchmarks surfaces`).

    Args:
        truth: (z, y, x), any dtype, values 0 and 1.
        prediction: likewise, on the same grid.
        spacing_zyx_mm: the grid's spacing.
        tolerance_mm: distance up to which two surfaces agree.

    Returns:
        NaN for both where the truth is empty. Where only the prediction is, Dice 0 and an HD95 of NaN.

    Raises:
        InputError: not 3-D, different shapes, or values other than 0 and 1.
    """
    surfaces = [
        np.argwhere(mask & ~ndimage.binary_erosion(mask)) * np.asarray(spacing_zyx_mm)
        for mask in _cropped_masks(truth, prediction)
    ]
    if not all(map(len, surfaces)):
        return SurfaceScore(dice=0.0 if len(surfaces[0]) else float("nan"), hd95_mm=float("nan"))
    distances = [cKDTree(b).query(a)[0] for a, b in (surfaces, surfaces[::-1])]
    return SurfaceScore(
        dice=float(np.mean(np.concatenate(distances) <= tolerance_mm)),
        hd95_mm=float(max(np.percentile(one_way, 95, method="lower") for one_way in distances)),
    )


def _dice(found: Overlaps, protocol: ProtocolName) -> float:
    """Dice of the whole masks, from their components' sizes."""
    truth, predicted = int(found.truth_voxels.sum()), int(found.predicted_voxels.sum())
    if truth == 0:
        return float("nan") if protocol == "autopet4" else float(predicted == 0)
    return 2 * int(found.shared_voxels.sum()) / (truth + predicted)


def _components(mask: BoolArray) -> npt.NDArray[np.uint32]:
    """Label `mask`: 0 outside, 1 ... n for its n components."""
    return cc3d.connected_components(mask, connectivity=CONNECTIVITY).astype(np.uint32, copy=False)


def _checked_masks(truth: MaskArray, prediction: MaskArray) -> tuple[BoolArray, BoolArray]:
    """Both masks as booleans."""
    if truth.ndim != 3 or truth.shape != prediction.shape:
        raise InputError("prediction", f"must be 3-D with the truth's shape {truth.shape}", prediction.shape)
    masks = []
    for name, values in (("truth", truth), ("prediction", prediction)):
        mask = values == 1
        if np.count_nonzero(mask) != np.count_nonzero(values):  # NaN counts as non-zero too
            others = np.unique(values[~mask & (values != 0)])
            raise InputError(name, "must hold only 0 and 1", ", ".join(map(str, others[:5])))
        masks.append(mask)
    return masks[0], masks[1]


def _cropped_masks(truth: MaskArray, prediction: MaskArray) -> tuple[BoolArray, BoolArray]:
    """Both masks as booleans, cut to the box around their union (no voxel where both are empty)."""
    truth, prediction = _checked_masks(truth, prediction)
    union = truth | prediction
    box: list[slice] = []
    for axis in range(3):
        occupied = np.flatnonzero(union.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(occupied[0], occupied[-1] + 1) if len(occupied) else slice(0))
    return truth[tuple(box)], prediction[tuple(box)]
