"""The BraTS reader on five tiny subjects in the released layout: slices, and the join of sex, in
which no subject is lost in silence.
"""

import os
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from fairlib import CorruptScan, DataError
from fairlib.cohorts import brats as module
from fairlib.cohorts.brats import (
    caption,
    join_sex,
    read_biotab,
    read_brats,
    read_name_mapping,
    survey_brats,
)
from fairlib.cohorts.listing import FAULTY
from fairlib.cohorts.slices import CONTRASTS, SliceSettings

SETTINGS = SliceSettings(
    size=16, field_of_view_mm=32.0, slices_per_subject=2, minimum_gap_mm=4.0, minimum_tumour_mm2=4.0
)
FIRST = "Brats18_TCIA01_001_1"


@pytest.fixture
def opened(monkeypatch):
    """The volumes opened so far."""
    paths = []
    for name in ("read_stored", "read_labels"):
        original = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda path, *rest, original=original: paths.append(path) or original(path, *rest),
        )
    return paths


def test_one_row_is_one_subject_slice_and_contrast(brats):
    cohort = read_brats(**brats, settings=SETTINGS)
    table = cohort.table
    assert len(table) == 5 * 2 * 4 and cohort.load().shape == (40, 1, 16, 16)
    assert not table.duplicated(["subject", "slice", "contrast"]).any() and set(
        table["contrast"]
    ) == set(CONTRASTS)
    people = cohort.by_subject(["sex", "grade"]).set_index("subject")
    assert people["sex"].fillna("?").to_dict() == {
        FIRST: "F",
        "Brats18_TCIA01_002_1": "M",
        "Brats18_CBICA_AAB_1": "?",
        "Brats18_TCIA09_003_1": "M",
        "Brats18_TCIA09_004_1": "?",
    }
    assert set(people.loc[people.index.str.contains("TCIA09"), "grade"]) == {"LGG"}
    assert table.loc[table["subject"] == FIRST, "age"].unique().tolist() == [44.0]
    assert set(table["slice"]) == {2, 3}


def test_captions_say_contrast_grade_and_side(brats):
    table = read_brats(**brats, settings=SETTINGS).table
    assert set(table["side"]) == {"left"}
    for row in table.itertuples():
        assert row.caption == caption(contrast=row.contrast, grade=row.grade, side=row.side)


def test_a_slice_without_tumour_is_captioned_so(brats):
    few = SliceSettings(
        size=16,
        field_of_view_mm=32.0,
        slices_per_subject=4,
        minimum_gap_mm=0,
        minimum_tumour_mm2=20.0,
    )
    table = read_brats(**brats, settings=few).table
    healthy = table[table["slice"] == 4]  # tumour lies in slices 2 and 3 only
    assert (
        len(healthy) == 20
        and set(healthy["side"]) == {"none"}
        and set(healthy["grade"]) == {"HGG", "LGG"}
    )
    assert all(row.caption == caption(contrast=row.contrast) for row in healthy.itertuples())
    # 4 voxels of 4 mm^2 are below 20 mm^2
    assert set(table.loc[table["slice"] == 2, "side"]) == {"none"}
    assert set(table.loc[table["slice"] == 3, "side"]) == {"left"}


def test_who_has_no_sex_is_kept_counted_and_listed(brats):
    cohort = read_brats(**brats, settings=SETTINGS)
    reasons = cohort.notes.set_index("item")["reason"].to_dict()
    assert reasons == {
        "Brats18_CBICA_AAB_1": "no TCGA id in the name mapping",
        "Brats18_TCIA09_004_1": "TCGA id not in the clinical tables",
    }
    known = cohort.with_known_sex()
    assert set(known.excluded["item"]) == set(reasons) and set(known.excluded["detail"]) == set(
        reasons.values()
    )
    assert len(known) == 24 and known.shares().iloc[0]["n"] == 3


