"""Broken bytes and text, of any kind: what `broken_images` and `broken_json` are made of.

Everything is drawn from the generator that is handed in, so that an input can be made again from its number.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

NUMBERS = (
    *("0", "-0", "1", "-1", "2", "3", "4", "7", "1.5", "1e-30", "1e30", "1e999", "-1e999", "nan", "inf"),
    *("127", "255", "256", "32768", "65535", "65536", "2147483647", "2147483648", "4294967295", "4294967296"),
    *("1000000000", "1000000000000000", "9223372036854775807", "18446744073709551616", "9" * 400, "1 2"),
)  # fmt: skip
STRANGE = ("", " ", "\0", "\n", "%s%n%n", "\u00e9\u4e2d", "A" * 300, "B" * 70_000, "1 " * 5000, "/dev/zero")
EDGES = (0, 1, 2, 3, 7, 8, 16, 32, 64, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1)


def any_of(rng: np.random.Generator, items: Any) -> Any:
    """One of the items, as it is."""
    return items[int(rng.integers(len(items)))]


def chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def damage(rng: np.random.Generator, data: bytes) -> bytes:
    """A few changes such as disks, networks and editors make, and such as nobody makes by chance."""
    for _ in range(any_of(rng, (1, 1, 1, 2, 3))):
        data = any_of(rng, BYTE_CHANGES)(rng, data)
    return data


def _flip(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(max(1, len(data)), size=any_of(rng, (1, 1, 2, 4))):
        changed[place : place + 1] = bytes([int(rng.integers(256))])
    return bytes(changed)


def _cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def _remove(rng: np.random.Generator, data: bytes) -> bytes:
    start, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 65))
    return data[:start] + data[start + length :]


def _repeat(rng: np.random.Generator, data: bytes) -> bytes:
    start, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 65))
    return data[: start + length] + data[start:]


def _insert(rng: np.random.Generator, data: bytes) -> bytes:
    start = int(rng.integers(len(data) + 1))
    return data[:start] + any_of(rng, STRANGE).encode() + data[start:]


def _edge(rng: np.random.Generator, data: bytes) -> bytes:
    """A number of 1, 2, 4 or 8 bytes in the front becomes one at the edge of its type."""
    width, place = any_of(rng, (1, 2, 4, 8)), int(rng.integers(min(400, len(data)) + 1))
    value = (any_of(rng, EDGES) * any_of(rng, (1, -1))) % 256**width
    return data[:place] + value.to_bytes(width, any_of(rng, ("little", "big"))) + data[place + width :]


BYTE_CHANGES: tuple[Callable[[np.random.Generator, bytes], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _remove,
    _repeat,
    _insert,
    _edge,
    _edge,
)


def strange_text(rng: np.random.Generator, valid: str) -> str:
    """A value, or one of its numbers, replaced."""
    if chance(rng, 0.3):
        return str(any_of(rng, STRANGE))
    words = valid.split(" ")
    words[int(rng.integers(len(words)))] = any_of(rng, NUMBERS)
    return " ".join(words)
