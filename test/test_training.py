"""The whole way from a data set to a model folder, on tiny phantoms, and the parts of it."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import hurry_nnunet

from petclick.clicks import load_clicks
from petclick.errors import InputError
from petclick.evaluation.protocol import CLICK_SEED, challenge_clicks
from petclick.grid import Grid
from petclick.guidance import GuidanceSpec, encode, load_spec
from petclick.images import read_case, read_image, write_image
from petclick.model import load_model, load_network, read_checkpoint
from petclick.orientation import orient
from petclick.phantom import make_phantom
from petclick.simulate import SimulationSettings, Sources, simulate_official
from training import convert, export, preprocess, preprocessor, settings, train, validate

SETTINGS = """
guidance: {encoding: edt, radius_vox: 1, orientation: LPS}
simulation: {max_clicks: 3, no_click_share: 0.2, error_share: 0.5}
architecture:
  spacing_mm: [9.0, 8.0, 8.0]
  patch_size: [16, 12, 20]
  batch_size: 2
  features_per_stage: [4, 6, 8]
  blocks_per_stage: [1, 1, 1]
epochs: 2
steps_per_epoch: 2
validation_steps_per_epoch: 1
initial_lr: 0.01
foreground_share: 0.5
"""
PATIENTS = ("STS_001", "STS_002", "STS_003", "STS_004")
DATASET = "Dataset777_Tiny"


def write_patients(folder: Path) -> None:
    """Phantoms in the IBSI set's layout: CT on a finer grid than PET, stored flipped."""
    for seed, name in enumerate(PATIENTS):
        (folder / name).mkdir(parents=True)
        fine = make_phantom((40, 22, 30), (8.0, 10.0, 9.0), seed, 3)
        coarse = make_phantom((20, 22, 30), (16.0, 10.0, 9.0), seed, 3)
        write_image(fine.ct_hu, fine.grid, folder / name / "CT_image.nii.gz")
        flipped = orient(coarse.grid, "RPS")
        for array, file in (
            (coarse.pet_suv, "PET_image"),
            ((coarse.lesions > 0).astype(np.uint8), "PET_mask"),
        ):
            write_image(np.ascontiguousarray(array[:, :, ::-1]), flipped, folder / name / f"{file}.nii.gz")


