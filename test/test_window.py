"""The sliding window: any prediction, after any others, has the bits of one from scratch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_preprocess import make_plan
from torch import nn
from tqdm import tqdm

from petclick.body import AIR_BELOW_HU, MARGIN_MM, UPTAKE_FROM_SUV, find_body
from petclick.clicks import ClickSet, click_set
from petclick.grid import Grid
from petclick.guidance import GuidanceSpec, encode
from petclick.images import Case
from petclick.kept import KeptTiles, Store
from petclick.model import Model
from petclick.preprocess import BACKGROUND_MARGIN, Prepared, map_clicks, prepare
from petclick.tiles import Passes, all_mirrors
from petclick.window import Report, SlidingWindow

CPU = torch.device("cpu")
SPACING_MM = (6.0, 5.0, 5.0)
PLAN = replace(make_plan(spacing_mm=SPACING_MM), patch_size=(8, 12, 14))
MODEL = Model(Path("model"), PLAN, GuidanceSpec(), (), ())


class Mixer(nn.Module):
    """Logits that depend on all channels, on a voxel's surroundings and on the whole tile."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += len(x)
        near = torch.nn.functional.avg_pool3d(x, 3, 1, 1)
        lesion = (near * torch.tensor([0.3, 1.1, 5.0, -4.0])[:, None, None, None]).sum(1)
        return self.factor * torch.stack((x.mean((1, 2, 3, 4))[:, None, None, None] - lesion, lesion), 1)


def make_passes(*networks: nn.Module) -> Passes:
    return Passes(networks, all_mirrors((2,)), 2, CPU, torch.float32)


