"""Who a BraTS subject is: the official name mapping gives the TCGA id, the TCGA clinical tables
give sex and age.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fairlib.cohorts.text_tables import column, read_rows, refuse_twice
from fairlib.errors import DataError

TCGA, AGE = "TCGA_TCIA_subject_ID", "age_at_initial_pathologic_diagnosis"
MISSING = {"", "NA", "N/A", "NAN"}
SEXES = {"MALE": "M", "FEMALE": "F"}
PEOPLE = ["subject", "tcga", "sex", "age", "reason"]


def read_name_mapping(path: str | Path) -> pd.DataFrame:
    """The official id map of the 2019 or 2020 release: columns subject (id of any year), tcga (or
    missing), grade.

    Raises `DataError` when the TCGA column or every BraTS id column is missing, or when an id
    stands twice.
    """
    rows = read_rows(path)
    header, body = rows[0], rows[1:]
    years = [name for name in header if name.startswith("BraTS_") and name.endswith("_subject_ID")]
    if not years:
        raise DataError(
            f"{path}: no column BraTS_<year>_subject_ID; take name_mapping.csv from BraTS 2019 or "
            "2020"
        )
    tcga, grade = column(path, header, TCGA), column(path, header, "Grade")
    places = [header.index(year) for year in years]
    long = [
        (row[place], row[tcga], row[grade])
        for row in body
        for place in places
        if row[place].upper() not in MISSING
    ]
    table = pd.DataFrame(long, columns=["subject", "tcga", "grade"], dtype="string")
    refuse_twice(path, table["subject"])
    return table.assign(tcga=table["tcga"].where(~table["tcga"].str.upper().isin(MISSING)))


def find_biotabs(root: str | Path) -> list[Path]:
    """TCGA's patient tables of glioblastoma and of lower-grade glioma in the folder `root`, in this
    order.

    Their names end in `clinical_patient_gbm.txt` and `clinical_patient_lgg.txt`; TCGA's data portal
    puts `nationwidechildrens.org_` before that. Raises `DataError` unless there is exactly one of
    each.
    """
    return [_only(Path(root), f"*clinical_patient_{study}.txt") for study in ("gbm", "lgg")]


def read_biotab(path: str | Path) -> pd.DataFrame:
    """A TCGA biotab patient table (tabs, three header lines): columns tcga, sex ("F", "M" or
    missing), age (years).

    Age is missing (NaN) where the table has no such column or no number. Raises `DataError` on a
    missing column, other header lines, another word for a sex, or a barcode that stands twice.
    """
    rows = read_rows(path, "\t")
    header, body = rows[0], rows[3:]
    barcode, gender = column(path, header, "bcr_patient_barcode"), column(path, header, "gender")
    if len(rows) < 3 or any(row[gender].upper() in SEXES for row in rows[1:3]):
        raise DataError(
            f"{path}: expected three header lines (names, alternates, CDE ids); take the biotab "
            "file as it is"
        )
    table = pd.DataFrame(
        {"tcga": [row[barcode] for row in body], "sex": [_sex(path, row[gender]) for row in body]},
        dtype="string",
    )
    refuse_twice(path, table["tcga"])
    ages = [row[header.index(AGE)] for row in body] if AGE in header else [""] * len(body)
    return table.assign(
        age=pd.to_numeric(pd.Series(ages, dtype="str"), errors="coerce").astype(float)
    )


def join_people(
    ids: Sequence[str], name_mapping: str | Path, clinical: Sequence[str | Path]
) -> pd.DataFrame:
    """Sex and age of each BraTS id: columns subject, tcga, sex, age, reason (why sex is missing,
    else "").

    One row per id, in the order given; an id that finds no partner keeps its row. Raises
    `DataError` when no id at all is in the map (the map of another release), or a barcode stands in
    two clinical tables.
    """
    mapping = read_name_mapping(name_mapping).set_index("subject")
    tables = [read_biotab(path) for path in clinical]
    patients = (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=["tcga", "sex", "age"])
    )
    refuse_twice(" and ".join(str(path) for path in clinical), patients["tcga"])
    if not any(subject in mapping.index for subject in ids):
        raise DataError(
            f"{name_mapping}: holds none of the {len(ids)} subjects (such as {ids[0]}); is it of "
            "another release?"
        )
    found = {row.tcga: row for row in patients.itertuples()}
    table = pd.DataFrame([_person(subject, mapping, found) for subject in ids], columns=PEOPLE)
    return table.astype({"sex": "string", "tcga": "string", "age": float})


def grades(name_mapping: str | Path) -> dict[str, str]:
    """The grade ("HGG", "LGG") the map gives each id."""
    table = read_name_mapping(name_mapping)
    return dict(zip(table["subject"], table["grade"], strict=True))


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if not found:
        raise DataError(
            f"{root}: none of the files is a {pattern}, expected one; put the patient table "
            "(biotab) of TCGA there"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(
            f"{root}: {len(found)} of the files are a {pattern} ({names}), expected one; remove "
            "the others"
        )
    return found[0]


def _person(subject: str, mapping: pd.DataFrame, patients: dict) -> tuple:
    nobody = (pd.NA, pd.NA, float("nan"))
    if subject not in mapping.index:
        return (subject, *nobody, "id not in the name mapping")
    tcga = mapping.at[subject, "tcga"]
    if pd.isna(tcga):
        return (subject, *nobody, "no TCGA id in the name mapping")
    if tcga not in patients:
        return (subject, tcga, *nobody[1:], "TCGA id not in the clinical tables")
    sex = patients[tcga].sex
    return (
        subject,
        tcga,
        sex,
        patients[tcga].age,
        "sex not stated in the clinical tables" if pd.isna(sex) else "",
    )


def _sex(path, value: str) -> str | None:
    if value.upper() in SEXES:
        return SEXES[value.upper()]
    # biotab writes [Not Available], [Unknown], ...
    if value.upper() in MISSING or value.startswith("["):
        return None
    raise DataError(
        f"{path}: gender {value!r}; expected MALE, FEMALE or a bracketed [Not Available]"
    )
