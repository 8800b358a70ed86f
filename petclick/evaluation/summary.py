"""An evaluation in numbers: metrics.json in the platform's form, and Markdown tables for documents."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from petclick.evaluation.figures import (
    Mean,
    case_figures,
    figure_table,
    means,
    protocol_of,
    ranks,
    steps_by_case,
)
from petclick.evaluation.results import Failure, Result

SHOWN_STEPS = (0, 1, 3, 5, 10)
"""Steps in the table; the last one is shown in any case."""
STEP_COLUMNS = (("dice", 3), ("fpv_ml", 2), ("fnv_ml", 2), ("dmm_f1", 3))
LAST_COLUMNS = (
    ("dice_last", 3),
    ("fpv_ml_last", 2),
    ("fnv_ml_last", 2),
    ("dmm_f1_last", 3),
    ("dice_auc", 2),
    ("fpv_ml_auc", 1),
    ("fnv_ml_auc", 1),
    ("dmm_f1_auc", 2),
    ("tumor_obeyed_last", 3),
    ("background_obeyed_last", 3),
)


def write_metrics_json(results: Sequence[Result], path: Path) -> None:
    """Write `metrics_json` to a file."""
    path.write_text(json.dumps(metrics_json(results), indent=1, allow_nan=False) + "\n", "utf-8")


def metrics_json(results: Sequence[Result]) -> dict[str, Any]:
    """The results as Grand Challenge's evaluations have them: `aggregates`, and `results` case by case.

    `aggregates` has, for each method, every figure's mean, its 95 % interval and the number of cases, and the
    method's rank among those evaluated; `results` every case's figures and steps. NaN becomes null.
    """
    table = figure_table(results)
    rank = ranks(table, protocol_of(results)) if table else {}
    aggregates = {
        method: {
            "cases": len(cases),
            "rank": rank.get(method),
            **{
                name: {"mean": mean.value, "ci95": [mean.low, mean.high], "n": mean.n}
                for name, mean in means(cases).items()
            },
        }
        for method, cases in table.items()
    }
    cases: list[dict[str, Any]] = []
    for (method, case), steps in steps_by_case(results).items():
        shared = ("case", "method", "fold", "protocol", "truth_ml")
        rows = [{name: value for name, value in asdict(step).items() if name not in shared} for step in steps]
        about = {"case": case, "method": method, "fold": steps[0].fold or None}
        cases.append(about | case_figures(steps) | {"steps": rows})
    cases += [asdict(each) for each in results if isinstance(each, Failure)]
    protocol = protocol_of(results)
    answer: dict[str, Any] = _null_for_nan({"protocol": protocol, "aggregates": aggregates, "results": cases})
    return answer


def markdown_tables(results: Sequence[Result]) -> str:
    """Means over the cases where a figure is defined: by method and step, and by method at the last step."""
    table = figure_table(results)
    grouped = steps_by_case(results)
    lines = [
        "| method | step | cases | Dice | FPV (ml) | FNV (ml) | lesion F1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, of_method in table.items():
        cases = [grouped[method, case] for case in of_method]
        for index, step in enumerate(cases[0]):
            if step.step in SHOWN_STEPS or step is cases[0][-1]:
                rows = [steps[index] for steps in cases]
                cells = [_mean([getattr(row, name) for row in rows], digits) for name, digits in STEP_COLUMNS]
                lines.append(f"| {method} | {step.step} | {len(rows)} | {' | '.join(cells)} |")
    last = [
        "| method | Dice | FPV (ml) | FNV (ml) | lesion F1 | AUC-Dice | AUC-FPV | AUC-FNV | AUC-F1 "
        "| tumour clicks obeyed | background clicks obeyed | rank |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rank = ranks(table, protocol_of(results)) if table else {}
    for method, of_method in table.items():
        found = means(of_method)
        cells = [_with_interval(found[name], digits) for name, digits in LAST_COLUMNS]
        last.append(f"| {method} | {' | '.join(cells)} | {_number(rank.get(method, math.nan), 2)} |")
    return "\n".join([*lines, "", *last])


def _mean(values: Sequence[float], digits: int) -> str:
    known = [value for value in values if not math.isnan(value)]
    return _number(float(np.mean(known)) if known else math.nan, digits)


def _with_interval(mean: Mean, digits: int) -> str:
    if not mean.n:
        return "-"
    return f"{mean.value:.{digits}f} ({mean.low:.{digits}f} to {mean.high:.{digits}f})"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_for_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_null_for_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
