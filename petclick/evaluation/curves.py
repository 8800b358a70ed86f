"""Each figure over the steps of a protocol: median and quartiles over cases, one line for each method."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from petclick.evaluation.figures import protocol_of, steps_by_case
from petclick.evaluation.results import METHODS, Result, StepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHOD_STYLE = {
    "network": ("network", "#c2185b"),
    "growing41": ("41 % region growing", "#1565c0"),
    "growing50": ("50 % region growing", "#00897b"),
    "suv2.5": ("SUV ≥ 2.5", "#ef6c00"),
    "suv4": ("SUV ≥ 4", "#6d4c41"),
}
"""Name and colour of each method, in every table and plot."""
PANELS = (
    ("dice", "Dice"),
    ("fpv_ml", "FPV (ml)"),
    ("fnv_ml", "FNV (ml)"),
    ("dmm_f1", "lesion F1"),
    ("tumor_obeyed", "tumour clicks obeyed"),
    ("background_obeyed", "background clicks obeyed"),
)
_SHARES = {"dice", "dmm_f1", "tumor_obeyed", "background_obeyed"}
_INK, _GRID = "#374151", "#e5e7eb"
STEP_LABEL = {"autopet4": "clicks of each kind", "autopet5": "scribbles"}


def curves_svg(results: Sequence[Result]) -> str:
    """The plot as an SVG element, to stand in a page."""
    file = io.StringIO()
    _figure(results).savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :]


def write_curves(results: Sequence[Result], path: Path) -> None:
    """Write the plot as a PNG."""
    _figure(results).savefig(path, format="png", dpi=150)


def _figure(results: Sequence[Result]) -> "Figure":
    # Imported here: matplotlib takes a second, which the command line's --help need not wait for.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grouped = steps_by_case(results)
    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": "petclick",  # equal results give equal files
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    with rc_context(style):
        figure = Figure((10.5, 5.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3).ravel()
        for ax, (name, title) in zip(axes, PANELS, strict=True):
            for method in METHODS:
                cases = [steps for (of, _), steps in grouped.items() if of == method]
                if cases:
                    _draw(ax, name, cases, METHOD_STYLE[method][1])
            ax.set_title(title, fontsize=10, loc="left", color=_INK)
            ax.set_ylim(bottom=0, top=1.02 if name in _SHARES else None)
            ax.grid(color=_GRID, linewidth=0.8)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
            ax.spines[["left", "bottom"]].set_color("#9ca3af")
            ax.locator_params(axis="x", integer=True)
        for ax in axes[3:]:
            ax.set_xlabel(STEP_LABEL[protocol_of(results)])
        methods = [method for method in METHODS if any(of == method for of, _ in grouped)]
        handles = [axes[0].plot([], [], color=METHOD_STYLE[method][1], linewidth=2)[0] for method in methods]
        labels = [METHOD_STYLE[method][0] for method in methods]
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.draw_without_rendering()
    return figure


def _draw(ax: "Axes", name: str, cases: Sequence[Sequence[StepResult]], colour: str) -> None:
    """Median as a line, from the first to the third quartile as a band, the mean as dots."""
    values = np.array([[getattr(step, name) for step in steps] for steps in cases])
    numbers = [step.step for step in cases[0]]
    known = [column[~np.isnan(column)] for column in values.T]
    at = [number for number, column in zip(numbers, known, strict=True) if len(column)]
    ax.set_xlim(numbers[0] - 0.3, numbers[-1] + 0.3)  # all panels alike, though step 0 has no clicks to obey
    quartiles = np.array([np.percentile(column, (25, 50, 75)) for column in known if len(column)])
    if not at:
        return
    low, middle, high = quartiles.T
    ax.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
    ax.plot(at, middle, color=colour, linewidth=1.8, solid_capstyle="round")
    ax.plot(at, [column.mean() for column in known if len(column)], ".", color=colour, markersize=4.5)
