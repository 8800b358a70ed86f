"""One picture of a case for people: PET projections with the mask's outline and the clicks."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from petclick.clicks import KINDS, ClickSet
from petclick.errors import InputError
from petclick.grid import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SUV_WINDOW = (0.0, 10.0)
"""SUV drawn white and black."""
BODY_SUV = 0.1
"""SUV above which a voxel belongs to what is shown; the air around is cut off."""
LESION_COLOUR = "#e4002b"
"""The outline of the mask."""
CLICK_STYLE = {
    "tumor": ("tumour clicks", "o", "#00b84a"),
    "background": ("background clicks", "X", "#1f77ff"),
}
"""Legend, marker and colour of each kind of click."""

_VIEWS = (("coronal", 1, "R", "L"), ("sagittal", 2, "A", "P"))  # name, axis projected, left and right end
_MARGIN_MM = 20.0  # of air left around the body
_PANELS_IN = (7.0, 8.0)  # largest width and height of the two panels together
_LEFT_IN, _GAP_IN, _RIGHT_IN, _BOTTOM_IN, _TOP_IN = 0.25, 0.25, 0.75, 0.75, 0.85
_LEAST_WIDTH_IN, _DPI = 5.2, 130
_MANY_CLICKS = 50  # from here on (scribbles) the markers are small
_INK, _FRAME, _LINE = "#333333", "#cccccc", 1.3


def draw_overlay(
    pet_suv: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint8],
    clicks: ClickSet,
    grid: Grid,
    path: Path,
) -> None:
    """Write a PNG of the coronal and the sagittal maximum-intensity projection, head up and to scale.

    The patient's left is on the right of the coronal view, anterior on the left of the sagittal one. Air
    around the patient is cut off. The file is written beside `path` and renamed when complete.

    Args:
        pet_suv: (z, y, x) uptake in LPS orientation: z up, y to posterior, x to the left.
        mask: (z, y, x), above 0 in lesions.
        clicks: each is drawn in both views.
        grid: of the arrays and the clicks; its size and spacing are used.
        path: the PNG.

    Raises:
        InputError: the file cannot be written.
    """
    picture = io.BytesIO()
    _figure(*_cut_to_body(pet_suv, mask, clicks, grid)).savefig(picture, format="png")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            partial.write_bytes(picture.getbuffer())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(path, "the overlay cannot be written", error.strerror) from error


def _cut_to_body(
    pet_suv: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8], clicks: ClickSet, grid: Grid
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], ClickSet, Grid]:
    """Leave out the air around the patient, but nothing of the mask and no click."""
    shown = pet_suv > BODY_SUV
    shown |= mask > 0
    shown[tuple(clicks.index_zyx.T)] = True
    if not shown.any():
        return pet_suv, mask, clicks, grid
    lower, upper = [], []
    for axis, spacing_mm in enumerate(grid.spacing_zyx_mm):
        used = np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis})))
        margin = round(_MARGIN_MM / spacing_mm)
        lower.append(max(int(used[0]) - margin, 0))
        upper.append(min(int(used[-1]) + 1 + margin, grid.shape_zyx[axis]))
    z, y, x = map(slice, lower, upper)
    clicks = ClickSet(clicks.index_zyx - np.array(lower), clicks.kind)
    size_x, size_y, size_z = (b - a for a, b in zip(lower[::-1], upper[::-1], strict=True))
    return pet_suv[z, y, x], mask[z, y, x], clicks, Grid((size_x, size_y, size_z), grid.spacing_mm)


def _figure(
    pet_suv: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8], clicks: ClickSet, grid: Grid
) -> "Figure":
    """The picture: two panels in one scale, a grey scale on the right, a legend below."""
    # Imported here, because the many runs without a picture need not wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height_mm, depth_mm, width_mm = np.multiply(grid.shape_zyx, grid.spacing_zyx_mm)
    in_per_mm = min(_PANELS_IN[0] / (width_mm + depth_mm), _PANELS_IN[1] / height_mm)
    panel_height = height_mm * in_per_mm
    panel_widths = (width_mm * in_per_mm, depth_mm * in_per_mm)
    content = sum(panel_widths) + _GAP_IN
    width = max(_LEFT_IN + content + _RIGHT_IN, _LEAST_WIDTH_IN)
    height = _BOTTOM_IN + panel_height + _TOP_IN
    figure = Figure((width, height), _DPI, facecolor="white")
    FigureCanvasAgg(figure)

    left = (width - _RIGHT_IN + _LEFT_IN - content) / 2
    for (name, axis, *ends), panel_width in zip(_VIEWS, panel_widths, strict=True):
        box = (left / width, _BOTTOM_IN / height, panel_width / width, panel_height / height)
        axes = figure.add_axes(box)
        _draw_view(axes, pet_suv, mask, clicks, grid, axis)
        axes.set_title(name, fontsize=9, color=_INK, pad=4)
        for x, side, end in ((0.02, "left", ends[0]), (0.98, "right", ends[1])):
            axes.text(x, 0.01, end, transform=axes.transAxes, ha=side, va="bottom", fontsize=9, color=_INK)
        left += panel_width + _GAP_IN

    bar_height = min(1.6, panel_height)
    bar_box = ((left - 0.1) / width, _BOTTOM_IN / height, 0.11 / width, bar_height / height)
    bar = figure.colorbar(
        axes.images[0], cax=figure.add_axes(bar_box), ticks=(*SUV_WINDOW, np.mean(SUV_WINDOW))
    )
    bar.ax.tick_params(labelsize=8, length=2, color=_FRAME, labelcolor=_INK)
    bar.ax.set_title("SUV", fontsize=8, color=_INK, pad=4)
    bar.outline.set_edgecolor(_FRAME)

    volume_ml = np.count_nonzero(mask) * grid.voxel_ml
    figure.text(
        0.5,
        1 - 0.3 / height,
        f"Lesion volume {volume_ml:.1f} ml",
        ha="center",
        va="center",
        fontsize=13,
        weight="bold",
        color="black",
    )
    window = "PET maximum-intensity projections, SUV {:g} to {:g}".format(*SUV_WINDOW)
    figure.text(0.5, 1 - 0.53 / height, window, ha="center", va="center", fontsize=8, color=_INK)
    figure.legend(
        handles=_legend(clicks),
        loc="center",
        bbox_to_anchor=(0.5, 0.38 / height),
        ncols=3,
        frameon=False,
        fontsize=9,
        handletextpad=0.4,
        columnspacing=1.4,
    )
    return figure


def _draw_view(
    axes: "Axes",
    pet_suv: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint8],
    clicks: ClickSet,
    grid: Grid,
    axis: int,
) -> None:
    """Draw one projection along `axis` (1: coronal, 2: sagittal); the panel's coordinates are millimetres."""
    from matplotlib.collections import LineCollection

    across = 3 - axis
    step_up, step_across = grid.spacing_zyx_mm[0], grid.spacing_zyx_mm[across]
    image = pet_suv.max(axis=axis)
    rows, columns = image.shape
    axes.imshow(
        image,
        cmap="gray_r",
        vmin=SUV_WINDOW[0],
        vmax=SUV_WINDOW[1],
        origin="lower",
        extent=(0, columns * step_across, 0, rows * step_up),
        interpolation="bicubic",
    )
    edges_mm = pixel_edges(np.any(mask > 0, axis=axis)) * (step_across, step_up)
    outline = LineCollection(
        list(edges_mm),
        colors=LESION_COLOUR,
        linewidths=_LINE,
        capstyle="round",
        clip_on=False,  # nor may the frame hide it where the mask reaches the border
        zorder=2.8,
    )
    axes.add_collection(outline, autolim=False)
    for kind in reversed(KINDS):
        _, marker, colour = CLICK_STYLE[kind]
        points_mm = (clicks.of_kind(kind)[:, [across, 0]] + 0.5) * (step_across, step_up)
        small = len(clicks) >= _MANY_CLICKS
        axes.scatter(
            points_mm[:, 0],
            points_mm[:, 1],
            s=8 if small else 34,
            marker=marker,
            color=colour,
            edgecolors="none" if small else "white",
            linewidths=0.7,
            zorder=3,
        )
    axes.set(xlim=(0, columns * step_across), ylim=(0, rows * step_up), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_edgecolor(_FRAME)


def pixel_edges(flat: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Pixel faces between inside and outside of a (row, column) mask: (N, 2, 2), two (x, y) corners each.

    Unlike an interpolated contour they never leave a click outside that lies in a voxel of the mask.
    """
    inside = np.pad(flat, 1)
    row, column = np.nonzero(inside[1:, 1:-1] != inside[:-1, 1:-1])
    lying = np.stack([np.stack([column, row], -1), np.stack([column + 1, row], -1)], axis=1)
    row, column = np.nonzero(inside[1:-1, 1:] != inside[1:-1, :-1])
    standing = np.stack([np.stack([column, row], -1), np.stack([column, row + 1], -1)], axis=1)
    return np.concatenate([lying, standing])


def _legend(clicks: ClickSet) -> "list[Line2D]":
    """Handles for the outline and for both kinds of click with their numbers."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=LESION_COLOUR, linewidth=_LINE, label="lesions")]
    for kind in KINDS:
        text, marker, colour = CLICK_STYLE[kind]
        label = f"{text} ({len(clicks.of_kind(kind))})"
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker=marker,
                color=colour,
                markeredgecolor="white",
                markersize=8,
                label=label,
            )
        )
    return handles
