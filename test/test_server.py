"""The `invoke` API: in process with a test client, and once as a process of its own."""

import contextlib
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from petclick import cli, program
from petclick.clicks import ClickSet, click_set
from petclick.errors import InputError
from petclick.grid import Grid
from petclick.images import Case
from petclick.job import digest
from petclick.predictor import Predictor
from petclick.server import Service, make_app, serve

ROOT = Path(__file__).resolve().parents[1]
MASKS = "images/tumor-lesion-segmentation"
SHAPE = (16, 24, 20)
"""One tile of the fixtures' network."""

MakeModel = Callable[..., Path]
MakeCase = Callable[..., Case]
WriteCase = Callable[..., Path]
Put = Callable[..., Path]
Run = Callable[[], npt.NDArray[np.uint8]]


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("PETCLICK_")]:
        monkeypatch.delenv(name)
    logger = logging.getLogger("petclick")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    level = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def arguments(make_model: MakeModel, tmp_path: Path) -> list[str]:
    """A model, folders that a job's files are put into, and what makes one tile of a case."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    folders = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    fast = ["--device", "cpu", "--precision", "fp32", "--mirror-axes", "none", "--step-size", "0.2"]
    return [*folders, "--model", str(make_model()), *fast, "--quiet"]


@pytest.fixture
def options(arguments: list[str]) -> Namespace:
    return cli.parse(arguments, {})


@pytest.fixture
def put(write_case: WriteCase, tmp_path: Path) -> Put:
    """Puts a job's files where the last one's were, and empties the output folder, as the platform does."""

    def put(case: Case, clicks: ClickSet | None = None) -> Path:
        for folder in (tmp_path / "in", tmp_path / "out"):
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        return write_case(tmp_path / "in", case, clicks)

    return put


@pytest.fixture
def run_alone(arguments: list[str], tmp_path: Path) -> Run:
    """What the command line makes of the input folder as it is, beside the server's own output."""

    def run() -> npt.NDArray[np.uint8]:
        output = tmp_path / f"alone-{len(list(tmp_path.iterdir()))}"
        cli.main([*arguments, "--output", str(output)])
        return only_mask(output)

    return run


@pytest.fixture
def client(options: Namespace) -> Iterator[TestClient]:
    with client_of(loaded(options)) as client:
        yield client


def loaded(options: Namespace) -> Service:
    service = Service(options)
    service.load()
    return service


@contextlib.contextmanager
def client_of(service: Service) -> Iterator[TestClient]:
    with ThreadPoolExecutor(1) as worker, TestClient(make_app(service, worker)) as client:
        client.follow_redirects = False
        yield client


def answer(service: Service, since: float) -> JSONResponse:
    answered: Future[JSONResponse] = Future()
    service.answer(since, answered)
    return answered.result(30)


def only_mask(output: Path) -> npt.NDArray[np.uint8]:
    (path,) = files_below(output)
    assert path.parent == output / MASKS
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_health_is_bad_until_the_model_is_loaded(
    options: Namespace, put: Put, make_case: MakeCase, tmp_path: Path
) -> None:
    put(make_case(SHAPE))
    service = Service(options)
    with client_of(service) as client:
        assert client.get("/health").status_code == 503
        early = client.post("/invoke")
        assert (early.status_code, files_below(tmp_path / "out")) == (503, [])
        service.load()
        assert client.get("/health").status_code == 200
        assert client.get("/health/").status_code == 404, "not redirected"
        assert client.get("/docs").status_code == 404
        assert client.get("/invoke").status_code == 405


