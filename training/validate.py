"""Cross-validated results of a data set: `python -m petclick evaluate`, with nnU-Net's folders.

    python -m training.validate Dataset601_STS MODEL_FOLDER OUT [--folds 0,1] [--steps 0,1,3,5,10] [--dry-run]

Each case by the fold that has not seen it, with the official scheme's clicks, beside region growing at 41 %
of the local SUVmax. OUT gets the report; a run that was killed goes on where it stopped.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from petclick.__main__ import main as evaluate
from petclick.evaluation.cases import find_cases
from petclick.evaluation.evaluate import evaluate_and_report, raise_if_failed, read_splits
from petclick.evaluation.summary import markdown_tables
from petclick.evaluation.workers import Network, Run
from petclick.program import run
from training.preprocess import nnunet_folder

METHODS = "network,growing41"
VALIDATION = "validation"
"""Folder of a fold's own results, beside its checkpoint."""

logger = logging.getLogger(__name__)


def validate_fold(
    results: Path, dataset: str, fold: str, cases: Sequence[str], clicks: tuple[int, ...], device: str
) -> str:
    """Predict the cases that a fold holds out, at several numbers of clicks, and write the figures beside it.

    Goes through the container's predictor, from the raw images; a run that was killed goes on.

    Args:
        results: nnU-Net's results folder, with the fold's final checkpoint.
        dataset: raw data set.
        fold: number, or 'all'.
        cases: names of those held out.
        clicks: of each kind, ascending.
        device: 'cpu' or 'cuda'.

    Returns:
        The figures as a Markdown table, or why there are none.

    Raises:
        InputError: the model is refused.
        PetclickError: a case could not be evaluated.
    """
    raw = nnunet_folder("nnUNet_raw") / dataset
    held_out = [case for case in find_cases(raw) if case.name in cases] if raw.is_dir() else []
    if not held_out:
        return f"not validated: {raw} holds none of the {len(cases)} held-out cases"
    out = results / f"fold_{fold}" / VALIDATION
    network = Network(results, (fold,), device)
    evaluation = Run(out, "autopet4", clicks, ("network",), network)
    found = evaluate_and_report(evaluation, held_out, f"{dataset}, fold {fold}")
    raise_if_failed(found)
    return markdown_tables(found)


def _tell(dataset: str, splits: Path, options: argparse.Namespace) -> None:
    fold_of = read_splits(splits)
    n_cases = len(find_cases(nnunet_folder("nnUNet_raw") / dataset))
    print(f"would evaluate {options.model} on {n_cases} cases of {dataset}, each by its fold of {splits}:")
    for fold in sorted(set(fold_of.values()), key=int):
        print(f"  fold {fold}: {', '.join(case for case in fold_of if fold_of[case] == fold)}")
    print(f"methods {METHODS}; results would be in {options.out}")


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.validate",
        description=(__doc__ or "").split("\n")[0],
        epilog="Other flags go to `python -m petclick evaluate`.",
    )
    parser.add_argument("dataset", help="raw and preprocessed data set, such as Dataset601_STS")
    parser.add_argument("model", help="model folder")
    parser.add_argument("out", help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    options, others = parser.parse_known_args(arguments)
    splits = nnunet_folder("nnUNet_preprocessed") / options.dataset / "splits_final.json"
    if options.dry_run:
        _tell(options.dataset, splits, options)
        return
    cases = nnunet_folder("nnUNet_raw") / options.dataset
    fixed = ["--cross-validated", str(splits), "--model", options.model, "--out", options.out]
    evaluate(["evaluate", str(cases), *fixed, "--method", METHODS, *others])


if __name__ == "__main__":
    run(main)
