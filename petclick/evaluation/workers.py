"""The work of an evaluation, case by case, in one process or in several.

Each case is read once for all methods and set once in the predictor, and each step predicts with what has
been given so far.
"""

import json
import math
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petclick.baselines import fixed_threshold, region_growing
from petclick.errors import PetclickError
from petclick.evaluation.cases import AnyCase, TruthCase, read_truth_case
from petclick.evaluation.protocol import Method, Step, interact
from petclick.evaluation.results import Failure, Result, StepResult
from petclick.evaluation.views import CaseView
from petclick.images import Case, write_mask
from petclick.metrics import ProtocolName, score, surface_score, volume_error_ml

if TYPE_CHECKING:
    from petclick.predictor import Predictor

VIEWS, MASKS = "views", "masks"
"""Folders below the output folder: each case's pictures for the report, and the masks if they are kept."""
GROWING = {"growing41": 0.41, "growing50": 0.5}
FIXED_SUV = {"suv2.5": 2.5, "suv4": 4.0}
SURFACE_TOLERANCE_MM = 5.0
"""Surfaces this close agree: about PET's resolution."""

Tick = Callable[[int], Any]
"""Is told how many steps have been done."""


@dataclass(frozen=True)
class Network:
    """Which model, and how it computes; as the flags of `inference.py`."""

    model: Path
    folds: tuple[str, ...] | None = None
    device: str = "auto"
    precision: str = "auto"
    mirror_axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Run:
    """An evaluation.

    out: folder of the results. steps: numbers of the protocol's steps, ascending. methods: of
    `results.METHODS`. network: needed for the method 'network'. fold_of: case -> the fold that holds it out;
    None has all folds predict together. masks: keep each step's mask. jobs: processes. progress: show a bar
    on stderr.
    """

    out: Path
    protocol: ProtocolName
    steps: tuple[int, ...]
    methods: tuple[str, ...]
    network: Network | None = None
    fold_of: Mapping[str, str] | None = None
    masks: bool = False
    jobs: int = 1
    progress: bool = True


@dataclass(frozen=True)
class Job:
    """What is to be done for one case; `fold` is empty without cross-validation."""

    files: AnyCase
    fold: str
    methods: tuple[str, ...]


