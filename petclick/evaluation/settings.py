"""What decides an evaluation's results, kept beside them, so that a folder never mixes two runs."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petclick.errors import InputError
from petclick.evaluation.workers import Network
from petclick.files import listing, read_json

RUN = "run.json"


def require_same(out: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder with results of other settings; else note these down, for the next run.

    Args:
        out: the folder, made if it is missing.
        settings: plain JSON; of dicts, only keys that both runs have must agree.

    Raises:
        InputError: `run.json` is not a run's, or says otherwise.
    """
    file = out / RUN
    known = read_json(file) if file.is_file() else {}
    if not isinstance(known, dict):
        raise InputError(file, "must be the settings of a run")
    differing = [key for key in settings if key in known and not _agree(known[key], settings[key])]
    if differing:
        rule = "holds results of a run with other settings; choose another folder"
        raise InputError(out, rule, f"another value for {listing(differing)}")
    merged = {
        key: known[key] | value if isinstance(value, dict) and key in known else value
        for key, value in settings.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_name(f".{RUN}.{os.getpid()}.part")
    partial_file.write_text(json.dumps(known | merged, indent=1) + "\n", "utf-8")
    partial_file.replace(file)


def _agree(known: object, value: object) -> bool:
    """Equal; dicts in the keys that both have, since another run may add folds and cases."""
    if isinstance(known, dict) and isinstance(value, dict):
        return all(known[key] == value[key] for key in known.keys() & value.keys())
    return known == value


def network_settings(network: Network, fold_of: Mapping[str, str] | None) -> dict[str, Any]:
    """Checks flags and model, and returns what decides the masks: the flags, and digests of the files."""
    from petclick.device import choose_device, choose_precision
    from petclick.model import load_model

    choose_precision(network.precision, choose_device(network.device))
    folds = tuple(sorted(set(fold_of.values()), key=int)) if fold_of else network.folds
    model = load_model(network.model, folds)
    files = {
        path.relative_to(network.model).as_posix(): _digest(path)
        for path in (*sorted(network.model.glob("*.json")), *model.checkpoints)
    }
    axes = network.mirror_axes
    return {
        "folds": "each case by its own" if fold_of else [path.parent.name for path in model.checkpoints],
        "device": network.device,
        "precision": network.precision,
        "mirror axes": None if axes is None else list(axes),
        "model": files,
    }


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
