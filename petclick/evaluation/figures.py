"""What a case and a method are summed up by: figures at the first and the last step, areas, intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from petclick.evaluation.protocol import PROTOCOL_STEPS
from petclick.evaluation.results import METHODS, Result, StepResult
from petclick.metrics import ProtocolName, Score, case_summary, weighted_ranks

RESAMPLES = 10_000
CONFIDENCE = 0.95

CaseFigures = dict[str, float]
Table = dict[str, dict[str, CaseFigures]]
"""Method -> case -> figure -> value; NaN where it is not defined."""


@dataclass(frozen=True)
class Figure:
    """A figure of a case, and how to show it."""

    name: str
    label: str
    unit: str
    higher_is_better: bool
    digits: int


_STEP_FIGURES = (
    Figure("dice", "Dice", "", True, 3),
    Figure("fpv_ml", "FPV", "ml", False, 2),
    Figure("fnv_ml", "FNV", "ml", False, 2),
    Figure("dmm_f1", "lesion F1", "", True, 3),
)
_LAST_FIGURES = (
    *_STEP_FIGURES,
    Figure("surface_dice", "surface Dice", "", True, 3),
    Figure("hd95_mm", "HD95", "mm", False, 1),
    Figure("volume_error_ml", "|volume error|", "ml", False, 1),
    Figure("tumor_obeyed", "tumour clicks obeyed", "", True, 3),
    Figure("background_obeyed", "background clicks obeyed", "", True, 3),
)
FIGURES = (
    *(replace(each, name=f"{each.name}_first", label=f"{each.label}, first step") for each in _STEP_FIGURES),
    *(replace(each, name=f"{each.name}_last", label=f"{each.label}, last step") for each in _LAST_FIGURES),
    *(replace(each, name=f"{each.name}_auc", label=f"AUC-{each.label}") for each in _STEP_FIGURES),
)
"""The figures of a case that have a better and a worse."""


@dataclass(frozen=True)
class Mean:
    """Mean over the n cases where a figure is defined, and its bootstrap interval; NaN where n is 0."""

    value: float
    low: float
    high: float
    n: int


def case_figures(steps: Sequence[StepResult]) -> CaseFigures:
    """One case's figures by one method, from its steps in order.

    `metrics.case_summary`, the same fields at the first step as `<field>_first`, and the other fields of
    `StepResult` at the last. Areas are NaN unless the steps are all of the protocol's.
    """
    scores = [Score(**{field.name: getattr(step, field.name) for field in fields(Score)}) for step in steps]
    figures = case_summary(scores)
    if tuple(step.step for step in steps) != PROTOCOL_STEPS[protocol_of(steps)]:
        figures |= {name: math.nan for name in figures if name.endswith("_auc")}
    figures |= {f"{each.name}_first": getattr(steps[0], each.name) for each in _STEP_FIGURES}
    figures |= {f"{each.name}_last": getattr(steps[-1], each.name) for each in _LAST_FIGURES}
    figures["volume_error_ml_last"] = abs(figures["volume_error_ml_last"])
    return figures | {"truth_ml": steps[0].truth_ml}


def protocol_of(results: Sequence[Result]) -> ProtocolName:
    """The protocol of a file's rows, which all have the same."""
    return "autopet5" if results[0].protocol == "autopet5" else "autopet4"


def steps_by_case(results: Sequence[Result]) -> dict[tuple[str, str], list[StepResult]]:
    """(method, case) -> its steps in order."""
    grouped: dict[tuple[str, str], list[StepResult]] = {}
    for result in results:
        if isinstance(result, StepResult):
            grouped.setdefault((result.method, result.case), []).append(result)
    return {key: sorted(steps, key=lambda step: step.step) for key, steps in grouped.items()}


def figure_table(results: Sequence[Result]) -> Table:
    """`case_figures` of every case by every method, methods in the usual order."""
    table: Table = {}
    for (method, case), steps in steps_by_case(results).items():
        table.setdefault(method, {})[case] = case_figures(steps)
    return {method: table[method] for method in METHODS if method in table}


def means(cases: Mapping[str, CaseFigures]) -> dict[str, Mean]:
    """Mean and interval of each figure over cases."""
    names = next(iter(cases.values()))
    return {name: bootstrap_mean([figures[name] for figures in cases.values()]) for name in names}


def bootstrap_mean(values: Sequence[float] | npt.NDArray[np.float64]) -> Mean:
    """Mean of the values that are not NaN, and the percentile bootstrap interval over cases.

    The draws come from a fixed seed, so that equal values give equal intervals.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if len(known) == 0:
        return Mean(math.nan, math.nan, math.nan, 0)
    draws = np.random.default_rng(0).integers(len(known), size=(RESAMPLES, len(known)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(known[draws].mean(axis=1), (tail, 100 - tail))
    return Mean(float(known.mean()), float(low), float(high), len(known))


def ranks(table: Table, protocol: ProtocolName) -> dict[str, float]:
    """The challenge's weighted mean rank of each method, over the cases that all of them have; 1 is best."""
    shared = set.intersection(*(set(cases) for cases in table.values()))
    if not shared or len(table) < 2:
        return {}
    figures = {
        method: {name: mean.value for name, mean in means({case: cases[case] for case in shared}).items()}
        for method, cases in table.items()
    }
    return weighted_ranks(figures, protocol)
