"""Margins kept on disk, and post-processing chosen on other folds' cases."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from petclick.__main__ import main
from petclick.clicks import click_set
from petclick.errors import InputError
from petclick.evaluation.cases import find_cases, read_truth_case
from petclick.evaluation.margins import keep_margins, margins_file, read_margins
from petclick.evaluation.protocol import first_clicks
from petclick.evaluation.tuning import (
    DICE_PER_ML,
    FIGURES,
    Tuning,
    candidates,
    choose,
    group_of,
    markdown,
    nested,
    score_candidates,
    spec_text,
    worth,
    write_tuning,
)
from petclick.evaluation.workers import Network
from petclick.images import Case, write_image
from petclick.metrics import score
from petclick.model import load_model
from petclick.postprocess import PostprocessSpec, postprocess
from petclick.predictor import Predictor, Settings
from petclick.records import from_mapping

CUT = PostprocessSpec(drop_background=True, split=True, grow=True)


@pytest.fixture
def data(
    tmp_path: Path,
    make_model: Callable[..., Path],
    make_case: Callable[..., Case],
    write_case: Callable[..., Path],
) -> Path:
    """Four cases in two folds (splits.json) and a model of two folds, in tmp_path."""
    make_model(folds=("0", "1"), guidance={})
    for number, name in enumerate(("a_0", "a_1", "b_0", "b_1")):
        case = make_case(shape_zyx=(15, 21, 18), seed=number)
        clicks = click_set([[7, 10, 9], [3, 4, 5]], [[12, 3, 15], [1, 18, 2]])
        folder = write_case(tmp_path / "cases" / name, case, clicks)
        truth = np.zeros(case.ct_hu.shape, np.uint8)
        truth[5:9, 8:13, 7:12] = 1
        (folder / "truth").mkdir()
        write_image(truth, case.grid, folder / "truth" / "patient.mha")
    splits = [{"val": ["a_0", "b_0"]}, {"val": ["a_1", "b_1"]}]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    return tmp_path


FOLD_OF = {"a_0": "0", "b_0": "0", "a_1": "1", "b_1": "1"}


def test_kept_margins_give_the_predictors_masks_and_are_made_once(data: Path) -> None:
    cases = find_cases(data / "cases")
    network = Network(data / "model", mirror_axes=())
    out = data / "margins"
    keep_margins(cases, network, FOLD_OF, (0, 1, 2), out, progress=False)
    for case in cases:
        found = read_truth_case(case)
        model = load_model(data / "model", (FOLD_OF[case.name],))
        predictor = Predictor(model, Settings(mirror_axes=()))
        predictor.set_case(found.case)
        margins = read_margins(out, case.name)
        assert [*margins] == [0, 1, 2]
        for step, margin in margins.items():
            mask = predictor.predict(first_clicks(found.clicks, step))
            assert 0 < mask.mean() < 1
            np.testing.assert_array_equal(mask, margin > 0)
    kept = {case.name: margins_file(out, case.name).stat().st_mtime_ns for case in cases}
    margins_file(out, "b_0").unlink()  # as if killed before it
    (data / "model" / "guidance.json").write_text('{"postprocess": {"grow": true}}')  # made no difference
    keep_margins(cases, network, FOLD_OF, (0, 1, 2), out, progress=False)
    again = {case.name: margins_file(out, case.name).stat().st_mtime_ns for case in cases}
    assert {name for name in kept if kept[name] != again[name]} == {"b_0"}
    assert not [*out.glob(".*")]
    (data / "model" / "guidance.json").write_text('{"radius_vox": 3}')
    with pytest.raises(InputError, match="another value for guidance"):
        keep_margins(cases, network, FOLD_OF, (0, 1, 2), out, progress=False)


def test_candidates_are_scored_as_masks_are_in_any_number_of_processes(data: Path) -> None:
    cases = find_cases(data / "cases")
    keep_margins(cases, Network(data / "model", mirror_axes=()), FOLD_OF, (0, 2), data / "m", progress=False)
    specs = (PostprocessSpec(), CUT)
    tuning = score_candidates(specs, cases, FOLD_OF, data / "m", progress=False)
    assert (tuning.cases, tuning.folds) == (("a_0", "a_1", "b_0", "b_1"), ("0", "1", "0", "1"))
    assert tuning.steps == (0, 2)
    found = read_truth_case(cases[2])
    clicks = first_clicks(found.clicks, 2)
    margin = read_margins(data / "m", "b_0")[2]
    mask = postprocess(margin, found.case.pet_suv, clicks, found.case.grid, CUT)
    expected = score(found.truth, mask, found.case.grid.voxel_ml)
    row = dict(zip(FIGURES, tuning.scores[1, 2, 1], strict=True))
    assert (row["dice"], row["fpv_ml"], row["fnv_ml"], row["dmm_f1"]) == (
        expected.dice,
        expected.fpv_ml,
        expected.fnv_ml,
        expected.dmm_f1,
    )
    assert row["tumor_obeyed"] == mask[tuple(clicks.of_kind("tumor").T)].mean() == 1
    assert row["background_obeyed"] == 1 - mask[tuple(clicks.of_kind("background").T)].mean()
    assert np.isnan(tuning.scores[:, :, 0, 4:]).all()  # no clicks, none to obey
    parallel = score_candidates(specs, cases, FOLD_OF, data / "m", jobs=2, progress=False)
    np.testing.assert_array_equal(parallel.scores, tuning.scores)


def made(dice: list[list[float]], names: tuple[str, ...], folds: tuple[str, ...], **others: object) -> Tuning:
    """Specs (rows) on cases (columns) at one step; all else is perfect unless `others` says so."""
    scores = np.zeros((*np.shape(dice), 1, len(FIGURES)))
    scores[..., 4:] = 1
    scores[..., 0, 0] = dice
    for name, values in others.items():
        scores[..., 0, FIGURES.index(name)] = values
    specs = tuple(PostprocessSpec(suv_floor=float(i)) for i in range(len(dice)))
    return Tuning(specs, names, folds, (10,), scores)


def test_worth_is_dice_less_false_volume_averaged_by_group() -> None:
    names = ("STS_1", "STS_2", "phantom_fdg_1")
    assert [*map(group_of, names)] == ["STS", "STS", "phantom"]
    tuning = made([[0.5, 0.7, 0.2]], names, ("0", "1", "1"), fpv_ml=[[0.0, 30.0, 10.0]])
    everything = np.ones(3, bool)
    expected = (0.6 + 0.2) / 2 - DICE_PER_ML * (15 + 10) / 2
    assert worth(tuning, everything) == pytest.approx([expected])
    assert worth(tuning, np.array([True, True, False])) == pytest.approx([0.6 - DICE_PER_ML * 15])


def test_specs_that_disobey_clicks_are_not_chosen() -> None:
    names, everything = ("a_1", "a_2"), np.ones(2, bool)
    tuning = made(
        [[0.9, 0.9], [0.8, 0.8], [0.7, 0.7]],
        names,
        ("0", "1"),
        background_obeyed=[[1.0, 0.97], [1.0, np.nan], [1.0, 1.0]],
    )
    assert choose(tuning, everything) == 1
    assert worth(tuning, everything)[0] == -np.inf


def test_where_no_spec_obeys_the_clicks_none_is_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Fold 1's case is obeyed by no spec, so that fold 0 has no choice, nor have all cases together.
    disobeyed = [[1.0, 0.9], [1.0, 0.95]]
    tuning = made([[0.2, 0.4], [0.6, 0.8]], ("a_1", "a_2"), ("0", "1"), tumor_obeyed=disobeyed)
    everything = np.ones(2, bool)
    assert choose(tuning, everything) is None
    choices, scores = nested(tuning)
    assert choices == {"0": None, "1": 1}
    np.testing.assert_array_equal(scores[:, 0, 0], [0.2, 0.8])  # the first spec where there is no choice
    (tmp_path / "postprocess.json").write_text("of an earlier run")
    write_tuning(tuning, tmp_path)
    assert not (tmp_path / "postprocess.json").exists()
    told = "no candidate obeys 0.99 of the clicks, so none is chosen"
    assert f"postprocess.json: {told}" in caplog.text
    table = (tmp_path / "tuning.md").read_text("utf-8")
    assert f"Fold 0: {told}." in table
    assert "Fold 1: suv_floor 1." in table
    assert table.endswith(f"On all cases: {told}.\n")


def test_a_folds_choice_ignores_its_own_cases() -> None:
    # Spec 0 is best for fold 0's case alone, spec 1 for the others, spec 2 for nobody.
    tuning = made([[0.9, 0.1, 0.1], [0.2, 0.8, 0.6], [0.1, 0.1, 0.1]], ("a_1", "a_2", "a_3"), ("0", "1", "2"))
    choices, scores = nested(tuning)
    assert choices == {"0": 1, "1": 0, "2": 0}
    np.testing.assert_array_equal(scores[:, 0, 0], [0.2, 0.1, 0.1])
    assert "| **chosen on the other folds** | 0.133 | 0.00 | 0.00 | 0.000 | 1.000 | 1.000 |" in markdown(
        tuning
    )
    assert "Fold 0: suv_floor 1." in markdown(tuning)
    without = made([[0.9, 0.1]], ("a_1", "a_2"), ("", ""))
    assert "chosen" not in markdown(without)


def test_candidates_begin_with_none_and_come_once() -> None:
    specs = candidates()
    assert specs[0] == PostprocessSpec()
    assert len({*specs}) == len(specs)
    texts = [spec_text(spec) for spec in specs]
    assert len({*texts}) == len(texts)
    assert texts[0] == "none"
    assert spec_text(PostprocessSpec(local_variance=8.0, grow=True)) == "local_variance 8, local_mm 20, grow"
    for switch in ("split", "grow", "drop_background", "suv_floor 1.5", "close_mm 30", "min_total_ml 6"):
        assert switch in texts


def test_the_command_writes_table_and_choice(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data / "tuned"
    main(
        [
            *("tune", str(data / "cases"), "--out", str(out), "--model", str(data / "model")),
            *("--cross-validated", str(data / "splits.json"), "--mirror-axes", "none", "--steps", "0,2"),
        ]
    )
    printed = capsys.readouterr().out
    assert (out / "tuning.md").read_text("utf-8") == printed
    assert "a, 2 cases:" in printed
    assert "b, 2 cases:" in printed
    assert "| steps of `postprocess` | Dice at 0 | Dice at 2 | FPV at 2 (ml) |" in printed
    chosen = from_mapping(PostprocessSpec, json.loads((out / "postprocess.json").read_text()), "file")
    assert chosen in candidates()
    assert f"On all cases: {spec_text(chosen)}." in printed
