"""Training settings: one frozen dataclass, one YAML file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from petclick.errors import InputError
from petclick.guidance import GuidanceSpec
from petclick.records import from_mapping, to_mapping
from petclick.simulate import SimulationSettings

DEFAULT_FILE = Path(__file__).with_name("starter.yaml")
"""The settings that trained the weights in `resources/`."""
VARIABLE = "PETCLICK_TRAINING"
"""Names another settings file, also for nnU-Net's own `nnUNetv2_train`."""
MOST_CLICKS = 10
"""The evaluation's, of each kind; importing it from there would take seconds."""


def _check(name: str, good: bool, rule: str, value: object) -> None:
    if not good:
        raise InputError("settings", f"{name} must be {rule}", repr(value))


def _is_sizes(value: object, least: int) -> bool:
    return (
        isinstance(value, tuple)
        and bool(value)
        and all(type(each) is int and each >= least for each in value)
    )


@dataclass(frozen=True)
class Architecture:
    """What to change in nnU-Net's plan for `3d_fullres`; None keeps the planner's choice.

    Shapes are in voxels of the plan's axis order. The encoder has as many stages as `features_per_stage` has
    entries; each but the first halves every axis.
    """

    spacing_mm: tuple[float, ...] | None = None
    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = None
    features_per_stage: tuple[int, ...] | None = None
    blocks_per_stage: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: naming the key, its rule and the value.
        """
        spacing, patch = self.spacing_mm, self.patch_size
        good = spacing is None or (
            isinstance(spacing, tuple)
            and len(spacing) == 3
            and all(type(mm) in (int, float) and 0 < mm <= 100 for mm in spacing)
        )
        _check("spacing_mm", good, "three numbers above 0, up to 100, or null", spacing)
        good = patch is None or (_is_sizes(patch, 1) and len(patch) == 3)
        _check("patch_size", good, "three whole numbers above 0, or null", patch)
        good = self.batch_size is None or (type(self.batch_size) is int and self.batch_size >= 1)
        _check("batch_size", good, "a whole number above 0, or null", self.batch_size)
        for name in ("features_per_stage", "blocks_per_stage"):
            value = getattr(self, name)
            _check(name, value is None or _is_sizes(value, 1), "whole numbers above 0, or null", value)
        # nnU-Net's deep supervision leaves the lowest decoder stage out; of two stages nothing would be left.
        good = self.features_per_stage is None or len(self.features_per_stage) >= 3
        _check("features_per_stage", good, "of three stages or more", self.features_per_stage)


@dataclass(frozen=True)
class Organs:
    """The auxiliary task, trained where the data have organ masks.

    weight: of its loss beside the lesions'; 0 trains no organ heads. count: organs, numbered from 1.
    """

    weight: float = 1.0
    count: int = 10

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: naming the key, its rule and the value.
        """
        _check("weight", 0 <= self.weight <= 100, "a number from 0 to 100", self.weight)
        _check("count", 1 <= self.count <= 126, "a whole number from 1 to 126", self.count)


