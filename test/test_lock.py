"""The image's packages are those that the program asks for."""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def test_the_lock_is_what_requirements_ask_for() -> None:
    """`scripts/lock.sh` must be run after a change of requirements.txt; torch is the base image's."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [Requirement(line.rstrip(" \\")) for line in lines if re.match(r"[a-z]", line)]
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if not line or line.startswith(("#", "torch==")):
            continue
        wanted = Requirement(line)
        found = [pin for pin in pinned if pin.name == wanted.name.lower()]
        assert found, f"{wanted.name} is not locked"
        for pin in found:
            (version,) = pin.specifier
            assert wanted.specifier.contains(Version(version.version)), f"{pin} is not {wanted}"


def test_each_pin_has_hashes() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [number for number, line in enumerate(lines) if re.match(r"[a-z]", line)]
    assert len(pins) > 40
    assert all("--hash=sha256:" in lines[number + 1] for number in pins)
