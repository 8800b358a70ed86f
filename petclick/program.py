"""The frame of every command: logging on stderr, errors to one last line and an exit code."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import NoReturn

from petclick.errors import PetclickError, is_out_of_memory

INTERRUPTED, TERMINATED = 130, 143  # the shell's convention for SIGINT and SIGTERM

OURS = ("petclick", "training", "__main__")
"""Loggers whose progress a user should see; libraries are heard from a warning on."""


class TerminatedError(BaseException):
    """SIGTERM came; what is half-written is removed on the way out."""


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command and end the process: 0, 2 for bad input, 1 for a failure of our own, 143 after SIGTERM.

    The last line on stderr tells what went wrong; a failure of our own shows its traceback above it.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminate)  # the first process of a container would ignore it
    # multiprocessing ends forked workers by SIGTERM, and waits for ever for one in which an error got lost.
    os.register_at_fork(after_in_child=partial(signal.signal, signal.SIGTERM, signal.SIG_DFL))
    try:
        main()
    except SystemExit:
        raise
    except BaseException as error:
        report(error)
        sys.exit(_exit_code(error))
    sys.exit(0)


def report(error: BaseException) -> str:
    """Tell on stderr what went wrong, a failure of our own with its traceback; returns the last line."""
    if isinstance(error, PetclickError):
        line = f"error: {error}"
    elif isinstance(error, KeyboardInterrupt):
        line = "error: interrupted"
    elif isinstance(error, TerminatedError):
        line = "error: terminated by SIGTERM"
    elif is_out_of_memory(error):
        line = f"error: out of memory ({' '.join(str(error).split())[:200] or type(error).__name__})"
    else:
        traceback.print_exception(error)
        line = f"internal error: {type(error).__name__}: {' '.join(str(error).split())}"
    line = line.encode(errors="backslashreplace").decode()  # a file's name may hold bytes that are not UTF-8
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    return line


def _exit_code(error: BaseException) -> int:
    if isinstance(error, PetclickError):
        return error.exit_code
    if isinstance(error, TerminatedError):
        return TERMINATED
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise TerminatedError
