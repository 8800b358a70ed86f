"""Compare phantoms with published uptake, and draw some.

    python -m petclick.phantom [--cases 20] [--pictures DIR]

Prints a Markdown table: what was published, and what the scanned phantoms show in the same organs.
"""

import argparse
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from tqdm import tqdm

from petclick.clicks import click_set
from petclick.overlay import draw_overlay
from petclick.phantom.anatomy import LABEL
from petclick.phantom.make import Phantom, make_patient
from petclick.phantom.tracers import TRACERS, TracerName
from petclick.program import run

SPACING_ZYX_MM = (4.0, 4.0, 4.0)
PICTURES: dict[TracerName, int] = {"fdg": 42, "psma": 41}
"""Seeds of the cases in docs/phantom.md."""
FAR_MM = 12.0
"""How far from lesions uptake is measured."""
CORE = 0.4
"""Of an organ's depth, from where on it is measured: observers keep away from edges."""


class Published(NamedTuple):
    """One published figure: mean over patients and its standard deviation (None where not given)."""

    ligand: str
    tissue: str
    quantity: Literal["mean", "max"]
    suv: float
    sd: float | None
    source: str


PUBLISHED = (
    Published("fdg", "liver", "mean", 2.17, 0.44, "Boktor 2013"),
    Published("fdg", "blood", "mean", 1.55, 0.38, "Boktor 2013"),
    Published("fdg", "brain", "mean", 8.0, 2.2, "Wang 2007 (cerebellum)"),
    Published("fdg", "tonsils", "mean", 3.45, 1.4, "Wang 2007"),
    Published("psma-11", "kidneys", "mean", 41.7, None, "Kurash 2020"),
    Published("psma-11", "parotid glands", "mean", 14.5, None, "Kurash 2020"),
    Published("psma-11", "submandibular glands", "mean", 13.0, None, "Kurash 2020"),
    Published("psma-11", "prostate", "mean", 2.4, None, "Kurash 2020"),
    Published("psma-11", "liver", "mean", 5.4, 1.7, "EJNMMI Res 2024"),
    Published("psma-11", "spleen", "mean", 8.1, 3.5, "EJNMMI Res 2024"),
    Published("psma-11", "duodenum", "max", 17.6, 8.9, "Clin Nucl Med 2017"),
    Published("psma-11", "lacrimal glands", "max", 15.7, 7.2, "Clin Nucl Med 2017"),
    Published("psma-1007", "kidneys", "mean", 13.1, None, "Trägårdh 2025 (median)"),
    Published("psma-1007", "liver", "mean", 11.8, None, "Trägårdh 2025 (median)"),
    Published("psma-1007", "parotid glands", "mean", 18.6, None, "Trägårdh 2025 (median)"),
    Published("psma-1007", "spleen", "mean", 11.3, None, "Trägårdh 2025 (median)"),
)


def measure(phantom: Phantom, tissue: str, quantity: Literal["mean", "max"]) -> float:
    """SUV that an observer would report of a tissue: of its core or its hottest voxel, far from lesions.

    NaN where the person does not have that tissue.
    """
    mask = phantom.tissues == LABEL[tissue]
    if not mask.any():
        return float("nan")
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    mask, spacing = mask[box], phantom.grid.spacing_zyx_mm
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    chosen = depth >= (CORE * depth.max() if quantity == "mean" else 1e-3)
    if phantom.lesions.any():
        chosen &= _far_from_lesions(phantom)[box]
    values = phantom.pet_suv[box][chosen]
    return float(getattr(values, quantity)()) if len(values) else float("nan")


def table(phantoms: list[Phantom]) -> str:
    """Markdown: published figures beside those of the same ligand's phantoms, mean and sd over cases."""
    lines = ["| ligand | tissue | SUV | published | phantoms | source |", "|---|---|---|---|---|---|"]
    for row in PUBLISHED:
        cases = [phantom for phantom in phantoms if phantom.ligand == row.ligand]
        values = [value for case in cases if np.isfinite(value := measure(case, row.tissue, row.quantity))]
        published = f"{row.suv:g}" + (f" ± {row.sd:g}" if row.sd else "")
        measured = f"{np.mean(values):.2f} ± {np.std(values):.2f} (n = {len(values)})" if values else "none"
        cells = (row.ligand, row.tissue, row.quantity, published, measured, row.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(tracer: TracerName, seed: int, folder: Path) -> None:
    """Write folder/phantom_TRACER.png: projections of a case with its lesions' outlines."""
    phantom = make_patient(tracer, seed, SPACING_ZYX_MM)
    lesions = (phantom.lesions > 0).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    draw_overlay(phantom.pet_suv, lesions, click_set([], []), phantom.grid, folder / f"phantom_{tracer}.png")


def _far_from_lesions(phantom: Phantom) -> npt.NDArray[np.bool_]:
    distance = ndimage.distance_transform_edt(phantom.lesions == 0, sampling=phantom.grid.spacing_zyx_mm)
    return np.asarray(distance > FAR_MM)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m petclick.phantom", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--cases", type=int, default=20, help="of each tracer (default: %(default)s)")
    parser.add_argument("--pictures", type=Path, help="also draw the documentation's cases into this folder")
    options = parser.parse_args(arguments)
    wanted = [(tracer, seed) for tracer in TRACERS for seed in range(options.cases)]
    progress = tqdm(wanted, desc="phantoms", unit="case")
    print(table([make_patient(tracer, seed, SPACING_ZYX_MM) for tracer, seed in progress]))
    if options.pictures:
        for tracer, seed in PICTURES.items():
            draw(tracer, seed, options.pictures)


if __name__ == "__main__":
    run(main)
