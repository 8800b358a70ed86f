"""Devices and formats: what is chosen, and what happens where memory or range does not suffice."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import CPU, ClickNetwork, balls, dice, ready

from petclick import device, placement, predictor
from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError, PetclickError
from petclick.images import Case
from petclick.model import load_model
from petclick.predictor import Predictor, Settings
from petclick.tiles import Passes

MakeModel = Callable[..., Path]
MakeCase = Callable[..., Case]


def test_bf16_is_close_to_fp32(make_model: MakeModel, make_case: MakeCase, clicks: ClickSet) -> None:
    folder, case = make_model(), make_case((16, 24, 20))
    exact = ready(folder, case).predict_margin(clicks)
    rounded = ready(folder, case, replace(CPU, precision="bf16")).predict_margin(clicks)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_cuda_is_refused_where_there_is_none(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device: cuda needs an NVIDIA device"):
        Predictor(load_model(make_model()), Settings("cuda"))
    assert device.choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"amx_bf16": True}, torch.bfloat16), ({"avx512_bf16": True}, torch.bfloat16), ({}, torch.float32)],
)
def test_auto_precision(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert device.choose_precision("auto", torch.device("cpu")) == precision
    assert device.choose_precision("auto", torch.device("cuda")) == torch.float16
    assert device.choose_precision("fp16", torch.device("cuda")) == torch.float16
    assert device.choose_precision("bf16", torch.device("cpu")) == torch.bfloat16


@pytest.mark.parametrize(
    ("on_gpu", "on_cpu"),
    [(torch.float32, torch.float32), (torch.float16, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
def test_a_cpu_that_takes_over_computes_float32_where_the_gpu_did(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, on_gpu: torch.dtype, on_cpu: torch.dtype
) -> None:
    monkeypatch.setattr(device, "has_fast_bf16", lambda: True)
    passes = Passes([], ((),), 1, torch.device("cuda"), on_gpu)
    assert placement.place_on_cpu(passes, load_model(make_model()).plan).precision == on_cpu


class FakeCuda(str):
    """A device that PyTorch takes for the CPU, and the predictor for a GPU."""

    type = "cuda"

    def __new__(cls) -> "FakeCuda":
        return super().__new__(cls, "cpu")


class FullGpu(ClickNetwork):
    """Runs out of memory on the fake GPU while a batch is larger than what fits."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits = fits
        self.place: object = None

    def to(self, place: object, **_: object) -> "FullGpu":  # type: ignore[override]
        self.place = place
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.place, FakeCuda) and len(x) > self.fits:
            raise torch.OutOfMemoryError("no memory")
        return super().forward(x)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "choose_device", lambda _: FakeCuda())
    monkeypatch.setattr(placement, "free_bytes", lambda _: 2**30)
    monkeypatch.setattr(predictor, "_cupy", lambda: np)  # has the same interface, DLPack included


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize(
    ("fits", "steps", "largest_batch"),
    [
        (8, [], 4),
        (2, ["results are kept on the host", "mirrored passes run 2 at a time"], 2),
        (
            0,
            [
                "results are kept on the host",
                "mirrored passes run 2 at a time",
                "mirrored passes run 1 at a time",
                "the CPU takes over",
            ],
            2,
        ),
    ],
)
def test_a_full_gpu_falls_back_step_by_step(
    make_model: MakeModel,
    make_case: MakeCase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fits: int,
    steps: list[str],
    largest_batch: int,
) -> None:
    network = FullGpu(fits)
    monkeypatch.setattr(predictor, "load_network", lambda *_: network)
    case = make_case()
    settings = Settings("cuda", "fp32", (0, 2))
    session = ready(make_model(spacing_mm=case.grid.spacing_zyx_mm), case, settings)
    mask = session.predict(click_set([[8, 12, 10]], []))
    np.testing.assert_array_equal(mask, balls(case.grid.shape_zyx, [8, 12, 10]))
    assert [record.message for record in caplog.records] == [
        f"the GPU is out of memory: {step}" for step in steps
    ]
    assert max(network.batches) == largest_batch
    session.predict(click_set([], []))
    assert len(caplog.records) == len(steps), "what was learnt holds for the next prediction"


