"""Train one fold, resuming where an earlier run was killed.

python -m training.train Dataset601_STS FOLD [--settings FILE] [--device auto|cpu|cuda] [--threads N]
"""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from petclick.program import run
from training.preprocess import CONFIGURATION, PLANS, nnunet_folder
from training.settings import VARIABLE

logger = logging.getLogger(__name__)


def train(dataset: str, fold: int, device: str, threads: int | None) -> Path:
    """Train one fold to its end and return its checkpoint.

    Args:
        dataset: `DatasetNNN_NAME`, preprocessed.
        fold: which of the splits is held out.
        device: 'cpu' or 'cuda'.
        threads: torch's on a CPU; None leaves its own choice.
    """
    # Loader processes that pass tensors through /dev/shm do not pay on a CPU that is busy training.
    if device == "cpu":
        os.environ.setdefault("nnUNet_n_proc_DA", "0")
    import json

    import torch
    from nnunetv2.run.run_training import maybe_load_checkpoint

    from training.trainer import ClickTrainer

    if threads is not None:
        torch.set_num_threads(threads)
    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    plans: dict[str, Any] = json.loads((folder / f"{PLANS}.json").read_text("utf-8"))
    dataset_json = json.loads((folder / "dataset.json").read_text("utf-8"))
    trainer = ClickTrainer(
        plans | {"continue_training": True}, CONFIGURATION, fold, dataset_json, torch.device(device)
    )
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    if final.is_file():
        logger.info("fold %d is trained already: %s", fold, final)
        return final
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()
    return final


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("dataset", help="preprocessed data set, such as Dataset601_STS")
    parser.add_argument("fold", type=int)
    parser.add_argument("--settings", type=Path, help="training settings (default: training/starter.yaml)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--threads", type=int, help="torch's threads on a CPU (one for each of several trainings)"
    )
    options = parser.parse_args(arguments)
    if options.settings is not None:
        os.environ[VARIABLE] = str(options.settings.resolve())
    device = options.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    train(options.dataset, options.fold, device, options.threads)


if __name__ == "__main__":
    run(main)
