"""Click files: both forms, bounds and rounding, and every kind of bad entry."""

import contextlib
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petclick.clicks import KINDS, ClickSet, click_set, load_clicks, save_clicks
from petclick.errors import InputError
from petclick.grid import Grid, resample_affine

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

GRID = Grid((7, 9, 11), (2.0, 3.0, 5.0), (100.0, -50.0, 20.0), (-1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0))


@pytest.fixture
def click_file(tmp_path: Path) -> Path:
    return tmp_path / "lesion-clicks.json"


def platform(*points: object) -> str:
    return json.dumps({"version": {"major": 1, "minor": 0}, "type": "Multiple points", "points": points})


def tumor(*index_xyz: object) -> dict[str, object]:
    return {"point": list(index_xyz), "name": "tumor"}


def refusal(path: Path, text: str | bytes, bad_clicks: str = "error") -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as caught:
        load_clicks(path, GRID, bad_clicks)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message.removeprefix(f"{path}: ")


def assert_clicks(clicks: ClickSet, expected: list[tuple[str, tuple[int, int, int]]]) -> None:
    assert [KINDS[kind] for kind in clicks.kind] == [name for name, _ in expected]
    np.testing.assert_array_equal(clicks.index_zyx, np.reshape([index for _, index in expected], (-1, 3)))
    assert clicks.index_zyx.dtype == clicks.kind.dtype == np.int64
    assert clicks.index_zyx.shape == (len(expected), 3)


def test_platform_form_is_xyz_and_keeps_its_order(click_file: Path) -> None:
    click_file.write_text(
        platform(
            {"point": [1, 2, 3], "name": "background", "type": "Point", "probability": 0.5},
            {"point": [6, 8, 10], "name": "tumor"},
            {"point": [0, 5.0, 1], "name": "background"},
        )
    )
    clicks = load_clicks(click_file, GRID, "error")
    assert_clicks(clicks, [("background", (3, 2, 1)), ("tumor", (10, 8, 6)), ("background", (1, 5, 0))])
    np.testing.assert_array_equal(clicks.of_kind("background"), [[3, 2, 1], [1, 5, 0]])
    assert len(clicks) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"tumor": [[1, 2, 3]], "background": [[6, 8, 10], [0, 0, 0]]},
            [("tumor", (3, 2, 1)), ("background", (10, 8, 6)), ("background", (0, 0, 0))],
        ),
        ({"background": [[6, 8, 10]]}, [("background", (10, 8, 6))]),
        ({"tumor": [[4, 4.25, 5]], "background": []}, [("tumor", (5, 4, 4))]),
        ({"tumor": []}, []),
        ({"points": []}, []),
        ({"points": [tumor(1, 2, 3)]}, [("tumor", (3, 2, 1))]),
        ([], []),
    ],
)
def test_other_forms(
    click_file: Path, content: object, expected: list[tuple[str, tuple[int, int, int]]]
) -> None:
    click_file.write_text(json.dumps(content))
    assert_clicks(load_clicks(click_file, GRID, "error"), expected)


def test_no_file_means_no_clicks(tmp_path: Path) -> None:
    assert_clicks(load_clicks(None, GRID, "error"), [])
    assert_clicks(load_clicks(tmp_path / "absent.json", GRID, "error"), [])


def test_byte_order_mark_is_accepted(click_file: Path) -> None:
    click_file.write_bytes(b"\xef\xbb\xbf" + platform(tumor(1, 2, 3)).encode())
    assert_clicks(load_clicks(click_file, GRID, "error"), [("tumor", (3, 2, 1))])


def test_floats_round_half_up_once_they_are_within_the_faces(click_file: Path) -> None:
    click_file.write_text(
        platform(tumor(-0.5, 0.5, 1.5), tumor(6.4999, 8.4999, 10.4999), tumor(2.5, 3.49, 0))
    )
    expected = [("tumor", (2, 1, 0)), ("tumor", (10, 8, 6)), ("tumor", (0, 3, 3))]
    assert_clicks(load_clicks(click_file, GRID, "error"), expected)


OUTSIDE = [
    (7, 0, 0),
    (0, 9, 0),
    (0, 0, 11),
    (-1, 0, 0),
    (6.5, 0, 0),
    (0, -0.51, 0),
    (10, 8, 6),
    (1e300, 0, 0),
]


@pytest.mark.parametrize("index_xyz", OUTSIDE)
def test_a_click_outside_is_refused(click_file: Path, index_xyz: tuple[float, ...]) -> None:
    message = refusal(click_file, platform(tumor(1, 2, 3), tumor(*index_xyz)))
    rule = "must lie in the volume of 7 x 9 x 11 voxels (x, y, z)"
    assert message == f"1 bad entry: points[1] {rule}, got {list(index_xyz)!r}"


