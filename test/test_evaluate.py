"""The evaluation's loop: by an analytic predictor and by baselines, resumed, killed, with broken cases."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from petclick.__main__ import main
from petclick.clicks import ClickSet, click_set, save_clicks
from petclick.errors import InputError, PetclickError
from petclick.evaluation.cases import find_cases
from petclick.evaluation.evaluate import evaluate, evaluate_and_report, raise_if_failed, read_splits
from petclick.evaluation.protocol import PROTOCOL_STEPS
from petclick.evaluation.results import Failure, StepResult, append_results, read_results
from petclick.evaluation.workers import Network, Run
from petclick.grid import Grid
from petclick.images import Case, read_image, write_image

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (9, 14, 19)
GRID = Grid((19, 14, 9), (3.0, 3.5, 5.0), (-20.0, 5.0, 30.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
RADIUS_VOX = 2.0
Mask = npt.NDArray[np.uint8]


def ball(centre: tuple[int, int, int], radius: float = RADIUS_VOX) -> Mask:
    squared = sum((axis - c) ** 2 for axis, c in zip(np.ogrid[:9, :14, :19], centre, strict=True))
    return (squared <= radius**2).astype(np.uint8)


def write_set(folder: Path, n_cases: int = 3, clicks: int = 3) -> Path:
    """Challenge cases c0, c1, …: as many hot balls as clicks, each clicked in its centre."""
    for number in range(n_cases):
        case = folder / f"c{number}"
        centres = [(4, 3 + number % 4, 3), (4, 10, 9), (5, 3, 15)][:clicks]
        truth = np.max([ball(centre) for centre in centres], axis=0)
        rng = np.random.default_rng(number)
        pet = (1 + 9 * truth + rng.random(SHAPE)).astype(np.float32)
        for kind, array in (("images/ct", 0 * pet), ("images/pet", pet), ("truth", truth)):
            (case / kind).mkdir(parents=True)
            write_image(array, GRID, case / kind / "p.mha")
        save_clicks(click_set(centres, [(1, 1, x) for x in (1, 2, 3)]), case / "lesion-clicks.json")
    return folder


@dataclass
class Analytic:
    """Stands for the model and the predictor: a ball around each tumour click; notes what it is asked."""

    log: list[tuple[str, object]] = field(default_factory=list)
    refuse: str = ""

    def load_model(self, folder: Path, folds: tuple[str, ...] | None = None) -> SimpleNamespace:
        names = folds or ("0", "1")
        return SimpleNamespace(
            folds=folds, checkpoints=tuple(folder / f"fold_{name}" / "weights" for name in names)
        )

    def make(self, model: SimpleNamespace, settings: object) -> "Analytic":
        self.log.append(("load", model.folds))
        return self

    def set_case(self, case: Case) -> None:
        if self.refuse and self.refuse in str(case.pet_suv[0, 0, 0]):
            raise PetclickError("the network's output is not finite")
        self.log.append(("case", float(case.pet_suv.sum())))

    def predict(self, clicks: ClickSet) -> Mask:
        self.log.append(("predict", len(clicks)))
        mask = np.zeros(SHAPE, bool)
        mask[tuple(clicks.of_kind("tumor").T)] = True
        inside = ndimage.distance_transform_edt(~mask) <= RADIUS_VOX if mask.any() else mask
        return np.asarray(inside, np.uint8)


@pytest.fixture
def analytic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Analytic:
    """In place of the modules that need PyTorch; tmp_path/model is its model folder."""
    predictor = Analytic()
    device = SimpleNamespace(choose_device=lambda name: name, choose_precision=lambda name, device: name)
    modules = {
        "model": SimpleNamespace(load_model=predictor.load_model),
        "predictor": SimpleNamespace(Predictor=predictor.make, Settings=lambda *flags: flags),
        "device": device,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"petclick.{name}", module)
    for fold in "01":
        (tmp_path / "model" / f"fold_{fold}").mkdir(parents=True)
        (tmp_path / "model" / f"fold_{fold}" / "weights").write_text(f"weights {fold}")
    (tmp_path / "model" / "guidance.json").write_text("{}")
    return predictor


def make_run(tmp_path: Path, **changes: object) -> Run:
    settings: dict[str, object] = {
        "out": tmp_path / "out",
        "protocol": "autopet4",
        "steps": PROTOCOL_STEPS["autopet4"],
        "methods": ("network",),
        "network": Network(tmp_path / "model"),
        "progress": False,
    }
    return Run(**settings | changes)  # type: ignore[arg-type]


def baseline_run(tmp_path: Path, **changes: object) -> Run:
    return make_run(tmp_path, **{"methods": ("growing41",), "network": None} | changes)


def asked(predictor: Analytic, what: str) -> list[object]:
    return [value for name, value in predictor.log if name == what]


def scored(results: object) -> list[StepResult]:
    return [each for each in results if isinstance(each, StepResult)]  # type: ignore[attr-defined]


def test_each_step_is_scored_and_each_case_set_once(tmp_path: Path, analytic: Analytic) -> None:
    cases = find_cases(write_set(tmp_path / "cases"))
    results = scored(evaluate(make_run(tmp_path), cases))
    assert [(each.case, each.step) for each in results] == [
        (case, step) for case in ("c0", "c1", "c2") for step in range(11)
    ]
    assert len(asked(analytic, "case")) == 3
    assert asked(analytic, "load") == [None]
    assert asked(analytic, "predict") == [0, 2, 4, 6] * 3  # clicks run out after three of each kind
    one = {each.step: each for each in results if each.case == "c1"}
    ml = GRID.voxel_ml
    lesion = int(ball((4, 10, 9)).sum())
    assert (one[0].dice, one[0].fnv_ml, one[0].tumor_clicks) == (0, pytest.approx(3 * lesion * ml), 0)
    assert np.isnan(one[0].tumor_obeyed)
    assert one[1].dice == pytest.approx(2 / 4)  # one of three equal lesions
    assert (one[1].tp, one[1].fp, one[1].fn) == (1, 0, 2)
    assert one[1].volume_error_ml == pytest.approx(-2 * lesion * ml)
    assert (one[3].dice, one[3].surface_dice, one[3].hd95_mm) == (1, 1, 0)
    assert (one[3].tumor_obeyed, one[3].background_obeyed) == (1, 1)
    assert (one[10].tumor_clicks, one[10].background_clicks) == (3, 3)
    assert one[2].truth_ml == pytest.approx(3 * lesion * ml)


def test_obeyed_is_the_share_of_clicks_that_the_mask_agrees_with(tmp_path: Path) -> None:
    write_set(tmp_path / "cases", n_cases=1)
    clicks = click_set(
        [(4, 3, 3), (0, 0, 18)], [(1, 1, 1), (4, 10, 9), (1, 1, 3)]
    )  # one of each kind is wrong
    save_clicks(clicks, tmp_path / "cases" / "c0" / "lesion-clicks.json")
    run = baseline_run(tmp_path, methods=("suv4",), steps=(0, 1, 3))
    shares = [
        (each.tumor_obeyed, each.background_obeyed)
        for each in scored(evaluate(run, find_cases(tmp_path / "cases")))
    ]
    np.testing.assert_array_equal(shares, [(np.nan, np.nan), (1, 1), (0.5, 2 / 3)])


def test_cross_validation_takes_the_fold_that_has_not_seen_a_case(tmp_path: Path, analytic: Analytic) -> None:
    cases = find_cases(write_set(tmp_path / "cases"))
    splits = [{"train": ["c1"], "val": ["c0", "c2"]}, {"train": ["c0", "c2"], "val": ["c1", "elsewhere"]}]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    fold_of = read_splits(tmp_path / "splits.json")
    assert fold_of == {"c0": "0", "c2": "0", "c1": "1", "elsewhere": "1"}
    results = evaluate(make_run(tmp_path, steps=(0, 1), fold_of=fold_of), cases)
    assert [(each.case, each.fold) for each in results[::2]] == [("c0", "0"), ("c2", "0"), ("c1", "1")]
    assert asked(analytic, "load") == [("0",), ("1",)]
    assert [name for name, _ in analytic.log].index("load", 1) > 4  # the second model comes after two cases


def test_cases_that_no_fold_holds_out_are_left_out(
    tmp_path: Path, analytic: Analytic, caplog: pytest.LogCaptureFixture
) -> None:
    cases = find_cases(write_set(tmp_path / "cases"))
    results = evaluate(make_run(tmp_path, steps=(0,), fold_of={"c1": "1"}), cases)
    assert [each.case for each in results] == ["c1"]
    assert "2 cases are held out by no fold, and left out: c0; c2" in caplog.text
    with pytest.raises(InputError, match="the folds must hold out cases that are there"):
        evaluate(make_run(tmp_path, out=tmp_path / "other", fold_of={"x": "0"}), cases)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must be a list"),
        ('[{"train": []}]', "must be a list"),
        ('[{"val": [1]}]', "must be a list"),
        ('[{"val": ["a"]}, {"val": ["b", "a"]}]', "must have each case in one fold's 'val' only, got a"),
    ],
)
def test_bad_splits_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_splits(tmp_path / "splits.json")


def test_broken_cases_are_reported_and_the_rest_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "cases", n_cases=5)
    (folder / "c0" / "truth" / "p.mha").unlink()
    pet = folder / "c1" / "images" / "pet" / "p.mha"
    pet.write_bytes(pet.read_bytes()[:-200])
    save_clicks(click_set([(4, 3, 3)], [(0, 0, 19)]), folder / "c3" / "lesion-clicks.json")
    arguments = ["evaluate", str(folder), "--out", str(tmp_path / "out"), "--method", "growing41,suv2.5"]
    with pytest.raises(PetclickError, match=r"^3 of 5 cases failed: c0, c1, c3$") as failure:
        main(arguments)
    assert failure.value.exit_code == 1
    results = read_results(tmp_path / "out" / "metrics.csv")
    failures = {(each.case, each.method): each.error for each in results if isinstance(each, Failure)}
    assert set(failures) == {
        (case, method) for case in ("c0", "c1", "c3") for method in ("growing41", "suv2.5")
    }
    assert "truth/p.mha: must be a regular file" in failures["c0", "growing41"]
    assert "truncated or damaged" in failures["c1", "suv2.5"]
    assert "must lie in the volume of 19 x 14 x 9 voxels" in failures["c3", "growing41"]
    assert {each.case for each in scored(results)} == {"c2", "c4"}
    assert caplog.text.count("c3: ") == 1
    aggregates = json.loads((tmp_path / "out" / "metrics.json").read_text())["aggregates"]
    assert aggregates["growing41"]["cases"] == 2
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "truth/p.mha: must be a regular file" in page
    assert "| suv2.5 | 10 | 2 |" in capsys.readouterr().out
    # put right, the failed ones are tried again, and only those
    before = (tmp_path / "out" / "views" / "c2.json").stat().st_mtime_ns
    for case in ("c0", "c1", "c3"):
        (folder / case).rename(folder / f"bad-{case}")
        write_set(tmp_path / "fresh", n_cases=4)
        (tmp_path / "fresh" / case).rename(folder / case)
        (tmp_path / "fresh").rename(tmp_path / f"fresh-{case}")
        (folder / f"bad-{case}").rename(tmp_path / f"bad-{case}")
    main(arguments)
    assert not [each for each in read_results(tmp_path / "out" / "metrics.csv") if isinstance(each, Failure)]
    assert (tmp_path / "out" / "views" / "c2.json").stat().st_mtime_ns == before


def test_a_method_that_fails_leaves_the_others(tmp_path: Path, analytic: Analytic) -> None:
    cases = find_cases(write_set(tmp_path / "cases", n_cases=2))
    pet, _ = read_image(tmp_path / "cases" / "c1" / "images" / "pet" / "p.mha")
    analytic.refuse = str(pet[0, 0, 0])
    results = evaluate(make_run(tmp_path, methods=("network", "suv4"), steps=(0, 1)), cases)
    assert [(each.case, each.method, isinstance(each, Failure)) for each in results] == [
        *[("c0", "network", False)] * 2,
        *[("c0", "suv4", False)] * 2,
        ("c1", "network", True),
        *[("c1", "suv4", False)] * 2,
    ]
    with pytest.raises(PetclickError, match="1 of 2 cases failed: c1"):
        raise_if_failed(results)


def test_resumes_after_a_torn_row_and_repeats_nothing(tmp_path: Path, analytic: Analytic) -> None:
    cases = find_cases(write_set(tmp_path / "cases"))
    run = make_run(tmp_path)
    evaluate(run, cases)
    file = run.out / "metrics.csv"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (
        b"".join(lines[:13])[:-7],  # torn in the second case's first row
        b"".join(lines[:20]),  # the second case lacks steps
        b"".join([lines[0], *lines[23:], *lines[12:15]]),  # the third is there, in another order
        b"",
    ):
        file.write_bytes(kept)
        done = 0 if not kept else 1
        analytic.log.clear()
        evaluate(run, cases)
        assert file.read_bytes() == whole
        assert len(asked(analytic, "case")) == 3 - done
    analytic.log.clear()
    evaluate(run, cases)
    assert analytic.log == []
    assert not [*run.out.rglob("*.part")]


def test_results_of_other_settings_are_not_mixed(tmp_path: Path, analytic: Analytic) -> None:
    cases = find_cases(write_set(tmp_path / "cases", n_cases=1))
    run = make_run(tmp_path, steps=(0, 1))
    evaluate(run, cases)
    changes: list[tuple[dict[str, object], str]] = [
        ({"steps": (0, 2)}, "steps"),
        ({"protocol": "autopet5"}, "protocol"),
        ({"network": Network(tmp_path / "model", ("1",))}, "folds"),
        ({"network": Network(tmp_path / "model", mirror_axes=(0,))}, "mirror axes"),
        ({"fold_of": {"c0": "1"}}, "cross-validated; folds"),
    ]
    for change, what in changes:
        changed = make_run(tmp_path, **{"steps": (0, 1)} | change)
        with pytest.raises(InputError, match=f"out: holds results of a run with other .* for {what}"):
            evaluate(changed, cases)
    (tmp_path / "model" / "guidance.json").write_text('{"radius_vox": 3}')
    with pytest.raises(InputError, match="another value for model"):
        evaluate(run, cases)


def test_methods_can_be_added_later(tmp_path: Path) -> None:
    cases = find_cases(write_set(tmp_path / "cases", n_cases=2))
    together = evaluate(baseline_run(tmp_path, out=tmp_path / "a", methods=("growing41", "suv4")), cases)
    evaluate(baseline_run(tmp_path, methods=("suv4",)), cases)
    assert str(evaluate(baseline_run(tmp_path), cases)) == str(together)
    for case in ("c0", "c1"):
        views = [json.loads((tmp_path / out / "views" / f"{case}.json").read_text()) for out in ("a", "out")]
        assert views[0] == views[1]
        assert [step["step"] for step in views[0]["methods"]["suv4"]] == [0, 10]


def test_masks_are_kept_on_demand(tmp_path: Path) -> None:
    cases = find_cases(write_set(tmp_path / "cases", n_cases=1))
    evaluate(baseline_run(tmp_path, masks=True, steps=(0, 3)), cases)
    folder = tmp_path / "out" / "masks" / "c0" / "growing41"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00.mha", "step-03.mha"]
    mask, grid = read_image(folder / "step-03.mha")
    truth, _ = read_image(tmp_path / "cases" / "c0" / "truth" / "p.mha")
    np.testing.assert_array_equal(mask, truth)
    assert grid.matches(GRID)


def test_autopet5_draws_on_the_last_error(tmp_path: Path, analytic: Analytic) -> None:
    cases = find_cases(write_set(tmp_path / "cases", n_cases=1))
    run = make_run(tmp_path, protocol="autopet5", steps=PROTOCOL_STEPS["autopet5"])
    results = scored(evaluate_and_report(run, cases, "title"))
    assert [each.step for each in results] == list(range(6))
    assert (results[0].tumor_clicks, results[0].background_clicks) == (0, 0)
    assert results[1].tumor_clicks > 0
    assert all(one.tumor_clicks <= two.tumor_clicks for one, two in pairwise(results))
    assert results[0].dice == 0 < results[1].dice
    assert results[-1].tumor_obeyed == 1
    assert results[-1].background_clicks > 0  # balls around whole strokes reach too far


def test_flags_reach_the_run(tmp_path: Path, analytic: Analytic, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_set(tmp_path / "cases", n_cases=2)
    (tmp_path / "splits.json").write_text('[{"val": ["c0"]}, {"val": ["c1"]}]')
    main(
        [
            *("evaluate", str(folder), "--out", str(tmp_path / "out"), "--model", str(tmp_path / "model")),
            *("--cross-validated", str(tmp_path / "splits.json"), "--folds", "1", "--steps", "3,0"),
            *("--method", "suv4,network", "--masks"),
        ]
    )
    rows = read_results(tmp_path / "out" / "metrics.csv")
    assert {(each.case, each.fold, each.method) for each in rows} == {
        ("c1", "1", "network"),
        ("c1", "1", "suv4"),
    }
    assert (tmp_path / "out" / "masks" / "c1" / "network" / "step-03.mha").is_file()
    assert "| network | 3 | 1 | 1.000 |" in capsys.readouterr().out
    with pytest.raises(InputError, match="--steps: must be among 0 to 5, got 0, 7"):
        main(["evaluate", str(folder), "--protocol", "autopet5", "--steps", "0,7"])


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def start(cases: Path, out: Path, *flags: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "petclick", "evaluate", str(cases), "--out", str(out), *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_killed_in_the_middle_and_started_again(tmp_path: Path) -> None:
    """Kill -9 after the first rows: the next run keeps them, and ends with the same file."""
    cases = write_set(tmp_path / "cases", n_cases=12)
    flags = ("--method", "growing41,growing50,suv2.5,suv4")
    run = baseline_run(tmp_path, out=tmp_path / "whole", methods=("growing41", "growing50", "suv2.5", "suv4"))
    evaluate(run, find_cases(cases))
    out = tmp_path / "out"
    file = out / "metrics.csv"
    process = start(cases, out, *flags)
    wait_for(lambda: file.is_file() and file.read_bytes().count(b"\n") > 2 * 44)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = {each.case for each in read_results(file)}
    assert 2 <= len(done) < 12
    views = {case: (out / "views" / f"{case}.json").stat().st_mtime_ns for case in done}
    again = start(cases, out, *flags)
    again.communicate()
    assert again.returncode == 0
    assert file.read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    assert views == {case: (out / "views" / f"{case}.json").stat().st_mtime_ns for case in done}


def test_processes_give_the_same_and_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    cases = write_set(tmp_path / "cases", n_cases=6)
    evaluate(baseline_run(tmp_path, out=tmp_path / "whole"), find_cases(cases))
    file = tmp_path / "out" / "metrics.csv"
    process = start(cases, tmp_path / "out", "--method", "growing41", "--jobs", "2")
    wait_for(lambda: file.is_file() and file.read_bytes().count(b"\n") > 11)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = workers.read_text().split() if workers.is_file() else []
    process.kill()
    process.communicate()
    wait_for(lambda: not any(is_running(int(child)) for child in children))
    again = start(cases, tmp_path / "out", "--method", "growing41", "--jobs", "2")
    again.communicate()
    assert again.returncode == 0
    assert file.read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"  # a zombie has ended, and waits for whoever adopted it


def test_a_file_of_something_else_is_not_taken_for_results(tmp_path: Path) -> None:
    cases = find_cases(write_set(tmp_path / "cases", n_cases=1))
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.csv").write_text("case,dice\nc0,1\n")
    with pytest.raises(InputError, match=r"metrics\.csv: must have the columns"):
        evaluate(baseline_run(tmp_path), cases)
    assert (out / "metrics.csv").read_text() == "case,dice\nc0,1\n"


def test_rows_keep_what_they_hold(tmp_path: Path) -> None:
    rows = [
        StepResult(
            *("a, b", "3", "network", "autopet4", 1, 1, 0, 0.1, 1 / 3, 1e-300, float("nan"), 1, 2, 3, 0.5),
            *(0.25, float("nan"), -7.5, 1.0, float("nan")),
        ),
        Failure("x", "", "suv4", "autopet4", 'f, "g": must be, got \'"\''),
    ]
    append_results(tmp_path / "metrics.csv", rows[:1])
    append_results(tmp_path / "metrics.csv", rows[1:])
    assert str(read_results(tmp_path / "metrics.csv")) == str(rows)
