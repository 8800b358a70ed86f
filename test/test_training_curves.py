from pathlib import Path

import numpy as np
import pytest
import torch

from petclick.errors import InputError
from training.curves import read_log, write_curves


def save(path: Path, **content: object) -> Path:
    torch.save({"network_weights": {}, **content}, path)
    return path


def test_log_of_a_checkpoint_becomes_rows_and_curves(tmp_path: Path) -> None:
    log = {
        "train_losses": [np.float32(0.5), np.float32(-0.25)],
        "val_losses": [np.float32(0.75), np.float32(0.125)],
        "mean_fg_dice": [np.float32(0.0), np.float32(0.5)],
        "lrs": [0.01, 0.005],
        "epoch_start_timestamps": [100.0, 131.0],
        "epoch_end_timestamps": [130.0, 171.0],
    }
    rows = read_log(save(tmp_path / "checkpoint.pth", logging=log))
    write_curves({"0": rows, "3": rows[:1]}, tmp_path / "curves")
    assert (tmp_path / "curves.csv").read_text("utf-8").splitlines() == [
        "fold,epoch,learning_rate,train_loss,validation_loss,validation_dice,seconds",
        "0,0,0.01,0.5,0.75,0.0,30",
        "0,1,0.005,-0.25,0.125,0.5,40",
        "3,0,0.01,0.5,0.75,0.0,30",
    ]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_stripped_checkpoint_has_no_log(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"checkpoint\.pth: must be a checkpoint of nnU-Net's training"):
        read_log(path)
