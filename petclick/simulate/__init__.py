"""Simulated clicks and scribbles: the challenges' schemes, a varied one, and corrections of a prediction.

Arrays are (z, y, x). Random code takes its generator; nothing is written into an argument. All clicks of one
kind are distinct voxels, and there are fewer than asked for where the mask has no voxel left.
"""

from petclick.simulate.corrections import simulate_errors
from petclick.simulate.mixture import SimulationSettings, Sources, draw_count, simulate
from petclick.simulate.schemes import simulate_official, simulate_varied
from petclick.simulate.scribbles import simulate_scribbles

__all__ = [
    "SimulationSettings",
    "Sources",
    "draw_count",
    "simulate",
    "simulate_errors",
    "simulate_official",
    "simulate_scribbles",
    "simulate_varied",
]
