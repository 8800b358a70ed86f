"""What a time limit costs in quality: Dice of each rung on the sarcoma patients, and of other orders.

Every fold's and mirror's margin of every tile is computed once; a rung is a mean of some of them. Its mask is
compared with the whole ensemble's, the mean over which folds are taken, and, for one fold, also with the
truth, by the fold that has not seen the patient.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from benchmarks._cases import SARCOMA, benchmark_model, whole_body
from benchmarks._runs import dice
from petclick.clicks import ClickSet
from petclick.device import choose_precision
from petclick.evaluation.protocol import challenge_clicks, first_clicks
from petclick.guidance import encode
from petclick.images import Case
from petclick.model import Model, load_network
from petclick.postprocess import postprocess
from petclick.preprocess import BACKGROUND_MARGIN, Prepared, map_clicks, prepare, restore
from petclick.schedule import Corner, covering
from petclick.tiles import (
    Accumulator,
    Passes,
    all_mirrors,
    pad_to_patch,
    predict_tile,
    tile_box,
    tile_corners,
)
from training.convert import find_patients, read_patient
from training.preprocess import STARTER_SPLITS

CLICKS = 3
"""Of each kind."""
CPU = torch.device("cpu")

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Rung:
    """How much of the ensemble is run: folds, mirrored passes of each, and a step of 0.5 or about 1 patch."""

    folds: int
    mirrors: int
    step: float = 0.5

    def __str__(self) -> str:
        """Such as '2 folds x 1 mirrors, step 0.5'."""
        return f"{self.folds} folds x {self.mirrors} mirrors, step {self.step:g}"


RUNGS = [
    Rung(folds, mirrors, step) for step in (0.5, 1) for folds in (5, 3, 2, 1) for mirrors in (8, 4, 2, 1)
]


class CaseMargins:
    """The margins of one case: `tiles[fold][mirror][tile]`, each by a pass of its own."""

    def __init__(self, model: Model, networks: list[torch.nn.Module], case: Case, clicks: ClickSet) -> None:
        self._model, self._case, self._clicks = model, case, clicks
        self._prepared: Prepared = prepare(case, model.plan, model.spec.orientation)
        shape, patch = self._prepared.shape, model.plan.patch_size
        guidance = encode(map_clicks(clicks, self._prepared), shape, model.spec)
        image = torch.from_numpy(np.concatenate((self._prepared.image, guidance)))
        image, self._unpad = pad_to_patch(image, patch)
        self._shape = image.shape[1:]
        self._corners = tile_corners(self._shape, patch, 0.5)
        self._first = covering(self._corners, patch)
        precision = choose_precision("auto", CPU)
        with torch.inference_mode():
            self._tiles = [
                [
                    [
                        predict_tile(
                            _cut(image, corner, patch),
                            Passes([network], (flips,), 1, CPU, precision),
                            lambda _: None,
                        )
                        for corner in self._corners
                    ]
                    for flips in all_mirrors((0, 1, 2))
                ]
                for network in networks
            ]

    @property
    def rungs(self) -> list[Rung]:
        """Those that differ: without a tile to spare, a larger step is none."""
        return [rung for rung in RUNGS if rung.step == 0.5 or len(self._first) < len(self._corners)]

    def mask(self, folds: list[int], rung: Rung) -> Mask:
        """The rung's mask, made of these folds."""
        sums = Accumulator(tile_box((0, 0, 0), self._shape), self._model.plan.patch_size, CPU)
        for place, corner in enumerate(self._corners):
            if rung.step == 0.5 or corner in self._first:
                chosen = [
                    self._tiles[fold][mirror][place] for fold in folds for mirror in range(rung.mirrors)
                ]
                sums.add(corner, torch.stack(chosen).mean(0))
        margin = restore(sums.mean(BACKGROUND_MARGIN)[self._unpad], self._prepared, self._model.plan)
        grid, spec = self._prepared.case_grid, self._model.spec.postprocess
        return postprocess(margin, self._case.pet_suv, self._clicks, grid, spec)


def run() -> dict[str, float]:
    """Mean Dice of each rung, to the whole ensemble and, for one fold, to the truth; and the worst case."""
    source = Path(os.environ.get("PETCLICK_BENCHMARK_CASES", SARCOMA))
    if not source.is_dir():
        return {}
    model = benchmark_model()
    networks = [load_network(model, checkpoint) for checkpoint in model.checkpoints]
    figures: dict[str, list[float]] = defaultdict(list)
    for unseen, case, truth in tqdm(list(_patients(source))):
        clicks = first_clicks(challenge_clicks(truth, case.pet_suv), CLICKS)
        margins = CaseMargins(model, networks, case, clicks)
        _compare(margins, len(networks), "", figures)
        for rung in (rung for rung in margins.rungs if rung.folds == 1):
            figures[f"{rung}: Dice to the truth"].append(dice(margins.mask([unseen], rung), truth))
    # The patients' crops are so small that no tile can be left out; a body's are not.
    _compare(CaseMargins(model, networks, *whole_body(model)), len(networks), "whole body, ", figures)
    return {
        name: value
        for figure, values in figures.items()
        for name, value in ((figure, float(np.mean(values))), (f"{figure}, worst", float(np.min(values))))
    }


def _compare(margins: CaseMargins, n_folds: int, what: str, figures: dict[str, list[float]]) -> None:
    """Add each rung's Dice to the whole ensemble, the mean over which folds are taken."""
    whole = margins.mask(list(range(n_folds)), Rung(n_folds, 8))
    for rung in margins.rungs:
        firsts = range(n_folds if rung.folds < n_folds else 1)
        choices = [[(first + i) % n_folds for i in range(rung.folds)] for first in firsts]
        mean = float(np.mean([dice(margins.mask(folds, rung), whole) for folds in choices]))
        figures[f"{what}{rung}: Dice to the whole ensemble"].append(mean)


def _patients(source: Path) -> Iterator[tuple[int, Case, Mask]]:
    """The fold that has not seen a patient, the case, and the truth."""
    unseen = {
        name: fold
        for fold, split in enumerate(json.loads(STARTER_SPLITS.read_text("utf-8")))
        for name in split["val"]
    }
    for patient in find_patients(source):
        if patient.name in unseen:
            yield unseen[patient.name], *read_patient(patient)


def _cut(image: torch.Tensor, corner: Corner, patch: tuple[int, int, int]) -> torch.Tensor:
    return image[(slice(None), *(slice(i, i + n) for i, n in zip(corner, patch, strict=True)))]
