"""The whole recipe, from no data at all to a model folder whose masks get better with clicks."""

import json
from pathlib import Path

import pytest
from conftest import hurry_nnunet

from petclick.evaluation.results import StepResult, read_results
from petclick.model import load_model
from training import convert, export, preprocess, train

DATASET = "Dataset790_Tiny"
SETTINGS = """
guidance: {encoding: edt, radius_vox: 1, orientation: LPS}
simulation: {max_clicks: 10}
architecture:
  patch_size: [24, 16, 24]
  batch_size: 2
  features_per_stage: [8, 16, 24]
  blocks_per_stage: [1, 1, 1]
organs: {weight: 0.2}
epochs: 5
steps_per_epoch: 50
validation_steps_per_epoch: 1
optimizer: adamw
initial_lr: 0.005
foreground_share: 1.0
validation_clicks: [0, 10]
"""


def test_from_phantoms_to_a_model_that_obeys_clicks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry_nnunet(monkeypatch)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    monkeypatch.setenv("PETCLICK_TRAINING", str(tmp_path / "settings.yaml"))
    source = ["--dataset", DATASET, "--cases", "3", "--spacing", "12,12,12"]
    convert.main(["phantom", *source])
    cases = [f"phantom_{tracer}_{number:04d}" for number in range(3) for tracer in ("fdg", "psma")]
    splits = [{"train": cases[:4], "val": cases[4:]}]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    preprocess.main([DATASET, "--splits", str(tmp_path / "splits.json"), "--jobs", "1"])
    train.main([DATASET, "0", "--device", "cpu", "--threads", "1"])
    results = train.Job(DATASET, 0, "cpu").results
    export.main([str(results), str(tmp_path / "resources")])
    assert load_model(tmp_path / "resources").checkpoints

    rows = read_results(results / "fold_0" / "validation" / "metrics.csv")
    dice = {
        step: [row.dice for row in rows if isinstance(row, StepResult) and row.step == step]
        for step in (0, 10)
    }
    assert len(dice[0]) == len(dice[10]) == 2
    assert 0 < sum(dice[0]) < sum(dice[10])
