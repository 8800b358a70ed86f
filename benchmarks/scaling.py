"""Time and peak memory of one case from 5 to 100 million voxels, each in a process of its own.

The volumes are a cylinder of tissue in air at 2.04 x 2.04 x 3 mm; one fold, no mirrors, from
the arrays to the mask.
"""

import json
import resource
import subprocess
import sys

import numpy as np

from benchmarks._cases import MODEL, exponent, timed
from petclick.clicks import click_set
from petclick.grid import Grid
from petclick.images import Case
from petclick.model import load_model
from petclick.predictor import Predictor, Settings

MILLION_VOXELS = (5, 10, 20, 50, 100)
FULL_SIZE_ZYX, SPACING_XYZ_MM = np.array([326, 400, 400]), (2.04, 2.04, 3.0)
PARTS = ("preprocessing", "tiles", "export")


def run() -> dict[str, float]:
    """Seconds and GiB for each size, and the exponents of their growth."""
    figures: dict[str, float] = {}
    results = [_in_a_process(size) for size in MILLION_VOXELS]
    for size, result in zip(MILLION_VOXELS, results, strict=True):
        figures.update({f"{size} million voxels, {name}": value for name, value in result.items()})
    sizes = [result["voxels"] for result in results]
    for part in PARTS:
        figures[f"exponent of {part}"] = exponent(sizes, [result[f"{part}, seconds"] for result in results])
    # what the libraries, the weights and one tile need does not grow
    growth = [result["peak GiB"] - result["GiB before the case"] for result in results]
    figures["exponent of memory above the start"] = exponent(sizes, growth)
    return figures


def measure(million_voxels: float) -> dict[str, float]:
    """One size, in this process."""
    scale = (million_voxels * 1e6 / FULL_SIZE_ZYX.prod()) ** (1 / 3)
    z, y, x = (int(n) for n in np.round(FULL_SIZE_ZYX * scale))
    inside = np.hypot(*np.ogrid[-1 : 1 : y * 1j, -1 : 1 : x * 1j]) < 0.5
    ct = np.where(inside, np.float32(40), np.float32(-1000))[None].repeat(z, 0)
    pet = inside.astype(np.float32)[None].repeat(z, 0)
    case = Case(ct, pet, Grid((x, y, z), SPACING_XYZ_MM), "cylinder")
    predictor = Predictor(load_model(MODEL, ("0",)), Settings("cpu", mirror_axes=(), keep_gib=0))
    predictor.warm_up()
    before = peak_gib()
    clicks = click_set([(z // 2, y // 2, x // 2)], [])
    prepare_s, _ = timed(lambda: predictor.set_case(case))
    tiles_s, _ = timed(lambda: predictor.predict_margin(clicks))
    export_s, _ = timed(lambda: predictor.predict(clicks))  # its tiles have not changed
    seconds = zip(PARTS, (prepare_s, tiles_s, export_s), strict=True)
    return {
        "voxels": float(ct.size),
        **{f"{name}, seconds": value for name, value in seconds},
        "GiB before the case": before,
        "peak GiB": peak_gib(),
    }


def peak_gib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _in_a_process(million_voxels: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scaling", str(million_voxels)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]))))
