"""The HAM10000 reader on synthetic lesions in the released layout, and on what can be wrong with
it.
"""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib import DataError
from fairlib.cohorts.ham10000 import (
    ATTRIBUTES,
    CATEGORY_OF,
    age_group,
    prompt_of,
    read_ham10000,
)
from fairlib.cohorts.tables import group_codes
from tests.fairlib.cohorts.phantoms import DermoscopySettings, draw_lesion, write_ham10000

SETTINGS = DermoscopySettings(
    lesions=40,
    malignant=0.4,
    again=0.4,
    sex_unknown=0.15,
    age_unknown=0.15,
    width=40,
    height=30,
    seed=3,
)
DETAIL = DermoscopySettings(malignant=0.5, male=0.5, older=0.5, seed=5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_ham10000(tmp_path_factory.mktemp("ham"), SETTINGS)


@pytest.fixture
def root(written, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(written, tmp_path / "HAM10000")


@pytest.fixture(scope="module")
def cohort(written):
    return read_ham10000(written, size=24)


@pytest.fixture(scope="module")
def released(written):
    return pd.read_csv(written / "HAM10000_metadata.csv", dtype=str, keep_default_na=False)


def edit(root, change):
    path = root / "HAM10000_metadata.csv"
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def test_the_released_layout_is_read(cohort, released):
    whole = released[(released["sex"] != "unknown") & (released["age"] != "")].reset_index(
        drop=True
    )
    assert cohort.table["image"].tolist() == whole["image_id"].tolist()
    assert cohort.table["subject"].tolist() == whole["lesion_id"].tolist()
    assert cohort.table["sex"].tolist() == [
        {"female": "F", "male": "M"}[sex] for sex in whole["sex"]
    ]
    assert (cohort.table["age_group"] == "60 or older").tolist() == (
        whole["age"].astype(float) >= 60
    ).tolist()
    assert (cohort.table["category"] == "malignant").tolist() == whole["dx"].isin(
        ["mel", "bcc", "akiec"]
    ).tolist()
    assert set(cohort.table["category"]) == {"benign", "malignant"}


def test_sex_and_age_that_are_unknown_are_counted(cohort, released):
    no_sex, no_age = released["sex"] == "unknown", released["age"] == ""
    counted = cohort.excluded["reason"].value_counts()
    assert counted["sex unknown"] == no_sex.sum() > 0
    assert counted["age_group unknown"] == (no_age & ~no_sex).sum() > 0
    assert len(cohort) + len(cohort.excluded) == len(released)


def test_images_have_colours(cohort, written, released):
    images = cohort.load([0, 1, 2])
    assert (
        images.shape == (3, 3, 24, 24)
        and images.dtype == torch.float32
        and -1 <= images.min() < images.max() <= 1
    )
    red, green, blue = cohort.load()[:, :, 0, 0].mean(0)
    assert red > green > blue  # skin in the corner
    assert len({path.parent.name for path in written.glob("*/*.jpg")}) == 2


def test_two_images_of_a_lesion_are_never_parted(cohort):
    assert cohort.table["subject"].duplicated().any()
    parts = cohort.split({"train": 0.5, "test": 0.5}, seed=2, stratify=("category",))
    assert not set(parts["train"].subjects()) & set(parts["test"].subjects())
    assert len(parts["train"]) + len(parts["test"]) == len(cohort)


def test_prompts_are_the_paper_s(cohort):
    row = {"sex": "F", "age_group": "60 or older", "category": "benign"}
    assert prompt_of(row) == (
        "Dermoscopic image of a Female Age equal 60 or older patient with the following diagnostic "
        "category: benign"
    )
    assert prompt_of({"sex": "M", "age_group": "under 60", "category": "malignant"}) == (
        "Dermoscopic image of a Male Age under 60 patient with the following diagnostic category: "
        "malignant"
    )
    assert cohort.table["prompt"].tolist() == [
        prompt_of(row) for row in cohort.table.to_dict("records")
    ]
    assert group_codes(cohort.table, ATTRIBUTES).max(0).tolist() == [1, 1]
    with pytest.raises(DataError, match="sex None"):
        prompt_of(row | {"sex": None})


@pytest.mark.parametrize(
    ("age", "group"),
    [(0, "under 60"), (59.9, "under 60"), (60, "60 or older"), (85, "60 or older")],
)
def test_the_age_group_begins_at_60(age, group):
    assert age_group(age) == group


def test_what_has_no_group_is_refused():
    with pytest.raises(DataError, match="age nan"):
        age_group(np.nan)
    assert [CATEGORY_OF[dx] for dx in ("mel", "bcc", "akiec", "nv", "bkl", "df", "vasc")] == [
        "malignant"
    ] * 3 + ["benign"] * 4


def test_the_table_without_an_ending_is_read_too(root, cohort):
    (root / "HAM10000_metadata.csv").rename(root / "HAM10000_metadata")
    edited = root / "HAM10000_metadata"
    # only one of the two sources has this column
    pd.read_csv(edited).drop(columns="dataset").to_csv(edited, index=False)
    (root / "HAM10000_images_part_2").rename(root / "ham10000_images_part_2")
    pd.testing.assert_frame_equal(read_ham10000(root).table, cohort.table)


def test_a_tilde_is_the_home_folder(root, cohort, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    pd.testing.assert_frame_equal(read_ham10000(f"~/{root.name}").table, cohort.table)


def test_images_that_are_not_there_are_counted(root, cohort):
    gone = cohort.table["image"][0]
    next(root.glob(f"*/{gone}.jpg")).unlink()
    found = read_ham10000(root)
    assert len(found) == len(cohort) - 1
    assert found.excluded.to_numpy().tolist()[0] == [
        gone,
        "image missing",
        f"{root}/*/{gone}.jpg",
    ]
    (root / "HAM10000_images_part_1" / f"{cohort.table['image'][2]}.jpg").write_bytes(b"no picture")
    found = read_ham10000(root)
    broken = found.excluded.set_index("reason").loc["image broken"]
    assert broken["item"] == cohort.table["image"][2] and "cannot be decoded" in broken["detail"]
    assert found.load().shape[0] == len(cohort) - 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop(columns="lesion_id"), "no column 'lesion_id'"),
        (lambda t: pd.concat([t, t[:1]]), "'ISIC_0000000' stands twice"),
        (lambda t: t.assign(dx="scc"), "ISIC_0000000: dx 'scc'"),
        (lambda t: t.assign(dx=""), "ISIC_0000000: dx ''"),
        (lambda t: t.assign(sex="M?"), "sex is 'M\\?'; expected one of female, male"),
        (lambda t: t.assign(age="old"), "age is 'old', not a number"),
        (lambda t: t.assign(age="600"), "age is 600; expected 0 to 120"),
        (lambda t: t.assign(lesion_id=""), "lesion_id or image_id is empty"),
    ],
)
def test_a_wrong_table_is_named(root, change, match):
    edit(root, change)
    with pytest.raises(DataError, match=match):
        read_ham10000(root)