def test_warn_leaves_out_clicks_outside_with_a_line_each(
    click_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside = {"point": [1, 2, 3], "name": "background"}
    click_file.write_text(platform(tumor(7, 0, 0), inside, tumor(6, 8, 10), tumor(0, 0, -0.6)))
    with caplog.at_level(logging.WARNING):
        clicks = load_clicks(click_file, GRID, "warn")
    assert_clicks(clicks, [("background", (3, 2, 1)), ("tumor", (10, 8, 6))])
    rule = "must lie in the volume of 7 x 9 x 11 voxels (x, y, z)"
    assert caplog.messages == [
        f"{click_file}: points[0] {rule}, got [7, 0, 0]: left out",
        f"{click_file}: points[3] {rule}, got [0, 0, -0.6]: left out",
    ]


def test_warn_may_leave_none(click_file: Path) -> None:
    click_file.write_text(json.dumps({"tumor": [[70, 0, 0]], "background": [[0, 90, 0]]}))
    assert_clicks(load_clicks(click_file, GRID, "warn"), [])


def test_every_bad_entry_is_in_one_message(click_file: Path) -> None:
    text = platform(
        {"point": [1, 2, 3], "name": "lesion"},
        tumor(1, 2),
        [1, 2, 3],
        {"point": ["1", True, None]},
        tumor(1, 2, 3),
        tumor(0, 0, 11),
    )
    expected = [
        "points[0].name must be 'tumor' or 'background', got 'lesion'",
        "points[1].point must be three finite numbers [x, y, z], got [1, 2]",
        "points[2] must be an object with 'point' and 'name', got [1, 2, 3]",
        "points[3].name must be 'tumor' or 'background', got None",
        "points[3].point must be three finite numbers [x, y, z], got ['1', True, None]",
        "points[5] must lie in the volume of 7 x 9 x 11 voxels (x, y, z), got [0, 0, 11]",
    ]
    assert refusal(click_file, text) == f"6 bad entries: {'; '.join(expected)}"
    assert refusal(click_file, text, "warn") == f"5 bad entries: {'; '.join(expected[:-1])}"


def test_every_bad_entry_of_the_data_sets_form(click_file: Path) -> None:
    text = json.dumps({"tumor": [[1, 2, 3], 4], "backgroud": [[1, 2, 3]], "background": {"a": 1}})
    assert refusal(click_file, text) == (
        "3 bad entries: tumor[1] must be three finite numbers [x, y, z], got 4; "
        "key must be 'tumor' or 'background', got 'backgroud'; background must be a list, got {'a': 1}"
    )


def test_a_long_list_of_bad_entries_is_cut(click_file: Path) -> None:
    message = refusal(click_file, platform(*[tumor("x" * 500)] * 5000))
    assert message.startswith("5000 bad entries: points[0].point")
    assert "points[19].point" in message
    assert "points[20].point" not in message
    assert message.endswith("; and 4980 more")
    assert len(message) < 3500


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "true", "null", '"1"', "9" * 400]
)
def test_a_coordinate_must_be_a_finite_number(click_file: Path, number: str) -> None:
    for text in (
        f'{{"points": [{{"point": [0, {number}, 0], "name": "tumor"}}]}}',
        f'{{"tumor": [[0, {number}, 0]]}}',
    ):
        assert "must be three finite numbers [x, y, z], got [0, " in refusal(click_file, text, "warn")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be JSON in UTF-8 (Expecting value"),
        ('{"points": [', "must be JSON in UTF-8 ("),
        ('{"points": []} x', "must be JSON in UTF-8 (Extra data"),
        ('{"points": []}\0', "must be JSON in UTF-8 (Extra data"),
        ("\0" * 30, "must be JSON in UTF-8 ("),
        (b'{"points": "\xff"}', "must be JSON in UTF-8 ("),
        ('{"points": []}'.encode("utf-16"), "must be JSON in UTF-8 ("),
        ("[" * 200_000, "must be JSON in UTF-8 (maximum recursion depth"),
        ('{"tumor":' * 200_000, "must be JSON in UTF-8 (maximum recursion depth"),
        ("null", "1 bad entry: must be an object with 'points', or with 'tumor' or 'background', got None"),
        ("3", "1 bad entry: must be an object with 'points', or with 'tumor' or 'background', got 3"),
        ("[[1, 2, 3]]", "1 bad entry: must be an object with 'points', or with"),
        ("{}", "1 bad entry: must be an object with 'points', or with"),
        ('{"tumour": [[1, 2, 3]]}', "1 bad entry: must be an object with 'points', or with"),
        ('{"points": null}', "1 bad entry: points must be a list, got None"),
        ('{"points": {"point": [1, 2, 3]}}', "1 bad entry: points must be a list, got {'point': [1, 2, 3]}"),
        ('{"points": [], "type": "Point"}', "1 bad entry: type must be 'Multiple points', got 'Point'"),
        ('{"points": [], "tumor": []}', "1 bad entry: 'tumor' must not stand beside 'points'"),
        (
            '{"tumor": [[1, 2, 3, 4]]}',
            "1 bad entry: tumor[0] must be three finite numbers [x, y, z], got [1, 2",
        ),
        (
            '{"tumor": [[[1, 2, 3]]]}',
            "1 bad entry: tumor[0] must be three finite numbers [x, y, z], got [[1, 2",
        ),
        (
            '{"tumor": [1, 2, 3]}',
            "3 bad entries: tumor[0] must be three finite numbers [x, y, z], got 1; tumor[1]",
        ),
    ],
)
def test_malformed_files(click_file: Path, text: str | bytes, reason: str) -> None:
    assert refusal(click_file, text, "warn").startswith(reason)


