"""Results of tiles that outlive the process: one file each, in a folder that others may write to as well.

    cache = TileCache(Path("/cache"), limit_gib=8)
    cache.keep(key, margin)
    margin = cache.find(key, shape)

A key (`make_key`) is a digest of all that decides a result's bits: the tile's input, the weights, the
settings, the program, its libraries and the processor. A file holds

    magic (16 bytes) | float32 values, little-endian | 32 bytes of BLAKE2b

and the BLAKE2b is keyed by the key, which no file or name gives away. So a file that is torn, foreign, moved
to another name or changed is known as such and counts as missing. Whoever can write to the folder can forge a
result only if they have the very images, clicks and weights from which the key is made; there is no place for
a secret of our own, which a container would have to keep from one call to the next.

Nothing in the folder is trusted or executed: there is no pickle, links, pipes and devices are not opened, a
file of another length than expected is not read, and what is read is checked in memory of our own (a memory
map could change, or end, after the check). Files are written under another name and renamed. No locks: of two
processes that write one entry the last one wins, and either is right. A folder that cannot be written to, or
a full disk, costs one warning and the entries.
"""

import contextlib
import hashlib
import logging
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from petclick.errors import InputError

logger = logging.getLogger(__name__)

MAGIC = b"petclick tile 1\n"
MAC_BYTES = 32
FRAME_BYTES = len(MAGIC) + MAC_BYTES
NAMES = re.compile(r"[0-9a-f]{64}\.tile(\..+\.partial)?")
"""Our files, and those half-written; others are never read, counted or removed."""
STALE_S = 3600.0
"""A half-written file that is older was left by a process that is gone."""
SHARE = 1 / 16
"""Of the limit: what is freed at once, and what each process may write before it counts the folder anew."""


Array = npt.NDArray[np.float32]


def make_key(parts: Iterable[bytes | memoryview | str | int | float | None]) -> bytes:
    """A digest, 32 bytes, of a sequence of parts; no two different sequences share one."""
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        content = part if isinstance(part, bytes | memoryview) else repr(part).encode()
        digest.update(f"{type(part).__name__} {memoryview(content).nbytes}:".encode())
        digest.update(content)
    return digest.digest()


def digest_file(path: Path) -> bytes:
    """BLAKE2b of a file's content, 32 bytes.

    Raises:
        InputError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=32)
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})") from error
    return digest.digest()


class TileCache:
    """A folder of results, up to `limit_gib`; those longest unused go first.

    What this process has used or written since `begin` stays, so that a case larger than the limit keeps its
    first tiles instead of none. Two processes may exceed the limit by a sixteenth each.
    """

    def __init__(self, folder: Path, limit_gib: float) -> None:
        """Take the folder, made if it is missing; an unusable one is a warning."""
        self._folder, self._limit_bytes = folder, int(limit_gib * 2**30)
        self._used: set[str] = set()
        self._free_bytes = 0  # that may be written before the folder is counted again
        self._full = self._broken = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)

    def begin(self) -> None:
        """Start another prediction: what the last ones used may go."""
        self._used.clear()
        self._full = False

    def has(self, key: bytes) -> bool:
        """Whether there is a file for this key; `find` tells whether it is sound."""
        return os.path.lexists(self._path(key))

    def find(self, key: bytes, shape: Sequence[int]) -> Array | None:
        """The values of this key and shape, an array of the caller's own, if they are there and sound."""
        path = self._path(key)
        content = _read_regular(path, FRAME_BYTES + math.prod(shape) * 4)
        if content is None:
            return None
        body, mac = memoryview(content)[:-MAC_BYTES], content[-MAC_BYTES:]
        if body[: len(MAGIC)] != MAGIC or mac != _mac(key, body):
            return None
        values = np.frombuffer(body[len(MAGIC) :], "<f4").reshape(shape).astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            return None
        self._used.add(path.name)
        with contextlib.suppress(OSError):  # a folder that can only be read
            _touch(path)
        return values

    def keep(self, key: bytes, values: Array) -> None:
        """Write a key's values, where there is room; never fails."""
        path = self._path(key)
        n_bytes = FRAME_BYTES + values.nbytes
        if self._full or self._broken:
            return
        try:
            if n_bytes > self._free_bytes:
                self._free_bytes = self._make_room(n_bytes)
                self._full = n_bytes > self._free_bytes
            if not self._full:
                self._write(path, key, values)
                self._free_bytes -= n_bytes
                self._used.add(path.name)
        except OSError as error:
            self._give_up(error)

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{hashlib.blake2b(key, person=b'name', digest_size=32).hexdigest()}.tile"

    def _write(self, path: Path, key: bytes, values: Array) -> None:
        body = MAGIC + np.ascontiguousarray(values, "<f4").tobytes()
        # Exclusive, and readable by nobody else: a result shows where a patient's lesions are.
        number, partial = tempfile.mkstemp(".partial", f"{path.name}.", self._folder)
        try:
            with open(number, "wb") as file:  # noqa: PTH123  # an open file's number
                file.write(body)
                file.write(_mac(key, body))
            _touch(Path(partial))
            Path(partial).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(partial).unlink()
            raise

    def _make_room(self, n_bytes: int) -> int:
        """Remove what is longest unused until a share of the limit is free; returns the bytes that are."""
        share = max(n_bytes, int(self._limit_bytes * SHARE))
        files = sorted(_our_files(self._folder))
        total = sum(size for _, _, size, _ in files)
        for _, stale, size, path in files:
            if stale or (total + share > self._limit_bytes and path.name not in self._used):
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    path.unlink()
                total -= size
        return min(share, self._limit_bytes - total)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        logger.warning("%s: results are not kept for the next call (%s)", self._folder, error.strerror)


def _our_files(folder: Path) -> Iterator[tuple[int, bool, int, Path]]:
    """Last use (ns), whether it was left half-written, bytes and path of each of our files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if NAMES.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    age_s = time.time() - status.st_mtime
                    stale = entry.name.endswith(".partial") and age_s > STALE_S
                    yield status.st_mtime_ns, stale, status.st_size, Path(entry.path)


def _read_regular(path: Path, n_bytes: int) -> bytearray | None:
    """The content of a regular file of exactly this length; None for anything else."""
    try:
        # Looked at first: opening a device can already do something. Not blocking: a pipe put in since then.
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, "rb", buffering=0) as file:  # noqa: PTH123  # an open file's number
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode) or status.st_size != n_bytes:
                return None
            content = bytearray(n_bytes)
            return content if file.readinto(content) == n_bytes else None
    except OSError:
        return None


def _touch(path: Path) -> None:
    """Set the time of last use: file systems keep their own time of reading too coarsely, or not at all."""
    os.utime(path, ns=(time.time_ns(),) * 2, follow_symlinks=False)


def _mac(key: bytes, body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, key=key, person=b"content", digest_size=MAC_BYTES).digest()
