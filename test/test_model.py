"""Model folders: the published format loads strictly, and whatever is missing, wrong or unsafe is named."""

import io
import json
import os
import pickle
import pydoc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TRAINER, nnunet_checkpoint, nnunet_plans
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from petclick.errors import InputError
from petclick.guidance import GuidanceSpec
from petclick.model import load_model, load_network, read_checkpoint

MakeModel = Callable[..., Path]


class Payload:
    """Runs a command when it is unpickled the unsafe way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def configuration(plans: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = plans["configurations"]["3d_fullres"]
    return found


def replace_pickle(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Rewrite the pickle inside a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


def test_everything_but_the_weights_is_read(make_model: MakeModel) -> None:
    model = load_model(make_model(transpose=(1, 2, 0), spacing_mm=(1.5, 2.5, 3.5)))
    assert model.plan.transpose_forward == (1, 2, 0)
    assert model.plan.spacing_mm == (1.5, 2.5, 3.5)
    assert model.plan.patch_size == (16, 24, 20)
    assert model.plan.normalization == ("CTNormalization", "CTNormalization")
    assert [each["mean"] for each in model.plan.intensities] == [107.73, 7.064]
    assert model.spec == GuidanceSpec("edt", 2, 1.0, None)
    assert model.mirror_axes == (0, 1, 2)


def test_folds_are_all_that_are_there_in_numeric_order(make_model: MakeModel) -> None:
    folder = make_model(folds=("10", "2", "0"))
    assert [path.parent.name for path in load_model(folder).checkpoints] == ["fold_0", "fold_2", "fold_10"]
    some = load_model(folder, ("10", "0"))
    assert [path.parent.name for path in some.checkpoints] == ["fold_10", "fold_0"]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_load_strictly_without_prefixes_and_organ_heads(make_model: MakeModel, prefix: str) -> None:
    model = load_model(make_model(prefixes=(prefix,)))
    network = load_network(model, model.checkpoints[0])
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())

    saved = nnunet_checkpoint(nnunet_plans(), "0", 0)["network_weights"]
    lesion = {name: value for name, value in saved.items() if "organ" not in name}
    assert len(saved) - len(lesion) == 4, "weight and bias of two heads"
    architecture = configuration(nnunet_plans())["architecture"]
    reference = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        input_channels=4,
        output_channels=2,
        deep_supervision=False,
    ).eval()
    reference.load_state_dict(lesion)
    x = torch.rand(1, 4, 16, 24, 20)
    with torch.no_grad():
        assert torch.equal(network(x), reference(x))


def test_half_precision_weights_become_float32(make_model: MakeModel) -> None:
    def halve(checkpoint: dict[str, Any]) -> None:
        for name, value in checkpoint["network_weights"].items():
            checkpoint["network_weights"][name] = value.half()

    model = load_model(make_model(change=halve))
    assert {p.dtype for p in load_network(model, model.checkpoints[0]).parameters()} == {torch.float32}


def test_checkpoints_of_numpy_1_load(make_model: MakeModel) -> None:
    path = load_model(make_model()).checkpoints[0]
    new, old = b"cnumpy._core.multiarray\nscalar", b"cnumpy.core.multiarray\nscalar"

    def rename(content: bytes) -> bytes:
        assert new in content
        return content.replace(new, old)

    replace_pickle(path, rename)
    checkpoint = read_checkpoint(path)
    assert checkpoint["_best_ema"] == 0.625
    assert checkpoint["logging"]["mean_fg_dice"] == [np.float32(0.5)]
    assert checkpoint["init_args"]["device"] == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("trainer", "radius"),
    [(TRAINER, 2), ("autopetTrainerInteractiveClickGen10ptsRatio80_20EDT4", 4), ("nnUNetTrainer", 2)],
)
def test_without_guidance_json_the_trainers_name_tells_the_radius(
    make_model: MakeModel, trainer: str, radius: int
) -> None:
    folder = make_model(change=lambda checkpoint: checkpoint.update(trainer_name=trainer))
    assert load_model(folder).spec == GuidanceSpec(radius_vox=radius)


def test_a_trainer_that_used_gaussians_needs_guidance_json(make_model: MakeModel) -> None:
    def gaussian(checkpoint: dict[str, Any]) -> None:
        checkpoint["trainer_name"] = "autopetTrainerInteractiveSigma3"

    with pytest.raises(InputError, match=r"guidance\.json: must be written .*InteractiveSigma3"):
        load_model(make_model(change=gaussian))
    told = {"encoding": "gaussian", "sigma_vox": 3}
    folder = make_model(change=gaussian, guidance=told, name="told")
    assert load_model(folder).spec == GuidanceSpec("gaussian", 2, 3)


def test_guidance_json_overrides_the_trainers_name(make_model: MakeModel) -> None:
    folder = make_model(guidance={"radius_vox": 3, "orientation": "LPS"})
    assert load_model(folder).spec == GuidanceSpec(radius_vox=3, orientation="LPS")


@pytest.mark.parametrize("axes", [None, ()])
def test_a_model_that_was_trained_without_mirroring(
    make_model: MakeModel, axes: tuple[int, ...] | None
) -> None:
    folder = make_model(change=lambda checkpoint: checkpoint.update(inference_allowed_mirroring_axes=axes))
    assert load_model(folder).mirror_axes == ()


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: the model folder must exist"):
        load_model(tmp_path / "none")


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_missing_file(make_model: MakeModel, name: str) -> None:
    folder = make_model()
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: the model folder must hold this file"):
        load_model(folder)


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
@pytest.mark.parametrize(("content", "message"), [("{", "must be JSON"), ("[]", "must be a JSON object")])
def test_file_that_is_no_json_object(make_model: MakeModel, name: str, content: str, message: str) -> None:
    folder = make_model()
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}: {message}"):
        load_model(folder)


def test_missing_folds(make_model: MakeModel) -> None:
    folder = make_model(folds=("0", "1"))
    with pytest.raises(InputError, match="folds must be among 0, 1, got 2, x"):
        load_model(folder, ("0", "2", "x"))
    (folder / "fold_1" / "checkpoint_final.pth").unlink()
    with pytest.raises(InputError, match=r"fold_1/checkpoint_final\.pth: the fold must hold this file"):
        load_model(folder)


def test_no_fold_at_all(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"must hold fold_N/checkpoint_final\.pth, got no fold"):
        load_model(make_model(folds=()))


@pytest.mark.parametrize(
    "labels",
    [
        None,
        {"background": 0},
        {"background": 0, "tumor": 2},
        {"background": 1, "tumor": 0},
        {"background": 0, "a": 1, "b": 2},
    ],
)
def test_other_labels_are_refused(make_model: MakeModel, labels: object) -> None:
    folder = make_model()
    edit_json(folder / "dataset.json", lambda dataset: dataset.update(labels=labels))
    with pytest.raises(
        InputError, match=r"dataset\.json: labels must be background 0 and one lesion label 1"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plans: plans.pop("transpose_forward"), "must be a 3d_fullres plan .*'transpose_forward'"),
        (lambda plans: plans.update(transpose_forward=[0, 1, 1]), "transpose_forward must order the axes"),
        (lambda plans: plans["configurations"].clear(), "must be a 3d_fullres plan"),
        (lambda plans: plans.update(configurations=[1]), "must be a 3d_fullres plan"),
        (lambda plans: configuration(plans).pop("architecture"), "must be a 3d_fullres plan"),
        (lambda plans: configuration(plans).update(spacing=[3, 2]), "spacing must be three numbers above 0"),
        (lambda plans: configuration(plans).update(spacing=["x", 2, 2]), "must be a 3d_fullres plan"),
        (
            lambda plans: configuration(plans).update(patch_size=[0, 24, 20]),
            "patch_size must be three numbers",
        ),
        (
            lambda plans: configuration(plans).update(normalization_schemes=["CTNormalization"]),
            "must have two image channels, CT and PET, got 1",
        ),
        (
            lambda plans: configuration(plans)["architecture"].update(arch_kwargs=[]),
            r"must be a 3d_fullres plan .*a mapping is needed, not \[\]",
        ),
        (
            lambda plans: configuration(plans).update(resampling_fn_data_kwargs=[]),
            r"must be a 3d_fullres plan .*a mapping is needed, not \[\]",
        ),
        (
            lambda plans: plans["foreground_intensity_properties_per_channel"].update({"1": 3}),
            "must be a 3d_fullres plan .*a mapping is needed, not 3",
        ),
    ],
)
def test_bad_plans_are_refused(
    make_model: MakeModel, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = make_model()
    edit_json(folder / "plans.json", change)
    with pytest.raises(InputError, match=rf"plans\.json: .*{message}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nonlin", "os.system"),
        ("nonlin", "torch.nn.functional.torch.os.system"),
        ("norm_op", "torch.nn.no_such_part"),
        ("conv_op", ["torch.nn.Conv3d"]),
    ],
)
def test_a_plan_names_nothing_but_parts_of_networks(
    make_model: MakeModel, tmp_path: Path, key: str, value: object
) -> None:
    folder, marker = make_model(), tmp_path / "planted"

    def plant(plans: dict[str, Any]) -> None:
        arguments = configuration(plans)["architecture"]["arch_kwargs"]
        arguments |= {key: value, "nonlin_kwargs": {"command": f"touch {marker}"}}

    edit_json(folder / "plans.json", plant)
    with pytest.raises(
        InputError, match=r"plans\.json: the network and its parts must be modules of torch\.nn"
    ):
        load_model(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "subprocess.Popen",
        "dynamic_network_architectures.architectures.unet.nn.Sequential",
        "dynamic_network_architectures.architectures.unet.get_matching_convtransp",
        "dynamic_network_architectures.no_such_module.UNet",
    ],
)
def test_a_plans_network_is_one_of_the_library(make_model: MakeModel, name: str) -> None:
    folder = make_model()
    edit_json(
        folder / "plans.json",
        lambda plans: configuration(plans)["architecture"].update(network_class_name=name),
    )
    with pytest.raises(
        InputError, match=rf"must be modules of dynamic_network_architectures\.\*, got '{name}'"
    ):
        load_model(folder)


def test_a_part_that_cannot_be_imported_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locate(name: str) -> None:
        raise pydoc.ErrorDuringImport(name, (ImportError, ImportError("no timm"), None))

    folder = make_model()
    monkeypatch.setattr(pydoc, "locate", locate)
    with pytest.raises(InputError, match="must be modules of dynamic_network_architectures"):
        load_model(folder)


def test_arguments_that_the_network_does_not_take(make_model: MakeModel) -> None:
    folder = make_model()

    def change(plans: dict[str, Any]) -> None:
        configuration(plans)["architecture"]["arch_kwargs"]["n_heads"] = 3

    edit_json(folder / "plans.json", change)
    model = load_model(folder)
    with pytest.raises(InputError, match=r"plans\.json: must describe a network \(.*n_heads"):
        load_network(model, model.checkpoints[0])


def drop_bias(weights: dict[str, torch.Tensor]) -> None:
    del weights["decoder.seg_layers.1.bias"]


def add_head(weights: dict[str, torch.Tensor]) -> None:
    weights["decoder.bone_layers.0.weight"] = torch.zeros(3)


def cut_head(weights: dict[str, torch.Tensor]) -> None:
    weights["decoder.seg_layers.0.weight"] = weights["decoder.seg_layers.0.weight"][:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_bias, "Missing key.*decoder.seg_layers.1.bias"),
        (add_head, "Unexpected key.*decoder.bone_layers.0.weight"),
        (cut_head, "size mismatch for decoder.seg_layers.0.weight"),
    ],
)
def test_weights_that_do_not_fit_the_plan(
    make_model: MakeModel, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    model = load_model(make_model(change=lambda checkpoint: change(checkpoint["network_weights"])))
    with pytest.raises(
        InputError, match=rf"checkpoint_final\.pth: weights must fit plans\.json \(.*{message}"
    ):
        load_network(model, model.checkpoints[0])


@pytest.mark.parametrize("axes", [[3], "012", 1, [[0]]])
def test_bad_mirror_axes_are_refused(make_model: MakeModel, axes: object) -> None:
    folder = make_model(change=lambda checkpoint: checkpoint.update(inference_allowed_mirroring_axes=axes))
    with pytest.raises(InputError, match="inference_allowed_mirroring_axes must be among 0, 1, 2"):
        load_model(folder)


def test_code_in_a_checkpoint_does_not_run(make_model: MakeModel, tmp_path: Path) -> None:
    marker = tmp_path / "planted"
    folder = make_model(change=lambda checkpoint: checkpoint.update(logging=Payload(f"touch {marker}")))
    with pytest.raises(
        InputError, match=r"must hold weights only, nothing that runs code, got GLOBAL \S*system"
    ):
        load_model(folder)
    assert not marker.exists()
    torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert marker.exists(), "the payload works, where it is let"


def in_archive(content: bytes) -> bytes:
    """A checkpoint's zip with another pickle."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(result := io.BytesIO(), "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("data.pkl") else source.read(name))
    return result.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no checkpoint",
        b"PK\x03\x04",
        pickle.dumps({"network_weights": {}}),
        in_archive(b""),
        in_archive(b"\x80\x02h\x05."),  # a reference to nothing
        in_archive(b"\x80\x02."),  # an end without a value
        in_archive(b"\x80\x02]."),
        in_archive(b"\x80\x02}X\x0f\x00\x00\x00network_weights]s."),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint_final.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint_final\.pth: must be a"):
        read_checkpoint(tmp_path / "checkpoint_final.pth")


def test_truncated_checkpoint_is_refused(make_model: MakeModel) -> None:
    path = make_model() / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="must be a readable PyTorch checkpoint"):
        read_checkpoint(path)
