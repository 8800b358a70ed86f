import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, astuple

import numpy as np
import numpy.typing as npt
import pytest
from grand_challenge_metrics.stats import percentile_hausdorff_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from benchmarks.metrics import loop_score
from petclick.errors import InputError
from petclick.metrics import (
    RANK_WEIGHTS,
    LesionCounts,
    Overlaps,
    ProtocolName,
    Score,
    auc,
    case_summary,
    overlaps,
    score,
    step_aucs,
    surface_score,
    volume_error_ml,
    weighted_ranks,
)

SHAPE = (6, 9, 13)
SPACING_ZYX_MM = (3.0, 2.04, 1.7)
VOXEL_ML = 0.5
PROTOCOLS: tuple[ProtocolName, ProtocolName] = ("autopet4", "autopet5")

BoolArray = npt.NDArray[np.bool_]
Triple = tuple[int, int, int]
Box = tuple[slice, slice, slice]


def scipy_label(mask: BoolArray) -> npt.NDArray[np.integer]:
    return ndimage.label(mask, ndimage.generate_binary_structure(3, 2))[0]


def mask_of(*boxes: Box) -> npt.NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    for box in boxes:
        mask[box] = 1
    return mask


def block(z: int, y: int, x: int, size: Triple = (1, 1, 1)) -> Box:
    return slice(z, z + size[0]), slice(y, y + size[1]), slice(x, x + size[2])


