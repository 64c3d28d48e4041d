"""The ACDC reader on a few synthetic hearts in the released layout."""

import re
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest

from fairlib import CorruptScan, DataError
from fairlib.cohorts.acdc import DIAGNOSES, read_acdc, survey_acdc
from fairlib.cohorts.cardiac import PIXEL_MM
from studies.heart.phantom import PhantomSettings, draw_heart

SETTINGS = PhantomSettings(seed=5)
AFFINE = np.diag([-2.0, -2.0, 10.0, 1.0])
# index of the phantom, group
PEOPLE = {"patient001": (2, "NOR"), "patient002": (4, "DCM"), "patient003": (6, "MINF")}
ED, ES = 1, 12


def save(path, data, qform=1):
    """With the header of the release: the sform says that a voxel measures 1 mm each way, and only
    pixdim how much it does.
    """
    header = nibabel.Nifti1Image(data, AFFINE).header
    header.set_qform(AFFINE, code=qform)
    header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
    nibabel.save(nibabel.Nifti1Image(data, None, header), path)


def write_patient(folder, index, group):
    """Three equal slices; labels as ACDC has them: 1 RV, 2 MYO, 3 LV."""
    folder.mkdir(parents=True)
    subject = draw_heart(SETTINGS, index)
    lines = {"ED": ED, "ES": ES, "Group": group, "Height": 184.0, "NbFrame": 30, "Weight": 95.0}
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    for frame, image, mask in zip((ED, ES), subject.images, subject.masks, strict=True):
        name = f"{folder.name}_frame{frame:02d}"
        save(
            folder / f"{name}.nii.gz",
            np.repeat(np.round((image.T + 1) * 200).astype(np.int16)[..., None], 3, axis=2),
        )
        save(
            folder / f"{name}_gt.nii.gz",
            np.repeat(np.array([0, 3, 2, 1], np.uint8)[mask.T][..., None], 3, axis=2),
        )


@pytest.fixture
def root(tmp_path):
    for number, (name, (index, group)) in enumerate(PEOPLE.items()):
        write_patient(tmp_path / ("training", "testing")[number == 2] / name, index, group)
    return tmp_path


def test_the_released_layout_is_read_and_the_labels_converted(root):
    cohort = read_acdc(root)
    assert cohort.table["subject"].tolist() == list(PEOPLE)
    assert cohort.table["part"].tolist() == ["training", "training", "testing"]
    assert cohort.table["diagnosis"].fillna("-").tolist() == ["healthy", "heart failure", "-"]
    assert cohort.table["bmi"].tolist() == pytest.approx([95 / 1.84**2] * 3) and set(
        cohort.table["bmi_class"]
    ) == {"overweight"}
    labels, images = cohort.load_masks().numpy(), cohort.load().numpy()
    for number, (index, _) in enumerate(PEOPLE.values()):
        drawn = draw_heart(SETTINGS, index)
        for label in (1, 2, 3):
            same = (labels[number] == label) & (drawn.masks == label)
            assert (
                2 * same.sum() / ((labels[number] == label).sum() + (drawn.masks == label).sum())
                > 0.85
            )
        assert np.corrcoef(images[number, :2].ravel(), drawn.images.ravel())[0, 1] > 0.9


def resave(root, qform):
    for path in root.rglob("*.nii.gz"):
        save(path, np.asarray(nibabel.load(path).dataobj), qform)


@pytest.mark.parametrize("qform", [0, 1])
def test_areas_are_those_of_pixdim_where_the_sform_states_no_size(root, tmp_path, qform):
    """In mm2, against the phantom's own masks; read through the cache as well, from which the note
    must come too.
    """
    resave(root, qform)
    header = nibabel.load(root / "training" / "patient001" / "patient001_frame01.nii.gz").header
    assert (
        header["pixdim"][1:4].tolist() == [2, 2, 10]
        and (np.abs(np.diag(header.get_best_affine())) == 1).all()
    )
    for _ in range(2):
        cohort = read_acdc(root, cache_dir=tmp_path / "cache")
        labels = cohort.load_masks().numpy()
        for number, (index, _) in enumerate(PEOPLE.values()):
            for label in (1, 2, 3):
                true = (draw_heart(SETTINGS, index).masks == label).sum() * 2.0**2
                assert (labels[number] == label).sum() * PIXEL_MM**2 == pytest.approx(true, rel=0.1)
        notes = cohort.notes[cohort.notes["reason"] == "voxel size from pixdim"]
        assert notes["item"].tolist() == list(PEOPLE)
        assert notes["detail"].str.contains("sform says 1 x 1 x 1 mm, pixdim 2 x 2 x 10 mm").all()


