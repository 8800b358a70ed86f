"""Seeded whole-body PET/CT phantoms of two tracers: people of solids, organs and lesions known to the voxel.

The person reaches from the vertex to mid-thigh, arms out of the field of view. docs/phantom.md shows one of
each tracer and compares their uptake with published figures.
"""

from petclick.phantom.make import Phantom, make_patient, make_phantom
from petclick.phantom.scanner import Scanner
from petclick.phantom.tracers import TRACERS, TracerName

__all__ = ["TRACERS", "Phantom", "Scanner", "TracerName", "make_patient", "make_phantom"]