def test_several_jobs_give_what_the_command_line_gives(
    client: TestClient, put: Put, run_alone: Run, make_case: MakeCase, tmp_path: Path
) -> None:
    cases = [make_case(SHAPE), make_case((17, 19, 26), (3.0, 2.5, 2.0), seed=8), make_case(SHAPE)]
    all_clicks = [click_set([[10, 20, 9]], []), None, click_set([[10, 20, 9], [3, 4, 5]], [[5, 8, 2]])]
    masks = []
    for case, clicks in zip(cases, all_clicks, strict=True):
        put(case, clicks)
        response = client.post("/invoke")
        assert (response.status_code, response.json()) == (201, {"detail": "done"})
        masks.append(only_mask(tmp_path / "out"))
        np.testing.assert_array_equal(masks[-1], run_alone())
    assert 0 < masks[0].mean() < 1
    assert not np.array_equal(masks[0], masks[2]), "clicks matter"


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cases that a predictor was given."""
    names: list[str] = []
    set_case = Predictor.set_case

    def noted(predictor: Predictor, case: Case) -> None:
        names.append(case.name)
        set_case(predictor, case)

    monkeypatch.setattr(Predictor, "set_case", noted)
    return names


def test_the_case_last_seen_stays_warm(
    client: TestClient, put: Put, run_alone: Run, make_case: MakeCase, prepared: list[str], tmp_path: Path
) -> None:
    case = make_case(SHAPE)
    put(replace(case, name="first"), click_set([[10, 20, 9]], []))
    client.post("/invoke")
    put(replace(case, name="second"), click_set([[10, 20, 9], [3, 4, 5]], [[5, 8, 2]]))
    assert client.post("/invoke").status_code == 201
    assert prepared == ["first"]
    assert [path.name for path in files_below(tmp_path / "out")] == ["second.mha"]
    np.testing.assert_array_equal(only_mask(tmp_path / "out"), run_alone())


def test_the_digest_stands_for_voxels_and_grid(make_case: MakeCase) -> None:
    case = make_case(SHAPE)
    same = Case(case.ct_hu.copy(), case.pet_suv.copy(), Grid(**vars(make_case(SHAPE).grid)), "another name")
    _ = same.grid.index_zyx_to_mm  # computed, and kept by the grid
    assert digest(same) == digest(case)
    ct, pet = case.ct_hu.copy(), case.pet_suv.copy()
    shape = SHAPE[::-1]
    ct[3, 2, 1] += 1
    pet[-1, -1, -1] += 1
    grid = case.grid
    others = [
        replace(case, ct_hu=ct),
        replace(case, pet_suv=pet),
        replace(case, ct_hu=case.pet_suv, pet_suv=case.ct_hu),
        replace(case, grid=replace(grid, origin_mm=(-40.5, 12.25, 77.001))),
        replace(case, grid=replace(grid, spacing_mm=(2.5, 2.0, 3.001))),
        replace(case, grid=replace(grid, direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))),
        Case(case.ct_hu.reshape(shape), case.pet_suv.reshape(shape), replace(grid, size_xyz=SHAPE), "turned"),
    ]
    assert len({digest(case), *map(digest, others)}) == len(others) + 1


def last_line_of_the_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        program.run(lambda: cli.main(arguments))
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["lesion-clicks.json", "images/ct/patient.mha", "images/ct/\udcff.mha"])
def test_bad_input_between_good_jobs(
    name: str,
    client: TestClient,
    put: Put,
    arguments: list[str],
    make_case: MakeCase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = make_case(SHAPE), make_case(SHAPE, seed=8)
    put(first)
    client.post("/invoke")
    mask = only_mask(tmp_path / "out")
    put(second)
    (tmp_path / "in" / name).write_bytes(b"{")
    response = client.post("/invoke")
    assert response.status_code == 422
    assert files_below(tmp_path / "out") == []
    told = capsys.readouterr().err.splitlines()[-1]
    assert response.json() == {"detail": told}
    assert told.startswith("error: ")
    assert told == last_line_of_the_command(arguments, capsys)

    put(first)
    assert client.post("/invoke").status_code == 201
    np.testing.assert_array_equal(only_mask(tmp_path / "out"), mask)


def test_a_failure_of_our_own(
    client: TestClient,
    put: Put,
    run_alone: Run,
    make_case: MakeCase,
    prepared: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(make_case(SHAPE))
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", lambda *_: [].pop())
        response = client.post("/invoke")
    assert response.status_code == 500
    assert response.json() == {"detail": "internal error: IndexError: pop from empty list"}
    assert files_below(tmp_path / "out") == []
    assert client.get("/health").status_code == 200
    assert client.post("/invoke").status_code == 201
    assert prepared == ["patient", "patient"], "a case that met a failure is prepared anew"
    np.testing.assert_array_equal(only_mask(tmp_path / "out"), run_alone())


def test_an_answer_that_no_one_waits_for_any_more(
    options: Namespace,
    put: Put,
    make_case: MakeCase,
    prepared: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given up before its turn a job is not run; after that it is one like any other."""
    put(make_case(SHAPE))
    service, answered, predict = loaded(options), Future[JSONResponse](), Predictor.predict
    answered.cancel()
    service.answer(time.monotonic(), answered)
    assert (prepared, files_below(tmp_path / "out")) == ([], [])

    def given_up(predictor: Predictor, clicks: ClickSet, deadline: float) -> npt.NDArray[np.uint8]:
        answered.cancel()
        return predict(predictor, clicks, deadline)

    answered = Future[JSONResponse]()
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", given_up)
        service.answer(time.monotonic(), answered)
    assert answered.result(30).status_code == 201
    mask = only_mask(tmp_path / "out")
    assert answer(service, time.monotonic()).status_code == 201
    assert prepared == ["patient"], "the case is still held"
    np.testing.assert_array_equal(only_mask(tmp_path / "out"), mask)


