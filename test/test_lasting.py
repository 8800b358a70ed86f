"""A second process with the same images runs only what changed, and nothing else is taken for it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from networks import CPU, ClickNetwork

from petclick import predictor
from petclick.cache import FRAME_BYTES
from petclick.clicks import ClickSet, click_set
from petclick.images import Case
from petclick.lasting import surroundings
from petclick.model import load_model
from petclick.predictor import Predictor, Settings

MakeModel = Callable[..., Path]
MakeCase = Callable[..., Case]

FEW, MORE = click_set([[8, 12, 10]], []), click_set([[8, 12, 10], [1, 1, 1]], [])
N_TILES = 8
"""Of the fixture's case; MORE's second click is in one of them."""


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> ClickNetwork:
    network = ClickNetwork()
    monkeypatch.setattr(predictor, "load_network", lambda *_: network)
    return network


def cached(folder: Path, **others: object) -> Settings:
    return replace(CPU, cache=folder, **others)


def run(model: Path, case: Case, clicks: ClickSet, settings: Settings) -> npt.NDArray[np.float32]:
    """The margin in what stands for a new process: nothing but the folder is shared."""
    session = Predictor(load_model(model), settings)
    session.set_case(case)
    return session.predict_margin(clicks).numpy()


def runs(network: ClickNetwork) -> int:
    """How many tiles were run since this was last asked."""
    n = len(network.batches)
    network.batches.clear()
    return n


def test_only_what_changed_is_run_again(
    make_model: MakeModel, make_case: MakeCase, network: ClickNetwork, tmp_path: Path
) -> None:
    case, model, settings = make_case((20, 30, 26)), make_model(), cached(tmp_path / "c")
    run(model, case, FEW, settings)
    assert runs(network) == N_TILES
    renamed = replace(case, name="another")
    margin = run(model, renamed, MORE, settings)
    assert runs(network) == 1
    np.testing.assert_array_equal(margin, run(model, case, MORE, CPU))
    runs(network)
    run(model, case, FEW, settings)
    assert runs(network) == 0, "undo"


def test_what_the_last_prediction_used_makes_room_for_this_one(
    make_model: MakeModel, make_case: MakeCase, network: ClickNetwork, tmp_path: Path
) -> None:
    """In one process, as in the next: MORE's own tile takes the place of the one that it replaces."""
    case, model = make_case((20, 30, 26)), make_model()
    tile_bytes = FRAME_BYTES + 4 * 16 * 24 * 20
    settings = cached(tmp_path / "c", cache_gib=4 * tile_bytes / 2**30)
    session = Predictor(load_model(model), settings)
    session.set_case(case)
    for clicks in (FEW, MORE):
        session.predict_margin(clicks)
        assert len(list((tmp_path / "c").iterdir())) == 4
    assert runs(network) == N_TILES + 1
    run(model, case, MORE, settings)
    assert runs(network) == N_TILES - 4


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_processes_gives_the_bits_of_a_cold_run(
    make_model: MakeModel, make_case: MakeCase, tmp_path: Path, seed: int
) -> None:
    """With random weights, and in between a file that is damaged or gone."""
    case, model, folder = make_case((20, 30, 26)), make_model(), tmp_path / "c"
    rng = np.random.default_rng(seed)
    for _ in range(3):
        tumor, background = (rng.integers(0, (20, 30, 26), (rng.integers(3), 3)) for _ in range(2))
        clicks = click_set(tumor, background)
        margin = run(model, case, clicks, cached(folder))
        np.testing.assert_array_equal(margin, run(model, case, clicks, CPU))
        for file in rng.choice(sorted(folder.iterdir()), 2, replace=False):
            if rng.random() < 0.5:
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[:-1] + b"x")


def test_other_images_settings_or_weights_are_other_results(
    make_model: MakeModel, make_case: MakeCase, network: ClickNetwork, tmp_path: Path
) -> None:
    case, folder = make_case((16, 24, 20), (2.5, 2, 3)), tmp_path / "c"  # one tile
    model = make_model(folds=("0", "1"))
    pet = case.pet_suv.copy()
    pet[8, 12, 10] += 0.01
    settings = cached(folder)
    run(model, case, FEW, settings)
    runs(network)
    for other_case, other_model, other in (
        (replace(case, pet_suv=pet), model, settings),
        (case, make_model(name="fewer"), settings),
        (case, make_model(("0", "1"), {"radius_vox": 3}, name="guided"), settings),
        (case, make_model(("0", "1"), change=lambda c: c.update(current_epoch=9), name="newer"), settings),
        (case, model, replace(settings, mirror_axes=(0,))),
        (case, model, replace(settings, mirror_axes=(1,))),
        (case, model, replace(settings, precision="bf16")),
    ):
        run(other_model, other_case, FEW, other)
        assert runs(network) > 0
        run(other_model, other_case, FEW, other)
        assert runs(network) == 0


def test_another_number_of_threads_or_a_switch_are_other_surroundings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("cpu")
    here = surroundings(device)
    assert surroundings(device) == here
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert surroundings(device) != here
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "threads: 64")
    assert surroundings(device) != here


def test_a_folder_that_cannot_be_used_is_a_warning(
    make_model: MakeModel, make_case: MakeCase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    case, model = make_case(), make_model()
    margin = run(model, case, FEW, cached(tmp_path / "file" / "c"))
    np.testing.assert_array_equal(margin, run(model, case, FEW, CPU))
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
