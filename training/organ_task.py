"""The auxiliary task: organ heads beside the lesion heads of nnU-Net's decoder, and the loss of both tasks.

As in arXiv 2409.09478 both tasks share encoder and decoder, and each decoder stage has one 1 x 1 x 1
convolution a task. The heads are added to the library's own network; they are idle in evaluation mode.
"""

from functools import partial
from typing import Any, TypeAlias

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

IGNORE = -1
"""Organ label where nothing is known: padding, and every voxel of a case without organ mask."""
LESION_CHANNEL, ORGAN_CHANNEL = 0, 1
"""Of the targets (batch, channel, z, y, x); a data set without organ masks has the first only."""

Output: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""One stage's logits: of the lesions, in training mode also of the organs; each (batch, class, z, y, x)."""


def add_organ_heads(network: nn.Module, count: int) -> None:
    """Give every decoder stage a head for background and `count` organs, `decoder.organ_seg_layers.N`.

    In training mode each stage then returns (lesion logits, organ logits), else the lesion logits alone.
    """
    decoder: Any = network.decoder
    heads = nn.ModuleList(type(layer)(layer.in_channels, count + 1, 1) for layer in decoder.seg_layers)
    heads.apply(network.initialize)  # type: ignore[arg-type]  # a static method of nnU-Net's networks
    decoder.organ_seg_layers = heads
    for layer, head in zip(decoder.seg_layers, heads, strict=True):
        layer.register_forward_hook(partial(_with_organs, head))


def _with_organs(head: nn.Module, layer: nn.Module, inputs: Any, output: torch.Tensor) -> Output:
    return (output, head(*inputs)) if layer.training else output


class LesionAndOrganLoss(nn.Module):
    """Loss of one stage: the lesions', plus the organs' times a weight where there are organ logits."""

    def __init__(self, lesion: nn.Module, organs: nn.Module, weight: float) -> None:
        super().__init__()
        self.lesion = lesion
        self.organs = organs
        self.weight = weight

    def forward(self, output: Output, target: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            output: of the network's stage.
            target: (batch, 1 or 2, z, y, x) lesion labels and, if there are two channels, organ labels.
        """
        logits, organ_logits = output if isinstance(output, tuple) else (output, None)
        lesion = target[:, LESION_CHANNEL, None]
        loss: torch.Tensor = self.lesion(logits, lesion)
        if organ_logits is not None:
            known = target.shape[1] > ORGAN_CHANNEL
            # Also without any label, since distributed training needs a gradient, if zero, of every weight.
            labels = target[:, ORGAN_CHANNEL, None] if known else torch.full_like(lesion, IGNORE)
            loss = loss + self.weight * self.organs(organ_logits, labels)
        return loss


def organ_loss(batch_dice: bool, smooth: float, ddp: bool) -> nn.Module:
    """nnU-Net's Dice and cross-entropy over organs, without the voxels labelled `IGNORE`."""
    dice = {"batch_dice": batch_dice, "smooth": smooth, "do_bg": False, "ddp": ddp}
    loss = DC_and_CE_loss(dice, {}, ignore_label=IGNORE, dice_class=MemoryEfficientSoftDiceLoss)
    assert isinstance(loss, nn.Module)
    return loss
