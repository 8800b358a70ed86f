"""The platform's `invoke` API: an HTTP server that keeps the model, and the case last seen, between jobs.

`GET /health` answers 503 until the model is loaded and warmed up, then 200. `POST /invoke` runs one job, from
the same folders and with the same options as the command line, and answers 201, or 422 for bad input and 500
for a failure of our own, with the line that the command line would end on.

One thread loads the model and then runs the jobs, in the order in which they were asked for, so that another
can answer meanwhile.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from argparse import Namespace
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from petclick.errors import InputError
from petclick.job import Job, digest, load_predictor, read_job, write_background, write_result
from petclick.program import report
from petclick.watchdog import Watchdog

if TYPE_CHECKING:
    from petclick.predictor import Predictor

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.uint8]

GRACE_S = 2
"""How long a job under way may go on after SIGTERM, and how long a mask may be written after that."""


class Service:
    """A model, and the case it was last asked about: `load`, then `answer`, from one thread at a time."""

    def __init__(self, options: Namespace) -> None:
        """Take the options of `petclick.cli.parse`; loads nothing yet."""
        self._options = options
        self._predictor: Predictor | None = None
        self._held = b""  # the digest of the predictor's case
        self._writing = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether jobs can be answered."""
        return self._predictor is not None

    def load(self) -> None:
        """Load the model and warm it up.

        Raises:
            InputError: as `load_predictor`.
        """
        start = time.monotonic()
        predictor = load_predictor(self._options)
        predictor.warm_up()
        self._predictor = predictor
        logger.info("ready after %.1f s", time.monotonic() - start)

    def answer(self, since: float, answered: "Future[JSONResponse]") -> None:
        """Run one job; one that fails has written no mask, and the next one is served all the same.

        Args:
            since: when it was asked for, by `time.monotonic`.
            answered: gets the answer once the job is done, or, where that would be after the time limit, once
                an empty mask is written; what the job comes to is dropped. Where it is cancelled before its
                turn, nothing is run.
        """
        if not answered.set_running_or_notify_cancel():  # from here on, no one can cancel it
            return
        watchdog = Watchdog(math.inf, lambda: None)
        try:
            job = read_job(self._options, since)
            if time.monotonic() > job.write_by:  # it has waited too long for its turn
                answered.set_result(self._write(job, None))
                return
            watchdog = Watchdog(job.write_by, lambda: answered.set_result(self._write(job, None)))
            mask = self._predict(job)
            if watchdog.claim():
                answered.set_result(self._write(job, mask))
        except Exception as error:
            if not isinstance(error, InputError):
                assert self._predictor is not None
                self._predictor.reset()
                self._held = b""
            if watchdog.claim():
                answered.set_result(_explain(error))

    def stop_writing(self) -> None:
        """Wait until no result is being written, at most `GRACE_S`; none will be from then on."""
        self._writing.acquire(timeout=GRACE_S)

    def _predict(self, job: Job) -> Mask:
        assert self._predictor is not None
        content = digest(job.case)
        if content == self._held:
            logger.info("the images are those of the last job")
        else:
            self._predictor.set_case(job.case)
            self._held = content
        return self._predictor.predict(job.clicks, job.write_by)

    def _write(self, job: Job, mask: Mask | None) -> JSONResponse:
        """The answer, once the mask is written; None stands for an empty one."""
        try:
            with self._writing:
                if mask is None:
                    write_background(job)
                else:
                    write_result(job, mask, self._options.overlay)
        except Exception as error:
            return _explain(error)
        return _message(201, "done")


def make_app(service: Service, worker: Executor) -> FastAPI:
    """The two endpoints; `worker` runs the service's jobs, one at a time."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)

    @app.get("/health")
    async def health() -> JSONResponse:
        return _message(200, "ready") if service.ready else _not_ready()

    @app.post("/invoke")
    async def invoke() -> JSONResponse:
        since = time.monotonic()
        if not service.ready:
            return _not_ready()
        answered: Future[JSONResponse] = Future()
        worker.submit(service.answer, since, answered)
        try:
            return await asyncio.wrap_future(answered)
        except asyncio.CancelledError:
            return _message(503, "error: the server was told to end before the job was done")

    return app


def serve(options: Namespace) -> NoReturn:
    """Serve until SIGTERM or SIGINT, which end the process with exit code 0.

    Raises:
        InputError: the port cannot be had, or the model cannot be loaded.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    listener = _listen(options.port)
    service = Service(options)
    worker = ThreadPoolExecutor(max_workers=1)
    # Health is asked for every few seconds, and the platform keeps but 500 lines: uvicorn logs warnings only.
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(service, worker),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )

    def end_if_failed(loading: Future[None]) -> None:
        if loading.exception() is not None:
            server.should_exit = True

    with contextlib.suppress(SystemExit):  # `_exit`'s: uvicorn passes a signal on once it has shut down
        loading = worker.submit(service.load)
        loading.add_done_callback(end_if_failed)
        logger.info("listening on port %d", listener.getsockname()[1])
        server.run(sockets=[listener])
        loading.result()  # without a signal, the server ends only where this raises
    service.stop_writing()
    logger.info("ended")
    os._exit(0)  # a thread that computes cannot be interrupted, and the interpreter would wait for it


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _listen(port: int) -> socket.socket:
    if port not in range(65536):
        raise InputError("--port", "must be 0 (any that is free) to 65535", port)
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise InputError("--port", f"cannot be listened on ({error.strerror})", port) from error


def _not_ready() -> JSONResponse:
    return _message(503, "error: the model is being loaded")


def _explain(error: Exception) -> JSONResponse:
    """Log the error, and answer with the line that the command line would end on."""
    return _message(422 if isinstance(error, InputError) else 500, report(error))


def _message(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status)
