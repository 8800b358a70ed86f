"""Fixtures that several modules share: a model folder with random weights, and cases."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from sandbox import Sandbox
from scipy import ndimage

from petclick.clicks import ClickSet, click_set, save_clicks
from petclick.grid import Grid
from petclick.images import Case

# One thread for every library, before any of them starts its own.
os.environ["OMP_NUM_THREADS"] = "1"

TRAINER = "autopetTrainerInteractiveClickGen10ptsRatio80_20EDT2"
"""The published ensemble's."""
INTENSITIES = {
    "0": {"mean": 107.73, "std": 286.34, "percentile_00_5": -832.06, "percentile_99_5": 1127.76},
    "1": {"mean": 7.064, "std": 7.960, "percentile_00_5": 1.0433, "percentile_99_5": 51.211},
}
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_blocks_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
N_ORGANS = 11


def nnunet_plans(
    transpose: Sequence[int] = (0, 1, 2),
    spacing_mm: Sequence[float] = (3.0, 2.0, 2.5),
    normalization: Sequence[str] = ("CTNormalization", "CTNormalization"),
    use_mask: Sequence[bool] = (False, False),
) -> dict[str, Any]:
    """plans.json as nnU-Net 2.6 writes it, with a tiny network; patch (16, 24, 20)."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 24, 20],
        "median_image_size_in_voxels": [326.0, 400.0, 400.0],
        "spacing": list(spacing_mm),
        "normalization_schemes": list(normalization),
        "use_mask_for_norm": list(use_mask),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": json.loads(json.dumps(ARCHITECTURE)),
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset221_AutoPETIV",
        "plans_name": "nnUNetResEncUNetLPlansMultiTalent",
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ResEncUNetPlanner",
        "label_manager": "LabelManager",
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": INTENSITIES,
    }


def nnunet_dataset() -> dict[str, Any]:
    """dataset.json of the autoPET data."""
    return {
        "channel_names": {"0": "CT", "1": "CT"},
        "labels": {"background": 0, "tumor": 1},
        "numTraining": 1611,
        "file_ending": ".nii.gz",
    }


def nnunet_checkpoint(plans: dict[str, Any], fold: str, seed: int, prefix: str = "") -> dict[str, Any]:
    """checkpoint_final.pth as nnU-Net 2.6 and the published trainer write it, with random weights."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            input_channels=4,
            output_channels=2,
            deep_supervision=True,
        )
        with torch.no_grad():  # most random networks see lesions nowhere or everywhere; this one varies
            for head in network.decoder.seg_layers:
                head.bias.zero_()
                head.weight -= head.weight.mean(dim=1, keepdim=True)
        weights = dict(network.state_dict())
        for name in [name for name in weights if "decoder.seg_layers" in name]:
            organs = torch.randn(N_ORGANS, *weights[name].shape[1:])
            weights[name.replace("seg_layers", "organ_seg_layers")] = organs
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.99)
    curve = [np.float64(0.5), np.float64(0.25)]
    return {
        "network_weights": {prefix + name: value for name, value in weights.items()},
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
        "logging": {"train_losses": curve, "mean_fg_dice": [np.float32(0.5)], "lrs": [1e-3]},
        "_best_ema": np.float64(0.625),
        "current_epoch": 1000,
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": int(fold),
            "dataset_json": nnunet_dataset(),
            "device": torch.device("cuda", 0),
        },
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def stored_otherwise(
    case: Case, axes: Sequence[int], flipped: Sequence[int] = ()
) -> tuple[Case, npt.NDArray[np.float64]]:
    """The same patient with array axes exchanged, then turned around; and the map of indices (z, y, x)."""

    def turn(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(np.flip(array.transpose(axes), flipped))

    back = np.eye(4)  # new indices -> old ones
    for new, old in enumerate(axes):
        back[old, :3] = 0
        back[old, new] = -1 if new in flipped else 1
        back[old, 3] = case.grid.shape_zyx[old] - 1 if new in flipped else 0
    to_mm = (case.grid.index_zyx_to_mm @ back)[:, [2, 1, 0, 3]]
    spacing_mm = np.linalg.norm(to_mm[:3, :3], axis=0)
    ct_hu = turn(case.ct_hu)
    z, y, x = ct_hu.shape
    direction = tuple((to_mm[:3, :3] / spacing_mm).ravel())
    grid = Grid((x, y, z), tuple(spacing_mm), tuple(to_mm[:3, 3]), direction)
    return Case(ct_hu, turn(case.pet_suv), grid, case.name), np.linalg.inv(back)


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model folder in the published ensemble's format; `plan` goes to `nnunet_plans`."""

    def write(
        folds: Sequence[str] = ("0",),
        guidance: dict[str, Any] | None = None,
        prefixes: Sequence[str] = ("",),
        change: Callable[[dict[str, Any]], None] | None = None,
        name: str = "model",
        **plan: Any,
    ) -> Path:
        import torch

        folder = tmp_path / name
        folder.mkdir()
        plans = nnunet_plans(**plan)
        for number, fold in enumerate(folds):
            (folder / f"fold_{fold}").mkdir()
            checkpoint = nnunet_checkpoint(plans, fold, number, prefixes[number % len(prefixes)])
            if change is not None:
                change(checkpoint)
            torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(nnunet_dataset()))
        if guidance is not None:
            (folder / "guidance.json").write_text(json.dumps(guidance))
        return folder

    return write


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """Makes a small case of smooth noise; `margin` is a border of zeros, (lower, upper) per array axis."""

    def make(
        shape_zyx: tuple[int, int, int] = (21, 31, 26),
        spacing_mm: tuple[float, float, float] = (2.5, 2.0, 3.0),
        direction: tuple[float, ...] = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
        margin: Sequence[tuple[int, int]] = ((0, 0), (0, 0), (0, 0)),
        seed: int = 7,
    ) -> Case:
        rng = np.random.default_rng(seed)
        inner = [n - sum(both) for n, both in zip(shape_zyx, margin, strict=True)]
        noise = [ndimage.gaussian_filter(rng.standard_normal(inner), 1.5) for _ in range(2)]
        ct, pet = (np.pad(each / each.std(), margin).astype(np.float32) for each in noise)
        grid = Grid(shape_zyx[::-1], spacing_mm, (-40.5, 12.25, 77.0), direction)
        return Case(300 * ct, np.where(pet == 0, 0, np.abs(6 * pet)).astype(np.float32), grid, "patient")

    return make


