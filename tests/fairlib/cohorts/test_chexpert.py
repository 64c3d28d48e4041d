"""The CheXpert reader on synthetic radiographs in the released layout, and on what can be wrong
with it.
"""

import shutil
import sys

import numpy as np
import openpyxl
import pandas as pd
import pytest
import torch
from PIL import Image

from fairlib import DataError, SettingsError
from fairlib.cohorts.chexpert import (
    ATTRIBUTES,
    prompt_of,
    race_of,
    read_chexpert,
    read_demographics,
)
from fairlib.cohorts.tables import group_codes
from tests.fairlib.cohorts.phantoms import FINDINGS, ChestSettings, draw_chest, write_chexpert

SETTINGS = ChestSettings(
    patients=40, validation=6, effusion=0.5, lateral=0.3, uncertain=0.2, width=40, height=48, seed=4
)
LABEL = "Pleural Effusion"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_chexpert(tmp_path_factory.mktemp("chexpert"), SETTINGS)


@pytest.fixture
def root(written, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(written, tmp_path / written.name)


@pytest.fixture(scope="module")
def released(written):
    """Both tables as they are on the disk, the frontal views alone."""
    tables = [
        pd.read_csv(written / f"{name}.csv", dtype=str, keep_default_na=False)
        for name in ("train", "valid")
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[table["Frontal/Lateral"] == "Frontal"].reset_index(drop=True)


def edit(root, change, name="train.csv"):
    change(pd.read_csv(root / name, dtype=str, keep_default_na=False)).to_csv(
        root / name, index=False
    )


@pytest.mark.parametrize("policy", ["zeros", "ones", "exclude"])
def test_uncertain_labels_follow_the_policy(written, released, policy):
    cohort = read_chexpert(written, uncertain=policy)
    kept = released[released[LABEL] != "-1.0"] if policy == "exclude" else released
    assert cohort.table["image"].tolist() == [path.split("/", 1)[1] for path in kept["Path"]]
    words = {
        "1.0": LABEL,
        "0.0": f"non {LABEL}",
        "-1.0": LABEL if policy == "ones" else f"non {LABEL}",
        "": None,
    }
    found = [None if pd.isna(value) else value for value in cohort.table["finding"]]
    assert found == [words[value] for value in kept[LABEL]]
    uncertain = int((released[LABEL] == "-1.0").sum())
    assert uncertain > 0
    assert (cohort.excluded["reason"] == "label uncertain").sum() == (
        uncertain if policy == "exclude" else 0
    )
    assert (cohort.table["mention"] == "uncertain").sum() == (
        0 if policy == "exclude" else uncertain
    )


def test_a_policy_must_be_given(written):
    with pytest.raises(SettingsError, match="uncertain= one of zeros, ones, exclude"):
        read_chexpert(written)
    with pytest.raises(SettingsError, match="did you mean 'zeros'"):
        read_chexpert(written, uncertain="zero")
    with pytest.raises(
        SettingsError, match="'ones' in the policies for labels that are not mentioned"
    ):
        read_chexpert(written, uncertain="zeros", unmentioned="ones")


def test_a_label_that_is_not_mentioned_stays_unknown(written, released):
    blank = int((released[LABEL] == "").sum())
    cohort = read_chexpert(written, uncertain="zeros")
    assert (
        blank > 0
        and cohort.table["finding"].isna().sum()
        == blank
        == (cohort.table["mention"] == "not mentioned").sum()
    )
    taken = read_chexpert(written, uncertain="zeros", unmentioned="zeros")
    assert taken.table["finding"].notna().all()
    assert (taken.table.loc[cohort.table["finding"].isna(), "finding"] == f"non {LABEL}").all()
    whole = cohort.with_prompt()
    lacking = cohort.table[["sex", "race", "finding"]].isna().any(axis=1)
    assert len(whole) == (~lacking).sum() and whole.table["prompt"].notna().all()
    gone = whole.excluded[whole.excluded["reason"].str.endswith("unknown")]
    assert len(gone) == lacking.sum() and set(gone["reason"]) == {"race unknown", "finding unknown"}


def test_race_comes_from_the_sheet(written):
    cohort = read_chexpert(written, uncertain="zeros")
    truth = {f"patient{index + 1:05d}": draw_chest(SETTINGS, index)[1] for index in range(46)}
    expected = [truth[subject]["race"] for subject in cohort.table["subject"]]
    assert [race if isinstance(race, str) else "Other" for race in cohort.table["race"]] == expected
    assert {"White", "Other"} < set(expected)
    assert [truth[subject]["sex"][0] for subject in cohort.table["subject"]] == cohort.table[
        "sex"
    ].tolist()
    assert [truth[subject]["age"] for subject in cohort.table["subject"]] == cohort.table[
        "age"
    ].tolist()
    codes = group_codes(cohort.with_prompt().table, ATTRIBUTES)
    assert codes.shape[1] == 2 and codes.max() == 2


@pytest.mark.parametrize(
    ("text", "race"),
    [
        ("White", "White"),
        ("White, non-Hispanic", "White"),
        ("Black or African American", "Black"),
        ("Asian - Historical Conv", "Asian"),
        ("Native Hawaiian or Other Pacific Islander", None),
        ("Other, non-Hispanic", None),
        ("Patient Refused", None),
        ("", None),
    ],
)
def test_a_race_is_told_by_the_first_word(text, race):
    assert race_of(text) == race


def test_prompts_are_the_paper_s(written):
    row = {"sex": "M", "race": "Black", "finding": "Pleural Effusion"}
    assert (
        prompt_of(row)
        == "Chest Radiography image of a Male Black patient diagnosed with Pleural Effusion"
    )
    assert prompt_of(row | {"sex": "F", "finding": "non Pleural Effusion"}) == (
        "Chest Radiography image of a Female Black patient diagnosed with non Pleural Effusion"
    )
    with pytest.raises(DataError, match="race <NA>"):
        prompt_of(row | {"race": pd.NA})
    table = read_chexpert(written, uncertain="ones").with_prompt().table
    assert table["prompt"].tolist() == [prompt_of(row) for row in table.to_dict("records")]
    edema = (
        read_chexpert(written, uncertain="zeros", label="Edema", unmentioned="zeros")
        .with_prompt()
        .table["prompt"]
    )
    assert edema.str.endswith("diagnosed with non Edema").all()


def test_the_views_and_the_split_are_the_release_s(written, released):
    frontal, both = (
        read_chexpert(written, uncertain="zeros"),
        read_chexpert(written, uncertain="zeros", frontal_only=False),
    )
    lateral = int((both.table["view"] == "lateral").sum())
    assert set(frontal.table["view"]) == {"frontal"} and len(both) == len(frontal) + lateral
    assert lateral == (frontal.excluded["reason"] == "not frontal").sum() > 0
    parts = both.parts()
    assert set(parts) == {"training", "validation"} and len(parts["validation"].subjects()) == 6
    halves = both.split({"a": 0.5, "b": 0.5}, seed=1, stratify=())
    assert both.table["subject"].duplicated().any() and not set(halves["a"].subjects()) & set(
        halves["b"].subjects()
    )


def test_pictures_are_grey(written):
    cohort = read_chexpert(written, uncertain="zeros", size=24)
    images = cohort.load([0, 1])
    assert images.shape == (2, 1, 24, 24) and images.dtype == torch.float32
    picture, _ = draw_chest(SETTINGS, 0)
    square = np.zeros((48, 48), np.uint8)
    square[:, 4:44] = picture
    expected = (
        np.asarray(Image.fromarray(square).resize((24, 24), Image.Resampling.BILINEAR)) / 127.5 - 1
    )
    assert np.abs(images[0, 0].numpy() - expected).mean() < 0.02  # jpg


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", "CheXpert-v1.0-small/", ""])
def test_every_prefix_of_a_path_leads_to_the_folder(root, prefix):
    before = read_chexpert(root.parent, uncertain="zeros").table
    for name in ("train.csv", "valid.csv"):
        edit(
            root,
            lambda table: table.assign(Path=prefix + table["Path"].str.split("/", n=1).str[1]),
            name,
        )
    pd.testing.assert_frame_equal(read_chexpert(root, uncertain="zeros").table, before)


def test_the_large_release_is_found(tmp_path):
    write_chexpert(
        tmp_path,
        ChestSettings(patients=2, validation=0, width=20, height=24, lateral=0),
        small=False,
    )
    found = read_chexpert(tmp_path, uncertain="zeros")
    assert (
        len(found) == 2
        and set(found.table["use"]) == {"training"}
        and found.load().shape == (2, 1, 128, 128)
    )


def test_pictures_that_are_not_there_are_counted(root):
    gone = read_chexpert(root, uncertain="zeros").table["image"][0]
    (root / gone).unlink()
    excluded = read_chexpert(root, uncertain="zeros").excluded.to_numpy().tolist()
    assert [gone, "image missing", str(root / gone)] in excluded
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "valid")
    with pytest.raises(DataError, match="none of the .* listed images can be used"):
        read_chexpert(root, uncertain="zeros")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop(columns=LABEL), f"no column '{LABEL}'"),
        (
            lambda t: t.assign(**{LABEL: "2.0"}),
            r"train/patient00001/study1/view1_frontal\.jpg: Pleural Effusion is '2\.0'",
        ),
        (lambda t: t.assign(Path="../../etc/passwd"), r"Path '\.\./\.\./etc/passwd'; expected"),
        (lambda t: t.assign(Path="MIMIC/" + t["Path"].str.split("/", n=1).str[1]), "Path 'MIMIC"),
        (lambda t: t.assign(Sex="X"), "Sex is 'X'"),
        (lambda t: t.assign(Age="old"), "Age is 'old'"),
        (lambda t: t.assign(**{"Frontal/Lateral": "Oblique"}), "Frontal/Lateral is 'Oblique'"),
        (lambda t: pd.concat([t, t[:1]]), "stands twice"),
    ],
)
def test_a_wrong_table_is_named(root, change, match):
    edit(root, change)
    with pytest.raises(DataError, match=match):
        read_chexpert(root, uncertain="zeros")


