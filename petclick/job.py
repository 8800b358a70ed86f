"""One job of the platform, from the input folder to the mask: what the command line and the server share."""

import hashlib
import logging
import math
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from petclick.clicks import ClickSet, load_clicks
from petclick.files import require_writable
from petclick.images import Case, describe, read_case, write_mask
from petclick.overlay import draw_overlay
from petclick.sockets import find_inputs, make_room, output_path
from petclick.upright import Upright

if TYPE_CHECKING:
    from petclick.predictor import Predictor, Settings

logger = logging.getLogger(__name__)


WRITE_S, WRITE_S_PER_VOXEL = 0.5, 6e-8
"""What writing a mask may take; measured: 2e-9 s a voxel on an idle machine, 6e-8 on a very busy one."""
OVERLAY_S = 5.0
"""What drawing the overlay may take."""


@dataclass(frozen=True)
class Job:
    """What a job has read.

    target: the mask's path; since: from when the job's time counts; write_by: when the mask must be known, so
    that it is written within the time limit; both by `time.monotonic`.
    """

    case: Case
    clicks: ClickSet
    target: Path
    since: float
    write_by: float


def read_job(options: Namespace, since: float) -> Job:
    """Read a case and its clicks, and check that the mask can be written.

    Args:
        options: those of `petclick.cli.parse`.
        since: from when its time counts, by `time.monotonic`.

    Raises:
        InputError: an input is refused, or the output folder cannot be written to.
    """
    start = time.monotonic()
    inputs = find_inputs(options.input)
    case = read_case(inputs.ct, inputs.pet)
    clicks = load_clicks(inputs.clicks, case.grid, options.bad_clicks)
    target = output_path(options.output, case.name)
    require_writable(target.parent)
    seconds = time.monotonic() - start
    logger.info("case %s: %s", case.name, describe(case.grid))
    logger.info(
        "CT %.0f to %.0f HU, PET %.1f to %.1f SUV",
        *(case.ct_hu.min(), case.ct_hu.max(), case.pet_suv.min(), case.pet_suv.max()),
    )
    logger.info("%s; read in %.1f s", clicks.summary(), seconds)
    write_s = WRITE_S + WRITE_S_PER_VOXEL * case.ct_hu.size + (OVERLAY_S if options.overlay else 0)
    return Job(case, clicks, target, since, since + (options.time_limit or math.inf) - write_s)


def load_predictor(options: Namespace) -> "Predictor":
    """Load the folds of the model folder `options.model`.

    Raises:
        InputError: a file of the model is missing or wrong, or an option fits neither model nor machine.
    """
    # PyTorch takes seconds to import, which bad input need not wait for.
    from petclick.model import load_model
    from petclick.predictor import Predictor

    return Predictor(load_model(options.model, options.folds), settings(options))


def settings(options: Namespace) -> "Settings":
    """How to predict, by the options of `petclick.cli.parse`."""
    from petclick.predictor import Settings

    return Settings(
        device=options.device,
        precision=options.precision,
        mirror_axes=options.mirror_axes,
        step_size=options.step_size,
        skip_air=options.skip_air,
        keep_gib=options.keep_gib if options.serve else 0,  # a single job does not come back to them
        keep_dir=options.keep_dir,
        cache=options.cache,
        cache_gib=options.cache_gib,
        progress=not options.quiet,
    )


def write_result(job: Job, mask: npt.NDArray[np.uint8], overlay: Path | None) -> None:
    """Write the mask, uint8 (z, y, x) on the case's grid, and perhaps a picture of it.

    Raises:
        InputError: a file cannot be written.
    """
    make_room(job.target)
    write_mask(mask, job.case.grid, job.target)
    volume_ml = np.count_nonzero(mask) * job.case.grid.voxel_ml
    logger.info("wrote %s: %.1f ml of lesion", job.target, volume_ml)
    if overlay is not None:  # shows the patient upright, however the case is stored
        upright = Upright(job.case.grid)
        pet, shown = upright.image(job.case.pet_suv), upright.mask(mask)
        draw_overlay(pet, shown, upright.clicks(job.clicks), upright.grid, overlay)
        logger.info("drew %s", overlay)
    logger.info("done in %.1f s", time.monotonic() - job.since)


def write_background(job: Job) -> None:
    """Write an empty mask, where the time limit leaves none for a better one.

    Raises:
        InputError: a file cannot be written.
    """
    logger.warning("time limit: no time for the network, all is background")
    write_result(job, np.zeros(job.case.grid.shape_zyx, np.uint8), None)


def digest(case: Case) -> bytes:
    """Stands for the content of a case: equal for equal voxels on equal grids, whatever the files' names."""
    content = hashlib.sha256(repr(case.grid).encode())
    for array in (case.ct_hu, case.pet_suv):
        content.update(np.ascontiguousarray(array).data)
    return content.digest()
