"""Masks that exist already, scored as a challenge does."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from petclick.evaluation.cases import read_mask, require_same_grid
from petclick.metrics import ProtocolName, score, step_aucs


def score_files(truth: Path, predictions: Sequence[Path], protocol: ProtocolName) -> dict[str, Any]:
    """Score masks in the order of a case's steps.

    Args:
        truth: the lesion mask, in any format that SimpleITK reads.
        predictions: likewise, on the truth's grid.
        protocol: whose rules hold.

    Returns:
        `predictions`: for each its `file` and the fields of `metrics.Score`; `auc`: `metrics.step_aucs`. What
        is not defined is None.

    Raises:
        InputError: a file is refused, holds more than 0 and 1, or lies on another grid.
    """
    lesion, grid = read_mask(truth)
    scores = []
    for path in predictions:
        mask, its_grid = read_mask(path)
        require_same_grid(path, its_grid, grid, f"the truth {truth}")
        scores.append(score(lesion, mask, grid.voxel_ml, protocol))
    return {
        "predictions": [
            {"file": str(path), **_defined(asdict(each))}
            for path, each in zip(predictions, scores, strict=True)
        ],
        "auc": _defined(step_aucs(scores)),
    }


def _defined(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
