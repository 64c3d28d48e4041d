"""Settings are frozen dataclasses; an unknown key or a wrong type is an error that helps."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

from fairlib.errors import DataError, FairlibError, SettingsError

if TYPE_CHECKING:
    import pandas as pd
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Bound(NamedTuple):
    """What a setting must fulfil, in a type such as `Annotated[int, Bound(...)]`; see
    `check_bounds`.
    """

    valid: Callable[[Any], bool]
    expected: str


Count = Annotated[int, Bound(lambda value: value >= 1, "at least 1")]
Natural = Annotated[int, Bound(lambda value: value >= 0, "at least 0")]
AboveZero = Annotated[float, Bound(lambda value: value > 0, "above 0")]
Positive = Annotated[float, Bound(lambda value: 0 < value < math.inf, "above 0 and finite")]
Weight = Annotated[float, Bound(lambda value: 0 <= value < math.inf, "at least 0 and finite")]
Fraction = Annotated[float, Bound(lambda value: 0 <= value <= 1, "in [0, 1]")]
BelowOne = Annotated[float, Bound(lambda value: 0 <= value < 1, "in [0, 1)")]


def check_bounds(settings: Any) -> None:
    """Check the bounds and words (`Literal`) in the types of the fields of a settings dataclass;
    None has no bounds.

    Raises `SettingsError` that names the setting, its value and what is expected.
    """
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        value, bounds = getattr(settings, name), []
        for part in (hint, *typing.get_args(hint)):
            bounds += [each for each in typing.get_args(part) if isinstance(each, Bound)]
        if typing.get_origin(hint) is typing.Literal:
            words = typing.get_args(hint)
            bounds = [Bound(words.__contains__, f"one of {', '.join(map(repr, words))}")]
        for bound in bounds:
            if value is not None and not bound.valid(value):
                what = f"{type(settings).__name__}.{name} is {value!r}"
                raise SettingsError(f"{what}; expected {bound.expected}")


class Checked:
    """The base of settings whose values are checked against their bounds when they are made."""

    def __post_init__(self) -> None:
        check_bounds(self)


def from_dict(cls: type[T], mapping: dict[str, Any]) -> T:
    """Build the frozen dataclass `cls` from `mapping`, whose values JSON can hold.

    Raises `SettingsError` on an unknown key (naming the nearest known one) or a value of the wrong
    type.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for key, value in mapping.items():
        require_known(key, known, cls.__name__)
        values[key] = checked(value, hints[key], f"{cls.__name__}.{key}")
    return cls(**values)


def checked(value: Any, kind: Any, name: str) -> Any:
    """`value` as one of type `kind` (such as `int`, `float | None`, `tuple[int, ...]`, a
    `Literal`, a dataclass).

    Nothing but what JSON cannot tell apart is converted: whole numbers to floats, lists to tuples,
    mappings to dataclasses. Raises `SettingsError` that says what `name` is and what is expected.
    """
    from pydantic import TypeAdapter, ValidationError

    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_dict(kind, value)
    try:
        text = json.dumps(value, default=to_dict)
        return TypeAdapter(kind).validate_json(text, strict=True)
    except (TypeError, ValidationError):
        expected = kind.__name__ if isinstance(kind, type) else kind
        number = isinstance(value, str) and NUMBER.fullmatch(value.strip())
        hint = "; write a number without quotes, for YAML with a point: 1.0e-4" if number else ""
        what = f"{name} is {value!r} ({type(value).__name__})"
        raise SettingsError(f"{what}; expected {expected}{hint}") from None


def to_dict(settings: Any) -> dict[str, Any]:
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


def require_known(
    key: Any, known: Iterable[Any], where: str, error: type[FairlibError] = SettingsError
) -> None:
    """Raise `error`, with the nearest of `known`, unless `key` is one of them."""
    if key not in (names := list(known)):
        raise error(unknown_key(str(key), list(map(str, names)), where))


def need(table: pd.DataFrame, *columns: str, name: str = "the table", whole: bool = False) -> None:
    """Raise `DataError` unless `table`, called `name`, has rows and all `columns`, and, with
    `whole`, a value of each in every row.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        near = unknown_key(missing[0], [str(column) for column in table], "its columns")
        raise DataError(f"{name} ({len(table)} rows) lacks column {missing[0]!r}; {near}")
    if len(table) == 0:
        raise DataError(f"{name} is empty; it needs at least one row")
    for column in columns if whole else ():
        if gaps := int(table[column].isna().sum()):
            what = f"{gaps} of {len(table)} rows have no {column}"
            raise DataError(f"{what}; leave them out first, and say how many")
