"""Joining sex: the forms in which the tables are released, and nobody lost in silence."""

import numpy as np
import pandas as pd
import pytest

from fairlib import DataError
from fairlib.cohorts.clinical import join_people, read_biotab, read_name_mapping


def test_every_id_finds_its_sex_or_a_reason(brats):
    ids = [
        f"Brats18_{tail}"
        for tail in (
            "TCIA01_001_1",
            "TCIA01_002_1",
            "CBICA_AAB_1",
            "TCIA09_003_1",
            "TCIA09_004_1",
            "X",
        )
    ]
    people = join_people(ids, brats["name_mapping"], brats["clinical"])
    assert list(people["subject"]) == ids
    assert people["sex"].fillna("?").tolist() == ["F", "M", "?", "M", "?", "?"]
    assert people["reason"].tolist() == [
        "",
        "",
        "no TCGA id in the name mapping",
        "",
        "TCGA id not in the clinical tables",
        "id not in the name mapping",
    ]
    assert people["age"].tolist()[0] == 44 and people["age"].isna().tolist() == [
        False,
        True,
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("year", "subject"),
    [
        (2019, "Brats18_TCIA01_001_1"),
        (2019, "BraTS19_TCIA01_001_1"),
        (2020, "BraTS20_TCIA01_001_1"),
    ],
)
def test_both_forms_of_the_mapping_and_every_year(tmp_path, write, brats, year, subject):
    mapping = write["mapping"](tmp_path / "other.csv", year=year)
    assert join_people([subject], mapping, brats["clinical"])["sex"].tolist() == ["F"]


def test_literal_na_is_no_id(brats):
    mapping = read_name_mapping(brats["name_mapping"])
    # one subject, two years
    assert "NA" not in set(mapping["subject"]) and mapping["tcga"].isna().sum() == 2
    assert not (mapping["tcga"] == "NA").any()


def test_bracketed_words_are_missing(tmp_path, brats):
    text = brats["clinical"][0].read_text().replace("FEMALE", "[Not Available]")
    (tmp_path / "gbm.txt").write_text(text)
    table = read_biotab(tmp_path / "gbm.txt")
    assert table["sex"].isna().tolist() == [True, False] and np.isnan(table["age"][1])
    people = join_people(["Brats18_TCIA01_001_1"], brats["name_mapping"], [tmp_path / "gbm.txt"])
    assert people["reason"].tolist() == ["sex not stated in the clinical tables"] and people[
        "age"
    ].tolist() == [44]


def test_a_table_without_age_gives_none(tmp_path, brats):
    text = brats["clinical"][0].read_text().replace("age_at_initial", "some_other")
    (tmp_path / "gbm.txt").write_text(text)
    assert read_biotab(tmp_path / "gbm.txt")["age"].isna().all()


def edit(old, new, which):
    def change(files):
        path = files[which] if which == "name_mapping" else files["clinical"][which]
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


FAULTS = {
    "no TCGA column": (
        edit("TCGA_TCIA_subject_ID", "TCGA_ID", "name_mapping"),
        "no column 'TCGA_TCIA_subject_ID'",
    ),
    "no id column": (
        lambda files: files["name_mapping"].write_text("Grade,id\nHGG,a\n"),
        "no column BraTS_<year>",
    ),
    "id twice": (
        edit("Brats18_TCIA01_002_1", "Brats18_TCIA01_001_1", "name_mapping"),
        "stands twice",
    ),
    "empty map": (lambda files: files["name_mapping"].write_text("\n"), "is empty"),
    "missing map": (lambda files: files["name_mapping"].unlink(), "cannot be read"),
    "another release": (
        lambda files: files["name_mapping"].write_text(
            "Grade,BraTS_2021_subject_ID,TCGA_TCIA_subject_ID\nHGG,x,NA\n"
        ),
        "another release|of another",
    ),
    "no gender column": (edit("gender", "sex", 0), "no column 'gender'"),
    "no barcode column": (
        edit("bcr_patient_barcode", "barcode", 0),
        "did you mean|no column 'bcr_patient_barcode'",
    ),
    "one header line": (
        lambda files: files["clinical"][0].write_text(
            "bcr_patient_barcode\tgender\nTCGA-02-0001\tFEMALE\nTCGA-02-0002\tMALE\n"
        ),
        "three header lines",
    ),
    "another word": (edit("\tMALE", "\tBOY", 0), "BOY"),
    "ragged row": (edit("\tMALE\t", "\tMALE\t\t", 0), "cells"),
    "patient twice": (edit("TCGA-02-0002", "TCGA-02-0001", 0), "stands twice"),
    "patient in two tables": (edit("TCGA-CS-0003", "TCGA-02-0001", 1), "stands twice"),
    "not text": (lambda files: files["clinical"][0].write_bytes(b"\xff\xfe\x00"), "UTF-8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_table_is_named(brats, fault):
    change, message = FAULTS[fault]
    change(brats)
    with pytest.raises(DataError, match=message) as caught:
        join_people(["Brats18_TCIA01_001_1"], brats["name_mapping"], brats["clinical"])
    assert any(
        str(path) in str(caught.value) for path in [brats["name_mapping"], *brats["clinical"]]
    )


def test_no_clinical_table_leaves_every_sex_unknown(brats):
    people = join_people(["Brats18_TCIA01_001_1"], brats["name_mapping"], [])
    assert people["sex"].isna().all() and people["reason"].tolist() == [
        "TCGA id not in the clinical tables"
    ]
    assert isinstance(people["sex"].dtype, pd.StringDtype)
