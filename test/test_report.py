"""The report: what it says, that it needs nothing else, and that its pictures show what is where."""

import base64
import html
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from petclick.clicks import click_set
from petclick.evaluation.protocol import Step
from petclick.evaluation.report import write_report
from petclick.evaluation.results import Failure, Result, StepResult
from petclick.evaluation.summary import markdown_tables, metrics_json
from petclick.evaluation.views import CaseView, svg_path
from petclick.grid import Grid
from petclick.images import Case

NAN = math.nan
STEP = StepResult(
    **{"case": "a", "fold": "", "method": "network", "protocol": "autopet4", "step": 0},
    **{"tumor_clicks": 0, "background_clicks": 0, "truth_ml": 4.0, "dice": 0.5, "fpv_ml": 2.0, "fnv_ml": 1.0},
    **{"tp": 1, "fp": 1, "fn": 1, "dmm_f1": 0.5, "surface_dice": 0.75, "hd95_mm": 8.0},
    **{"volume_error_ml": -3.0, "tumor_obeyed": NAN, "background_obeyed": NAN},
)
FREE = {"truth_ml": 0.0, "dice": NAN, "fnv_ml": NAN, "dmm_f1": NAN, "surface_dice": NAN, "hd95_mm": NAN}
EVIL = 'b<script>"&'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def steps(**changes: Any) -> list[StepResult]:
    return [replace(STEP, step=number, **changes) for number in range(11)]


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return [
        *steps(case="a", dice=0.75, truth_ml=10.5),
        *steps(case="c10", dice=0.25, truth_ml=9.0),
        *steps(case="c9", dice=0.5, truth_ml=2.0),
        *steps(case=EVIL, fpv_ml=7.0, **FREE),
        *steps(case="a", method="suv4", dice=0.125, truth_ml=10.5),
        Failure("z", "", "network", "autopet4", "z.mha: no <mask>"),
    ]


