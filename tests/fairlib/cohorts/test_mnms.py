"""The M&Ms reader on synthetic hearts in the released layout, and on what can be wrong with it."""

import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from fairlib import CorruptScan, DataError, SettingsError, nifti
from fairlib.cohorts import mnms as module
from fairlib.cohorts.cardiac import CardiacSettings, choose, label_order
from fairlib.cohorts.mnms import PARTS, read_mnms, read_subjects, survey_mnms
from studies.heart.phantom import PhantomSettings, draw_heart
from tests.studies.heart.layout import TABLE, write_mnms

SETTINGS = PhantomSettings(subjects=8, seed=5, missing=0.3, unlabelled=0.3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_mnms(tmp_path_factory.mktemp("mnms") / "OpenDataset", SETTINGS)


@pytest.fixture
def root(written, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(written, tmp_path / "OpenDataset")


@pytest.fixture(scope="module")
def cohort(written):
    return read_mnms(written.parent)


@pytest.fixture(scope="module")
def people(written):
    return pd.read_csv(written / "truth.csv").set_index("External code")


def dice(first, second, label):
    return (
        2
        * ((first == label) & (second == label)).sum()
        / ((first == label).sum() + (second == label).sum())
    )


def labelled(root):
    """The first subject with masks: code, image file, mask file."""
    mask = sorted(root.glob("Training/Labeled/*/*_gt.nii.gz"))[0]
    return mask.parent.name, mask.with_name(f"{mask.parent.name}_sa.nii.gz"), mask


def rewrite(path, change):
    """Save the volume again as change(data, affine) returns it."""
    image = nibabel.load(path)
    data, affine = change(np.asarray(image.dataobj), image.affine.copy())
    nibabel.save(nibabel.Nifti1Image(data, affine), path)


def edit_table(root, change):
    table = pd.read_csv(root / TABLE, dtype=str, keep_default_na=False)
    table = table.rename(columns={table.columns[0]: ""})
    change(table).to_csv(root / TABLE, index=False)


def test_the_reader_finds_what_was_drawn(cohort, people):
    images, labels = cohort.load(), cohort.load_masks()
    assert (
        images.dtype == torch.float32
        and images.shape[1:] == (3, 64, 64)
        and labels.dtype == torch.uint8
    )
    assert images.min() == -1 and images.max() == 1 and torch.equal(images[:, 0], images[:, 2])
    for number, row in cohort.table.iterrows():
        drawn = draw_heart(SETTINGS, int(row["subject"][3:]))
        assert all(dice(labels[number].numpy(), drawn.masks, label) > 0.85 for label in (1, 2, 3))
        assert np.corrcoef(images[number, :2].ravel(), drawn.images.ravel())[0, 1] > 0.95
        area = (labels[number, 0] == 1).sum().item() * 4.0  # pixels of 2 mm
        assert area == pytest.approx(people.at[row["subject"], "lv_ed_area"], rel=0.06)
        assert (row["sex"], row["age"], row["diagnosis"]) == tuple(
            drawn.row[name] for name in ("sex", "age", "diagnosis")
        )
        assert row["pathology"] == drawn.row["pathology"] and row["vendor"] == drawn.row["vendor"]
        assert row["centre"] == str(drawn.row["centre"]) and row["slice"] == 2


def test_who_is_left_out_is_counted(cohort, people, written):
    unlabelled = set(people.index[people["part"] == PARTS["unlabelled"]])
    assert unlabelled and set(cohort.excluded["item"]) == unlabelled
    assert set(cohort.excluded["reason"]) == {"no segmentation"}
    table = pd.read_csv(written / TABLE).set_index("External code")
    lost = set(table.index[table["Height"].isna()]) - unlabelled
    complete = cohort.with_prompt()
    assert lost and set(cohort.table.loc[cohort.table["bmi"].isna(), "subject"]) == lost
    reasons = complete.excluded[complete.excluded["reason"] == "body-mass index unknown"]
    assert set(reasons["item"]) == lost and set(reasons["detail"]) == {"height and weight missing"}
    assert len(complete) + len(lost) + len(unlabelled) == SETTINGS.subjects
    asked = [
        draw_heart(SETTINGS, int(code[3:])).row["prompt"] for code in complete.table["subject"]
    ]
    assert complete.table["prompt"].tolist() == asked


def test_the_layout_is_the_released_one(written):
    header = (written / TABLE).read_text().splitlines()[0]
    assert header == ",External code,Pathology,VendorName,Vendor,Centre,ED,ES,Age,Sex,Height,Weight"
    code, image, mask = labelled(written)
    assert nibabel.load(image).ndim == 4 and nibabel.load(image).shape == nibabel.load(mask).shape
    row = pd.read_csv(written / TABLE).set_index("External code").loc[code]
    present = np.asarray(nibabel.load(mask).dataobj).any(axis=(0, 1, 2))
    assert set(np.flatnonzero(present)) == {row["ED"], row["ES"]}


def test_writing_again_changes_nothing(written, root):
    before = {path: path.read_bytes() for path in sorted(root.rglob("*.*")) if path.is_file()}
    victim = labelled(root)[2]
    victim.unlink()
    write_mnms(root, SETTINGS)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("order", [(3, 2, 1), (1, 3, 2), (2, 1, 3)])
def test_whatever_the_labels_mean_the_masks_come_out_alike(root, cohort, order):
    table = np.array([0, *order], np.uint8)  # LV, MYO, RV are written as these
    for mask in root.rglob("*_gt.nii.gz"):
        rewrite(mask, lambda data, affine: (table[data.astype(np.uint8)], affine))
    assert torch.equal(read_mnms(root).load_masks(), cohort.load_masks())


def test_one_subject_with_another_label_order_is_left_out_and_named(root, cohort):
    code, _, mask = labelled(root)
    rewrite(
        mask, lambda data, affine: (np.array([0, 3, 2, 1], np.uint8)[data.astype(np.uint8)], affine)
    )
    found = read_mnms(root)
    assert code not in found.subjects() and len(found) == len(cohort) - 1
    line = found.excluded.set_index("item").loc[code]
    assert line["reason"] == "another label order" and "(3, 2, 1)" in line["detail"]


def turned(data, affine):
    """The same heart in a file whose first axis is the second of before, run backwards."""
    old_from_new = np.array(
        [[0, 1, 0, 0], [-1, 0, 0, data.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )
    return np.flip(data.swapaxes(0, 1), axis=0), affine @ old_from_new


def mirrored(data, affine):
    """The same heart in a file whose first axis runs backwards."""
    old_from_new = np.diag([-1.0, 1, 1, 1])
    old_from_new[0, 3] = data.shape[0] - 1
    return np.flip(data, axis=0), affine @ old_from_new


def oblique(data, affine):
    """The same numbers, laid into the body as hearts lie: apex to the left, front and below of the
    base.
    """
    through = np.array([-1.0, 1.0, -1.0]) / np.sqrt(3)  # from base to apex, the way the slices run
    right = np.cross([0, 0, 1.0], through)
    right /= np.linalg.norm(right)
    if np.cross(right, np.cross(through, right)) @ through > 0:
        right = -right
    down = np.cross(-through, right)
    out = affine.copy()
    out[:3, :3] = np.stack([right, down, through], axis=1) * np.sqrt(
        (affine[:3, :3] ** 2).sum(axis=0)
    )
    return data, out


@pytest.mark.parametrize("change", [turned, mirrored, oblique])
def test_however_the_file_is_turned_the_picture_is_upright(root, cohort, change):
    for path in root.rglob("*.nii.gz"):
        rewrite(path, change)
    found = read_mnms(root)
    before, after = cohort.load_masks().numpy(), found.load_masks().numpy()
    assert all(dice(after, before, label) > 0.9 for label in (1, 2, 3))
    assert np.corrcoef(found.load().ravel(), cohort.load().ravel())[0, 1] > 0.95


def test_several_slices_lie_next_to_the_middle(written):
    found = read_mnms(written, settings=CardiacSettings(slices_per_subject=3))
    assert all(list(group["slice"]) == [1, 2, 3] for _, group in found.table.groupby("subject"))
    assert found.load([0, 1]).shape == (2, 3, 64, 64)
    labels = np.zeros((2, 2, 6, 2), np.uint8)
    labels[0, 0], labels[0, 1], labels[1, 0] = 1, 2, 3
    labels[..., 5, 1] = 0
    assert (
        choose(labels, 1) == (2,)
        and choose(labels, 2) == (1, 2)
        and choose(labels, 9) == (0, 1, 2, 3, 4)
    )


def test_the_cache_spares_a_second_reading(written, tmp_path, monkeypatch, cohort):
    first = read_mnms(written, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(module, "read_subject", lambda *_: pytest.fail("a volume was opened again"))
    unlabelled = {path.parent.name for path in written.glob("Training/Unlabeled/*/*_gt.nii.gz")}
    monkeypatch.setattr(
        module,
        "find_subjects",
        lambda root, find=module.find_subjects: {
            code: place for code, place in find(root).items() if code not in unlabelled
        },
    )
    second = read_mnms(written, cache_dir=tmp_path / "cache")
    for found in (first, second):
        assert torch.equal(found.load(), cohort.load()) and torch.equal(
            found.load_masks(), cohort.load_masks()
        )
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="read the cohort again"):
        second.load([0])


def test_people_and_pictures_that_do_not_meet_are_listed(root):
    (root / "Testing" / "B0B0B0").mkdir()
    code, _, mask = labelled(root)
    shutil.rmtree(mask.parent)
    found = read_mnms(root).excluded.set_index("item")["reason"]
    assert found["B0B0B0"] == "not in the table" and found[code] == "no images"


def test_a_pathology_that_is_neither_is_kept_until_a_prompt_is_needed(root):
    code = labelled(root)[0]
    edit_table(
        root,
        lambda table: table.assign(
            Pathology=table["Pathology"].where(table["External code"] != code, "ARV"),
            Height="170",
            Weight="70",
        ),
    )
    found = read_mnms(root)
    assert found.table.set_index("subject")["diagnosis"].isna()[code]
    line = found.with_prompt().excluded.set_index("item").loc[code]
    assert (
        line["reason"] == "neither healthy nor heart failure" and line["detail"] == "pathology ARV"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop(columns="Weight"), "no column 'Weight'"),
        (lambda t: pd.concat([t, t[:1]]), "SYN00000' stands twice"),
        (lambda t: t.assign(ES=t["ED"]), "two different frames"),
        (lambda t: t.assign(ED="-1"), "counted from 0"),
        (lambda t: t.assign(ED=""), "counted from 0"),
        (lambda t: t.assign(Age="old"), "Age is 'old'"),
        (lambda t: t.assign(Sex="X"), "Sex is 'X'"),
        (
            lambda t: t.assign(Height="1.75", Weight="70"),
            "SYN00000: height 1.75.*convert the units",
        ),
    ],
)
def test_a_wrong_table_is_named(root, change, match):
    edit_table(root, change)
    with pytest.raises(DataError, match=match):
        read_subjects(root / TABLE)


@pytest.mark.parametrize("mark", ["", "NA", "unknown", "-", "-1", "None"])
def test_every_mark_for_a_missing_value_is_one(root, mark):
    edit_table(root, lambda t: t.assign(Age=mark, Sex=mark, Height=mark, Pathology=mark))
    rows = pd.DataFrame(read_subjects(root / TABLE)[0].values())
    assert rows[["age", "sex", "height", "bmi", "pathology", "diagnosis"]].isna().all(axis=None)


def test_a_frame_that_is_not_there_is_refused(root):
    edit_table(root, lambda table: table.assign(ES="9"))
    with pytest.raises(DataError, match="has 4 frames, 0 to 3; frame 9"):
        read_mnms(root)


def shifted(data, affine):
    affine[0, 3] += 3
    return data, affine


def test_a_survey_opens_no_scan_and_lists_the_same_subjects(root, cohort, monkeypatch):
    """Those with empty masks are left out without looking at these."""
    monkeypatch.setattr(nifti, "_read", lambda *_: pytest.fail("a volume was opened"))
    listed = survey_mnms(root)
    assert set(listed.subjects()) == set(cohort.subjects())
    assert set(listed.excluded["item"]) == set(cohort.excluded["item"])
    assert not listed.table["subject"].duplicated().any()
    with pytest.raises(DataError, match="only listed, not read"):
        listed.load([0])


@pytest.mark.parametrize("read", [read_mnms, survey_mnms])
def test_a_survey_refuses_what_headers_tell_as_the_reader_does(root, read):
    code, image, mask = labelled(root)
    whole = image.read_bytes()
    image.write_bytes(whole[:-30])
    with pytest.raises(CorruptScan, match=f"{image.name}: gzip data end too soon"):
        read(root)
    image.write_bytes(whole)
    rewrite(mask, shifted)
    with pytest.raises(CorruptScan, match=f"{code}_sa.*affine differs"):
        read(root)
    edit_table(root, lambda table: table.assign(ES="9"))
    with pytest.raises(DataError, match="has 4 frames, 0 to 3; frame 9"):
        read(root)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data, affine: (data[:-1], affine), "resample to one grid"),
        (shifted, "affine differs"),
        (lambda data, affine: (data + np.uint8(2), affine), r"labels \[4, 5\] outside"),
        (lambda data, affine: (data * np.float32(0.5), affine), "not whole numbers"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(root, change, match):
    rewrite(labelled(root)[2], change)
    with pytest.raises(CorruptScan, match=match):
        read_mnms(root)


def test_a_layout_that_is_none_is_refused(root, tmp_path):
    with pytest.raises(DataError, match="none of the files match"):
        read_mnms(tmp_path / "nothing")
    image = labelled(root)[1]
    image.unlink()
    with pytest.raises(DataError, match=rf"is missing: there is no {image.name} .*copy it"):
        read_mnms(root)
    shutil.copytree(root / "Testing", root / "Validation", dirs_exist_ok=True)
    with pytest.raises(DataError, match="remove one of them"):
        read_mnms(root)


def test_labels_without_a_ring_have_no_order():
    labels = np.zeros((12, 12, 1), np.uint8)
    labels[1:4, 1:4], labels[4:7, 1:4], labels[8:10, 8:10] = 1, 2, 3
    with pytest.raises(DataError, match="no label encloses another"):
        label_order(labels)
    with pytest.raises(DataError, match=r"labels \[3\] are absent"):
        label_order(np.where(labels == 3, 0, labels))


def test_hearts_split_by_subject(cohort):
    parts = cohort.split({"a": 0.5, "b": 0.5}, seed=1, stratify=())
    assert not set(parts["a"].subjects()) & set(parts["b"].subjects())
    assert parts["a"].load_masks().shape[0] == len(parts["a"]) and len(parts["a"]) + len(
        parts["b"]
    ) == len(cohort)


# ---- tables and folders as users have them


@pytest.mark.parametrize(
    "name",
    [
        "201014_M&Ms_Dataset_Information_-_opendataset.csv",
        "M&Ms dataset information.CSV",
        "211230_m&ms_dataset_information.csv",
    ],
)
def test_the_table_of_every_release_is_read(root, cohort, name):
    (root / TABLE).rename(root / name)
    pd.testing.assert_frame_equal(read_mnms(root).table, cohort.table)


@pytest.mark.parametrize("given", ["", "Training-corrected"])
def test_the_release_of_the_workshop_is_read(root, given):
    place = root / "Training-corrected"
    (root / "Training").rename(place)
    pd.read_csv(root / TABLE).to_excel(place / "M&Ms Dataset Information.xlsx", index=False)
    (root / TABLE).unlink()
    found = read_mnms(root / given)
    assert (found.table["part"] == "train").any() and found.table["age"].notna().any()
    assert given == "" or set(found.table["part"]) == {"train"}


def test_of_two_tables_the_csv_is_read_and_two_csv_are_named(root, cohort):
    pd.read_csv(root / TABLE).to_excel(root / "M&Ms Dataset Information.xlsx", index=False)
    pd.testing.assert_frame_equal(read_mnms(root).table, cohort.table)
    shutil.copy(root / TABLE, root / "other_Dataset_information.csv")
    with pytest.raises(DataError, match=r"2 of the files match .*other_Dataset_information\.csv"):
        read_mnms(root)


def test_the_second_challenge_is_named(tmp_path):
    text = "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n1,NOR,SIEMENS,Avanto,1.5\n,,,,\n"
    (tmp_path / "dataset_information.csv").write_text(text)
    with pytest.raises(DataError, match="is of M&Ms-2, which states neither sex nor age"):
        read_mnms(tmp_path)


def of_first(column, value):
    """A change of one cell of the table."""
    return lambda t: t.assign(**{column: [value, *t[column][1:]]})


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("Age", "9", "age 9.0: expected years between 10 and 109"),
        ("Age", "0", "age 0.0"),
        ("Age", "n. a.", "not a number"),
        ("Sex", "X", "Sex is 'X'"),
        ("ES", "", "counted from 0"),
        ("Height", "1.75", "convert the units"),
    ],
)
def test_a_faulty_row_leaves_out_that_subject_and_is_listed(root, cohort, column, value, reason):
    edit_table(root, lambda t: of_first(column, value)(t.assign(Height="175", Weight="70")))
    found = read_mnms(root)
    assert set(found.subjects()) == set(cohort.subjects()) - {"SYN00000"}
    line = found.excluded.set_index("item").loc["SYN00000"]
    assert line["reason"] == "faulty row of the table" and reason in line["detail"]
    assert "not in the table" not in found.excluded["reason"].tolist()


