"""The challenge's evaluation on cases with a ground truth, resumable.

A case that cannot be evaluated becomes a row that says why, and the others go on.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from petclick.errors import InputError, PetclickError
from petclick.evaluation.cases import AnyCase
from petclick.evaluation.curves import write_curves
from petclick.evaluation.report import write_report
from petclick.evaluation.results import (
    Failure,
    Result,
    StepResult,
    append_results,
    read_results,
    write_results,
)
from petclick.evaluation.settings import network_settings, require_same
from petclick.evaluation.summary import write_metrics_json
from petclick.evaluation.workers import VIEWS, Job, Run, evaluate_jobs
from petclick.files import listing, read_json, require_writable

METRICS, METRICS_JSON, REPORT, CURVES = "metrics.csv", "metrics.json", "report.html", "curves.png"
"""What lies in the output folder, beside run.json, views/ and masks/."""

logger = logging.getLogger(__name__)


def read_splits(path: Path) -> dict[str, str]:
    """Case -> number of the fold that has it in 'val', of nnU-Net's splits_final.json.

    Raises:
        InputError: not of that form, or a case is in two folds' 'val'.
    """
    content = read_json(path)
    folds = content if isinstance(content, list) else []
    values = [_names(fold.get("val")) if isinstance(fold, dict) else [] for fold in folds]
    if not values or not all(values):
        raise InputError(
            path, "must be a list with {'train': [...], 'val': [...]} for each fold, cases by name"
        )
    held_out = [(name, str(fold)) for fold, names in enumerate(values) for name in names]
    fold_of = dict(held_out)
    if len(fold_of) < len(held_out):
        twice = sorted({name for name, fold in held_out if fold_of[name] != fold})
        raise InputError(path, "must have each case in one fold's 'val' only", listing(twice))
    return fold_of


def _names(value: object) -> list[str]:
    """The value if it is a list of texts, else an empty one."""
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else []


def evaluate(run: Run, cases: Sequence[AnyCase]) -> list[Result]:
    """Evaluate the cases that `run.out` has no results of yet, and return all that it has then.

    Results are appended case by case to metrics.csv; the finished file is in order of fold, case, method and
    step, whatever was interrupted on the way. Cases that failed before are tried again.

    Raises:
        InputError: the model or the folder is refused, or the folder holds results of other settings.
        PetclickError: a worker process died.
    """
    require_writable(run.out)
    chosen = chosen_cases(run.fold_of, cases)
    _check_same_run(run)
    file = run.out / METRICS
    before = read_results(file)
    finished = _finished(before, run)
    wanted = {(case.name, method) for case in chosen for method in run.methods}
    write_results(file, [each for each in before if _key(each) in finished or _key(each) not in wanted])
    jobs = []
    for case in chosen:
        todo = tuple(method for method in run.methods if (case.name, method) not in finished)
        if todo:
            jobs.append(Job(case, run.fold_of[case.name] if run.fold_of else "", todo))
    n_steps = len(run.steps)
    n_done = (len(wanted) - sum(len(job.methods) for job in jobs)) * n_steps
    bar = tqdm(total=len(wanted) * n_steps, initial=n_done, unit="step", disable=not run.progress)
    with logging_redirect_tqdm(), bar:
        for results in evaluate_jobs(run, jobs, bar.update):
            append_results(file, results)
            for text in dict.fromkeys(each.error for each in results if isinstance(each, Failure)):
                logger.warning("%s: %s", results[0].case, text)
    write_results(file, read_results(file))
    return read_results(file)


def evaluate_and_report(run: Run, cases: Sequence[AnyCase], title: str) -> list[Result]:
    """`evaluate`, and write metrics.json, curves.png and report.html beside metrics.csv; same errors."""
    results = evaluate(run, cases)
    write_metrics_json(results, run.out / METRICS_JSON)
    write_curves(results, run.out / CURVES)
    write_report(results, run.out / VIEWS, run.out / REPORT, title)
    return results


def raise_if_failed(results: Sequence[Result]) -> None:
    """Raise PetclickError if a case could not be evaluated; the message counts and names them."""
    failed = sorted({each.case for each in results if isinstance(each, Failure)})
    if failed:
        n_cases = len({each.case for each in results})
        raise PetclickError(f"{len(failed)} of {n_cases} cases failed: {', '.join(failed)}")


def chosen_cases(fold_of: Mapping[str, str] | None, cases: Sequence[AnyCase]) -> list[AnyCase]:
    """The cases that a fold holds out, in the order of folds, so that each model is loaded once.

    Raises:
        InputError: there is none.
    """
    if fold_of is None:
        return list(cases)
    left_out = [case.name for case in cases if case.name not in fold_of]
    if len(left_out) == len(cases):
        raise InputError(
            "--cross-validated", "the folds must hold out cases that are there", listing(left_out)
        )
    if left_out:
        logger.warning("%d cases are held out by no fold, and left out: %s", len(left_out), listing(left_out))
    held_out = [case for case in cases if case.name in fold_of]
    return sorted(held_out, key=lambda case: (int(fold_of[case.name]), case.name))


def _check_same_run(run: Run) -> None:
    """Refuse a folder with results of other settings; else note this run's down, for the next."""
    settings: dict[str, Any] = {
        "protocol": run.protocol,
        "steps": list(run.steps),
        "cross-validated": run.fold_of is not None,
        "folds of cases": dict(run.fold_of or {}),
    }
    if run.network is not None and "network" in run.methods:
        settings |= network_settings(run.network, run.fold_of)
    require_same(run.out, settings)


def _key(result: Result) -> tuple[str, str]:
    return result.case, result.method


def _finished(results: Sequence[Result], run: Run) -> set[tuple[str, str]]:
    """The cases and methods that have all of the run's steps."""
    steps: dict[tuple[str, str], list[int]] = {}
    for each in results:
        if isinstance(each, StepResult):
            steps.setdefault(_key(each), []).append(each.step)
    return {key for key, numbers in steps.items() if sorted(numbers) == list(run.steps)}