@pytest.fixture(scope="module")
def page(results: list[Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    views = folder / "views"
    views.mkdir()
    for name in ("a", "c9", "c10", EVIL):
        case, truth = flipped_case()
        view = CaseView(case, truth)
        drawn = [view.step(Step(number, click_set([(6, 2, 3)], []), truth)) for number in (0, 10)]
        (views / f"{name}.json").write_text(json.dumps(view.as_json({"network": drawn})))
    write_report(results, views, folder / "report.html", "Dataset <1>")
    return folder / "report.html"


def flipped_case() -> tuple[Case, npt.NDArray[np.uint8]]:
    """Stored with x to the right, y to anterior and z down; one hot lesion of 2 x 3 x 4 voxels."""
    direction = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0)
    grid = Grid((13, 9, 11), (3.0, 4.0, 5.0), (36.0, 32.0, 50.0), direction)
    truth = np.zeros(grid.shape_zyx, np.uint8)
    truth[6:8, 2:5, 1:5] = 1
    pet = np.full(grid.shape_zyx, 0.5, np.float32) + 9 * truth
    return Case(np.zeros_like(pet), pet.astype(np.float32), grid, "case"), truth


class Links(HTMLParser):
    """What a page refers to, its ids, and how its elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("href", "src", "xlink:href", "data", "action"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_page_needs_no_other_file(page: Path) -> None:
    text = page.read_text("utf-8")
    found = Links(text)
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in found.links)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"@import|url\((?!#)", text)
    assert found.tags.count("script") == 1  # a case's name is text, never markup
    assert "Evaluation of Dataset &lt;1&gt;" in text
    assert "no &lt;mask&gt;" in text
    assert "5 cases, 1 without lesions, 1 not evaluated" in text


def test_worst_case_comes_first(page: Path) -> None:
    text = page.read_text("utf-8")
    names = re.findall(r"<h3>(.*?)</h3>", text)
    assert [name.split("&lt;")[0] for name in names] == ["c10", "c9", "a", "b"]
    rows = re.findall(r'<tr data-method="network"><td data-value="(.*?)">', text)
    assert [name.split("&lt;")[0] for name in rows] == ["c10", "c9", "a", "b"]


def test_summary_has_means_and_marks_the_best(page: Path) -> None:
    text = page.read_text("utf-8")
    last = text[text.index("At the last step") :]
    dice = last[: last.index("</tr>", last.index("<th>Dice"))]
    cells = re.findall(r"<td( class=\"best\")?><b>(.*?)</b><small>(.*?)</small>", dice)
    assert [(bool(best), value) for best, value, _ in cells] == [(True, "0.500"), (False, "0.125")]
    assert cells[1][2] == "0.125 to 0.125"
    low, high = map(float, cells[0][2].split(" to "))
    assert 0.25 <= low < 0.4
    assert 0.6 < high <= 0.75


def test_metrics_json_has_the_platforms_form(results: list[Result]) -> None:
    content = metrics_json(results)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    dice = content["aggregates"]["network"]["dice_last"]
    assert (dice["mean"], dice["n"]) == (pytest.approx(0.5), 3)
    assert content["aggregates"]["network"]["fpv_ml_last"]["mean"] == pytest.approx((2 + 2 + 2 + 7) / 4)
    assert content["aggregates"]["network"]["tumor_obeyed_last"]["mean"] is None
    # over case a, which both have: better in Dice, whose weight is a half; the rest are ties
    assert content["aggregates"]["network"]["rank"] == pytest.approx(0.5 * 1 + 0.5 * 1.5)
    by_case = {(each["case"], each["method"]): each for each in content["results"]}
    assert by_case["c9", "network"]["dice_auc"] == pytest.approx(5)
    assert by_case[EVIL, "network"]["dice_last"] is None
    assert [step["step"] for step in by_case["a", "suv4"]["steps"]] == list(range(11))
    assert by_case["z", "network"]["error"] == "z.mha: no <mask>"


def test_markdown_tables(results: list[Result]) -> None:
    text = markdown_tables(results)
    assert "| network | 10 | 4 | 0.500 | 3.25 | 1.00 | 0.500 |" in text
    assert "| network | 4 |" not in text
    (suv,) = (line for line in text.splitlines() if line.startswith("| suv4 | 0.125 (0.125 to 0.125) |"))
    assert suv.endswith("| - | - | 1.75 |")


def test_page_without_any_scored_case(tmp_path: Path) -> None:
    write_report([Failure("z", "", "network", "autopet4", "why")], tmp_path, tmp_path / "r.html", "x")
    assert "<b>z</b> why" in (tmp_path / "r.html").read_text("utf-8")
    assert markdown_tables([Failure("z", "", "network", "autopet4", "why")]).count("\n") == 4


def unit_edges(path: str) -> set[tuple[float, float]]:
    """Middles of the unit edges of a path of M, h and v."""
    edges = []
    for x, y, letter, n in re.findall(r"M(\d+) (\d+)([hv])(\d+)", path):
        for i in range(int(n)):
            along = i + 0.5
            edges.append((int(x) + along, float(y)) if letter == "h" else (float(x), int(y) + along))
    assert len(edges) == len(set(edges))
    return set(edges)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 7))))
def test_outline_has_each_face_between_inside_and_outside_once(flat: npt.NDArray[np.bool_]) -> None:
    padded = np.pad(flat, 1)
    expected = {
        (column + 0.5, float(row))
        for row in range(flat.shape[0] + 1)
        for column in range(flat.shape[1])
        if padded[row, column + 1] != padded[row + 1, column + 1]
    } | {
        (float(column), row + 0.5)
        for row in range(flat.shape[0])
        for column in range(flat.shape[1] + 1)
        if padded[row + 1, column] != padded[row + 1, column + 1]
    }
    path = svg_path(flat)
    assert unit_edges(path) == expected
    assert re.sub(r"M\d+ \d+[hv]\d+", "", path) == ""


def test_view_is_upright_and_in_its_place() -> None:
    """Stored upside down and turned: on the page the lesion is right (the left of the patient) and low."""
    case, truth = flipped_case()
    view = CaseView(case, truth)
    picture = view.as_json({"network": [view.step(Step(0, click_set([(6, 2, 1)], [(10, 8, 12)]), truth))]})
    assert (picture["columns"], picture["rows"]) == (13, 11)
    assert picture["pixel_mm"] == [3.0, 5.0]
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["jpeg"]))), np.int64)
    assert grey.shape == (11, 13)
    # x grows to the right in the file, so voxels 1 to 4 are columns 8 to 11; z grows downwards, as rows do
    rows, columns = np.nonzero(grey < 128)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 7, 8, 11)
    assert unit_edges(picture["truth"]) == {
        *((column + 0.5, float(row)) for column in range(8, 12) for row in (6, 8)),
        *((float(column), row + 0.5) for column in (8, 12) for row in (6, 7)),
    }
    (step,) = picture["methods"]["network"]
    assert step["outline"] == picture["truth"]
    assert step["tumor"] == [[11.5 * 3, 6.5 * 5]]
    assert step["background"] == [[0.5 * 3, 10.5 * 5]]


def test_air_is_cut_off() -> None:
    case, truth = flipped_case()
    pet = np.where(truth == 1, 5, 0).astype(np.float32)
    coarse = Grid(case.grid.size_xyz, (31.0, 4.0, 31.0), direction=case.grid.direction)
    view = CaseView(Case(case.ct_hu, pet, coarse, "coarse"), truth)
    picture = view.as_json({})
    # 15 mm of margin are less than half a voxel: the lesion of 2 slices and 4 columns is what is left
    assert (picture["rows"], picture["columns"]) == (2, 4)
    assert view.step(Step(0, click_set([(6, 2, 4)], []), truth))["tumor"] == [[15.5, 15.5]]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_click_on_a_heading_sorts(page: Path, tmp_path: Path) -> None:
    """In a real browser: by lesion volume, back, and by name, where c9 comes before c10."""
    clicks = """<script>
const names = () => [...document.querySelectorAll('#cases tbody tr')].filter(row => !row.hidden)
  .map(row => row.cells[0].textContent).join(',');
const heads = [...document.querySelectorAll('#cases th button')];
const told = [names()];
for (const column of [1, 1, 0, 3]) { heads[column].click(); told.push(names()); }
document.querySelector('.methods input[value=suv4]').click();
told.push(names());
document.title = JSON.stringify(told);
</script>"""
    (tmp_path / "clicked.html").write_text(
        page.read_text("utf-8").replace("</body>", clicks + "</body>"), "utf-8"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", (tmp_path / "clicked.html").as_uri()],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=100,
    ).stdout
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    started, up, down, by_name, by_dice, other = json.loads(html.unescape(title[1]))
    assert started == f"c10,c9,a,{EVIL},z"
    assert up == f"{EVIL},c9,c10,a,z"
    assert down == f"a,c10,c9,{EVIL},z"
    assert by_name == f"a,{EVIL},c9,c10,z"
    assert by_dice == f"c10,c9,a,{EVIL},z"  # what is not defined stays at the end
    assert other == "a"
