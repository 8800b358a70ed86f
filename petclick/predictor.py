"""The only stateful class of inference: a model, and the case that is set.

    predictor = Predictor(load_model(Path("resources")))
    predictor.set_case(case)
    mask = predictor.predict(clicks)

A case is prepared once; each `predict` takes all clicks so far.
"""

import contextlib
import importlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from petclick.clicks import KINDS, ClickSet, click_set
from petclick.device import choose_device, choose_precision
from petclick.errors import InputError, PetclickError
from petclick.guidance import encode
from petclick.images import Case
from petclick.model import Model, load_network
from petclick.postprocess import postprocess
from petclick.preprocess import Prepared, map_clicks, prepare, restore
from petclick.tiles import (
    Accumulator,
    KeptTiles,
    Passes,
    all_mirrors,
    pad_to_patch,
    predict_tile,
    tile_corners,
)

logger = logging.getLogger(__name__)

CPU_BATCH = 2
"""Mirrored passes that a CPU runs together; one leaves half of oneDNN's speed, more only cost memory."""
CUDA_BATCH = 8


@dataclass(frozen=True)
class Settings:
    """How to predict.

    device: 'auto', 'cpu' or 'cuda'; precision: 'auto', 'fp32', 'bf16' or 'fp16'; mirror_axes: spatial axes
    of the network's grid, None for those that the model was trained with; step_size: distance of neighbouring
    tiles in patches, in (0, 1]; keep_gib: host memory for results, from which the next prediction of the
    same case takes the tiles that no new click touches; progress: show a bar on stderr.
    """

    device: str = "auto"
    precision: str = "auto"
    mirror_axes: tuple[int, ...] | None = None
    step_size: float = 0.5
    keep_gib: float = 4.0
    progress: bool = False