def test_gzip_and_plain_files_give_the_same_picture(tmp_path, brats, write):
    subject = "Brats18_TCIA09_003_1"
    # it was written as .nii
    write["subject"](brats["root"], subject, "LGG", seed=3, ending=".nii.gz")
    packed = tmp_path / "packed"
    shutil.copytree(brats["root"], packed)
    for folder, ending in ((brats["root"], ".nii.gz"), (packed, ".nii")):
        for path in (folder / "LGG" / subject).iterdir():
            if path.name.endswith(ending):
                path.unlink()
    plain, gzipped = (
        read_brats(**{**brats, "root": root}, settings=SETTINGS) for root in (brats["root"], packed)
    )
    assert torch.equal(plain.load(), gzipped.load()) and plain.table.equals(gzipped.table)


def test_a_flipped_affine_gives_the_identical_slice(tmp_path, brats, write):
    before = read_brats(**brats, settings=SETTINGS)
    volumes, labels = write["brain"](0)
    affine = np.diag([2.0, -2.0, 4.0, 1.0])  # now x grows to the patient's right
    for name, data in {**volumes, "seg": labels}.items():
        write["save"](brats["root"] / "HGG" / FIRST / f"{FIRST}_{name}.nii.gz", data[::-1], affine)
    after = read_brats(**brats, settings=SETTINGS)
    assert torch.equal(before.load(), after.load()) and before.table.equals(after.table)


def test_no_volume_is_opened_twice_in_memory(brats, opened):
    cohort = read_brats(**brats, settings=SETTINGS)
    assert len(opened) == len(set(opened)) == 25
    for _ in range(2):
        cohort.load()
    assert len(opened) == 25


def test_no_volume_is_opened_twice_with_a_cache(tmp_path, brats, opened):
    first = read_brats(**brats, settings=SETTINGS, cache_dir=tmp_path / "cache")
    assert len(opened) == 25
    second = read_brats(**brats, settings=SETTINGS, cache_dir=tmp_path / "cache")
    assert len(opened) == 25 and second.table.equals(first.table)
    memory = read_brats(**brats, settings=SETTINGS)
    assert torch.equal(second.load(), memory.load()) and torch.equal(first.load(), memory.load())


def test_the_cache_knows_other_settings_other_files_and_broken_ones(tmp_path, brats, opened):
    cache = tmp_path / "cache"
    read = lambda settings=SETTINGS: read_brats(**brats, settings=settings, cache_dir=cache)  # noqa: E731
    images = read().load()
    other = SliceSettings(**{**SETTINGS.__dict__, "size": 24})
    assert read(other).load().shape[-1] == 24 and len(opened) == 50
    path = brats["root"] / "HGG" / FIRST / f"{FIRST}_t1.nii.gz"
    os.utime(path, ns=(1, 1))
    read()
    assert len(opened) == 55 and {file.parent.name for file in opened[50:]} == {FIRST}
    for number, file in enumerate(sorted(cache.iterdir())):
        file.write_bytes(file.read_bytes()[: (10, -5)[number % 2]])
    assert torch.equal(read().load(), images) and len(opened) == 80


def test_a_cache_that_vanishes_is_named(tmp_path, brats):
    cohort = read_brats(**brats, settings=SETTINGS, cache_dir=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match="read the cohort again"):
        cohort.load([0])


def test_progress_is_told(brats):
    told = []
    read_brats(**brats, settings=SETTINGS, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 5) for i in range(1, 6)]


def test_a_second_scan_of_one_patient_is_left_out(brats):
    text = brats["name_mapping"].read_text()
    brats["name_mapping"].write_text(text.replace("TCGA-CS-0003", "TCGA-02-0001"))
    cohort = read_brats(**brats, settings=SETTINGS)
    assert cohort.excluded.values.tolist() == [
        ["Brats18_TCIA09_003_1", "second scan of one patient", f"same as {FIRST}"]
    ]
    assert "Brats18_TCIA09_003_1" not in cohort.subjects() and FIRST in cohort.subjects()


