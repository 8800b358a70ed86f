"""nnU-Net's trainer with two more input channels, filled with simulated clicks.

`nnUNetv2_train DATASET 3d_fullres FOLD -tr ClickTrainer` finds it when `nnUNet_extTrainer` names the folder
`training/nnunet_ext`; `python -m training.train` builds it directly. Settings come from `training.settings`.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from petclick.clicks import KINDS
from petclick.device import has_fast_bf16
from petclick.guidance import FILE_NAME, save_spec
from training.error_clicks import add_error_clicks
from training.organ_task import LESION_CHANNEL, LesionAndOrganLoss, add_organ_heads, organ_loss
from training.settings import load_settings, save_settings
from training.transforms import SimulateClicks, misalign, with_clicks


def plain_network(network: nn.Module) -> nn.Module:
    """The network itself, out of its distributed and compiled wrappers."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


class ClickTrainer(nnUNetTrainer):  # type: ignore[misc]  # untyped base
    """Trains lesion segmentation on CT, PET, tumour clicks and background clicks, in this order."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's own signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.settings = load_settings()
        self.num_epochs = self.settings.epochs
        self.num_iterations_per_epoch = self.settings.steps_per_epoch
        self.num_val_iterations_per_epoch = self.settings.validation_steps_per_epoch
        self.initial_lr = self.settings.initial_lr
        self.weight_decay = self.settings.weight_decay
        self.oversample_foreground_percent = self.settings.foreground_share
        self.save_every = 1  # a killed run loses one epoch at most
        self.rng = np.random.default_rng([self.settings.seed, fold, self.local_rank])

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The plans' network, with the click channels behind the images, and the settings' organ heads."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels + len(KINDS),
            num_output_channels,
            enable_deep_supervision,
        )
        assert isinstance(network, nn.Module)
        organs = load_settings().organs  # nnU-Net calls this without a trainer
        if organs.weight > 0:
            add_organ_heads(network, organs.count)
        return network

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """nnU-Net's augmentation, which has no elastic deformation; misalignment of CT; then the clicks."""
        pipeline = super().get_training_transforms(*args, **kwargs)
        return self._with_clicks(misalign(pipeline, self.settings.misalignment))

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """The clicks only; the epoch's Dice is over a mixture of click numbers."""
        return self._with_clicks(super().get_validation_transforms(*args, **kwargs))

    def _with_clicks(self, pipeline: ComposeTransforms) -> ComposeTransforms:
        settings = self.settings
        return with_clicks(
            pipeline, SimulateClicks(settings.guidance, settings.simulation, settings.seed + self.fold)
        )

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        lesion = loss.loss if self.enable_deep_supervision else loss
        lesion.dc.smooth = self.settings.dice_smooth
        organs = organ_loss(self.configuration_manager.batch_dice, self.settings.dice_smooth, self.is_ddp)
        both = LesionAndOrganLoss(lesion, organs, self.settings.organs.weight)
        if not self.enable_deep_supervision:
            return both
        loss.loss = both
        assert isinstance(loss, nn.Module)
        return loss

    def _autocast(self) -> AbstractContextManager[None]:
        """bf16 on CPUs that compute in it; on GPUs nnU-Net itself switches mixed precision on."""
        bf16 = self.device.type == "cpu" and has_fast_bf16()
        return torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of SGD, of some samples with clicks on the network's errors; returns the loss."""
        batch = batch | {"data": self._with_error_clicks(batch["data"], batch["target"])}
        with self._autocast():
            return dict(super().train_step(batch))

    def _with_error_clicks(self, data: torch.Tensor, target: Any) -> torch.Tensor:
        chosen = np.flatnonzero(self.rng.random(len(data)) < self.settings.simulation.error_share)
        if not len(chosen):
            return data
        lesion = (target[0] if self.enable_deep_supervision else target)[:, LESION_CHANNEL] > 0
        self.network.eval()
        self.set_deep_supervision_enabled(False)
        mixed = torch.autocast("cuda") if self.device.type == "cuda" else self._autocast()
        with torch.no_grad(), mixed:
            # Not the distributed or compiled wrapper: the number of samples differs from step to step.
            logits = plain_network(self.network)(data[chosen].to(self.device))
        self.network.train()
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        predicted = logits.argmax(1) > 0
        return add_error_clicks(data, lesion, predicted, chosen, self.settings, self.rng)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Loss, and true and false voxels, of one batch's lesions."""
        target = batch["target"]
        lesion = slice(LESION_CHANNEL, LESION_CHANNEL + 1)
        target = [each[:, lesion] for each in target] if isinstance(target, list) else target[:, lesion]
        with self._autocast():
            return dict(super().validation_step(batch | {"target": target}))

    def on_train_start(self) -> None:
        """As nnU-Net; the model folder also gets its guidance.json and the settings."""
        super().on_train_start()
        if self.local_rank == 0:
            save_spec(self.settings.guidance, Path(self.output_folder_base) / FILE_NAME)
            save_settings(self.settings, Path(self.output_folder_base) / "settings.yaml")

    def plot_network_architecture(self) -> None:
        """Left out: nnU-Net's plot needs a package that is not kept any more."""

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net, but whole or not at all."""
        partial = f"{filename}.partial"
        super().save_checkpoint(partial)
        if self.local_rank == 0 and not self.disable_checkpointing:
            os.replace(partial, filename)  # noqa: PTH105  # paths are strings here

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Left to `python -m training.validate`, which predicts with clicks as the container does."""
        self.print_to_log_file("For cross-validated results with clicks: python -m training.validate")