def of_first(column, value):
    """A change of one cell of train.csv."""
    return lambda t: t.assign(**{column: [value, *t[column][1:]]})


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("Age", "old", "Age is 'old'"),
        ("Sex", "X", "Sex is 'X'"),
        (LABEL, "2", "is '2'"),
        ("Path", "x.jpg", "Path 'x.jpg'"),
    ],
)
def test_a_faulty_row_leaves_out_that_image_and_is_listed(root, column, value, reason):
    before = read_chexpert(root, uncertain="zeros").table["image"]
    edit(root, of_first(column, value))
    found = read_chexpert(root, uncertain="zeros")
    line = found.excluded.set_index("reason").loc["faulty row of the table"]
    assert reason in line["detail"] and len(found) == len(before) - 1
    assert set(found.table["image"]) < set(before)


def test_the_release_in_batches_is_read(root):
    before = read_chexpert(root, uncertain="zeros")
    one = root.parent / "CheXpert-v1.0 batch 1 (validate & csv)"
    one.mkdir()
    for name in ("train.csv", "valid.csv", "valid"):
        (root / name).rename(one / name)
    patients = sorted((root / "train").iterdir())
    for number, part in enumerate((patients[::2], patients[1::2]), 2):
        batch = root.parent / f"CheXpert-v1.0 batch {number} (train {number - 1})"
        batch.mkdir()
        for path in part:
            path.rename(batch / path.name)
    (root / "CHEXPERT DEMO.csv").rename(root.parent / "CHEXPERT DEMO.csv")
    shutil.rmtree(root)
    for place in (root.parent, one):
        found = read_chexpert(place, uncertain="zeros")
        pd.testing.assert_frame_equal(found.table, before.table)
        assert found.load().shape == (len(before), 1, 128, 128)


