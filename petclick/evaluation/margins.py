"""Margins predicted once and kept on disk, so that post-processing can be tried without the network.

A case's file holds one array for each number of clicks, float16 on the case's grid (z, y, x): half precision
keeps a margin's sign, and 1/1000 of its size.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from petclick.evaluation.cases import AnyCase, TruthCase, read_truth_case
from petclick.evaluation.protocol import first_clicks
from petclick.evaluation.settings import network_settings, require_same
from petclick.evaluation.workers import Network
from petclick.guidance import FILE_NAME, load_spec
from petclick.records import to_mapping

if TYPE_CHECKING:
    from petclick.model import Model
    from petclick.predictor import Predictor

Margins = dict[int, npt.NDArray[np.float32]]
"""Number of clicks of each kind -> margin (z, y, x)."""

HALF_RANGE = 6e4
"""Larger margins are cut; float16 ends at 65,504."""


def keep_margins(
    cases: Sequence[AnyCase],
    network: Network,
    fold_of: Mapping[str, str] | None,
    steps: Sequence[int],
    out: Path,
    progress: bool = True,
) -> None:
    """Predict every case's margins that `out` lacks; a killed run goes on where it was.

    Args:
        cases: those to predict.
        network: the model, and how it computes.
        fold_of: case -> the fold that holds it out; None has all folds predict together.
        steps: numbers of clicks of each kind, of autoPET/CT IV's protocol.
        out: folder of the files.
        progress: show a bar on stderr.

    Raises:
        InputError: a case or the model is refused, or `out` holds margins of another model or other flags.
    """
    from petclick.model import load_model
    from petclick.predictor import Predictor, Settings

    settings = network_settings(network, fold_of)
    settings["model"].pop(FILE_NAME, None)
    # Margins do not depend on what is done with them later.
    guidance = to_mapping(load_spec(network.model / FILE_NAME)) | {"postprocess": None}
    require_same(
        out, settings | {"guidance": guidance, "steps": list(steps), "folds of cases": dict(fold_of or {})}
    )
    todo = [case for case in cases if not margins_file(out, case.name).is_file()]
    todo.sort(key=lambda case: (fold_of[case.name], case.name) if fold_of else ("", case.name))
    how = Settings(network.device, network.precision, network.mirror_axes)
    predictor: Predictor | None = None
    loaded: str | None = None
    for case in tqdm(todo, unit="case", desc="margins", disable=not progress):
        fold = fold_of[case.name] if fold_of else ""
        if predictor is None or fold != loaded:
            predictor = None  # frees the last fold's memory before the next one takes it
            model = load_model(network.model, (fold,) if fold else network.folds)
            predictor, loaded = Predictor(model, how), fold
        margins = _predict(predictor, model, read_truth_case(case), steps)
        file = margins_file(out, case.name)
        partial = file.with_name(f".{file.name}.{os.getpid()}.part")
        with partial.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **margins)
        partial.replace(file)


def read_margins(out: Path, case: str) -> Margins:
    """A case's margins, as `keep_margins` left them."""
    with np.load(margins_file(out, case)) as arrays:
        return {int(name): arrays[name].astype(np.float32) for name in arrays.files}


def margins_file(out: Path, case: str) -> Path:
    """Where a case's margins lie."""
    return out / f"{case}.npz"


def _predict(
    predictor: "Predictor", model: "Model", found: TruthCase, steps: Sequence[int]
) -> dict[str, npt.NDArray[np.float16]]:
    from petclick.preprocess import prepare, restore

    prepared = prepare(found.case, model.plan, model.spec.orientation)
    predictor.set_case(found.case)
    margins = {}
    for step in steps:
        margin = restore(predictor.predict_margin(first_clicks(found.clicks, step)), prepared, model.plan)
        margins[str(step)] = margin.clip(-HALF_RANGE, HALF_RANGE).astype(np.float16)
    return margins
