"""What happens around the program: signals, full disks, limits, folders and files that change under it.

Each run is the whole program in a process of its own (`sandbox`), with a network of a few thousand weights.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from broken_images import valid_image
from fuzz import tiny_model
from sandbox import Answer, Sandbox

MASKS = "images/tumor-lesion-segmentation"
FAST = ("--device", "cpu", "--precision", "fp32", "--mirror-axes", "none", "--step-size", "1", "--quiet")


class Job:
    """A case, a model, an output folder, and the program that is run on them."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.input, self.output, self.model = (folder / name for name in ("input", "output", "model"))
        for role in ("ct", "pet"):
            path = self.input / "images" / role / f"{role}.mha"
            path.parent.mkdir(parents=True)
            valid_image(np.random.default_rng(0), path)
        tiny_model(self.model)
        self.output.mkdir()
        self._sandbox = sandbox

    def run(self, output: Path | None = None, **options: object) -> Answer:
        places = ("--input", self.input, "--output", output or self.output, "--model", self.model)
        return self._sandbox.run(*places, *FAST, **options)

    def files(self) -> list[Path]:
        return [path for path in self.output.rglob("*") if not path.is_dir()]

    def images(self) -> list[Path]:
        """The masks that the platform would find."""
        return [path for path in self.files() if path.suffix == ".mha" and not path.name.startswith(".")]

    def has_one_mask(self) -> bool:
        """Whether there is one whole mask and no other image; False where there is none at all."""
        images = self.images()
        if not images:
            return False
        assert images == [self.output / MASKS / "ct.mha"]
        mask, pet = sitk.ReadImage(str(images[0])), sitk.ReadImage(str(self.input / "images/pet/pet.mha"))
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert mask.IsSameImageGeometryAs(pet)
        assert set(np.unique(sitk.GetArrayViewFromImage(mask))) <= {0, 1}
        return True

    def is_fine(self) -> bool:
        """Whether the next run does what it should."""
        return self.run().code == 0 and self.has_one_mask() and len(self.files()) == 1


@pytest.fixture
def job(tmp_path: Path, sandbox: Sandbox) -> Job:
    return Job(tmp_path, sandbox)


def ended(answer: Answer, code: int, line: str) -> None:
    assert (answer.code, answer.last_line.startswith(line)) == (code, True), answer.stderr


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_at_any_moment(job: Job, number: signal.Signals, count: int) -> None:
    """Nothing, or one whole mask; and the next run works."""
    whole = max(job.run().wall_seconds for _ in range(3))
    rng = np.random.default_rng(int(number))
    codes: Counter[int] = Counter()
    for _ in range(count):
        shutil.rmtree(job.output)
        job.output.mkdir()
        answer = job.run(signal_after=float(rng.uniform(0, 1.1 * whole)), signal_number=int(number))
        codes[answer.code] += 1
        there = job.has_one_mask()
        if answer.code == 0:
            assert there
        elif number == signal.SIGTERM and answer.code == 143:
            assert job.files() == job.images(), "what is half-written is removed"
            assert answer.last_line == "error: terminated by SIGTERM"
        else:
            assert answer.code == -number, answer.stderr  # SIGTERM before or after the program kills as well
        assert job.is_fine()
    print(f"{number.name}: {dict(codes)}")
    assert len(codes) > 1 or count < 50


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB that is almost full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
    with (folder / "filling").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def test_a_full_disk_at_the_output(job: Job, small_disk: Path) -> None:
    fill(small_disk)
    ended(job.run(output=small_disk), 2, f"error: {small_disk / MASKS / 'ct.mha'}: cannot be written (")
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["filling"]
    (small_disk / "filling").unlink()
    assert job.run(output=small_disk).code == 0


def test_a_full_disk_at_tmp(job: Job, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a run needs goes there."""
    fill(small_disk)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setenv("HOME", str(small_disk))
    monkeypatch.setenv("MPLCONFIGDIR", str(small_disk / "matplotlib"))
    fresh = Sandbox()
    job._sandbox = fresh
    try:
        assert job.is_fine()
    finally:
        fresh.close()


def test_an_output_folder_that_vanishes(job: Job) -> None:
    """It is made anew where it can be, and else named."""
    shutil.rmtree(job.output)
    assert job.is_fine()
    shutil.rmtree(job.output)
    job.output.write_text("in the way")
    ended(job.run(), 2, f"error: {job.output / MASKS}: must be a folder that can be written to")


def test_an_output_folder_that_vanishes_meanwhile(job: Job) -> None:
    whole = job.run().wall_seconds
    for number in range(8):
        shutil.rmtree(job.output, ignore_errors=True)
        job.output.mkdir()
        remover = threading.Timer(whole * number / 8, shutil.rmtree, (job.output, True))
        remover.start()
        answer = job.run()
        remover.join()
        refused = answer.code == 2 and "cannot be written" in answer.last_line
        assert answer.code == 0 or refused, answer.stderr


def test_a_leftover_never_makes_two_images(job: Job) -> None:
    folder = job.output / MASKS
    folder.mkdir(parents=True)
    shutil.copy(job.input / "images/pet/pet.mha", folder / "another-case.mha")
    (folder / ".partial-1.mha").write_bytes(b"half")
    assert job.run().code == 0
    assert job.has_one_mask()
    assert sorted(path.name for path in job.files()) == ["another-case.mha.old", "ct.mha"]


@pytest.mark.parametrize("gigabytes", [0.0, 0.02, 0.1])
def test_a_limit_on_memory(job: Job, gigabytes: float) -> None:
    """On what a run takes beside what has been loaded before: too little for the case, or for the network."""
    voxels = np.random.default_rng(0).uniform(0, 9, (160, 160, 160)).astype(np.float32)
    for role in ("ct", "pet"):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(job.input / "images" / role / f"{role}.mha"))
    answer = job.run(more_memory=int(gigabytes * 1e9))
    ended(answer, 1, "error: out of memory")
    assert job.files() == []


def test_a_truncated_fold(job: Job) -> None:
    fold = job.model / "fold_0" / "checkpoint_final.pth"
    whole = fold.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        fold.write_bytes(whole[:length])
        ended(job.run(), 2, f"error: {fold}: must be a readable PyTorch checkpoint")
        assert job.files() == []
    fold.write_bytes(whole)
    assert job.is_fine()


def test_a_fold_that_changes_after_it_was_loaded(job: Job) -> None:
    """Weights are copied out of the mapped file: no later change of it reaches, or kills, the program."""
    import torch

    from petclick.model import load_model, load_network

    model = load_model(job.model)
    (fold,) = model.checkpoints
    network = load_network(model, fold)
    before = [value.clone() for value in network.state_dict().values()]
    with fold.open("rb+") as file:
        file.write(os.urandom(fold.stat().st_size))
        file.truncate(0)
    for value, kept in zip(network.state_dict().values(), before, strict=True):
        assert torch.equal(value, kept)


def test_a_clock_that_jumps_backwards(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from petclick import cli

    times = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    places = ("--input", job.input, "--output", job.output, "--model", job.model)
    cli.main([*map(str, places), *FAST])
    assert job.has_one_mask()
