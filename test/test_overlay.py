import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from petclick import overlay
from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError
from petclick.grid import Grid

GRID = Grid((30, 24, 50), (3.0, 4.0, 5.0), (-40.0, 12.0, 7.0))  # 90 x 96 x 250 mm
NO_CLICKS = click_set([], [])
PANEL_PX = 8 * 130
Pixels = npt.NDArray[np.int64]
Box = tuple[slice, slice]


def empty() -> npt.NDArray[np.uint8]:
    return np.zeros(GRID.shape_zyx, np.uint8)


def draw(
    path: Path,
    mask: npt.NDArray[np.uint8],
    clicks: ClickSet = NO_CLICKS,
    pet: npt.NDArray[np.float32] | None = None,
) -> Pixels:
    """Draw on PET that is black all over, unless given: each panel is then one black box. RGB pixels."""
    if pet is None:
        pet = np.full(GRID.shape_zyx, 50, np.float32)
    overlay.draw_overlay(pet, mask, clicks, GRID, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), np.int64)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> list[Box]:
    """(rows, columns) of the coronal and the sagittal panel, found in a picture of black PET alone."""
    pixels = draw(tmp_path_factory.mktemp("boxes") / "a.png", empty())
    black = pixels.max(axis=2) < 40
    columns = np.flatnonzero(black.mean(axis=0) > 0.5)
    coronal, sagittal = np.split(columns, np.flatnonzero(np.diff(columns) > 5) + 1)
    rows = np.flatnonzero(black[:, coronal].mean(axis=1) > 0.9)
    return [(slice(rows[0], rows[-1] + 1), slice(part[0], part[-1] + 1)) for part in (coronal, sagittal)]


def coloured(pixels: Pixels, colour: str) -> npt.NDArray[np.bool_]:
    return np.asarray(np.abs(pixels - np.multiply(to_rgb(colour), 255)).max(axis=2) < 40)


def fractions(pixels: Pixels, box: Box, colour: str) -> tuple[float, float, float, float]:
    """Where a colour lies in a panel: left, right, bottom and top end, as fractions of width and height."""
    rows, columns = np.nonzero(coloured(pixels[box], colour))
    height, width = pixels[box].shape[:2]
    return (
        columns.min() / width,
        (columns.max() + 1) / width,
        1 - (rows.max() + 1) / height,
        1 - rows.min() / height,
    )


def test_panels_are_to_scale(boxes: list[Box]) -> None:
    (rows, left), (_, right) = boxes
    height, coronal, sagittal = (part.stop - part.start for part in (rows, left, right))
    assert height == pytest.approx(PANEL_PX, abs=5)
    assert coronal / height == pytest.approx(90 / 250, abs=0.01)
    assert sagittal / height == pytest.approx(96 / 250, abs=0.01)


def test_uptake_is_dark_where_it_is(tmp_path: Path, boxes: list[Box]) -> None:
    pet = np.ones(GRID.shape_zyx, np.float32)
    pet[35:43, 3:8, 20:26] = 17  # high, to the front, to the left
    pixels = draw(tmp_path / "a.png", empty(), pet=pet)
    for box, across in zip(boxes, ((20 / 30, 26 / 30), (3 / 24, 8 / 24)), strict=True):
        height, width = (part.stop - part.start for part in box)
        rows, columns = np.nonzero(pixels[box][10:-60, 10:-10].max(axis=2) < 40)  # without frame and letters
        assert ((columns.min() + 10) / width, (columns.max() + 11) / width) == pytest.approx(across, abs=0.02)
        assert ((rows.min() + 10) / height, (rows.max() + 11) / height) == pytest.approx(
            (0.14, 0.3), abs=0.02
        )


def test_outline_surrounds_the_mask_where_it_is(tmp_path: Path, boxes: list[Box]) -> None:
    mask = empty()
    mask[35:43, 3:8, 20:26] = 1  # high, to the front, to the left
    pixels = draw(tmp_path / "a.png", mask)
    coronal, sagittal = boxes
    bottom, top = 35 / 50, 43 / 50
    found = fractions(pixels, coronal, overlay.LESION_COLOUR)
    assert found == pytest.approx((20 / 30, 26 / 30, bottom, top), abs=0.015)
    found = fractions(pixels, sagittal, overlay.LESION_COLOUR)
    assert found == pytest.approx((3 / 24, 8 / 24, bottom, top), abs=0.015)
    rows, columns = np.nonzero(coloured(pixels[coronal], overlay.LESION_COLOUR))
    inside = pixels[coronal][rows.min() + 5 : rows.max() - 4, columns.min() + 5 : columns.max() - 4]
    assert inside.size > 0
    assert inside.max() < 40  # an outline, nothing is filled


