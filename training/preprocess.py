"""Fingerprint, plan, preprocessed cases and splits of a data set, by nnU-Net's own means.

python -m training.preprocess Dataset601_STS [--settings FILE] [--splits FILE] [--jobs N] [--dry-run]
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from petclick.errors import InputError, PetclickError
from petclick.files import read_json
from petclick.program import run
from training.raw import SPLITS, patient_of, read_splits, require_name, require_orientation, write_json
from training.raw import nnunet_folder as nnunet_folder  # other modules take it from here
from training.settings import Architecture, TrainingSettings, load_settings

PLANS = "nnUNetResEncUNetPlans"
CONFIGURATION = "3d_fullres"
STARTER_SPLITS = Path(__file__).with_name("splits_sts.json")
"""The starter's five folds over the 36 sarcoma patients."""
RAW_KEY = "raw_key.json"
"""Tells which raw files the fingerprint was made from."""
LOADERS = "nnUNet_n_proc_DA"
"""nnU-Net's variable for the number of a training's loader processes."""
N_SPLITS, SPLIT_SEED = 5, 12345
"""nnU-Net's own."""
logger = logging.getLogger(__name__)

Case = dict[str, Any]
"""nnU-Net's `images` (paths in channel order) and `label` (path) of a case."""


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
    """The file's folds, with the cases that it does not name added to every fold's training.

    A case of a patient whom a fold holds out is left out of that fold's training.

    Raises:
        InputError: the file cannot be read or holds no folds, a fold names a case that is not there or has
            one in both parts, or two folds hold out the same case.
    """
    splits = read_splits(file)
    held_out = [case for split in splits for case in split["val"]]
    named = {case for split in splits for case in (*split["train"], *split["val"])}
    if unknown := sorted(named - {*cases}):
        raise InputError(file, "must name cases of the data set", ", ".join(unknown[:10]))
    if len({*held_out}) < len(held_out):
        twice = sorted({case for case in held_out if held_out.count(case) > 1})
        raise InputError(file, "must hold each case in one fold's 'val' at most", ", ".join(twice[:10]))
    for number, split in enumerate(splits):
        if both := sorted({*split["train"]} & {*split["val"]}):
            raise InputError(file, f"fold {number} must not train on what it holds out", ", ".join(both[:10]))
    if others := sorted({*cases} - named):
        logger.info("%d cases that %s does not name are in every fold's training", len(others), file)
    return [
        {"train": [*split["train"], *_of_others(others, split["val"])], "val": split["val"]}
        for split in splits
    ]


def _of_others(cases: list[str], held_out: list[str]) -> list[str]:
    """The cases of patients of whom no case is held out."""
    patients = {patient_of(case) for case in held_out}
    return [case for case in cases if patient_of(case) not in patients]


