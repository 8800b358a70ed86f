"""Training settings: one frozen dataclass, one YAML file."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from petclick.errors import InputError
from petclick.guidance import GuidanceSpec
from petclick.records import from_mapping, to_mapping
from petclick.simulate import SimulationSettings

DEFAULT_FILE = Path(__file__).with_name("starter.yaml")
"""The settings that trained the weights in `resources/`."""
VARIABLE = "PETCLICK_TRAINING"
"""Names another settings file, also for nnU-Net's own `nnUNetv2_train`."""


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


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training, apart from the data.

    guidance: the model's contract, saved beside the weights; simulation: how clicks are drawn;
    initial_lr: SGD's, with polynomial decay; dice_smooth: added to Dice's numerator and denominator;
    foreground_share: share of each batch whose patch is centred on a lesion.
    """

    guidance: GuidanceSpec = field(default_factory=GuidanceSpec)
    simulation: SimulationSettings = field(default_factory=SimulationSettings)
    architecture: Architecture = field(default_factory=Architecture)
    epochs: int = 1000
    steps_per_epoch: int = 250
    validation_steps_per_epoch: int = 50
    initial_lr: float = 1e-3
    weight_decay: float = 3e-5
    dice_smooth: float = 0.0
    foreground_share: float = 0.33
    seed: int = 0


def load_settings(path: Path | None = None) -> TrainingSettings:
    """Read settings from `path`, else from the file that `PETCLICK_TRAINING` names, else the starter's.

    Raises:
        InputError: the file cannot be read, or has an unknown key or a value of a wrong type.
    """
    path = path or Path(os.environ.get(VARIABLE, DEFAULT_FILE))
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(path, f"must be a YAML file ({error})") from None
    return from_mapping(TrainingSettings, content or {}, path)


def save_settings(settings: TrainingSettings, path: Path) -> None:
    """Write `settings` as YAML that `load_settings` reads."""
    path.write_text(yaml.safe_dump(to_mapping(settings), sort_keys=False), "utf-8")
