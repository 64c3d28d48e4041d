"""Settings are frozen dataclasses; an unknown key or a wrong type is an error that helps."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from typing import Any, TypeVar

from fairlib.errors import SettingsError

T = TypeVar("T")


def from_dict(cls: type[T], mapping: dict[str, Any]) -> T:
    """Build the frozen dataclass `cls` from `mapping`.

    Raises `SettingsError` on an unknown key (naming the nearest known one) or a value of the wrong
    type.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key, value in mapping.items():
        if key not in known:
            raise SettingsError(unknown_key(key, known, cls.__name__))
        if not _fits(value, hints[key]):
            raise SettingsError(
                f"{cls.__name__}.{key} is {value!r} ({type(value).__name__}); expected {hints[key]}"
            )
    return cls(**{key: _coerce(value, hints[key]) for key, value in mapping.items()})


def to_dict(settings) -> dict[str, Any]:
    """The plain dictionary of a settings dataclass."""
    return dataclasses.asdict(settings)


def digest(mapping: Any, length: int = 12) -> str:
    """A short hash of anything JSON can hold; equal content gives an equal hash, whatever its
    order.
    """
    text = json.dumps(
        mapping, sort_keys=True, separators=(",", ":"), allow_nan=False, default=to_dict
    )
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def unknown_key(key: str, known: list[str], where: str) -> str:
    """The message for a key that nobody knows, with the nearest known one."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {key!r} in {where}; {hint}"


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        inner = arguments[0]
        return isinstance(value, (list, tuple)) and all(_fits(item, inner) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if origin is typing.Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _coerce(value: Any, hint: Any) -> Any:
    if hint is float:
        return float(value)
    return tuple(value) if typing.get_origin(hint) is tuple else value
