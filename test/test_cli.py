"""The command line, in process: flags, their twins in the environment, and what a run leaves behind."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from conftest import stored_otherwise

from petclick import cli, job
from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError
from petclick.images import Case
from petclick.predictor import Settings

MakeModel = Callable[..., Path]
MakeCase = Callable[..., Case]
WriteCase = Callable[..., Path]

FAST = ("--device", "cpu", "--precision", "fp32", "--mirror-axes", "none")


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for flag in vars(cli.parse([], {})):
        monkeypatch.delenv(f"PETCLICK_{flag.upper()}", raising=False)
    level = logging.getLogger("petclick").level
    yield
    logging.getLogger("petclick").setLevel(level)


def read(path: Path) -> tuple[sitk.Image, npt.NDArray[np.uint8]]:
    image = sitk.ReadImage(str(path))
    return image, sitk.GetArrayFromImage(image)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_without_flags_the_platforms_contract_holds() -> None:
    options = cli.parse([], {})
    assert (options.input, options.output) == (Path("/input"), Path("/output"))
    assert options.model is None
    assert (options.device, options.precision) == ("auto", "auto")
    assert options.folds is None
    assert options.mirror_axes is None
    assert options.step_size == 0.5
    assert options.bad_clicks == "error"
    assert options.overlay is None
    assert options.cache is None
    assert options.time_limit is None
    assert options.quiet is False


FLAGS = [
    ("input", "a b", Path("a b")),
    ("output", "/x", Path("/x")),
    ("model", "m", Path("m")),
    ("device", "cpu", "cpu"),
    ("folds", "0, 3", ("0", "3")),
    ("folds", "all", None),
    ("mirror_axes", "none", ()),
    ("mirror_axes", "0,2", (0, 2)),
    ("precision", "bf16", "bf16"),
    ("step_size", "0.75", 0.75),
    ("bad_clicks", "warn", "warn"),
    ("overlay", "o.png", Path("o.png")),
    ("cache", "c", Path("c")),
    ("cache_gib", "0.5", 0.5),
    ("keep_gib", "0.5", 0.5),
    ("keep_dir", "d", Path("d")),
    ("time_limit", "840", 840.0),
]


@pytest.mark.parametrize(("name", "text", "value"), FLAGS)
def test_every_flag_has_a_twin_in_the_environment(name: str, text: str, value: object) -> None:
    flag = "--" + name.replace("_", "-")
    assert getattr(cli.parse([flag, text], {}), name) == value
    assert getattr(cli.parse([], {f"PETCLICK_{name.upper()}": text}), name) == value


@pytest.mark.parametrize(("name", "usual"), [("quiet", False), ("serve", False), ("skip_air", True)])
def test_switches_and_their_twins(name: str, usual: bool) -> None:
    flag, twin = name.replace("_", "-"), f"PETCLICK_{name.upper()}"
    assert getattr(cli.parse([f"--{flag}"], {}), name)
    assert not getattr(cli.parse([f"--no-{flag}"], {twin: "1"}), name)
    for texts, value in (
        (("1", "True", "yes", "on", "ON"), True),
        (("0", "false", "No", "off"), False),
        (("",), usual),
    ):
        for text in texts:
            assert getattr(cli.parse([], {twin: text}), name) is value, text


@pytest.mark.parametrize(("arguments", "keep_gib"), [([], 0), (["--serve"], 2.5)])
def test_settings_of_the_predictor(arguments: list[str], keep_gib: float) -> None:
    """A process of one job keeps no tiles."""
    flags = ["--device", "cpu", "--precision", "fp32", "--mirror-axes", "2", "--step-size", "0.25", "--quiet"]
    flags += ["--no-skip-air", "--keep-gib", "2.5", "--keep-dir", "d", "--cache", "c", "--cache-gib", "3"]
    expected = Settings(
        device="cpu",
        precision="fp32",
        mirror_axes=(2,),
        step_size=0.25,
        skip_air=False,
        keep_gib=keep_gib,
        keep_dir=Path("d"),
        cache=Path("c"),
        cache_gib=3.0,
        progress=False,
    )
    assert job.settings(cli.parse([*flags, *arguments], {})) == expected


def test_flags_come_before_the_environment() -> None:
    environment = {"PETCLICK_DEVICE": "cuda", "PETCLICK_STEP_SIZE": "", "PETCLICK_HELP": "1"}
    options = cli.parse(["--device", "cpu"], environment)
    assert options.device == "cpu"
    assert options.step_size == 0.5, "an empty twin is none"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--device", "tpu"], {}, "argument --device: invalid choice: 'tpu'"),
        (["--mirror-axes", "x"], {}, "argument --mirror-axes: must be none, or such as 0,1,2, got 'x'"),
        (["--step-size", "half"], {}, "argument --step-size: invalid float value: 'half'"),
        (["--time-limit", "0"], {}, "argument --time-limit: must be a number above 0, got '0'"),
        (["--time-limit", "inf"], {}, "argument --time-limit: must be a number above 0, got 'inf'"),
        ([], {"PETCLICK_CACHE_GIB": "nan"}, "argument --cache-gib: must be a number above 0, got 'nan'"),
        ([], {"PETCLICK_TIME_LIMIT": "14m"}, "argument --time-limit: must be a number above 0, got '14m'"),
        (["--dev", "cpu"], {}, "unrecognized arguments: --dev cpu"),
        (
            [],
            {"PETCLICK_SERVE": "please"},
            "PETCLICK_SERVE must be one of 1, true, yes, on, 0, false, no, off, got 'please'",
        ),
        ([], {"PETCLICK_SKIP_AIR": "2"}, "argument --skip-air/--no-skip-air: PETCLICK_SKIP_AIR must be one"),
        ([], {"PETCLICK_BAD_CLICKS": "ignore"}, "argument --bad-clicks: invalid choice: 'ignore'"),
    ],
)
def test_bad_flags_end_with_2_and_say_so_last(
    arguments: list[str], environment: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.parse(arguments, environment)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.parse(["--help"], {})
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all("--" + name.replace("_", "-") in text for name, _, _ in FLAGS)
    assert "PETCLICK_" in text


def test_the_mounted_model_comes_before_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (cli.SHIPPED_MODEL.parent / "inference.py").is_file()
    assert cli.SHIPPED_MODEL.name == "resources"
    monkeypatch.setattr(cli, "MOUNTED_MODEL", tmp_path)
    assert cli.default_model() == cli.SHIPPED_MODEL, "an empty folder is no model"
    (tmp_path / "plans.json").touch()
    assert cli.default_model() == tmp_path


def test_the_mounted_cache_is_used_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "MOUNTED_CACHE", tmp_path / "cache")
    assert cli.choose_cache(None) is None
    (tmp_path / "cache").mkdir()
    assert cli.choose_cache(None) == tmp_path / "cache"
    monkeypatch.setattr(cli.os, "access", lambda *_: False)
    assert cli.choose_cache(None) is None, "it cannot be written to"
    assert cli.choose_cache(Path("here")) == Path("here")
    assert cli.choose_cache(Path("none")) is None


def test_one_run(
    make_model: MakeModel,
    make_case: MakeCase,
    write_case: WriteCase,
    clicks: ClickSet,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = make_case(direction=(0, 0, 1, -1, 0, 0, 0, 1, 0))
    source = write_case(tmp_path / "in", case, clicks)
    output, overlay = tmp_path / "out", tmp_path / "overlay.png"
    flags = ["--input", str(source), "--output", str(output), "--model", str(make_model(folds=("0", "1")))]
    cli.main([*flags, *FAST, "--folds", "1", "--mirror-axes", "1", "--overlay", str(overlay)])

    assert files_below(output) == ["images/tumor-lesion-segmentation/patient.mha"]
    image, mask = read(output / "images" / "tumor-lesion-segmentation" / "patient.mha")
    reference, _ = read(source / "images" / "ct" / "patient.mha")
    assert image.GetPixelID() == sitk.sitkUInt8
    assert image.GetSize() == reference.GetSize()
    assert image.GetSpacing() == pytest.approx(reference.GetSpacing())
    assert image.GetOrigin() == pytest.approx(reference.GetOrigin())
    assert image.GetDirection() == pytest.approx(reference.GetDirection())
    np.testing.assert_array_equal(np.unique(mask), [0, 1])
    assert overlay.read_bytes().startswith(b"\x89PNG")

    assert "26 x 31 x 21 voxels of 2.5 x 2 x 3 mm" in caplog.text
    assert "2 tumor clicks, 1 background clicks" in caplog.text
    assert "1 folds, 2 mirrored passes, float32 on cpu" in caplog.text
    assert "ml of lesion" in caplog.text
    assert "SUV" in caplog.text
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "100%" in printed.err, "the progress bar"


def test_quiet_shows_neither_bar_nor_log(
    make_model: MakeModel,
    make_case: MakeCase,
    write_case: WriteCase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_case(tmp_path / "in", make_case((16, 24, 20)))
    model = make_model()
    capsys.readouterr()
    cli.main(
        ["--input", str(source), "--output", str(tmp_path / "out"), "--model", str(model), *FAST, "--quiet"]
    )
    assert files_below(tmp_path / "out") != []
    assert caplog.messages == []
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def run_masks(
    make_model: MakeModel, write_case: WriteCase, tmp_path: Path
) -> Callable[..., npt.NDArray[np.uint8]]:
    """Runs a case with a given click file; the mask of that run."""
    model = make_model(spacing_mm=(3.0, 2.0, 2.5), guidance={"orientation": "LPS"})

    def run(case: Case, click_file: object, *flags: str) -> npt.NDArray[np.uint8]:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        write_case(folder / "in", case)
        if click_file is not None:
            (folder / "in" / "lesion-clicks.json").write_text(json.dumps(click_file))
        places = ["--input", str(folder / "in"), "--output", str(folder / "out"), "--model", str(model)]
        cli.main([*places, *FAST, *flags])
        return read(folder / "out" / "images" / "tumor-lesion-segmentation" / "patient.mha")[1]

    return run


def test_the_forms_of_a_click_file(
    make_case: MakeCase, run_masks: Callable[..., npt.NDArray[np.uint8]]
) -> None:
    case = make_case((16, 24, 20))
    platform = {"points": [{"point": [9, 20.4, 10], "name": "tumor"}], "type": "Multiple points"}
    dataset = {"tumor": [[9, 20, 10]], "background": []}
    mask = run_masks(case, platform)
    np.testing.assert_array_equal(run_masks(case, dataset), mask)
    without = run_masks(case, None)
    np.testing.assert_array_equal(run_masks(case, {"points": []}), without)
    assert not np.array_equal(mask, without)


def test_the_same_patient_stored_otherwise(
    make_case: MakeCase, run_masks: Callable[..., npt.NDArray[np.uint8]]
) -> None:
    case = make_case((16, 24, 20))
    clicks = click_set([[10, 20, 9]], [[5, 8, 2]])
    other, to_other = stored_otherwise(case, (1, 2, 0), (0, 2))
    moved = clicks.mapped(to_other, other.grid.shape_zyx)

    def as_dataset(each: ClickSet) -> dict[str, object]:
        return {name: each.of_kind(name)[:, ::-1].tolist() for name in ("tumor", "background")}

    mask, turned = run_masks(case, as_dataset(clicks)), run_masks(other, as_dataset(moved))
    np.testing.assert_array_equal(turned, np.flip(mask.transpose(1, 2, 0), (0, 2)))


def test_clicks_outside_are_refused_or_left_out(
    make_case: MakeCase, run_masks: Callable[..., npt.NDArray[np.uint8]], caplog: pytest.LogCaptureFixture
) -> None:
    case = make_case((16, 24, 20))
    good = {"tumor": [[9, 20, 10]], "background": []}
    some = {"tumor": [[9, 20, 10], [20, 0, 0], [0, -1, 0]], "background": []}
    with pytest.raises(InputError, match=r"tumor\[1\].*tumor\[2\]"):
        run_masks(case, some)
    caplog.clear()
    mask = run_masks(case, some, "--bad-clicks", "warn")
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2
    np.testing.assert_array_equal(mask, run_masks(case, good))


def test_ct_on_another_grid_and_pet_in_bq_per_ml(
    make_model: MakeModel,
    make_case: MakeCase,
    write_case: WriteCase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = make_case((16, 24, 20))
    source = write_case(tmp_path / "in", Case(case.ct_hu, 30_000 * case.pet_suv, case.grid, case.name))
    ct_path = source / "images" / "ct" / "patient.mha"
    ct, _ = read(ct_path)
    sitk.WriteImage(ct[2:18, 1:20, 3:], str(ct_path))
    cli.main(["--input", str(source), "--output", str(tmp_path / "out"), "--model", str(make_model()), *FAST])
    image, _ = read(tmp_path / "out" / "images" / "tumor-lesion-segmentation" / "patient.mha")
    assert image.GetSize() == (20, 24, 16), "the PET's"
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "resampled to PET's" in warnings[0]
    assert "Bq/ml" in warnings[1]