def evaluate_jobs(run: Run, jobs: Sequence[Job], tick: Tick) -> Iterator[list[Result]]:
    """Each job's results as they come.

    Raises:
        PetclickError: a worker process died.
    """
    n_processes = min(run.jobs, len(jobs))
    if n_processes <= 1:
        worker = Worker(run)
        for job in jobs:
            yield worker.evaluate(job, tick)
        return
    # Spawned: a forked process cannot use CUDA, and hangs where a thread held a lock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, context, _start_process, (run, n_processes)) as pool:
        futures = {pool.submit(_evaluate_in_process, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield future.result()
                tick(len(futures[future].methods) * len(run.steps))
        except BrokenProcessPool as error:
            reason = "a worker process died, for lack of memory perhaps; the same command goes on from here"
            raise PetclickError(reason) from error
        finally:
            pool.shutdown(cancel_futures=True)


class Worker:
    """Evaluates one case after another; keeps the model between cases of one fold."""

    def __init__(self, run: Run) -> None:
        """Nothing is loaded yet."""
        self._run = run
        self._predictor: Predictor | None = None
        self._fold = ""

    def evaluate(self, job: Job, tick: Tick) -> list[Result]:
        """All steps of all methods of the job, or a `Failure` for each method that cannot be evaluated."""
        if "network" in job.methods:
            self._load_predictor(job.fold)  # what is wrong with the model is not the case's fault
        results: list[Result] = []
        pictures: dict[str, list[dict[str, Any]]] = {}
        try:
            found = read_truth_case(job.files)
        except PetclickError as error:
            tick(len(job.methods) * len(self._run.steps))
            return [self._failure(job, method, error) for method in job.methods]
        view = CaseView(found.case, found.truth)
        for method in job.methods:
            scored: list[Result] = []
            drawn = []
            try:
                for step in self._steps(method, found):
                    scored.append(self._scored(job, method, found, step))
                    if step.number in (self._run.steps[0], self._run.steps[-1]):
                        drawn.append(view.step(step))
                    if self._run.masks:
                        folder = self._run.out / MASKS / job.files.name / method
                        write_mask(step.mask, found.case.grid, folder / f"step-{step.number:02d}.mha")
                    tick(1)
                pictures[method] = drawn
            except PetclickError as error:
                tick(len(self._run.steps) - len(scored))
                scored = [self._failure(job, method, error)]
            results += scored
        self._save_view(job, view, pictures)
        return results

    def _steps(self, method: str, found: TruthCase) -> Iterator[Step]:
        if method == "network" and self._predictor is not None:
            self._predictor.set_case(found.case)
            predict: Method = self._predictor.predict
        else:
            predict = _baseline(method, found.case)
        return interact(predict, found.truth, found.clicks, self._run.protocol, self._run.steps)

    def _load_predictor(self, fold: str) -> None:
        # PyTorch takes seconds to import, which baselines need not wait for.
        from petclick.model import load_model
        from petclick.predictor import Predictor, Settings

        network = self._run.network
        if network is None:
            raise ValueError("the method 'network' needs a model")
        if self._predictor is None or self._fold != fold:
            self._predictor = None  # frees the last fold's memory before the next one takes it
            folds = (fold,) if fold else network.folds
            settings = Settings(network.device, network.precision, network.mirror_axes)
            self._predictor, self._fold = Predictor(load_model(network.model, folds), settings), fold

    def _scored(self, job: Job, method: str, found: TruthCase, step: Step) -> StepResult:
        truth, mask, grid = found.truth, step.mask, found.case.grid
        surface = surface_score(truth, mask, grid.spacing_zyx_mm, SURFACE_TOLERANCE_MM)
        tumor, background = (step.clicks.of_kind(kind) for kind in ("tumor", "background"))
        return StepResult(
            case=job.files.name,
            fold=job.fold,
            method=method,
            protocol=self._run.protocol,
            step=step.number,
            tumor_clicks=len(tumor),
            background_clicks=len(background),
            truth_ml=np.count_nonzero(truth) * grid.voxel_ml,
            **asdict(score(truth, mask, grid.voxel_ml, self._run.protocol)),
            surface_dice=surface.dice,
            hd95_mm=surface.hd95_mm,
            volume_error_ml=volume_error_ml(truth, mask, grid.voxel_ml),
            tumor_obeyed=_share(mask[tuple(tumor.T)] == 1),
            background_obeyed=_share(mask[tuple(background.T)] == 0),
        )

    def _failure(self, job: Job, method: str, error: PetclickError) -> Failure:
        return Failure(job.files.name, job.fold, method, self._run.protocol, str(error))

    def _save_view(self, job: Job, view: CaseView, pictures: dict[str, list[dict[str, Any]]]) -> None:
        """Keep the pictures, with those of methods that were evaluated before; the rows come after them."""
        path = self._run.out / VIEWS / f"{job.files.name}.json"
        path.parent.mkdir(exist_ok=True)
        earlier = json.loads(path.read_text("utf-8"))["methods"] if path.is_file() else {}
        partial_file = path.with_name(f".{path.name}.part")
        partial_file.write_text(json.dumps(view.as_json(earlier | pictures)), "utf-8")
        partial_file.replace(path)


def _baseline(method: str, case: Case) -> Method:
    """A method that knows PET and the clicks only."""
    if method in FIXED_SUV:
        mask = fixed_threshold(case.pet_suv, FIXED_SUV[method])
        return lambda clicks: mask
    return partial(
        region_growing, case.pet_suv, spacing_zyx_mm=case.grid.spacing_zyx_mm, fraction=GROWING[method]
    )


def _share(obeyed: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    return float(obeyed.mean()) if len(obeyed) else math.nan


_process_worker: Worker | None = None


def _start_process(run: Run, n_processes: int) -> None:
    """Make this process a worker with its share of the cores that ends with the one that started it."""
    global _process_worker
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_processes)))
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _process_worker = Worker(replace(run, progress=False))


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _evaluate_in_process(job: Job) -> list[Result]:
    assert _process_worker is not None
    try:
        return _process_worker.evaluate(job, lambda n: None)
    except PetclickError as error:
        raise PetclickError(str(error)) from None  # a subclass with arguments of its own cannot be sent back
