"""A model folder in nnU-Net's results layout: plans, folds, and this project's guidance.json.

The format, the published ensemble's included, is described in docs/model-folder.md. Nothing in a checkpoint
is executed: weights are loaded with `weights_only=True` and the few harmless types that nnU-Net pickles.
"""

import pickle
import pydoc
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from petclick.clicks import KINDS
from petclick.errors import InputError, raise_if_out_of_memory
from petclick.files import read_json, shorten
from petclick.guidance import FILE_NAME, GuidanceSpec, load_spec

CONFIGURATION = "3d_fullres"
CHECKPOINT = "checkpoint_final.pth"
NETWORKS = "dynamic_network_architectures."
NETWORK_PARTS = "torch.nn."
"""Packages that a plan's network and its parts may come from."""
ORGAN_HEADS = "organ_seg_layers"
"""Part of the names of the auxiliary task's weights; training only."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that distributed and compiled modules leave in the names of weights."""

SAFE_TYPES: list[Any] = [
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]  # NumPy 1's name
]
"""What nnU-Net's training log pickles into a checkpoint beside tensors."""


@dataclass(frozen=True)
class Plan:
    """What inference needs of plans.json; axes in the network's order, that is after `transpose_forward`."""

    transpose_forward: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    normalization: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    intensities: tuple[dict[str, float], ...]
    resampling: str
    resampling_kwargs: dict[str, Any]
    network_class: str
    network_kwargs: dict[str, Any]
    network_imports: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A checked model folder; weights are read by `load_network`.

    checkpoints: one file a fold, in the folds' order; mirror_axes: the spatial axes that training mirrored.
    """

    folder: Path
    plan: Plan
    spec: GuidanceSpec
    checkpoints: tuple[Path, ...]
    mirror_axes: tuple[int, ...]


def load_model(folder: Path, folds: tuple[str, ...] | None = None) -> Model:
    """Check a model folder and read everything but the weights.

    Args:
        folder: holds plans.json, dataset.json, `fold_N/checkpoint_final.pth`, perhaps guidance.json.
        folds: which folds, such as ('0', '3'); None for all that are there.

    Raises:
        InputError: a file is missing or wrong; says which.
    """
    if not folder.is_dir():
        raise InputError(folder, "the model folder must exist")
    plans, dataset = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
    labels = dataset.get("labels")
    values = sorted(labels.values(), key=str) if isinstance(labels, dict) else None
    if values != [0, 1] or dataset["labels"].get("background") != 0:
        rule = "labels must be background 0 and one lesion label 1"
        raise InputError(folder / "dataset.json", rule, labels)
    checkpoints = _find_checkpoints(folder, folds)
    content = read_checkpoint(checkpoints[0])
    spec = load_spec(folder / FILE_NAME)
    if not (folder / FILE_NAME).is_file():
        spec = _spec_of_trainer(spec, str(content.get("trainer_name")), folder)
    mirror_axes = content.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(mirror_axes, (list, tuple)) or any(axis not in (0, 1, 2) for axis in mirror_axes):
        rule = "inference_allowed_mirroring_axes must be among 0, 1, 2"
        raise InputError(checkpoints[0], rule, mirror_axes)
    return Model(folder, _read_plan(plans, folder), spec, checkpoints, tuple(mirror_axes))


def load_network(model: Model, checkpoint: Path) -> nn.Module:
    """Build the plan's network and fill it with one fold's weights, float32, in evaluation mode.

    Raises:
        InputError: the plan's network cannot be built, or the weights do not fit it, name by name and shape
            by shape.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    plan = model.plan
    try:
        network = get_network_from_plans(
            plan.network_class,
            plan.network_kwargs,
            list(plan.network_imports),
            input_channels=len(plan.normalization) + len(KINDS),
            output_channels=2,
            allow_init=False,
            deep_supervision=False,
        )
    except Exception as error:  # whatever the class makes of arguments that are not its own
        raise_if_out_of_memory(error)
        where = model.folder / "plans.json"
        raise InputError(where, f"must describe a network ({_in_one_line(error)})") from None
    weights = {
        unwrap(name): value
        for name, value in read_checkpoint(checkpoint)["network_weights"].items()
        if ORGAN_HEADS not in name
    }
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise InputError(checkpoint, f"weights must fit plans.json ({_in_one_line(error)})") from None
    assert isinstance(network, nn.Module)
    return network.eval().requires_grad_(False)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint by memory map, without running anything that it may hold.

    Raises:
        InputError: not a checkpoint, or one that would need to run code.
    """
    try:
        with torch.serialization.safe_globals(SAFE_TYPES):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        # PyTorch's message also says how to load such a file all the same, which is no advice for users.
        reason = re.search(r"GLOBAL \S+|Unsupported \w+ \S+", str(error))
        rule = "must hold weights only, nothing that runs code"
        raise InputError(path, rule, reason.group() if reason else _in_one_line(error)) from None
    except Exception as error:  # a damaged pickle fails in any of many ways
        raise_if_out_of_memory(error)
        raise InputError(path, f"must be a readable PyTorch checkpoint ({_in_one_line(error)})") from None
    weights = content.get("network_weights") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise InputError(path, "must be an nnU-Net checkpoint with 'network_weights'")
    return dict(content)


def unwrap(name: str) -> str:
    """A weight's name without what distributed and compiled modules put before it."""
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _in_one_line(error: BaseException) -> str:
    """The beginning of a library's message."""
    return " ".join(str(error).split())[:300]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(path, "the model folder must hold this file")
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(path, "must be a JSON object", type(content).__name__)
    return content