def preprocess(
    dataset: str, settings_file: Path | None, splits_file: Path | None, jobs: int, dry_run: bool = False
) -> None:
    """Fingerprint, plan and preprocess a data set from nnUNet_raw into nnUNet_preprocessed.

    What an earlier run finished, from the same raw files and with the same plan, is kept.

    Args:
        dataset: `DatasetNNN_NAME`.
        settings_file: training settings; None for the default's.
        splits_file: the folds; None for those that are there, else those of the raw data set, else nnU-Net's
            own five.
        jobs: processes.
        dry_run: only tell.

    Raises:
        InputError: the name or its number is refused, a file is missing or refused, or the cases lie
            otherwise than the settings' guidance says.
    """
    require_name(dataset)
    raw, folder = (nnunet_folder(name) / dataset for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    settings = load_settings(settings_file)
    cases = raw_cases(raw)
    one_each = (Path(case["images"][0]) for case in cases.values())
    require_orientation(raw, one_each, settings.guidance.orientation)
    splits_file = splits_file or find_splits(folder, raw)
    splits = None if splits_file is None else splits_for(sorted(cases), splits_file)
    if dry_run:
        _tell(raw, folder, cases, settings, splits_file)
        return
    number = int(dataset[len("Dataset") :].split("_")[0])
    _extract_fingerprint(number, raw, folder, cases, jobs)
    plans = _plan(number, folder, settings.architecture)
    _preprocess_cases(folder, cases, plans, organ_count(raw, settings), jobs)
    truths = folder / "gt_segmentations"
    truths.mkdir(exist_ok=True)
    for case in cases.values():  # nnU-Net's own validation looks for them here
        shutil.copy2(case["label"], truths)
    _write_splits(folder / SPLITS, sorted(cases), splits)
    logger.info("%s is ready in %s", dataset, folder)


def find_splits(*folders: Path) -> Path | None:
    """The folds in the first of the folders that has some."""
    return next((folder / SPLITS for folder in folders if (folder / SPLITS).is_file()), None)


def raw_cases(raw: Path) -> dict[str, Case]:
    """The training cases of a raw data set, by name.

    Raises:
        InputError: no such data set, or one without cases, or with files missing.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    description = read_json(raw / "dataset.json") if (raw / "dataset.json").is_file() else None
    if not isinstance(description, dict) or not (raw / "imagesTr").is_dir():
        raise InputError(raw, "must be a raw data set with dataset.json and imagesTr (nnU-Net's layout)")
    cases: dict[str, Case] = get_filenames_of_train_images_and_targets(str(raw), description)
    n_channels = len(description.get("channel_names", ()))
    bad = [
        name
        for name, case in cases.items()
        if len(case["images"]) != n_channels or not Path(case["label"]).is_file()
    ]
    if bad or not cases:
        rule = f"each case must have {n_channels} images in imagesTr and a mask in labelsTr"
        raise InputError(raw, rule, f"otherwise in {', '.join(bad[:10])}" if bad else "no case")
    return cases


def organ_count(raw: Path, settings: TrainingSettings) -> int:
    """The settings' number of organs if the raw data set has any organ mask, else 0."""
    from training.preprocessor import ORGAN_FOLDER

    folder = raw / ORGAN_FOLDER
    return settings.organs.count if folder.is_dir() and any(folder.iterdir()) else 0


def _extract_fingerprint(number: int, raw: Path, folder: Path, cases: dict[str, Case], jobs: int) -> None:
    # nnU-Net takes seconds to import; --help and bad arguments should not pay for it.
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    from training.preprocessor import fingerprint

    files = [Path(file) for case in cases.values() for file in (*case["images"], case["label"])]
    key, key_file = fingerprint([raw / "dataset.json", *files]), folder / RAW_KEY
    known = key_file.is_file() and read_json(key_file) == key
    extract_fingerprint_dataset(number, num_processes=jobs, clean=not known, verbose=False)
    write_json(key, key_file)


def _plan(number: int, folder: Path, wish: Architecture) -> dict[str, Any]:
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    # nnU-Net would stop where the folds asked for, written at the end, are not the raw data set's.
    copy_splits = default_experiment_planner._maybe_copy_splits_file
    default_experiment_planner._maybe_copy_splits_file = lambda *_: None
    # The planner takes the number of loader processes, which may be 0, for a number of threads.
    n_loaders = os.environ.pop(LOADERS, None)
    try:
        # Without nnU-Net's transposition a plan reads in (z, y, x), like everything else here.
        residual_encoder_unet_planners.ResEncUNetPlanner(
            number, plans_name=PLANS, overwrite_target_spacing=wish.spacing_mm, suppress_transpose=True
        ).plan_experiment()
    finally:
        default_experiment_planner._maybe_copy_splits_file = copy_splits
        if n_loaders is not None:
            os.environ[LOADERS] = n_loaders
    plans_file = folder / f"{PLANS}.json"
    plans: dict[str, Any] = json.loads(plans_file.read_text("utf-8"))
    plans["configurations"] = {CONFIGURATION: adapt_plan(plans["configurations"][CONFIGURATION], wish)}
    write_json(plans, plans_file)
    return plans


def _preprocess_cases(
    folder: Path, cases: dict[str, Case], plans: dict[str, Any], organs: int, jobs: int
) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from training.preprocessor import PARTIAL, SUFFIXES, OrganPreprocessor

    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    description = json.loads((folder / "dataset.json").read_text("utf-8"))
    preprocessor = OrganPreprocessor(organs)
    target = folder / configuration.data_identifier
    target.mkdir(exist_ok=True)
    todo = _unfinished(target, cases, plans, organs)
    for file in target.iterdir():
        if file.is_file() and not any(file.name == name + suffix for name in cases for suffix in SUFFIXES):
            file.unlink()  # of a case that is not in the raw data set any more
    work = [
        (str(target / name), cases[name]["images"], cases[name]["label"], manager, configuration, description)
        for name in todo
    ]
    bar = tqdm(total=len(cases), initial=len(cases) - len(todo), desc="preprocessing", unit="case")
    with bar:
        for _ in _done(preprocessor.run_case_save, work, jobs):
            bar.update()
    shutil.rmtree(target / PARTIAL, ignore_errors=True)


def _unfinished(target: Path, cases: dict[str, Case], plans: dict[str, Any], organs: int) -> list[str]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from training.preprocessor import OrganPreprocessor, is_finished

    manager, preprocessor = PlansManager(plans), OrganPreprocessor(organs)
    configuration = manager.get_configuration(CONFIGURATION)
    return [
        name
        for name, case in cases.items()
        if not is_finished(
            target, name, preprocessor.key(case["images"], case["label"], manager, configuration)
        )
    ]


def _done(function: Callable[..., None], work: list[tuple[Any, ...]], jobs: int) -> Iterator[None]:
    """Call `function` on each item, here or in processes; yields as each is done."""
    if min(jobs, len(work)) <= 1:
        for item in work:
            function(*item)
            yield
        return
    # Spawned: a forked process hangs where a thread of PyTorch's or blosc2's held a lock.
    with ProcessPoolExecutor(min(jobs, len(work)), multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(_in_process, function, item) for item in work]):
                if refusal := future.result():
                    raise InputError(*refusal.split(": ", 1))
                yield
        except BrokenProcessPool as error:
            reason = "a worker process died, for lack of memory perhaps; the same command goes on from here"
            raise PetclickError(reason) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _in_process(function: Callable[..., None], item: tuple[Any, ...]) -> str:
    """Call it; returns what is wrong with the input, since such an error cannot be sent back itself."""
    try:
        function(*item)
    except InputError as error:
        return str(error)
    return ""


