"""Broken click files and inputs.json for `fuzz.py`."""

import json
from typing import Any

import numpy as np
from mutations import NUMBERS, STRANGE, any_of, chance, damage

CLICKS: dict[str, Any] = {
    "version": {"major": 1, "minor": 0},
    "type": "Multiple points",
    "points": [{"point": [1, 2, 3], "name": "tumor"}, {"point": [6, 5.0, 4], "name": "background"}],
}
INPUTS: list[Any] = [
    {"socket": {"slug": "ct-image", "relative_path": "images/ct", "kind": "Image"}, "image": {"name": "a"}},
    {"socket": {"slug": "pet-image", "relative_path": "images/pet", "kind": "Image"}, "image": {"name": "b"}},
    {"socket": {"slug": "lesion-clicks", "relative_path": "lesion-clicks.json", "kind": "Multiple points"}},
]

JSON_WORDS = (
    *("points", "point", "name", "tumor", "background", "type", "Multiple points", "version", "socket"),
    *("slug", "relative_path", "interface", "ct", "pet-image", "lesion-clicks", "images/ct", "x", ""),
)


def broken_json(rng: np.random.Generator, valid: Any) -> bytes:
    """A JSON file that is damaged, made up, or hostile."""
    kind = int(rng.integers(10))
    if kind < 3:
        return damage(rng, json.dumps(valid, indent=any_of(rng, (None, 1))).encode())
    if kind < 6:
        return json.dumps(_changed(rng, valid)).encode()
    if kind < 8:
        return json.dumps(made_up_value(rng)).encode()
    text = json.dumps(valid)
    if kind == 8:  # numbers that json.dumps would not write
        places = [i for i, letter in enumerate(text) if letter.isdigit()]
        place = any_of(rng, places) if places else 0
        return (text[:place] + any_of(rng, NUMBERS) + text[place + 1 :]).encode()
    return any_of(
        rng,
        (
            b"[" * 100_000,
            b'{"points":' * 100_000,
            b"[" * 100_000 + b"]" * 100_000,
            b'{"tumor":[[0,0,0]],"tumor":[[1,1,1]]}',
            b'{"points":[],"points":[1]}',
            b'{"tumor":[[0,0,"' + b"x" * 1_000_000 + b'"]]}',
            b'{"tumor":[' + b"[0,0,0]," * 100_000 + b"[1,1,1]]}",
            b'{"tumor":[' + b"[0,0,99]," * 100_000 + b"[1,1,1]]}",
            b"[" + b"0," * 300_000 + b"0]",
            b"\xef\xbb\xbf" + text.encode(),
            text.encode("utf-16"),
            text.encode() + b"\0",
            b'{"tumor":[["\\ud800",0,0]]}',
            b'[{"socket":{"slug":"ct","relative_path":"\\ud800"}}]',
            b'[{"socket":{"slug":"ct","relative_path":"images\\u0000"}}]',
            b'[{"socket":{"slug":"ct","relative_path":"' + b"a/" * 3000 + b'"}}]',
            b'[{"socket":{"slug":"ct","relative_path":"../../../etc"}}]',
            b'[{"socket":{"slug":"lesion-clicks","relative_path":"/dev/zero"}}]',
            b'[{"socket":{"slug":"lesion-clicks","relative_path":"images"}}]',
            b"9" * 1_000_000,
        ),
    )


def _changed(rng: np.random.Generator, value: Any) -> Any:
    """One place in a JSON value replaced, lost, doubled or renamed."""
    if isinstance(value, dict) and value and chance(rng, 0.85):
        key = any_of(rng, list(value))
        match int(rng.integers(6)):
            case 0:
                return {other: each for other, each in value.items() if other != key}
            case 1:
                return {
                    any_of(rng, JSON_WORDS) if other == key else other: each for other, each in value.items()
                }
            case _:
                return {**value, key: _changed(rng, value[key])}
    if isinstance(value, list) and value and chance(rng, 0.85):
        place = int(rng.integers(len(value)))
        match int(rng.integers(6)):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], _changed(rng, value[place]), *value[place + 1 :]]
    return made_up_value(rng)


def made_up_value(rng: np.random.Generator, depth: int = 0) -> Any:
    """Any JSON value, of the words that the program knows."""
    kind = int(rng.integers(9 if depth < 4 else 6))
    if kind >= 6:
        values = [made_up_value(rng, depth + 1) for _ in range(int(rng.integers(5)))]
        return values if kind == 6 else {any_of(rng, JSON_WORDS): value for value in values}
    numbers = (0, 1, -1, 3, 6.5, -0.5, 0.49, 1e300, float("nan"), float("inf"), 2**63, 10**300, 4)
    return any_of(
        rng,
        (
            None,
            True,
            any_of(rng, numbers),
            any_of(rng, numbers),
            any_of(rng, JSON_WORDS),
            any_of(rng, STRANGE),
        ),
    )
