"""The program as it is started: exit codes, the last line on stderr, and nothing left behind."""

import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from petclick.clicks import click_set
from petclick.errors import InputError, PetclickError
from petclick.images import Case
from petclick.program import OURS, run

MakeModel = Callable[..., Path]
MakeCase = Callable[..., Case]
WriteCase = Callable[..., Path]

INFERENCE = Path(__file__).resolve().parents[1] / "inference.py"


@pytest.fixture
def loggers() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in OURS}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize(
    ("error", "code", "last_line"),
    [
        (None, 0, None),
        (InputError("a.json", "must be\ntidy", 3), 2, "error: a.json: must be tidy, got 3"),
        (PetclickError("no luck"), 1, "error: no luck"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (RuntimeError("two\nlines"), 1, "internal error: RuntimeError: two lines"),
        (SystemExit(7), 7, None),
    ],
)
def test_exit_code_and_last_line(
    error: BaseException | None, code: int, last_line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert (lines[-1] if lines else None) == last_line
    assert any("Traceback" in line for line in lines) == isinstance(error, RuntimeError)


class Program:
    """Runs inference.py in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "out"

    def __call__(
        self, source: Path, *flags: str, before: Callable[[], None] | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PETCLICK_")}
        places = ["--input", str(source), "--output", str(self.output)]
        return subprocess.run(
            [sys.executable, str(INFERENCE), *places, *flags],
            env=clean | environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
            preexec_fn=before,
        )

    def refuses(self, source: Path, *flags: str, **how: Any) -> str:
        """Run, check that it ended as for bad input, and return the last line."""
        result = self(source, *flags, **how)
        assert result.returncode == 2, result.stderr
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert not list(self.output.rglob("*"))
        last = result.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        return last


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which PyTorch cannot be imported: bad input does not wait for it."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    return {"PYTHONPATH": str(tmp_path / "stub")}


@pytest.fixture
def source(make_case: MakeCase, write_case: WriteCase, tmp_path: Path) -> Path:
    """A good case of 20 x 24 x 16 voxels, to be spoilt."""
    return write_case(tmp_path / "in", make_case((16, 24, 20)), click_set([[10, 20, 9]], []))


def test_a_folder_without_an_image(program: Program, source: Path, no_torch: dict[str, str]) -> None:
    folder = source / "images" / "pet"
    next(folder.iterdir()).unlink()
    last = program.refuses(source, **no_torch)
    assert f"{folder}: must be a folder with exactly one image" in last
    assert last.endswith("got an empty folder")


def test_a_folder_with_several_images(program: Program, source: Path, no_torch: dict[str, str]) -> None:
    folder = source / "images" / "ct"
    (folder / "old.nii.gz").touch()
    last = program.refuses(source, **no_torch)
    assert f"{folder}: must be a folder with exactly one image" in last
    assert last.endswith("got 2: old.nii.gz, patient.mha") or last.endswith("got 2: old.nii.gz; patient.mha")


def write_pixels(path: Path, array: np.ndarray[Any, Any], is_vector: bool = False) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=is_vector), str(path))


def garbage(path: Path) -> None:
    path.write_bytes(b"no image")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def flat(path: Path) -> None:
    write_pixels(path, np.ones((24, 20), np.float32))


def vectors(path: Path) -> None:
    write_pixels(path, np.ones((16, 24, 20, 3), np.float32), is_vector=True)


def with_value(value: float) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        array = np.ones((16, 24, 20), np.float32)
        array[3, 4, 5] = value
        write_pixels(path, array)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (garbage, "cannot be read"),
        (truncated, "cannot be read, truncated or damaged"),
        (flat, "must be 3-D, got 2-D"),
        (vectors, "must have one real number per voxel, got vector of 32-bit float"),
        (with_value(np.nan), "must have finite voxels (float32), got 1 that are NaN or infinite"),
        (with_value(-np.inf), "must have finite voxels (float32), got 1 that are NaN or infinite"),
    ],
)
def test_a_bad_image(
    program: Program, source: Path, no_torch: dict[str, str], spoil: Callable[[Path], None], message: str
) -> None:
    path = source / "images" / "ct" / "patient.mha"
    spoil(path)
    assert f"{path}: {message}" in program.refuses(source, **no_torch)


def test_ct_and_pet_that_do_not_overlap(
    program: Program, make_case: MakeCase, write_case: WriteCase, tmp_path: Path, no_torch: dict[str, str]
) -> None:
    case = make_case((16, 24, 20))
    source = write_case(tmp_path / "in", case)
    ct_path = source / "images" / "ct" / "patient.mha"
    ct = sitk.ReadImage(str(ct_path))
    ct.SetOrigin((-40.5, 12.25, 500.0))
    sitk.WriteImage(ct, str(ct_path))
    last = program.refuses(source, **no_torch)
    assert f"{ct_path}: must overlap in space with the PET" in last
    assert "z 498.5 to 546.5 mm" in last
    assert "z 75.5 to 123.5 mm" in last


def test_click_json_that_does_not_parse(program: Program, source: Path, no_torch: dict[str, str]) -> None:
    path = source / "lesion-clicks.json"
    path.write_text('{"points": [')
    assert f"{path}: must be JSON in UTF-8" in program.refuses(source, **no_torch)


def test_every_bad_entry_of_a_click_file(program: Program, source: Path, no_torch: dict[str, str]) -> None:
    path = source / "lesion-clicks.json"
    bad = [
        {"point": [1, 2, 3], "name": "tumor"},
        {"point": [1, 2, 3], "name": "lesion"},
        {"point": [1, 2], "name": "tumor"},
        {"point": [1, float("nan"), 3], "name": "background"},
        {"point": "1, 2, 3", "name": "tumor"},
        {"point": None, "name": "tumor"},
        7,
        {"point": [1, 2, 300], "name": "tumor"},
    ]
    path.write_text(json.dumps({"points": bad}))
    last = program.refuses(source, **no_torch)
    assert f"{path}: 7 bad entries" in last
    assert "points[0]" not in last
    assert "points[1].name must be 'tumor' or 'background', got 'lesion'" in last
    assert "points[2].point must be three finite numbers [x, y, z], got [1, 2]" in last
    assert "points[3].point must be three finite numbers [x, y, z], got [1, nan, 3]" in last
    assert all(f"points[{i}]" in last for i in range(1, 8))


def test_clicks_outside_the_volume(program: Program, source: Path, no_torch: dict[str, str]) -> None:
    path = source / "lesion-clicks.json"
    path.write_text(json.dumps({"tumor": [[20, 0, 0], [1, 1, 1]], "background": [[0, -0.6, 0]]}))
    last = program.refuses(source, **no_torch)
    assert f"{path}: 2 bad entries: tumor[0] must lie in the volume of 20 x 24 x 16 voxels" in last
    assert "got [20, 0, 0]" in last
    assert "background[0]" in last
    assert "got [0, -0.6, 0]" in last


def test_output_that_is_not_writable(program: Program, source: Path, no_torch: dict[str, str]) -> None:
    """A file stands where the folder should: root, too, can make nothing below it."""
    program.output.write_text("in the way")
    last = program.refuses(source, **no_torch)
    assert f"{program.output}" in last
    assert "must be a folder that can be written to" in last
    assert program.output.read_text() == "in the way"


def test_bad_flag(program: Program, source: Path, no_torch: dict[str, str]) -> None:
    result = program(source, PETCLICK_PRECISION="fp8", **no_torch)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(
        "inference.py: error: argument --precision: invalid choice"
    )


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_bad_model_folders(program: Program, source: Path, make_model: MakeModel, tmp_path: Path) -> None:
    """Incomplete, with an unknown key, with code planted; side by side, since each has to import PyTorch."""
    marker = tmp_path / "marker"
    incomplete = make_model(name="incomplete")
    (incomplete / "plans.json").unlink()
    unknown = make_model(name="unknown", guidance={"radius_vox": 2, "sigma": 3})
    planted = make_model(name="planted", change=lambda content: content.update(logging=Payload(marker)))

    def last_line(model: Path) -> str:
        return program.refuses(source, "--model", str(model))

    with ThreadPoolExecutor() as pool:
        lines = list(pool.map(last_line, (incomplete, unknown, planted)))
    assert lines[0] == f"error: {incomplete / 'plans.json'}: the model folder must hold this file"
    assert lines[1].startswith(f"error: {unknown / 'guidance.json'}: keys")
    assert "must be among encoding, radius_vox" in lines[1]
    assert lines[1].endswith("got 'sigma'")
    assert f"{planted / 'fold_0' / 'checkpoint_final.pth'}: must hold weights only" in lines[2]
    assert "system" in lines[2]
    assert not marker.exists()


def test_a_full_disk(program: Program, source: Path, make_model: MakeModel) -> None:
    """A limit on file sizes stands for the disk's end; ITK's writer meets both as a write that fails."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))

    flags = ("--model", str(make_model()), "--device", "cpu", "--mirror-axes", "none", "--quiet")
    result = program(source, *flags, before=limit)
    assert result.returncode == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    mask = program.output / "images" / "tumor-lesion-segmentation" / "patient.mha"
    assert last.startswith(f"error: {mask}: cannot be written")
    assert not [path for path in program.output.rglob("*") if path.is_file()]


def test_a_good_run_in_the_containers_way(
    program: Program, make_model: MakeModel, make_case: MakeCase, write_case: WriteCase, tmp_path: Path
) -> None:
    case = make_case((16, 24, 20))
    source = write_case(tmp_path / "in", case)
    outside = {"points": [{"point": [99, 0, 0], "name": "tumor"}, {"point": [3, 4, 5], "name": "tumor"}]}
    (source / "lesion-clicks.json").write_text(json.dumps(outside))
    model = make_model()
    result = program(source, PETCLICK_MODEL=str(model), PETCLICK_DEVICE="cpu", PETCLICK_BAD_CLICKS="warn")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    warnings = [line for line in result.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "points[0] must lie in the volume" in warnings[0]
    assert [path.name for path in program.output.rglob("*.*")] == ["patient.mha"]


def test_forked_workers_end_by_sigterm(tmp_path: Path) -> None:
    """A pool ends its workers by SIGTERM; one that raised an error instead could lose it, and live on."""
    script = tmp_path / "fork.py"
    script.write_text(
        "import multiprocessing, signal\n"
        "from petclick.program import run\n"
        "def main():\n"
        "    with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "        print(pool.apply(signal.getsignal, (signal.SIGTERM,)), signal.getsignal(signal.SIGTERM))\n"
        "run(main)\n",
        "utf-8",
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 <function _terminate")
