"""The command line of `inference.py`: paths and flags in, one mask out, or a server that makes many.

Every flag has an environment twin, so that a container can be configured without arguments.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from petclick.job import load_predictor, read_job, write_result

logger = logging.getLogger(__name__)

MOUNTED_MODEL = Path("/opt/ml/model")
"""Where the platform unpacks a model that is uploaded apart from the image."""
SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "resources"


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> argparse.Namespace:
    """Read flags; what is not given comes from the environment's `PETCLICK_…`, then from the defaults.

    A bad value ends the process as argparse does: exit code 2, a last line that names the flag.
    """
    parser = argparse.ArgumentParser(
        prog="inference.py",
        description="Segment the lesions of one PET/CT case, guided by clicks.",
        epilog="Each flag can be set in the environment too: --step-size as PETCLICK_STEP_SIZE, and so on.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", type=Path, default=Path("/input"), help="the case, in the challenge's layout")
    add("--output", type=Path, default=Path("/output"), help="the mask goes below this folder")
    add("--model", type=Path, help="default: /opt/ml/model if it holds a model, else resources/")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--folds", type=parse_folds, help="all (default), or such as 0,3")
    add(
        "--mirror-axes",
        type=parse_axes,
        help="none, or such as 0,1,2 (default: those of the model's training)",
    )
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    add("--step-size", type=float, default=0.5, help="distance of tiles in patches (default: 0.5)")
    add(
        "--bad-clicks",
        choices=("error", "warn"),
        default="error",
        help="clicks outside the volume: refuse the file (default), or leave them out with a warning",
    )
    add("--overlay", type=Path, help="also draw PET, mask and clicks into this PNG")
    add(
        "--serve",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="answer jobs over HTTP, the platform's `invoke` API, instead of running one",
    )
    add("--port", type=int, default=4743, help="where --serve listens (default: %(default)s)")
    add(
        "--quiet", action=argparse.BooleanOptionalAction, default=False, help="no progress bar, only warnings"
    )
    twins = [argument for action in parser._actions for argument in _from_environment(action, environment)]
    return parser.parse_args([*twins, *(sys.argv[1:] if arguments is None else arguments)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment one case, or serve, as the platform's contract has it."""
    options = parse(arguments, os.environ)
    logging.getLogger("petclick").setLevel(logging.WARNING if options.quiet else logging.INFO)
    options.model = options.model or default_model()
    if options.serve:
        from petclick.server import serve

        serve(options)  # does not come back
    job = read_job(options)
    predictor = load_predictor(options)
    predictor.set_case(job.case)
    logger.info("ready after %.1f s", time.perf_counter() - job.start)
    write_result(job, predictor.predict(job.clicks), options.overlay)


def default_model() -> Path:
    """The mounted model where there is one, else the shipped one."""
    return MOUNTED_MODEL if (MOUNTED_MODEL / "plans.json").is_file() else SHIPPED_MODEL


def _from_environment(action: argparse.Action, environment: Mapping[str, str]) -> list[str]:
    """The arguments that a flag's environment twin stands for; flags given on the command line come later."""
    flag = action.option_strings[0]
    value = environment.get(f"PETCLICK_{action.dest.upper()}", "") if action.dest != "help" else ""
    if not value:
        return []
    if isinstance(action, argparse.BooleanOptionalAction):
        return [flag if value.lower() in ("1", "true", "yes") else action.option_strings[1]]
    return [f"{flag}={value}"]


def parse_folds(text: str) -> tuple[str, ...] | None:
    """'all' is None; '0,3' are two folds."""
    return None if text == "all" else tuple(fold.strip() for fold in text.split(","))


def parse_axes(text: str) -> tuple[int, ...]:
    """'none' is no axis; '0,2' are two."""
    try:
        return () if text == "none" else tuple(int(axis) for axis in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be none, or such as 0,1,2, got {text!r}") from None