def write_organs(raw: Path) -> None:
    """Organ masks for half of the cases, made of PET."""
    (raw / preprocessor.ORGAN_FOLDER).mkdir()
    for name in PATIENTS[::2]:
        pet, grid = read_image(raw / "imagesTr" / f"{name}_0001.nii.gz")
        organs = np.digitize(pet, (0.5, 1.0, 2.0, 4.0)).astype(np.uint8)
        write_image(organs, grid, raw / preprocessor.ORGAN_FOLDER / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the converted, preprocessed, trained and exported tiny data set."""
    folder = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        hurry_nnunet(patch)
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(variable, str(folder / variable))
        (folder / "settings.yaml").write_text(SETTINGS)
        patch.setenv(settings.VARIABLE, str(folder / "settings.yaml"))
        splits = [
            {"train": list(PATIENTS[2:]), "val": list(PATIENTS[:2])},
            {"train": list(PATIENTS[:2]), "val": list(PATIENTS[2:])},
        ]
        (folder / "splits.json").write_text(json.dumps(splits))
        write_patients(folder / "source" / "nested")
        convert.main(["sts", str(folder / "source"), "--dataset", DATASET, "--everyone"])
        write_organs(folder / "nnUNet_raw" / DATASET)
        preprocess.main([DATASET, "--splits", str(folder / "splits.json"), "--jobs", "1"])
        for fold in ("0", "1"):
            train.main([DATASET, fold, "--settings", str(folder / "settings.yaml"), "--device", "cpu"])
        export.main([str(results(folder)), str(folder / "model")])
    return folder


def results(workshop: Path) -> Path:
    return (
        workshop
        / "nnUNet_results"
        / DATASET
        / f"ClickTrainer__{preprocess.PLANS}__{preprocess.CONFIGURATION}"
    )


def test_converted_cases_are_upright_and_on_pets_grid(workshop: Path) -> None:
    raw = workshop / "nnUNet_raw" / DATASET
    pet, grid = read_image(raw / "imagesTr" / "STS_003_0001.nii.gz")
    ct, ct_grid = read_image(raw / "imagesTr" / "STS_003_0000.nii.gz")
    lesion, lesion_grid = read_image(raw / "labelsTr" / "STS_003.nii.gz")
    phantom = make_phantom((20, 22, 30), (16.0, 10.0, 9.0), 2, 3)
    assert grid.matches(phantom.grid)
    assert ct_grid.matches(grid)
    assert lesion_grid.matches(grid)
    np.testing.assert_allclose(pet, phantom.pet_suv, rtol=1e-6)
    np.testing.assert_array_equal(lesion > 0, phantom.lesions > 0)
    assert np.corrcoef(ct.ravel(), phantom.ct_hu.ravel())[0, 1] > 0.95


def test_settings_without_an_orientation_keep_patients_as_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    write_patients(tmp_path / "source")
    published = settings.DEFAULT_FILE.with_name("autopet.yaml")
    command = ["sts", str(tmp_path / "source"), "--dataset", DATASET, "--everyone"]
    convert.main([*command, "--settings", str(published)])
    stored, stored_grid = read_image(tmp_path / "source" / "STS_002" / "PET_image.nii.gz")
    pet, grid = read_image(tmp_path / "raw" / DATASET / "imagesTr" / "STS_002_0001.nii.gz")
    assert grid.matches(stored_grid)
    np.testing.assert_array_equal(pet, stored)
    with pytest.raises(InputError, match=r'orientation\.json: must be \{"orientation": "LPS"\}'):
        convert.main(command)


def test_plan_holds_the_settings_wishes(workshop: Path) -> None:
    plans = json.loads((workshop / "model" / "plans.json").read_text())
    configuration = plans["configurations"][preprocess.CONFIGURATION]
    assert configuration["patch_size"] == [16, 12, 20]
    assert configuration["spacing"] == [9.0, 8.0, 8.0]
    assert plans["transpose_forward"] == [0, 1, 2]
    assert configuration["architecture"]["arch_kwargs"]["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def test_exported_model_is_the_trained_one_in_half_precision(workshop: Path) -> None:
    model = load_model(workshop / "model")
    assert load_spec(workshop / "model" / "guidance.json") == GuidanceSpec(radius_vox=1, orientation="LPS")
    assert model.mirror_axes == (0, 1, 2)
    assert len(model.checkpoints) == 2
    trained = read_checkpoint(results(workshop) / "fold_1" / "checkpoint_final.pth")
    assert trained["current_epoch"] == 2
    loaded = load_network(model, model.checkpoints[1]).state_dict()
    weights = trained["network_weights"]
    heads = {name for name in weights if "organ" in name}
    assert heads == {f"decoder.organ_seg_layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    for name in weights.keys() - heads:
        value = weights[name]
        torch.testing.assert_close(loaded[name], value.half().float(), rtol=0, atol=0)
    one_copy = sum(parameter.numel() for parameter in load_network(model, model.checkpoints[1]).parameters())
    assert model.checkpoints[1].stat().st_size < 2 * one_copy + 60_000


def test_export_tells_what_it_would_write(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = workshop / "other"
    export.main([str(results(workshop)), str(target), "--dry-run"])
    told = capsys.readouterr().out
    for name in ("plans.json", "guidance.json", "settings.yaml", "fold_1/checkpoint_final.pth"):
        assert f"would write {target / name} from {results(workshop) / name}" in told
    assert not target.exists()
    assert not [path for path in (workshop / "model").rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_export_mixes_no_folds_of_two_trainings(workshop: Path, tmp_path: Path, flags: list[str]) -> None:
    target = tmp_path / "resources"
    for fold in ("fold_0", "fold_2", "fold_3"):
        (target / fold).mkdir(parents=True)
        (target / fold / "checkpoint_final.pth").write_bytes(b"of another training")
    (target / "plans.json").write_text("{}")
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"resources: must hold no fold that .* lacks, got fold_2, fold_3"):
        export.main([str(results(workshop)), str(target), *flags])
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_training_goes_on_where_it_was_killed(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fold = results(workshop) / "fold_0"
    final = (fold / "checkpoint_final.pth").read_bytes()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(workshop / variable))
    more = (workshop / "settings.yaml").read_text().replace("epochs: 2", "epochs: 3")
    (workshop / "more.yaml").write_text(more)
    monkeypatch.setenv(settings.VARIABLE, str(workshop / "more.yaml"))
    # As after a kill in the third epoch: the last whole one is there, the final one is not.
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    train.train(train.Job(DATASET, 0, "cpu", 1), validation=False)
    resumed = read_checkpoint(fold / "checkpoint_final.pth")
    assert resumed["current_epoch"] == 3
    assert not list(fold.glob("*.partial"))
    log = "".join(path.read_text() for path in fold.glob("training_log_*.txt"))
    assert log.count("Epoch 0\n") + log.count("Epoch 0 \n") == 1
    with caplog.at_level(logging.INFO):
        train.train(train.Job(DATASET, 0, "cpu"), validation=False)
    assert "trained already" in caplog.text
    assert "other settings" not in caplog.text
    (workshop / "more.yaml").write_text(more.replace("initial_lr: 0.01", "initial_lr: 0.02"))
    train.train(train.Job(DATASET, 0, "cpu", pretrained="theirs.pth"), validation=False)
    assert "fold 0 was trained with other settings: initial_lr, pretrained" in caplog.text
    (fold / "checkpoint_final.pth").write_bytes(final)


def test_validation_scores_each_case_by_its_own_fold(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(workshop / variable))
    scores = workshop / "scores" / "metrics.csv"
    validate.main([DATASET, str(workshop / "model"), str(scores.parent), "--dry-run"])
    told = capsys.readouterr().out
    assert "on 4 cases of Dataset777_Tiny" in told
    assert "fold 1: STS_003, STS_004" in told
    assert not scores.parent.exists()
    arguments = [DATASET, str(workshop / "model"), str(scores.parent), "--steps", "0,2"]
    validate.main([*arguments, "--folds", "0"])
    first = scores.read_text()
    validate.main([*arguments, "--folds", "0,1"])
    assert scores.read_text().startswith(first)
    rows = list(csv.DictReader(scores.read_text().splitlines()))
    assert {(row["case"], row["fold"]) for row in rows} == set(zip(PATIENTS, "0011", strict=True))
    assert {row["step"] for row in rows} == {"0", "2"}
    assert "| network | 2 | 4 |" in capsys.readouterr().out


def test_challenge_case_round_trip(workshop: Path) -> None:
    out = workshop / "case"
    patient = workshop / "source" / "nested" / "STS_002"
    convert.main(["challenge-case", str(patient), str(out), "--clicks", "4"])
    case = read_case(out / "images" / "ct" / "STS_002.mha", out / "images" / "pet" / "STS_002.mha")
    truth, _ = read_image(out / "truth" / "STS_002.mha")
    clicks = load_clicks(out / "lesion-clicks.json", case.grid)
    tumor, background = clicks.of_kind("tumor"), clicks.of_kind("background")
    assert len(tumor) == len(background) == 4
    assert truth[tuple(tumor.T)].all()
    assert not truth[tuple(background.T)].any()
    again = challenge_clicks(truth.astype(np.uint8), case.pet_suv, 4)
    np.testing.assert_array_equal(again.index_zyx, clicks.index_zyx)


def test_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    write_patients(tmp_path)
    mask_file = tmp_path / "STS_001" / "PET_mask.nii.gz"
    write_image(np.zeros((3, 4, 5), np.uint8), Grid((5, 4, 3), (1.0, 2.0, 3.0)), mask_file)
    with pytest.raises(InputError, match=r"PET_mask.nii.gz: must lie on PET's grid"):
        convert.read_patient(mask_file.parent)


def test_source_without_patients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must hold folders STS_nnn"):
        convert.find_patients(tmp_path)


def test_splits_are_checked_and_completed(tmp_path: Path) -> None:
    file = tmp_path / "splits.json"

    def splits_for(*splits: tuple[list[str], list[str]]) -> list[dict[str, list[str]]]:
        file.write_text(json.dumps([{"train": train, "val": val} for train, val in splits]))
        return preprocess.splits_for(["a", "b", "c", "x"], file)

    assert splits_for((["a"], ["b"]), (["b", "c"], ["a"])) == [
        {"train": ["a", "x"], "val": ["b"]},
        {"train": ["b", "c", "x"], "val": ["a"]},
    ]
    file.write_text('[{"train": ["p"], "val": ["q_2018-04-23"]}, {"train": ["q_2018-04-23"], "val": ["p"]}]')
    unnamed = preprocess.splits_for(["p", "q_2018-04-23", "q_2019-04-30"], file)
    assert [fold["train"] for fold in unnamed] == [["p"], ["q_2018-04-23", "q_2019-04-30"]]
    with pytest.raises(InputError, match=r"missing\.json: must be a regular file"):
        preprocess.splits_for(["a"], tmp_path / "missing.json")
    for text, rule in (("[", "JSON in UTF-8"), ("[]", r"a list of folds.* got \[\]")):
        file.write_text(text)
        with pytest.raises(InputError, match=rf"splits\.json: must be {rule}"):
            preprocess.splits_for(["a"], file)
    file.write_text('[{"train": ["a"]}]')
    with pytest.raises(InputError, match=r"splits\.json: must be .* 'val', got \[\{'train': \['a'\]\}\]"):
        preprocess.splits_for(["a"], file)
    with pytest.raises(InputError, match="must name cases of the data set, got y"):
        splits_for((["a"], ["y"]))
    with pytest.raises(InputError, match="one fold's 'val' at most, got b"):
        splits_for((["a"], ["b"]), (["c"], ["b"]))
    with pytest.raises(InputError, match="fold 1 must not train on what it holds out, got c"):
        splits_for((["a"], ["b"]), (["a", "c"], ["c"]))


def test_starter_splits_hold_each_patient_once() -> None:
    splits = json.loads(preprocess.STARTER_SPLITS.read_text())
    everyone = sorted(case for split in splits for case in split["val"])
    assert len(everyone) == len(set(everyone)) == 36
    for split in splits:
        assert sorted(split["train"] + split["val"]) == everyone
    assert preprocess.splits_for(everyone, preprocess.STARTER_SPLITS) == splits
    with pytest.raises(InputError, match=r"splits_sts.json: .*STS_001"):
        preprocess.splits_for(everyone[1:], preprocess.STARTER_SPLITS)


def test_nnunet_folder_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(InputError, match="nnUNet_raw: this environment variable"):
        preprocess.nnunet_folder("nnUNet_raw")


def test_settings_survive_a_round_trip(tmp_path: Path) -> None:
    starter = settings.load_settings(settings.DEFAULT_FILE)
    settings.save_settings(starter, tmp_path / "copy.yaml")
    assert settings.load_settings(tmp_path / "copy.yaml") == starter
    assert starter.guidance.orientation == convert.load_settings().guidance.orientation == "LPS"
    assert starter.architecture.patch_size == (64, 40, 40)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "keys of the file must be among .*epochs.*, got 'epoch'"),
        ("guidance: {radius: 2}", "keys of guidance must be among .*radius_vox.*, got 'radius'"),
        ("guidance: {radius_vox: 0}", "radius_vox must be a whole number from 1 to 16, got 0"),
        ("simulation: 3", "simulation must be a mapping, got 3"),
        ("epochs: many", "epochs must be of type int, got 'many'"),
        ("epochs: true", "epochs must be of type int, got True"),
        ("epochs: null", "epochs must be of type int, got None"),
        ("organs: {weight: null}", "organs.weight must be of type float, got None"),
        ("validation_clicks: null", "validation_clicks must be of type tuple, got None"),
        (f"initial_lr: 1{400 * '0'}", "initial_lr must be a number in a float's range, got 1000"),
        ("epochs: [", "must be a YAML file"),
        ("epochs: 0", "epochs must be a whole number above 0, got 0"),
        ("initial_lr: 0", "initial_lr must be a number above 0, up to 1, got 0.0"),
        ("initial_lr: .nan", "initial_lr must be a number above 0, up to 1, got nan"),
        ("foreground_share: 1.5", "foreground_share must be a number from 0 to 1, got 1.5"),
        ("seed: -1", "seed must be a whole number from 0 to 2147483647, got -1"),
        ("optimizer: adam", "optimizer must be 'sgd' or 'adamw', got 'adam'"),
        ("pretrained: 3", "pretrained must be the path of a checkpoint, or null, got 3"),
        ("validation_clicks: [3, 1]", r"validation_clicks must be ascending .* 0 to 10, got \(3, 1\)"),
        ("validation_clicks: [0, 11]", r"validation_clicks must be ascending .* 0 to 10, got \(0, 11\)"),
        ("organs: {weight: -1}", "weight must be a number from 0 to 100, got -1.0"),
        ("organs: {count: 0}", "count must be a whole number from 1 to 126, got 0"),
        ("misalignment: {shift_vox: [0, 2]}", r"shift_vox must be three whole .* got \(0, 2\)"),
        ("misalignment: {rotation_share: 2}", "rotation_share must be a number from 0 to 1, got 2.0"),
        ("misalignment: {rotation_deg: -5}", "rotation_deg must be a number from 0 to 90, got -5.0"),
        ("architecture: {patch_size: [8, 8]}", r"patch_size must be three whole .* got \(8, 8\)"),
        ("architecture: {spacing_mm: [3, 2, 0]}", "spacing_mm must be three numbers above 0"),
        ("architecture: {batch_size: two}", "batch_size must be a whole number above 0, or null, got 'two'"),
        ("architecture: {features_per_stage: [8, 16]}", "features_per_stage must be of three stages or more"),
        ("architecture: {blocks_per_stage: [1, 0]}", "blocks_per_stage must be whole numbers above 0"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"bad.yaml: .*{message}|bad.yaml: {message}"):
        settings.load_settings(path)


def test_published_systems_settings_make_its_network() -> None:
    published = settings.load_settings(settings.DEFAULT_FILE.with_name("autopet.yaml"))
    planned = {"patch_size": [8, 8, 8], "architecture": {"arch_kwargs": {"n_blocks_per_stage": [1, 3]}}}
    plan = preprocess.adapt_plan(planned, published.architecture)
    network = plan["architecture"]["arch_kwargs"]
    assert plan["patch_size"] == [192, 192, 192]
    assert network["features_per_stage"] == [32, 64, 128, 256, 320, 320]
    assert network["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6]
    assert network["strides"] == [[1, 1, 1]] + [[2, 2, 2]] * 5
    assert published.organs == settings.Organs(1.0, 10)
    assert published.guidance == GuidanceSpec()


def test_plan_that_cannot_be_halved_is_refused() -> None:
    configuration = {
        "patch_size": [16, 16, 16],
        "architecture": {"arch_kwargs": {"n_stages": 2, "n_blocks_per_stage": [1, 1]}},
    }
    wish = settings.Architecture(features_per_stage=(4, 8, 8), patch_size=(16, 18, 20))
    with pytest.raises(InputError, match="patch_size must be divisible by 4"):
        preprocess.adapt_plan(configuration, wish)
    with pytest.raises(InputError, match="blocks_per_stage must have 2 entries"):
        preprocess.adapt_plan(configuration, settings.Architecture(blocks_per_stage=(1, 1, 1)))


def test_training_patch_gets_the_clicks_of_its_own_mask() -> None:
    from training.transforms import SimulateClicks

    rng = np.random.default_rng(3)
    image = torch.from_numpy(rng.standard_normal((2, 12, 18, 15)).astype(np.float32))
    lesion = torch.zeros((1, 12, 18, 15), dtype=torch.int16)
    lesion[0, 3:7, 5:11, 8:12] = 1
    before = lesion.clone()
    spec = GuidanceSpec()
    step = SimulateClicks(spec, SimulationSettings(5, Sources(official=1, varied=0)), seeds=(1,))
    parameters = step.get_parameters(image=image, segmentation=lesion)
    out = step.apply({"image": image, "segmentation": lesion}, **parameters)
    assert out["image"].shape == (4, 12, 18, 15)
    torch.testing.assert_close(out["image"][:2], image)
    expected = encode(parameters["clicks"], (12, 18, 15), spec)
    np.testing.assert_array_equal(out["image"][2:].numpy(), expected)
    torch.testing.assert_close(lesion, before)


def test_official_clicks_are_shared_by_training_and_validation() -> None:
    phantom = make_phantom((20, 22, 30), (16.0, 10.0, 9.0), 1, 3)
    lesion = phantom.lesions > 0
    clicks = challenge_clicks(lesion.astype(np.uint8), phantom.pet_suv)
    expected = simulate_official(lesion, phantom.pet_suv, 10, 10, np.random.default_rng(CLICK_SEED))
    np.testing.assert_array_equal(clicks.index_zyx, expected.index_zyx)


def test_nnunets_door_leads_to_the_trainer() -> None:
    """What `nnUNetv2_train -tr ClickTrainer` does with a folder of nnUNet_extTrainer."""
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    from training.trainer import ClickTrainer

    door = str(Path(train.__file__).parent / "nnunet_ext")
    found = recursive_find_python_class(
        door, "ClickTrainer", None, base_folder=door, cleanup_imports_from_base_folder=True
    )
    assert found is ClickTrainer
