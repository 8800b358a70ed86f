"""The command line of `inference.py`: paths and flags in, one mask out, or a server that makes many.

Every flag has an environment twin, so that a container can be configured without arguments.
"""

import argparse
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from petclick.clock import process_start_s
from petclick.job import Job, load_predictor, read_job, write_background, write_result
from petclick.program import report
from petclick.watchdog import Watchdog

logger = logging.getLogger(__name__)

MOUNTED_MODEL = Path("/opt/ml/model")
"""Where the platform unpacks a model that is uploaded apart from the image."""
MOUNTED_CACHE = Path("/cache")
"""Where a folder is mounted that lasts from call to call."""
YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
"""What the environment twin of a switch may say, in any case."""
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
    add("--cache", type=Path, help="keep results from call to call here, or none (default: /cache, if there)")
    add("--cache-gib", type=parse_positive, default=8.0, help="its most GiB (default: %(default)s)")
    add(
        "--keep-gib",
        type=parse_positive,
        default=4.0,
        help="with --serve, most GiB for the last case's results (default: %(default)s)",
    )
    add("--keep-dir", type=Path, help="keep these in a file in this folder (default: in memory)")
    add(
        "--skip-air",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out tiles that show nothing but air",
    )
    add("--time-limit", type=parse_positive, help="seconds in which the mask must be there (default: none)")
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
    try:
        twins = [word for action in parser._actions for word in _from_environment(action, environment)]
    except argparse.ArgumentError as error:
        parser.error(str(error))
    return parser.parse_args([*twins, *(sys.argv[1:] if arguments is None else arguments)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment one case, or serve, as the platform's contract has it."""
    options = parse(arguments, os.environ)
    logging.getLogger("petclick").setLevel(logging.WARNING if options.quiet else logging.INFO)
    options.model = options.model or default_model()
    options.cache = choose_cache(options.cache)
    if options.serve:
        from petclick.server import serve

        serve(options)  # does not come back
    since = process_start_s()
    job = read_job(options, since)
    watchdog = Watchdog(job.write_by, lambda: _end_without_network(job))
    try:
        predictor = load_predictor(options)
        predictor.set_case(job.case)
        logger.info("ready after %.1f s", time.monotonic() - since)
        mask = predictor.predict(job.clicks, job.write_by)
    finally:  # an error, too, must not end the process while the watchdog is writing
        if not watchdog.claim():
            threading.Event().wait()  # for the watchdog to end the process
    write_result(job, mask, options.overlay)


def default_model() -> Path:
    """The mounted model where there is one, else the shipped one."""
    return MOUNTED_MODEL if (MOUNTED_MODEL / "plans.json").is_file() else SHIPPED_MODEL


def choose_cache(wish: Path | None) -> Path | None:
    """The folder asked for; else the mounted one, where there is one that can be written to."""
    if wish is None:
        return MOUNTED_CACHE if os.access(MOUNTED_CACHE, os.W_OK | os.X_OK) else None
    return None if wish == Path("none") else wish


def _end_without_network(job: Job) -> None:
    """Write a mask in time, though not a good one, and end the process whatever it is at."""
    try:
        write_background(job)
    except Exception as error:
        report(error)
        os._exit(1)
    os._exit(0)


def _from_environment(action: argparse.Action, environment: Mapping[str, str]) -> list[str]:
    """The arguments that a flag's environment twin stands for; flags given on the command line come later.

    Raises:
        argparse.ArgumentError: a switch's twin says neither yes nor no.
    """
    flag, name = action.option_strings[0], f"PETCLICK_{action.dest.upper()}"
    value = environment.get(name, "") if action.dest != "help" else ""
    if not value:
        return []
    if not isinstance(action, argparse.BooleanOptionalAction):
        return [f"{flag}={value}"]
    for words, argument in zip((YES, NO), action.option_strings, strict=True):
        if value.lower() in words:
            return [argument]
    raise argparse.ArgumentError(action, f"{name} must be one of {', '.join(YES + NO)}, got {value!r}")


def parse_folds(text: str) -> tuple[str, ...] | None:
    """'all' is None; '0,3' are two folds."""
    return None if text == "all" else tuple(fold.strip() for fold in text.split(","))


def parse_positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def parse_axes(text: str) -> tuple[int, ...]:
    """'none' is no axis; '0,2' are two."""
    try:
        return () if text == "none" else tuple(int(axis) for axis in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be none, or such as 0,1,2, got {text!r}") from None
