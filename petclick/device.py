"""Which device and number format to compute in."""

import contextlib
from contextlib import AbstractContextManager

import torch

from petclick.errors import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def has_fast_bf16() -> bool:
    """Whether this CPU has bf16 instructions (AMX or AVX-512); without them bf16 is far slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


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
