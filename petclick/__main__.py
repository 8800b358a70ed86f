"""Local evaluation: `python -m petclick evaluate|score|compare|tune --help`."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from petclick.cli import default_model, parse_axes, parse_folds
from petclick.errors import InputError
from petclick.evaluation.protocol import PROTOCOL_STEPS
from petclick.evaluation.results import METHODS
from petclick.metrics import ProtocolName
from petclick.program import run

if TYPE_CHECKING:
    from petclick.evaluation.workers import Network


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m petclick", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_evaluate(commands.add_parser("evaluate", help="cases with a ground truth -> metrics and a report"))
    _add_score(commands.add_parser("score", help="masks that exist already -> one JSON object"))
    _add_compare(commands.add_parser("compare", help="two evaluations -> which is better"))
    _add_tune(commands.add_parser("tune", help="cases with a ground truth -> which post-processing helps"))
    options = parser.parse_args(arguments)
    options.function(options)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = "Evaluate as the challenge does. The same command goes on where a run was killed."
    add = parser.add_argument
    add("cases", type=Path, help="cases in the challenge's layout, an nnU-Net raw data set, or a CSV")
    add("--out", type=Path, default=Path("evaluation"), help="folder of the results (default: %(default)s)")
    add("--protocol", choices=get_args(ProtocolName), default="autopet4")
    add("--method", type=_methods, default=METHODS[:1], help=f"of {', '.join(METHODS)} (default: network)")
    _add_network(parser)
    add("--steps", type=_steps, help="such as 0,1,3,5,10 (default: all of the protocol, as areas need)")
    add("--masks", action="store_true", help="keep the mask of each step")
    add("--jobs", type=_positive, default=1, help="processes, each with its own model (default: %(default)s)")
    parser.set_defaults(function=_evaluate)


def _add_network(parser: argparse.ArgumentParser) -> None:
    """Which model predicts, and how."""
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        help="model folder (default: /opt/ml/model if it holds a model, else resources/)",
    )
    add("--folds", type=parse_folds, help="all (default), or such as 0,3")
    add("--cross-validated", type=Path, metavar="SPLITS", help="splits_final.json: each case by its own fold")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    add(
        "--mirror-axes",
        type=parse_axes,
        help="none, or such as 0,1,2 (default: those of the model's training)",
    )


def _network(options: argparse.Namespace) -> tuple["Network", dict[str, str] | None]:
    """The model, and with --cross-validated the fold of each case; --folds then chooses cases."""
    from petclick.evaluation.evaluate import read_splits
    from petclick.evaluation.workers import Network

    logging.getLogger("petclick").setLevel(logging.WARNING)  # the bar tells how far it is
    model = options.model or default_model()
    network = Network(model, options.folds, options.device, options.precision, options.mirror_axes)
    if options.cross_validated is None:
        return network, None
    splits = read_splits(options.cross_validated)
    chosen = options.folds or splits.values()
    return network, {case: fold for case, fold in splits.items() if fold in chosen}


def _evaluate(options: argparse.Namespace) -> None:
    from petclick.evaluation.cases import find_cases
    from petclick.evaluation.evaluate import evaluate_and_report, raise_if_failed
    from petclick.evaluation.summary import markdown_tables
    from petclick.evaluation.workers import Run

    all_steps = PROTOCOL_STEPS[options.protocol]
    steps = options.steps or all_steps
    if not {*steps} <= {*all_steps}:
        raise InputError("--steps", f"must be among 0 to {all_steps[-1]}", ", ".join(map(str, steps)))
    network, fold_of = _network(options)
    evaluation = Run(
        options.out, options.protocol, steps, options.method, network, fold_of, options.masks, options.jobs
    )
    results = evaluate_and_report(evaluation, find_cases(options.cases), options.cases.resolve().name)
    print(markdown_tables(results))
    raise_if_failed(results)


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.description = "Score masks in the order of a case's steps; prints one JSON object."
    parser.add_argument("truth", type=Path, help="lesion mask; any format that SimpleITK reads")
    parser.add_argument("predictions", type=Path, nargs="+", help="masks on the same grid, one for each step")
    parser.add_argument("--protocol", choices=get_args(ProtocolName), default="autopet4")
    parser.set_defaults(function=_score)


def _score(options: argparse.Namespace) -> None:
    from petclick.evaluation.scoring import score_files

    print(json.dumps(score_files(options.truth, options.predictions, options.protocol), allow_nan=False))


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compare two evaluations of the same cases: is B better than A?"
    parser.add_argument("a", type=Path, help="metrics.csv of A")
    parser.add_argument("b", type=Path, help="metrics.csv of B; may be the same file")
    parser.add_argument(
        "--method",
        type=_methods,
        help="which of the file's methods, or two, of A and of B (default: the first that each has)",
    )
    parser.set_defaults(function=_compare)


def _compare(options: argparse.Namespace) -> None:
    from petclick.evaluation.compare import compare, comparison_text

    first, *others = options.method or (None,)
    second = others[0] if others else first
    names = [
        f"{path} ({method})" if method else str(path)
        for path, method in ((options.a, first), (options.b, second))
    ]
    print(comparison_text(compare(options.a, options.b, (first, second)), *names))


def _add_tune(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Predict margins once, and score post-processing on them, chosen on other folds' cases."
    )
    add = parser.add_argument
    add("cases", type=Path, help="as for evaluate")
    add("--out", type=Path, default=Path("tuning"), help="margins and table (default: %(default)s)")
    _add_network(parser)
    add("--steps", type=_steps, default=(0, 1, 3, 5, 10), help="clicks of each kind (default: 0,1,3,5,10)")
    add("--jobs", type=_positive, default=1, help="processes that score candidates (default: %(default)s)")
    parser.set_defaults(function=_tune)


def _tune(options: argparse.Namespace) -> None:
    from petclick.evaluation.cases import find_cases
    from petclick.evaluation.evaluate import chosen_cases
    from petclick.evaluation.margins import keep_margins
    from petclick.evaluation.tuning import candidates, markdown, score_candidates, write_tuning

    network, fold_of = _network(options)
    cases = chosen_cases(fold_of, find_cases(options.cases))
    keep_margins(cases, network, fold_of, options.steps, options.out)
    tuning = score_candidates(candidates(), cases, fold_of, options.out, options.jobs)
    write_tuning(tuning, options.out)
    print(markdown(tuning))


def _methods(text: str) -> tuple[str, ...]:
    methods = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(METHODS)}, got {', '.join(unknown)}")
    return methods


def _steps(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 0,1,3, got {text!r}") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return int(text)


if __name__ == "__main__":
    run(main)
