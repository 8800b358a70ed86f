"""From logits to the written mask of a full-size case, against nnU-Net's own export."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy import ndimage

from benchmarks._cases import alternate, benchmark_model
from petclick.clicks import click_set
from petclick.grid import Grid
from petclick.images import write_mask
from petclick.postprocess import postprocess
from petclick.preprocess import Prepared, restore

SIZE_XYZ, SPACING_XYZ_MM = (400, 400, 326), (2.04, 2.04, 3.0)
REPEATS = 3


def run() -> dict[str, float]:
    """Seconds of resampling and thresholding, of the model's post-processing, and of writing; nnU-Net's."""
    model = benchmark_model()
    grid = Grid(SIZE_XYZ, SPACING_XYZ_MM)
    spacing_mm = grid.spacing_zyx_mm
    shape = [
        round(n * old / new)
        for n, old, new in zip(grid.shape_zyx, spacing_mm, model.plan.spacing_mm, strict=True)
    ]
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 3).astype(np.float32)
    margin = torch.from_numpy(noise / noise.std() - 3)
    crop = tuple((0, n) for n in grid.shape_zyx)
    nothing = np.zeros((2, *shape), np.float32)
    prepared = Prepared(nothing, nothing[0] > 0, grid, grid, crop, spacing_mm, np.eye(4))
    suv = np.abs(rng.standard_normal(grid.shape_zyx, np.float32))
    clicks = click_set(rng.integers(0, grid.shape_zyx, (5, 3)), rng.integers(0, grid.shape_zyx, (5, 3)))
    restored = restore(margin, prepared, model.plan)
    mask = postprocess(restored, suv, clicks, grid, model.spec.postprocess)

    plans = PlansManager(json.loads((model.folder / "plans.json").read_text()))
    configuration = plans.get_configuration("3d_fullres")
    labels = plans.get_label_manager(json.loads((model.folder / "dataset.json").read_text()))
    properties = {
        "spacing": spacing_mm,
        "shape_before_cropping": grid.shape_zyx,
        "shape_after_cropping_and_before_resampling": grid.shape_zyx,
        "bbox_used_for_cropping": [list(bounds) for bounds in crop],
    }

    def theirs() -> None:
        logits = torch.stack((torch.zeros_like(margin), margin))
        convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, labels, properties, num_threads_torch=torch.get_num_threads()
        )

    with tempfile.TemporaryDirectory() as folder:
        seconds = alternate(
            {
                "resample": lambda: restore(margin, prepared, model.plan) > 0,
                "postprocess": lambda: postprocess(restored, suv, clicks, grid, model.spec.postprocess),
                "write": lambda: write_mask(mask, grid, Path(folder) / "mask.mha"),
                "nnU-Net's": theirs,
            },
            REPEATS,
        )
    ours = ("resample", "postprocess", "write")
    return {
        **{f"{name}, seconds": seconds[name] for name in ours},
        "all, seconds": sum(seconds[name] for name in ours),
        "nnU-Net's resampling and argmax, seconds": seconds["nnU-Net's"],
        "resampling and argmax, times as fast": seconds["nnU-Net's"] / seconds["resample"],
    }
