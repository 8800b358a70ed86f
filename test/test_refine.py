"""The sliding window under a limit: what is done counts, is never wasted, and is exact once all is done."""

from dataclasses import replace

import pytest
import torch
from test_window import Mixer, body, draw, lay, make_passes, predict
from tqdm import tqdm

from petclick.clicks import ClickSet, click_set
from petclick.clock import Clock
from petclick.kept import KeptTiles, Store, TileKey
from petclick.preprocess import BACKGROUND_MARGIN, Prepared
from petclick.refine import TileSum, refine
from petclick.tiles import Passes, all_mirrors
from petclick.window import Report, SlidingWindow

__all__ = ["body"]  # a fixture


class Allowed(Clock):
    """A clock that lets so many batches through."""

    def __init__(self, n: int) -> None:
        super().__init__(float("inf"), 0)
        self.left = n

    def fits(self) -> bool:
        self.left -= 1
        return self.left >= 0


def limited(
    window: SlidingWindow, clicks: ClickSet, passes: Passes, store: Store, n: int
) -> tuple[torch.Tensor, Report]:
    margin, report = window.predict(clicks, passes, store, draw, tqdm(disable=True), Allowed(n))
    return margin.clone(), report


def test_a_limit_that_allows_everything_changes_no_bit(body: Prepared) -> None:
    passes, clicks = make_passes(Mixer(), Mixer(-0.4)), click_set([[9, 27, 30]], [[8, 29, 28]])
    passes = replace(passes, mirrors=all_mirrors((0, 2)))
    margin, report = limited(lay(body), clicks, passes, KeptTiles(1), 10**6)
    assert torch.equal(margin, predict(lay(body), clicks, passes)[0])
    assert set(report.batches) == {4}
    assert report.ran == report.total - report.empty == len(report.batches)