def test_outline_is_that_of_the_projection(tmp_path: Path, boxes: list[Box]) -> None:
    mask = empty()
    mask[10, 5, 7] = mask[10, 20, 7] = 1  # behind each other from the front, apart from the side
    mask[30, 12, 22] = 1
    pixels = draw(tmp_path / "a.png", mask)
    counts = [np.count_nonzero(coloured(pixels[box], overlay.LESION_COLOUR)) for box in boxes]
    assert counts[1] / counts[0] == pytest.approx(1.5 * (4 + 5) / (3 + 5), rel=0.15)  # boxes times perimeters


def test_outline_closes_at_the_border(tmp_path: Path, boxes: list[Box]) -> None:
    mask = empty()
    mask[:] = 1
    pixels = draw(tmp_path / "a.png", mask)
    for rows, columns in boxes:
        with_frame = slice(rows.start - 3, rows.stop + 3), slice(columns.start - 3, columns.stop + 3)
        found = fractions(pixels, with_frame, overlay.LESION_COLOUR)
        assert found == pytest.approx((0, 1, 0, 1), abs=0.01)


@pytest.mark.parametrize("n", [1, 400])
def test_clicks_have_a_colour_for_each_kind(tmp_path: Path, boxes: list[Box], n: int) -> None:
    clicks = click_set([(40, 4, 25)] * n, [(8, 18, 6)])
    pixels = draw(tmp_path / "a.png", empty(), clicks)
    expected = {"tumor": (25.5 / 30, 4.5 / 24, 40.5 / 50), "background": (6.5 / 30, 18.5 / 24, 8.5 / 50)}
    for kind, (across_coronal, across_sagittal, up) in expected.items():
        colour = overlay.CLICK_STYLE[kind][2]
        for box, across in zip(boxes, (across_coronal, across_sagittal), strict=True):
            left, right, bottom, top = fractions(pixels, box, colour)
            assert (left + right) / 2 == pytest.approx(across, abs=0.01)
            assert (bottom + top) / 2 == pytest.approx(up, abs=0.01)
            assert right - left < 0.1
        below = pixels[boxes[0][0].stop :]
        assert coloured(below, colour).any()  # the legend


def test_air_is_white_and_cut_off_unless_a_lesion_or_click_lies_there(tmp_path: Path) -> None:
    pet = np.zeros(GRID.shape_zyx, np.float32)
    pet[10:40, 8:16, 8:20] = 17  # 150 x 32 x 36 mm; half of it is just black
    mask = empty()
    mask[0, 23, 0] = 1
    near = draw(tmp_path / "a.png", empty(), click_set([(15, 9, 17)], []), pet)
    far = draw(tmp_path / "b.png", mask, click_set([(15, 9, 17)], [(49, 0, 29)]), pet)
    for pixels, shown_mm in ((near, 190), (far, 250)):
        coronal = pixels[:, : pixels.shape[1] // 2]
        black_rows = np.flatnonzero((coronal.max(axis=2) < 40).sum(axis=1) > 120)
        assert np.ptp(black_rows) == pytest.approx(PANEL_PX * 150 / shown_mm, rel=0.03)
        click_rows = np.nonzero(coloured(coronal[: black_rows[-1]], overlay.CLICK_STYLE["tumor"][2]))[0]
        up = (black_rows[-1] - click_rows.mean()) / np.ptp(black_rows)
        assert up == pytest.approx((15.5 - 10) / 30, abs=0.02)  # clicks move with the cut
        assert coronal[black_rows[0] - 40 : black_rows[0] - 25, 60:].mean() > 250


def test_the_title_tells_the_volume() -> None:
    mask = empty()
    mask[10:20, 5:10, 3:9] = 1
    figure = overlay._figure(np.ones(GRID.shape_zyx, np.float32), mask, click_set([(1, 2, 3)], []), GRID)
    texts = [text.get_text() for text in figure.texts]
    assert "Lesion volume 18.0 ml" in texts  # 300 voxels of 0.06 ml
    assert any("SUV 0 to 10" in text for text in texts)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["lesions", "tumour clicks (1)", "background clicks (0)"]


def test_a_blank_case_is_drawn(tmp_path: Path) -> None:
    pixels = draw(tmp_path / "a.png", empty(), pet=np.zeros(GRID.shape_zyx, np.float32))
    assert pixels.shape[0] > 600


def test_an_older_picture_is_replaced_and_nothing_else_remains(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    draw(path, empty())
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_a_failed_write_leaves_the_old_picture_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    write = Path.write_bytes

    def full(file: Path, content: bytes) -> int:
        if failing == "write_bytes":
            write(file, content[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, full)
        with pytest.raises(InputError, match=r"a\.png: the overlay cannot be written, got No space left"):
            draw(path, empty())
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("name", "reason"), [("no/a.png", "No such file"), ("b/a.png", "Not a directory")])
def test_a_bad_folder_is_named(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "b").write_text("a file")
    with pytest.raises(InputError, match=rf"{name}: the overlay cannot be written, got {reason}"):
        draw(tmp_path / name, empty())


def test_start_up_does_not_import_matplotlib() -> None:
    code = "import sys, petclick.overlay; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