def test_an_integer_of_too_many_digits(click_file: Path) -> None:
    assert "digits" in refusal(click_file, f'{{"tumor": [[0, {"9" * 5000}, 0]]}}')


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (
            '{"tumor": [], "tumor": [[1, 2, 3]]}',
            "must be an object with 'points', or with 'tumor' or 'background'",
        ),
        (
            '{"points": [{"point": [1, 2, 3], "name": "tumor", "name": "tumor"}]}',
            "points[0] must be an object",
        ),
        (
            '{"points": [{"point": {"x": 1, "x": 2}, "name": "tumor"}]}',
            "points[0].point must be three finite",
        ),
    ],
)
def test_a_key_may_not_come_twice(click_file: Path, text: str, where: str) -> None:
    message = refusal(click_file, text)
    assert where in message
    assert message.split(", got ")[1] in {f"an object with {key!r} twice" for key in ("tumor", "name", "x")}


def test_a_deep_value_is_shown_short(click_file: Path) -> None:
    depth = 300
    assert len(refusal(click_file, f'{{"tumor": [{"[" * depth}{"]" * depth}]}}')) < 200


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "dangling"):
        with pytest.raises(InputError, match="must be a regular file"):
            load_clicks(path, GRID, "warn")


@pytest.mark.parametrize("method", ["is_file", "read_bytes"])
def test_no_right_to_read(click_file: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def deny(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    click_file.write_text("{}")
    monkeypatch.setattr(Path, method, deny)
    with pytest.raises(InputError, match=r"lesion-clicks.json: cannot be read \(Permission denied\)$"):
        load_clicks(click_file, GRID, "warn")


def test_scribbles_of_many_points_are_fast(click_file: Path) -> None:
    index_xyz = np.random.default_rng(0).integers(0, GRID.size_xyz, size=(20_000, 3))
    click_file.write_text(platform(*[tumor(*index) for index in index_xyz.tolist()]))
    start = time.perf_counter()
    clicks = load_clicks(click_file, GRID, "error")
    assert time.perf_counter() - start < 5.0
    np.testing.assert_array_equal(clicks.index_zyx, index_xyz[:, ::-1])


voxels_zyx = st.lists(st.tuples(*(st.integers(0, n - 1) for n in GRID.shape_zyx)), max_size=8)


@few
@given(voxels_zyx, voxels_zyx)
def test_saved_clicks_come_back(
    click_file: Path, tumor_zyx: list[tuple[int, ...]], background_zyx: list[tuple[int, ...]]
) -> None:
    save_clicks(click_set(tumor_zyx, background_zyx), click_file)
    clicks = load_clicks(click_file, GRID, "error")
    np.testing.assert_array_equal(clicks.of_kind("tumor"), np.reshape(tumor_zyx, (-1, 3)))
    np.testing.assert_array_equal(clicks.of_kind("background"), np.reshape(background_zyx, (-1, 3)))


def test_saved_form_is_the_platforms(click_file: Path) -> None:
    save_clicks(click_set([[10, 8, 6]], [[3, 2, 1]]), click_file)
    assert json.loads(click_file.read_text()) == {
        "version": {"major": 1, "minor": 0},
        "type": "Multiple points",
        "points": [{"point": [6, 8, 10], "name": "tumor"}, {"point": [1, 2, 3], "name": "background"}],
    }


def test_clicks_mapped_to_another_grid_stay_inside_it() -> None:
    clicks = click_set([[0, 4, 5], [10, 8, 6]], [[3, 0, 1]])
    mapped = clicks.mapped(resample_affine(GRID.shape_zyx, (22, 3, 28)), (22, 3, 28))
    # halves: a voxel twice as fine has its centre between two; a face of the volume stays in it
    np.testing.assert_array_equal(mapped.index_zyx, [[1, 1, 22], [21, 2, 26], [7, 0, 6]])
    np.testing.assert_array_equal(mapped.kind, clicks.kind)


def test_summary_counts_each_kind() -> None:
    assert click_set([[0, 4, 5], [10, 8, 6]], []).summary() == "2 tumor clicks, 0 background clicks"


def test_clicks_that_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\)"):
        save_clicks(click_set([], []), tmp_path / "absent" / "clicks.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["points", "point", "name", "tumor", "background", "type"]), inner)
    ),
    max_leaves=12,
)


@few
@given(json_values)
def test_any_json_gives_clicks_inside_or_an_input_error(click_file: Path, content: object) -> None:
    click_file.write_text(json.dumps(content))
    with contextlib.suppress(InputError):
        assert GRID.contains(load_clicks(click_file, GRID, "error").index_zyx).all()


@few
@given(st.binary(max_size=60))
def test_any_bytes_give_clicks_or_an_input_error(click_file: Path, content: bytes) -> None:
    click_file.write_bytes(content)
    with contextlib.suppress(InputError):
        assert GRID.contains(load_clicks(click_file, GRID, "error").index_zyx).all()
