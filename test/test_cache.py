"""Results on disk: what is found is what was kept, and nothing else in the folder is believed."""

import errno
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petclick import cache
from petclick.cache import FRAME_BYTES, MAGIC, TileCache, digest_file, make_key
from petclick.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (3, 5, 4)
N_BYTES = FRAME_BYTES + 3 * 5 * 4 * 4
KEY, OTHER = make_key(["a"]), make_key(["b"])


def sums(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The file of `KEY`'s entry, in a folder `c`."""
    TileCache(tmp_path / "c", 1).keep(KEY, sums())
    return only_file(tmp_path / "c")


def found(file: Path, key: bytes = KEY) -> npt.NDArray[np.float32] | None:
    return TileCache(file.parent, 1).find(key, SHAPE)


def test_another_process_finds_the_bits_that_were_kept(kept: Path) -> None:
    code = f"""
from pathlib import Path
from petclick.cache import TileCache, make_key
print(TileCache(Path({str(kept.parent)!r}), 1).find(make_key(["a"]), {SHAPE}).tobytes().hex())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert result.stdout.decode().split() == [sums().tobytes().hex()]


def test_only_the_key_and_shape_that_were_kept(kept: Path) -> None:
    store = TileCache(kept.parent, 1)
    assert store.find(OTHER, SHAPE) is None
    assert store.find(KEY, (3, 5, 5)) is None
    store.keep(KEY, sums(1))
    values = store.find(KEY, SHAPE)
    assert values is not None
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, sums(1))
    values += 1
    np.testing.assert_array_equal(store.find(KEY, SHAPE), sums(1), "what is found is the caller's own")


def test_a_file_is_private_and_gives_its_key_away_nowhere(kept: Path) -> None:
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert KEY.hex() not in kept.name
    assert KEY not in kept.read_bytes()


@given(place=st.integers(0, N_BYTES - 1), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("c")
    TileCache(folder, 1).keep(KEY, sums())
    file = only_file(folder)
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
    assert found(file) is None


@pytest.mark.parametrize("length", [0, 1, FRAME_BYTES, N_BYTES - 1, N_BYTES + 1])
def test_a_torn_or_longer_file_is_ignored(kept: Path, length: int) -> None:
    kept.write_bytes(kept.read_bytes().ljust(length, b"\0")[:length])
    assert found(kept) is None


def test_another_entrys_file_is_ignored(kept: Path) -> None:
    TileCache(kept.parent, 1).keep(OTHER, sums(1))
    (other,) = set(kept.parent.iterdir()) - {kept}
    kept.write_bytes(other.read_bytes())
    assert found(kept) is None
    assert found(other, OTHER) is not None


def test_a_checksum_made_without_the_key_is_no_use(kept: Path) -> None:
    body = MAGIC + sums(3).tobytes()
    for key in (b"", OTHER, kept.name.encode()[:64]):
        kept.write_bytes(body + cache._mac(key, body))
        assert found(kept) is None
    kept.write_bytes(body + cache._mac(KEY, body))
    assert found(kept) is not None, "the file would have been believed with the right one"


def test_values_that_are_not_finite_are_ignored(tmp_path: Path) -> None:
    store = TileCache(tmp_path, 1)
    for value in (np.nan, np.inf):
        store.keep(KEY, np.full(SHAPE, value, np.float32))
        assert store.find(KEY, SHAPE) is None


class TestWhatIsNoRegularFile:
    """Each takes the place of an entry; an entry that is kept afterwards replaces it."""

    def test_a_link(self, kept: Path, tmp_path: Path) -> None:
        target = kept.rename(tmp_path / "elsewhere")
        before = target.read_bytes(), target.stat().st_mtime_ns
        kept.symlink_to(target)
        self.check(kept)
        assert (target.read_bytes(), target.stat().st_mtime_ns) == before

    def test_a_pipe(self, kept: Path) -> None:
        kept.unlink()
        os.mkfifo(kept)
        self.check(kept)

    def test_a_socket(self, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kept.unlink()
        monkeypatch.chdir(kept.parent)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(kept.name)
            self.check(kept)

    def check(self, file: Path) -> None:
        assert found(file) is None
        TileCache(file.parent, 1).keep(KEY, sums())
        assert file.is_file()
        assert not file.is_symlink()
        assert found(file) is not None


def test_a_folder_in_an_entrys_place_is_a_warning(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept.unlink()
    kept.mkdir()
    store = TileCache(kept.parent, 1)
    store.keep(KEY, sums())
    assert store.find(KEY, SHAPE) is None
    assert "results are not kept for the next call (Is a directory)" in caplog.text
    assert only_file(kept.parent) == kept, "nothing half-written is left"


def test_a_huge_file_is_not_read(kept: Path) -> None:
    os.truncate(kept, 2**40)  # would not fit any memory
    assert found(kept) is None


def age(file: Path, seconds: float) -> None:
    past = file.stat().st_mtime - seconds
    os.utime(file, (past, past))


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    keys = [make_key([i]) for i in range(8)]
    for i, key in enumerate(keys[:4]):
        known = set(tmp_path.iterdir())
        TileCache(tmp_path, 1).keep(key, sums(i))
        (new,) = set(tmp_path.iterdir()) - known
        age(new, 100 - i)
    used = TileCache(tmp_path, 4.5 * N_BYTES / 2**30)
    assert used.find(keys[0], SHAPE) is not None, "which makes it the newest"
    used.keep(keys[4], sums(4))
    assert [used.find(key, SHAPE) is not None for key in keys[:5]] == [True, False, True, True, True]


def test_a_case_larger_than_the_limit_keeps_its_first_tiles(tmp_path: Path) -> None:
    keys = [make_key([i]) for i in range(6)]
    limit_gib = 3.5 * N_BYTES / 2**30
    for repeat in range(2):
        store = TileCache(tmp_path, limit_gib)
        there = [store.find(key, SHAPE) is not None for key in keys]
        assert there == [repeat == 1 and i < 3 for i in range(6)]
        for key in keys:
            store.keep(key, sums())
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 3 * N_BYTES
    store.begin()
    store.keep(OTHER, sums())
    assert store.find(OTHER, SHAPE) is not None, "another case takes their place"


def test_nothing_foreign_is_removed(tmp_path: Path) -> None:
    names = ["notes.txt", "0" * 64, f"{'g' * 64}.tile", f"{'0' * 63}.tile", f"{'0' * 64}.tile.d"]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 10_000)
    (tmp_path / f"{'1' * 64}.tile").symlink_to(tmp_path / "notes.txt")
    store = TileCache(tmp_path, 2.5 * N_BYTES / 2**30)
    for i in range(6):
        store.begin()
        store.keep(make_key([i]), sums(i))
    assert all((tmp_path / name).stat().st_size == 10_000 for name in names)
    assert sum(file.stat().st_size == N_BYTES for file in tmp_path.iterdir()) == 2


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    old, new = (tmp_path / f"{'0' * 64}.tile.{part}.partial" for part in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    age(old, 2 * cache.STALE_S)
    TileCache(tmp_path, 1).keep(KEY, sums())
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("limit_gib", [0.0, 0.5 * N_BYTES / 2**30])
def test_a_limit_below_one_entry_keeps_none(tmp_path: Path, limit_gib: float) -> None:
    TileCache(tmp_path, limit_gib).keep(KEY, sums())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "_touch", full)
    store = TileCache(tmp_path, 1)
    for _ in range(3):
        store.keep(KEY, sums())
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert messages == [f"{tmp_path}: results are not kept for the next call (No space left on device)"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["file", "file/below", "/dev/null/x", "/proc/none"])
def test_a_place_for_no_folder_is_a_warning(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = TileCache(tmp_path / where, 1)
    store.keep(KEY, sums())
    assert store.find(KEY, SHAPE) is None
    assert len(caplog.records) == 1
    assert str(tmp_path / where) in caplog.text


def test_a_folder_that_can_only_be_read_is_read(
    kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(cache.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(cache.os, "utime", refuse)
    store = TileCache(kept.parent, 1)
    assert store.find(KEY, SHAPE) is not None
    store.keep(OTHER, sums())
    assert "(Read-only file system)" in caplog.text


def test_many_at_once_find_whole_entries_or_none(tmp_path: Path) -> None:
    """Writers and readers of the same few keys, with a limit that keeps removing them."""
    keys = [make_key([i]) for i in range(4)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        store = TileCache(tmp_path, 2.5 * N_BYTES / 2**30)
        for i in np.random.default_rng(seed).integers(0, 4, 150).tolist():
            store.begin()
            store.keep(keys[i], sums(i))
            values = store.find(keys[i], SHAPE)
            if values is not None and not np.array_equal(values, sums(i)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not [file for file in tmp_path.iterdir() if file.suffix == ".partial"]


PARTS = st.lists(st.one_of(st.binary(max_size=4), st.text(max_size=4), st.integers(), st.none()), max_size=4)


@given(PARTS, PARTS)
def test_different_parts_have_different_keys(a: list[bytes | str | int], b: list[bytes | str | int]) -> None:
    assert (make_key(a) == make_key(b)) == (a == b)


def test_a_files_digest_is_its_contents(tmp_path: Path) -> None:
    for name, content in (("a", b"x" * 5_000_000), ("b", b"x" * 5_000_000), ("c", b"x" * 4_999_999 + b"y")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (digest_file(tmp_path / name) for name in "abc")
    assert a == b != c
    with pytest.raises(InputError, match=r"none: cannot be read \(No such file or directory\)"):
        digest_file(tmp_path / "none")
