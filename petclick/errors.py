"""What can go wrong, and the exit code that goes with it. Mapped to the process in `petclick.cli` only."""


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
