"""Frozen dataclasses from and to plain mappings, as JSON and YAML hold them, checked key by key."""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar

from petclick.errors import InputError
from petclick.files import shorten

T = TypeVar("T")


def from_mapping(kind: type[T], content: object, where: object, prefix: str = "") -> T:
    """Make a dataclass of a mapping, level by level.

    Keys that are missing keep their defaults; a value has the type of its default, where an int may stand for
    a float, a list for a tuple, and anything for a default of None. None stands for nothing else.

    Args:
        kind: a dataclass whose fields all have defaults.
        content: the mapping.
        where: the file, for messages.
        prefix: path of the level in the file, for messages.

    Raises:
        InputError: not a mapping, an unknown key, a value of another type or one that the dataclass refuses.
    """
    level = prefix.rstrip(".") or "the file"
    if not isinstance(content, Mapping):
        raise InputError(where, f"{level} must be a mapping", repr(content))
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(repr(key) for key in content if key not in known):
        raise InputError(where, f"keys of {level} must be among {', '.join(known)}", ", ".join(unknown))
    default = kind()
    values = {
        name: _value(value, getattr(default, name), where, prefix + name) for name, value in content.items()
    }
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(where, str(error)) from None


def to_mapping(record: Any) -> dict[str, Any]:
    """The reverse of `from_mapping`, of plain types only: tuples become lists."""
    return {key: _plain(value) for key, value in asdict(record).items()}


def _value(value: object, usual: object, where: object, name: str) -> object:
    if is_dataclass(usual):
        return from_mapping(type(usual), value, where, f"{name}.")
    if isinstance(value, list) and (usual is None or isinstance(usual, tuple)):
        return tuple(value)
    if isinstance(usual, float) and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise InputError(where, f"{name} must be a number in a float's range", shorten(value)) from None
    if usual is None or type(value) is type(usual):
        return value
    raise InputError(where, f"{name} must be of type {type(usual).__name__}", repr(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
