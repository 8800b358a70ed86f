"""The only stateful class of inference: a model, and the case that is set.

    predictor = Predictor(load_model(Path("resources")))
    predictor.set_case(case)
    mask = predictor.predict(clicks)

A case is prepared once; each `predict` takes all clicks so far.
"""

import contextlib
import functools
import importlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from petclick.cache import TileCache
from petclick.clicks import ClickSet, click_set
from petclick.clock import Clock
from petclick.device import choose_device, choose_precision, set_up_cpu
from petclick.errors import InputError, PetclickError
from petclick.guidance import encode
from petclick.images import Case
from petclick.kept import KeptTiles
from petclick.lasting import LastingTiles
from petclick.model import Model, load_network
from petclick.placement import place, place_on_cpu
from petclick.postprocess import postprocess
from petclick.preprocess import BACKGROUND_MARGIN, Prepared, check_plan, map_clicks, prepare, restore
from petclick.tiles import Passes, all_mirrors, predict_tile
from petclick.window import Report, SlidingWindow

logger = logging.getLogger(__name__)

EXPORT_S, EXPORT_PER_RESTORE = 0.3, 5.0
"""What may pass from the margin to the mask: so long, and so many times what restoring the margin takes.

Measured on a whole body of 52 million voxels: 1.7 to 2.8 times.
"""


@dataclass(frozen=True)
class Settings:
    """How to predict.

    device: 'auto', 'cpu' or 'cuda'; precision: 'auto', 'fp32', 'bf16' or 'fp16'; mirror_axes: spatial axes
    of the network's grid, None for those that the model was trained with; step_size: distance of neighbouring
    tiles in patches, in (0, 1]; skip_air: leave out tiles without body and clicks, which are background;
    keep_gib: room for tiles' results, of which the next prediction of the same case takes those that no new
    click touches; keep_dir: the folder of a file for them, None for host memory; cache: a folder where they
    outlive the process, and cache_gib, its bound; progress: show a bar on stderr.
    """

    device: str = "auto"
    precision: str = "auto"
    mirror_axes: tuple[int, ...] | None = None
    step_size: float = 0.5
    skip_air: bool = True
    keep_gib: float = 4.0
    keep_dir: Path | None = None
    cache: Path | None = None
    cache_gib: float = 8.0
    progress: bool = False


