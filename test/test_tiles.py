"""Sliding window: tiles cover the volume, passes undo their flips, and sums are a float32 weighted mean."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from petclick.tiles import Accumulator, Passes, all_mirrors, pad_to_patch, predict_tile, tile_corners

PATCH = (6, 10, 8)


class Ramp(nn.Module):
    """Logits that depend on the place in the tile as well as on the input, so that a lost flip shows."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        place = torch.arange(x[0, 0].numel(), dtype=x.dtype).reshape(x.shape[2:]) / x[0, 0].numel()
        return self.factor * torch.stack((x[:, 1], x[:, 0] * place), 1)


def whole(shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    z, y, x = (slice(0, n) for n in shape)
    return z, y, x


def passes(networks: list[nn.Module], axes: tuple[int, ...], batch: int) -> Passes:
    return Passes(networks, all_mirrors(axes), batch, torch.device("cpu"), torch.float32)


def test_all_mirrors() -> None:
    assert all_mirrors(()) == ((),)
    assert all_mirrors((1,)) == ((), (1,))
    assert all_mirrors((0, 1, 2)) == ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(6, 40), st.integers(10, 40), st.integers(8, 40)),
    step=st.sampled_from([0.25, 0.5, 0.7, 1.0]),
)
def test_tiles_cover_the_volume_at_most_a_step_apart(shape: tuple[int, int, int], step: float) -> None:
    corners = tile_corners(shape, PATCH, step)
    assert len(set(corners)) == len(corners)
    starts = [sorted(set(axis)) for axis in zip(*corners, strict=True)]
    assert len(corners) == np.prod([len(axis) for axis in starts])
    for axis, size, patch in zip(starts, shape, PATCH, strict=True):
        assert axis[0] == 0
        assert axis[-1] == size - patch
        assert np.diff(axis).max(initial=0) <= np.ceil(step * patch)


@settings(deadline=None)
@given(shape=st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(1, 14)))
def test_padding_is_symmetric_and_undone(shape: tuple[int, int, int]) -> None:
    image = torch.arange(1.0, 1 + 2 * np.prod(shape)).reshape(2, *shape)
    padded, back = pad_to_patch(image, PATCH)
    assert padded.shape[1:] == tuple(max(pair) for pair in zip(shape, PATCH, strict=True))
    assert torch.equal(padded[(slice(None), *back)], image)
    assert torch.count_nonzero(padded) == image.numel()
    for cut, n, total in zip(back, shape, padded.shape[1:], strict=True):
        below = cut.start or 0
        assert 0 <= (total - n - below) - below <= 1


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("axes", [(), (2,), (0, 1, 2)])
def test_a_tile_is_the_mean_of_all_passes_flipped_back(axes: tuple[int, ...], batch: int) -> None:
    rng = np.random.default_rng(0)
    tile = rng.random((4, *PATCH)).astype(np.float32)
    networks = [Ramp(1.0), Ramp(-3.0)]
    ended: list[int] = []
    result = predict_tile(torch.from_numpy(tile), passes(networks, axes, batch), ended.append)

    place = np.arange(np.prod(PATCH)).reshape(PATCH) / np.prod(PATCH)
    turns = [turn for n in range(len(axes) + 1) for turn in itertools.combinations(axes, n)]
    expected = np.mean(
        [
            factor * (tile[0] * np.flip(place, turn) - tile[1])
            for factor, turn in itertools.product((1.0, -3.0), turns)
        ],
        axis=0,
    )
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert result.dtype == torch.float32
    assert sum(ended) == 2 * len(turns)
    assert max(networks[0].batches) == min(batch, len(turns))
    assert sum(networks[0].batches) == len(turns)


def test_workers_change_no_bit_and_no_order() -> None:
    """The first networks take longest, so that without care the last ones would be added first."""

    class Slow(Ramp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02 * max(self.factor, 0))
            return super().forward(x)

    tile = torch.from_numpy(np.random.default_rng(0).random((4, *PATCH)).astype(np.float32))
    one = passes([Slow(1.0), Slow(0.3), Slow(-0.1)], (0, 2), 2)
    expected = predict_tile(tile, one, lambda _: None)
    assert torch.equal(predict_tile(tile, replace(one, workers=3), lambda _: None), expected)


def test_a_failure_in_a_worker_is_raised_and_stops_the_rest() -> None:
    class Failing(Ramp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            raise torch.OutOfMemoryError("no memory")

    networks = [Failing(), *(Ramp() for _ in range(40))]
    with pytest.raises(torch.OutOfMemoryError):
        predict_tile(torch.zeros(4, *PATCH), replace(passes(networks, (), 1), workers=1), lambda _: None)
    assert not networks[-1].batches


def test_bf16_passes_are_summed_in_float32() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(x), 2, *x.shape[2:], dtype=torch.bfloat16)
            logits[:, 1] = 1 + 2**-7  # one more would be lost in a bf16 sum of 256
            return logits

    many = Passes([Constant()] * 256, ((),), 1, torch.device("cpu"), torch.bfloat16)
    result = predict_tile(torch.zeros(4, *PATCH), many, lambda _: None)
    assert torch.equal(result, torch.full(PATCH, 1 + 2**-7))


def test_overlapping_tiles_are_averaged_by_a_float32_gaussian() -> None:
    shape = (9, 17, 12)
    rng = np.random.default_rng(1)
    spike = np.zeros(PATCH)
    spike[tuple(n // 2 for n in PATCH)] = 1
    weight = ndimage.gaussian_filter(spike, [n / 8 for n in PATCH], mode="constant")
    sums, total, weights = (
        Accumulator(whole(shape), PATCH, torch.device("cpu")),
        np.zeros(shape),
        np.zeros(shape),
    )
    for corner in tile_corners(shape, PATCH, 0.5):
        margin = rng.standard_normal(PATCH).astype(np.float32)
        sums.add(corner, torch.from_numpy(margin))
        where = tuple(slice(i, i + n) for i, n in zip(corner, PATCH, strict=True))
        total[where] += margin * weight
        weights[where] += weight
    mean = sums.mean(-1.0)
    assert mean.dtype == torch.float32
    np.testing.assert_allclose(mean, total / weights, atol=1e-5)


def test_a_constant_survives_up_to_the_corners() -> None:
    """Half-precision weights, subnormal at the corners, would round 0.1 there to 0 or 0.44 off."""
    patch = (48, 56, 64)
    sums = Accumulator(whole(patch), patch, torch.device("cpu"))
    sums.add((0, 0, 0), torch.full(patch, 0.1))
    np.testing.assert_allclose(sums.mean(-1.0), 0.1, rtol=1e-6)
