"""What can go wrong, and the exit code that goes with it.

`petclick.program` maps errors to the process's end, `petclick.server` to HTTP.
"""

import errno
import re

OUT_OF_MEMORY = re.compile("alloc.* memory|bad.?alloc|failed to (allocate|map)|out of memory", re.IGNORECASE)
"""What libraries say that have no error of their own for it."""


class PetclickError(Exception):
    """Anything this package raises on purpose; the text is one line, made for people."""

    exit_code = 1


class InputError(PetclickError):
    """Bad input: a file, a flag or a folder that its owner can put right.

    The message reads `where: rule, got value`, so that it names the file, the rule and the value received.
    """

    exit_code = 2

    def __init__(self, where: object, rule: str, got: object = None) -> None:
        """Put the message together; `got` None leaves the value out."""
        text = f"{where}: {rule}"
        if got is not None:
            text += f", got {got}"
        super().__init__(" ".join(text.split()))  # one line: the platform shows only stderr's last


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is Python's MemoryError, or what a library raises where it gets no memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, (ImportError, RuntimeError)) and bool(OUT_OF_MEMORY.search(str(error)))


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raise MemoryError where that is what a library's error means, lest a file be blamed for it."""
    if is_out_of_memory(error):
        raise MemoryError(" ".join(str(error).split())) from error
