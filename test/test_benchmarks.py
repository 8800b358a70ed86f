"""Benchmarks: their places in the docs, and the figures that they are made of."""

import pkgutil

import pytest

import benchmarks
from benchmarks import _docs
from benchmarks._cases import exponent

NAMES = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name[0] != "_"]


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_has_a_place_in_the_docs(name: str) -> None:
    page = _docs.PAGE.read_text("utf-8")
    written = _docs.update(page, name, {"figure of a test": 0.12345}, "machine; date; `command`")
    assert "| figure of a test | 0.1235 |" in written
    again = _docs.update(written, name, {"other": 1e6}, "machine; date; `command`")
    assert "figure of a test" not in again
    with pytest.raises(ValueError, match="no place for nothing"):
        _docs.update(page, "nothing", {}, "")


def test_the_exponent_of_a_power_law() -> None:
    sizes = [5.0, 10, 50, 100]
    assert exponent(sizes, [3 * size**1.2 for size in sizes]) == pytest.approx(1.2)
