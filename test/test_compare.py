"""Paired comparison of two metrics.csv, and the intervals it rests on."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from petclick.__main__ import main
from petclick.errors import InputError
from petclick.evaluation.compare import compare
from petclick.evaluation.figures import bootstrap_mean, case_figures, figure_table, ranks
from petclick.evaluation.results import Failure, Result, StepResult, append_results

NAN = math.nan
STEP = StepResult(
    **{"case": "a", "fold": "", "method": "network", "protocol": "autopet4", "step": 0},
    **{"tumor_clicks": 0, "background_clicks": 0, "truth_ml": 4.0, "dice": 0.5, "fpv_ml": 2.0, "fnv_ml": 1.0},
    **{"tp": 1, "fp": 1, "fn": 1, "dmm_f1": 0.5, "surface_dice": 0.75, "hd95_mm": 8.0},
    **{"volume_error_ml": -3.0, "tumor_obeyed": NAN, "background_obeyed": NAN},
)
DICE_B_MINUS_A = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)


def steps(**changes: object) -> list[StepResult]:
    """All of autopet4's steps, equal but for their numbers."""
    return [replace(STEP, step=number, **changes) for number in range(11)]  # type: ignore[arg-type]


def write(path: Path, rows: list[StepResult]) -> Path:
    append_results(path, rows)
    return path


def six_cases(path: Path, sign: float, **changes: object) -> Path:
    """Dice 0.5 and what A lacks of B, in six cases."""
    rows: list[StepResult] = []
    for name, difference in zip("abcdef", DICE_B_MINUS_A, strict=True):
        rows += steps(case=name, dice=0.5 + sign * difference, **changes)
    return write(path, rows)


def test_hand_computed(tmp_path: Path) -> None:
    a, b = six_cases(tmp_path / "a.csv", 0), six_cases(tmp_path / "b.csv", 1, fpv_ml=2.5)
    result = compare(a, b)
    assert result.n_cases == 6
    found = {each.figure.name: each for each in result.figures}
    dice = found["dice_last"]
    assert (dice.a, dice.b) == (pytest.approx(0.5), pytest.approx(0.535))
    assert dice.difference.value == pytest.approx(0.035)
    assert 0.02 < dice.difference.low < 0.025  # 0.035 - 1.96 * 0.0171 / sqrt(6) = 0.0213
    assert 0.045 < dice.difference.high < 0.05
    assert dice.p == pytest.approx(2 / 2**6)  # all of six differences have one sign
    assert dice.better == "B"
    assert found["dice_auc"].difference.value == pytest.approx(0.35)
    assert found["fpv_ml_last"].difference.value == pytest.approx(0.5)
    assert found["fpv_ml_last"].better == "A"  # less is better
    assert found["fnv_ml_last"].p == 1
    assert found["fnv_ml_last"].better == ""
    assert "tumor_obeyed_last" not in found  # defined in no case
    # B is first in Dice (weight 0.5), A in FPV (0.25), FNV is a tie (0.25)
    assert result.ranks == (
        pytest.approx(0.5 * 2 + 0.25 * 1 + 0.25 * 1.5),
        pytest.approx(0.5 * 1 + 0.25 * 2 + 0.25 * 1.5),
    )


def test_turned_around_the_signs_change(tmp_path: Path) -> None:
    a, b = six_cases(tmp_path / "a.csv", 0), six_cases(tmp_path / "b.csv", 1)
    there, back = compare(a, b), compare(b, a)
    for one, other in zip(there.figures, back.figures, strict=True):
        assert one.difference.value == pytest.approx(-other.difference.value)
        assert one.difference.low == pytest.approx(-other.difference.high)
        assert one.p == other.p
        assert {one.better, other.better} in ({"A", "B"}, {""})


