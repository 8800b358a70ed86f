"""The frame of every command: logging on stderr, errors to one last line and an exit code."""

import logging
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from petclick.errors import PetclickError

INTERRUPTED = 130  # the shell's convention for SIGINT


OURS = ("petclick", "training", "__main__")
"""Loggers whose progress a user should see; libraries are heard from a warning on."""


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command and end the process: 0, 2 for bad input, 1 for a failure of our own.

    The last line on stderr tells what went wrong; a failure of our own shows its traceback above it.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        main()
    except PetclickError as error:
        _end(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        _end("error: interrupted", INTERRUPTED)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        traceback.print_exc()
        _end(f"internal error: {type(error).__name__}: {' '.join(str(error).split())}", 1)
    sys.exit(0)


def _end(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