@pytest.mark.parametrize("change", ["windows", "absolute", "bare"])
def test_paths_as_programs_rewrite_them_are_read(root, change):
    before = read_chexpert(root, uncertain="zeros").table

    def rewritten(path):
        if change == "windows":
            return path.replace("/", "\\")
        return path.partition("/")[2] if change == "bare" else f"/home/me/data/{path}"

    edit(root, lambda t: t.assign(Path=t["Path"].map(rewritten)))
    pd.testing.assert_frame_equal(read_chexpert(root, uncertain="zeros").table, before)


def test_a_folder_of_another_name_is_found(root, tmp_path):
    before = read_chexpert(root, uncertain="zeros").table
    (tmp_path / "download").mkdir()
    shutil.copytree(root, tmp_path / "download/archive")
    found = read_chexpert(tmp_path / "download", uncertain="zeros")
    pd.testing.assert_frame_equal(found.table, before)


def test_broken_images_are_listed_at_reading(root):
    gone = read_chexpert(root, uncertain="zeros").table["image"]
    (root / gone[0]).write_bytes(b"")
    (root / gone[1]).write_bytes((root / gone[1]).read_bytes()[:200])
    found = read_chexpert(root, uncertain="zeros")
    lost = found.excluded[found.excluded["reason"] == "image broken"]
    assert (
        lost["item"].tolist() == gone[:2].tolist()
        and "is empty; fetch it again" in lost["detail"].iloc[0]
    )
    assert len(found.load()) == len(gone) - 2