@dataclass(frozen=True)
class Misalignment:
    """Random displacement of CT against PET and the masks (arXiv 2409.09478).

    rotation_deg: largest angle about each axis; rotation_share: share of samples that are rotated;
    shift_vox: largest shift along (z, y, x), whole voxels; shift_share: share of samples that are shifted.
    """

    rotation_deg: float = 5.0
    rotation_share: float = 0.1
    shift_vox: tuple[int, ...] = (0, 2, 2)
    shift_share: float = 0.1

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: naming the key, its rule and the value.
        """
        _check("rotation_deg", 0 <= self.rotation_deg <= 90, "a number from 0 to 90", self.rotation_deg)
        good = _is_sizes(self.shift_vox, 0) and len(self.shift_vox) == 3
        _check("shift_vox", good, "three whole numbers, 0 or more", self.shift_vox)
        for name in ("rotation_share", "shift_share"):
            _check(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1", getattr(self, name))


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training, apart from the data.

    guidance: the model's contract, saved beside the weights; simulation: how clicks are drawn;
    optimizer: 'sgd', nnU-Net's with momentum, or 'adamw', for trainings too short for that; initial_lr: with
    polynomial decay; dice_smooth: added to Dice's numerator and denominator; batch_dice: the lesions' Dice is
    that of the whole batch, so that false positives in a patch without lesions count; foreground_share: share
    of each batch whose patch is centred on a lesion, which nnU-Net rounds to whole samples: of a batch of 2
    both 0.33 and 0.5 centre one; pretrained: a checkpoint to start from; validation_clicks: numbers of clicks
    of each kind at which the finished fold is validated; seed: of weights, and of clicks and samples where
    the loader runs in the training's own process, as on CPUs.
    """

    guidance: GuidanceSpec = field(default_factory=GuidanceSpec)
    simulation: SimulationSettings = field(default_factory=SimulationSettings)
    misalignment: Misalignment = field(default_factory=Misalignment)
    architecture: Architecture = field(default_factory=Architecture)
    organs: Organs = field(default_factory=Organs)
    epochs: int = 1000
    steps_per_epoch: int = 250
    validation_steps_per_epoch: int = 50
    optimizer: Literal["sgd", "adamw"] = "sgd"
    initial_lr: float = 1e-3
    weight_decay: float = 3e-5
    dice_smooth: float = 0.0
    batch_dice: bool = False
    foreground_share: float = 0.33
    seed: int = 0
    pretrained: str | None = None
    validation_clicks: tuple[int, ...] = (0, 1, 3, 5, 10)

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: naming the key, its rule and the value.
        """
        for name in ("epochs", "steps_per_epoch", "validation_steps_per_epoch"):
            _check(name, getattr(self, name) >= 1, "a whole number above 0", getattr(self, name))
        _check("optimizer", self.optimizer in ("sgd", "adamw"), "'sgd' or 'adamw'", self.optimizer)
        _check("initial_lr", 0 < self.initial_lr <= 1, "a number above 0, up to 1", self.initial_lr)
        for name in ("weight_decay", "dice_smooth", "foreground_share"):
            _check(name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1", getattr(self, name))
        _check("seed", 0 <= self.seed < 2**31, "a whole number from 0 to 2147483647", self.seed)
        good = self.pretrained is None or (isinstance(self.pretrained, str) and self.pretrained != "")
        _check("pretrained", good, "the path of a checkpoint, or null", self.pretrained)
        steps = self.validation_clicks
        good = _is_sizes(steps, 0) and max(steps) <= MOST_CLICKS and list(steps) == sorted({*steps})
        _check("validation_clicks", good, f"ascending whole numbers from 0 to {MOST_CLICKS}", steps)


def load_settings(path: Path | None = None) -> TrainingSettings:
    """Read settings from `path`, else from the file that `PETCLICK_TRAINING` names, else the starter's.

    Raises:
        InputError: the file cannot be read, or has an unknown key, or a value of a wrong type or range.
    """
    path = path or Path(os.environ.get(VARIABLE, DEFAULT_FILE))
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(path, f"must be a YAML file ({error})") from None
    return from_mapping(TrainingSettings, content or {}, path)


def changes(before: Mapping[str, Any], settings: TrainingSettings) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ from an earlier training's, each with both; None where that had no such key.

    Args:
        before: the earlier settings as a checkpoint's `init_args` have them.
        settings: those that hold now.
    """
    now = to_mapping(settings)
    return {key: (before.get(key), value) for key, value in now.items() if before.get(key) != value}


def save_settings(settings: TrainingSettings, path: Path) -> None:
    """Write `settings` as YAML that `load_settings` reads."""
    path.write_text(yaml.safe_dump(to_mapping(settings), sort_keys=False), "utf-8")
