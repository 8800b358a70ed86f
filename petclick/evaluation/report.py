"""report.html: the whole evaluation on one page, without a network or any other file.

This module gathers what the page shows; `report.html` beside it is the template.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from petclick.evaluation.curves import METHOD_STYLE, STEP_LABEL, curves_svg
from petclick.evaluation.figures import (
    FIGURES,
    Mean,
    Table,
    figure_table,
    means,
    protocol_of,
    ranks,
    steps_by_case,
)
from petclick.evaluation.results import Failure, Result, StepResult
from petclick.overlay import CLICK_STYLE, LESION_COLOUR

CASE_COLUMNS = (
    ("truth_ml", "lesions", "ml", 1),
    ("dice_first", "Dice first", "", 3),
    ("dice_last", "Dice last", "", 3),
    ("dice_auc", "AUC-Dice", "", 2),
    ("fpv_ml_first", "FPV first", "ml", 1),
    ("fpv_ml_last", "FPV last", "ml", 1),
    ("fnv_ml_last", "FNV last", "ml", 1),
    ("dmm_f1_last", "lesion F1", "", 2),
    ("hd95_mm_last", "HD95", "mm", 1),
    ("tumor_obeyed_last", "tumour obeyed", "", 2),
    ("background_obeyed_last", "backgr. obeyed", "", 2),
)
"""Figure, heading, unit and digits of the table of cases."""
PROTOCOL_TEXT = {
    "autopet4": "autoPET/CT IV: clicks of each kind, simulated beforehand",
    "autopet5": "autoPET V: one more scribble on the largest error of the last prediction at each step",
}
GROUPS = {"first": "At the first step", "last": "At the last step", "auc": "Area over all steps"}
TRUTH_COLOUR = "#f5a300"
NO_VALUE = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A number on the page: as text, with its interval, as a value to sort by, and whether it is the best."""

    text: str
    interval: str = ""
    value: float | None = None
    best: bool = False


def write_report(results: Sequence[Result], views: Path, path: Path, title: str) -> None:
    """Write the page.

    Args:
        results: all rows of metrics.csv, at least one.
        views: folder with each case's pictures, `<case>.json`.
        path: the page; an older one is replaced as a whole.
        title: what was evaluated.
    """
    table = figure_table(results)
    order = _worst_first(table)
    fold_of = {each.case: each.fold for each in results}
    environment = Environment(
        loader=PackageLoader("petclick.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=title,
        protocol=PROTOCOL_TEXT[protocol_of(results)],
        scribbles=protocol_of(results) == "autopet5",
        step_label=STEP_LABEL[protocol_of(results)],
        n_cases=len(fold_of),
        n_lesion_free=len(
            {case for cases in table.values() for case in cases if not cases[case]["truth_ml"]}
        ),
        cross_validated=any(fold_of.values()),
        failures=[each for each in results if isinstance(each, Failure)],
        methods={method: METHOD_STYLE[method] for method in table},
        summary=_summary(table, results),
        curves=Markup(curves_svg(results)) if table else "",
        columns=CASE_COLUMNS,
        case_rows=_case_rows(table, order, fold_of),
        number_of={case: number for number, case in enumerate(order, 1)},
        cards=_cards(results, table, order, views),
        colours={
            "truth": TRUTH_COLOUR,
            "lesion": LESION_COLOUR,
            **{kind: colour for kind, (_, _, colour) in CLICK_STYLE.items()},
        },
    )
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(page, "utf-8")
    partial.replace(path)


def _worst_first(table: Table) -> list[str]:
    """Cases by the first method's last Dice; those without lesions after them, most false volume first."""
    cases = next(iter(table.values()), {})

    def badness(case: str) -> tuple[float, float, str]:
        dice = cases[case]["dice_last"]
        return math.inf if math.isnan(dice) else dice, -cases[case]["fpv_ml_last"], case

    others = {case for of_method in table.values() for case in of_method} - cases.keys()
    return [*sorted(cases, key=badness), *sorted(others)]


def _summary(table: Table, results: Sequence[Result]) -> list[tuple[str, list[tuple[str, str, list[Cell]]]]]:
    """Groups of rows (label, unit, a cell for each method)."""
    if not table:
        return []
    of_methods = [means(cases) for cases in table.values()]
    groups: dict[str, list[tuple[str, str, list[Cell]]]] = {}
    rank = ranks(table, protocol_of(results))
    if rank and not any(map(math.isnan, rank.values())):
        best = min(rank.values())
        row = [Cell(f"{rank[method]:.2f}", best=rank[method] == best) for method in table]
        groups["Against each other"] = [("mean rank, weighted as the challenge does", "", row)]
    for figure in FIGURES:
        found = [of_method[figure.name] for of_method in of_methods]
        values = [mean.value for mean in found if mean.n]
        if values:
            best = max(values) if figure.higher_is_better else min(values)
            row = [_mean_cell(mean, figure.digits, len(table) > 1 and mean.value == best) for mean in found]
            label = figure.label.removesuffix(", first step").removesuffix(", last step")
            groups.setdefault(GROUPS[figure.name.rsplit("_", 1)[1]], []).append((label, figure.unit, row))
    return list(groups.items())


def _mean_cell(mean: Mean, digits: int, best: bool) -> Cell:
    if not mean.n:
        return Cell(NO_VALUE)
    return Cell(
        f"{mean.value:.{digits}f}", f"{mean.low:.{digits}f} to {mean.high:.{digits}f}", mean.value, best
    )


def _case_rows(
    table: Table, order: Sequence[str], fold_of: Mapping[str, str]
) -> list[tuple[str, str, str, list[Cell]]]:
    """Method, case, fold and a cell for each of `CASE_COLUMNS`, worst first."""
    return [
        (
            method,
            case,
            fold_of[case],
            [_cell(cases[case][name], digits) for name, _, _, digits in CASE_COLUMNS],
        )
        for method, cases in table.items()
        for case in order
        if case in cases
    ]


def _cell(value: float, digits: int) -> Cell:
    return Cell(NO_VALUE) if math.isnan(value) else Cell(f"{value:.{digits}f}", value=value)


def _cards(
    results: Sequence[Result], table: Table, order: Sequence[str], views: Path
) -> list[dict[str, Any]]:
    """Each case's pictures, worst first: `CaseView.as_json`, with the scores of each method."""
    grouped = steps_by_case(results)
    cards = []
    for case in order:
        path = views / f"{case}.json"
        if not path.is_file():
            continue
        view = json.loads(path.read_text("utf-8"))
        methods = {}
        for method in table:
            scored = {step.step: step for step in grouped.get((method, case), [])}
            if scored and method in view["methods"]:
                methods[method] = [
                    drawn | _captions(scored[drawn["step"]])
                    for drawn in view["methods"][method]
                    if drawn["step"] in scored
                ]
        figures = next(cases[case] for cases in table.values() if case in cases)
        cards.append(view | {"case": case, "methods": methods, "truth_ml": figures["truth_ml"]})
    return cards


def _captions(step: StepResult) -> dict[str, str]:
    dice = NO_VALUE if math.isnan(step.dice) else f"{step.dice:.3f}"
    fnv = "" if math.isnan(step.fnv_ml) else f", FNV {step.fnv_ml:.1f}"
    return {"dice": dice, "volumes": f"FPV {step.fpv_ml:.1f}{fnv} ml"}