def test_a_header_that_agrees_with_itself_is_read_alike_and_not_noted(root):
    before = read_acdc(root)
    for path in root.rglob("*.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), AFFINE), path)
    after = read_acdc(root)
    assert (
        after.notes.empty
        and (after.load() == before.load()).all()
        and (after.load_masks() == before.load_masks()).all()
    )


def test_a_survey_lists_whom_the_reader_reads_and_finds_a_scan_of_another_grid(root):
    listed = survey_acdc(root)
    assert listed.subjects() == read_acdc(root).subjects() and len(listed) == len(PEOPLE)
    path = next(root.rglob("*_gt.nii.gz"))
    save(path, np.asarray(nibabel.load(path).dataobj)[:-1])
    for read in (survey_acdc, read_acdc):
        with pytest.raises(CorruptScan, match="shape .*resample to one grid"):
            read(root)
        assert len(read(root, skip_faulty=True).subjects()) == len(PEOPLE) - 1


def test_sex_and_age_cannot_be_asked_for(root):
    cohort = read_acdc(root)
    assert not {"sex", "age", "decade", "prompt"} & set(cohort.table)
    asked = [
        cohort.labels,
        cohort.shares,
        cohort.with_known_sex,
        cohort.with_prompt,
        lambda: cohort.by_subject(("sex",)),
        lambda: cohort.split({"a": 0.5, "b": 0.5}, 1, ("age",)),
    ]
    for ask in asked:
        with pytest.raises(DataError, match="ACDC states neither"):
            ask()
    assert cohort.by_subject(("pathology",))["pathology"].tolist() == ["NOR", "DCM", "MINF"]
    parts = cohort.split({"a": 0.5, "b": 0.5}, 1, ())
    assert len(parts["a"]) + len(parts["b"]) == 3


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("ES: 12", "ES: 31", "counted from 1"),
        ("ED: 1\n", "ED: 0\n", "counted from 1"),
        ("Weight: 95.0", "", "no line 'Weight'"),
        ("184.0", "tall", "'tall', not a number"),
        ("184.0", "1.84", "convert the units"),
    ],
)
def test_a_wrong_info_file_is_named(root, old, new, match):
    path = root / "training" / "patient001" / "Info.cfg"
    path.write_text(path.read_text().replace(old, new))
    found = read_acdc(root)
    line = found.excluded.set_index("item").loc["patient001"]
    assert line["reason"] == "faulty Info.cfg" and re.search(match, line["detail"])
    assert found.subjects() == ["patient002", "patient003"]


def test_a_weight_that_is_unknown_leaves_the_patient_in(root):
    path = root / "training" / "patient001" / "Info.cfg"
    path.write_text(path.read_text().replace("Weight: 95.0", "Weight: NA"))
    table = read_acdc(root).table.set_index("subject")
    assert table["bmi"].isna().tolist() == [True, False, False]
    path.write_text(path.read_text().replace("ES: 12", "ES: NA"))
    assert "counted from 1" in read_acdc(root).excluded["detail"][0]


def test_phases_on_two_grids_are_refused(root):
    path = root / "training" / "patient001" / "patient001_frame12.nii.gz"
    save(path, np.asarray(nibabel.load(path).dataobj)[:, :-1])
    with pytest.raises(CorruptScan, match="resample to one grid"):
        read_acdc(root)


def test_a_patient_without_a_right_ventricle_is_listed(root):
    path = root / "training" / "patient001" / "patient001_frame12_gt.nii.gz"
    labels = np.asarray(nibabel.load(path).dataobj).copy()
    labels[labels == 1] = 0
    save(path, labels)
    cohort = read_acdc(root)
    assert len(cohort) == 2 and cohort.excluded.loc[0, ["item", "reason"]].tolist() == [
        "patient001",
        "no usable slice",
    ]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no patient folders"):
        read_acdc(tmp_path)


def test_a_group_that_is_unknown_is_noted_and_can_be_mapped(root):
    path = root / "training" / "patient001" / "Info.cfg"
    path.write_text(path.read_text().replace("Group: NOR", "Group: XYZ"))
    found = read_acdc(root)
    assert found.notes.set_index("reason").loc["unknown pathology", "item"] == "patient001"
    assert pd.isna(found.table.set_index("subject").loc["patient001", "diagnosis"])
    mapped = read_acdc(root, diagnoses={**DIAGNOSES, "XYZ": "healthy"})
    assert mapped.table.set_index("subject").loc["patient001", "diagnosis"] == "healthy"


def test_a_frame_that_is_missing_is_named_or_left_out(root):
    path = root / "training" / "patient001" / "Info.cfg"
    path.write_text(path.read_text().replace("ES: 12", "ES: 13"))
    with pytest.raises(DataError, match=r"frame13\.nii\.gz: is missing"):
        read_acdc(root)
    found = read_acdc(root, skip_faulty=True)
    assert found.excluded[["item", "reason"]].to_numpy().tolist() == [
        ["patient001", "missing or broken files"]
    ]


def test_patients_without_info_are_listed_and_their_layout_named(root):
    (root / "training" / "patient001" / "Info.cfg").unlink()
    found = read_acdc(root)
    assert found.excluded.loc[0, "item"] == "patient001"
    assert "Info.cfg: cannot be read" in found.excluded.loc[0, "detail"]
    for path in root.rglob("Info.cfg"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"no patient folders.*training/patient001 holds patient001_"
    ):
        read_acdc(root)
    (root / "training").rename(root / "train")
    with pytest.raises(DataError, match=r"no patient folders.*patient001 holds patient001_"):
        read_acdc(root / "train")


def test_the_folder_database_of_the_release_is_read(root):
    before = read_acdc(root).table
    for part in ("training", "testing"):
        if (root / part).is_dir():
            (root / "database").mkdir(exist_ok=True)
            (root / part).rename(root / "database" / part)
    pd.testing.assert_frame_equal(read_acdc(root).table, before)
    pd.testing.assert_frame_equal(read_acdc(root / "database").table, before)


def test_a_patient_in_two_parts_is_refused(root):
    shutil.copytree(root / "training/patient001", root / "testing/patient001")
    with pytest.raises(DataError, match="patient001 lies in training and testing"):
        read_acdc(root)
