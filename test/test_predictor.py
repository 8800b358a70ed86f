"""The whole way from a case to its mask, with networks whose mask is known, and with random ones."""

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import stored_otherwise
from networks import CPU, ClickNetwork, balls, dice, ready
from scipy.spatial.transform import Rotation

from petclick import placement, predictor
from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError, PetclickError
from petclick.grid import Grid, apply_affine
from petclick.images import Case, resample
from petclick.model import load_model
from petclick.predictor import Predictor, Settings
from petclick.simulate import SimulationSettings
from training.transforms import SimulateClicks

MakeModel = Callable[..., Path]
MakeCase = Callable[..., Case]


@pytest.mark.usefixtures("click_network")
class TestInsideTheClicksBall:
    """The case's spacing is the plan's, so that the network's voxels are the case's."""

    @pytest.fixture(params=["as stored", "turned, transposed, cropped"])
    def setting(
        self, request: pytest.FixtureRequest, make_model: MakeModel, make_case: MakeCase
    ) -> tuple[Path, Case]:
        if request.param == "as stored":
            case = make_case()
            return make_model(spacing_mm=case.grid.spacing_zyx_mm), case
        case = make_case(
            (24, 33, 27), (2.5, 2.0, 3.0), (0, 0, 1, -1, 0, 0, 0, 1, 0), ((2, 1), (0, 4), (3, 0))
        )
        upright_zyx_mm = (2.0, 2.5, 3.0)  # stored x, y, z run along the patient's y, z, x
        transpose = (1, 2, 0)
        spacing_mm = [upright_zyx_mm[axis] for axis in transpose]
        return make_model(transpose=transpose, spacing_mm=spacing_mm, guidance={"orientation": "LPS"}), case

    def test_tumour_clicks(self, setting: tuple[Path, Case]) -> None:
        folder, case = setting
        points = [[8, 12, 10], [9, 13, 10], [20, 5, 4]]
        mask = ready(folder, case).predict(click_set(points, []))
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, balls(case.grid.shape_zyx, points) & (case.pet_suv > 0))

    def test_background_clicks_take_away(self, setting: tuple[Path, Case]) -> None:
        folder, case = setting
        mask = ready(folder, case).predict(click_set([[8, 12, 10], [20, 5, 5]], [[8, 12, 10], [12, 25, 20]]))
        np.testing.assert_array_equal(mask, balls(case.grid.shape_zyx, [20, 5, 5]) & (case.pet_suv > 0))

    def test_no_clicks_no_lesion(self, setting: tuple[Path, Case]) -> None:
        folder, case = setting
        assert not ready(folder, case).predict(click_set([], [])).any()

    def test_thousands_of_points(self, setting: tuple[Path, Case]) -> None:
        folder, case = setting
        rng = np.random.default_rng(2)
        places = np.argwhere(case.pet_suv > 0)
        tumor = places[places[:, 1] < 14][rng.integers(0, 1500, 3000)]
        background = places[places[:, 1] > 18][rng.integers(0, 1500, 3000)]
        mask = ready(folder, case).predict(click_set(tumor, background))
        expected = balls(case.grid.shape_zyx, np.unique(tumor, axis=0)) & (case.pet_suv > 0)
        np.testing.assert_array_equal(mask, expected)

    def test_one_case_many_predictions(self, setting: tuple[Path, Case]) -> None:
        folder, case = setting
        session = ready(folder, case)
        clicks = click_set([[8, 12, 10]], [])
        first = session.predict(clicks)
        session.predict(click_set([[8, 12, 10], [20, 5, 5]], []))
        np.testing.assert_array_equal(session.predict(clicks), first)


@pytest.mark.usefixtures("click_network")
def test_resampled_balls_lie_around_their_clicks(make_model: MakeModel, make_case: MakeCase) -> None:
    """Balls of the network's grid, 3 x 2.2 x 2.6 mm, on a case of 2.5 x 2 x 2.1 mm."""
    case = make_case((25, 36, 32), (2.1, 2.0, 2.5))
    spacing = np.array([3.0, 2.2, 2.6])
    place = np.array([12, 17, 15])
    mask = ready(make_model(spacing_mm=spacing.tolist()), case).predict(click_set([place], []))
    found = np.argwhere(mask)
    offset_mm = (found.mean(axis=0) - place) * case.grid.spacing_zyx_mm
    assert (np.abs(offset_mm) <= 0.5 * spacing).all()
    volume_mm3 = len(found) * np.prod(case.grid.spacing_mm)
    assert volume_mm3 / spacing.prod() == pytest.approx(32, rel=0.15), (
        "what linear interpolation leaves of 33"
    )


