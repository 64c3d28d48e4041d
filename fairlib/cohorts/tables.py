"""Small text tables, read strictly: rows as long as the header, every needed column there, no id
twice. Missing cells stay missing, and an unknown word is an error.

Several data sets share attributes of subjects: their vocabularies, the words in which a prompt
states them, and groups as integer codes. The order of each vocabulary is that of the codes in
FairGenMed's npz files. Source of the seven groups (3 race, 2 sex, 2 ethnicity): Luo et al., arXiv
2412.20374 (FairDiffusion).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from fairlib.cohorts.listing import Excluded, attempt, missing, require_some
from fairlib.errors import DataError, FairlibError
from fairlib.io import what_it_is
from fairlib.settings import require_known, unknown_key

T = TypeVar("T")
SEXES = ("F", "M")
SEX_WORDS = {"F": "Female", "M": "Male"}
SEX_CELLS = {"female": "F", "male": "M"}  # of a release's table, in lower case
RACES = ("Asian", "Black", "White")
ETHNICITIES = ("Non-Hispanic", "Hispanic")
ATTRIBUTES = {"race": RACES, "sex": SEXES, "ethnicity": ETHNICITIES}
MISSING = {"", "-", "-1", "na", "n/a", "nan", "none", "unknown"}
FAULTY_ROW = "faulty row of the table"  # why a subject or an image is left out
TAKE_AGAIN = "take the file from its release again"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
ENCODINGS = ("utf-8-sig", "cp1252")  # of a table; the second is what Excel writes in the West
DELIMITERS = (",", ";", "\t", "|")
DECIMAL = re.compile(r"^(-?\d+),(\d+)$")


def read_text(path: str | Path, encodings: Sequence[str] = ("utf-8-sig",)) -> str:
    """Read text with plain newlines: UTF-16 where a byte-order mark says so, else the first of
    `encodings` that fits (a mark of UTF-8 is dropped).

    Raises `DataError` naming the file: missing (and what is there), of another kind, or not text.
    """
    file = Path(path).expanduser()
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise missing(file, "cannot be read", "check the path", file.name) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if data and (kind := what_it_is(data)):
        raise DataError(f"{path}: is {kind}, no text; {TAKE_AGAIN}")
    text, why = None, "it holds zero bytes"
    for encoding in ("utf-16",) if data[:2] in UTF_16 else encodings:
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError as failed:
            why = str(failed)
    if text is None or "\0" in text:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({why}); save it as UTF-8")
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def read_rows(path: str | Path, delimiter: str = ",") -> list[list[str]]:
    """Read header and body as stripped cells, of text or of the first sheet of an xlsx file;
    tab-separated files know no quotes.

    What spreadsheets make of a table is read: another delimiter than `delimiter` (comma, semicolon,
    tab or bar, by the header), the encoding of Windows, decimal commas, and empty cells behind the
    last column. Raises `DataError` on a ragged row, and on a file without any.
    """
    try:
        if Path(path).suffix.lower() == ".xlsx":
            read = _xlsx(path)
        else:
            text, found = _delimited(read_text(path, ENCODINGS), delimiter)
            plain: Literal[0, 3] = csv.QUOTE_MINIMAL
            plain = csv.QUOTE_NONE if found == delimiter == "\t" else plain
            read = list(csv.reader(io.StringIO(text), delimiter=found, quoting=plain))
    except csv.Error as error:
        raise DataError(f"{path}: is not a table ({error}); {TAKE_AGAIN}") from error
    rows = [[cell.strip() for cell in row] for row in read if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path}: is empty; {TAKE_AGAIN}")
    width = max(number for row in rows for number, cell in enumerate(row, 1) if cell)
    rows = [[DECIMAL.sub(r"\1.\2", cell) for cell in row[:width]] for row in rows]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            counts = f"{len(row)} cells, the header {len(rows[0])}"
            raise DataError(f"{path}: row {number} has {counts}; {TAKE_AGAIN}")
    return rows


def read_table(path: str | Path) -> pd.DataFrame:
    """What `read_rows` gives, as a table of texts."""
    header, *rows = read_rows(path)
    return pd.DataFrame(rows, columns=header, dtype="str")


def read_prompts(path: str | Path) -> pd.DataFrame:
    """Read prompts, as a table of texts: a text file has one a line, a table the column `prompt`
    and what else it states of each, such as the `group` whose target it has.

    Raises `DataError` on a table without that column, or with a prompt that stands twice.
    """
    if Path(path).suffix.lower() == ".txt":
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        return pd.DataFrame({"prompt": lines}, dtype="str")
    table = read_table(path)
    refuse_twice(path, table.iloc[:, column(path, list(table), "prompt")])
    return table


def _delimited(text: str, expected: str) -> tuple[str, str]:
    """A table's text and its delimiter: the one named in a first line such as `sep=;`, else the one
    most frequent in the header.
    """
    first, _, body = text.partition("\n")
    if match := re.fullmatch(r"\s*\"?sep=(.)\"?\s*", first):
        return body, match[1]
    header = re.sub(r'"[^"]*"', "", text.lstrip("\n").partition("\n")[0])
    return text, max((expected, *DELIMITERS), key=header.count)


def _xlsx(path: str | Path) -> list[list[str]]:
    try:
        sheet = Path(path).expanduser()
        cells = pd.read_excel(sheet, header=None, dtype=str, na_filter=False, engine="openpyxl")
    except Exception as error:  # openpyxl raises whatever its parsers below do
        remedy = f"{TAKE_AGAIN}, or save it as csv with the same columns"
        raise DataError(f"{path}: cannot be read as xlsx ({error}); {remedy}") from error
    return cells.to_numpy().tolist()


def column(path: str | Path, header: Sequence[str], name: str) -> int:
    """The position of a column.

    Raises `DataError` naming the file, the column and the nearest one it has.
    """
    if name not in header:
        near = unknown_key(name, list(header), "its header")
        raise DataError(f"{path}: has no column {name!r}; {near}")
    return header.index(name)


def named_cells(
    path: str | Path, rows: Sequence[Sequence[str]], columns: Mapping[str, str]
) -> list[dict[str, str]]:
    """The body of a table as one mapping a row, by `columns` (our name -> the table's heading).

    rows: header and body, as `read_rows` returns them. Raises `DataError` on a missing column.
    """
    places = {name: column(path, rows[0], heading) for name, heading in columns.items()}
    return [{name: row[place] for name, place in places.items()} for row in rows[1:]]


def sound_rows(
    path: str | Path,
    cells: Iterable[Mapping[str, str]],
    make: Callable[[Mapping[str, str]], T],
    key: str,
) -> tuple[list[T], list[Excluded]]:
    """What `make` returns of each row of a table, and the rows that are left out because it raises,
    each by its cell `key`, with the reason.

    Raises `DataError` when no row is left: then it is the table that is wrong.
    """
    faults: dict[str, FairlibError] = {}
    made = [
        attempt(partial(make, row), faults, row[key] or f"row {number}")
        for number, row in enumerate(cells, 2)
    ]
    kept = [row for row in made if row is not None]
    excluded = [(item, FAULTY_ROW, str(error)) for item, error in faults.items()]
    if excluded:
        require_some(kept, excluded, path, "rows", "correct the table")
    return kept, excluded


def refuse_twice(path: str | Path, ids: Iterable[str]) -> None:
    """Raise `DataError` naming the first id that stands twice."""
    keys = pd.Series(list(ids), dtype="object")
    twice = keys[keys.duplicated()]
    if len(twice):
        raise DataError(f"{path}: id {twice.iloc[0]!r} stands twice; keep one row per id")


def read_truth(
    path: Path, key: str, ids: Iterable[str], needed: Sequence[str] = ()
) -> pd.DataFrame:
    """Read what a phantom knows of its images: one row for each of `ids`, all columns "string".

    The column `key` holds the ids; an id that the file does not name, an empty cell and NA are
    missing. Raises `DataError` on a missing column of `needed`, or an id that stands twice.
    """
    truth = read_table(path).astype("string")
    for name in (key, *needed):
        column(path, list(truth), name)
    refuse_twice(path, truth[key])
    return truth.replace({"": pd.NA, "NA": pd.NA}).set_index(key).reindex(list(ids))


def typed(
    rows: Sequence[Mapping], numbers: Sequence[str] = (), whole: Sequence[str] = ()
) -> pd.DataFrame:
    """A cohort's table, one mapping a row: `numbers` as float, `whole` as int, all other columns as
    "string".
    """
    table = pd.DataFrame(list(rows))
    kinds = dict.fromkeys(table, "string") | dict.fromkeys(numbers, float)
    return table.astype(kinds | dict.fromkeys(whole, int))


def itself(words: Sequence[str]) -> dict[str, str]:
    """Words in lower case -> the words, for `word_of`."""
    return {word.lower(): word for word in words}


def is_missing(text: str) -> bool:
    """Whether a cell is empty or one of the usual marks for a missing value (NA, unknown, -1,
    ...).
    """
    return text.strip().lower() in MISSING


def word_of(where: str, column: str, text: str, words: Mapping[str, str]) -> str | None:
    """The cohort's word for a cell, whatever its case; None when it is missing.

    `words`: the release's word in lower case -> ours. Raises `DataError` naming the place, the
    column and the known words.
    """
    if is_missing(text):
        return None
    if text.strip().lower() not in words:
        expected = f"one of {', '.join(words)}, or an empty cell; correct the table"
        raise DataError(f"{where}: {column} is {text!r}; expected {expected}")
    return words[text.strip().lower()]


def number_of(where: str, column: str, text: str, low: float, high: float) -> float:
    """The number in a cell, NaN when it is missing (-1 counts as missing only where `low` is above
    it).

    Raises `DataError` when the cell holds no number, or one outside [low, high].
    """
    if is_missing(text) and (text.strip() != "-1" or low > -1):
        return np.nan
    try:
        value = float(text)
    except ValueError as error:
        remedy = "correct the table or leave the cell empty"
        raise DataError(f"{where}: {column} is {text!r}, not a number; {remedy}") from error
    if not low <= value <= high:  # also NaN and infinity
        expected = f"{low:g} to {high:g}, or an empty cell; correct the table"
        raise DataError(f"{where}: {column} is {text}; expected {expected}")
    return value


def require_words(row: Mapping, vocabularies: Mapping[str, Sequence[str]]) -> None:
    """Raise `DataError` unless a row states each of the attributes of a prompt in a word of its
    vocabulary.
    """
    for name, words in vocabularies.items():
        if name not in row:
            raise DataError(f"the row has no {name!r}; a prompt states {', '.join(vocabularies)}")
        if pd.isna(row[name]) or row[name] not in words:
            known = f"the prompt knows {', '.join(words)}"
            raise DataError(f"{name} {row[name]!r}: {known}; leave rows without one out")


def known_word(prompt: str, word: str, words: Sequence[str]) -> str:
    """`word`, a part of `prompt`, where it is one of `words`.

    Raises `SettingsError` naming the nearest one where it is not.
    """
    require_known(word, words, f"prompt {prompt!r}")
    return word


def group_codes(
    table: pd.DataFrame, attributes: Mapping[str, Sequence[str]] = ATTRIBUTES
) -> np.ndarray:
    """The group of each row in each attribute: int64 [N, A], code = position in the attribute's
    vocabulary.

    `attributes`: column -> its known values, in the order of the codes. Raises `DataError` on a
    missing column, or a value that is missing or not in the vocabulary (naming the column, the
    value and the row).
    """
    return np.stack([_codes(table, name, words) for name, words in attributes.items()], axis=1)


def group_names(attributes: Mapping[str, Sequence[str]] = ATTRIBUTES) -> list[tuple[str, str]]:
    """(attribute, value) of every group, attribute after attribute: seven for FairGenMed."""
    return [(name, value) for name, words in attributes.items() for value in words]


def _codes(table: pd.DataFrame, name: str, words: Sequence[str]) -> np.ndarray:
    if name not in table:
        raise DataError(f"no groups: {unknown_key(name, list(table.columns), 'the table')}")
    codes = pd.Index(list(words)).get_indexer(table[name].astype("object")).astype(np.int64)
    unknown = np.flatnonzero(codes < 0)
    if len(unknown):
        first = f"{name} of row {unknown[0]} is {table[name].iloc[unknown[0]]!r}"
        what = f"{first} ({len(unknown)} such rows of {len(table)})"
        raise DataError(f"{what}; a group is one of {', '.join(words)}; leave the others out")
    return codes
