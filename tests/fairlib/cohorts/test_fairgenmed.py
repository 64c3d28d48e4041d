"""The FairGenMed reader on small files in the released layout, and on what can be wrong with
them.
"""

import itertools
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fairlib import DataError, SettingsError
from fairlib.cohorts.fairgenmed import (
    EXAMPLE,
    FOLDERS,
    PROMPTED,
    cdr_status,
    fundus_image,
    parse_prompt,
    prompt_of,
    read_codes,
    read_fairgenmed,
    read_npz,
    read_subjects,
)
from fairlib.cohorts.tables import group_codes

CDR, SEVERITY = ("normal", "borderline", "abnormal"), ("normal", "mild", "moderate", "severe")
RACES, USES = (
    ("Asian", "Black", "White"),
    ("training", "training", "training", "validation", "test", "test"),
)
REFRACTION = ("positive", "neutral", "negative")


def person(index):
    return {
        "filename": f"data_{index:05d}.npz",
        "age": 40.5 + index,
        "gender": ("Female", "Male")[index % 2],
        "race": RACES[index % 3],
        "ethnicity": ("Non-Hispanic", "Hispanic")[index % 4 == 3],
        "language": "English",
        "maritalstatus": "unknown",
        "md": -1 if index == 2 else -2.5 * index,
        "glaucoma": ("no", "yes")[index % 2],
        "use": USES[index % 6],
        "md_severity": SEVERITY[index % 4],
        "cdr_status": CDR[index % 3],
        "rnflt_status": ("high", "medium", "low")[index % 3],
        "near_vision_refraction_stage": REFRACTION[index % 3],
    }


def picture(index, shape=(20, 20, 3)):
    return np.random.default_rng(index).integers(0, 200, shape).astype(np.uint8)


def arrays(row, index):
    return {
        "slo_fundus": picture(index),
        "race": RACES.index(row["race"]),
        "glaucoma": int(row["glaucoma"] == "yes"),
        "male": int(row["gender"] == "Male"),
        "hispanic": int(row["ethnicity"] == "Hispanic"),
        "md": row["md"],
    }


def write(root, count=12):
    rows = [person(index) for index in range(count)]
    for index, row in enumerate(rows):
        folder = root / FOLDERS[row["use"]]
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / row["filename"], **arrays(row, index))
    pd.DataFrame(rows).to_csv(root / "data_summary.csv", index=False)
    return root


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("fairgenmed"))


