"""Converters: phantoms, autoPET's archive and folds in nnU-Net's raw layout; false positives in organs."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from petclick.clicks import click_set, load_clicks, save_clicks
from petclick.errors import InputError
from petclick.evaluation.cases import find_cases, read_truth_case
from petclick.evaluation.protocol import challenge_clicks
from petclick.grid import Grid
from petclick.images import read_case, read_image, write_image, write_mask
from petclick.orientation import orient
from petclick.phantom import make_patient
from training import convert, organ_fpv, phantoms, preprocess
from training.organs import ORGAN_LABEL, ORGANS, organs_of_tissues
from training.preprocess import STARTER_SPLITS, splits_for
from training.raw import RawDataset, patient_of, read_splits, spread_splits
from training.settings import DEFAULT_FILE

DATASET = "Dataset778_Mix"
COARSE = "12,12,12"
DEMO = Path(__file__).parent / "input"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return tmp_path / "raw" / DATASET


def add_phantoms(*more: str) -> None:
    convert.main(["phantom", "--dataset", DATASET, "--spacing", COARSE, *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_phantoms_become_a_data_set_with_organs(raw: Path) -> None:
    add_phantoms("--cases", "2", "--seed", "5")
    names = [f"phantom_{tracer}_{number:04d}" for tracer in ("fdg", "psma") for number in (5, 6)]
    assert RawDataset(DATASET).cases() == names
    description = json.loads((raw / "dataset.json").read_text())
    assert description["numTraining"] == 4
    assert description["channel_names"] == {"0": "CT", "1": "CT"}
    phantom = make_patient("psma", 6, (12.0, 12.0, 12.0))
    for folder, stem, expected in (
        ("imagesTr", "phantom_psma_0006_0000", phantom.ct_hu),
        ("imagesTr", "phantom_psma_0006_0001", phantom.pet_suv),
        ("labelsTr", "phantom_psma_0006", phantom.lesions > 0),
        ("labelsTr_organs", "phantom_psma_0006", organs_of_tissues(phantom.tissues)),
    ):
        array, grid = read_image(raw / folder / f"{stem}.nii.gz")
        assert grid.matches(phantom.grid)
        np.testing.assert_allclose(array, expected, atol=0.51)
    assert not (raw / ".partial").exists()


def test_same_command_adds_only_what_is_missing(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_phantoms("--cases", "2", "--tracers", "fdg")
    whole = contents(raw)
    (raw / "imagesTr" / "phantom_fdg_0001_0001.nii.gz").unlink()
    killed = raw / ".partial" / "phantom_fdg_0001" / "ct" / "phantom_fdg_0001_0000.nii.gz"
    killed.parent.mkdir(parents=True)
    killed.write_bytes(b"half")
    made = []
    monkeypatch.setattr(
        phantoms,
        "make_patient",
        lambda tracer, seed, step: made.append(seed) or make_patient(tracer, seed, step),
    )
    add_phantoms("--cases", "2", "--tracers", "fdg")
    assert made == [1]
    again = contents(raw)
    assert set(again) == set(whole)  # nothing is left of a run that was killed
    for name in ("labelsTr/phantom_fdg_0001.nii.gz", "dataset.json"):
        assert again[name] == whole[name]


def test_dry_run_makes_nothing(raw: Path) -> None:
    add_phantoms("--cases", "2", "--dry-run")
    assert not raw.exists()


def test_a_case_that_fails_leaves_nothing_half_written(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(array: npt.NDArray[np.generic], grid: Grid, path: Path) -> None:
        if array.dtype == np.uint8:
            raise KeyboardInterrupt
        write_image(array, grid, path)

    monkeypatch.setattr("training.raw.write_image", fail)
    with pytest.raises(KeyboardInterrupt):
        add_phantoms("--cases", "1", "--tracers", "psma")
    assert set(contents(raw)) == {"orientation.json"}


def test_phantoms_of_another_spacing_are_not_mixed_in(raw: Path) -> None:
    add_phantoms("--cases", "1", "--tracers", "fdg")
    with pytest.raises(InputError, match=r"fdg_0000_0001.nii.gz: must have the spacing asked for, .*9"):
        convert.main(["phantom", "--dataset", DATASET, "--cases", "1", "--spacing", "9,9,9"])


def test_splits_keep_patients_and_spread_phantoms(raw: Path, tmp_path: Path) -> None:
    patients = [case for split in read_splits(STARTER_SPLITS) for case in split["val"]]
    names = [f"phantom_{tracer}_{number:04d}" for tracer in ("fdg", "psma") for number in range(10)]
    for name in [*patients, *names]:
        RawDataset(DATASET).files(name, organs=False)["lesions"].parent.mkdir(parents=True, exist_ok=True)
        RawDataset(DATASET).files(name, organs=False)["lesions"].touch()
    out = tmp_path / "splits.json"
    convert.main(["splits", DATASET, str(out)])
    splits = splits_for([*patients, *names], out)  # each case once
    for split, starter in zip(splits, read_splits(STARTER_SPLITS), strict=True):
        assert [case for case in split["val"] if case.startswith("STS")] == sorted(starter["val"])
        for tracer in ("fdg", "psma"):
            assert sum(case.startswith(f"phantom_{tracer}") for case in split["val"]) == 2
        assert sorted(split["train"] + split["val"]) == sorted([*patients, *names])
    before = out.read_bytes()
    add_phantoms("--cases", "1", "--tracers", "fdg", "--seed", "50", "--splits", str(out))
    assert any("phantom_fdg_0050" in split["val"] for split in read_splits(out))
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("psma_aa11_2018-04-23", "psma_aa11"),
        ("fdg_0011f3deaf_03-23-2003-NA-PET-CT Ganzkoerper  primaer mit KM-07052", "fdg_0011f3deaf"),
        ("fdg_01_PET-CT Ganzkoerper", "fdg_01_PET-CT Ganzkoerper"),
        ("phantom_fdg_0007", "phantom_fdg_0007"),
        ("STS_001", "STS_001"),
    ],
)
def test_studies_are_of_the_patient_in_their_name(case: str, patient: str) -> None:
    assert patient_of(case) == patient


def test_all_studies_of_a_patient_are_in_one_fold() -> None:
    dates = ("2018-04-23", "2019-04-30", "2020-01-02")
    cases = [f"psma_{patient:02d}_{date}" for patient in range(10) for date in dates]
    base = [{"train": [], "val": names} for names in ([cases[0]], [cases[3]], [cases[6]])]
    for folds in (spread_splits(cases, []), spread_splits(cases, base)):
        patients = [{patient_of(case) for case in fold["val"]} for fold in folds]
        assert sum(len(each) for each in patients) == 10
        assert all(fold["train"] == sorted({*cases} - {*fold["val"]}) for fold in folds)
    assert [fold["val"][:3] for fold in folds] == [cases[:3], cases[3:6], cases[6:9]]


def test_starters_cases_stay_in_their_folds() -> None:
    """As the shipped weights were trained: sarcoma patients and phantoms of both tracers."""
    base = read_splits(STARTER_SPLITS)
    patients = [case for split in base for case in split["val"]]
    fdg = [f"phantom_fdg_{number:04d}" for number in range(16)]
    psma = [f"phantom_psma_{number:04d}" for number in range(20, 36)]
    folds = spread_splits([*patients, *fdg, *psma], base)
    for fold, first_fdg, first_psma in zip(range(5), (4, 0, 1, 2, 3), (3, 4, 0, 1, 2), strict=True):
        expected = [*base[fold]["val"], *fdg[first_fdg::5], *psma[first_psma::5]]
        assert folds[fold]["val"] == sorted(expected)


def test_an_archives_folds_are_kept_unless_others_are_named(raw: Path, tmp_path: Path) -> None:
    add_phantoms("--cases", "2", "--tracers", "fdg")
    out, other = tmp_path / "out.json", tmp_path / "other.json"
    names = ["phantom_fdg_0000", "phantom_fdg_0001"]
    for file, val in ((raw / "splits_final.json", names), (other, names[:1])):
        file.write_text(json.dumps([{"train": [], "val": []}, {"train": [], "val": val}]))
    phantom = ["phantom", "--dataset", DATASET, "--spacing", COARSE, "--cases", "2", "--tracers", "fdg"]
    for command in (["splits", DATASET, str(out)], [*phantom, "--splits", str(out)]):
        convert.main(command)
        assert [fold["val"] for fold in read_splits(out)] == [[], names]
        convert.main([*command, "--base", str(other)])
        assert [fold["val"] for fold in read_splits(out)] == [names[1:], names[:1]]


def test_uneven_kinds_are_balanced_over_the_folds() -> None:
    cases = [f"a_{n}" for n in range(7)] + [f"b_{n}" for n in range(3)]
    sizes = [len(split["val"]) for split in spread_splits(cases, [])]
    assert sizes == [2] * 5


@pytest.mark.parametrize("text", ["{}", "[]", '[{"train": []}]', '[{"train": [], "val": [3]}]', "["])
def test_bad_splits_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputError, match=r"s\.json: must be"):
        read_splits(tmp_path / "s.json")


def test_splits_of_an_empty_data_set_are_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labelsTr: must hold cases"):
        convert.main(["splits", DATASET, str(tmp_path / "s.json")])


@pytest.mark.parametrize("more", [["--tracers", "gold"], ["--spacing", "3,3"], ["--spacing", "a,b,c"]])
def test_bad_flags_end_with_exit_code_2(raw: Path, more: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        add_phantoms("--cases", "1", *more)
    assert stop.value.code == 2


@pytest.mark.parametrize("more", [["--cases", "0"], ["--cases", "1", "--seed", "-1"]])
def test_impossible_numbers_are_refused(raw: Path, more: list[str]) -> None:
    with pytest.raises(InputError, match="need --cases of 1 or more"):
        add_phantoms(*more)


def test_a_data_sets_name_is_nnunets(raw: Path) -> None:
    with pytest.raises(InputError, match="must be named such as Dataset601_STS, got Mix"):
        RawDataset("Mix")
    with pytest.raises(InputError, match="must be named such as Dataset601_STS, got 778"):
        preprocess.main(["778"])


@pytest.mark.parametrize("kind", ["raw", "preprocessed", "results"])
def test_a_data_sets_number_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """NnU-Net looks for a number in all of its folders, and stops where two names have it."""
    for each in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{each}", str(tmp_path / each))
    (tmp_path / kind / "Dataset778_Other").mkdir(parents=True)
    (tmp_path / "raw" / "Dataset779_Mix").mkdir(parents=True)
    message = rf"{kind}/Dataset778_Other: no other data set may have the number of {DATASET}"
    with pytest.raises(InputError, match=message):
        add_phantoms("--cases", "1", "--dry-run")
    with pytest.raises(InputError, match=message):
        preprocess.main([DATASET, "--dry-run"])
    RawDataset("Dataset778_Other")


def test_the_demo_is_what_the_command_makes(tmp_path: Path) -> None:
    convert.main(["phantom-case", str(tmp_path)])
    for kind, tolerance in (("ct", 1.01), ("pet", 0.0101)):
        stored, grid = read_image(DEMO / "images" / kind / "phantom-12.mha")
        made, made_grid = read_image(tmp_path / "images" / kind / "phantom-12.mha")
        assert made_grid.matches(grid)
        np.testing.assert_allclose(made, stored, atol=tolerance)  # one step of the rounding
    clicks = [load_clicks(folder / "lesion-clicks.json", grid) for folder in (DEMO, tmp_path)]
    np.testing.assert_array_equal(clicks[0].index_zyx, clicks[1].index_zyx)
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 500_000


def test_full_size_case_has_the_challenges_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert phantoms.FULL_SHAPE_ZYX == (326, 400, 400)
    assert phantoms.FULL_SPACING_ZYX_MM == (3.0, 2.04, 2.04)
    monkeypatch.setattr(phantoms, "FULL_SHAPE_ZYX", (82, 68, 68))  # the same extent in fewer voxels
    monkeypatch.setattr(phantoms, "FULL_SPACING_ZYX_MM", (12.0, 12.0, 12.0))
    convert.main(["phantom-case", str(tmp_path), "--tracer", "psma", "--seed", "4", "--full-size"])
    case = read_case(*(tmp_path / "images" / kind / "phantom_psma_0004.mha" for kind in ("ct", "pet")))
    assert case.grid.shape_zyx == (82, 68, 68)
    organs, _ = read_image(tmp_path / "organs" / "phantom_psma_0004.mha")
    for organ in ("brain", "kidneys", "bladder"):
        assert (organs == ORGAN_LABEL[organ]).sum() * case.grid.voxel_ml > 20, organ


def test_held_out_cases_can_be_evaluated(tmp_path: Path) -> None:
    command = ["phantom-cases", str(tmp_path / "cases"), "--seed", "1000", "--spacing", COARSE]
    convert.main([*command, "--cases", "2", "--dry-run"])
    assert not (tmp_path / "cases").exists()
    convert.main([*command, "--cases", "1"])
    before = contents(tmp_path / "cases")
    convert.main([*command, "--cases", "2"])
    assert contents(tmp_path / "cases").items() > before.items()
    command[-1] = "9,12,12"
    with pytest.raises(InputError, match=r"fdg_1000\.mha: must have the spacing asked for, .*9\.0\) mm, got"):
        convert.main([*command, "--cases", "2"])
    found = find_cases(tmp_path / "cases")
    assert [case.name for case in found] == [
        f"phantom_{tracer}_{number}" for tracer in ("fdg", "psma") for number in (1000, 1001)
    ]
    for each in found:
        case = read_truth_case(each)
        assert case.truth.any() == (len(case.clicks.of_kind("tumor")) > 0)


# --- autoPET ---------------------------------------------------------------------------------------------


def write_archive(folder: Path, names: tuple[str, ...], orientation: str = "LPS") -> Grid:
    """A tiny archive in autoPET's form; returns its grid."""
    rng = np.random.default_rng(0)
    grid = orient(Grid((5, 6, 7), (2.0, 2.1, 3.0)), orientation)
    for each in ("imagesTr", "labelsTr"):
        (folder / each).mkdir(parents=True)
    for name in names:
        for channel in (0, 1):
            array = rng.normal(size=grid.shape_zyx).astype(np.float32)
            write_image(array, grid, folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        label = (rng.random(grid.shape_zyx) > 0.8).astype(np.uint8)
        write_image(label, grid, folder / "labelsTr" / f"{name}.nii.gz")
    splits = [{"train": [names[0]], "val": list(names[1:])}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return grid


NAMES = ("fdg_01_PET-CT Ganzkoerper", "psma_02_2020")  # FDG's names have spaces


@pytest.mark.parametrize("link", [True, False])
def test_autopet_is_copied_or_linked(raw: Path, tmp_path: Path, link: bool) -> None:
    source = tmp_path / "source"
    grid = write_archive(source, NAMES)
    write_image(np.ones(grid.shape_zyx, np.uint8), grid, source / "labelsTr" / f"{NAMES[0]}_seg_org.nii.gz")
    convert.main(["autopet", str(source), "--dataset", DATASET, "--dry-run"])
    assert not raw.exists()
    convert.main(["autopet", str(source), "--dataset", DATASET, *(["--link"] if link else [])])
    assert RawDataset(DATASET).cases() == sorted(NAMES)
    for part in ("imagesTr", "labelsTr"):
        for path in (raw / part).iterdir():
            assert path.is_symlink() == link
            assert path.read_bytes() == (source / part / path.name).read_bytes()
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 2
    assert read_splits(raw / "splits_final.json") == read_splits(source / "splits_final.json")
    assert not (raw / "labelsTr_organs").exists()
    add_phantoms("--cases", "1", "--tracers", "fdg")  # a mixed data set, with the archive's folds kept
    out = tmp_path / "splits.json"
    convert.main(["splits", DATASET, str(out), "--base", str(raw / "splits_final.json")])
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 3


AUTOPET = ["--settings", str(DEFAULT_FILE.with_name("autopet.yaml"))]  # takes cases as they are stored


def test_published_settings_keep_cases_as_they_are_stored(raw: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_archive(source, NAMES, "RAS")
    convert.main(["autopet", str(source), "--dataset", DATASET, "--link", *AUTOPET])
    for part, n_files in (("imagesTr", 4), ("labelsTr", 2)):
        links = [*(raw / part).iterdir()]
        assert len(links) == n_files
        assert all(link.resolve() == source / part / link.name for link in links)
    assert json.loads((raw / "orientation.json").read_text()) == {"orientation": None}


def test_data_sets_of_another_orientation_are_refused(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    source = tmp_path / "source"
    write_archive(source, NAMES, "RAS")
    archive = ["autopet", str(source), "--dataset", DATASET]
    convert.main([*archive, *AUTOPET])
    before = contents(raw)
    for command in (archive, [*archive, "--dry-run"]):
        with pytest.raises(InputError, match=r'orientation\.json: must be \{"orientation": "LPS"\}.* null'):
            convert.main(command)
    with pytest.raises(InputError, match=r"orientation\.json: must be"):
        add_phantoms("--cases", "1", "--tracers", "fdg")
    with pytest.raises(InputError, match=r"orientation\.json: must be"):
        preprocess.main([DATASET, "--dry-run"])
    preprocess.main([DATASET, "--dry-run", *AUTOPET])
    add_phantoms("--cases", "1", "--tracers", "fdg", *AUTOPET)
    assert contents(raw).items() > {name: before[name] for name in before if name != "dataset.json"}.items()


def test_data_set_without_a_note_is_judged_by_its_images(raw: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "source", NAMES, "RAS")
    convert.main(["autopet", str(tmp_path / "source"), "--dataset", DATASET, *AUTOPET])
    (raw / "orientation.json").unlink()
    with pytest.raises(InputError, match=r"_0001\.nii\.gz: must lie as LPS"):
        add_phantoms("--cases", "1", "--tracers", "fdg")
    RawDataset(DATASET).require_orientation("RAS")
    RawDataset(DATASET).require_orientation(None)


def test_autopet_is_turned_with_its_clicks_and_organs(raw: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    grid = write_archive(source, NAMES, "RAS")
    rng = np.random.default_rng(1)
    total, glands = rng.integers(0, 118, grid.shape_zyx), rng.integers(0, 20, grid.shape_zyx)
    for task, array in (("total", total), ("glands", glands)):
        (tmp_path / task).mkdir()
        write_image(array.astype(np.uint8), grid, tmp_path / task / f"{NAMES[1]}.nii.gz")
    label, _ = read_image(source / "labelsTr" / f"{NAMES[1]}.nii.gz")
    pet, _ = read_image(source / "imagesTr" / f"{NAMES[1]}_0001.nii.gz")
    (tmp_path / "clicks").mkdir()
    clicks = challenge_clicks(label.astype(np.uint8), pet, 3)
    save_clicks(clicks, tmp_path / "clicks" / f"{NAMES[1]}_clicks.json")
    folders = [
        f"--{name}={tmp_path / folder}" for name, folder in (("organs", "total"), ("glands", "glands"))
    ]
    convert.main(
        ["autopet", str(source), "--dataset", DATASET, "--link", *folders, f"--clicks={tmp_path / 'clicks'}"]
    )

    turned, turned_grid = read_image(raw / "imagesTr" / f"{NAMES[1]}_0001.nii.gz")
    assert turned_grid.matches(orient(grid, "LPS"))
    np.testing.assert_array_equal(turned, pet[:, ::-1, ::-1])
    turned_label, _ = read_image(raw / "labelsTr" / f"{NAMES[1]}.nii.gz")
    np.testing.assert_array_equal(turned_label, label[:, ::-1, ::-1])
    moved = load_clicks(raw / "clicksTr" / f"{NAMES[1]}_clicks.json", turned_grid)
    before, after = (
        sorted(image[tuple(each.of_kind("tumor").T)].tolist())
        for image, each in ((pet, clicks), (turned, moved))
    )
    assert before == after

    organs, _ = read_image(raw / "labelsTr_organs" / f"{NAMES[1]}.nii.gz")
    expected = np.zeros(grid.shape_zyx, int)
    for label_number, organ in enumerate(ORGANS, start=1):
        expected[np.isin(total, organ.total)] = label_number
    expected[np.isin(glands, (7, 8, 9, 10))] = ORGAN_LABEL["head glands"]
    np.testing.assert_array_equal(organs, expected[:, ::-1, ::-1])
    assert [path.name for path in (raw / "labelsTr_organs").iterdir()] == [f"{NAMES[1]}.nii.gz"]


def test_clicks_come_to_cases_that_are_there(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    grid = write_archive(source, NAMES, "RAS")
    command = ["autopet", str(source), "--dataset", DATASET]
    (tmp_path / "total").mkdir()
    write_image(np.ones(grid.shape_zyx, np.uint8), grid, tmp_path / "total" / f"{NAMES[0]}.nii.gz")
    convert.main([*command, f"--organs={tmp_path / 'total'}"])
    before = contents(raw)
    (tmp_path / "clicks").mkdir()
    save_clicks(click_set([[1, 2, 3]], []), tmp_path / "clicks" / f"{NAMES[1]}_clicks.json")
    with caplog.at_level("INFO"):
        convert.main([*command, f"--clicks={tmp_path / 'clicks'}", f"--organs={tmp_path / 'total'}"])
    assert "2 cases found, 1 with organ masks, 1 with clicks; 0 missing" in caplog.text
    assert "organ masks kept there: 1" in caplog.text
    file = raw / "clicksTr" / f"{NAMES[1]}_clicks.json"
    assert set(contents(raw)) - set(before) == {str(file.relative_to(raw))}
    _, y, x = grid.shape_zyx
    moved = load_clicks(file, orient(grid, "LPS"))
    np.testing.assert_array_equal(moved.index_zyx, [[1, y - 1 - 2, x - 1 - 3]])


def test_glands_without_organs_are_refused(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        convert.main(["autopet", "source", "--dataset", DATASET, "--glands", "glands"])
    assert stop.value.code == 2
    assert "--glands needs --organs" in capsys.readouterr().err


def test_organ_table_names_ten_organs() -> None:
    assert len(ORGANS) == len(ORGAN_LABEL) == 10
    numbers = [number for organ in ORGANS for number in organ.total]
    assert len(numbers) == len(set(numbers))
    tissues = [tissue for organ in ORGANS for tissue in organ.tissues]
    assert len(tissues) == len(set(tissues))


def test_bad_archives_are_refused(raw: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(InputError, match="source: must hold imagesTr and labelsTr"):
        convert.main(["autopet", str(source), "--dataset", DATASET])
    grid = write_archive(source, NAMES)
    first = sorted(NAMES)[0]
    shifted = Grid(grid.size_xyz, grid.spacing_mm, (9.0, 0.0, 0.0))
    ones = np.ones(grid.shape_zyx, np.uint8)
    label, ct = source / "labelsTr" / f"{first}.nii.gz", source / "imagesTr" / f"{first}_0000.nii.gz"

    def refused(message: str, *more: str) -> None:
        with pytest.raises(InputError, match=message):
            convert.main(["autopet", str(source), "--dataset", DATASET, *more])
        assert not (raw / "labelsTr" / label.name).exists()

    kept = label.read_bytes()
    write_image(2 * ones, grid, label)
    refused(f"{label.name}: must hold only 0 and 1, got 2")
    write_image(ones, shifted, label)
    refused(f"{label.name}: must lie on PET's grid")
    label.write_bytes(kept)
    (tmp_path / "total").mkdir()
    organs = tmp_path / "total" / label.name
    write_image(300 * ones.astype(np.int16), grid, organs)
    refused(f"{organs.name}: must hold TotalSegmentator's class numbers.*300", f"--organs={organs.parent}")
    write_image(ones, shifted, organs)
    refused(f"{organs.name}: must lie on PET's grid", f"--organs={organs.parent}")
    kept = ct.read_bytes()
    write_image(ones, shifted, ct)
    refused(f"{ct.name}: must lie on PET's grid")
    ct.write_bytes(b"no image")
    refused(f"{ct.name}: must be an image that ITK can read")
    ct.unlink()
    refused(f"must hold CT .*got imagesTr/{ct.name.removesuffix('.nii.gz')}")
    ct.write_bytes(kept)
    label.unlink()
    refused(f"must hold CT .*got labelsTr/{first}")


# --- false positives in organs ---------------------------------------------------------------------------


def test_only_false_components_inside_organs_count() -> None:
    organs = np.zeros((4, 4, 12), np.uint8)
    organs[..., :4], organs[..., 8:] = ORGAN_LABEL["brain"], ORGAN_LABEL["bladder"]
    truth, prediction = np.zeros_like(organs), np.zeros_like(organs)
    prediction[0, 0, 2:6] = 1  # false: two voxels in the brain, two beside it
    prediction[3, 3, 7:12] = 1  # touches a lesion, so nothing of it is false
    truth[3, 3, 7] = 1
    fpv = organ_fpv.organ_fpv_ml(truth, prediction, organs, voxel_ml=0.5)
    assert fpv == {**dict.fromkeys(ORGAN_LABEL, 0.0), "brain": 1.0}


def test_organ_fpv_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases, evaluation = tmp_path / "cases", tmp_path / "evaluation"
    convert.main(["phantom-cases", str(cases), "--cases", "1", "--spacing", COARSE])
    expected = []
    for found in find_cases(cases):
        case = read_truth_case(found)
        organs, grid = read_image(cases / found.name / "organs" / f"{found.name}.mha")
        mask = (organs == ORGAN_LABEL["kidneys"]).astype(np.uint8)
        write_mask(mask, grid, evaluation / "masks" / found.name / "network" / "step-10.mha")
        expected.append(0.0 if (mask & case.truth).any() else mask.sum() * grid.voxel_ml)
    assert max(expected) > 100
    organ_fpv.main([str(cases), str(evaluation)])
    last = capsys.readouterr().out.strip().split("\n")[-1]
    assert last == f"| mean | 0.00 | 0.00 | {np.mean(expected):.2f} | 0.00 | {np.mean(expected):.2f} |"
    with pytest.raises(InputError, match="step-03"):
        organ_fpv.main([str(cases), str(evaluation), "--step", "3"])
    with pytest.raises(SystemExit):
        organ_fpv.main([str(cases), str(evaluation), "--organs", "toe"])
