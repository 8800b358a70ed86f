"""Training in several processes, and training that is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import hurry_nnunet
from test_training_organs import DATASET, SETTINGS, write_case

from petclick.errors import InputError
from petclick.evaluation.results import read_results
from petclick.guidance import load_spec
from petclick.model import read_checkpoint
from training import preprocess, train
from training.settings import load_settings

FEW = (
    SETTINGS
    + """
epochs: 4
steps_per_epoch: 3
batch_dice: true
validation_steps_per_epoch: 1
simulation: {error_share: 0.5}
validation_clicks: [0, 2]
"""
)
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a preprocessed data set, and settings."""
    folder = tmp_path_factory.mktemp("ranks")
    raw = folder / "nnUNet_raw" / DATASET
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for seed, name in enumerate(("a", "b", "c")):
        write_case(raw, name, seed)
    description = {
        "channel_names": {"0": "CT", "1": "CT"},
        "labels": {"background": 0, "tumor": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    (folder / "settings.yaml").write_text(FEW)
    (folder / "splits.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))
    with pytest.MonkeyPatch.context() as patch:
        hurry_nnunet(patch)
        for variable in FOLDERS:
            patch.setenv(variable, str(folder / variable))
        splits, settings = str(folder / "splits.json"), str(folder / "settings.yaml")
        preprocess.main([DATASET, "--settings", settings, "--splits", splits, "--jobs", "1"])
    return folder


@pytest.fixture
def job(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> train.Job:
    """A training whose results are the test's own."""
    for variable in FOLDERS[:2]:
        monkeypatch.setenv(variable, str(prepared / variable))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("PETCLICK_TRAINING", str(prepared / "settings.yaml"))
    return train.Job(DATASET, 0, "cpu", threads=1)


def rank_that_keeps_weights(rank: int, job: train.Job, folder: Path) -> None:
    from training.trainer import plain_network

    trainer = train.train_rank(rank, 2, job, f"file://{folder}/rendezvous")
    torch.save(plain_network(trainer.network).state_dict(), folder / f"rank_{rank}.pth")
    np.savez(
        folder / f"rank_{rank}.npz",
        batch=trainer.batch_size,
        losses=trainer.logger.get_value("train_losses", step=None),
    )


def test_two_ranks_train_one_network(job: train.Job, tmp_path: Path) -> None:
    from torch.multiprocessing.spawn import spawn

    spawn(rank_that_keeps_weights, (job, tmp_path), 2)
    weights = [torch.load(tmp_path / f"rank_{rank}.pth") for rank in (0, 1)]
    figures = [np.load(tmp_path / f"rank_{rank}.npz") for rank in (0, 1)]
    saved = read_checkpoint(job.fold_folder / train.FINAL)
    assert saved["current_epoch"] == 4
    assert all(each["batch"] == 1 for each in figures)  # half of the plan's
    assert all(np.isfinite(each["losses"]).all() and len(each["losses"]) == 4 for each in figures)
    for name, value in saved["network_weights"].items():
        for each in weights:
            torch.testing.assert_close(each[name], value, rtol=0, atol=0)

    # What follows in the parent: no training, and the held-out case at each number of clicks.
    train.train(job, ranks=2)
    rows = read_results(job.fold_folder / "validation" / "metrics.csv")
    assert [(row.case, row.step) for row in rows] == [("c", 0), ("c", 2)]


def test_killed_training_loses_at_most_the_epoch(job: train.Job, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.train", DATASET, "0", "--device", "cpu", "--no-validation"]
    process = subprocess.Popen(command, cwd=Path(train.__file__).parents[1], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while "Epoch 2" not in log_text(job) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (job.fold_folder / train.FINAL).exists()
    killed = read_checkpoint(job.fold_folder / train.LATEST)
    assert killed["current_epoch"] == 2
    half = job.fold_folder / f"{train.LATEST}.partial"
    half.write_bytes(b"as after a kill while a checkpoint was written")

    train.train(job, validation=False)
    final = read_checkpoint(job.fold_folder / train.FINAL)
    assert final["current_epoch"] == 4
    assert [len(final["logging"][key]) for key in ("train_losses", "val_losses")] == [4, 4]
    assert final["logging"]["train_losses"][:2] == killed["logging"]["train_losses"][:2]
    assert not half.exists()
    assert re.findall(r"Epoch (\d)", log_text(job)) == ["0", "1", "2", "2", "3"]
    settings = final["init_args"]["settings"]
    assert settings["steps_per_epoch"] == 3
    assert settings["simulation"]["error_share"] == 0.5


def log_text(job: train.Job) -> str:
    return "".join(path.read_text() for path in sorted(job.fold_folder.glob("training_log_*.txt")))


def test_sigterm_ends_every_rank(job: train.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / "long.yaml"
    long.write_text(FEW.replace("epochs: 4", "epochs: 1000"))
    monkeypatch.setenv("PETCLICK_TRAINING", str(long))
    command = [sys.executable, "-m", "training.train", DATASET, "0", "--device", "cpu", "--ranks", "2"]
    command += ["--threads", "1"]
    process = subprocess.Popen(
        command, cwd=Path(train.__file__).parents[1], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    ranks: list[str] = []
    try:
        deadline = time.monotonic() + 300
        while "Epoch 1" not in log_text(job) and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        # beside them there is multiprocessing's resource tracker
        ranks = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        assert len(ranks) == 2
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 143
        assert errors.decode().splitlines()[-1] == "error: terminated by SIGTERM"
        assert not [rank for rank in ranks if Path(f"/proc/{rank}").exists()]
    finally:
        process.kill()
        process.wait()
        for rank in ranks:
            if Path(f"/proc/{rank}").exists():
                os.kill(int(rank), signal.SIGKILL)


def test_nnunets_own_command_trains_and_validates(job: train.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.run.run_training import run_training
    from nnunetv2.utilities import find_objects

    door = str(Path(train.__file__).parent / "nnunet_ext")
    monkeypatch.setenv("nnUNet_extTrainer", door)
    search = find_objects.recursive_find_python_class
    # It looks among its own trainers first, one of which imports torchvision, whose build may not be torch's.
    monkeypatch.setattr(
        find_objects,
        "recursive_find_python_class",
        lambda folder, *args, **kwargs: search(folder, *args, **kwargs) if folder == door else None,
    )
    device = torch.device("cpu")
    run_training(DATASET, preprocess.CONFIGURATION, 0, train.TRAINER, preprocess.PLANS, device=device)
    assert read_checkpoint(job.fold_folder / train.FINAL)["trainer_name"] == train.TRAINER
    assert len(read_results(job.fold_folder / "validation" / "metrics.csv")) == 2
    assert "| network | 2 | 1 |" in log_text(job)
    assert (job.results / "guidance.json").is_file()


def test_dry_run_and_bad_requests(
    job: train.Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train.main([DATASET, "0", "--device", "cpu", "--dry-run"])
    told = capsys.readouterr().out
    assert "2 cases to train, 1 held out" in told
    assert "would train epochs 0 to 4, 3 steps each" in told
    assert "then validate at 0, 2 clicks of each kind" in told
    assert not job.results.exists()
    with pytest.raises(InputError, match=r"FOLD: must be from 0 to 0, the folds of .*, got 1"):
        train.train(train.Job(DATASET, 1, "cpu"))
    with pytest.raises(InputError, match="--ranks: must be from 1 to 2, the plan's batch size, got 3"):
        train.train(job, ranks=3)
    for flags in ([], ["--dry-run"]):
        flags += ["--device", "cpu", "--ranks", "2", "--pretrained", "none.pth"]
        with pytest.raises(InputError, match=r"none.pth: must be a readable PyTorch checkpoint"):
            train.main([DATASET, "0", *flags])
    assert not job.results.exists()
    with pytest.raises(InputError, match=r"Plans.json: must be there: run `python -m training.preprocess`"):
        train.train(train.Job("Dataset779_None", 0, "cpu"))


def test_data_planned_with_other_settings_are_refused(
    job: train.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.trainer import ClickTrainer

    settings = tmp_path / "settings.yaml"
    monkeypatch.setenv("PETCLICK_TRAINING", str(settings))
    how = r"\(run `python -m training.preprocess` with these settings first\)"
    for old, new, message in (
        ("batch_size: 2", "batch_size: 4", f"batch_size 4 {how}, got batch_size 2$"),
        ("[12, 16, 8]", "[12, 16, 16]", rf"patch_size \[12, 16, 16\] {how}, got patch_size \[12, 16, 8\]$"),
        ("[4, 6, 8]", "[4, 6, 9]", r"features_per_stage \[4, 6, 9\] .* got features_per_stage \[4, 6, 8\]$"),
        (
            "[3.5, 2.5, 3.0]",
            "[3.5, 2.5, 2.0]",
            r"spacing \[3.5, 2.5, 2.0\] .* got spacing \[3.5, 2.5, 3.0\]$",
        ),
    ):
        assert old in FEW
        settings.write_text(FEW.replace(old, new))
        message = r"Plans.json: must be planned as the settings have it, with " + message
        with pytest.raises(InputError, match=message):
            train.train(job)
        with pytest.raises(InputError, match=message):
            train.main([DATASET, "0", "--device", "cpu", "--dry-run"])
        plans = job.plans() | {"continue_training": False}
        with pytest.raises(InputError, match=f"{DATASET}.*{message}"):
            ClickTrainer(plans, preprocess.CONFIGURATION, 0, {}, torch.device("cpu"))
    assert not job.results.exists()


def test_a_resumed_run_draws_anew(job: train.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from training.trainer import ClickTrainer

    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)

    def draws(epoch: int) -> tuple[float, float, float]:
        plans = job.plans() | {"continue_training": False}
        trainer = ClickTrainer(plans, preprocess.CONFIGURATION, 0, job.description(), torch.device("cpu"))
        torch.manual_seed(trainer.settings.seed)  # as for the weights
        trainer.current_epoch = epoch
        trainer.on_train_start()
        return float(torch.rand(())), float(trainer.rng.random()), np.random.random()  # noqa: NPY002

    first, second, third = draws(0), draws(2), draws(3)
    assert draws(2) == second
    for kind in range(3):
        assert len({first[kind], second[kind], third[kind]}) == 3
    torch.manual_seed(0)
    assert first[:2] == (float(torch.rand(())), np.random.default_rng((0, 0, 0)).random())  # as ever


def test_settings_of_the_folds_are_replaced_whole(job: train.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from training.trainer import ClickTrainer

    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    plans = job.plans() | {"continue_training": False}
    trainer = ClickTrainer(plans, preprocess.CONFIGURATION, 0, job.description(), torch.device("cpu"))
    files = [job.results / name for name in ("guidance.json", "settings.yaml")]
    for file in files:
        file.write_text("of another fold")
    readers = [file.open() for file in files]  # another fold's process, which has begun to read
    trainer.on_train_start()
    for reader in readers:
        with reader:
            assert reader.read() == "of another fold"
    assert load_spec(files[0]) == trainer.settings.guidance
    assert load_settings(files[1]) == trainer.settings
    assert not list(job.results.glob(".*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "must be JSON in UTF-8"),
        ('{"train": [], "val": []}', "must be a list of folds"),
        ('[{"train": ["a", "b"]}]', "must be a list of folds, each with lists of names 'train' and 'val'"),
        ('[{"train": ["a", "b"], "val": [3]}]', "must be a list of folds"),
    ],
)
def test_bad_splits_are_named(
    job: train.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    folder = tmp_path / "preprocessed" / DATASET
    folder.mkdir(parents=True)
    for file in (job.plans_file, job.preprocessed / "dataset.json"):
        shutil.copy(file, folder)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    with pytest.raises(InputError, match=r"splits_final.json: must be there: run"):
        train.train(job)
    (folder / "splits_final.json").write_text(text)
    with pytest.raises(InputError, match=f"splits_final.json: {message}"):
        train.train(job)


def test_trainer_starts_from_pretrained_weights_and_tells_changed_settings(
    job: train.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("training.trainer.load_pretrained", lambda network, path: given.update(p=path) or [])
    settings = tmp_path / "settings.yaml"
    settings.write_text(FEW.replace("epochs: 4", "epochs: 1"))
    monkeypatch.setenv("PETCLICK_TRAINING", str(settings))
    train.train_here(train.Job(DATASET, 0, "cpu", 1, pretrained="theirs.pth"))
    assert given == {"p": Path("theirs.pth")}
    given.clear()
    (job.fold_folder / train.FINAL).rename(job.fold_folder / train.LATEST)
    settings.write_text(FEW.replace("epochs: 4", "epochs: 2"))
    train.train_here(job)
    assert not given  # the checkpoint's weights go on
    assert "since the checkpoint, epochs went from 1 to 2" in log_text(job)
    assert "since the checkpoint, pretrained went from theirs.pth to None" in log_text(job)
