from pathlib import Path

import numpy as np
import pytest
from networks import MakeCase

from petclick.clicks import click_set
from petclick.errors import InputError
from petclick.images import write_mask
from training.agreement import agreement, dice_of_pairs, table
from training.phantoms import write_challenge_case


def test_dice_of_each_pair() -> None:
    a, b = np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8)
    a[0, 0, :4] = 1
    b[0, 0, 2:5] = 1
    assert dice_of_pairs([a, b]) == pytest.approx(np.array([[1, 4 / 7], [4 / 7, 1]]))


def test_mean_over_the_cases_that_all_evaluations_hold(make_case: MakeCase, tmp_path: Path) -> None:
    case = make_case()
    truth = np.zeros(case.ct_hu.shape, np.uint8)
    truth[1, 1, :4] = 1
    write_challenge_case(case, truth, click_set([], []), tmp_path / "cases" / "one")
    write_challenge_case(case, truth, click_set([], []), tmp_path / "cases" / "two")
    half, other = np.zeros_like(truth), np.zeros_like(truth)
    half[1, 1, :2] = 1
    other[1, 1, 2:4] = 1
    for name, mask in (("x", half), ("y", other)):
        write_mask(mask, case.grid, tmp_path / name / "masks" / "one" / "network" / "step-03.mha")
    methods = [(tmp_path / "x", "network"), (tmp_path / "y", "network")]
    matrix, n_cases = agreement(tmp_path / "cases", methods, 3)
    assert n_cases == 1
    assert matrix == pytest.approx(np.array([[1, 2 / 3, 2 / 3], [2 / 3, 1, 0], [2 / 3, 0, 1]]))
    assert "| x | 0.667 | 1.000 | 0.000 |" in table(matrix, ["x", "y"])
    with pytest.raises(InputError, match="must hold a case with a mask of step 4 in each evaluation"):
        agreement(tmp_path / "cases", methods, 4)