def test_the_mask_does_not_depend_on_how_the_patient_is_stored(
    make_model: MakeModel, make_case: MakeCase, clicks: ClickSet
) -> None:
    folder = make_model(transpose=(2, 0, 1), guidance={"orientation": "LPS"})
    case = make_case(margin=((1, 2), (0, 3), (2, 0)))
    session = ready(folder, case)
    expected = session.predict(clicks)
    assert 0.02 < expected.mean() < 0.98
    for axes, flipped in zip(
        permutations(range(3)), [(0,), (1, 2), (), (0, 1, 2), (2,), (0, 2)], strict=True
    ):
        other, to_other = stored_otherwise(case, axes, flipped)
        session.set_case(other)
        mask = session.predict(clicks.mapped(to_other, other.grid.shape_zyx))
        np.testing.assert_array_equal(np.flip(mask, flipped).transpose(np.argsort(axes)), expected)


def test_an_oblique_case_gives_the_same_lesion(
    make_model: MakeModel, make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large stamp, cut at half its depth, is a ball that both grids resolve."""
    monkeypatch.setattr(predictor, "load_network", lambda *_: ClickNetwork(0.5))
    folder = make_model(spacing_mm=(2.0, 2.0, 2.0), guidance={"orientation": "LPS", "radius_vox": 12})
    straight = make_case((32, 38, 35), (1.9, 1.8, 2.1), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    click_mm = apply_affine(straight.grid.index_zyx_to_mm, [[15, 20, 17]])[0]

    turn = Rotation.from_euler("zyx", (20, 11, -7), degrees=True).as_matrix()
    centre = np.array([18.0, 20.0, 17.0])
    origin = click_mm - turn @ (centre * (2.0, 1.9, 2.2))
    oblique = Grid((38, 41, 36), (2.0, 1.9, 2.2), tuple(origin), tuple(turn.ravel()))
    arrays = [
        resample(array, straight.grid, oblique, fill)
        for array, fill in ((straight.ct_hu, -1024), (straight.pet_suv, 0))
    ]
    same_patient = Case(*arrays, oblique, "oblique")

    radii_mm = []
    for case, click in ((straight, [15, 20, 17]), (same_patient, centre[::-1].astype(int))):
        mask = ready(folder, case).predict(click_set([click], [])).ravel() > 0
        points_mm = apply_affine(case.grid.index_zyx_to_mm, np.argwhere(np.ones(case.grid.shape_zyx)))
        middle_mm = points_mm[mask].mean(axis=0)
        assert np.abs(middle_mm - click_mm).max() <= 1.1, "half a voxel of the network's grid"
        radii_mm.append((3 * mask.sum() * case.grid.voxel_ml * 1000 / (4 * np.pi)) ** (1 / 3))
        assert dice(mask, np.linalg.norm(points_mm - middle_mm, axis=1) <= radii_mm[-1]) > 0.97
    assert radii_mm[0] == pytest.approx(radii_mm[1], abs=0.2)


def test_the_published_ensemble_works_in_ours(
    make_model: MakeModel, make_case: MakeCase, clicks: ClickSet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "petclick")
    folder = make_model(
        folds=[str(fold) for fold in range(10)],
        prefixes=("", "module.", "_orig_mod.", "module._orig_mod."),
        normalization=("CTNormalization", "CTNormalization"),
    )
    case = make_case((18, 24, 20))
    session = ready(folder, case)
    margin = session.predict_margin(clicks)
    mask = session.predict(clicks)
    assert mask.shape == case.grid.shape_zyx
    assert 0 < mask.mean() < 1
    assert "10 folds, 1 mirrored passes, float32 on cpu" in caplog.text

    alone = [Predictor(load_model(folder, (str(fold),)), CPU) for fold in range(10)]
    for each in alone:
        each.set_case(case)
    mean = torch.stack([each.predict_margin(clicks) for each in alone]).mean(0)
    np.testing.assert_allclose(margin, mean, atol=1e-5)


def test_the_network_sees_the_bits_that_training_showed_it(
    make_model: MakeModel, make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorder(ClickNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x[0])
            return super().forward(x)

    seen: list[torch.Tensor] = []
    monkeypatch.setattr(predictor, "load_network", lambda *_: Recorder())
    case = make_case((16, 24, 20))  # one patch
    clicks = click_set([[0, 3, 4], [1, 4, 4], [9, 20, 19]], [[9, 19, 18]])
    folder = make_model(spacing_mm=case.grid.spacing_zyx_mm)
    ready(folder, case).predict(clicks)

    in_training = SimulateClicks(load_model(folder).spec, SimulationSettings(), seeds=(0,))
    sample = in_training.apply({"image": torch.zeros(2, 16, 24, 20)}, clicks)
    assert torch.equal(seen[0][2:], sample["image"][2:])


def test_the_models_own_mirror_axes_are_the_default(
    make_model: MakeModel, make_case: MakeCase, click_network: ClickNetwork
) -> None:
    folder = make_model(change=lambda checkpoint: checkpoint.update(inference_allowed_mirroring_axes=(0, 2)))
    ready(folder, make_case((16, 24, 20), (2.5, 2, 3)), replace(CPU, mirror_axes=None)).predict(
        click_set([], [])
    )
    assert sum(click_network.batches) == 4
    assert max(click_network.batches) == placement.CPU_BATCH


@pytest.mark.parametrize(("keep_gib", "runs_again"), [(4.0, 2), (0.0, 8), (3 * 16 * 24 * 20 * 4 / 2**30, 6)])
def test_tiles_that_no_new_click_touches_are_kept(
    make_model: MakeModel, make_case: MakeCase, click_network: ClickNetwork, keep_gib: float, runs_again: int
) -> None:
    """Eight tiles: all, none or the first three are kept; the new click is in two, one of these."""
    case = make_case((20, 30, 26))
    folder = make_model(spacing_mm=case.grid.spacing_zyx_mm)
    session = ready(folder, case, replace(CPU, keep_gib=keep_gib))
    session.predict(click_set([[8, 12, 10]], []))
    assert len(click_network.batches) == 8
    click_network.batches.clear()
    more = click_set([[8, 12, 10], [8, 1, 1]], [])
    mask = session.predict(more)
    assert len(click_network.batches) == runs_again
    np.testing.assert_array_equal(mask, ready(folder, case).predict(more))


def test_kept_tiles_are_those_of_a_prediction_from_scratch(
    make_model: MakeModel, make_case: MakeCase
) -> None:
    folder, case, other = make_model(), make_case(), make_case(seed=8)
    few, more = click_set([[8, 12, 10]], []), click_set([[8, 12, 10], [18, 2, 2]], [[3, 28, 20]])
    session = ready(folder, case)
    for clicks in (few, more, few):
        scratch = ready(folder, case).predict_margin(clicks)
        assert torch.equal(session.predict_margin(clicks), scratch)
    session.set_case(other)
    assert torch.equal(session.predict_margin(few), ready(folder, other).predict_margin(few))


def test_a_warm_up_changes_no_result(make_model: MakeModel, make_case: MakeCase, clicks: ClickSet) -> None:
    folder, case = make_model(folds=("0", "1")), make_case((16, 24, 20))
    session = Predictor(load_model(folder), CPU)
    session.warm_up()
    session.set_case(case)
    assert torch.equal(session.predict_margin(clicks), ready(folder, case).predict_margin(clicks))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(step_size=0), r"--step-size: must be above 0, up to 1, got 0"),
        (Settings(step_size=1.5), r"--step-size: must be above 0, up to 1, got 1\.5"),
        (Settings(step_size=float("nan")), r"--step-size: .*, got nan"),
        (Settings(mirror_axes=(0, 3)), r"--mirror-axes: must be among 0, 1, 2, got \(0, 3\)"),
        (Settings(device="cpu", precision="fp16"), r"--precision: fp16 is for CUDA; .*, got fp16"),
    ],
)
def test_bad_settings_are_refused(make_model: MakeModel, settings: Settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Predictor(load_model(make_model()), settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization": ("CTNormalization", "none")}, "normalization_schemes must name .*, got 'none'"),
        ({"resampling": "resample_by_magic"}, "resampling_fn_data must name .*, got 'resample_by_magic'"),
        ({"resampling_kwargs": {"orders": 3}}, "normalisation and resampling must be .*'orders'"),
        ({"intensities": ({}, {})}, "normalisation and resampling must be .*KeyError"),
        ({"use_mask_for_norm": (1, 0)}, "normalisation and resampling must be .*AssertionError"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused_before_any_case(
    make_model: MakeModel, change: dict[str, object], message: str
) -> None:
    model = load_model(make_model())
    with pytest.raises(InputError, match=rf"plans\.json: {message}"):
        Predictor(replace(model, plan=replace(model.plan, **change)), CPU)


def test_predict_needs_a_case(make_model: MakeModel, make_case: MakeCase, clicks: ClickSet) -> None:
    session = Predictor(load_model(make_model()), CPU)
    with pytest.raises(PetclickError, match="set_case must come before predict"):
        session.predict(clicks)
    session.set_case(make_case((16, 24, 20)))
    session.reset()
    with pytest.raises(PetclickError, match="set_case must come before predict"):
        session.predict_margin(clicks)


@pytest.mark.usefixtures("click_network")
def test_a_refused_case_leaves_the_last_one(make_model: MakeModel, make_case: MakeCase) -> None:
    case = make_case()
    session = ready(make_model(), case)
    clicks = click_set([[8, 12, 10]], [])
    before = session.predict(clicks)
    with pytest.raises(InputError, match="must have a voxel that is not 0"):
        session.set_case(replace(case, ct_hu=0 * case.ct_hu, pet_suv=0 * case.pet_suv))
    np.testing.assert_array_equal(session.predict(clicks), before)


def test_progress_goes_to_stderr(
    make_model: MakeModel,
    make_case: MakeCase,
    click_network: ClickNetwork,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = make_case((16, 24, 20))
    session = ready(make_model(folds=("0", "1")), case, replace(CPU, mirror_axes=(0, 1), progress=True))
    capsys.readouterr()
    session.predict(click_set([], []))
    output = capsys.readouterr()
    assert output.out == ""
    assert "8/8" in output.err, "one tile, two folds, four mirrored passes"
