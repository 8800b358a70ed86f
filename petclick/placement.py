"""Where forward passes run: which device, how many in a batch, how many batches beside each other."""

from dataclasses import replace

import torch

from petclick.device import choose_precision, free_bytes, memory_layout
from petclick.fuse import fuse_pools
from petclick.model import Plan
from petclick.tiles import Passes

CPU_BATCH = 2
"""Mirrored passes that a CPU runs together; one leaves half of oneDNN's speed, more only cost memory."""
MOST_WORKERS = 4
"""Batches beside each other on a CPU; a tile has too few for more to be busy to its end."""
CPU_BYTES = 2 * 2**30
"""Memory for activations of all passes that a CPU runs at a time."""
CUDA_SHARE = 0.5
"""Of a GPU's free memory, for activations; the images and what the libraries need come on top."""
ACTIVATIONS = 8
"""Tensors of the first stage's size that a forward pass has in memory at its peak.

Measured for residual-encoder U-Nets on CPUs: 3.6 GB in bf16 at 192 x 192 x 192 voxels with 32 features.
"""


def place(passes: Passes, plan: Plan, device: torch.device) -> Passes:
    """The same passes on another device, in the memory layout that is fast there.

    A CPU's cores run batches of their own, as far as memory allows: that is faster than sharing each, and
    none waits for a core that another process is using.

    Raises:
        torch.OutOfMemoryError: the weights do not fit.
    """
    # memory_format is missing from PyTorch's own stubs
    networks = [
        network.to(device, memory_format=memory_layout(device))  # type: ignore[call-overload]
        for network in passes.networks
    ]
    for network in networks:
        fuse_pools(network)
    n_workers, n_threads = 1, 1
    if device.type == "cuda":
        batch = int(CUDA_SHARE * free_bytes(device)) // pass_bytes(plan, passes.precision)
    else:
        room, n_threads = CPU_BYTES // pass_bytes(plan, passes.precision), torch.get_num_threads()
        batch = min(CPU_BATCH, room)
        n_workers = max(min(n_threads, MOST_WORKERS, room // CPU_BATCH), 1)
    return replace(
        passes,
        networks=networks,
        device=device,
        batch=min(max(batch, 1), len(passes.mirrors)),
        workers=n_workers,
        threads=n_threads // n_workers,
    )


def place_on_cpu(passes: Passes, plan: Plan) -> Passes:
    """The same passes on the CPU: float32 stays, which was asked for or needed; else in its own precision."""
    cpu = torch.device("cpu")
    if passes.precision != torch.float32:
        passes = replace(passes, precision=choose_precision("auto", cpu))
    return place(passes, plan, cpu)


def pass_bytes(plan: Plan, precision: torch.dtype) -> int:
    """Estimate of the memory for one forward pass over one tile."""
    features = plan.network_kwargs.get("features_per_stage")
    first = features[0] if isinstance(features, list) else 32
    voxels = plan.patch_size[0] * plan.patch_size[1] * plan.patch_size[2]
    return int(ACTIVATIONS * first * precision.itemsize * voxels)