def draw(clicks: ClickSet, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.from_numpy(encode(clicks, shape, MODEL.spec))


def predict(
    window: SlidingWindow, clicks: ClickSet, passes: Passes, store: Store | None = None
) -> tuple[torch.Tensor, Report]:
    margin, report = window.predict(clicks, passes, store or KeptTiles(0), draw, tqdm(disable=True))
    return margin.clone(), report


def lay(case: Prepared, skip_air: bool = True) -> SlidingWindow:
    return SlidingWindow(case, MODEL, 0.5, skip_air, CPU)


@pytest.fixture(scope="module")
def body() -> Prepared:
    """A body of noise in air that takes up much of the volume, as in PET/CT."""
    shape, rng = (13, 50, 54), np.random.default_rng(0)
    inside = np.zeros(shape, bool)
    inside[3:, 22:32, 20:36] = True
    ct = np.where(inside, 300 * rng.standard_normal(shape).clip(-1, 1), -1000).astype(np.float32)
    pet = np.where(inside, 6 * rng.random(shape), 0.1).astype(np.float32)
    return prepare(Case(ct, pet, Grid(shape[::-1], SPACING_MM[::-1]), "body"), PLAN, None)


def points(n: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    return st.lists(st.tuples(*(st.integers(0, n - 1) for n in (13, 50, 54))), max_size=n)


@settings(deadline=None, max_examples=8)
@given(
    data=st.data(),
    room=st.sampled_from([0, 5, 17, 10_000]),
    spilled=st.booleans(),
    skip_air=st.booleans(),
)
def test_any_sequence_of_clicks_gives_the_bits_of_a_prediction_from_scratch(
    body: Prepared,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    room: int,
    spilled: bool,
    skip_air: bool,
) -> None:
    """Clicks come, go and move, at the border and in the air too; little room, or much, for kept tiles."""
    passes = make_passes(Mixer(), Mixer(-0.4))
    folder = tmp_path_factory.getbasetemp() if spilled else None
    store = KeptTiles(room * 4 * np.prod(PLAN.patch_size) / 2**30, folder)
    window, tumor, background = lay(body, skip_air), [], []
    for _ in range(data.draw(st.integers(1, 4))):
        step = data.draw(st.sampled_from(["more", "undo", "move", "clear"]))
        if step == "more":
            tumor, background = tumor + data.draw(points(2)), background + data.draw(points(2))
        elif step == "move":
            tumor = [tuple(np.minimum(np.add(p, (0, 1, 3)), (12, 49, 53))) for p in tumor]
        else:
            tumor, background = (tumor[:-1], background) if step == "undo" else ([], [])
        clicks = click_set(tumor, background)
        margin, _ = predict(window, clicks, passes, store)
        assert torch.equal(margin, predict(lay(body, skip_air), clicks, passes)[0])


def test_one_click_runs_the_tiles_that_its_stamp_touches_and_undo_runs_none(body: Prepared) -> None:
    network = Mixer()
    passes, store, window = make_passes(network), KeptTiles(1), lay(body)
    few, more = click_set([], [[8, 29, 28]]), click_set([[9, 27, 30]], [[8, 29, 28]])
    _, first = predict(window, few, passes, store)
    network.passes = 0
    _, second = predict(window, more, passes, store)
    stamps = [draw(clicks, body.shape) for clicks in (few, more)]
    changed = (stamps[0] != stamps[1]).any(0)
    touched = sum(
        bool(changed[tuple(slice(i, i + n) for i, n in zip(corner, PLAN.patch_size, strict=True))].any())
        for corner in window._corners
    )
    assert second.ran == touched < first.ran / 3
    assert network.passes == touched * len(passes.mirrors)
    assert predict(window, few, passes, store)[1].ran == 0
    assert predict(window, more, passes, store)[1].ran == 0


def test_tiles_of_air_are_background_and_all_else_keeps_its_bits(body: Prepared) -> None:
    """Up to the margin around a body nothing changes, for whatever the network makes of air."""
    passes, clicks = make_passes(Mixer()), click_set([[9, 27, 30]], [])
    skipped, report = predict(lay(body), clicks, passes)
    full, _ = predict(lay(body, skip_air=False), clicks, passes)
    assert 0.3 < report.empty / report.total < 0.9
    reach = [int(MARGIN_MM // mm) for mm in SPACING_MM]
    near = np.zeros(body.shape, bool)
    lower, upper = np.argwhere(body.body).min(0), np.argwhere(body.body).max(0) + 1
    near[tuple(slice(max(a - r, 0), b + r) for a, b, r in zip(lower, upper, reach, strict=True))] = True
    assert torch.equal(skipped[torch.from_numpy(near)], full[torch.from_numpy(near)])
    assert (skipped == BACKGROUND_MARGIN).float().mean() > 0.1
    assert not (full == BACKGROUND_MARGIN).any()


def test_a_click_in_the_air_runs_its_tiles(body: Prepared) -> None:
    passes, window = make_passes(Mixer()), lay(body)
    _, without = predict(window, click_set([], []), passes)
    margin, report = predict(window, click_set([[2, 3, 3]], []), passes)
    assert report.empty < without.empty
    assert margin[2, 3, 3] != BACKGROUND_MARGIN
    assert (
        predict(window, click_set([], []), passes)[0] == predict(lay(body), click_set([], []), passes)[0]
    ).all()


def test_a_volume_smaller_than_a_tile_sees_zeros_around_its_images_and_stamps() -> None:
    seen: list[torch.Tensor] = []

    class Recorder(Mixer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x[0])
            return super().forward(x)

    case = Case(*(np.ones((5, 10, 7), np.float32),) * 2, Grid((7, 10, 5), SPACING_MM[::-1]), "small")
    prepared = prepare(case, PLAN, None)
    clicks = click_set([[0, 4, 6]], [])
    margin, _ = predict(lay(prepared), clicks, replace(make_passes(Recorder()), mirrors=((),)))
    assert margin.shape == (5, 10, 7)
    expected = torch.zeros(4, 8, 12, 14)
    expected[:2, 1:6, 1:11, 3:10] = torch.from_numpy(prepared.image)
    expected[2:, 1:6, 1:11, 3:10] = draw(map_clicks(clicks, prepared), (5, 10, 7))
    assert torch.equal(seen[0], expected)


def test_body_is_what_is_denser_than_air_or_takes_up_tracer() -> None:
    ct = np.array([-1000, AIR_BELOW_HU, -1000, 40], np.float32)
    pet = np.array([0.1, 0.0, UPTAKE_FROM_SUV, 3], np.float32)
    np.testing.assert_array_equal(find_body(ct, pet), [False, True, True, True])
