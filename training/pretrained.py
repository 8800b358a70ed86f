"""Weights of another training as a start, also where it had other input channels or outputs."""

from pathlib import Path

import torch
from torch import nn

from petclick.errors import InputError
from petclick.model import read_checkpoint, unwrap


@torch.no_grad()
def load_pretrained(network: nn.Module, path: Path) -> list[str]:
    """Copy what fits into a network, by name.

    Tensors of equal shape are copied. Where the file's first convolution has fewer input channels, the
    weights of the further ones start at zero: whatever is in them, the network computes what the file's did.
    All else, such as heads with another number of outputs, keeps its random start.

    Args:
        network: nnU-Net's, not wrapped; changed in place.
        path: a checkpoint with `network_weights`; nothing in it is run.

    Returns:
        Lines for the log: how many tensors were copied, then each that was adapted or left out, and why.

    Raises:
        InputError: not such a checkpoint, or nothing in it fits.
    """
    given = {unwrap(name): value for name, value in read_checkpoint(path)["network_weights"].items()}
    inputs = tuple(f"{name}.weight" for name in network.keys_to_in_proj)  # type: ignore[union-attr]
    own = network.state_dict()
    n_copied, lines = 0, []
    for name, value in own.items():
        source = given.pop(name, None)
        if source is None:
            lines.append(f"{name} {_shape(value)}: not in the file, starts anew")
        elif source.shape == value.shape:
            value.copy_(source)
            n_copied += 1
        elif name.endswith(inputs) and _has_fewer_inputs(source, value):
            value.zero_()
            value[:, : source.shape[1]] = source
            lines.append(f"{name} {_shape(value)}: input channels from {source.shape[1]} on start at zero")
        else:
            lines.append(f"{name} {_shape(value)}: {_shape(source)} in the file, starts anew")
    lines += [f"{name} {_shape(value)}: in the file only, left out" for name, value in given.items()]
    if not n_copied:
        raise InputError(path, "must hold weights that fit the network", lines[0])
    return [f"pretrained weights of {path}: {n_copied} of {len(own)} tensors as they are", *lines]


def _has_fewer_inputs(source: torch.Tensor, value: torch.Tensor) -> bool:
    one, other = list(source.shape), list(value.shape)
    return len(one) == len(other) > 1 and one[1] < other[1] and one[:1] + one[2:] == other[:1] + other[2:]


def _shape(value: torch.Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "scalar"
