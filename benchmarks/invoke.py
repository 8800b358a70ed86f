"""Second `POST /invoke` on one case with one more click, against the first; reading and writing included."""

import functools
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient

from benchmarks._cases import MODEL, benchmark_model, more_and_more, timed, whole_body
from benchmarks._runs import write_job
from petclick import cli
from petclick.clicks import save_clicks
from petclick.server import Service, make_app


def run() -> dict[str, float]:
    """Seconds of both calls, over the server's own endpoints, and their ratio.

    Raises:
        RuntimeError: a call is not answered with 201.
    """
    case, clicks = whole_body(benchmark_model())
    one_more = next(more_and_more(clicks, 1, np.argwhere(case.ct_hu > -500)))
    with tempfile.TemporaryDirectory(prefix="invoke-") as folder:
        source = Path(folder) / "in"
        write_job(source, case, clicks)
        places = ["--input", str(source), "--output", f"{folder}/out", "--model", str(MODEL)]
        folds = os.environ.get("PETCLICK_BENCHMARK_FOLDS", "all")
        service = Service(cli.parse([*places, "--folds", folds, "--device", "cpu", "--quiet"], {}))
        service.load()
        with ThreadPoolExecutor(1) as worker, TestClient(make_app(service, worker)) as client:
            seconds = []
            for each in (clicks, one_more):
                save_clicks(each, source / "lesion-clicks.json")
                took, response = timed(functools.partial(client.post, "/invoke"))
                if response.status_code != 201:
                    raise RuntimeError(response.text)
                seconds.append(took)
    return {
        "first, seconds": seconds[0],
        "one more click, seconds": seconds[1],
        "first / one more click": seconds[0] / seconds[1],
    }
