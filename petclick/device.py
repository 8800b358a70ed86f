"""Which device and number format to compute in, and how a CPU's cores share the work."""

import contextlib
import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from petclick.errors import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container may use: microseconds of CPU time in a period of so many, or 'max'."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def has_fast_bf16() -> bool:
    """Whether this CPU has bf16 instructions (AMX or AVX-512); without them bf16 is far slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def memory_layout(device: torch.device) -> torch.memory_format:
    """Channels-last where AMX multiplies; elsewhere it was measured to be slower (docs/performance.md)."""
    if device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16"):
        return torch.channels_last_3d
    return torch.contiguous_format


def choose_device(name: str) -> torch.device:
    """'auto' (CUDA where there is one), 'cpu' or 'cuda'.

    Raises:
        InputError: CUDA is asked for and not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "cuda needs an NVIDIA device that PyTorch can use", "none")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The format of convolutions: 'auto' is fp16 on CUDA, bf16 on CPUs with the instructions, else fp32.

    Raises:
        InputError: fp16 on a CPU, where PyTorch computes it slowly and overflows early.
    """
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise InputError("--precision", "fp16 is for CUDA; a CPU computes in fp32 or bf16", name)
    return PRECISIONS[name]


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[None]:
    """Mixed precision for forward passes; nothing for float32."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)


def usable_cores() -> int:
    """CPU cores that this process may use: by its affinity, and by its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or 'max'
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, max(quota // period, 1))
    return cores


def free_bytes(device: torch.device) -> int:
    """A GPU's free memory."""
    return torch.cuda.mem_get_info(device)[0]


@functools.cache
def set_up_cpu() -> None:
    """Set PyTorch's threads, once, and have memory of activations kept for the next ones.

    PyTorch would take all cores of the machine, however few a container may use. glibc would give large
    blocks back to the system each time, and each new one would cost page faults.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(usable_cores(), torch.get_num_threads()))
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 512 * 2**20)
        mallopt(_M_TOP_PAD, 64 * 2**20)


@functools.cache
def workers(n_workers: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads that run forward passes beside each other, each with so many threads of PyTorch's."""
    return ThreadPoolExecutor(n_workers, "passes", torch.set_num_threads, (n_threads,))
