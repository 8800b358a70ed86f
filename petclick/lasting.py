"""Tiles' results that outlive the process: a store of `petclick.kept` over `petclick.cache`, and its keys."""

import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from petclick.cache import TileCache, digest_file, make_key
from petclick.kept import KeptTiles, TileKey
from petclick.model import Model
from petclick.preprocess import Prepared

SWITCHES = re.compile("(ONEDNN|DNNL|MKL|ATEN|TORCH|CUBLAS|CUDNN|NVIDIA)_")
"""Environment variables by which libraries choose other kernels."""


class LastingTiles:
    """A `Store` in memory, and behind it one on disk that other processes share."""

    def __init__(self, memory: KeptTiles, cache: TileCache, model: Model, device: torch.device) -> None:
        """Digest the model.

        Raises:
            InputError: a file of the model cannot be read.
        """
        self._memory, self._cache, self._patch = memory, cache, model.plan.patch_size
        self._model = make_key([*model_parts(model), *surroundings(device)])
        self._case: bytes | None = None

    def set_case(self, case: Prepared) -> None:
        """Digest the images; before that, only memory is used."""
        image = np.ascontiguousarray(case.image)
        self._case = make_key([self._model, repr(image.shape), image.data.cast("B")])

    def clear(self) -> None:
        """Forget what is in memory."""
        self._memory.clear()

    def start(self) -> None:
        """As in `Store`."""
        self._memory.start()
        self._cache.begin()

    def __contains__(self, key: TileKey) -> bool:
        """As in `Store`."""
        return key in self._memory or (self._case is not None and self._cache.has(self._key(key)))

    def find(self, key: TileKey) -> torch.Tensor | None:
        """As in `Store`."""
        margin = self._memory.find(key)
        if margin is not None or self._case is None:
            return margin
        values = self._cache.find(self._key(key), self._patch)
        if values is None:
            return None
        margin = torch.from_numpy(values)
        self._memory.keep(key, margin)
        return margin

    def keep(self, key: TileKey, margin: torch.Tensor) -> None:
        """As in `Store`."""
        self._memory.keep(key, margin)
        if self._case is not None:
            self._cache.keep(self._key(key), margin.cpu().numpy())

    def _key(self, key: TileKey) -> bytes:
        return make_key([self._case, repr(astuple(key))])


def model_parts(model: Model) -> list[bytes | str]:
    """What of a model decides a tile's margin: the plan, how clicks are drawn, and the weights' content."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        weights = list(pool.map(digest_file, model.checkpoints))
    return [repr(model.plan), repr(model.spec), *weights]


def surroundings(device: torch.device) -> list[str]:
    """What else does: this program, the libraries that compute, the processor and the number of threads."""
    program = [repr(digest_file(path)) for path in sorted(Path(__file__).parent.glob("*.py"))]
    libraries = [torch.__version__, torch.__config__.show(), version("dynamic-network-architectures")]
    processor = [platform.machine(), repr(sorted(torch.cpu.get_capabilities().items()))]
    switches = [f"{name}={value}" for name, value in sorted(os.environ.items()) if SWITCHES.match(name)]
    parallel = [torch.__config__.parallel_info(), *switches]
    if device.type == "cuda":  # pragma: cuda
        processor += [torch.cuda.get_device_name(device), str(torch.backends.cudnn.version())]
    return [*program, *libraries, *processor, *parallel]
