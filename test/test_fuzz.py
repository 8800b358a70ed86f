"""A short run of the fuzzer, and the long one that is asked for with -m slow."""

from pathlib import Path

import pytest
from fuzz import fuzz
from sandbox import Sandbox


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_every_input_is_answered(sandbox: Sandbox, tmp_path: Path, count: int) -> None:
    assert fuzz(count, 0, 1, tmp_path / "kept", sandbox) == []