def close_to(expected: object) -> object:
    """Compare two dataclasses' figures; NaN equals NaN."""
    return pytest.approx(astuple(expected), nan_ok=True)


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[BoolArray, BoolArray]:
    """Scattered voxels, blobs and empty masks; the prediction is independent or made of the truth."""
    sizes = [draw(st.integers(low, high)) for low, high in ((1, 3), (4, 7), (8, 12))]
    shape = tuple(draw(st.permutations(sizes)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def one() -> BoolArray:
        noise = rng.random(shape)
        if draw(st.booleans()):
            noise = ndimage.gaussian_filter(noise, 1.0)
        return noise <= np.quantile(noise, draw(st.sampled_from([0.05, 0.2, 0.4, 0.8, 1.0])))

    kind = draw(st.sampled_from(["independent", "moved", "thinned", "no truth", "no prediction", "neither"]))
    truth, prediction = one(), one()
    if kind == "moved":
        prediction = np.roll(truth, draw(st.integers(0, 2)), axis=draw(st.integers(0, 2)))
    elif kind == "thinned":
        prediction = truth & (rng.random(shape) < draw(st.sampled_from([0.05, 0.3, 0.9])))
    elif kind != "independent":
        truth = truth & (kind == "no prediction")
        prediction = prediction & (kind == "no truth")
    return truth, prediction


@given(mask_pairs(), st.sampled_from(PROTOCOLS))
@settings(max_examples=200, deadline=None)
def test_score_equals_the_loop_over_components(
    masks: tuple[BoolArray, BoolArray], protocol: ProtocolName
) -> None:
    expected = loop_score(*masks, VOXEL_ML, protocol, scipy_label)
    assert astuple(score(*masks, VOXEL_ML, protocol)) == close_to(expected)


@given(mask_pairs(), st.tuples(*[st.integers(0, 3)] * 6), st.sampled_from(PROTOCOLS))
@settings(max_examples=100, deadline=None)
def test_air_around_the_masks_changes_nothing(
    masks: tuple[BoolArray, BoolArray], margins: tuple[int, ...], protocol: ProtocolName
) -> None:
    padded = [np.pad(mask, np.reshape(margins, (3, 2))) for mask in masks]
    assert astuple(score(*padded, VOXEL_ML, protocol)) == close_to(score(*masks, VOXEL_ML, protocol))
    surface = surface_score(*masks, SPACING_ZYX_MM, 2.0)
    assert astuple(surface_score(*padded, SPACING_ZYX_MM, 2.0)) == close_to(surface)


def test_hand_computed_case() -> None:
    truth = mask_of(
        block(0, 0, 0, (1, 2, 5)),  # 10 voxels, found exactly
        block(3, 4, 2, (1, 1, 4)),  # 4 voxels, one of them predicted: IoU 1 / 4
        block(5, 8, 12),  # 1 voxel, missed
    )
    prediction = mask_of(block(0, 0, 0, (1, 2, 5)), block(3, 4, 2), block(5, 0, 0, (1, 1, 3)))
    assert asdict(score(truth, prediction, VOXEL_ML)) == {
        "dice": pytest.approx(2 * 11 / (15 + 14)),
        "fpv_ml": 1.5,
        "fnv_ml": 0.5,
        "tp": 2,
        "fp": 1,
        "fn": 1,
        "dmm_f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 1)),
    }


@pytest.mark.parametrize(
    ("offset", "components"), [((0, 0, 1), 1), ((1, 0, 0), 1), ((0, 1, 1), 1), ((1, 1, 0), 1), ((1, 1, 1), 2)]
)
def test_faces_and_edges_connect_but_corners_do_not(offset: Triple, components: int) -> None:
    touching = mask_of(block(2, 3, 4), block(*np.add((2, 3, 4), offset)))
    first = mask_of(block(2, 3, 4))
    assert len(overlaps(touching, first).truth_voxels) == components
    # With one component the rest of it is found through the first voxel; with two it is missed.
    assert score(touching, first, VOXEL_ML).fnv_ml == (components - 1) * VOXEL_ML
    assert score(first, touching, VOXEL_ML).fpv_ml == (components - 1) * VOXEL_ML


@pytest.mark.parametrize(("length", "found"), [(10, 1), (11, 0)])
def test_iou_of_exactly_one_tenth_matches(length: int, found: int) -> None:
    truth, prediction = mask_of(block(1, 2, 0, (1, 1, length))), mask_of(block(1, 2, 3))
    assert overlaps(truth, prediction).counts() == LesionCounts(tp=found, fp=1 - found, fn=1 - found)


def test_one_tenth_matches_at_every_size() -> None:
    voxels = np.arange(1, 5000)
    pairs = np.column_stack([voxels - 1, voxels - 1])
    assert Overlaps(10 * voxels, voxels, pairs, voxels).counts() == LesionCounts(tp=4999, fp=0, fn=0)
    assert Overlaps(10 * voxels + 1, voxels, pairs, voxels).counts() == LesionCounts(tp=0, fp=4999, fn=4999)


def test_two_components_in_one_lesion_both_match() -> None:
    truth = mask_of(block(1, 1, 0, (1, 2, 10)))
    prediction = mask_of(block(1, 1, 0, (1, 2, 3)), block(1, 1, 6, (1, 2, 3)))
    assert overlaps(truth, prediction).counts() == LesionCounts(tp=1, fp=0, fn=0)


def test_one_component_over_two_lesions_finds_both() -> None:
    truth = mask_of(block(1, 1, 0, (1, 2, 3)), block(1, 1, 6, (1, 2, 3)))
    prediction = mask_of(block(1, 1, 0, (1, 2, 10)))
    assert overlaps(truth, prediction).counts() == LesionCounts(tp=2, fp=0, fn=0)


def test_component_that_barely_touches_a_lesion() -> None:
    truth = mask_of(block(0, 0, 0))
    prediction = mask_of(block(0, 0, 0, (2, 3, 4)))  # IoU 1 / 24
    assert astuple(score(truth, prediction, VOXEL_ML, "autopet4")) == (2 / 25, 0.0, 0.0, 0, 1, 1, 0.0)
    assert astuple(score(truth, prediction, VOXEL_ML, "autopet5")) == (2 / 25, 12.0, 0.5, 0, 1, 1, 0.0)


@pytest.mark.parametrize(
    ("protocol", "predicted", "dice"),
    [("autopet4", 0, math.nan), ("autopet4", 3, math.nan), ("autopet5", 0, 1.0), ("autopet5", 3, 0.0)],
)
def test_truth_without_lesions(protocol: ProtocolName, predicted: int, dice: float) -> None:
    result = score(mask_of(), mask_of(block(1, 1, 1, (1, 1, predicted))), VOXEL_ML, protocol)
    expected = Score(dice, predicted * VOXEL_ML, math.nan, 0, int(predicted > 0), 0, math.nan)
    assert astuple(result) == close_to(expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_empty_prediction_misses_everything(protocol: ProtocolName) -> None:
    truth = mask_of(block(0, 0, 0), block(4, 4, 4, (1, 1, 2)))
    assert astuple(score(truth, mask_of(), VOXEL_ML, protocol)) == (0.0, 0.0, 1.5, 0, 0, 2, 0.0)


@pytest.mark.parametrize("dtype", [bool, np.int16, np.float32, np.uint64])
def test_dtype_does_not_matter(dtype: npt.DTypeLike) -> None:
    truth, prediction = np.random.default_rng(3).integers(0, 2, (2, *SHAPE)).astype(np.uint8)
    expected = score(truth, prediction, VOXEL_ML)
    assert score(truth.astype(dtype), prediction, VOXEL_ML) == expected
    assert score(truth, prediction.astype(dtype), VOXEL_ML) == expected


@pytest.mark.parametrize(
    ("value", "dtype"), [(2, np.uint8), (-1, np.int8), (0.5, np.float32), (np.nan, np.float64)]
)
@pytest.mark.parametrize("where", ["truth", "prediction"])
@pytest.mark.parametrize(
    "measure",
    [
        lambda *masks: score(*masks, VOXEL_ML),
        lambda *masks: surface_score(*masks, SPACING_ZYX_MM, 2.0),
        lambda *masks: volume_error_ml(*masks, VOXEL_ML),
    ],
)
def test_other_values_are_refused(
    value: float, dtype: npt.DTypeLike, where: str, measure: Callable[..., object]
) -> None:
    masks = {"truth": mask_of(block(1, 1, 1)), "prediction": mask_of(block(1, 1, 1))}
    masks[where] = masks[where].astype(dtype)
    masks[where][2, 3, 4] = value
    with pytest.raises(InputError, match=rf"^{where}: must hold only 0 and 1, got {value}$"):
        measure(masks["truth"], masks["prediction"])


def test_at_most_five_bad_values_are_named() -> None:
    with pytest.raises(InputError, match=r"got 2, 3, 4, 5, 6$"):
        score(mask_of(), np.arange(np.prod(SHAPE)).reshape(SHAPE), VOXEL_ML)


@pytest.mark.parametrize(
    ("truth", "prediction"), [((6, 9, 13), (9, 6, 13)), ((9, 13), (9, 13)), ((3, 4, 5, 1),) * 2]
)
def test_shapes_must_agree(truth: tuple[int, ...], prediction: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^prediction: must be 3-D with the truth's shape \("):
        score(np.zeros(truth, bool), np.zeros(prediction, bool), VOXEL_ML)


@pytest.mark.parametrize("voxel_ml", [0.0, -1.0, math.nan, math.inf])
def test_voxel_volume_is_checked(voxel_ml: float) -> None:
    with pytest.raises(InputError, match=r"^voxel_ml: must be a finite number above 0, got"):
        score(mask_of(), mask_of(), voxel_ml)


def test_unknown_protocol() -> None:
    with pytest.raises(InputError, match=r"^protocol: must be one of autopet4, autopet5, got 'autopet3'$"):
        score(mask_of(), mask_of(), VOXEL_ML, "autopet3")


def test_auc_is_not_normalised() -> None:
    assert auc([1.0] * 11) == 10.0
    assert auc([0.0, 0.5, 0.7]) == pytest.approx(0.25 + 0.6)
    assert auc([0.4]) == 0.0
    assert math.isnan(auc([0.5, math.nan, 0.5]))


STEPS = [
    Score(dice=0.2, fpv_ml=8.0, fnv_ml=3.0, tp=1, fp=2, fn=3, dmm_f1=2 / 7),
    Score(dice=0.6, fpv_ml=2.0, fnv_ml=1.0, tp=3, fp=1, fn=1, dmm_f1=0.75),
    Score(dice=0.7, fpv_ml=1.0, fnv_ml=0.0, tp=4, fp=0, fn=0, dmm_f1=1.0),
]


def test_case_summary() -> None:
    aucs = {"dice": 1.05, "fpv_ml": 6.5, "fnv_ml": 2.5, "dmm_f1": 1 / 7 + 0.375 + 0.875}
    assert step_aucs(STEPS) == pytest.approx(aucs)
    summary = case_summary(STEPS)
    assert {name: summary[f"{name}_auc"] for name in aucs} == pytest.approx(aucs)
    assert {name: summary[f"{name}_last"] for name in asdict(STEPS[0])} == asdict(STEPS[2])
    assert len(summary) == 11
    assert all(set(weights) <= set(summary) for weights in RANK_WEIGHTS.values())


def test_weighted_ranks() -> None:
    best = dict.fromkeys(RANK_WEIGHTS["autopet4"], 0.5)
    models = {
        "worse": best | {"dice_last": 0.4, "fpv_ml_auc": 9.0},
        "best": best,
        "worst": best | {"dice_last": 0.3, "fnv_ml_last": 0.9},
    }
    # dice_last 1, 2, 3; fpv_ml_auc 1.5, 3, 1.5; fnv_ml_last 1.5, 1.5, 3; all tie in the rest (2).
    expected = {"best": 0.25 + 0.125 * 3, "worse": 0.5 + 0.125 * 4.5, "worst": 0.75 + 0.125 * 4.5}
    ties = 2 * (0.25 + 2 * 0.125)
    assert weighted_ranks(models, "autopet4") == pytest.approx({n: r + ties for n, r in expected.items()})
    models = {"a": {"dice_auc": 4.0, "dmm_f1_auc": 3.0}, "b": {"dice_auc": 4.5, "dmm_f1_auc": 3.0}}
    assert weighted_ranks(models, "autopet5") == {"a": 1.75, "b": 1.25}
    assert all(sum(weights.values()) == 1.0 for weights in RANK_WEIGHTS.values())


def test_volume_error() -> None:
    small, large = mask_of(block(1, 2, 3)), mask_of(block(0, 0, 0, (2, 3, 4)))
    assert volume_error_ml(small, large, VOXEL_ML) == 11.5
    assert volume_error_ml(large, small, VOXEL_ML) == -11.5


def surface_points_mm(mask: BoolArray) -> npt.NDArray[np.float64]:
    """Voxels with a face neighbour outside, one by one."""
    padded = np.pad(mask, 1)
    points = []
    for index in np.argwhere(padded):
        faces = [tuple(index + step * np.eye(3, dtype=int)[axis]) for axis in range(3) for step in (-1, 1)]
        if not all(padded[face] for face in faces):
            points.append(index * SPACING_ZYX_MM)
    return np.array(points)


@given(mask_pairs(), st.sampled_from([0.0, 1.8, 3.0, 5.0]))
@settings(max_examples=100, deadline=None)
def test_surfaces_equal_all_pairs_of_points(masks: tuple[BoolArray, BoolArray], tolerance_mm: float) -> None:
    result = surface_score(*masks, SPACING_ZYX_MM, tolerance_mm)
    if not all(mask.any() for mask in masks):
        expected = (0.0 if masks[0].any() else math.nan, math.nan)
    else:
        table = cdist(*map(surface_points_mm, masks))
        there, back = table.min(axis=1), table.min(axis=0)
        near = (there <= tolerance_mm).sum() + (back <= tolerance_mm).sum()
        library = percentile_hausdorff_distance(*masks, percentile=0.95, voxelspacing=SPACING_ZYX_MM)
        farthest = [sorted(one_way)[int(0.95 * (len(one_way) - 1))] for one_way in (there, back)]
        assert library == pytest.approx(max(farthest))
        expected = near / (len(there) + len(back)), library
    assert astuple(result) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("moved", "distance_mm"), [((2, 0, 0), 6.0), ((0, 3, 0), 6.12), ((0, 0, 4), 6.8), ((1, 1, 1), 4.0056)]
)
def test_surface_distance_is_in_mm_along_each_axis(moved: Triple, distance_mm: float) -> None:
    start, end = mask_of(block(1, 2, 3)), mask_of(block(*np.add((1, 2, 3), moved)))
    near = surface_score(start, end, SPACING_ZYX_MM, distance_mm + 0.01)
    assert astuple(near) == pytest.approx((1.0, distance_mm), abs=1e-3)
    assert surface_score(start, end, SPACING_ZYX_MM, distance_mm - 0.01).dice == 0.0


def test_inside_voxels_are_no_surface() -> None:
    solid = mask_of(block(1, 1, 1, (3, 4, 5)))
    hollow = solid.copy()
    hollow[2, 2, 3] = 0
    result = surface_score(solid, hollow, SPACING_ZYX_MM, 0.0)
    surface = 3 * 4 * 5 - 1 * 2 * 3
    inner_wall = 3  # the hole's neighbours (2, 2, 2), (2, 2, 4) and (2, 3, 3) are on no other surface
    assert result.dice == pytest.approx(2 * surface / (2 * surface + inner_wall))


def test_imports_stay_light() -> None:
    code = (
        "import sys, petclick.metrics, petclick.baselines;"
        "print([name for name in ('torch', 'nnunetv2', 'SimpleITK') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"