def test_a_time_limit_counts_from_the_request(
    options: Namespace,
    put: Put,
    make_case: MakeCase,
    prepared: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server is older than the limit, and still computes; a request that is gives background."""
    put(make_case(SHAPE))
    options.time_limit = 60.0
    service = loaded(options)
    assert answer(service, time.monotonic()).status_code == 201
    mask = only_mask(tmp_path / "out")
    assert 0 < mask.mean() < 1
    assert "time limit" not in caplog.text
    put(make_case(SHAPE, seed=8))
    assert answer(service, time.monotonic() - 60).status_code == 201
    assert not only_mask(tmp_path / "out").any()
    assert prepared == ["patient"], "the second one is not prepared in vain"
    assert "time limit: no time for the network, all is background" in caplog.text


def test_a_step_that_outlasts_the_time_limit(
    options: Namespace,
    put: Put,
    make_case: MakeCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An empty mask is there in time, what comes of the step later is dropped, and the next job is served."""
    put(make_case(SHAPE))
    options.time_limit = 2.0
    go_on, set_case = threading.Event(), Predictor.set_case

    def stuck(predictor: Predictor, case: Case) -> None:
        assert go_on.wait(30)
        set_case(predictor, case)

    with client_of(loaded(options)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "set_case", stuck)
            start = time.monotonic()
            assert client.post("/invoke").status_code == 201
            assert time.monotonic() - start < options.time_limit
            assert not only_mask(tmp_path / "out").any()
            assert caplog.text.count("time limit: no time for the network, all is background") == 1
            go_on.set()
        options.time_limit = None
        assert client.post("/invoke").status_code == 201
        assert only_mask(tmp_path / "out").any()


def test_jobs_wait_for_each_other_and_health_does_not(options: Namespace) -> None:
    events: list[str] = []
    go_on = threading.Event()

    class Slow(Service):
        ready = True  # type: ignore[assignment]

        def answer(self, since: float, answered: "Future[JSONResponse]") -> None:
            events.append("begin")
            assert go_on.wait(30)
            events.append("end")
            answered.set_result(JSONResponse({}, 201))

    with client_of(Slow(options)) as client, ThreadPoolExecutor(3) as callers:
        calls = [callers.submit(client.post, "/invoke") for _ in range(3)]
        while not events:
            time.sleep(0.01)
        assert client.get("/health").status_code == 200
        assert events == ["begin"]
        go_on.set()
        assert [call.result(30).status_code for call in calls] == [201] * 3
    assert events == ["begin", "end"] * 3


def test_nothing_is_written_once_the_server_ends(
    options: Namespace, put: Put, make_case: MakeCase, tmp_path: Path
) -> None:
    put(make_case(SHAPE))
    service = loaded(options)
    service.stop_writing()
    threading.Thread(target=service.answer, args=(0.0, Future()), daemon=True).start()
    time.sleep(1.5)
    assert files_below(tmp_path / "out") == []


def test_a_server_that_cannot_start(options: Namespace, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        options.port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"^--port: .*ddress already in use.*, got {options.port}$"):
            serve(options)
    options.port = 65536
    with pytest.raises(InputError, match=r"--port: .*, got 65536$"):
        serve(options)
    options.port, options.model = 0, tmp_path / "nowhere"
    with pytest.raises(InputError, match="nowhere: the model folder must exist"):
        serve(options)


class Server:
    """`inference.py --serve` in a process of its own; what it says on stderr is kept in `lines`."""

    def __init__(self, arguments: list[str]) -> None:
        environment = {**os.environ, "PETCLICK_SERVE": "1", "PETCLICK_PORT": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "inference.py"), *arguments, "--no-quiet"]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, encoding="utf-8")
        assert self.process.stderr is not None
        self.lines = [self.process.stderr.readline()]
        self.port = int(re.fullmatch(r"INFO listening on port (\d+)\n", self.lines[0])[1])  # type: ignore[index]
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr or ()), daemon=True).start()

    def ask(self, method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())["detail"]

    def end(self) -> float:
        """Sends SIGTERM; seconds until the process has ended."""
        start = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return time.perf_counter() - start


