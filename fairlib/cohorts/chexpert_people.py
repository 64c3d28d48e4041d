"""Who a CheXpert patient is: the demographic sheet gives race (the release's own csv files do
not).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fairlib.cohorts.fundus import RACES
from fairlib.cohorts.text_tables import column, read_rows
from fairlib.cohorts.vocabulary import word_of
from fairlib.errors import DataError

SHEETS = ("CHEXPERT DEMO.xlsx", "CHEXPERT DEMO.csv")
FIELDS = {"subject": "PATIENT", "sex": "GENDER", "primary_race": "PRIMARY_RACE"}
SEX = {"female": "F", "male": "M"}


def race_of(text: str) -> str | None:
    """ "Asian", "Black" or "White" from the sheet's words ("Black or African American", "White,
    non-Hispanic", ...).

    The sheet uses many words; a race is told by the first one. None for all others (other, unknown,
    refused, ...).
    """
    first = text.replace(",", " ").split()[:1]
    return {race.lower(): race for race in RACES}.get(first[0].lower()) if first else None


def find_demographics(folders: Iterable[Path]) -> Path:
    """The sheet in one of the folders. Raises `DataError` when it is in none."""
    folders = list(folders)
    for path in (folder / name for folder in folders for name in SHEETS):
        if path.is_file():
            return path
    raise DataError(
        f"{folders[0]}: no {SHEETS[0]} or {SHEETS[1]} beside the tables, and only this sheet knows "
        "race; get it from "
        "the same source as the pictures, or give its path as demographics="
    )


def read_demographics(path: str | Path) -> dict[str, dict]:
    """Patient -> race ("Asian", "Black", "White" or None), primary_race (the sheet's words or
    None), sex ("F", "M", None).

    Reads csv, or xlsx where the package openpyxl is installed. Raises `DataError` on a missing
    column, another word for a sex, or a patient with two races or two sexes.
    """
    path = Path(path)
    rows = _xlsx_rows(path) if path.suffix.lower() == ".xlsx" else read_rows(path)
    places = {name: column(path, rows[0], heading) for name, heading in FIELDS.items()}
    people: dict[str, dict] = {}
    for row in rows[1:]:
        cells = {name: row[place] for name, place in places.items()}
        subject, where = cells["subject"], f"{path}: {cells['subject']}"
        person = {
            "race": race_of(cells["primary_race"]),
            "primary_race": cells["primary_race"] or None,
            "sex": word_of(where, FIELDS["sex"], cells["sex"], SEX),
        }
        if people.setdefault(subject, person) != person:
            raise DataError(
                f"{where}: stands twice, as {people[subject]} and {person}; correct the sheet"
            )
    return people


def _xlsx_rows(path: Path) -> list[list[str]]:
    """Header and body of the first sheet as stripped text; rows without any value are dropped."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise DataError(
            f"{path}: xlsx needs the package openpyxl, which is not installed; install it, or save "
            "the sheet as "
            f"{SHEETS[1]} with the same columns"
        ) from error
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        cells = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except Exception as error:  # openpyxl raises whatever its parsers below do
        raise DataError(
            f"{path}: cannot be read as xlsx ({error}); take it from its source again, or save it "
            "as csv"
        ) from error
    rows = [["" if value is None else str(value).strip() for value in row] for row in cells]
    rows = [row for row in rows if any(row)]
    if not rows:
        raise DataError(f"{path}: is empty; take it from its source again")
    width = len(rows[0])
    return [(row + [""] * width)[:width] for row in rows]
