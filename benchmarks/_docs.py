"""Results in docs/performance.md: a table for each benchmark between two comments, and a plot."""

import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, PLOT = DOCS / "performance.md", DOCS / "scaling.png"


def update(page: str, name: str, figures: Mapping[str, float], origin: str) -> str:
    """Put a benchmark's table into the page, in place of its last one.

    Args:
        page: has the lines `<!-- NAME -->` and `<!-- end of NAME -->`.
        name: the benchmark's.
        figures: what it measured.
        origin: machine, date and command.

    Raises:
        ValueError: the page has no such lines.
    """
    rows = "\n".join(f"| {figure} | {value:.4g} |" for figure, value in figures.items())
    table = f"<!-- {name} -->\n| figure | value |\n|---|---|\n{rows}\n\n*{origin}*\n<!-- end of {name} -->"
    place = re.compile(f"<!-- {name} -->.*<!-- end of {name} -->", re.DOTALL)
    if not place.search(page):
        raise ValueError(f"no place for {name}")
    return place.sub(lambda _: table, page)


def plot_scaling(figures: Mapping[str, float], path: Path) -> None:
    """Draw time and memory of `scaling` against size, both axes logarithmic."""
    import matplotlib.pyplot as plt

    found = [re.fullmatch(r"(\d+) million voxels, (.+)", figure) for figure in figures]
    points = [(int(match[1]), match[2], figures[match[0]]) for match in found if match]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for part in dict.fromkeys(part for _, part, _ in points if part != "voxels"):
        sizes, values = zip(*((size, value) for size, name, value in points if name == part), strict=True)
        axes.loglog(sizes, values, marker="o", label=part)
    axes.set(xlabel="million voxels", ylabel="seconds, or GiB")
    axes.legend()
    axes.grid(which="both", alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)
