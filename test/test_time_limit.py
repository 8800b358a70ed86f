"""Limits of a few seconds, on networks that sleep: never missed, and the better the longer they are."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from networks import CPU, dice
from torch import nn

from petclick import predictor
from petclick.clicks import ClickSet, click_set
from petclick.images import Case
from petclick.model import load_model
from petclick.predictor import Predictor
from petclick.window import Report

ROOT = Path(__file__).resolve().parents[1]
MakeModel = Callable[..., Path]
MakeCase = Callable[..., Case]
WriteCase = Callable[..., Path]

CLICKS = click_set([[8, 12, 10], [30, 40, 20]], [])
PASS_S = 0.02


class Slow(nn.Module):
    """A lesion is where CT is high, with an error of each fold's own; every pass takes its time."""

    def __init__(self, seed: int, pass_s: float = PASS_S) -> None:
        super().__init__()
        self.rng, self.pass_s = np.random.default_rng(seed), pass_s
        self.noise: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pass_s)
        if self.noise is None:
            self.noise = torch.from_numpy(self.rng.standard_normal(x.shape[2:]).astype(np.float32))
        lesion = x[:, 0] - x[:, 0].mean() + 0.5 * self.noise
        return torch.stack((torch.zeros_like(lesion), lesion), 1)


@pytest.fixture
def session(
    make_model: MakeModel, make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Predictor]:
    """Makes predictors of four slow folds, and a case of tens of tiles, set."""
    case = make_case((40, 60, 50), (2.5, 2.0, 3.0))
    model = load_model(make_model(("0", "1", "2", "3"), spacing_mm=case.grid.spacing_zyx_mm))

    def make(pass_s: float = PASS_S, **settings: object) -> Predictor:
        folds = iter(range(4))
        monkeypatch.setattr(predictor, "load_network", lambda *_: Slow(next(folds), pass_s))
        result = Predictor(model, replace(CPU, mirror_axes=(2,), **settings))
        result.set_case(case)
        return result

    return make


def test_limits_are_kept_and_more_time_is_a_better_mask(
    session: Callable[..., Predictor], caplog: pytest.LogCaptureFixture
) -> None:
    whole = session(0.0).predict(CLICKS)
    quality = []
    for limit_s in (0.0, 0.7, 1.4, 2.8, 60.0):
        caplog.clear()
        each = session()
        deadline = time.monotonic() + limit_s
        mask = each.predict(CLICKS, deadline)
        assert limit_s == 0 or time.monotonic() <= deadline
        assert mask.shape == whole.shape
        quality.append(dice(mask, whole))
        limited = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(limited) == (quality[-1] < 1), "one line tells what was left out"
    assert quality == sorted(quality)
    assert quality[0] == 0
    assert quality[0] < quality[3] < quality[4] == 1


def test_a_machine_that_slows_down_halfway_is_in_time(session: Callable[..., Predictor]) -> None:
    each = session()
    start = time.monotonic()
    for fold in each._passes.networks:
        fold.register_forward_pre_hook(
            lambda *_: time.sleep(2 * PASS_S if time.monotonic() > start + 1 else 0)
        )
    each.predict(CLICKS, start + 2)
    assert 1 < time.monotonic() - start <= 2


def test_a_limit_that_ran_out_leaves_a_case_that_can_be_finished(session: Callable[..., Predictor]) -> None:
    whole = session(0.0).predict(CLICKS)
    each = session()
    assert not np.array_equal(each.predict(CLICKS, time.monotonic() + 0.8), whole)
    np.testing.assert_array_equal(each.predict(CLICKS), whole)


def test_the_report_of_a_prediction_without_time_is_not_the_last_ones(
    session: Callable[..., Predictor],
) -> None:
    each = session(0.0)
    each.predict(CLICKS)
    assert each.last_report.ran > 0
    assert not each.predict(CLICKS, time.monotonic() - 1).any()
    assert each.last_report == Report()


