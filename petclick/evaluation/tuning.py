"""Which post-processing helps: candidates scored on kept margins, and chosen on other folds' cases only.

A spec's worth is the mean over the steps of Dice, less `DICE_PER_ML` for each ml of false components,
averaged over a group's cases (`group_of`) and then over groups, so that many phantoms do not outvote
patients. Only specs that obey the clicks are chosen; where none does, none is, and cases are scored as the
network left them. For each fold the best spec of the other folds' cases is
taken, and scored on the fold itself: together these scores say what tuning is worth on unseen cases.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from petclick.evaluation.cases import AnyCase, read_truth_case
from petclick.evaluation.margins import read_margins
from petclick.evaluation.protocol import first_clicks
from petclick.metrics import score
from petclick.postprocess import PostprocessSpec, postprocess
from petclick.records import to_mapping

FIGURES = ("dice", "fpv_ml", "fnv_ml", "dmm_f1", "tumor_obeyed", "background_obeyed")
DICE_PER_ML = 0.001
"""What a ml of false components costs."""
TABLE, CHOSEN = "tuning.md", "postprocess.json"
"""What is written beside the margins."""
LEAST_OBEYED = 0.99
"""Share of the clicks of each kind that a chosen spec must obey at every step."""
DISOBEYED = f"no candidate obeys {LEAST_OBEYED} of the clicks, so none is chosen"

logger = logging.getLogger(__name__)

Scores = npt.NDArray[np.float64]
"""(spec, case, step, figure of `FIGURES`); NaN where a figure is not defined."""


@dataclass(frozen=True)
class Tuning:
    """Every candidate's scores on every case.

    folds: of each case, '' where none holds it out; groups: of each case.
    """

    specs: tuple[PostprocessSpec, ...]
    cases: tuple[str, ...]
    folds: tuple[str, ...]
    steps: tuple[int, ...]
    scores: Scores

    @property
    def groups(self) -> tuple[str, ...]:
        """Each case's group."""
        return tuple(map(group_of, self.cases))


def group_of(case: str) -> str:
    """The kind of a case: what its name has before the first underscore, such as STS or phantom."""
    return case.partition("_")[0]


def candidates() -> tuple[PostprocessSpec, ...]:
    """Each switch alone, then combinations and thresholds of them."""
    none = PostprocessSpec()
    obeying = replace(none, drop_background=True, split=True, grow=True)
    local = [
        replace(obeying, threshold_prior=1.0, local_variance=variance, local_mm=mm)
        for variance in (4.0, 8.0, 16.0)
        for mm in (15.0, 20.0, 30.0)
    ]
    best = local[4]
    closing = [replace(best, close_mm=mm) for mm in (20.0, 30.0, 45.0, 80.0)]
    closed = closing[2]
    return (
        none,
        replace(none, threshold_prior=1.0),
        replace(none, threshold_prior=1.0, local_variance=8.0),
        replace(none, close_mm=30.0),
        replace(none, suv_floor=1.5),
        replace(none, drop_background=True),
        replace(none, split=True),
        replace(none, grow=True),
        replace(none, min_volume_ml=0.5),
        replace(none, min_total_ml=6.0),
        obeying,
        replace(obeying, threshold_prior=1.0),
        *local,
        *closing,
        *(replace(local[i], close_mm=45.0) for i in (1, 3, 5, 7)),
        *(replace(one, suv_floor=1.5) for one in (best, closed)),
        *(replace(one, min_volume_ml=ml) for one in (best, closed) for ml in (0.2, 0.5, 1.0)),
        *(
            replace(one, close_mm=mm, min_volume_ml=0.5)
            for one in (local[5], local[8])
            for mm in (45.0, 80.0)
        ),
    )


def score_candidates(
    specs: Sequence[PostprocessSpec],
    cases: Sequence[AnyCase],
    fold_of: Mapping[str, str] | None,
    margins: Path,
    jobs: int = 1,
    progress: bool = True,
) -> Tuning:
    """Score every spec on every case's kept margins, case by case in `jobs` processes.

    Raises:
        InputError: a case is refused.
    """
    work = partial(_score_case, specs=specs, margins=margins)
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        parts: Iterable[tuple[tuple[int, ...], Scores]] = (
            pool.map(work, cases) if jobs > 1 else map(work, cases)
        )
        done = list(tqdm(parts, total=len(cases), unit="case", desc="candidates", disable=not progress))
    names = tuple(case.name for case in cases)
    folds = tuple((fold_of or {}).get(name, "") for name in names)
    return Tuning(tuple(specs), names, folds, done[0][0], np.stack([scores for _, scores in done], axis=1))