def test_an_unknown_sex_is_counted(root):
    edit(root, lambda table: table.assign(Sex=["Unknown", *table["Sex"][1:]]))
    cohort = read_chexpert(root, uncertain="zeros", unmentioned="zeros")
    assert cohort.table["sex"].isna().tolist().count(True) == 1
    assert (cohort.with_prompt().excluded["reason"] == "sex unknown").sum() == 1


def test_the_sheet_must_be_there_and_agree_with_itself(root):
    sheet = root / "CHEXPERT DEMO.csv"
    people = pd.read_csv(sheet, dtype=str)
    flipped = people.assign(
        GENDER=["Male" if people["GENDER"][0] == "Female" else "Female", *people["GENDER"][1:]]
    )
    flipped.to_csv(sheet, index=False)
    notes = read_chexpert(root, uncertain="zeros").notes
    assert notes["item"].tolist() == ["patient00001"] and notes["reason"][0].startswith(
        "sex differs"
    )
    people[1:].to_csv(sheet, index=False)
    assert (
        read_chexpert(root, uncertain="zeros")
        .table.set_index("subject")["race"]
        .isna()["patient00001"]
    )
    pd.concat([people, people[:1]]).to_csv(sheet, index=False)
    assert len(read_demographics(sheet)) == len(people)  # the same twice is no contradiction
    pd.concat([people, people[:1].assign(PRIMARY_RACE="Hawaiian")]).to_csv(sheet, index=False)
    found = read_chexpert(root, uncertain="zeros")
    note = found.notes.set_index("item").loc["patient00001"]
    assert note["reason"] == "fault in the demographic sheet" and "race differ" in note["detail"]
    of_first = found.table.set_index("subject").loc[["patient00001"]]
    assert of_first["race"].isna().all() and of_first["sex"].notna().all()
    unknown = people.assign(GENDER=["X", *people["GENDER"][1:]])
    unknown.to_csv(sheet, index=False)
    note = read_chexpert(root, uncertain="zeros").notes.set_index("item").loc["patient00001"]
    assert "GENDER is 'X'" in note["detail"]
    people.drop(columns="PRIMARY_RACE").to_csv(sheet, index=False)
    with pytest.raises(DataError, match="no column 'PRIMARY_RACE'"):
        read_chexpert(root, uncertain="zeros")
    sheet.rename(root.parent / "people.csv")
    with pytest.raises(DataError, match="only this sheet knows race"):
        read_chexpert(root, uncertain="zeros")


