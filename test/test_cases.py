"""Finding cases in the three layouts, and reading them with their truth."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from petclick.clicks import ClickSet, save_clicks
from petclick.errors import InputError
from petclick.evaluation.cases import CaseFiles, find_cases, read_mask, read_truth_case
from petclick.evaluation.protocol import challenge_clicks
from petclick.grid import Grid
from petclick.images import Case, write_image

WriteCase = Callable[..., Path]
MakeCase = Callable[..., Case]


def lesion_of(case: Case) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    mask = np.zeros(case.grid.shape_zyx, np.uint8)
    mask[4:9, 10:20, 6:13] = 1
    return mask


@pytest.fixture
def challenge_case(make_case: MakeCase, write_case: WriteCase) -> Callable[[Path, ClickSet | None], Case]:
    def write(folder: Path, clicks: ClickSet | None = None) -> Case:
        case = make_case()
        write_case(folder, case, clicks)
        (folder / "truth").mkdir()
        write_image(lesion_of(case), case.grid, folder / "truth" / f"{case.name}.mha")
        return case

    return write


@pytest.fixture
def dataset(tmp_path: Path, make_case: MakeCase) -> Path:
    """An nnU-Net raw data set: one whole case, one without PET, one without truth."""
    case = make_case()
    for array, file in (
        (case.ct_hu, "imagesTr/a_0000.nii.gz"),
        (case.pet_suv, "imagesTr/a_0001.nii.gz"),
        (lesion_of(case), "labelsTr/a.nii.gz"),
        (case.ct_hu, "imagesTr/b_0000.mha"),
        (lesion_of(case), "labelsTr/b.mha"),
        (case.ct_hu, "imagesTr/c_1_0000.nii.gz"),
        (case.pet_suv, "imagesTr/c_1_0001.nii.gz"),
    ):
        path = tmp_path / "Dataset999_X" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(array, case.grid, path)
    return tmp_path / "Dataset999_X"


def test_folder_of_challenge_cases(
    tmp_path: Path, challenge_case: Callable[..., Case], clicks: ClickSet
) -> None:
    challenge_case(tmp_path / "set" / "two")
    case = challenge_case(tmp_path / "set" / "one", clicks)
    (tmp_path / "set" / "notes").mkdir()
    found = find_cases(tmp_path / "set")
    assert [each.name for each in found] == ["one", "two"]
    one, two = map(read_truth_case, found)
    np.testing.assert_array_equal(one.truth, lesion_of(case))
    np.testing.assert_array_equal(one.case.pet_suv, case.pet_suv)
    np.testing.assert_array_equal(one.clicks.index_zyx, clicks.index_zyx)
    expected = challenge_clicks(lesion_of(case), case.pet_suv)
    np.testing.assert_array_equal(two.clicks.index_zyx, expected.index_zyx)
    assert len(expected.of_kind("tumor")) == 10


def test_one_challenge_case(tmp_path: Path, challenge_case: Callable[..., Case]) -> None:
    challenge_case(tmp_path / "alone")
    (found,) = find_cases(tmp_path / "alone")
    assert found.name == "alone"
    assert read_truth_case(found).case.name == "patient"


def test_empty_click_file_is_no_click_file(tmp_path: Path, challenge_case: Callable[..., Case]) -> None:
    case = challenge_case(tmp_path / "case")
    (tmp_path / "case" / "lesion-clicks.json").write_text('{"points": []}')
    (found,) = find_cases(tmp_path / "case")
    expected = challenge_clicks(lesion_of(case), case.pet_suv)
    np.testing.assert_array_equal(read_truth_case(found).clicks.index_zyx, expected.index_zyx)


def test_nnunet_data_set(dataset: Path) -> None:
    (dataset / "clicksTr").mkdir()
    clicks = {"tumor": [[7, 12, 5]], "background": [[1, 2, 3], [2, 2, 2]]}
    (dataset / "clicksTr" / "a_clicks.json").write_text(json.dumps(clicks))
    found = find_cases(dataset)
    assert [each.name for each in found] == ["a", "b", "c_1"]
    whole = read_truth_case(found[0])
    assert whole.clicks.of_kind("tumor").tolist() == [[5, 12, 7]]
    assert len(whole.clicks.of_kind("background")) == 2
    assert whole.truth.sum() == 5 * 10 * 7
    with pytest.raises(InputError, match=r"b_0001\.nii\.gz: must be a regular file"):
        read_truth_case(found[1])
    with pytest.raises(InputError, match=r"labelsTr/c_1\.nii\.gz: must be a regular file"):
        read_truth_case(found[2])


def test_csv(dataset: Path, tmp_path: Path, clicks: ClickSet) -> None:
    save_clicks(clicks, tmp_path / "clicks.json")
    table = tmp_path / "cases.csv"
    folder = dataset.name
    table.write_text(
        "\ufeffname,truth,pet,ct,clicks\n"
        f"first,{folder}/labelsTr/a.nii.gz,{folder}/imagesTr/a_0001.nii.gz,{folder}/imagesTr/a_0000.nii.gz,\n"
        f",{dataset}/labelsTr/b.mha,{folder}/imagesTr/a_0001.nii.gz,{folder}/imagesTr/b_0000.mha,clicks.json\n",
        "utf-8",
    )
    found = find_cases(table)
    assert [each.name for each in found] == ["b_0000", "first"]
    second, first = map(read_truth_case, found)
    np.testing.assert_array_equal(second.clicks.index_zyx, clicks.index_zyx)
    assert len(first.clicks.of_kind("tumor")) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ct,pet\na,b\n", "must have the columns ct, pet, truth"),
        ("ct,pet,truth,age\na,b,c,7\n", "must have the columns .* got ct, pet, truth, age"),
        ("ct,pet,truth\na,b,\nd,e,f\ng,,i\n", "must name ct, pet and truth in each row.* got row 1; row 3"),
        ("ct,pet,truth\na,b,c,d\n", "no more cells than columns"),
        ("ct,pet,truth,name\na,b,c,x\nd,e,f,x\n", "must give each case a name of its own, got x"),
        ("ct,pet,truth,name\na,b,c,../x\n", "must give cases names that can be file names"),
        ("ct,pet,truth\n", "must hold cases"),
        ("", "must have the columns"),
    ],
)
def test_bad_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        find_cases(tmp_path / "cases.csv")


def test_places_without_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must hold cases"):
        find_cases(tmp_path)
    with pytest.raises(InputError, match="nowhere: must be a folder of cases or a CSV"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(InputError, match="must be a regular file"):
        find_cases(tmp_path / "nowhere.csv")


def test_clicks_that_are_named_must_be_there(dataset: Path) -> None:
    (found,) = (each for each in find_cases(dataset) if each.name == "a")
    assert isinstance(found, CaseFiles)
    missing = CaseFiles("a", found.ct, found.pet, found.truth, dataset / "no.json")
    with pytest.raises(InputError, match=r"no\.json: must be a regular file"):
        read_truth_case(missing)


def test_click_outside_is_refused(dataset: Path) -> None:
    (dataset / "clicksTr").mkdir()
    (dataset / "clicksTr" / "a_clicks.json").write_text('{"tumor": [[26, 0, 0]]}')
    with pytest.raises(InputError, match="must lie in the volume of 26 x 31 x 21 voxels"):
        read_truth_case(find_cases(dataset)[0])


def test_truth_on_another_grid_is_refused(dataset: Path, make_case: MakeCase) -> None:
    case = make_case()
    moved = Grid(case.grid.size_xyz, case.grid.spacing_mm, (-40.5, 12.25, 80.0), case.grid.direction)
    write_image(lesion_of(case), moved, dataset / "labelsTr" / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: must lie on the grid of PET"):
        read_truth_case(find_cases(dataset)[0])


@pytest.mark.parametrize("values", [[0, 1, 2], [0, -1], [0.5, 1]])
def test_mask_with_other_values_is_refused(tmp_path: Path, values: list[float]) -> None:
    mask = np.resize(np.array(values, np.float32), (3, 4, 5))
    write_image(mask, Grid((5, 4, 3), (1.0, 2.0, 3.0)), tmp_path / "mask.nrrd")
    with pytest.raises(InputError, match=r"mask\.nrrd: must hold only 0 and 1, got (2|-1|0\.5)$"):
        read_mask(tmp_path / "mask.nrrd")


@pytest.mark.parametrize("name", ["mask.mhd", "mask.hdr", "mask.nhdr", "mask.vtk", "mask.tiff"])
def test_mask_in_any_format(tmp_path: Path, name: str) -> None:
    mask = (np.arange(60).reshape(3, 4, 5) % 7 == 0).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(mask), str(tmp_path / name))
    found, grid = read_mask(tmp_path / name)
    np.testing.assert_array_equal(found, mask)
    assert grid.size_xyz == (5, 4, 3)


def test_text_is_no_mask(tmp_path: Path) -> None:
    (tmp_path / "mask.txt").write_text("no image")
    with pytest.raises(InputError, match=r"mask\.txt: cannot be read"):
        read_mask(tmp_path / "mask.txt")
