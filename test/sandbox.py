"""The program in processes that may die: a server that has loaded everything forks a child for each run.

So a run costs a tenth of a second, and a crash of the interpreter, a runaway allocation and an endless loop
are seen for what they are. Started by `Sandbox`, as a process of its own: that of the tests has threads and
much memory.
"""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[1]
GUARD_BYTES = 5 * 10**9
"""Address space of a run, beside what is loaded: keeps the machine from harm."""
GUARD_SECONDS, GUARD_WALL_SECONDS = 60, 900
"""Of CPU time, and of any."""

os.environ["OMP_NUM_THREADS"] = "1"


@dataclass(frozen=True)
class Answer:
    """How a run ended.

    code: exit code, or minus the signal that ended it; seconds: of CPU time; peak_bytes: of memory, with what
    the server had loaded before; stderr: the end of it.
    """

    code: int
    seconds: float
    wall_seconds: float
    peak_bytes: int
    stderr: str

    @property
    def last_line(self) -> str:
        """What the platform shows."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Order:
    """A run of the program.

    more_memory: bytes of address space beyond what is loaded; signal_after: seconds until `signal_number`
    ends it, if anything does.
    """

    arguments: tuple[str, ...]
    more_memory: int = GUARD_BYTES
    signal_after: float | None = None
    signal_number: int = signal.SIGKILL


class Sandbox:
    """Runs the program again and again; close it at the end."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve())]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", cwd=ROOT
        )

    def run(self, *arguments: object, **options: object) -> Answer:
        """Run the program with these arguments; options are those of `Order`."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = Order(tuple(map(str, arguments)), **options)  # type: ignore[arg-type]
        self._server.stdin.write(json.dumps(asdict(order)) + "\n")
        self._server.stdin.flush()
        return Answer(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """End the server."""
        self._server.communicate()


def _serve() -> None:
    _load_everything()
    with tempfile.TemporaryFile() as stderr:
        for line in sys.stdin:
            print(json.dumps(asdict(_answer(Order(**json.loads(line)), stderr))), flush=True)


def _load_everything() -> None:
    sys.path.insert(0, str(ROOT))
    import dynamic_network_architectures.architectures.unet  # noqa: F401
    import nnunetv2.utilities.get_network_from_plans  # noqa: F401
    import SimpleITK as sitk
    import torch

    import petclick.cli
    import petclick.predictor  # noqa: F401

    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    gc.freeze()  # a collection would copy the pages that a child shares


def _answer(order: Order, stderr: IO[bytes]) -> Answer:
    stderr.seek(0)
    stderr.truncate()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _run(order, stderr)
    killer = threading.Timer(order.signal_after or 0, os.kill, (child, order.signal_number))
    if order.signal_after is not None:
        killer.start()
    # until it is reaped, its number belongs to no other process
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    killer.cancel()
    if order.signal_after is not None:
        killer.join()
    _, status, usage = os.wait4(child, 0)
    wall_seconds = time.monotonic() - start
    stderr.seek(0)
    text = stderr.read()[-4000:].decode(errors="replace")
    seconds = usage.ru_utime + usage.ru_stime
    return Answer(os.waitstatus_to_exitcode(status), seconds, wall_seconds, usage.ru_maxrss * 1024, text)


def _run(order: Order, stderr: IO[bytes]) -> NoReturn:
    from petclick import cli, program

    code = 99  # of an error that the program's own frame lets through
    try:
        os.dup2(stderr.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        loaded = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, loaded + order.more_memory))
        for kind, limit in (*limits, (resource.RLIMIT_CPU, GUARD_SECONDS)):
            resource.setrlimit(kind, (limit, limit))
        signal.alarm(GUARD_WALL_SECONDS)
        program.run(lambda: cli.main(order.arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
