"""What several benchmarks share: cases, nnU-Net's view of the model, timing, and the machine's peak."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch.utils.flop_counter import FlopCounterMode

from petclick.clicks import ClickSet, click_set
from petclick.images import Case
from petclick.model import Model, load_model, load_network, read_checkpoint
from petclick.phantom import make_patient
from training.convert import find_patients, read_patient

MODEL = Path(__file__).resolve().parents[1] / "resources"
SARCOMA = Path(__file__).resolve().parents[2] / "shared" / "data" / "ibsi_validation"
"""The sarcoma patients' folder, where it lies beside the checkout."""
TIGHT_ZYX, FULL_ZYX = (300, 100, 100), (299, 149, 149)
"""Shapes of a whole body at the starter's spacing: one whose every tile shows the body, and the platform's
400 x 400 x 326 voxels of 2.04 x 2.04 x 3 mm."""
N_CLICKS = 5
"""Of each kind, where a benchmark needs some."""

T = TypeVar("T")


def benchmark_model() -> Model:
    """The shipped model, with the folds that `--folds` names."""
    folds = os.environ.get("PETCLICK_BENCHMARK_FOLDS", "all")
    return load_model(MODEL, None if folds == "all" else tuple(folds.split(",")))


def whole_body(
    model: Model, seed: int = 0, shape_zyx: tuple[int, int, int] = TIGHT_ZYX
) -> tuple[Case, ClickSet]:
    """A life-size phantom at the model's spacing, and clicks in and beside its lesions."""
    phantom = make_patient("fdg", seed, model.plan.spacing_mm, shape_zyx)
    case = Case(phantom.ct_hu, phantom.pet_suv, phantom.grid, f"phantom {seed}")
    return case, random_clicks(phantom.lesions > 0, phantom.tissues > 0, N_CLICKS, seed)


def sarcoma_case() -> tuple[Case, ClickSet] | None:
    """The first sarcoma patient, of `--cases`; None where there is none."""
    source = Path(os.environ.get("PETCLICK_BENCHMARK_CASES", SARCOMA))
    if not source.is_dir():
        return None
    case, truth = read_patient(find_patients(source)[0])
    return case, random_clicks(truth > 0, case.ct_hu > -500, N_CLICKS, 0)


def random_clicks(
    lesions: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]",
    body: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]",
    n: int,
    seed: int,
) -> ClickSet:
    """So many tumour clicks in lesions, and background clicks in the rest of a body."""
    rng = np.random.default_rng(seed)
    places = [np.argwhere(lesions), np.argwhere(body & ~lesions)]
    return click_set(
        *(place[rng.integers(0, max(len(place), 1), n if len(place) else 0)] for place in places)
    )


def nnunet_predictor(model: Model) -> nnUNetPredictor:
    """nnU-Net's own predictor on a CPU with the same weights, mirrors and step, as it comes."""
    dataset = json.loads((model.folder / "dataset.json").read_text())
    plans = PlansManager(json.loads((model.folder / "plans.json").read_text()))
    weights = [read_checkpoint(path)["network_weights"] for path in model.checkpoints]
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_mirroring=bool(model.mirror_axes),
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        load_network(model, model.checkpoints[0]),
        plans,
        plans.get_configuration("3d_fullres"),
        weights,
        dataset,
        "",
        model.mirror_axes,
    )
    return predictor


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def alternate(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of calls that take turns, so that what else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(timed(call)[0])
    return {name: statistics.median(each) for name, each in seconds.items()}


def pass_flop(model: Model) -> float:
    """Floating-point operations of one forward pass over one tile, convolutions only."""
    network = load_network(model, model.checkpoints[0])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 4, *model.plan.patch_size))
    return float(counter.get_total_flops())


def peak_flop_per_s(precision: torch.dtype, size: int = 4096) -> float:
    """Speed of a large matrix product on all cores: the most of five."""
    matrix = torch.randn(size, size).to(precision)
    return 2 * size**3 / min(timed(lambda: matrix @ matrix)[0] for _ in range(5))


def exponent(sizes: list[float], values: list[float]) -> float:
    """Of the power law that fits best: 1 is linear growth."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def more_and_more(
    clicks: ClickSet, seed: int, places: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"
) -> Iterator[ClickSet]:
    """The same clicks and one more at a random place, then two more, and so on."""
    rng = np.random.default_rng(seed)
    while True:
        kind = rng.integers(0, 2)
        index = np.concatenate((clicks.index_zyx, places[rng.integers(0, len(places), 1)]))
        clicks = ClickSet(index, np.append(clicks.kind, kind))
        yield clicks