def test_cropping_and_too_few_slices_are_noted(brats):
    tight = SliceSettings(size=16, field_of_view_mm=18.0, slices_per_subject=3, minimum_gap_mm=8.0)
    notes = read_brats(**brats, settings=tight).notes
    assert (notes["reason"] == "brain cropped").sum() == 5 and (
        notes["reason"] == "fewer slices"
    ).sum() == 5
    assert set(notes.loc[notes["reason"] == "fewer slices", "detail"]) == {"2 of 3"}


def test_a_voxel_size_that_is_not_the_sforms_is_noted(brats):
    """And hides nothing: a subject whose sex is unknown keeps the reason."""
    subject = "Brats18_CBICA_AAB_1"
    before = read_brats(**brats, settings=SETTINGS)
    for path in (brats["root"] / "HGG" / subject).iterdir():
        image = nibabel.load(path)
        header, data = image.header.copy(), np.asarray(image.dataobj)
        header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
        nibabel.save(nibabel.Nifti1Image(data, None, header), path)
    cohort = read_brats(**brats, settings=SETTINGS)
    notes = cohort.notes[cohort.notes["reason"] == "voxel size from pixdim"]
    assert notes["item"].tolist() == [subject] and "pixdim 2 x 2 x 4 mm" in notes["detail"].iloc[0]
    assert torch.equal(cohort.load(), before.load())
    why = cohort.with_known_sex().excluded.set_index("item")["detail"]
    assert why[subject] == "no TCGA id in the name mapping"


def test_a_folder_without_the_layout_is_refused(tmp_path, brats):
    with pytest.raises(DataError, match="no folder HGG"):
        read_brats(**{**brats, "root": tmp_path / "nowhere"})
    (tmp_path / "empty/HGG").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder LGG"):
        read_brats(**{**brats, "root": tmp_path / "empty"})
    (tmp_path / "empty/LGG").mkdir()
    with pytest.raises(DataError, match="no subject folders"):
        read_brats(**{**brats, "root": tmp_path / "empty"})


def test_missing_doubled_and_misplaced_scans_are_named(brats, write):
    folder = brats["root"] / "HGG" / FIRST
    shutil.copy(folder / f"{FIRST}_t1.nii.gz", folder / f"{FIRST}_t1.nii")
    with pytest.raises(DataError, match=rf"2 of the files match {FIRST}_t1\.nii\*.*have one"):
        read_brats(**brats)
    (folder / f"{FIRST}_t1.nii").unlink()
    shutil.copytree(folder, brats["root"] / "LGG" / FIRST)
    with pytest.raises(DataError, match=f"{FIRST} lies in HGG and LGG"):
        read_brats(**brats)
    shutil.rmtree(brats["root"] / "LGG" / FIRST)
    (folder / f"{FIRST}_t1ce.nii.gz").unlink()
    with pytest.raises(DataError, match=r"none of the files match .*_t1ce\.nii\*"):
        read_brats(**brats)


def test_a_grade_that_contradicts_its_folder_is_refused(brats):
    brats["name_mapping"].write_text(brats["name_mapping"].read_text().replace("LGG", "HGG", 1))
    with pytest.raises(DataError, match="its folder LGG"):
        read_brats(**brats)


@pytest.mark.parametrize(
    ("scan", "change", "message"),
    [
        ("t2", lambda data: data[:, :, :5], "shape"),
        ("seg", lambda data: np.where(data == 4, 3, data), r"labels \[3\]"),
        ("flair", lambda data: 0 * data, "flair volume shows no brain"),
        ("t1", lambda data: data - 7, "background of the t1 volume is not 0 .*-7"),
    ],
)
def test_scans_that_cannot_be_trusted_are_named(brats, write, scan, change, message):
    volumes, labels = write["brain"](0)
    path = brats["root"] / "HGG" / FIRST / f"{FIRST}_{scan}.nii.gz"
    write["save"](path, change({**volumes, "seg": labels}[scan]))
    with pytest.raises(CorruptScan, match=message) as caught:
        read_brats(**brats)
    assert FIRST in caught.value.path