@pytest.fixture
def root(written, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(written, tmp_path / "FairGenMed")


@pytest.fixture(scope="module")
def cohort(written):
    return read_fairgenmed(written, size=16)


def edit(root, change):
    table = pd.read_csv(root / "data_summary.csv", dtype=str, keep_default_na=False)
    change(table).to_csv(root / "data_summary.csv", index=False)


def rewrite(path, **changes):
    with np.load(path) as file:
        kept = dict(file)
    np.savez(
        path, **{name: value for name, value in {**kept, **changes}.items() if value is not None}
    )


def test_the_released_layout_is_read(cohort):
    row = cohort.table.loc[1].to_dict()
    assert len(cohort) == 12 and not len(cohort.excluded)
    assert {
        name: row[name]
        for name in (
            "subject",
            "age",
            "sex",
            "race",
            "ethnicity",
            "glaucoma",
            "md",
            "md_severity",
            "cdr_status",
            "rnflt_status",
            "refraction",
            "use",
            "image",
        )
    } == {
        "subject": "data_00001",
        "age": 41.5,
        "sex": "M",
        "race": "Black",
        "ethnicity": "Non-Hispanic",
        "glaucoma": "glaucoma",
        "md": -2.5,
        "md_severity": "mild",
        "cdr_status": "borderline",
        "rnflt_status": "medium",
        "refraction": "emmetropia",
        "use": "training",
        "image": "Training/data_00001.npz",
    }
    assert row["prompt"] == prompt_of(row)
    # nobody here is a Black woman with glaucoma
    assert EXAMPLE.split(",")[0] not in set(cohort.table["prompt"])
    assert cohort.table["refraction"].tolist()[:3] == ["hyperopia", "emmetropia", "myopia"]
    assert cohort.table["md"][2] == -1  # a mean deviation, not a mark for "missing"
    assert group_codes(cohort.table)[:4].tolist() == [[0, 0, 0], [1, 1, 0], [2, 0, 0], [0, 1, 1]]


def test_the_split_is_the_release_s(cohort):
    parts = cohort.parts()
    assert {name: len(part) for name, part in parts.items()} == {
        "training": 6,
        "validation": 2,
        "test": 4,
    }
    assert (
        parts["test"].table["image"].str.startswith("Test/").all()
        and parts["test"].name == "fairgenmed/test"
    )
    assert not set(parts["training"].subjects()) & set(parts["test"].subjects())
    assert torch.equal(parts["validation"].load(), cohort.load(cohort.table["use"] == "validation"))


def test_pictures_are_grey_from_minus_one_to_one(cohort, written):
    images = cohort.load([0, 5])
    assert images.shape == (2, 1, 16, 16) and images.dtype == torch.float32
    same_size = read_fairgenmed(written, size=20).load([5])[0, 0].numpy()
    raw = picture(5).astype(float)
    expected = ((raw - raw.min()) / (raw.max() - raw.min()) * 2 - 1).mean(axis=2)
    assert np.abs(same_size - expected).max() < 1e-6
    turned = read_fairgenmed(written, size=20, rotate=True).load([5])[0, 0].numpy()
    assert (
        np.abs(turned - np.asarray(Image.fromarray(expected.astype(np.float32)).rotate(-90))).max()
        < 1e-6
    )


def test_a_picture_keeps_its_proportions():
    ramp = np.tile(np.linspace(0, 5, 40), (20, 1))
    image = fundus_image(ramp, 40)
    assert image.shape == (40, 40) and (image[:10] == -1).all() and (image[30:] == -1).all()
    assert np.abs(image[15] - np.linspace(-1, 1, 40)).max() < 1e-6
    assert fundus_image(np.stack([ramp] * 3, axis=2), 7).shape == (7, 7)


def test_without_a_picture_in_the_npz_the_jpg_is_read(root):
    rewrite(root / "Training/data_00000.npz", slo_fundus=None)
    line = read_fairgenmed(root).excluded.loc[0]
    assert line["item"] == "data_00000.npz" and line["reason"] == "no image"
    assert "no slo_fundus; nor slo_fundus_00000.jpg" in line["detail"]
    grey = np.zeros((16, 16), np.uint8)
    grey[:, 8:] = 240
    Image.fromarray(grey).save(root / "Training/slo_fundus_00000.jpg", quality=95)
    image = read_fairgenmed(root, size=16).load([0])[0, 0]
    assert image[:, :8].max() < -0.9 and image[:, 8:].min() > 0.9


@pytest.mark.parametrize("shape", [(0,), (0, 0, 3), (4,), (4, 4, 5)])
def test_an_image_that_is_none_leaves_out_that_subject_at_reading(root, shape):
    rewrite(root / "Training/data_00000.npz", slo_fundus=np.zeros(shape, np.uint8))
    found = read_fairgenmed(root)
    line = found.excluded.set_index("item").loc["data_00000.npz"]
    assert line["reason"] == "no image" and len(found.load()) == len(found) == 11
    jpg = root / "Training/slo_fundus_00000.jpg"
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(jpg)
    assert len(read_fairgenmed(root).load()) == (12 if 0 in shape else 11)
    jpg.write_bytes(jpg.read_bytes()[:100])
    assert len(read_fairgenmed(root).load()) == 11


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("race", "Martian", "race is 'Martian'"), ("age", "430", "age is 430"), ("use", "", "empty")],
)
def test_a_faulty_row_leaves_out_that_subject_and_is_listed(root, column, value, reason):
    edit(root, lambda t: t.assign(**{column: [value, *t[column][1:]]}))
    found = read_fairgenmed(root)
    assert found.excluded[["item", "reason"]].to_numpy().tolist() == [
        ["data_00000.npz", "faulty row of the table"]
    ]
    assert reason in found.excluded["detail"][0] and len(found) == 11