def test_only_common_cases_and_defined_figures_count(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", [*steps(case="x", dice=0.1), *steps(case="y", dice=NAN), *steps(case="z")])
    b = write(tmp_path / "b.csv", [*steps(case="x", dice=0.4), *steps(case="y", dice=0.9), *steps(case="v")])
    result = compare(a, b)
    assert result.n_cases == 2
    (dice,) = (each for each in result.figures if each.figure.name == "dice_last")
    assert dice.difference.n == 1
    assert (dice.a, dice.b) == (0.1, 0.4)
    assert dice.better == ""


def test_methods_of_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = six_cases(tmp_path / "a.csv", 1)
    six_cases(file, -1, method="suv4")
    main(["compare", str(file), str(file), "--method", "suv4,network"])
    out = capsys.readouterr().out
    assert out.startswith(f"A: {file} (suv4)\nB: {file} (network)\n")
    assert "| Dice, last step | 6 | 0.465 | 0.535 | +0.070 |" in out
    assert "By the challenge's ranking, B is better (mean rank 1.25 against 1.75)." in out
    assert "B is better in 2 (Dice, last step, AUC-Dice) with p < 0.05" in out
    assert "A in none" in out
    assert compare(file, file).ranks == (1.5, 1.5)  # the network with itself


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", steps())
    with pytest.raises(InputError, match="must have the protocol and steps of"):
        compare(a, write(tmp_path / "v.csv", [replace(STEP, protocol="autopet5")]))
    with pytest.raises(InputError, match="must have the protocol and steps of"):
        compare(a, write(tmp_path / "short.csv", steps()[:5]))
    with pytest.raises(InputError, match="must have cases in common"):
        compare(a, write(tmp_path / "other.csv", steps(case="b")))
    with pytest.raises(InputError, match="must have the method suv4, got only network"):
        compare(a, a, ("suv4", None))
    with pytest.raises(InputError, match=r"must be a metrics\.csv with scored cases"):
        compare(a, tmp_path / "missing.csv")
    (tmp_path / "bad.csv").write_text("case,dice\na,0.5\n")
    with pytest.raises(InputError, match=r"must have the columns case, fold, .* got none of fold; method"):
        compare(a, tmp_path / "bad.csv")
    append_results(tmp_path / "failed.csv", [Failure("a", "", "network", "autopet4", "no mask")])
    with pytest.raises(InputError, match=r"must be a metrics\.csv with scored cases"):
        compare(a, tmp_path / "failed.csv")


def test_interval_is_the_percentile_bootstrap() -> None:
    values = np.random.default_rng(5).gamma(2, 3, 40)
    found = bootstrap_mean([*values, NAN])
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(8)
    ).confidence_interval
    assert found.n == 40
    assert found.value == pytest.approx(values.mean())
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.high, abs=0.03 * width)
    assert bootstrap_mean(values[::-1]).low == pytest.approx(found.low, abs=0.03 * width)


def test_interval_of_little() -> None:
    assert bootstrap_mean([3.0, 3.0]).low == bootstrap_mean([3.0]).high == 3.0
    assert bootstrap_mean([NAN]).n == 0
    assert math.isnan(bootstrap_mean([]).value)


def test_areas_need_all_steps() -> None:
    whole = case_figures(steps(dice=0.25))
    assert whole["dice_auc"] == pytest.approx(2.5)
    assert whole["volume_error_ml_last"] == 3.0
    part = case_figures(steps()[::5])
    assert math.isnan(part["dice_auc"])
    assert part["dice_last"] == 0.5


def test_ranks_are_over_the_cases_that_all_methods_have() -> None:
    rows: list[Result] = [*steps(case="x"), *steps(case="x", method="suv4", dice=0.6)]
    rows += steps(case="y", dice=1.0)  # the other has failed there
    table = figure_table(rows)
    assert list(table) == ["network", "suv4"]
    # Dice has half of the weight; the rest are ties
    assert ranks(table, "autopet4") == {"network": 0.5 * 2 + 0.5 * 1.5, "suv4": 0.5 * 1 + 0.5 * 1.5}
    assert ranks({"network": table["network"]}, "autopet4") == {}