def test_another_affine_is_another_grid(brats, write):
    volumes, _ = write["brain"](0)
    write["save"](
        brats["root"] / "HGG" / FIRST / f"{FIRST}_t2.nii.gz",
        volumes["t2"],
        np.diag([-2.0, -2.0, 4.2, 1.0]),
    )
    with pytest.raises(CorruptScan, match="affine differs"):
        read_brats(**brats)


def test_a_flipped_bit_is_never_read(brats):
    path = brats["root"] / "HGG" / FIRST / f"{FIRST}_flair.nii.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptScan, match="gzip|header"):
        read_brats(**brats)


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
    people = join_sex(ids, brats["name_mapping"], brats["clinical"])
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
    assert join_sex([subject], mapping, brats["clinical"])["sex"].tolist() == ["F"]


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
    people = join_sex(["Brats18_TCIA01_001_1"], brats["name_mapping"], [tmp_path / "gbm.txt"])
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
        join_sex(["Brats18_TCIA01_001_1"], brats["name_mapping"], brats["clinical"])
    assert any(
        str(path) in str(caught.value) for path in [brats["name_mapping"], *brats["clinical"]]
    )


def test_no_clinical_table_leaves_every_sex_unknown(brats):
    people = join_sex(["Brats18_TCIA01_001_1"], brats["name_mapping"], [])
    assert people["sex"].isna().all() and people["reason"].tolist() == [
        "TCGA id not in the clinical tables"
    ]
    assert isinstance(people["sex"].dtype, pd.StringDtype)


# Other releases, and what users' folders look like.


def release(root, write, names, contrasts, mask=lambda labels: labels, ending=".nii"):
    """Scans called `names` in the folder `root`, with files as `{id}{part}{ending}`."""
    for number, name in enumerate(names):
        volumes, labels = write["brain"](number)
        for scan, part in contrasts.items():
            data = mask(labels) if scan == "seg" else volumes[scan]
            write["save"](root / name / f"{name}{part}{ending}", data)
    return root


TO_2021 = {name: f"_{name}" for name in (*CONTRASTS, "seg")}
OF_2023 = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "seg": "-seg"}
THREE = lambda labels: np.where(labels == 4, 3, labels)  # noqa: E731


def flat_2020(root, write):
    """Four subjects, of whom the map knows grade and TCGA id of three."""
    people = [(f"BraTS20_Training_{n:03d}", grade, f"TCGA-06-000{n}", sex, "50")
              for n, grade, sex in ((1, "HGG", "FEMALE"), (2, "LGG", "MALE"), (3, "HGG", "MALE"))]  # fmt: skip
    release(root, write, [*(person[0] for person in people), "BraTS20_Training_004"], TO_2021)
    head = "Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID,TCGA_TCIA_subject_ID"
    rows = [f"{grade},NA,{name},{tcga}" for name, grade, tcga, *_ in people]
    (root / "name_mapping.csv").write_text("\n".join([head, *rows]) + "\n")
    for study, grade in (("gbm", "HGG"), ("lgg", "LGG")):
        path = root / f"nationwidechildrens.org_clinical_patient_{study}.txt"
        write["biotab"](path, [person for person in people if person[1] == grade])
    return root


def test_the_flat_release_of_2020_takes_grade_and_sex_from_its_map(tmp_path, write):
    cohort = read_brats(flat_2020(tmp_path / "flat", write), settings=SETTINGS)
    people = cohort.by_subject(["sex", "grade"]).fillna("?")
    assert people["subject"].tolist() == [f"BraTS20_Training_{n:03d}" for n in range(1, 5)]
    assert people["sex"].tolist() == ["F", "M", "M", "?"]
    assert people["grade"].tolist() == ["HGG", "LGG", "HGG", "?"]
    assert cohort.notes["reason"].tolist() == ["id not in the name mapping"]
    last = cohort.table[cohort.table["subject"] == "BraTS20_Training_004"]
    assert set(last["caption"]) == {
        caption(contrast, "unknown", "left") for contrast in CONTRASTS
    } and "a glioma in the left" in " ".join(last["caption"])
    assert cohort.load().shape == (32, 1, 16, 16)


