"""Small text tables, read strictly: every row as long as the header, every needed column there, no
id twice.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from fairlib.errors import DataError
from fairlib.settings import unknown_key


def read_text(path: str | Path) -> str:
    """UTF-8 text (a byte-order mark is dropped) with plain newlines.

    Raises `DataError` naming the file.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read().replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text ({error}); check the path"
        ) from error


def read_rows(path: str | Path, delimiter: str = ",") -> list[list[str]]:
    """Header and body as stripped cells; tab-separated files know no quotes. Raises `DataError` on
    a ragged row.
    """
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    try:
        found = list(csv.reader(io.StringIO(read_text(path)), delimiter=delimiter, quoting=quoting))
    except csv.Error as error:
        raise DataError(
            f"{path}: is not a table ({error}); take the file from its release again"
        ) from error
    rows = [[cell.strip() for cell in row] for row in found if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path}: is empty; take the file from its release again")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}: row {number} has {len(row)} cells, the header {len(rows[0])}; take the "
                "file again"
            )
    return rows


def column(path: str | Path, header: list[str], name: str) -> int:
    """The position of a column.

    Raises `DataError` naming the file, the column and the nearest one it has.
    """
    if name not in header:
        raise DataError(
            f"{path}: has no column {name!r}; {unknown_key(name, header, 'its header')}"
        )
    return header.index(name)


def refuse_twice(path: str | Path, ids: Iterable[str]) -> None:
    """Raise `DataError` naming the first id that stands twice."""
    seen: set[str] = set()
    for key in ids:
        if key in seen:
            raise DataError(f"{path}: id {key!r} stands twice; keep one row per id")
        seen.add(key)