@pytest.fixture
def start(arguments: list[str]) -> Iterator[Callable[[], Server]]:
    with contextlib.ExitStack() as started:

        def start() -> Server:
            server = Server(arguments)
            started.enter_context(server.process)
            started.callback(server.process.kill)
            return server

        yield start


def test_the_life_of_a_server(
    start: Callable[[], Server], put: Put, run_alone: Run, make_case: MakeCase, tmp_path: Path
) -> None:
    server = start()
    health = [server.ask("GET", "/health")[0]]
    until = time.monotonic() + 60
    while health[-1] == 503 and time.monotonic() < until:
        time.sleep(0.1)
        health.append(server.ask("GET", "/health")[0])
    assert set(health) == {503, 200}

    case = make_case(SHAPE)
    jobs = [(case, None), (make_case((17, 19, 26), seed=8), None), (case, click_set([[10, 20, 9]], []))]
    for number, (each, clicks) in enumerate(jobs):
        source = put(each, clicks)
        assert server.ask("POST", "/invoke") == (201, "done")
        np.testing.assert_array_equal(only_mask(tmp_path / "out"), run_alone())
        if number == 0:
            put(each)
            (source / "lesion-clicks.json").write_text("[0]")
            status, told = server.ask("POST", "/invoke")
            assert (status, files_below(tmp_path / "out")) == (422, [])
            assert server.lines[-1] == told + "\n"

    put(make_case((60, 80, 70)))  # thousands of tiles
    with ThreadPoolExecutor(1) as caller:
        job = caller.submit(server.ask, "POST", "/invoke")
        while "preprocessed to 60" not in "".join(server.lines[-3:]) and not job.done():
            time.sleep(0.05)
        assert server.ask("GET", "/health")[0] == 200, "while it computes"
        assert server.end() < 5
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert job.result()[0] == 503
    assert server.process.returncode == 0
    assert files_below(tmp_path / "out") == []
    assert "Traceback" not in "".join(server.lines)


def test_a_signal_while_the_model_is_loaded(start: Callable[[], Server]) -> None:
    server = start()
    assert server.end() < 5
    assert server.process.returncode == 0