@pytest.fixture
def write_case() -> Callable[..., Path]:
    """Writes a case and its clicks in the challenge's layout, into a new folder."""

    def write(folder: Path, case: Case, clicks: ClickSet | None = None) -> Path:
        for kind, array, name in (("ct", case.ct_hu, case.name), ("pet", case.pet_suv, "another-name")):
            (folder / "images" / kind).mkdir(parents=True)
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(case.grid.spacing_mm)
            image.SetOrigin(case.grid.origin_mm)
            image.SetDirection(case.grid.direction)
            sitk.WriteImage(image, str(folder / "images" / kind / f"{name}.mha"))
        if clicks is not None:
            save_clicks(clicks, folder / "lesion-clicks.json")
        return folder

    return write


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Runs the program in processes that may die."""
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


@pytest.fixture
def click_network(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The network of every fold, in place of the model's: a `networks.ClickNetwork`."""
    from networks import ClickNetwork

    from petclick import predictor

    network = ClickNetwork()
    monkeypatch.setattr(predictor, "load_network", lambda *_: network)
    return network


@pytest.fixture
def clicks() -> ClickSet:
    """Clicks inside the default case, at its border too."""
    return click_set([[10, 20, 9], [0, 30, 25]], [[5, 8, 22]])


def hurry_nnunet(patch: pytest.MonkeyPatch) -> None:
    """Have nnU-Net look at cases in threads and fewer of their voxels; else it takes seconds."""
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor

    extractor = fingerprint_extractor.DatasetFingerprintExtractor
    collect = extractor.collect_foreground_intensities
    context = SimpleNamespace(Pool=ThreadPool)
    patch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
    patch.setattr(fingerprint_extractor, "multiprocessing", SimpleNamespace(get_context=lambda kind: context))
    patch.setattr(
        extractor,
        "collect_foreground_intensities",
        lambda masks, images, num_samples: collect(masks, images, num_samples=10_000),
    )
