"""Fingerprint, plan, preprocessed cases and splits of a data set, by nnU-Net's own means.

python -m training.preprocess Dataset601_STS [--settings FILE] [--splits FILE] [--jobs N]
"""

import argparse
import json
import logging
import os
from pathlib import Path
from typing import Any

from petclick.errors import InputError
from petclick.program import run
from training.settings import Architecture, load_settings

PLANS = "nnUNetResEncUNetPlans"
CONFIGURATION = "3d_fullres"
STARTER_SPLITS = Path(__file__).with_name("splits_sts.json")
"""The starter's five folds over the 36 sarcoma patients."""
logger = logging.getLogger(__name__)


def adapt_plan(configuration: dict[str, Any], wish: Architecture) -> dict[str, Any]:
    """Put the settings' wishes into one of a plan's configurations; nothing else is changed.

    Raises:
        InputError: the stages cannot halve the patch, or the lists differ in length.
    """
    result = json.loads(json.dumps(configuration))
    network = result["architecture"]["arch_kwargs"]
    if wish.patch_size is not None:
        result["patch_size"] = list(wish.patch_size)
    if wish.batch_size is not None:
        result["batch_size"] = wish.batch_size
    if wish.features_per_stage is not None:
        n = len(wish.features_per_stage)
        network["n_stages"] = n
        network["features_per_stage"] = list(wish.features_per_stage)
        network["kernel_sizes"] = [[3, 3, 3]] * n
        network["strides"] = [[1, 1, 1]] + [[2, 2, 2]] * (n - 1)
        network["n_blocks_per_stage"] = (network["n_blocks_per_stage"] + [6] * n)[:n]
        network["n_conv_per_stage_decoder"] = [1] * (n - 1)
    if wish.blocks_per_stage is not None:
        network["n_blocks_per_stage"] = list(wish.blocks_per_stage)
    n = network["n_stages"]
    if len(network["n_blocks_per_stage"]) != n:
        raise InputError(
            "architecture", f"blocks_per_stage must have {n} entries", network["n_blocks_per_stage"]
        )
    factors = [2 ** (n - 1)] * 3 if wish.features_per_stage is not None else [1] * 3
    if any(size % factor for size, factor in zip(result["patch_size"], factors, strict=True)):
        raise InputError(
            "architecture", f"patch_size must be divisible by {factors[0]}", result["patch_size"]
        )
    return dict(result)


def splits_for(cases: list[str], file: Path) -> list[dict[str, list[str]]]:
    """The file's folds, after checking that they hold each case exactly once as validation.

    Raises:
        InputError: a case of the data set is in no fold, or a fold names a case that is not there.
    """
    splits: list[dict[str, list[str]]] = json.loads(file.read_text("utf-8"))
    held_out = sorted(case for split in splits for case in split["val"])
    if held_out != sorted(cases):
        odd = sorted(set(held_out) ^ set(cases)) or held_out
        raise InputError(file, "must hold each case of the data set once as 'val'", ", ".join(odd[:10]))
    return splits


def preprocess(dataset: str, settings_file: Path | None, splits_file: Path | None, jobs: int) -> None:
    """Fingerprint, plan and preprocess a data set from nnUNet_raw into nnUNet_preprocessed.

    Args:
        dataset: `DatasetNNN_NAME`.
        settings_file: training settings; None for the starter's.
        splits_file: the folds; None for nnU-Net's own.
        jobs: processes.
    """
    # nnU-Net takes seconds to import; --help and bad arguments should not pay for it.
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        preprocess_dataset,
    )

    wish = load_settings(settings_file).architecture
    number = int(dataset[len("Dataset") :].split("_")[0])
    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    extract_fingerprint_dataset(number, num_processes=jobs, clean=False, verbose=False)
    # Without nnU-Net's transposition a plan reads in (z, y, x), like everything else here.
    residual_encoder_unet_planners.ResEncUNetPlanner(
        number, plans_name=PLANS, overwrite_target_spacing=wish.spacing_mm, suppress_transpose=True
    ).plan_experiment()
    plans_file = folder / f"{PLANS}.json"
    plans = json.loads(plans_file.read_text("utf-8"))
    plans["configurations"] = {CONFIGURATION: adapt_plan(plans["configurations"][CONFIGURATION], wish)}
    plans_file.write_text(json.dumps(plans, indent=2) + "\n", "utf-8")
    preprocess_dataset(number, PLANS, (CONFIGURATION,), (jobs,))
    if splits_file is not None:
        cases = [path.name.removesuffix(".nii.gz") for path in (folder / "gt_segmentations").glob("*.nii.gz")]
        splits = splits_for(cases, splits_file)
        (folder / "splits_final.json").write_text(json.dumps(splits, indent=1) + "\n", "utf-8")
    logger.info("%s is ready in %s", dataset, folder)


def nnunet_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Raises:
        InputError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise InputError(
            variable, "this environment variable must name a folder (nnU-Net's layout)", "nothing"
        )
    return Path(value)


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.preprocess", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("dataset", help="folder in nnUNet_raw, such as Dataset601_STS")
    parser.add_argument("--settings", type=Path, help="training settings (default: training/starter.yaml)")
    parser.add_argument("--splits", type=Path, help="folds as JSON (default: nnU-Net's own five, by case)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    options = parser.parse_args(arguments)
    preprocess(options.dataset, options.settings, options.splits, options.jobs)


if __name__ == "__main__":
    run(main)
