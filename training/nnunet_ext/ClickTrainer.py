"""The door for `nnUNetv2_train -tr ClickTrainer`: point nnUNet_extTrainer at this folder.

nnU-Net imports every module beside the one it looks for, so this folder holds nothing else.
"""

from training.trainer import ClickTrainer

__all__ = ["ClickTrainer"]
