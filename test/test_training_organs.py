"""The auxiliary organ task: preprocessing of its masks, its heads and its loss."""

import json
import pickle
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from conftest import ARCHITECTURE, hurry_nnunet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from petclick.errors import InputError
from petclick.grid import Grid
from petclick.images import write_image
from training import preprocess
from training.organ_task import IGNORE, LesionAndOrganLoss, add_organ_heads, organ_loss
from training.preprocessor import KEY, ORGAN_FOLDER

DATASET = "Dataset778_Organs"
SETTINGS = """
architecture:
  spacing_mm: [3.5, 2.5, 3.0]
  patch_size: [12, 16, 8]
  batch_size: 2
  features_per_stage: [4, 6, 8]
  blocks_per_stage: [1, 1, 1]
organs: {count: 3}
"""
GRID = Grid((18, 26, 22), (2.0, 3.0, 3.0), (5.0, -7.0, 9.0))


def write_case(raw: Path, name: str, seed: int) -> None:
    """Images with an empty margin, which is cropped, and a lesion."""
    rng = np.random.default_rng(seed)
    lesion = np.zeros(GRID.shape_zyx, np.uint8)
    lesion[6:12, 9:17, 5:10] = 1
    for channel in range(2):
        image = np.zeros(GRID.shape_zyx, np.float32)
        image[3:20, 4:25, 2:15] = rng.uniform(1, 9, (17, 21, 13))
        write_image(image + 3 * channel * lesion, GRID, raw / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
    write_image(lesion, GRID, raw / "labelsTr" / f"{name}.nii.gz")


def write_organs(raw: Path, name: str, label: int, grid: Grid = GRID) -> None:
    """An organ where the lesion is."""
    organs = np.zeros(grid.shape_zyx, np.uint8)
    organs[6:12, 9:17, 5:10] = label
    write_image(organs, grid, raw / ORGAN_FOLDER / f"{name}.nii.gz")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A raw data set of two cases, without organ masks yet."""
    hurry_nnunet(monkeypatch)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw = tmp_path / "nnUNet_raw" / DATASET
    for name in ("imagesTr", "labelsTr", ORGAN_FOLDER):
        (raw / name).mkdir(parents=True)
    for seed, name in enumerate(("a", "b")):
        write_case(raw, name, seed)
    description = {
        "channel_names": {"0": "CT", "1": "CT"},
        "labels": {"background": 0, "tumor": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    return raw


def run(raw: Path, jobs: int = 1) -> dict[str, Any]:
    """Preprocess; each case's targets and properties."""
    settings = raw.parent.parent / "settings.yaml"
    preprocess.main([DATASET, "--settings", str(settings), "--jobs", str(jobs)])
    folder = cases_folder(raw)
    assert not (folder / "partial").exists()
    found = {}
    for name in ("a", "b"):
        targets = blosc2.open(str(folder / f"{name}_seg.b2nd"))[:]
        found[name] = targets, pickle.loads((folder / f"{name}.pkl").read_bytes())
    return found


def cases_folder(raw: Path) -> Path:
    return raw.parent.parent / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_3d_fullres"


def test_organs_and_lesions_share_crop_and_grid(raw: Path) -> None:
    write_organs(raw, "b", 3)
    cases = run(raw)
    targets, properties = cases["b"]
    assert targets.shape == (2, round(17 * 3 / 3.5), round(21 * 3 / 2.5), round(13 * 2 / 3))
    assert targets[0].any()
    np.testing.assert_array_equal(targets[1] == 3, targets[0] == 1)
    assert set(np.unique(targets[1])) <= {IGNORE, 0, 3}
    assert set(properties["class_locations"]) == {1}
    places = np.asarray(properties["class_locations"][1])
    assert (places[:, 0] == 0).all()
    np.testing.assert_array_equal(np.sort(places, 0), np.sort(np.argwhere(targets[:1] == 1), 0))
    without, _ = cases["a"]
    assert without[0].any()
    assert (without[1] == IGNORE).all()


def test_data_set_without_organ_masks_has_lesions_only(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # as for trainings on a CPU
    targets, _ = run(raw)["a"]
    assert targets.shape[0] == 1


@pytest.mark.parametrize(
    ("label", "grid", "message"),
    [
        (4, GRID, r"b.nii.gz: labels must be whole numbers from 0 \(no organ\) to 3, got \[0.0, 4.0\]"),
        (1, Grid((18, 26, 22), (2.0, 3.0, 3.0)), "b.nii.gz: must lie on the grid of the lesion mask"),
        (1, Grid((18, 26, 23), (2.0, 3.0, 3.0)), "b.nii.gz: must lie on the grid of the lesion mask"),
    ],
)
def test_bad_organ_mask_is_refused(raw: Path, label: int, grid: Grid, message: str) -> None:
    write_organs(raw, "b", label, grid)
    with pytest.raises(InputError, match=message):
        run(raw, jobs=2 if label == 4 else 1)  # from another process, too


def test_folds_are_the_given_else_those_there_else_the_archives(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = str(tmp_path / "settings.yaml")
    final = cases_folder(raw).with_name("splits_final.json")
    archive, given = raw / "splits_final.json", tmp_path / "given.json"
    preprocess.main([DATASET, "--settings", settings, "--dry-run"])
    assert "nnU-Net, five by case" in capsys.readouterr().out
    folds = {"archive": [{"train": ["a"], "val": ["b"]}], "given": [{"train": ["b"], "val": ["a"]}]}
    for file, kind in ((archive, "archive"), (given, "given")):
        file.write_text(json.dumps(folds[kind]))
    run(raw)
    assert json.loads(final.read_text()) == folds["archive"]
    preprocess.main([DATASET, "--settings", settings, "--jobs", "1", "--splits", str(given)])
    assert json.loads(final.read_text()) == folds["given"]
    run(raw)  # what is there stays
    assert json.loads(final.read_text()) == folds["given"]


def test_a_write_that_fails_leaves_folds_plan_and_key_whole(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (raw / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    run(raw)
    folder = cases_folder(raw).parent
    names = ("splits_final.json", f"{preprocess.PLANS}.json", preprocess.RAW_KEY)
    write_text = Path.write_text

    def half(path: Path, text: str, *args: Any) -> int:
        write_text(path, text[: len(text) // 2], *args)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    for write in (
        lambda: preprocess._extract_fingerprint(778, raw, folder, preprocess.raw_cases(raw), 1),
        lambda: preprocess._write_splits(folder / names[0], ["a", "b"], [{"train": ["b"], "val": ["a"]}]),
        lambda: preprocess._plan(778, folder, preprocess.Architecture()),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    for name in names:
        json.loads((folder / name).read_text())  # no half of it


def test_finished_cases_are_kept_and_stale_ones_are_not(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_organs(raw, "a", 1)
    first = run(raw)
    folder = cases_folder(raw)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    # As after a kill while b was written, half-written, and after c was taken out of the raw data.
    (folder / "b.pkl").unlink()
    (folder / "b.b2nd").write_bytes(b"half")
    (folder / "c.pkl").write_bytes(b"old")
    settings = raw.parent.parent / "settings.yaml"
    preprocess.main([DATASET, "--settings", str(settings), "--dry-run"])
    told = capsys.readouterr().out
    assert "2 cases, 1 with organ masks" in told
    assert "1 cases are preprocessed as its plan has it, 1 are not" in told
    again = run(raw)
    assert {path.name for path in folder.iterdir()} == times.keys()
    assert {name for name in times if (folder / name).stat().st_mtime_ns == times[name]} == {
        "a.b2nd",
        "a_seg.b2nd",
        "a.pkl",
    }
    np.testing.assert_array_equal(again["b"][0], first["b"][0])

    write_organs(raw, "a", 2)  # another mask: only its case is made anew
    changed = run(raw)
    assert (changed["a"][0][1] == 2).any()
    assert changed["b"][1][KEY] == again["b"][1][KEY]
    settings.write_text(SETTINGS.replace("3.5", "5.0"))
    assert run(raw)["b"][0].shape[1] == round(17 * 3 / 5)


def build(organs: int | None) -> nn.Module:
    torch.manual_seed(0)
    network = get_network_from_plans(
        ARCHITECTURE["network_class_name"],
        ARCHITECTURE["arch_kwargs"],
        ARCHITECTURE["_kw_requires_import"],
        4,
        2,
        deep_supervision=True,
    )
    if organs is not None:
        add_organ_heads(network, organs)
    assert isinstance(network, nn.Module)
    return network


def test_heads_stand_beside_the_lesions_and_idle_in_evaluation() -> None:
    plain, network = build(None), build(10)
    new = network.state_dict().keys() - plain.state_dict().keys()
    assert new == {f"decoder.organ_seg_layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert network.state_dict()["decoder.organ_seg_layers.1.weight"].shape == (11, 4, 1, 1, 1)
    x = torch.rand(1, 4, 8, 16, 12)
    expected = plain.train()(x)
    for each, (lesions, organs) in zip(expected, network.train()(x), strict=True):
        torch.testing.assert_close(lesions, each, rtol=0, atol=0)
        assert organs.shape == (1, 11, *each.shape[2:])
    for each, lesions in zip(plain.eval()(x), network.eval()(x), strict=True):
        torch.testing.assert_close(lesions, each, rtol=0, atol=0)


def losses() -> LesionAndOrganLoss:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": False, "smooth": 0.0, "do_bg": False, "ddp": False}
    lesion = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    return LesionAndOrganLoss(lesion, organ_loss(False, 0.0, False), 0.5)


def test_loss_adds_the_organs_and_ignores_what_is_unknown() -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 4, 5, 6)
    lesions = torch.randn((2, 2, *shape[1:]), generator=generator, requires_grad=True)
    organs = torch.randn((2, 4, *shape[1:]), generator=generator, requires_grad=True)
    target = torch.randint(0, 2, (2, 2, *shape[1:]), generator=generator)
    target[:, 1] = torch.randint(0, 4, shape, generator=generator)
    target[1, 1] = IGNORE  # a case without organ mask
    target[0, 1, :2] = IGNORE
    loss = losses()
    alone = loss(lesions, target)
    torch.testing.assert_close(loss(lesions, target[:, :1]), alone)
    both = loss((lesions, organs), target)

    # Cross-entropy and Dice over known voxels; a case without any counts as 0 in the mean of Dice.
    known = (target[:, 1] != IGNORE)[:, None]
    labels = target[:, 1].clamp(min=0)
    cross_entropy = -organs.log_softmax(1).gather(1, labels[:, None])[known].mean()
    truth = nn.functional.one_hot(labels, 4).movedim(-1, 1) * known
    probability = organs.softmax(1) * known
    overlap, total = (each.sum((2, 3, 4))[0, 1:] for each in (probability * truth, probability + truth))
    dice = (2 * overlap / total).sum() / (2 * 3)
    torch.testing.assert_close(both, alone + 0.5 * (cross_entropy - dice))
    both.backward()
    assert organs.grad is not None
    assert not organs.grad[1].any()
    assert not organs.grad[0, :, :2].any()
    assert organs.grad[0, :, 2:].all()


@pytest.mark.parametrize("channels", [1, 2])
def test_batch_without_organ_masks_gives_a_zero_gradient(channels: int) -> None:
    lesions = torch.randn((2, 2, 4, 5, 6), requires_grad=True)
    organs = torch.randn((2, 4, 4, 5, 6), requires_grad=True)
    target = torch.cat((torch.ones((2, 1, 4, 5, 6)), torch.full((2, 1, 4, 5, 6), IGNORE)), 1)[:, :channels]
    loss = losses()((lesions, organs), target.long())
    torch.testing.assert_close(loss, losses()(lesions, target.long()))
    loss.backward()
    assert organs.grad is not None
    assert not organs.grad.any()