class Predictor:
    """Predicts lesion masks of one case after another, each for any number of click sets."""

    def __init__(self, model: Model, settings: Settings | None = None) -> None:
        """Load the folds' weights.

        Raises:
            InputError: a plan that cannot be followed, weights that do not fit, a device that is not there,
                axes or a step out of range.
        """
        set_up_cpu()
        settings = settings or Settings()
        if not 0 < settings.step_size <= 1:
            raise InputError("--step-size", "must be above 0, up to 1", settings.step_size)
        axes = model.mirror_axes if settings.mirror_axes is None else settings.mirror_axes
        if not set(axes) <= {0, 1, 2}:
            raise InputError("--mirror-axes", "must be among 0, 1, 2", axes)
        check_plan(model.plan)
        device = choose_device(settings.device)
        precision = choose_precision(settings.precision, device)
        networks = [load_network(model, checkpoint) for checkpoint in model.checkpoints]
        passes = Passes(networks, all_mirrors(sorted(set(axes))), 1, device, precision)
        self._model, self._settings = model, settings
        try:
            self._passes, self._results_device = place(passes, model.plan, device), device
        except torch.OutOfMemoryError:
            self._passes, self._results_device = place_on_cpu(passes, model.plan), torch.device("cpu")
            logger.warning("the GPU is out of memory: the CPU takes over")
        self._case: Prepared | None = None
        self._window: SlidingWindow | None = None
        self._pet_suv = np.zeros((0, 0, 0), np.float32)
        self._report = Report()
        self._restore_s: float | None = None  # what restoring the case's margin takes, once measured
        passes = self._passes
        self._kept: KeptTiles | LastingTiles = KeptTiles(settings.keep_gib, settings.keep_dir)
        if settings.cache is not None:
            cache = TileCache(settings.cache, settings.cache_gib)
            self._kept = LastingTiles(self._kept, cache, model, passes.device)
        logger.info(
            "model %s: %d folds, %d mirrored passes, %s on %s",
            *(model.folder, len(networks), len(passes.mirrors), _name(passes.precision), passes.device),
        )

    @property
    def last_report(self) -> Report:
        """What the last prediction did; all 0 where it had no time for the network."""
        return self._report

    @property
    def precision(self) -> torch.dtype:
        """Of the forward passes."""
        return self._passes.precision

    def warm_up(self) -> None:
        """Run one batch over an empty patch: a process's first one is slow, and no case need wait for it."""
        passes, patch = self._passes, self._model.plan.patch_size
        passes = replace(passes, networks=passes.networks[:1], mirrors=passes.mirrors[: passes.batch])
        # Memory is left to the first case; CuPy's error is a MemoryError.
        with torch.inference_mode(), contextlib.suppress(torch.OutOfMemoryError, MemoryError):
            guidance = self._draw(click_set([[0, 0, 0]], [[0, 0, 0]]), patch).to(passes.device)
            image = torch.zeros((len(self._model.plan.normalization), *patch), device=passes.device)
            predict_tile(torch.cat((image, guidance)), passes, lambda _: None)

    def set_case(self, case: Case) -> None:
        """Preprocess a case; it stays until the next one. One that is refused leaves the last one in place.

        Raises:
            InputError: the case is empty.
        """
        start = time.perf_counter()
        prepared = prepare(case, self._model.plan, self._model.spec.orientation)
        self.reset()  # its memory is needed
        self._case, self._pet_suv = prepared, case.pet_suv
        self._window = self._lay_window(prepared)
        if isinstance(self._kept, LastingTiles):
            self._kept.set_case(prepared)
        logger.info(
            "preprocessed to %s voxels of %s mm in %.1f s",
            *(_sizes(self._case.shape), _sizes(self._model.plan.spacing_mm), time.perf_counter() - start),
        )

    def reset(self) -> None:
        """Forget the case."""
        self._case, self._window, self._pet_suv = None, None, np.zeros((0, 0, 0), np.float32)
        self._restore_s = None
        self._kept.clear()

    def predict(self, clicks: ClickSet, deadline: float = math.inf) -> npt.NDArray[np.uint8]:
        """Segment the case for these clicks, all that count so far.

        Args:
            clicks: on the case's grid.
            deadline: when the mask must be there, by `time.monotonic`. What does not fit is left out, as
                `petclick.schedule` has it; where there is no time for any of it, all is background.

        Returns:
            uint8 (z, y, x) mask on the case's grid, 1 in lesions.

        Raises:
            PetclickError: no case is set.
        """
        case, margin = self._require_case(), self._predict_margin(clicks, deadline)
        start = time.perf_counter()
        if margin is None:
            stored = np.full(case.case_grid.shape_zyx, BACKGROUND_MARGIN, np.float32)
        else:
            stored = self._restore(margin, case)
        mask = postprocess(stored, self._pet_suv, clicks, case.case_grid, self._model.spec.postprocess)
        logger.info("mask on the input's grid after another %.1f s", time.perf_counter() - start)
        return mask

    def predict_margin(self, clicks: ClickSet) -> torch.Tensor:
        """Lesion logit minus background logit on the network's grid: float32, mean over folds and mirrors.

        Raises:
            PetclickError: no case is set, the memory does not suffice, or the network's output is not finite.
        """
        margin = self._predict_margin(clicks, math.inf)
        assert margin is not None
        return margin.clone()

    def _predict_margin(self, clicks: ClickSet, deadline: float) -> torch.Tensor | None:
        """As above, but what the next prediction writes to; None where there was no time."""
        network_clicks = map_clicks(clicks, self._require_case())
        assert self._window is not None
        while True:
            with contextlib.suppress(torch.OutOfMemoryError, MemoryError):  # CuPy's is a MemoryError
                clock = None
                if deadline < math.inf:
                    if time.monotonic() > deadline:
                        logger.warning("time limit: no time for the network, all is background")
                        self._report = Report()
                        return None
                    clock = Clock(deadline, self._export_s(self._require_case()))
                margin = self._run_tiles(self._window, network_clicks, clock)
                if margin.isfinite().all():
                    return margin
                self._use_more_precision()
                continue
            # Behind the handler: the error's traceback would keep the tensors alive.
            self._use_less_memory(self._window)

    def _lay_window(self, case: Prepared) -> SlidingWindow:
        settings = self._settings
        try:
            return SlidingWindow(
                case, self._model, settings.step_size, settings.skip_air, self._results_device
            )
        except torch.OutOfMemoryError:
            self._results_device = torch.device("cpu")
            logger.warning("the GPU is out of memory: results are kept on the host")
            return SlidingWindow(
                case, self._model, settings.step_size, settings.skip_air, self._results_device
            )

    def _restore(self, margin: torch.Tensor, case: Prepared) -> npt.NDArray[np.float32]:
        start = time.monotonic()
        try:
            stored = restore(margin, case, self._model.plan)
        except torch.OutOfMemoryError:
            stored = restore(margin.cpu(), case, self._model.plan)
        self._restore_s = time.monotonic() - start
        return stored

    def _export_s(self, case: Prepared) -> float:
        """What may pass from the margin to the mask; measured by a rehearsal of its one certain step."""
        if self._restore_s is None:
            self._restore(torch.full(case.shape, BACKGROUND_MARGIN, device=self._results_device), case)
        assert self._restore_s is not None
        return EXPORT_S + EXPORT_PER_RESTORE * self._restore_s

    def _run_tiles(self, window: SlidingWindow, clicks: ClickSet, clock: Clock | None) -> torch.Tensor:
        start = time.perf_counter()
        passes = self._passes
        with torch.inference_mode(), self._progress_bar() as bar:
            margin, report = window.predict(clicks, passes, self._kept, self._draw, bar, clock)
        logger.info(
            "%d of %d tiles x %d folds x %d mirrors in %.1f s, %d left out as air",
            *(report.ran, report.total, len(passes.networks), len(passes.mirrors)),
            *(time.perf_counter() - start, report.empty),
        )
        if min(report.batches, default=len(passes.batches)) < len(passes.batches):
            logger.warning("time limit: %s", _left_out(report.batches, passes))
        self._report = report
        return margin

    def _draw(self, clicks: ClickSet, shape: tuple[int, int, int]) -> torch.Tensor:
        """Click channels: drawn by CuPy on CUDA, where it is installed, and handed over without a copy."""
        spec = self._model.spec
        if self._results_device.type == "cuda" and (cupy := _cupy()):
            return torch.utils.dlpack.from_dlpack(encode(clicks, shape, spec, cupy))
        return torch.from_numpy(encode(clicks, shape, spec))

    def _use_less_memory(self, window: SlidingWindow) -> None:
        """Take the next step down where memory is full: results on the host, single passes, then the CPU."""
        passes = self._passes
        full = "GPU" if passes.device.type == "cuda" else "CPU"
        torch.cuda.empty_cache()
        if self._results_device.type == "cuda":
            self._results_device, step = torch.device("cpu"), "results are kept on the host"
            window.to(self._results_device)
        elif passes.batch > 1:
            self._passes = replace(passes, batch=passes.batch // 2)
            step = f"mirrored passes run {self._passes.batch} at a time"
        elif passes.device.type == "cuda":
            self._passes, step = place_on_cpu(passes, self._model.plan), "the CPU takes over"
            self._kept.clear()  # for tiles of the CPU, which gives other bits
        else:
            raise PetclickError("out of memory on the CPU, too")
        logger.warning("the %s is out of memory: %s", full, step)

    def _use_more_precision(self) -> None:
        """Half precision can overflow to infinity or NaN, which would count as background."""
        passes = self._passes
        if passes.precision == torch.float32:
            raise PetclickError("the network's output is not finite: its weights are damaged")
        logger.warning(
            "the network's output is not finite in %s: repeated in float32", _name(passes.precision)
        )
        self._passes = replace(passes, precision=torch.float32)
        self._kept.clear()

    def _require_case(self) -> Prepared:
        if self._case is None:
            raise PetclickError("set_case must come before predict")
        return self._case

    def _progress_bar(self) -> "tqdm[Any]":
        return tqdm(desc="predicting", unit="pass", disable=not self._settings.progress)


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _left_out(batches: Sequence[int], passes: Passes) -> str:
    """What a time limit cost."""
    n_all = len(passes.batches)
    share, least, most = 1 - sum(batches) / len(batches) / n_all, min(batches), max(batches)
    each = f"{least} to {most}" if least < most else str(least)
    text = f"{share:.0%} is left out: a tile got {each} of {n_all} batches ({passes.batch} mirrors of a fold)"
    return text if least else f"{text}; {batches.count(0)} of {len(batches)} got none and are background"


@functools.cache  # asked for each tile
def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError:
        logger.warning("CuPy is not installed: clicks are drawn on the host")
        return None


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
