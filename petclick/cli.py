"""The command line of `inference.py`: paths and flags in, one mask out.

Every flag has an environment twin, so that a container can be configured without arguments.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet, load_clicks
from petclick.files import require_writable
from petclick.images import Case, describe, read_case, to_grid, write_mask
from petclick.orientation import orient
from petclick.overlay import draw_overlay
from petclick.sockets import find_inputs, output_path

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
    add("--folds", type=_folds, help="all (default), or such as 0,3")
    add("--mirror-axes", type=_axes, help="none, or such as 0,1,2 (default: those of the model's training)")
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
        "--quiet", action=argparse.BooleanOptionalAction, default=False, help="no progress bar, only warnings"
    )
    twins = [argument for action in parser._actions for argument in _from_environment(action, environment)]
    return parser.parse_args([*twins, *(sys.argv[1:] if arguments is None else arguments)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment one case, as the platform's contract has it."""
    options = parse(arguments, os.environ)
    logging.getLogger("petclick").setLevel(logging.WARNING if options.quiet else logging.INFO)
    start = time.perf_counter()
    inputs = find_inputs(options.input)
    case = read_case(inputs.ct, inputs.pet)
    clicks = load_clicks(inputs.clicks, case.grid, options.bad_clicks)
    target = output_path(options.output, case.name)
    require_writable(target.parent)
    _log_input(case, clicks, time.perf_counter() - start)

    # PyTorch takes seconds to import, which bad input need not wait for.
    from petclick.model import load_model
    from petclick.predictor import Predictor, Settings

    folder = options.model or (MOUNTED_MODEL if (MOUNTED_MODEL / "plans.json").is_file() else SHIPPED_MODEL)
    settings = Settings(
        options.device, options.precision, options.mirror_axes, options.step_size, progress=not options.quiet
    )
    predictor = Predictor(load_model(folder, options.folds), settings)
    predictor.set_case(case)
    logger.info("ready after %.1f s", time.perf_counter() - start)
    mask = predictor.predict(clicks)
    write_mask(mask, case.grid, target)
    logger.info("wrote %s: %.1f ml of lesion", target, np.count_nonzero(mask) * case.grid.voxel_ml)
    if options.overlay is not None:
        _draw(case, mask, clicks, options.overlay)
    logger.info("done in %.1f s", time.perf_counter() - start)


def _from_environment(action: argparse.Action, environment: Mapping[str, str]) -> list[str]:
    """The arguments that a flag's environment twin stands for; flags given on the command line come later."""
    flag = action.option_strings[0]
    value = environment.get(f"PETCLICK_{action.dest.upper()}", "") if action.dest != "help" else ""
    if not value:
        return []
    if isinstance(action, argparse.BooleanOptionalAction):
        return [flag if value.lower() in ("1", "true", "yes") else action.option_strings[1]]
    return [f"{flag}={value}"]


def _folds(text: str) -> tuple[str, ...] | None:
    return None if text == "all" else tuple(fold.strip() for fold in text.split(","))


def _axes(text: str) -> tuple[int, ...]:
    try:
        return () if text == "none" else tuple(int(axis) for axis in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be none, or such as 0,1,2, got {text!r}") from None


def _log_input(case: Case, clicks: ClickSet, seconds: float) -> None:
    logger.info("case %s: %s", case.name, describe(case.grid))
    logger.info(
        "CT %.0f to %.0f HU, PET %.1f to %.1f SUV",
        *(case.ct_hu.min(), case.ct_hu.max(), case.pet_suv.min(), case.pet_suv.max()),
    )
    logger.info("%s; read in %.1f s", clicks.summary(), seconds)


def _draw(case: Case, mask: npt.NDArray[np.uint8], clicks: ClickSet, path: Path) -> None:
    """The overlay shows the patient upright, however the case is stored."""
    upright = orient(case.grid, "LPS")
    pet = to_grid(case.pet_suv, case.grid, upright, 0.0)
    shown = to_grid(mask, case.grid, upright, 0, linear=False)
    to_upright = np.linalg.inv(upright.index_zyx_to_mm) @ case.grid.index_zyx_to_mm
    draw_overlay(pet, shown, clicks.mapped(to_upright, upright.shape_zyx), upright, path)
    logger.info("drew %s", path)
