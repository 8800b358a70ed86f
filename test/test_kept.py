"""Results of tiles from one prediction to the next: a folder that cannot be used costs them, and no job."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import CPU, ready

from petclick.clicks import click_set
from petclick.images import Case
from petclick.kept import KeptTiles, TileKey

KEY = TileKey((0, 0, 0), (), (1, ((),), 1, "cpu"))
MARGIN = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize("spilled", [False, True])
def test_what_is_kept_is_a_copy(tmp_path: Path, spilled: bool) -> None:
    store = KeptTiles(1e-6, tmp_path if spilled else None)
    margin = MARGIN.clone()
    store.keep(KEY, margin)
    margin.zero_()
    found = store.find(KEY)
    assert found is not None
    assert torch.equal(found, MARGIN)
    assert list(tmp_path.iterdir()) == [], "the file has no name"


@pytest.mark.parametrize(
    ("folder", "limit_gib"), [("missing", 1e-6), ("", 1e9), ("", 1e12)], ids=["missing", "no room", "absurd"]
)
def test_a_folder_that_cannot_be_used_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str, limit_gib: float
) -> None:
    store = KeptTiles(limit_gib, tmp_path / folder)
    for _ in range(2):
        store.keep(KEY, MARGIN)
        assert store.find(KEY) is None
        store.clear()
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / folder}: results of tiles are not kept (")


def test_a_job_goes_on_without_the_folder(
    make_model: Callable[..., Path], make_case: Callable[..., Case], tmp_path: Path
) -> None:
    case, model, clicks = make_case((16, 24, 20)), make_model(), click_set([[8, 12, 10]], [])
    margin = ready(model, case, replace(CPU, keep_dir=tmp_path / "missing")).predict_margin(clicks)
    assert torch.equal(margin, ready(model, case).predict_margin(clicks))