def worth(tuning: Tuning, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """What each spec is worth on the chosen cases, (case,); -inf where it obeys too few clicks."""
    mean = group_means(tuning, chosen)
    dice, fpv_ml = (mean[..., FIGURES.index(name)].mean(axis=1) for name in ("dice", "fpv_ml"))
    obeyed = mean[..., [FIGURES.index("tumor_obeyed"), FIGURES.index("background_obeyed")]]
    obeys = np.nan_to_num(obeyed, nan=1.0).min(axis=(1, 2)) >= LEAST_OBEYED
    return np.where(obeys, dice - DICE_PER_ML * fpv_ml, -np.inf)


def group_means(tuning: Tuning, chosen: npt.NDArray[np.bool_], only: str | None = None) -> Scores:
    """(spec, step, figure): mean over the cases of a group where it is defined, then over the groups."""
    groups = np.array(tuning.groups)
    names = sorted({*groups[chosen]}) if only is None else [only]
    return _mean(
        np.stack([_mean(tuning.scores[:, chosen & (groups == name)], axis=1) for name in names]), axis=0
    )


def choose(tuning: Tuning, chosen: npt.NDArray[np.bool_]) -> int | None:
    """The best spec on these cases, the first of equals; None where none obeys enough clicks."""
    worths = worth(tuning, chosen)
    best = int(worths.argmax())
    return best if worths[best] > -np.inf else None


def nested(tuning: Tuning) -> tuple[dict[str, int | None], Scores]:
    """Fold -> the spec chosen on all other folds' cases, and each case's scores by its own fold's choice.

    A fold without a choice is scored by the first spec, which of `candidates` leaves masks as they are.

    Returns:
        The choices, and (case, step, figure).
    """
    folds = np.array(tuning.folds)
    choices = {fold: choose(tuning, folds != fold) for fold in sorted({*tuning.folds})}
    scores = [tuning.scores[choices[fold] or 0, case] for case, fold in enumerate(tuning.folds)]
    return choices, np.stack(scores)


def spec_text(spec: PostprocessSpec) -> str:
    """What a spec does beyond the default, in its own keys."""
    usual, values = to_mapping(PostprocessSpec()), to_mapping(spec)
    parts = [
        name if value is True else f"{name} {value:g}"
        for name, value in values.items()
        if value != usual[name] or (name == "local_mm" and spec.local_variance > 0)
    ]
    return ", ".join(parts) or "none"


def markdown(tuning: Tuning) -> str:
    """A table for each group: every spec, and with folds the nested result in the last row."""
    whole = np.ones(len(tuning.cases), bool)
    last = tuning.steps[-1]
    heads = [f"Dice at {step}" for step in tuning.steps]
    heads += [f"FPV at {last} (ml)", f"FNV at {last} (ml)", f"lesion F1 at {last}"]
    heads += ["tumour clicks obeyed", "background clicks obeyed"]
    lines: list[str] = []
    has_folds = len({*tuning.folds}) > 1
    for group in sorted({*tuning.groups}):
        rows = [
            (spec_text(spec), group_means(tuning, whole, group)[i]) for i, spec in enumerate(tuning.specs)
        ]
        if has_folds:
            own = np.array(tuning.groups) == group
            rows.append(("**chosen on the other folds**", _mean(nested(tuning)[1][own], axis=0)))
        lines += [f"{group}, {tuning.groups.count(group)} cases:", ""]
        lines += [f"| steps of `postprocess` | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        lines += [f"| {text} | {' | '.join(_cells(figures))} |" for text, figures in rows]
        lines.append("")
    if has_folds:
        choices, _ = nested(tuning)
        lines += [f"Fold {fold}: {_choice_text(tuning, index)}." for fold, index in choices.items()]
        lines += ["", f"On all cases: {_choice_text(tuning, choose(tuning, whole))}."]
    return "\n".join(lines)


def write_tuning(tuning: Tuning, out: Path) -> None:
    """Write the tables as tuning.md, and with folds the spec chosen on all cases as postprocess.json.

    The latter's content is `guidance.json`'s value of `postprocess`. Where no spec obeys enough clicks a
    warning stands in for it, and one of an earlier run is removed.
    """
    (out / TABLE).write_text(markdown(tuning) + "\n", "utf-8")
    if len({*tuning.folds}) > 1:
        best = choose(tuning, np.ones(len(tuning.cases), bool))
        if best is None:
            logger.warning("no %s: %s", out / CHOSEN, DISOBEYED)
            (out / CHOSEN).unlink(missing_ok=True)
            return
        (out / CHOSEN).write_text(json.dumps(to_mapping(tuning.specs[best]), indent=2) + "\n", "utf-8")


def _choice_text(tuning: Tuning, index: int | None) -> str:
    return DISOBEYED if index is None else spec_text(tuning.specs[index])


def _cells(figures: Scores) -> list[str]:
    """A row's numbers of (step, figure)."""
    columns = dict(zip(FIGURES, figures.T, strict=True))
    obeyed = [
        float(np.nanmean(columns[name])) if not np.isnan(columns[name]).all() else np.nan
        for name in FIGURES[4:]
    ]
    return [
        *(f"{value:.3f}" for value in columns["dice"]),
        *(f"{columns[name][-1]:.2f}" for name in ("fpv_ml", "fnv_ml")),
        f"{columns['dmm_f1'][-1]:.3f}",
        *(f"{value:.3f}" for value in obeyed),
    ]


def _mean(values: Scores, axis: int) -> Scores:
    """Mean over an axis without NaN; NaN where nothing else is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis))


def _score_case(
    case: AnyCase, specs: Sequence[PostprocessSpec], margins: Path
) -> tuple[tuple[int, ...], Scores]:
    """The steps that are kept, and (spec, step, figure)."""
    found = read_truth_case(case)
    grid, kept = found.case.grid, read_margins(margins, case.name)
    scores = np.full((len(specs), len(kept), len(FIGURES)), np.nan)
    for number, (step, margin) in enumerate(kept.items()):
        clicks = first_clicks(found.clicks, step)
        tumor, background = (tuple(clicks.of_kind(kind).T) for kind in ("tumor", "background"))
        for index, spec in enumerate(specs):
            mask = postprocess(margin, found.case.pet_suv, clicks, grid, spec)
            result = score(found.truth, mask, grid.voxel_ml)
            shares = [
                inside.mean() if len(inside) else np.nan for inside in (mask[tumor], 1 - mask[background])
            ]
            scores[index, number] = (result.dice, result.fpv_ml, result.fnv_ml, result.dmm_f1, *shares)
    return tuple(kept), scores
