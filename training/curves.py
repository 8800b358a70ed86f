"""Losses and Dice over the epochs of trained folds, from what their checkpoints have logged.

    python -m training.curves RESULTS_FOLDER OUT

Writes OUT.csv, a row an epoch, and OUT.png. The Dice is nnU-Net's: over the voxels of a few validation
patches, with the simulation's mixture of click numbers.
"""

import argparse
import csv
import logging
from pathlib import Path
from typing import Any

from petclick.errors import InputError
from petclick.model import load_model, read_checkpoint
from petclick.program import run

COLUMNS = {"train_losses": "train_loss", "val_losses": "validation_loss", "mean_fg_dice": "validation_dice"}
"""nnU-Net's name of each series -> ours."""
SMOOTHING_EPOCHS = 5
"""The plotted Dice is the mean of as many epochs."""

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def read_log(checkpoint: Path) -> list[Row]:
    """One fold's epochs: number, learning rate, losses, Dice and seconds.

    Raises:
        InputError: not a training checkpoint, as those in a model folder are not.
    """
    log = read_checkpoint(checkpoint).get("logging")
    names = {*COLUMNS, "lrs", "epoch_start_timestamps", "epoch_end_timestamps"}
    if not isinstance(log, dict) or not names <= log.keys():
        raise InputError(checkpoint, "must be a checkpoint of nnU-Net's training, with its log")
    rows = []
    for epoch, (rate, start, end) in enumerate(
        zip(log["lrs"], log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    ):
        values = {ours: round(float(log[theirs][epoch]), 4) for theirs, ours in COLUMNS.items()}
        rows.append(
            {"epoch": epoch, "learning_rate": round(rate, 8), **values, "seconds": round(end - start)}
        )
    return rows


def write_curves(folds: dict[str, list[Row]], out: Path) -> None:
    """Write the epochs of all folds as `out`.csv and their curves as `out`.png."""
    from matplotlib.figure import Figure

    with out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["fold", *next(iter(folds.values()))[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"fold": fold, **row} for fold, rows in folds.items() for row in rows)
    figure = Figure((10, 3.6), layout="constrained")
    for ax, name in zip(figure.subplots(1, 3), COLUMNS.values(), strict=True):
        for fold, rows in folds.items():
            values = [row[name] for row in rows]
            if name == "validation_dice":
                values = [
                    _mean(values[max(0, end - SMOOTHING_EPOCHS) : end]) for end in range(1, len(rows) + 1)
                ]
            ax.plot([row["epoch"] for row in rows], values, label=f"fold {fold}", linewidth=1.2)
        ax.set_title(name.replace("_", " "), fontsize=10, loc="left")
        ax.set_xlabel("epoch")
        ax.grid(color="#e5e7eb")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(out.with_suffix(".png"), dpi=120)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.curves", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("results", type=Path, help="nnU-Net's results folder of one training, with its folds")
    parser.add_argument("out", type=Path, help="path of the two files, without ending")
    options = parser.parse_args(arguments)
    model = load_model(options.results)
    logs = {path.parent.name.removeprefix("fold_"): read_log(path) for path in model.checkpoints}
    write_curves(logs, options.out)
    logger.info("wrote %s.csv and %s.png", options.out, options.out)


if __name__ == "__main__":
    run(main)
