"""Which of two evaluations is better: paired by case, with a bootstrap interval and a Wilcoxon test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from petclick.errors import InputError
from petclick.evaluation.figures import (
    FIGURES,
    CaseFigures,
    Figure,
    Mean,
    bootstrap_mean,
    figure_table,
    protocol_of,
    ranks,
)
from petclick.evaluation.results import read_results
from petclick.files import listing
from petclick.metrics import RANK_WEIGHTS, ProtocolName

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Paired:
    """One figure over the cases where both have it.

    a, b: means; difference: mean of B minus A, with its interval; p: of Wilcoxon's signed-rank test,
    two-sided, 1 where no case differs, NaN without cases; better: 'A' or 'B', or '' where p is not below
    `SIGNIFICANT`.
    """

    figure: Figure
    a: float
    b: float
    difference: Mean
    p: float
    better: str


@dataclass(frozen=True)
class Comparison:
    """Two methods on the cases that both have.

    figures: all that are defined in at least one case; ranks: the challenge's weighted mean ranks of A and B.
    """

    protocol: ProtocolName
    n_cases: int
    figures: tuple[Paired, ...]
    ranks: tuple[float, float]


def compare(a: Path, b: Path, methods: tuple[str | None, str | None] = (None, None)) -> Comparison:
    """Compare two metrics.csv.

    Args:
        a: one.
        b: the other; both may be the same file.
        methods: which method of each; None for the first that the file has, the network if it is there.

    Raises:
        InputError: not a metrics.csv, no such method, other protocols or steps, or no common case.
    """
    (protocol_a, steps_a, cases_a), (protocol_b, steps_b, cases_b) = (
        _load(path, method) for path, method in zip((a, b), methods, strict=True)
    )
    if (protocol_a, steps_a) != (protocol_b, steps_b):
        rule = f"must have the protocol and steps of {a} ({protocol_a}, {listing([*map(str, steps_a)])})"
        raise InputError(b, rule, f"{protocol_b}, {listing([*map(str, steps_b)])}")
    shared = sorted(cases_a.keys() & cases_b.keys())
    if not shared:
        raise InputError(b, f"must have cases in common with {a}", listing(sorted(cases_b)))
    figures = [
        _paired(figure, [cases_a[case] for case in shared], [cases_b[case] for case in shared])
        for figure in FIGURES
    ]
    table = {"A": {case: cases_a[case] for case in shared}, "B": {case: cases_b[case] for case in shared}}
    rank = ranks(table, protocol_a)
    return Comparison(
        protocol_a,
        len(shared),
        tuple(figure for figure in figures if figure.difference.n),
        (rank["A"], rank["B"]),
    )


def comparison_text(comparison: Comparison, name_a: str, name_b: str) -> str:
    """The comparison as a Markdown table, with what follows from it in words."""
    lines = [
        f"A: {name_a}",
        f"B: {name_b}",
        "",
        f"{comparison.n_cases} common cases, {comparison.protocol}",
        "",
        "| figure | cases | A | B | B - A | 95 % interval | Wilcoxon p | better |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in comparison.figures:
        figure, mean = each.figure, each.difference
        label = f"{figure.label} ({figure.unit})" if figure.unit else figure.label
        a, b = (f"{value:.{figure.digits}f}" for value in (each.a, each.b))
        difference, low, high = (f"{value:+.{figure.digits}f}" for value in (mean.value, mean.low, mean.high))
        p = f"{each.p:.2g}" if each.p >= 1e-4 else "< 0.0001"
        cells = (label, mean.n, a, b, difference, f"{low} to {high}", p, each.better or "-")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", _verdict(comparison)])


def _verdict(comparison: Comparison) -> str:
    """Who wins the challenge's ranking of the two, and how much of that is beyond chance."""
    ranked = RANK_WEIGHTS[comparison.protocol]
    shown = [each for each in comparison.figures if each.figure.name in ranked]
    surely = {side: [each.figure.label for each in shown if each.better == side] for side in ("A", "B")}
    rank_a, rank_b = comparison.ranks
    if math.isnan(rank_a) or len(shown) < len(ranked):
        verdict = "The figures do not suffice for the challenge's ranking."
    elif rank_a == rank_b:
        verdict = "By the challenge's ranking, A and B are equal."
    else:
        best, ranks_text = ("A", (rank_a, rank_b)) if rank_a < rank_b else ("B", (rank_b, rank_a))
        verdict = "By the challenge's ranking, {} is better (mean rank {:.2f} against {:.2f}).".format(
            best, *ranks_text
        )
    counts = " and ".join(
        f"{side} is better in {len(labels)} ({', '.join(labels)})" if labels else f"{side} in none"
        for side, labels in surely.items()
    )
    return (
        f"{verdict} Of its {len(ranked)} figures, {counts} with p < {SIGNIFICANT} "
        "(each test by itself, not corrected for their number)."
    )


def _load(path: Path, method: str | None) -> tuple[ProtocolName, tuple[int, ...], dict[str, CaseFigures]]:
    results = read_results(path)
    table = figure_table(results)
    if not table:
        raise InputError(path, "must be a metrics.csv with scored cases")
    method = method or next(iter(table))
    if method not in table:
        raise InputError(path, f"must have the method {method}", f"only {listing([*table])}")
    steps = tuple(sorted({each.step for each in results if each.method == method and hasattr(each, "step")}))
    return protocol_of(results), steps, table[method]


def _paired(figure: Figure, a: Sequence[CaseFigures], b: Sequence[CaseFigures]) -> Paired:
    values_a, values_b = (np.array([case[figure.name] for case in cases]) for cases in (a, b))
    both = ~np.isnan(values_a) & ~np.isnan(values_b)
    values_a, values_b = values_a[both], values_b[both]
    differences = values_b - values_a
    difference = bootstrap_mean(differences)
    if not len(differences):
        return Paired(figure, math.nan, math.nan, difference, math.nan, "")
    p = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
    better = "" if p >= SIGNIFICANT else "B" if (difference.value > 0) == figure.higher_is_better else "A"
    return Paired(figure, float(values_a.mean()), float(values_b.mean()), difference, p, better)