@pytest.mark.parametrize(
    ("names", "contrasts", "mask", "ending"),
    [
        (["BraTS2021_00000", "BraTS2021_00002"], TO_2021, lambda labels: labels, ".nii.gz"),
        (["BraTS-GLI-00000-000", "BraTS-GLI-00002-000"], OF_2023, THREE, ".nii.gz"),
        (["BraTS-SSA-00002-000", "BraTS-SSA-00007-000"], OF_2023, THREE, ".nii"),
        (["TCGA-02-0006", "TCGA-02-0009"], TO_2021 | {"t1ce": "_t1Gd"}, lambda labels: labels, ".nii.gz"),
    ],
)  # fmt: skip
def test_later_releases_give_the_slices_of_2018(tmp_path, brats, write, names, contrasts, mask, ending):  # fmt: skip
    root = release(tmp_path / "later", write, names, contrasts, mask, ending)
    (tmp_path / "sex.csv").write_text(f"Subject;Sex;Age\n{names[0]};female;61,5\n")
    cohort = read_brats(root, sex=tmp_path / "sex.csv", settings=SETTINGS)
    expected = read_brats(**brats, settings=SETTINGS)
    order = [*np.flatnonzero(expected.table["subject"] == FIRST),
             *np.flatnonzero(expected.table["subject"] == "Brats18_TCIA01_002_1")]  # fmt: skip
    assert len(order) == 16 and torch.equal(cohort.load(), expected.load(order))
    assert set(cohort.table["side"]) == {"left"} and cohort.table["grade"].isna().all()
    assert cohort.table["sex"].fillna("?").tolist() == ["F"] * 8 + ["?"] * 8
    assert cohort.table["age"].tolist()[0] == 61.5
    assert cohort.notes["reason"].tolist() == ["subject not in your table"]


def test_a_release_without_a_map_is_read_without_sex(tmp_path, write):
    root = release(tmp_path / "r", write, ["BraTS2021_00000"], TO_2021)
    cohort = read_brats(root, settings=SETTINGS)
    assert cohort.table["sex"].isna().all()
    assert cohort.notes["reason"].tolist() == ["neither name mapping nor own table"]
    head = "Grade,BraTS_2021_subject_ID,TCGA_TCIA_subject_ID\n"
    (root / "name_mapping.csv").write_text(head + "HGG,BraTS2021_00000,TCGA-06-0001\n")
    people = [("", "", "TCGA-06-0001", "FEMALE", "50"), ("", "", "TCGA-06-0002", "MALE", "50")]
    tables = [write["biotab"](tmp_path / "gbm.txt", people)]
    table = read_brats(root, clinical=tables, settings=SETTINGS).table
    assert set(table["sex"]) == {"F"} and set(table["grade"]) == {"HGG"}


def test_several_time_points_of_one_subject_are_one_subject(tmp_path, write):
    names = ["BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00008-000"]
    root = release(tmp_path / "r", write, names, OF_2023, THREE)
    (tmp_path / "sex.csv").write_text("subject,sex\nBraTS-GLI-00005,F\nBraTS-GLI-00008-000,M\n")
    for read in (read_brats, survey_brats):
        options = {"sex": tmp_path / "sex.csv", "settings": SETTINGS} if read is read_brats else {}
        cohort = read(root, **options)
        assert cohort.subjects() == ["BraTS-GLI-00005", "BraTS-GLI-00008"]
        assert not cohort.table["image"].duplicated().any()
    cohort = read_brats(root, sex=tmp_path / "sex.csv", settings=SETTINGS)
    assert len(cohort) == 24 and cohort.by_subject()["sex"].tolist() == ["F", "M"]


