"""nnU-Net's trainer with two more input channels, filled with simulated clicks, and organ heads.

`nnUNetv2_train DATASET 3d_fullres FOLD -tr ClickTrainer` finds it when `nnUNet_extTrainer` names the folder
`training/nnunet_ext`; `python -m training.train` builds it directly. Settings come from `training.settings`.
"""

import os
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from petclick.clicks import KINDS
from petclick.device import has_fast_bf16
from petclick.guidance import FILE_NAME, save_spec
from petclick.records import to_mapping
from training.error_clicks import add_error_clicks
from training.export import whole
from training.organ_task import LESION_CHANNEL, LesionAndOrganLoss, add_organ_heads, organ_loss
from training.planned import check_planned
from training.pretrained import load_pretrained
from training.settings import changes, load_settings, save_settings
from training.transforms import SimulateClicks, misalign, with_clicks
from training.validate import VALIDATION, validate_fold

PLOT_SECONDS = 60
"""Least time between two drawings of nnU-Net's progress.png, each of which takes seconds."""
PARTIAL = ".partial"
"""Ends the name of a checkpoint that is being written."""


def plain_network(network: nn.Module) -> nn.Module:
    """The network itself, out of its distributed and compiled wrappers."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


class ClickTrainer(nnUNetTrainer):  # type: ignore[misc]  # untyped base
    """Trains lesion segmentation on CT, PET, tumour clicks and background clicks, in this order.

    show_bar: a bar of epochs on stderr stands in for nnU-Net's lines on stdout.
    """

    show_bar = False
    is_ddp: bool
    network: Any
    my_init_kwargs: dict[str, Any]

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's own signature
    ) -> None:
        """As nnU-Net, with the settings.

        Raises:
            InputError: the settings are wrong, or the data were planned with others.
        """
        settings = load_settings()  # before nnU-Net makes folders
        plans_file = Path(str(plans["dataset_name"])) / f"{plans['plans_name']}.json"
        check_planned(plans, configuration, settings.architecture, plans_file)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp and device.type == "cpu":  # nnU-Net knows distributed training on GPUs only
            self.device, self.grad_scaler = device, None
        self.settings = settings
        self.num_epochs = self.settings.epochs
        self.num_iterations_per_epoch = self.settings.steps_per_epoch
        self.num_val_iterations_per_epoch = self.settings.validation_steps_per_epoch
        self.initial_lr = self.settings.initial_lr
        self.weight_decay = self.settings.weight_decay
        self.oversample_foreground_percent = self.settings.foreground_share
        self.save_every = 1  # a killed run loses one epoch at most
        self.seeds = (self.settings.seed, fold if isinstance(fold, int) else 0, self.local_rank)
        self.rng = np.random.default_rng(self.seeds)
        self._bar: tqdm[Any] | None = None
        self._plotted = -float("inf")
        self._plot = self.logger.plot_progress_png
        self.logger.plot_progress_png = self._plot_now_and_then

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

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's SGD, or AdamW; both with its polynomial decay."""
        if self.settings.optimizer == "sgd":
            optimizer, schedule = super().configure_optimizers()
            return optimizer, schedule
        weights = self.network.parameters()
        optimizer = torch.optim.AdamW(weights, self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def initialize(self) -> None:
        """As nnU-Net, from seeded weights; also for ranks on CPUs, where its own wrapping asks for GPUs."""
        torch.manual_seed(self.settings.seed)
        ranks_on_cpu = self.is_ddp and self.device.type == "cpu"
        self.is_ddp = self.is_ddp and not ranks_on_cpu
        super().initialize()
        if ranks_on_cpu:
            self.is_ddp = True
            self._set_batch_size_and_oversample()
            self.network = DistributedDataParallel(self.network)
            self.loss = self._build_loss()

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """nnU-Net's augmentation, which has no elastic deformation; misalignment of CT; then the clicks."""
        pipeline = super().get_training_transforms(*args, **kwargs)
        return self._with_clicks(misalign(pipeline, self.settings.misalignment))

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """The clicks only; the epoch's Dice is over a mixture of click numbers."""
        return self._with_clicks(super().get_validation_transforms(*args, **kwargs))

    def _with_clicks(self, pipeline: ComposeTransforms) -> ComposeTransforms:
        return with_clicks(
            pipeline, SimulateClicks(self.settings.guidance, self.settings.simulation, self.seeds)
        )

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        lesion = loss.loss if self.enable_deep_supervision else loss
        lesion.dc.smooth = self.settings.dice_smooth
        lesion.dc.batch_dice |= self.settings.batch_dice
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
        """One step, of some samples with clicks on the network's errors; returns the loss."""
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
        """As nnU-Net; loads pretrained weights; the model folder also gets guidance.json and settings."""
        # A loader in this process draws from here; a resumed run does not repeat the first epochs' draws.
        seeds = [*self.seeds, self.current_epoch]
        np.random.seed(seeds)  # noqa: NPY002
        if self.current_epoch > 0:
            torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
            self.rng = np.random.default_rng(seeds)
        super().on_train_start()
        if self.settings.pretrained is not None and self.current_epoch == 0:
            for line in load_pretrained(plain_network(self.network), Path(self.settings.pretrained)):
                self.print_to_log_file(line)
        if self.local_rank == 0:
            for left in Path(self.output_folder).glob(f"*{PARTIAL}"):  # of a run that was killed
                left.unlink()
            base, writer = Path(self.output_folder_base), f".fold_{self.fold}"
            # Other folds write and read these files too, perhaps now.
            with whole(base / FILE_NAME, writer) as partial:
                save_spec(self.settings.guidance, partial)
            with whole(base / "settings.yaml", writer) as partial:
                save_settings(self.settings, partial)
            if self.show_bar:
                name, done = f"fold {self.fold}", self.current_epoch
                self._bar = tqdm(total=self.num_epochs, initial=done, desc=name, unit="epoch")

    def on_epoch_end(self) -> None:
        """As nnU-Net, and moves the bar."""
        super().on_epoch_end()
        if self._bar is not None:
            loss, dice = (self.logger.get_value(key, step=-1) for key in ("train_losses", "mean_fg_dice"))
            self._bar.set_postfix(loss=f"{loss:.3f}", dice=f"{dice:.3f}", refresh=False)
            self._bar.update()

    def on_train_end(self) -> None:
        """As nnU-Net; results of an earlier training's validation do not outlive it."""
        super().on_train_end()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self.local_rank == 0:
            shutil.rmtree(Path(self.output_folder) / VALIDATION, ignore_errors=True)

    def print_to_log_file(
        self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True
    ) -> None:
        """As nnU-Net, but not on the console while the bar is there."""
        also_print_to_console = also_print_to_console and self.__dict__.get("_bar") is None
        super().print_to_log_file(
            *args, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp
        )

    def _plot_now_and_then(self, folder: str) -> None:
        now = time.monotonic()
        if now - self._plotted >= PLOT_SECONDS or self.current_epoch == self.num_epochs - 1:
            self._plot(folder)
            self._plotted = now

    def plot_network_architecture(self) -> None:
        """Left out: nnU-Net's plot needs a package that is not kept any more."""

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net, with the settings in `init_args`, and whole or not at all."""
        partial = filename + PARTIAL
        self.my_init_kwargs = self.my_init_kwargs | {"settings": to_mapping(self.settings)}
        super().save_checkpoint(partial)
        if self.local_rank == 0 and not self.disable_checkpointing:
            os.replace(partial, filename)  # noqa: PTH105  # paths are strings here

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """As nnU-Net; settings that have changed since are told in the log, and hold from now on."""
        super().load_checkpoint(filename_or_checkpoint)
        before = self.my_init_kwargs.get("settings", to_mapping(self.settings))
        for key, (old, new) in changes(before, self.settings).items():
            self.print_to_log_file(f"since the checkpoint, {key} went from {old} to {new}")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predicts the held-out cases at several numbers of clicks, as the container does, on one rank."""
        if self.local_rank == 0:
            _, cases = self.do_split()
            dataset = self.plans_manager.dataset_name
            base = Path(self.output_folder_base)
            clicks = self.settings.validation_clicks
            table = validate_fold(base, dataset, str(self.fold), cases, clicks, self.device.type)
            self.print_to_log_file(table)
