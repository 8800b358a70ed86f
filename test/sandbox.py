"""The program in processes that may die: a server that has loaded everything forks children for its runs.

So a run costs little, and a crash of the interpreter, a runaway allocation and an endless loop
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
from collections.abc import Sequence
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
    """Runs of the program, one after the other in one process, or in another one after each that dies.

    runs: the arguments of each; more_memory: bytes of address space beyond what is loaded; signal_after:
    seconds until `signal_number` ends the process, if anything does.
    """

    runs: list[list[str]]
    more_memory: int = GUARD_BYTES
    signal_after: float | None = None
    signal_number: int = signal.SIGKILL


class Sandbox:
    """Runs the program again and again; close it at the end."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve())]
        # Without the scripts' settings of malloc: memory kept in reserve would not count against a limit.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            cwd=ROOT,
            env=environment,
        )

    def run(self, *arguments: object, **options: object) -> Answer:
        """Run the program with these arguments; options are those of `Order`."""
        return self.run_all([arguments], **options)[0]

    def run_all(self, runs: Sequence[Sequence[object]], **options: object) -> list[Answer]:
        """Run the program with each of these arguments; one run may find what another left in memory."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        lists = [[*map(str, arguments)] for arguments in runs]
        order = Order(lists, **options)  # type: ignore[arg-type]
        self._server.stdin.write(json.dumps(asdict(order)) + "\n")
        self._server.stdin.flush()
        return [Answer(**answer) for answer in json.loads(self._server.stdout.readline())]

    def close(self) -> None:
        """End the server."""
        self._server.communicate()


def _serve() -> None:
    _load_everything()
    for line in sys.stdin:
        order, answers = Order(**json.loads(line)), list[Answer]()
        while len(answers) < len(order.runs):
            answers += _answers(order, order.runs[len(answers) :])
        print(json.dumps([asdict(answer) for answer in answers]), flush=True)


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


def _answers(order: Order, runs: list[list[str]]) -> list[Answer]:
    """The answers of one process, up to the one that killed it."""
    with tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile("w+", encoding="utf-8") as results:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(order, runs, stderr, results)
        killer = threading.Timer(order.signal_after or 0, os.kill, (child, order.signal_number))
        if order.signal_after is not None:
            killer.start()
        # until it is reaped, its number belongs to no other process
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        killer.cancel()
        if order.signal_after is not None:
            killer.join()
        _, status, usage = os.wait4(child, 0)
        results.seek(0)
        answers = [Answer(**json.loads(line)) for line in results if line.endswith("\n")]
        if len(answers) < len(runs):
            measures = (usage.ru_utime + usage.ru_stime, time.monotonic() - start, usage.ru_maxrss * 1024)
            answers.append(Answer(os.waitstatus_to_exitcode(status), *measures, _text(stderr)))
        return answers


def _child(order: Order, runs: list[list[str]], stderr: IO[bytes], results: IO[str]) -> NoReturn:
    from petclick.program import TerminatedError

    try:
        os.dup2(stderr.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        loaded = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (loaded + order.more_memory,) * 2)
        for arguments in runs:
            answer = _run(arguments, stderr)
            results.write(json.dumps(asdict(answer)) + "\n")
            results.flush()
    except TerminatedError:  # came when the program had ended, which is no longer there to answer
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os._exit(0 if sys.exc_info()[0] is None else 99)


def _run(arguments: list[str], stderr: IO[bytes]) -> Answer:
    from petclick import cli, program

    stderr.seek(0)
    stderr.truncate()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    start, cpu_start = time.monotonic(), time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_start) + GUARD_SECONDS, resource.RLIM_INFINITY))
    signal.alarm(GUARD_WALL_SECONDS)
    code = 98
    try:
        program.run(lambda: cli.main(arguments))
    except SystemExit as end:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code = end.code if isinstance(end.code, int) else 97
    seconds = time.process_time() - cpu_start
    peak = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return Answer(code, seconds, time.monotonic() - start, int(peak.split()[1]) * 1024, _text(stderr))


def _text(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    return stderr.read()[-4000:].decode(errors="replace")


if __name__ == "__main__":
    _serve()