def test_time_points_of_2018_are_one_subject(brats, write):
    write["subject"](brats["root"], FIRST[:-1] + "2", "HGG", seed=8)
    cohort = read_brats(**brats, settings=SETTINGS)
    assert len(cohort.subjects()) == 5 and (cohort.table["subject"] == FIRST).sum() == 16
    assert cohort.by_subject().set_index("subject")["sex"][FIRST] == "F"


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("BraTS-GLI-02062-100", THREE, "after treatment .BraTS 2024"),
        ("BraTS-GLI-00005-000", lambda labels: labels, "label 4 is the resection cavity"),
        ("BraTS-MEN-00004-000", THREE, "meningiomas"),
        ("BraTS-MET-00086-000", THREE, "metastases"),
        ("BraTS-PED-00001-000", THREE, "children"),
        ("BraTS-GoAT-00001", THREE, "several kinds of tumour"),
        ("BraTS-MEN-RT-0001-1", THREE, "meningiomas"),
    ],
)
def test_releases_of_other_tumours_and_labels_are_refused_by_name(tmp_path, write, name, mask, message):  # fmt: skip
    root = release(tmp_path / "r", write, [name], OF_2023, mask)
    with pytest.raises((DataError, CorruptScan), match=message):
        read_brats(root, settings=SETTINGS)


def test_your_own_table_of_sexes_is_checked(tmp_path, brats):
    (tmp_path / "sex.csv").write_text("subject,sex\nsomebody,F\n")
    with pytest.raises(DataError, match="holds none of the 5 subjects"):
        read_brats(brats["root"], sex=tmp_path / "sex.csv")
    (tmp_path / "sex.csv").write_text(f"subject,sex\n{FIRST},x\n")
    with pytest.raises(DataError, match="sex is 'x'"):
        read_brats(brats["root"], sex=tmp_path / "sex.csv")
    (tmp_path / "sex.csv").write_text(f"subject,sex\n{FIRST},F\n{FIRST[:-1]}2,M\n")
    with pytest.raises(DataError, match="of two sexes"):
        read_brats(brats["root"], sex=tmp_path / "sex.csv")
    (tmp_path / "sex.csv").write_text(f"subject,sex\n{FIRST},\nBrats18_TCIA01_002_1,m\n")
    table = read_brats(brats["root"], sex=tmp_path / "sex.csv", settings=SETTINGS).by_subject()
    assert table["sex"].fillna("?").tolist() == ["?", "?", "M", "?", "?"]


@pytest.mark.parametrize("name", ["W39_1998.09.19_Segm.nii", "mask_SEG.nii"])
def test_a_single_mask_of_another_name_is_read_and_noted(brats, name):
    before = read_brats(**brats, settings=SETTINGS).load()
    folder = brats["root"] / "HGG" / "Brats18_TCIA01_002_1"
    (folder / "Brats18_TCIA01_002_1_seg.nii").rename(folder / name)
    cohort = read_brats(**brats, settings=SETTINGS)
    assert torch.equal(cohort.load(), before)
    notes = cohort.notes.set_index("reason").loc["file called otherwise"]
    assert notes["item"] == "Brats18_TCIA01_002_1" and name in notes["detail"]


def test_a_folder_without_scans_is_left_out_and_listed(brats):
    (brats["root"] / "HGG" / "npy").mkdir()
    excluded = read_brats(**brats, settings=SETTINGS).excluded
    assert excluded.values.tolist() == [
        ["npy", "folder without scans", f"{brats['root'] / 'HGG' / 'npy'}: move it away"]
    ]


def spoil(root):
    """Three subjects with faults of four files."""
    first, second = root / "HGG" / FIRST, root / "HGG" / "Brats18_TCIA01_002_1"
    third = root / "LGG" / "Brats18_TCIA09_003_1"
    for path in (first / f"{FIRST}_t1.nii.gz", first / f"{FIRST}_t2.nii.gz"):
        path.write_bytes(path.read_bytes()[:-30])
    (second / f"{second.name}_flair.nii").unlink()
    (third / f"{third.name}_seg.nii").write_bytes(b"<html>404</html>")
    return [FIRST, second.name, third.name]