def test_more_time_is_more_passes_and_a_margin_closer_to_the_whole(body: Prepared) -> None:
    """Networks that are noisy versions of one another, as folds are."""
    passes, clicks = make_passes(*(Mixer(f) for f in (0.8, 1.3, 0.9, 1.0))), click_set([[9, 27, 30]], [])
    whole, report = predict(lay(body), clicks, passes)
    n_tiles = report.ran
    errors = []
    for n in (0, 1, n_tiles // 2, n_tiles, 3 * n_tiles // 2, 3 * n_tiles, 4 * n_tiles):
        margin, report = limited(lay(body), clicks, passes, KeptTiles(0), n)
        assert sum(report.batches) == n
        assert margin.isfinite().all()
        errors.append(float((margin - whole).abs().mean()))
        if n == 0:
            assert (margin == BACKGROUND_MARGIN).all()
        if n >= n_tiles // 2:
            assert not (margin[torch.from_numpy(body.body)] == BACKGROUND_MARGIN).any(), "all is covered"
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_the_first_tile_is_one_with_a_click(body: Prepared) -> None:
    margin, _ = limited(lay(body), click_set([[9, 30, 25]], []), make_passes(Mixer()), KeptTiles(0), 1)
    assert margin[9, 30, 25] != BACKGROUND_MARGIN


def test_what_a_limit_cut_short_goes_on_where_it_stopped(
    body: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither taken for the whole, nor run again."""
    monkeypatch.setattr("petclick.refine.SAVE_S", 60)  # however busy the machine
    networks = [Mixer(), Mixer(-0.4)]
    passes, store, clicks = make_passes(*networks), KeptTiles(1), click_set([[9, 27, 30]], [])
    window = lay(body)
    whole, report = predict(lay(body), clicks, passes)
    n_tiles = report.ran
    for network in networks:
        network.passes = 0
    left = 2 * n_tiles
    for n in (n_tiles // 2, n_tiles // 2, 0, n_tiles // 3, 10 * n_tiles):
        margin, report = limited(window, clicks, passes, store, n)
        assert torch.equal(margin, whole) == (n > n_tiles)
        assert report.ran == min(n, left), "tiles that got a batch of this prediction, each one of them"
        left -= report.ran
    assert sum(network.passes for network in networks) == n_tiles * 2 * 2
    margin, report = limited(window, clicks, passes, store, 0)
    assert torch.equal(margin, whole)
    assert report.ran == 0


def test_without_a_limit_what_was_cut_short_is_run_whole(body: Prepared) -> None:
    passes, store, clicks = make_passes(Mixer(), Mixer(-0.4)), KeptTiles(1), click_set([], [])
    window = lay(body)
    for n in (0, 30):
        limited(window, clicks, passes, store, n)
        margin, _ = predict(window, clicks, passes, store)
        assert torch.equal(margin, predict(lay(body), clicks, passes)[0])
        store.clear()


def test_a_store_that_promises_what_it_does_not_have_leaves_no_hole(body: Prepared) -> None:
    class Forgetful(KeptTiles):
        def __contains__(self, key: TileKey) -> bool:
            return True

        def find(self, key: TileKey) -> torch.Tensor | None:
            return None

    passes, clicks = make_passes(Mixer()), click_set([[9, 27, 30]], [])
    whole, _ = predict(lay(body), clicks, passes)
    assert torch.equal(predict(lay(body), clicks, passes, Forgetful(1))[0], whole)
    assert torch.equal(limited(lay(body), clicks, passes, Forgetful(1), 10**6)[0], whole)


def test_the_store_is_not_asked_for_what_has_just_been_run(body: Prepared) -> None:
    class Asked(KeptTiles):
        def find(self, key: TileKey) -> torch.Tensor | None:
            keys.append(key)
            return super().find(key)

    keys: list[TileKey] = []
    passes, clicks, window, store = make_passes(Mixer()), click_set([], []), lay(body), Asked(1)
    margin, report = limited(window, clicks, passes, store, 10**6)
    assert report.ran > 0
    assert keys == []
    again, _ = predict(lay(body), clicks, passes, store)
    assert torch.equal(again, margin)
    assert len(keys) == report.ran, "each once"


@pytest.mark.parametrize(
    "held",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA device"),
            ],
        ),
    ],
)
def test_a_resumed_sum_has_the_bits_of_one_from_scratch_wherever_tiles_are_held(held: str) -> None:
    """Stores keep sums on the host; images and results may lie on the GPU."""
    passes = make_passes(Mixer(), Mixer(-0.4))
    key = TileKey((0, 0, 0), (), passes.work)
    tile = torch.rand((4, 8, 12, 14), generator=torch.Generator().manual_seed(0))
    order = [(number, [key.corner]) for number in range(len(passes.batches))]

    def run(store: Store, n: int) -> TileSum:
        tiles = {key.corner: key}
        return refine(tiles, order, passes, store, lambda _: tile.to(held), Allowed(n), lambda _: None)[
            key.corner
        ]

    store = KeptTiles(1)
    assert run(store, 1).n_batches == 1
    resumed, whole = run(store, 9), run(KeptTiles(1), 9)
    assert resumed.n_batches == whole.n_batches == 2
    assert torch.equal(resumed.total.cpu(), whole.total.cpu())


def test_a_resumed_sum_grows_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's device without memory stands for one that the inputs are not on."""

    class Margin:
        def to(self, device: torch.device) -> torch.Tensor:
            went_to.append(device.type)
            return torch.ones(8, 12, 14, device=device)

    class Elsewhere(KeptTiles):
        def find(self, key: TileKey) -> torch.Tensor | None:
            return torch.zeros(8, 12, 14, device="meta") if key.n_batches == 1 else None

    went_to: list[str] = []
    passes = make_passes(Mixer(), Mixer(-0.4))
    monkeypatch.setattr("petclick.refine.run_batches", lambda *_: [[Margin(), Margin()]])
    key = TileKey((0, 0, 0), (), passes.work)
    order, tile = [(1, [key.corner])], torch.zeros(4, 8, 12, 14)
    store = Elsewhere(0)
    sums = refine({key.corner: key}, order, passes, store, lambda _: tile, Allowed(1), lambda _: None)
    assert sums[key.corner].n_batches == 2
    assert went_to == ["meta", "meta"]
