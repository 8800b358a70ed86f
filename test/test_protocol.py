"""Which clicks a model has seen at each step, and the strokes of autoPET V."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from petclick.clicks import ClickSet, click_set
from petclick.evaluation.protocol import PROTOCOL_STEPS, Step, challenge_clicks, first_clicks, interact
from petclick.evaluation.scribbles import error_scribble
from petclick.simulate.strokes import centre_line

Mask = npt.NDArray[np.uint8]
SHAPE = (5, 11, 23)
CLICKS = click_set([[1, 2, 3], [2, 3, 4], [3, 4, 5]], [[0, 0, 1], [0, 0, 2]])
SQUARE = np.ones((3, 3))


def box(z: slice, y: slice, x: slice) -> Mask:
    mask = np.zeros(SHAPE, np.uint8)
    mask[z, y, x] = 1
    return mask


class Recorder:
    """A method that notes what it is given and answers with prepared masks, the last one for good."""

    def __init__(self, *masks: Mask) -> None:
        self.masks = list(masks)
        self.given: list[ClickSet] = []

    def __call__(self, clicks: ClickSet) -> Mask:
        self.given.append(clicks)
        return self.masks[min(len(self.given), len(self.masks)) - 1]


def run(method: Recorder, truth: Mask, protocol: str, steps: tuple[int, ...]) -> list[Step]:
    return [*interact(method, truth, CLICKS, protocol, steps)]  # type: ignore[arg-type]


def voxels(clicks: ClickSet, kind: str) -> set[tuple[int, ...]]:
    return {tuple(index) for index in clicks.of_kind(kind).tolist()}


def test_autopet4_gives_k_clicks_of_each_kind_and_asks_once_for_each_set() -> None:
    method = Recorder(box(slice(1), slice(1), slice(1)))
    steps = run(method, box(slice(1), slice(1), slice(1)), "autopet4", PROTOCOL_STEPS["autopet4"])
    assert [step.number for step in steps] == list(range(11))
    counts = [(len(step.clicks.of_kind("tumor")), len(step.clicks.of_kind("background"))) for step in steps]
    assert counts == [(0, 0), (1, 1), (2, 2), (3, 2), *[(3, 2)] * 7]
    assert [len(clicks) for clicks in method.given] == [0, 2, 4, 5]
    assert voxels(steps[1].clicks, "tumor") == {(1, 2, 3)}
    assert voxels(steps[1].clicks, "background") == {(0, 0, 1)}


def test_autopet4_predicts_only_the_steps_asked_for() -> None:
    method = Recorder(box(slice(1), slice(1), slice(1)))
    assert [len(step.clicks) for step in run(method, method.masks[0], "autopet4", (0, 3))] == [0, 5]
    assert len(method.given) == 2


def test_autopet5_corrects_the_last_prediction_and_keeps_what_was_given() -> None:
    truth = box(slice(2, 4), slice(2, 7), slice(3, 20))
    with_false_part = truth | box(slice(0, 1), slice(0, 9), slice(0, 23))
    method = Recorder(np.zeros(SHAPE, np.uint8), with_false_part, truth)
    steps = run(method, truth, "autopet5", PROTOCOL_STEPS["autopet5"])
    assert [step.number for step in steps] == list(range(6))
    assert len(steps[0].clicks) == 0
    first = voxels(steps[1].clicks, "tumor")
    assert first
    assert all(truth[voxel] for voxel in first)
    assert not voxels(steps[1].clicks, "background")
    second = voxels(steps[2].clicks, "background")
    assert second
    assert all(with_false_part[voxel] and not truth[voxel] for voxel in second)
    assert voxels(steps[2].clicks, "tumor") == first
    assert len(method.given) == 3  # nothing is wrong any more, so nothing is added
    assert steps[5].mask is steps[2].mask


def test_autopet5_goes_through_the_steps_that_are_not_asked_for() -> None:
    truth = box(slice(2, 4), slice(2, 7), slice(3, 20))
    method = Recorder(np.zeros(SHAPE, np.uint8))
    (last,) = run(method, truth, "autopet5", (3,))
    assert last.number == 3
    assert len(method.given) == 2  # the same stroke again adds no voxel
    assert voxels(last.clicks, "tumor")


def test_autopet5_gives_nothing_where_there_is_no_lesion() -> None:
    method = Recorder(box(slice(1, 2), slice(2, 4), slice(2, 9)))
    steps = run(method, np.zeros(SHAPE, np.uint8), "autopet5", PROTOCOL_STEPS["autopet5"])
    assert [len(step.clicks) for step in steps] == [0] * 6
    assert len(method.given) == 1


def test_challenge_clicks_repeat_and_agree_with_the_masks() -> None:
    lesion = box(slice(1, 3), slice(2, 6), slice(4, 9))
    pet = np.random.default_rng(3).random(SHAPE, np.float32)
    clicks = challenge_clicks(lesion, pet, 4)
    again = challenge_clicks(lesion, pet, 4)
    np.testing.assert_array_equal(clicks.index_zyx, again.index_zyx)
    assert len(clicks.of_kind("tumor")) == 4
    assert lesion[tuple(clicks.of_kind("tumor").T)].all()
    assert not lesion[tuple(clicks.of_kind("background").T)].any()
    assert voxels(first_clicks(clicks, 2), "tumor") < voxels(clicks, "tumor")


def test_stroke_runs_along_the_middle_without_its_ends() -> None:
    truth = box(slice(3, 4), slice(4, 7), slice(2, 21))
    stroke = error_scribble(truth, np.zeros(SHAPE, np.uint8)).of_kind("tumor")
    assert {tuple(index) for index in stroke[:, :2].tolist()} == {(3, 5)}
    x = np.sort(stroke[:, 2])
    np.testing.assert_array_equal(x, np.arange(x[0], x[-1] + 1))
    # the skeleton of a bar of 19 x 3 has 17 voxels or more; a tenth of them goes at each end
    assert 13 <= len(x) <= 17
    assert abs((x[0] + x[-1]) / 2 - 11) <= 1


@pytest.mark.parametrize("n", [1, 2])
def test_tiny_error_is_marked_whole(n: int) -> None:
    truth = box(slice(4, 5), slice(3, 4), slice(5, 5 + n))
    assert voxels(error_scribble(truth, np.zeros(SHAPE, np.uint8)), "tumor") == {
        (4, 3, x) for x in range(5, 5 + n)
    }


def test_longer_stroke_wins_and_the_tumour_where_both_are_equal() -> None:
    here, there = box(slice(1, 2), slice(2, 3), slice(1, 8)), box(slice(1, 2), slice(6, 7), slice(1, 8))
    longer = box(slice(3, 4), slice(6, 7), slice(1, 9))
    assert len(error_scribble(here, there).of_kind("tumor")) == 7
    assert len(error_scribble(here, longer).of_kind("background")) == 8
    assert len(error_scribble(here, longer).of_kind("tumor")) == 0
    assert len(error_scribble(here, here)) == 0


def test_one_large_slice_beats_a_larger_volume() -> None:
    long = box(slice(0, 5), slice(1, 4), slice(1, 6))  # 15 voxels a slice, 75 in all
    flat = box(slice(2, 3), slice(6, 10), slice(8, 14))  # 24 in one slice
    stroke = error_scribble(long | flat, np.zeros(SHAPE, np.uint8)).of_kind("tumor")
    assert all(flat[tuple(index)] for index in stroke)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, (3, 7, 9), elements=st.booleans(), fill=st.nothing()))
def test_stroke_lies_in_a_largest_component_of_any_slice(error: npt.NDArray[np.bool_]) -> None:
    stroke = error_scribble(error.astype(np.uint8), np.zeros(error.shape, np.uint8)).of_kind("tumor")
    areas: dict[tuple[int, int], int] = {}
    for z, labels in enumerate(ndimage.label(each, SQUARE)[0] for each in error):
        areas |= {(z, label): np.count_nonzero(labels == label) for label in range(1, labels.max() + 1)}
    if not areas:
        assert len(stroke) == 0
        return
    (z,) = set(stroke[:, 0].tolist())
    labels, _ = ndimage.label(error[z], SQUARE)
    (label,) = set(labels[tuple(stroke[:, 1:].T)].tolist())
    assert areas[z, label] == max(areas.values())
    assert len(np.unique(stroke, axis=0)) == len(stroke)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, (12, 15), elements=st.booleans(), fill=st.nothing()))
def test_centre_line_is_one_way_through_the_region(noise: npt.NDArray[np.bool_]) -> None:
    labels, n = ndimage.label(ndimage.binary_opening(noise), SQUARE)
    for label in range(1, n + 1):
        region = labels == label
        line = centre_line(region)
        assert region[tuple(line.T)].all()
        if len(line) < np.count_nonzero(region):
            steps = np.abs(np.diff(line, axis=0))
            assert (steps.max(axis=1) == 1).all()
