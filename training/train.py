"""Train one fold, resuming where an earlier run was killed, and validate it.

    python -m training.train Dataset601_STS FOLD [--settings FILE] [--device auto|cpu|cuda] [--ranks N]
        [--threads N] [--pretrained CHECKPOINT] [--no-validation] [--dry-run]

`--ranks N` shares each batch among N GPUs, or among N processes with `--device cpu`.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petclick.errors import InputError
from petclick.files import read_json
from petclick.program import TERMINATED, run
from training.planned import check_planned
from training.preprocess import CONFIGURATION, LOADERS, PLANS, nnunet_folder
from training.raw import read_splits
from training.settings import VARIABLE, TrainingSettings, changes, load_settings

if TYPE_CHECKING:
    from training.trainer import ClickTrainer

TRAINER = "ClickTrainer"
LATEST, FINAL = "checkpoint_latest.pth", "checkpoint_final.pth"
CHECKPOINTS = (FINAL, LATEST, "checkpoint_best.pth")
"""From which nnU-Net goes on, the first that is there."""
PATIENCE_S = 10
"""How long a rank may take to end when it is asked to."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One fold's training.

    dataset: `DatasetNNN_NAME`, preprocessed. fold: which of the splits is held out. device: 'cpu' or 'cuda'.
    threads: torch's on a CPU, of each rank; None leaves its own choice. pretrained: a checkpoint to start
    from in place of the settings'.
    """

    dataset: str
    fold: int
    device: str
    threads: int | None = None
    pretrained: str | None = None

    @property
    def preprocessed(self) -> Path:
        """The data set's folder in nnUNet_preprocessed."""
        return nnunet_folder("nnUNet_preprocessed") / self.dataset

    @property
    def plans_file(self) -> Path:
        """The data set's plans."""
        return self.preprocessed / f"{PLANS}.json"

    @property
    def results(self) -> Path:
        """The folder that all folds share, as nnU-Net names it."""
        folder = nnunet_folder("nnUNet_results") / self.dataset
        return folder / f"{TRAINER}__{PLANS}__{CONFIGURATION}"

    @property
    def fold_folder(self) -> Path:
        """The fold's own folder."""
        return self.results / f"fold_{self.fold}"

    def plans(self) -> dict[str, Any]:
        """The data set's plans.

        Raises:
            InputError: it is not preprocessed.
        """
        plans = read_json(self.plans_file) if self.plans_file.is_file() else None
        if not isinstance(plans, dict):
            raise InputError(self.plans_file, "must be there: run `python -m training.preprocess` first")
        return plans

    def configuration(self, settings: TrainingSettings) -> dict[str, Any]:
        """The plan that trains.

        Raises:
            InputError: it is not preprocessed, or with other settings.
        """
        return check_planned(self.plans(), CONFIGURATION, settings.architecture, self.plans_file)

    def description(self) -> dict[str, Any]:
        """The data set's dataset.json.

        Raises:
            InputError: it is missing, or something else.
        """
        file = self.preprocessed / "dataset.json"
        content = read_json(file)
        if not isinstance(content, dict):
            raise InputError(file, "must be a JSON object", type(content).__name__)
        return content

    def split(self) -> dict[str, list[str]]:
        """The fold's 'train' and 'val' cases.

        Raises:
            InputError: there are no folds, or not so many, or the file holds something else.
        """
        file = self.preprocessed / "splits_final.json"
        if not file.is_file():
            raise InputError(
                file, "must be there: run `python -m training.preprocess`, with --splits for few cases"
            )
        splits = read_splits(file)
        if not 0 <= self.fold < len(splits):
            raise InputError("FOLD", f"must be from 0 to {len(splits) - 1}, the folds of {file}", self.fold)
        return splits[self.fold]


def train(job: Job, ranks: int = 1, validation: bool = True) -> Path:
    """Train one fold to its end, validate it, and return its checkpoint.

    Args:
        job: what to train.
        ranks: processes that share each batch, each with its GPU; on a CPU, with its share of the cores.
        validation: predict the held-out cases at the end.

    Raises:
        InputError: not preprocessed with these settings, no such fold, more ranks than samples in a batch, or
            pretrained weights that cannot be read.
    """
    settings = load_settings()
    _check(job, settings, ranks)
    # Loader processes that pass tensors through /dev/shm do not pay on a CPU that is busy training.
    if job.device == "cpu":
        os.environ.setdefault(LOADERS, "0")
    final = job.fold_folder / FINAL
    if final.is_file():
        logger.info("fold %d is trained already: %s", job.fold, final)
        _warn_of_changes(job, settings)
    elif ranks == 1:
        train_here(job)
    else:
        _train_ranks(job, ranks)
    if validation:
        from training.validate import validate_fold

        cases, clicks = job.split()["val"], settings.validation_clicks
        print(validate_fold(job.results, job.dataset, str(job.fold), cases, clicks, job.device))
    return final