def test_rows_without_npz_and_npz_without_rows_are_counted(root):
    (root / "Training/data_00001.npz").unlink()
    shutil.move(root / "Test/data_00004.npz", root / "Training/data_00004.npz")
    shutil.copy(root / "Test/data_00005.npz", root / "Test/data_99999.npz")
    found = read_fairgenmed(root)
    assert len(found) == 10 and dict(
        zip(found.excluded["item"], found.excluded["reason"], strict=True)
    ) == {
        "data_00001.npz": "npz missing",
        "data_00004.npz": "npz in another folder",
        "data_99999.npz": "not in the table",
    }
    shutil.copy(root / "Training/data_00000.npz", root / "Test/data_00000.npz")
    with pytest.raises(DataError, match="data_00000.npz lies in Training and Test"):
        read_fairgenmed(root)


def test_what_macos_adds_is_no_subject(root):
    shutil.copy(root / "Test/data_00005.npz", root / "Test/._data_00005.npz")
    assert not len(read_fairgenmed(root).excluded)


def test_codes_outside_the_release_are_counted(root):
    for index, changes in {
        0: {"race": 7},
        1: {"race": -1},
        2: {"race": "Martian"},
        6: {"glaucoma": 2},
        7: {"race": 0.5},
        8: {"hispanic": -1, "male": -1},
        9: {"race": "Asian"},
    }.items():
        rewrite(root / FOLDERS[USES[index % 6]] / f"data_0000{index}.npz", **changes)
    found = read_fairgenmed(root)
    lost = found.excluded.set_index("item")
    assert sorted(lost.index) == [f"data_0000{index}.npz" for index in (0, 1, 2, 6, 7)]
    assert set(lost["reason"]) == {"unknown code"}
    assert "race 7; expected 0 (Asian), 1 (Black), 2 (White)" in lost["detail"]["data_00000.npz"]


def test_csv_and_npz_that_disagree_are_named(root):
    rewrite(root / "Training/data_00000.npz", race=2, glaucoma=1)
    rewrite(root / "Training/data_00001.npz", male=0)
    lost = read_fairgenmed(root).excluded.set_index("item")
    assert set(lost["reason"]) == {"csv and npz disagree"} and len(lost) == 2
    assert (
        lost["detail"]["data_00000.npz"]
        == "race: csv Asian, npz White; glaucoma: csv non-glaucoma, npz glaucoma"
    )
    assert lost["detail"]["data_00001.npz"] == "sex: csv M, npz F"


