"""The judge of the local validation must refuse what it is there to refuse."""

from pathlib import Path

import compare_masks
import numpy as np
import pytest
import SimpleITK as sitk

NAME = "images/tumor-lesion-segmentation/case.mha"


def image(array: np.ndarray) -> sitk.Image:
    written = sitk.GetImageFromArray(array)
    written.SetSpacing((2.0, 2.5, 3.0))
    written.SetOrigin((-7.0, 11.0, 31.0))
    written.SetDirection((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    return written


def save(folder: Path, written: sitk.Image, name: str = NAME) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(written, str(folder / name))


@pytest.fixture
def mask() -> np.ndarray:
    array = np.zeros((5, 6, 7), dtype=np.uint8)
    array[1:4, 1:6, 2:6] = 1  # 60 voxels
    return array


@pytest.fixture
def expected(tmp_path: Path, mask: np.ndarray) -> Path:
    save(tmp_path / "expected", image(mask))
    return tmp_path / "expected"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "written").mkdir()
    return tmp_path / "written"


def test_equal_masks_pass(
    expected: Path, written: Path, mask: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    save(written, image(mask))
    assert compare_masks.main(expected, written) == 0
    assert capsys.readouterr().out == "case.mha: Dice 1.0000\n"


@pytest.mark.parametrize(("removed", "code"), [(1, 0), (2, 1)])  # Dice 118 / 119 and 116 / 118
def test_least_dice(expected: Path, written: Path, mask: np.ndarray, removed: int, code: int) -> None:
    mask[1, 1, 2 : 2 + removed] = 0
    save(written, image(mask))
    assert compare_masks.main(expected, written) == code


def changed(mask: np.ndarray, setter: str, value: tuple[float, ...]) -> sitk.Image:
    other = image(mask)
    getattr(other, setter)(value)
    return other


@pytest.mark.parametrize(
    ("setter", "value", "reason"),
    [
        ("SetSpacing", (2.0, 2.5, 3.001), "spacing is"),
        ("SetOrigin", (-7.0, 11.001, 31.0), "origin is"),
        ("SetDirection", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), "direction is"),
    ],
)
def test_other_geometry_is_refused(
    expected: Path,
    written: Path,
    mask: np.ndarray,
    setter: str,
    value: tuple[float, ...],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(written, changed(mask, setter, value))
    assert compare_masks.main(expected, written) == 1
    assert f"{NAME}: {reason}" in capsys.readouterr().err


def test_other_size_type_and_values_are_refused(
    expected: Path, written: Path, mask: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    save(written, image(mask[:, :, 1:]))
    assert compare_masks.main(expected, written) == 1
    save(written, image(mask.astype(np.int16)))
    assert compare_masks.main(expected, written) == 1
    save(written, image(mask * 2))
    assert compare_masks.main(expected, written) == 1
    size, pixels, values = capsys.readouterr().err.splitlines()
    assert size == f"{NAME}: size is (6, 6, 5), not (7, 6, 5)"
    assert pixels == f"{NAME}: pixels are 16-bit signed integer, not 8-bit unsigned integer"
    assert values == f"{NAME}: values are [0, 2], not 0 and 1"


def test_missing_and_further_masks_are_refused(
    expected: Path, written: Path, mask: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    save(written, image(mask), "images/other.mha")
    assert compare_masks.main(expected, written) == 1
    assert capsys.readouterr().err.splitlines() == [f"{NAME}: not written", "images/other.mha: not expected"]


def test_nothing_to_compare_with_is_no_success(written: Path, tmp_path: Path) -> None:
    assert compare_masks.main(tmp_path / "nowhere", written) == 1


def test_two_empty_masks_are_equal(expected: Path, written: Path, mask: np.ndarray) -> None:
    empty = np.zeros_like(mask)
    save(expected, image(empty))
    save(written, image(empty))
    assert compare_masks.main(expected, written) == 0