def test_all_faults_stand_in_one_message_or_in_excluded(brats):
    faulty = spoil(brats["root"])
    with pytest.raises(DataError, match="3 faults; skip_faulty=True") as caught:
        read_brats(**brats, settings=SETTINGS)
    for part in (f"{FIRST}_t1.nii.gz", f"{FIRST}_t2.nii.gz", "_flair.nii*", "but a web page"):
        assert part in str(caught.value)
    cohort = read_brats(**brats, settings=SETTINGS, skip_faulty=True)
    assert len(cohort.subjects()) == 2
    assert sorted(cohort.excluded["item"]) == sorted(faulty)
    assert set(cohort.excluded["reason"]) == {FAULTY}


def in_place(brats):
    """The tables where readers look for them."""
    root = brats["root"]
    shutil.copy(brats["name_mapping"], root / "name_mapping.csv")
    for study, path in zip(("gbm", "lgg"), brats["clinical"], strict=True):
        shutil.copy(path, root / f"clinical_patient_{study}.txt")
    return root


def test_the_survey_lists_whom_the_reader_reads(brats, opened):
    root = in_place(brats)
    survey, cohort = survey_brats(root), read_brats(root, settings=SETTINGS)
    assert len(opened) == 25 + 5  # the survey opens masks
    columns = ["sex", "grade", "age"]
    pd.testing.assert_frame_equal(
        survey.by_subject(columns).drop(columns="images"),
        cohort.by_subject(columns).drop(columns="images"),
    )
    assert survey.notes.values.tolist() == cohort.notes.values.tolist()
    with pytest.raises(DataError, match="use read_brats"):
        survey.load()
    path = root / "LGG" / "Brats18_TCIA09_004_1" / "Brats18_TCIA09_004_1_seg.nii.gz"
    whole, labels = path.read_bytes(), nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(THREE(np.asarray(labels.dataobj)), labels.affine), path)
    with pytest.raises(CorruptScan, match=r"labels \[3\]"):
        survey_brats(root)
    path.write_bytes(whole)
    spoil(root)
    with pytest.raises(DataError, match="3 faults"):
        survey_brats(root)
    assert len(survey_brats(root, skip_faulty=True)) == 2


def test_a_deeper_release_is_named(tmp_path, brats):
    (tmp_path / "above").mkdir()
    brats["root"].rename(tmp_path / "above" / "MICCAI_BraTS_2018_Data_Training")
    with pytest.raises(DataError, match=r"there is MICCAI_BraTS_2018_Data_Training/HGG/"):
        read_brats(tmp_path / "above")
    with pytest.raises(DataError, match="there is no abov in .*there is above/"):
        read_brats(tmp_path / "abov")


def test_gdcs_clinical_tsv_is_read(tmp_path, brats):
    """One header line, several rows a patient, and other names since 2025."""
    rows = [("TCGA-02-0001", "female", "44"), ("TCGA-02-0001", "female", "44"),
            ("TCGA-02-0002", "'--", "'--"), ("TCGA-CS-0003", "male", "38")]  # fmt: skip
    for names in ("case_submitter_id\tgender\tage_at_index",
                  "cases.submitter_id\tdemographic.sex_at_birth\tdemographic.age_at_index"):  # fmt: skip
        lines = "".join("\t".join(row) + "\n" for row in rows)
        (brats["root"] / "clinical.tsv").write_text(f"{names}\n{lines}")
        shutil.copy(brats["name_mapping"], brats["root"] / "name_mapping.csv")
        people = read_brats(brats["root"], settings=SETTINGS).by_subject(["sex", "age"])
        known = people[people["sex"].notna()].set_index("subject")
        assert known["sex"].to_dict() == {FIRST: "F", "Brats18_TCIA09_003_1": "M"}
        assert known["age"].to_dict() == {FIRST: 44, "Brats18_TCIA09_003_1": 38}


def test_subjects_one_folder_too_deep_are_refused(brats):
    (brats["root"] / "inner").mkdir()
    (brats["root"] / "HGG").rename(brats["root"] / "inner" / "HGG")
    (brats["root"] / "inner").rename(brats["root"] / "HGG")
    with pytest.raises(DataError, match="HGG/HGG: holds the folders of subjects.* level up"):
        read_brats(**brats)
