"""Strip trained folds to what inference needs, and put them into a model folder.

python -m training.export RESULTS_FOLDER resources/
"""

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from petclick.errors import InputError
from petclick.guidance import FILE_NAME
from petclick.model import CHECKPOINT, ORGAN_HEADS, load_model, load_network, read_checkpoint
from petclick.program import run

FILES = ("plans.json", "dataset.json", FILE_NAME, "settings.yaml")
INFERENCE_KEYS = ("trainer_name", "inference_allowed_mirroring_axes")

logger = logging.getLogger(__name__)


def strip(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's inference part: half-precision weights, without the training-only heads.

    Tensors that share memory (the decoder's alias of the encoder) still do, so each is saved once.
    """
    halves: dict[int, torch.Tensor] = {}
    weights = {}
    for name, value in checkpoint["network_weights"].items():
        if ORGAN_HEADS not in name:
            weights[name] = halves.setdefault(value.data_ptr(), value.detach().half())
    return {"network_weights": weights} | {key: checkpoint[key] for key in INFERENCE_KEYS}


def export(results: Path, target: Path) -> None:
    """Copy plans and settings of a results folder, and its stripped folds, to a model folder.

    Raises:
        InputError: a file is missing, or a fold is not trained to its end.
    """
    model = load_model(results)
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if not (results / name).is_file():
            raise InputError(results / name, "the results folder must hold this file")
        shutil.copyfile(results / name, target / name)
    for path in model.checkpoints:
        fold = target / path.parent.name
        fold.mkdir(exist_ok=True)
        torch.save(strip(read_checkpoint(path)), fold / CHECKPOINT)
        logger.info("%s: %.1f MB", fold / CHECKPOINT, (fold / CHECKPOINT).stat().st_size / 1e6)
    exported = load_model(target)
    for path in exported.checkpoints:
        load_network(exported, path)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.export", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("results", type=Path, help="nnU-Net's results folder of one training, with its folds")
    parser.add_argument("target", type=Path, help="model folder to fill, such as resources/")
    options = parser.parse_args(arguments)
    export(options.results, options.target)


if __name__ == "__main__":
    run(main)