class Harmful:
    """What an attacker would pickle: unpickling it fails the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickled object was opened",))


def test_a_pickled_object_is_one_clear_error(root):
    path = root / "Training/data_00002.npz"
    rewrite(path, race=np.array(Harmful(), dtype=object))
    with pytest.raises(DataError, match=r"data_00002\.npz: array 'race' holds pickled objects"):
        read_fairgenmed(root)
    rewrite_clean = {**arrays(person(2), 2), "slo_fundus": np.array([Harmful()], dtype=object)}
    np.savez(path, **rewrite_clean)
    with pytest.raises(
        DataError, match=r"data_00002\.npz: array 'slo_fundus' holds pickled objects"
    ):
        read_fairgenmed(root).load([2])
    np.savez(path, **{**arrays(person(2), 2), "note": np.array([Harmful()], dtype=object)})
    assert len(read_fairgenmed(root).load([2])) == 1  # an array that nobody needs is never opened


def spoil(data):
    at = data.rindex(b"\x93NUMPY") // 2
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: b"", "cannot be read as npz"),
        (lambda data: b"\x80\x04N.", "cannot be read as npz"),
        (lambda data: data[: len(data) // 2], "cannot be read as npz"),
        (spoil, "cannot be read as npz"),
    ],
)
def test_a_broken_npz_is_named(root, change, match):
    path = root / "Training/data_00002.npz"
    path.write_bytes(change(path.read_bytes()))
    found = read_fairgenmed(root)
    line = found.excluded.set_index("item").loc["data_00002.npz"]
    assert line["reason"] == "npz broken" and match in line["detail"]
    assert len(found.load()) == 11


def test_an_npz_that_promises_too_much_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    header = tmp_path / "header.npy"
    with open(header, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
        )
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(header, "race.npy")
    with pytest.raises(DataError, match="larger than 128 MiB"):
        read_npz(path, ["race"])
    np.savez(path, race=1)
    with pytest.raises(DataError, match=r"has no array 'glaucoma', only \['race'\]"):
        read_codes(path)
    with pytest.raises(DataError, match="cannot be read as npz"):
        read_npz(tmp_path / "nowhere.npz", ["race"])


def test_rows_without_a_prompt_are_dropped_and_counted(root):
    def change(table):
        table.loc[1, "ethnicity"] = "Unknown"
        table.loc[3, ["race", "gender"]] = ""
        table.loc[4, "age"] = ""
        table.loc[5, "cdr_status"] = "borderline abnormal"
        return table

    edit(root, change)
    found = read_fairgenmed(root)
    assert len(found) == 12 and found.table["prompt"].isna().tolist().count(True) == 2
    whole = found.with_prompt()
    assert len(whole) == 10 and whole.table["age"].isna().sum() == 1  # a prompt needs no age
    assert whole.excluded.to_numpy().tolist() == [
        ["Training/data_00001.npz", "ethnicity unknown", ""],
        ["Validation/data_00003.npz", "race unknown", "also sex"],
    ]
    assert found.table["cdr_status"][5] == "borderline"
    with pytest.raises(DataError, match="race of row 3"):
        group_codes(found.table)
    assert group_codes(whole.table).shape == (10, 3)


def test_the_readme_s_names_are_read_too(root):
    def change(table):
        table = table.rename(columns={"near_vision_refraction_stage": "se_status"})
        table["se_status"] = table["se_status"].map(
            {"positive": "Hyperopia", "neutral": "emmetropia", "negative": "myopia"}
        )
        return table.replace({"Black": "Black or African American", "White": "White or Caucasian"})

    before = read_fairgenmed(root).table
    edit(root, change)
    pd.testing.assert_frame_equal(read_fairgenmed(root).table, before)


def test_the_truth_of_a_phantom_is_joined(root):
    truth = pd.DataFrame(
        {
            "filename": ["data_00003.npz", "data_00000.npz"],
            "cdr": [0.61, 0.4],
            "race": ["x", "x"],
            "pigment": [1, 0],
        }
    )
    truth.to_csv(root / "truth.csv", index=False)
    table = read_fairgenmed(root).table
    assert table["cdr"].tolist()[:4:3] == [0.4, 0.61] and np.isnan(table["cdr"][1])
    assert table["pigment"][3] == 1 and table["race"][0] == "Asian"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop(columns="cdr_status"), "no column 'cdr_status'"),
        (
            lambda t: t.drop(columns="near_vision_refraction_stage"),
            "no column 'near_vision_refraction_stage'",
        ),
        (lambda t: pd.concat([t, t[:1]]), r"'data_00000\.npz' stands twice"),
        (
            lambda t: pd.concat([t, t[:1].assign(filename="data_00000")]),
            r"'data_00000\.npz' stands twice",
        ),
        (
            lambda t: t.assign(race="Martian"),
            r"data_00000\.npz: race is 'Martian'; expected one of asian, black, white",
        ),
        (lambda t: t.assign(glaucoma="maybe"), "glaucoma is 'maybe'; expected one of yes, no"),
        (
            lambda t: t.assign(use="train"),
            "use is 'train'; expected one of training, validation, test",
        ),
        (lambda t: t.assign(use=""), "use is empty"),
        (lambda t: t.assign(age="old"), "age is 'old', not a number"),
        (lambda t: t.assign(age="430"), "age is 430; expected 0 to 120"),
        (lambda t: t.assign(md="inf"), "md is inf; expected -60 to 20"),
        (
            lambda t: t.assign(near_vision_refraction_stage="plus"),
            "near_vision_refraction_stage is 'plus'",
        ),
        (lambda t: t.assign(filename="../" + t["filename"]), "without a folder"),
    ],
)
def test_a_wrong_table_is_named(root, change, match):
    edit(root, change)
    with pytest.raises(DataError, match=match):
        read_subjects(root / "data_summary.csv")


def test_a_layout_that_is_none_is_refused(root, tmp_path):
    with pytest.raises(DataError, match=r"data_summary\.csv: cannot be read"):
        read_fairgenmed(tmp_path / "nothing")
    for path in root.glob("*/*.npz"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 12 subjects can be used"):
        read_fairgenmed(root)
    for folder in FOLDERS.values():
        (root / folder).rmdir()
    with pytest.raises(DataError, match="none of Training, Validation, Test is there"):
        read_fairgenmed(root)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.zeros((4, 4)), "numbers that differ"),
        (np.array([[0, np.nan]]), "finite"),
        (np.zeros((4, 4, 2)), "shape"),
        (np.zeros(4), "shape"),
        (np.array([["a", "b"]]), "finite numbers"),
    ],
)
def test_a_picture_that_is_none_is_refused(values, match):
    with pytest.raises(DataError, match=match):
        fundus_image(values, 16)


def test_progress_is_told(written):
    seen = []
    read_fairgenmed(written, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(index, 12) for index in range(1, 13)]


def test_a_subject_in_two_parts_is_refused(cohort):
    from dataclasses import replace

    twice = replace(cohort, table=cohort.table.assign(subject="one"))
    with pytest.raises(DataError, match="'one' is in two parts"):
        twice.parts()
    with pytest.raises(DataError, match="gives no split"):
        replace(cohort, table=cohort.table.drop(columns="use")).parts()


def test_flipped_bytes_give_the_same_arrays_or_one_error(tmp_path):
    wanted = {"slo_fundus": picture(0), "race": np.array(2)}
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **wanted)
    good, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            found = read_npz(path, list(wanted))
        except DataError:
            refused += 1
        else:
            assert all(np.array_equal(found[name], value) for name, value in wanted.items())
    assert refused > 200


ROW = {
    "race": "Black",
    "sex": "F",
    "ethnicity": "Non-Hispanic",
    "glaucoma": "glaucoma",
    "md_severity": "mild",
    "cdr_status": "abnormal",
    "refraction": "myopia",
}


def test_the_template_is_the_paper_s():
    assert (
        prompt_of(ROW)
        == (
            "SLO fundus image of a Black Female Non-Hispanic patient with the following "
            "conditions: "
            "glaucoma, mild vision loss, abnormal cup-disc ratio, myopia"
        )
        == EXAMPLE
    )
    assert prompt_of(ROW | {"glaucoma": "non-glaucoma", "md_severity": "normal"}).endswith(
        ": non-glaucoma, normal vision, abnormal cup-disc ratio, myopia"
    )


def test_every_prompt_is_its_own_and_is_read_back():
    rows = [
        dict(zip(PROMPTED, values, strict=True)) for values in itertools.product(*PROMPTED.values())
    ]
    assert len(rows) == 3 * 2 * 2 * 2 * 4 * 3 * 3 and len({prompt_of(row) for row in rows}) == len(
        rows
    )
    assert all(parse_prompt(prompt_of(row)) == row for row in rows)
    assert prompt_of(pd.Series(ROW)) == EXAMPLE


@pytest.mark.parametrize("value", ["unknown", None, np.nan, pd.NA])
@pytest.mark.parametrize("name", PROMPTED)
def test_a_row_that_has_no_prompt_says_why(name, value):
    with pytest.raises(DataError, match=f"^{name} .*leave rows without one out"):
        prompt_of(ROW | {name: value})
    with pytest.raises(DataError, match=f"the row has no '{name}'"):
        prompt_of({key: word for key, word in ROW.items() if key != name})


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("Black", "Blak", "did you mean 'Black'"),
        ("Female", "female", "did you mean 'Female'"),
        ("Female", "F", "known keys: Female, Male"),
        ("mild vision loss", "mild vision", "did you mean 'mild vision loss'"),
        ("abnormal", "odd", "known keys: normal, borderline, abnormal"),
        ("glaucoma,", "glaucomas,", "did you mean 'glaucoma'"),
        (", myopia", "", "does not follow the template"),
        ("SLO fundus", "Fundus", "does not follow the template"),
    ],
)
def test_words_outside_the_template_are_named(old, new, match):
    with pytest.raises(SettingsError, match=match):
        parse_prompt(EXAMPLE.replace(old, new))


@pytest.mark.parametrize(
    ("cdr", "status"),
    [
        (0, "normal"),
        (0.49999, "normal"),
        (0.5, "borderline"),
        (0.69999, "borderline"),
        (0.7, "abnormal"),
        (1, "abnormal"),
    ],
)
def test_the_status_is_a_threshold(cdr, status):
    assert cdr_status(cdr) == status


@pytest.mark.parametrize("cdr", [-0.01, 1.01, np.nan])
def test_no_ratio_no_status(cdr):
    with pytest.raises(DataError, match="between 0 and 1"):
        cdr_status(cdr)