def _write_splits(file: Path, cases: list[str], splits: list[dict[str, list[str]]] | None) -> None:
    """The given folds, else nnU-Net's, ready for all of a training's processes."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if splits is None and len(cases) >= N_SPLITS:
        splits = generate_crossval_split(cases, seed=SPLIT_SEED, n_splits=N_SPLITS)
    if splits is not None:
        write_json(splits, file)


def _tell(
    raw: Path, folder: Path, cases: dict[str, Case], settings: TrainingSettings, splits_file: Path | None
) -> None:
    from training.preprocessor import organ_file

    organs, plans_file = organ_count(raw, settings), folder / f"{PLANS}.json"
    n_organs = sum(organ_file(Path(case["label"])).is_file() for case in cases.values()) if organs else 0
    todo = list(cases)
    if plans_file.is_file():
        plans = json.loads(plans_file.read_text("utf-8"))
        target = folder / plans["configurations"][CONFIGURATION]["data_identifier"]
        todo = _unfinished(target, cases, plans, organs)
    print(f"{raw}: {len(cases)} cases, {n_organs} with organ masks")
    print(
        f"{folder}: {len(cases) - len(todo)} cases are preprocessed as its plan has it, {len(todo)} are not"
    )
    print(f"would plan with {settings.architecture}, preprocess what that changes, and take the folds of")
    print(f"  {splits_file or 'nnU-Net, five by case'}")


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m training.preprocess", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("dataset", help="folder in nnUNet_raw, such as Dataset601_STS")
    parser.add_argument("--settings", type=Path, help="training settings (default: training/starter.yaml)")
    parser.add_argument(
        "--splits",
        type=Path,
        help="folds as JSON; cases it does not name train in each (default: the data set's own "
        f"{SPLITS}, else five by nnU-Net, by case)",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    options = parser.parse_args(arguments)
    preprocess(options.dataset, options.settings, options.splits, options.jobs, options.dry_run)


if __name__ == "__main__":
    run(main)