def test_a_sheet_elsewhere_is_given_by_its_path(root, tmp_path):
    before = read_chexpert(root, uncertain="zeros").table
    moved = (root / "CHEXPERT DEMO.csv").rename(tmp_path / "people.csv")
    pd.testing.assert_frame_equal(
        read_chexpert(root, uncertain="zeros", demographics=moved).table, before
    )
    with pytest.raises(DataError, match=r"nowhere\.csv: cannot be read"):
        read_chexpert(root, uncertain="zeros", demographics=tmp_path / "nowhere.csv")


def write_sheet(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def test_xlsx_without_openpyxl_says_what_to_do(tmp_path, monkeypatch):
    write_sheet(tmp_path / "CHEXPERT DEMO.xlsx", [["PATIENT"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match="cannot be read as xlsx.*openpyxl.*save it as csv"):
        read_demographics(tmp_path / "CHEXPERT DEMO.xlsx")


def test_a_real_xlsx_is_read(tmp_path):
    """Cells are values of any type, rows may be short or empty."""
    sheet = [
        ["PATIENT", "GENDER", "AGE_AT_CXR", "PRIMARY_RACE", "ETHNICITY"],
        [None, None],
        ["patient00001", "Female", 54, "Asian, non-Hispanic", None],
        ["patient00002", "Male", 60],
    ]
    write_sheet(tmp_path / "CHEXPERT DEMO.xlsx", sheet)
    assert read_demographics(tmp_path / "CHEXPERT DEMO.xlsx") == {
        "patient00001": {"race": "Asian", "primary_race": "Asian, non-Hispanic", "sex": "F"},
        "patient00002": {"race": None, "primary_race": None, "sex": "M"},
    }
    write_sheet(tmp_path / "CHEXPERT DEMO.xlsx", [[None]])
    with pytest.raises(DataError, match="is empty"):
        read_demographics(tmp_path / "CHEXPERT DEMO.xlsx")
    (tmp_path / "CHEXPERT DEMO.xlsx").write_bytes(b"no sheet")
    with pytest.raises(DataError, match="cannot be read as xlsx"):
        read_demographics(tmp_path / "CHEXPERT DEMO.xlsx")


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds neither train\.csv nor valid\.csv"):
        read_chexpert(tmp_path, uncertain="zeros")


def test_the_phantom_shows_what_it_says():
    settings = ChestSettings(effusion=0.5, female=0.5, races=(0.4, 0.3, 0.2), seed=2)
    found = [draw_chest(settings, index) for index in range(80)]
    truth = pd.DataFrame([row for _, row in found])
    images = np.stack([picture for picture, _ in found]).astype(float)
    lungs, effusion, female = (
        (images < 100).mean((1, 2)),
        truth["effusion"].to_numpy(),
        (truth["sex"] == "Female").to_numpy(),
    )
    for women in (True, False):
        assert (
            lungs[effusion & (female == women)].max() < lungs[~effusion & (female == women)].min()
        )
    assert lungs[~effusion & female].max() < lungs[~effusion & ~female].min()
    other = (truth["race"] != "White").to_numpy()
    assert (
        abs(lungs[~effusion & female & other].mean() - lungs[~effusion & female & ~other].mean())
        < 0.005
    )
    again = draw_chest(settings, 7)
    assert np.array_equal(again[0], found[7][0]) and again[1] == found[7][1]
    assert list(FINDINGS).count(LABEL) == 1 and len(FINDINGS) == 14
