"""Sliding-window prediction against nnU-Net's own predictor: same weights, folds, mirrors, step and input.

Ours takes the CPU's precision, leaves out air, and starts from an empty store. nnU-Net's computes in fp32, as
it does on CPUs, and in a process of its own, where nothing of ours is set up.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks._cases import (
    FULL_ZYX,
    TIGHT_ZYX,
    benchmark_model,
    nnunet_predictor,
    pass_flop,
    peak_flop_per_s,
    sarcoma_case,
    timed,
    whole_body,
)
from benchmarks._runs import dice
from petclick.clicks import ClickSet
from petclick.guidance import encode
from petclick.images import Case
from petclick.model import Model
from petclick.predictor import Predictor, Settings
from petclick.preprocess import map_clicks, prepare

REPEATS = {"sarcoma": 5}
"""Of others one, which takes minutes."""


def run() -> dict[str, float]:
    """Seconds of both, their ratio, Dice of the masks, and ours' share of the machine's peak."""
    model = benchmark_model()
    figures: dict[str, float] = {
        "folds": len(model.checkpoints),
        "passes_per_tile": 8 * len(model.checkpoints),
    }
    for name, case, clicks in _cases(model):
        for figure, value in _compare(model, case, clicks, REPEATS.get(name, 1)).items():
            figures[f"{name}: {figure}"] = value
    return figures


def _cases(model: Model) -> Iterator[tuple[str, Case, ClickSet]]:
    sarcoma = sarcoma_case()
    if sarcoma is None:
        print("predictor  sarcoma: left out, no patients there (--cases)", flush=True)
    else:
        yield "sarcoma", *sarcoma
    yield "whole body", *whole_body(model, shape_zyx=FULL_ZYX)
    yield "whole body without air", *whole_body(model, shape_zyx=TIGHT_ZYX)


def _compare(model: Model, case: Case, clicks: ClickSet, repeats: int) -> dict[str, float]:
    prepared = prepare(case, model.plan, model.spec.orientation)
    channels = encode(map_clicks(clicks, prepared), prepared.shape, model.spec)
    stacked = np.concatenate((prepared.image, channels))
    ours = Predictor(model, Settings("cpu", keep_gib=0))
    ours.warm_up()
    peak = peak_flop_per_s(ours.precision)
    seconds: list[tuple[float, float]] = []
    for _ in range(repeats):
        ours.set_case(case)
        our_seconds, margin = timed(lambda: ours.predict_margin(clicks))
        their_seconds, logits = _nnunet(stacked)
        seconds.append((our_seconds, their_seconds))
    report = ours.last_report
    masks = margin > 0, logits.argmax(0) == 1
    passes = report.ran * len(model.checkpoints) * 2 ** len(model.mirror_axes)
    our_median, their_median = (statistics.median(each) for each in zip(*seconds, strict=True))
    return {
        "tiles": report.total,
        "tiles left out": report.empty,
        "seconds": our_median,
        "nnU-Net's seconds": their_median,
        "times as fast": statistics.median(theirs / ours for ours, theirs in seconds),
        "Dice of the masks": dice(masks[0].numpy(), masks[1].numpy()),
        "lesion voxels": float(masks[1].sum()),
        "share of peak": passes * pass_flop(model) / our_median / peak,
        "peak, TFLOP/s": peak / 1e12,
    }


def _nnunet(stacked: npt.NDArray[np.float32]) -> tuple[float, torch.Tensor]:
    """Seconds that nnU-Net's predictor takes in a new process, once it is loaded; its logits."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "input.npy", stacked)
        command = [sys.executable, "-m", "benchmarks.predictor", folder]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        # nnU-Net prints as well, before
        return float(output.split()[-1]), torch.from_numpy(np.load(Path(folder) / "logits.npy"))


def _run_nnunet(folder: Path) -> float:
    model = benchmark_model()
    predictor = nnunet_predictor(model)
    with torch.inference_mode():  # the first pass of a process is slow, as ours
        predictor.network(torch.zeros(1, 4, *model.plan.patch_size))
    stacked = torch.from_numpy(np.load(folder / "input.npy"))
    seconds, logits = timed(lambda: predictor.predict_logits_from_preprocessed_data(stacked))
    np.save(folder / "logits.npy", logits.float().numpy())
    return seconds


if __name__ == "__main__":
    print(_run_nnunet(Path(sys.argv[1])))