def _check(job: Job, settings: TrainingSettings, ranks: int) -> None:
    """Raise InputError for what can be told before any process starts: a rank's error is only a traceback."""
    batch_size = job.configuration(settings)["batch_size"]
    job.description()
    job.split()
    if not 1 <= ranks <= batch_size:
        raise InputError("--ranks", f"must be from 1 to {batch_size}, the plan's batch size", ranks)
    pretrained = job.pretrained or settings.pretrained
    if pretrained is not None and not any((job.fold_folder / name).is_file() for name in CHECKPOINTS):
        from petclick.model import read_checkpoint

        read_checkpoint(Path(pretrained))


def _warn_of_changes(job: Job, settings: TrainingSettings) -> None:
    """Tell which settings a finished fold was not trained with."""
    from petclick.model import read_checkpoint

    settings = replace(settings, pretrained=job.pretrained or settings.pretrained)
    before = read_checkpoint(job.fold_folder / FINAL).get("init_args", {}).get("settings")
    if before is not None and (keys := changes(before, settings)):
        logger.warning("fold %d was trained with other settings: %s", job.fold, ", ".join(keys))


def _train_ranks(job: Job, ranks: int) -> None:
    """Train in several processes, none of which outlives this call."""
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        context = spawn(train_rank, (ranks, job, f"file://{folder}/rendezvous"), ranks, join=False)
        try:
            while not context.join():
                pass
        finally:  # SIGTERM comes to this process alone
            for process in context.processes:
                process.terminate()
            for process in context.processes:
                process.join(PATIENCE_S)
                process.kill()  # one that waits for another in a library's code does not hear the first
                process.join()


def train_rank(rank: int, ranks: int, job: Job, rendezvous: str) -> "ClickTrainer":
    """One of several processes; `rendezvous` is where they find each other, a URL as torch has them."""
    import torch.distributed

    # An orderly end, which takes the loader's processes along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    if job.device == "cuda":  # pragma: cuda
        torch.cuda.set_device(rank)
    backend = "nccl" if job.device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=ranks)
    try:
        return train_here(job)
    finally:
        torch.distributed.destroy_process_group()


def train_here(job: Job) -> "ClickTrainer":
    """Train in this process, alone or as one rank, from the last checkpoint if there is one."""
    import torch
    from nnunetv2.run.run_training import maybe_load_checkpoint

    from training.trainer import ClickTrainer

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    torch.backends.cudnn.benchmark = True
    plans = job.plans() | {"continue_training": True}
    trainer = ClickTrainer(plans, CONFIGURATION, job.fold, job.description(), torch.device(job.device))
    if job.pretrained is not None:
        trainer.settings = replace(trainer.settings, pretrained=job.pretrained)
    trainer.show_bar = True
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()
    return trainer


def _tell(job: Job, ranks: int, validation: bool) -> None:
    from petclick.model import read_checkpoint

    settings = load_settings()
    _check(job, settings, ranks)
    split, configuration = job.split(), job.configuration(settings)
    done = 0
    for name in (FINAL, LATEST):
        if (job.fold_folder / name).is_file():
            done = int(read_checkpoint(job.fold_folder / name)["current_epoch"])
            break
    print(
        f"{job.dataset}, fold {job.fold}: {len(split['train'])} cases to train, {len(split['val'])} held out"
    )
    print(
        f"patch {configuration['patch_size']}, batch {configuration['batch_size']} on {ranks} x {job.device}"
    )
    print(f"would train epochs {done} to {settings.epochs}, {settings.steps_per_epoch} steps each")
    print(f"pretrained weights: {job.pretrained or settings.pretrained or 'none'}")
    print(f"results in {job.fold_folder}")
    if validation:
        print(f"then validate at {', '.join(map(str, settings.validation_clicks))} clicks of each kind")


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("dataset", help="preprocessed data set, such as Dataset601_STS")
    parser.add_argument("fold", type=int, help="which of the splits is held out")
    parser.add_argument("--settings", type=Path, help="training settings (default: training/starter.yaml)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--ranks", type=int, default=1, help="GPUs, or processes on a CPU, that share each batch (default: 1)"
    )
    parser.add_argument(
        "--threads", type=int, help="torch's threads on a CPU (one for each of several trainings)"
    )
    parser.add_argument("--pretrained", help="checkpoint to start from (default: the settings')")
    parser.add_argument("--no-validation", action="store_true", help="do not predict the held-out cases")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    options = parser.parse_args(arguments)
    if options.settings is not None:
        os.environ[VARIABLE] = str(options.settings.resolve())
    device = options.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    job = Job(options.dataset, options.fold, device, options.threads, options.pretrained)
    if options.dry_run:
        _tell(job, options.ranks, not options.no_validation)
    else:
        train(job, options.ranks, not options.no_validation)


if __name__ == "__main__":
    run(main)