@pytest.mark.usefixtures("fake_cuda")
def test_cupy_running_out_of_memory_counts_too(
    make_model: MakeModel,
    make_case: MakeCase,
    click_network: ClickNetwork,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def encode(*arguments: Any) -> Any:
        if len(arguments) == 4:
            raise MemoryError  # CuPy's own error is one
        return original(*arguments)

    original = predictor.encode
    monkeypatch.setattr(predictor, "encode", encode)
    case = make_case()
    session = ready(make_model(spacing_mm=case.grid.spacing_zyx_mm), case, Settings("cuda", "fp32", ()))
    mask = session.predict(click_set([[8, 12, 10]], []))
    np.testing.assert_array_equal(mask, balls(case.grid.shape_zyx, [8, 12, 10]))
    assert caplog.messages == ["the GPU is out of memory: results are kept on the host"]


@pytest.mark.usefixtures("fake_cuda")
def test_weights_that_do_not_fit_the_gpu_go_to_the_cpu(
    make_model: MakeModel,
    make_case: MakeCase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Large(ClickNetwork):
        def to(self, place: object, **_: object) -> "Large":  # type: ignore[override]
            if isinstance(place, FakeCuda):
                raise torch.OutOfMemoryError("no memory")
            return self

    monkeypatch.setattr(predictor, "load_network", lambda *_: Large())
    case = make_case()
    session = ready(make_model(spacing_mm=case.grid.spacing_zyx_mm), case, Settings("cuda", "fp32", ()))
    assert caplog.messages == ["the GPU is out of memory: the CPU takes over"]
    np.testing.assert_array_equal(
        session.predict(click_set([[8, 12, 10]], [])), balls(case.grid.shape_zyx, [8, 12, 10])
    )


@pytest.mark.usefixtures("fake_cuda")
def test_a_mask_that_does_not_fit_the_gpu_is_made_on_the_host(
    make_model: MakeModel, make_case: MakeCase, click_network: ClickNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def restore(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory")
        return original(*arguments)

    original = predictor.restore
    monkeypatch.setattr(predictor, "restore", restore)
    session = ready(make_model(), make_case(), Settings("cuda", "fp32", ()))
    assert session.predict(click_set([[8, 12, 10]], [])).any()
    assert len(calls) == 2


def test_no_memory_on_the_cpu_either(
    make_model: MakeModel,
    make_case: MakeCase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Endless(ClickNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(predictor, "load_network", lambda *_: Endless())
    session = ready(make_model(), make_case(), replace(CPU, mirror_axes=(0,)))
    with pytest.raises(PetclickError, match="out of memory on the CPU, too"):
        session.predict(click_set([], []))
    assert caplog.messages == ["the CPU is out of memory: mirrored passes run 1 at a time"]


def test_a_warm_up_for_which_there_is_no_memory_is_left_out(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(ClickNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise errors.pop()

    errors = [torch.OutOfMemoryError("no memory"), MemoryError()]
    monkeypatch.setattr(predictor, "load_network", lambda *_: Full())
    session = Predictor(load_model(make_model()), CPU)
    session.warm_up()
    session.warm_up()
    assert errors == []


class Overflowing(ClickNetwork):
    """Infinite in half precision, as logits beyond 65,504 are; NaN everywhere if `damaged`."""

    def __init__(self, damaged: bool) -> None:
        super().__init__()
        self.damaged = damaged

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits * torch.nan if self.damaged or torch.is_autocast_enabled("cpu") else logits


def test_overflow_in_half_precision_is_repeated_in_float32(
    make_model: MakeModel,
    make_case: MakeCase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(predictor, "load_network", lambda *_: Overflowing(damaged=False))
    case = make_case()
    folder = make_model(spacing_mm=case.grid.spacing_zyx_mm)
    mask = ready(folder, case, replace(CPU, precision="bf16")).predict(click_set([[8, 12, 10]], []))
    np.testing.assert_array_equal(mask, balls(case.grid.shape_zyx, [8, 12, 10]))
    assert caplog.messages == ["the network's output is not finite in bfloat16: repeated in float32"]


def test_damaged_weights_do_not_give_an_empty_mask(
    make_model: MakeModel, make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "load_network", lambda *_: Overflowing(damaged=True))
    with pytest.raises(PetclickError, match="output is not finite: its weights are damaged"):
        ready(make_model(), make_case()).predict(click_set([[8, 12, 10]], []))


@pytest.fixture
def unknown_cupy() -> Iterator[None]:
    """Whether there is CuPy is found out anew, and again after the test."""
    predictor._cupy.cache_clear()
    yield
    predictor._cupy.cache_clear()


@pytest.mark.usefixtures("unknown_cupy")
def test_without_cupy_clicks_are_drawn_on_the_host_which_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(predictor.importlib.sys.modules, "cupy", None)
    assert [predictor._cupy() for _ in range(3)] == [None] * 3
    assert caplog.messages == ["CuPy is not installed: clicks are drawn on the host"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA device")
def test_cuda_agrees_with_the_cpu(make_model: MakeModel, make_case: MakeCase, clicks: ClickSet) -> None:
    folder, case = make_model(), make_case()
    expected = ready(folder, case, Settings("cpu", "fp32"))
    for precision, tolerance in (("fp32", 1e-3), ("fp16", 3e-2)):
        session = ready(folder, case, Settings("cuda", precision))
        margin = session.predict_margin(clicks)
        assert margin.device.type == "cuda"
        np.testing.assert_allclose(margin.cpu(), expected.predict_margin(clicks), atol=tolerance)
        assert dice(session.predict(clicks), expected.predict(clicks)) > 0.99