class Predictor:
    """Predicts lesion masks of one case after another, each for any number of click sets."""

    def __init__(self, model: Model, settings: Settings | None = None) -> None:
        """Load the folds' weights.

        Raises:
            InputError: weights that do not fit, a device that is not there, axes or a step out of range.
        """
        settings = settings or Settings()
        if not 0 < settings.step_size <= 1:
            raise InputError("--step-size", "must be above 0, up to 1", settings.step_size)
        axes = model.mirror_axes if settings.mirror_axes is None else settings.mirror_axes
        if not set(axes) <= {0, 1, 2}:
            raise InputError("--mirror-axes", "must be among 0, 1, 2", axes)
        device = choose_device(settings.device)
        precision = choose_precision(settings.precision, device)
        networks = [load_network(model, checkpoint) for checkpoint in model.checkpoints]
        passes = Passes(networks, all_mirrors(sorted(set(axes))), 1, device, precision)
        self._model, self._settings = model, settings
        try:
            self._passes, self._results_device = _place(passes, device), device
        except torch.OutOfMemoryError:
            self._passes, self._results_device = _place_on_cpu(passes), torch.device("cpu")
            logger.warning("the GPU is out of memory: the CPU takes over")
        self._case: Prepared | None = None
        self._pet_suv = np.zeros((0, 0, 0), np.float32)
        self._kept = KeptTiles(settings.keep_gib)
        passes = self._passes
        logger.info(
            "model %s: %d folds, %d mirrored passes, %s on %s",
            *(model.folder, len(networks), len(passes.mirrors), _name(passes.precision), passes.device),
        )

    def warm_up(self) -> None:
        """Run one batch over an empty patch: a process's first one is slow, and no case need wait for it."""
        passes, patch = self._passes, self._model.plan.patch_size
        passes = replace(passes, networks=passes.networks[:1], mirrors=passes.mirrors[: passes.batch])
        with torch.inference_mode(), contextlib.suppress(torch.OutOfMemoryError):  # left to the first case
            guidance = self._encode(click_set([[0, 0, 0]], [[0, 0, 0]]), patch).to(passes.device)
            image = torch.zeros((len(self._model.plan.normalization), *patch), device=passes.device)
            predict_tile(torch.cat((image, guidance)), passes, lambda _: None)

    def set_case(self, case: Case) -> None:
        """Preprocess a case; it stays until the next one. One that is refused leaves the last one in place.

        Raises:
            InputError: the case is empty.
        """
        start = time.perf_counter()
        self._case = prepare(case, self._model.plan, self._model.spec.orientation)
        self._pet_suv = case.pet_suv
        self._kept.clear()
        logger.info(
            "preprocessed to %s voxels of %s mm in %.1f s",
            *(_sizes(self._case.shape), _sizes(self._model.plan.spacing_mm), time.perf_counter() - start),
        )

    def reset(self) -> None:
        """Forget the case."""
        self._case, self._pet_suv = None, np.zeros((0, 0, 0), np.float32)
        self._kept.clear()

    def predict(self, clicks: ClickSet) -> npt.NDArray[np.uint8]:
        """Segment the case for these clicks, all that count so far.

        Args:
            clicks: on the case's grid.

        Returns:
            uint8 (z, y, x) mask on the case's grid, 1 in lesions.

        Raises:
            PetclickError: no case is set.
        """
        case = self._require_case()
        margin = self.predict_margin(clicks)
        start = time.perf_counter()
        try:
            stored = restore(margin, case, self._model.plan)
        except torch.OutOfMemoryError:
            stored = restore(margin.cpu(), case, self._model.plan)
        mask = postprocess(stored, self._pet_suv, clicks, case.case_grid, self._model.spec.postprocess)
        logger.info("mask on the input's grid after another %.1f s", time.perf_counter() - start)
        return mask

    def predict_margin(self, clicks: ClickSet) -> torch.Tensor:
        """Lesion logit minus background logit on the network's grid: float32, mean over folds and mirrors.

        Raises:
            PetclickError: no case is set, the memory does not suffice, or the network's output is not finite.
        """
        case = self._require_case()
        network_clicks = map_clicks(clicks, case)
        while True:
            with contextlib.suppress(torch.OutOfMemoryError, MemoryError):  # CuPy's is a MemoryError
                margin = self._run_tiles(case, network_clicks)
                if margin.isfinite().all():
                    return margin
                self._use_more_precision()
                continue
            # Behind the handler: the error's traceback would keep the tensors alive.
            self._use_less_memory()

    def _run_tiles(self, case: Prepared, clicks: ClickSet) -> torch.Tensor:
        start = time.perf_counter()
        guidance = self._encode(clicks, case.shape)
        image = torch.cat((torch.from_numpy(case.image).to(guidance.device), guidance)).to(
            self._results_device
        )
        image, unpad = pad_to_patch(image, self._model.plan.patch_size)
        corners = tile_corners(image.shape[1:], self._model.plan.patch_size, self._settings.step_size)
        passes = self._passes
        sums = Accumulator(image.shape[1:], self._model.plan.patch_size, self._results_device)
        n_passes = len(corners) * len(passes.networks) * len(passes.mirrors)
        n_again = 0
        with torch.inference_mode(), self._progress_bar(n_passes) as bar:
            for corner in corners:
                where = [slice(i, i + n) for i, n in zip(corner, self._model.plan.patch_size, strict=True)]
                tile = image[(slice(None), *where)]
                # The sum over all tiles is made anew, in the same order, so that the result is that of a
                # prediction from scratch to the bit.
                margin = self._kept.find(corner, tile[-len(KINDS) :])
                if margin is None:
                    margin = predict_tile(tile.to(passes.device), passes, bar.update)
                    self._kept.keep(corner, tile[-len(KINDS) :], margin)
                    n_again += 1
                else:
                    bar.update(n_passes // len(corners))
                sums.add(corner, margin)
            result = sums.mean()[unpad]
        logger.info(
            "%d of %d tiles x %d folds x %d mirrors in %.1f s",
            *(n_again, len(corners), len(passes.networks), len(passes.mirrors), time.perf_counter() - start),
        )
        return result

    def _encode(self, clicks: ClickSet, shape: tuple[int, int, int]) -> torch.Tensor:
        """Click channels: drawn by CuPy on CUDA, where it is installed, and handed over without a copy."""
        spec = self._model.spec
        if self._results_device.type == "cuda" and (cupy := _cupy()):
            return torch.utils.dlpack.from_dlpack(encode(clicks, shape, spec, cupy))
        return torch.from_numpy(encode(clicks, shape, spec))

    def _use_less_memory(self) -> None:
        """Take the next step down on a GPU that is full: results on the host, single passes, then the CPU."""
        passes = self._passes
        torch.cuda.empty_cache()
        if self._results_device.type == "cuda":
            self._results_device, step = torch.device("cpu"), "results are kept on the host"
        elif passes.batch > 1:
            self._passes, step = replace(passes, batch=1), "mirrored passes run one by one"
        elif passes.device.type == "cuda":
            self._passes, step = _place_on_cpu(passes), "the CPU takes over"
            self._kept.clear()  # tiles of two devices do not add up to what either gives
        else:
            raise PetclickError("out of memory on the CPU, too")
        logger.warning("the GPU is out of memory: %s", step)

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

    def _progress_bar(self, total: int) -> "tqdm[Any]":
        return tqdm(total=total, desc="predicting", unit="pass", disable=not self._settings.progress)


def _place(passes: Passes, device: torch.device) -> Passes:
    """The same passes on another device, in the memory layout that is fast there."""
    layout = torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format
    # memory_format is missing from PyTorch's own stubs
    networks = [network.to(device, memory_format=layout) for network in passes.networks]  # type: ignore[call-overload]
    batch = CPU_BATCH if device.type == "cpu" else CUDA_BATCH
    return replace(passes, networks=networks, device=device, batch=min(batch, len(passes.mirrors)))


def _place_on_cpu(passes: Passes) -> Passes:
    cpu = torch.device("cpu")
    return _place(replace(passes, precision=choose_precision("auto", cpu)), cpu)


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError:
        logger.warning("CuPy is not installed: clicks are drawn on the host")
        return None


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