def test_a_layout_that_is_none_is_refused(root, tmp_path):
    for path in root.glob("*/*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="unpack part 1 and part 2"):
        read_ham10000(root)
    for part in (1, 2):
        (root / f"HAM10000_images_part_{part}").rmdir()
    with pytest.raises(DataError, match=r"no ISIC_\*\.jpg is there"):
        read_ham10000(root)
    with pytest.raises(DataError, match=r"neither HAM10000_metadata\.csv"):
        read_ham10000(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["HAM10000_metadata.tab", "ham10000_metadata.TSV"])
def test_the_table_of_dataverse_is_read(root, cohort, name):
    table = pd.read_csv(root / "HAM10000_metadata.csv", dtype=str, keep_default_na=False)
    quoted = table.map(lambda cell: cell if cell.replace(".", "").isdigit() else f'"{cell}"')
    lines = ["\t".join(f'"{column}"' for column in table)]
    lines += ["\t".join(row) for row in quoted.to_numpy()]
    (root / name).write_text("\n".join(lines) + "\n")
    (root / "HAM10000_metadata.csv").unlink()
    pd.testing.assert_frame_equal(read_ham10000(root).table, cohort.table)


@pytest.mark.parametrize("place", ["images", "HAM10000_images_part_1/HAM10000_images_part_1", "."])
def test_images_in_another_folder_are_found(root, cohort, place):
    (root / place).mkdir(parents=True, exist_ok=True)
    for path in sorted(root.glob("HAM10000_images_part_?/*.jpg")):
        path.rename(root / place / path.name)
    found = read_ham10000(root, size=24)
    pd.testing.assert_frame_equal(found.table, cohort.table)
    assert (found.load() == cohort.load()).all()


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("age", "600", "age is 600"), ("sex", "M?", "sex is 'M\\?'"), ("dx", "scc", "dx 'scc'")],
)
def test_a_faulty_row_leaves_out_that_image_and_is_listed(root, cohort, column, value, reason):
    edit(root, lambda t: t.assign(**{column: [value, *t[column][1:]]}))
    found = read_ham10000(root)
    line = found.excluded.set_index("item").loc["ISIC_0000000"]
    assert line["reason"] == "faulty row of the table" and re.search(reason, line["detail"])
    assert set(found.table["image"]) == set(cohort.table["image"]) - {"ISIC_0000000"}


def darkness(picture):
    """Where the lesion is: pixels far from skin."""
    return picture[:, :, 0] < 150


def test_the_phantom_shows_what_it_says():
    found = [draw_lesion(DETAIL, index) for index in range(60)]
    rows = pd.DataFrame([row for _, row in found])
    malignant, male, older = (
        rows["dx"].isin(["mel", "bcc", "akiec"]),
        rows["sex"] == "male",
        rows["age"].astype(float) >= 60,
    )
    blue = np.array([(picture[:, :, 2] > picture[:, :, 0] + 10).mean() for picture, _ in found])
    assert blue[malignant].min() > 0.005 > blue[~malignant].max()  # a second colour
    edge = np.array(
        [
            darkness(picture)[:, [0, -1]].mean() + darkness(picture)[[0, -1]].mean()
            for picture, _ in found
        ]
    )
    # hairs cross the border of the picture
    assert edge[male].mean() > 0.01 and edge[~male].max() == 0
    assert older.any() and (~older).any()
    corner = np.array([(picture[:, :20, 0] < 205).mean() for picture, _ in found])
    assert corner[older & ~male].mean() > corner[~older & ~male].mean()  # spots on the skin


def test_a_lesion_is_a_function_of_seed_index_and_view():
    first, second = draw_lesion(DETAIL, 3), draw_lesion(DETAIL, 3)
    assert np.array_equal(first[0], second[0]) and first[1] == second[1]
    other, row = draw_lesion(DETAIL, 3, view=1)
    assert row["lesion_id"] == first[1]["lesion_id"] and row["image_id"] != first[1]["image_id"]
    assert not np.array_equal(other, first[0])
