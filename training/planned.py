"""Whether data were planned with the settings that are to train on them."""

import math
from pathlib import Path
from typing import Any

from petclick.errors import InputError
from training.preprocess import adapt_plan
from training.settings import Architecture


def check_planned(plans: dict[str, Any], name: str, wish: Architecture, file: Path) -> dict[str, Any]:
    """One of a plan's configurations, which must be what the settings make of it.

    A network or patch of other settings would train silently, under the name of these. The number of organs
    is in no plan, and so not compared.

    Args:
        plans: nnU-Net's, as preprocessing left them.
        name: of the configuration, such as 3d_fullres.
        wish: the settings'.
        file: the plans', for messages.

    Raises:
        InputError: there is no such configuration, or it was planned with other settings; names the keys.
    """
    configurations = plans.get("configurations")
    planned = configurations.get(name) if isinstance(configurations, dict) else None
    if not isinstance(planned, dict):
        raise InputError(file, f"must have the configuration {name}")
    try:
        wanted = adapt_plan(planned, wish)
        differing = [*_differing(planned, wanted)]
        if wish.spacing_mm is not None and not _close(planned["spacing"], wish.spacing_mm):
            differing.append(("spacing", planned["spacing"], [*wish.spacing_mm]))
    except (KeyError, TypeError) as error:
        raise InputError(file, f"must be a plan of nnU-Net 2.6 or newer ({error!r})") from None
    if differing:
        rule = ", ".join(f"{key} {want}" for key, _, want in differing)
        got = ", ".join(f"{key} {have}" for key, have, _ in differing)
        how = "run `python -m training.preprocess` with these settings first"
        raise InputError(file, f"must be planned as the settings have it, with {rule} ({how})", got)
    return planned


def _differing(planned: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs on the plan's level and on the network's: key, value there, value wanted."""
    found: list[tuple[str, Any, Any]] = []
    for key, want in wanted.items():
        if key == "architecture":
            found += _differing(planned[key]["arch_kwargs"], want["arch_kwargs"])
        elif planned.get(key) != want:
            found.append((key, planned.get(key), want))
    return found


def _close(planned: list[float], wish: tuple[float, ...]) -> bool:
    return len(planned) == len(wish) and all(map(math.isclose, planned, wish))