def test_a_pathology_that_is_unknown_is_noted_and_can_be_mapped(root, cohort):
    edit_table(root, of_first("Pathology", "TRI"))
    found = read_mnms(root)
    assert found.subjects() == cohort.subjects()
    assert found.notes.set_index("item").loc["SYN00000", "reason"] == "unknown pathology"
    first = found.table.set_index("subject").loc["SYN00000"]
    assert first["pathology"] == "TRI" and pd.isna(first["diagnosis"]) and pd.isna(first["prompt"])
    mapped = read_mnms(root, diagnoses={**module.DIAGNOSES, "TRI": "heart failure"})
    assert mapped.table.set_index("subject").loc["SYN00000", "diagnosis"] == "heart failure"
    assert "unknown pathology" not in mapped.notes["reason"].tolist()
    with pytest.raises(SettingsError, match=r"diagnoses\['TRI'\] is 'failing'; expected 'healthy'"):
        read_mnms(root, diagnoses={"TRI": "failing"})


def test_a_table_of_a_european_spreadsheet_is_read(root, cohort):
    path = root / TABLE
    pd.read_csv(path).to_csv(path, index=False, sep=";", decimal=",")
    pd.testing.assert_frame_equal(read_mnms(root).table, cohort.table)


def test_all_faulty_scans_are_one_error_or_left_out(root, cohort):
    first, second = sorted(root.glob("Training/Labeled/*/*_gt.nii.gz"))[:2]
    first.write_bytes(first.read_bytes()[:-30])
    image = second.with_name(second.name.replace("_gt", ""))
    image.unlink()
    with pytest.raises(DataError, match="2 faults.*skip_faulty=True") as error:
        read_mnms(root)
    assert first.name in str(error.value) and image.name in str(error.value)
    found = read_mnms(root, skip_faulty=True)
    lost = {first.parent.name, second.parent.name}
    assert set(found.subjects()) == set(cohort.subjects()) - lost
    reasons = found.excluded.set_index("item")["reason"]
    assert {reasons[one] for one in lost} == {"missing or broken files"}


def test_uncompressed_scans_are_read(root, cohort):
    for path in root.rglob("*.nii.gz"):
        nibabel.save(nibabel.load(path), path.with_suffix(""))
        path.unlink()
    assert torch.equal(read_mnms(root).load(), cohort.load())
