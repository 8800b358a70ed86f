"""Strip trained folds to what inference needs, and put them into a model folder.

python -m training.export RESULTS_FOLDER resources/ [--dry-run]
"""

import argparse
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

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


def export(results: Path, target: Path, dry_run: bool = False) -> None:
    """Copy plans and settings of a results folder, and its stripped folds, to a model folder.

    Each file comes to its place whole, so that the same command repairs what a kill has left.

    Args:
        results: nnU-Net's results folder of one training.
        target: model folder, made if need be.
        dry_run: only tell.

    Raises:
        InputError: a file is missing, a fold is not trained to its end, or `target` holds a fold that
            `results` lack, which would be used with plans and guidance that are not its own. Nothing is
            written then.
    """
    model = load_model(results)
    for name in FILES:
        if not (results / name).is_file():
            raise InputError(results / name, "the results folder must hold this file")
    own = {path.parent.name for path in model.checkpoints}
    if others := sorted(path.name for path in target.glob("fold_*") if path.name not in own):
        raise InputError(target, f"must hold no fold that {results} lacks", ", ".join(others))
    if dry_run:
        for path in (*(results / name for name in FILES), *model.checkpoints):
            size = path.stat().st_size / 1e6
            print(f"would write {target / path.relative_to(results)} from {path} ({size:.1f} MB)")
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        with whole(target / name) as partial:
            shutil.copyfile(results / name, partial)
    for path in tqdm(model.checkpoints, desc="exporting", unit="fold"):
        fold = target / path.parent.name
        fold.mkdir(exist_ok=True)
        with whole(fold / CHECKPOINT) as partial:
            torch.save(strip(read_checkpoint(path)), partial)
        logger.info("%s: %.1f MB", fold / CHECKPOINT, (fold / CHECKPOINT).stat().st_size / 1e6)
    exported = load_model(target)
    for path in exported.checkpoints:
        load_network(exported, path)


@contextmanager
def whole(path: Path, writer: str = "") -> Iterator[Path]:
    """A file to write in place of `path`, which it replaces when it is whole.

    What a kill leaves is overwritten by the next try; `writer` keeps those apart that write at the same time.
    """
    partial = path.with_name(f".{path.name}{writer}.part")
    yield partial
    partial.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.export", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("results", type=Path, help="nnU-Net's results folder of one training, with its folds")
    parser.add_argument("target", type=Path, help="model folder to fill, such as resources/")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    options = parser.parse_args(arguments)
    export(options.results, options.target, options.dry_run)


if __name__ == "__main__":
    run(main)