def test_the_next_process_goes_on_where_this_one_stopped(
    session: Callable[..., Predictor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petclick.refine.SAVE_S", 0.3)
    whole = session(0.0).predict(CLICKS)
    quality = []
    for _ in range(4):
        each = session(cache=tmp_path)
        quality.append(dice(each.predict(CLICKS, time.monotonic() + 1.2), whole))
    assert quality == sorted(quality)
    assert quality[0] < quality[-1]


def run(
    arguments: list[str], environment: dict[str, str], code: str = "from petclick.cli import main"
) -> tuple[float, subprocess.CompletedProcess[str]]:
    """`inference.py`, after `code`, in a process of its own; and its wall time."""
    command = [sys.executable, "-c", f"{code}; from petclick.program import run; run(main)", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PETCLICK_")}
    start = time.monotonic()
    result = subprocess.run(
        command, cwd=ROOT, env=inherited | environment, capture_output=True, encoding="utf-8", check=False
    )
    return time.monotonic() - start, result


@pytest.fixture
def arguments(
    make_model: MakeModel, make_case: MakeCase, write_case: WriteCase, clicks: ClickSet, tmp_path: Path
) -> list[str]:
    case = make_case((40, 60, 50), (2.5, 2.0, 3.0))
    source = write_case(tmp_path / "in", case, clicks)
    folders = ["--input", str(source), "--output", str(tmp_path / "out")]
    return [
        *folders,
        "--model",
        str(make_model()),
        "--device",
        "cpu",
        "--mirror-axes",
        "none",
        "--quiet",
        "--cache",
        "none",
    ]


def mask_of(tmp_path: Path) -> np.ndarray:
    (path,) = (tmp_path / "out").rglob("*.mha")
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_the_time_before_the_first_line_counts(arguments: list[str], tmp_path: Path) -> None:
    """The process itself is older than the limit once it has read the case; there is a mask all the same."""
    code = "import time; time.sleep(3); from petclick.cli import main"
    _, result = run(arguments, {"PETCLICK_TIME_LIMIT": "2.5"}, code)
    assert result.returncode == 0
    assert result.stderr.splitlines() == ["WARNING time limit: no time for the network, all is background"]
    mask = mask_of(tmp_path)
    assert mask.shape == (40, 60, 50)
    assert not mask.any()


def test_a_step_that_hangs_does_not_hold_the_mask_up(arguments: list[str], tmp_path: Path) -> None:
    code = """
import time
from petclick.cli import main
from petclick.predictor import Predictor
Predictor.set_case = lambda *_: time.sleep(1000)
"""
    wall_s, result = run(arguments, {"PETCLICK_TIME_LIMIT": "6"}, code.strip() + "\nif True: pass")
    assert result.returncode == 0
    assert 4 < wall_s < 60, "not 1000, however busy the machine"
    assert not mask_of(tmp_path).any()


def test_an_error_does_not_cut_off_the_mask_that_is_being_written(
    arguments: list[str], tmp_path: Path
) -> None:
    code = """
import threading, time
from petclick import cli
from petclick.cli import main
from petclick.predictor import Predictor
begun, write_background = threading.Event(), cli.write_background
def write_slowly(job):
    begun.set()
    time.sleep(2)
    write_background(job)
def fail(*_):
    begun.wait()
    raise RuntimeError("too late to matter")
cli.write_background, Predictor.set_case = write_slowly, fail
"""
    _, result = run(arguments, {"PETCLICK_TIME_LIMIT": "4"}, code.strip() + "\nif True: pass")
    assert result.returncode == 0
    mask = mask_of(tmp_path)
    assert mask.shape == (40, 60, 50)
    assert not mask.any()


def test_where_all_fits_the_mask_is_that_without_a_limit(arguments: list[str], tmp_path: Path) -> None:
    _, result = run(arguments, {"PETCLICK_TIME_LIMIT": "500"})
    assert (result.returncode, result.stderr) == (0, "")
    limited = mask_of(tmp_path)
    run(arguments, {})
    np.testing.assert_array_equal(limited, mask_of(tmp_path))
    assert 0 < limited.mean() < 1