def _find_checkpoints(folder: Path, folds: tuple[str, ...] | None) -> tuple[Path, ...]:
    there = sorted(
        (path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir()),
        key=lambda fold: (len(fold), fold),
    )
    if not there:
        raise InputError(folder, f"must hold fold_N/{CHECKPOINT}", "no fold")
    wanted = there if folds is None else folds
    if missing := [fold for fold in wanted if fold not in there]:
        raise InputError(folder, f"folds must be among {', '.join(there)}", ", ".join(missing))
    paths = tuple(folder / f"fold_{fold}" / CHECKPOINT for fold in wanted)
    for path in paths:
        if not path.is_file():
            raise InputError(path, "the fold must hold this file")
    return paths


def _spec_of_trainer(spec: GuidanceSpec, trainer: str, folder: Path) -> GuidanceSpec:
    """The encoding of a model without guidance.json, from its trainer's name as in the published ensemble."""
    radius = re.search(r"EDT(\d+)", trainer)
    if radius:
        return replace(spec, radius_vox=int(radius.group(1)))
    if "Interactive" in trainer:
        raise InputError(
            folder / FILE_NAME, f"must be written for this model: trainer {trainer} did not encode by EDT"
        )
    return spec


def _read_plan(plans: dict[str, Any], folder: Path) -> Plan:
    where = folder / "plans.json"
    try:
        configuration = plans["configurations"][CONFIGURATION]
        architecture = configuration["architecture"]
        channels = range(len(configuration["normalization_schemes"]))
        intensities = plans["foreground_intensity_properties_per_channel"]
        plan = Plan(
            transpose_forward=tuple(int(axis) for axis in plans["transpose_forward"]),  # type: ignore[arg-type]
            spacing_mm=tuple(float(mm) for mm in configuration["spacing"]),  # type: ignore[arg-type]
            patch_size=tuple(int(size) for size in configuration["patch_size"]),  # type: ignore[arg-type]
            normalization=tuple(configuration["normalization_schemes"]),
            use_mask_for_norm=tuple(configuration["use_mask_for_norm"]),
            intensities=tuple(_mapping(intensities[str(channel)]) for channel in channels),
            resampling=str(configuration["resampling_fn_data"]),
            resampling_kwargs=_mapping(configuration["resampling_fn_data_kwargs"]),
            network_class=architecture["network_class_name"],
            network_kwargs=_mapping(architecture["arch_kwargs"]),
            network_imports=tuple(map(str, architecture["_kw_requires_import"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        rule = f"must be a {CONFIGURATION} plan of nnU-Net 2.6 or newer"
        raise InputError(where, rule, repr(error)) from None
    if not len(plan.normalization) == len(plan.use_mask_for_norm) == 2:
        raise InputError(where, "the plan must have two image channels, CT and PET", len(plan.normalization))
    for name, values in (("spacing", plan.spacing_mm), ("patch_size", plan.patch_size)):
        if len(values) != 3 or not min(values) > 0:
            raise InputError(where, f"{name} must be three numbers above 0", values)
    parts = [plan.network_kwargs.get(key) for key in plan.network_imports]
    for part, package in ((plan.network_class, NETWORKS), *((part, NETWORK_PARTS) for part in parts)):
        if part is not None and not _is_module(part, package):
            raise InputError(where, f"the network and its parts must be modules of {package}*", repr(part))
    if sorted(plan.transpose_forward) != [0, 1, 2]:
        raise InputError(where, "transpose_forward must order the axes 0, 1, 2", plan.transpose_forward)
    return plan


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a mapping is needed, not {shorten(value)}")
    return value


def _is_module(name: object, package: str) -> bool:
    """Whether a plan's name stands for a class of modules; nnU-Net calls whatever such a name leads to."""
    if not isinstance(name, str) or not name.startswith(package):
        return False
    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return False
    return isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith(package)
