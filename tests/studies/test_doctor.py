"""The doctor asks the readers: what it calls usable they read, and what they refuse it refuses in
their words.
"""

import shutil

import pytest
from PIL import Image

from fairlib import DataError
from fairlib.cli import _parser
from fairlib.cohorts.roco import read_roco, read_rocov2
from fairlib.doctor import READERS, check_data
from fairlib.measures.intervals import wilson
from studies.brain.data import read_cohort
from studies.brain.phantom import PhantomSettings, RadiologySettings, write_brats, write_roco
from studies.fundus.phantom import PhantomSettings as FundusPhantom
from studies.heart.phantom import PhantomSettings as HeartPhantom
from tests.fairlib.cohorts.phantoms import (
    ChestSettings,
    DermoscopySettings,
    write_chexpert,
    write_ham10000,
)
from tests.studies.fundus.layout import write_fairgenmed
from tests.studies.heart.layout import write_mnms

GDC = "nationwidechildrens.org_clinical_patient_{}.txt"  # as TCGA's data portal names them


def write_real_roco(root):
    return write_roco(root, RadiologySettings(slices=2, validation=0, size=16))


def write_rocov2(root):
    folder = root / "train_images"
    folder.mkdir(parents=True)
    Image.new("L", (8, 8), 200).save(folder / "a.jpg")
    (root / "train_captions.csv").write_text("ID,Caption\na,A knee.\n")


WRITERS = {
    "brats": lambda root: write_brats(root, PhantomSettings(multiple=0.01, unknown=0)),
    "roco": write_real_roco,
    "rocov2": write_rocov2,
    "mnms": lambda root: write_mnms(root, HeartPhantom(subjects=1)),
    "fairgenmed": lambda root: write_fairgenmed(root, FundusPhantom(subjects=10)),
    "ham10000": lambda root: write_ham10000(root, DermoscopySettings(lesions=4)),
    "chexpert": lambda root: write_chexpert(root, ChestSettings(patients=4)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_brats(tmp_path_factory.mktemp("brats"), PhantomSettings(multiple=0.01, unknown=0))


@pytest.fixture
def brats(written, tmp_path, runs):
    """A folder with four subjects, whose clinical tables are called as TCGA calls them."""
    root = shutil.copytree(written, tmp_path / "BraTS2018")
    for study in ("gbm", "lgg"):
        (root / f"clinical_patient_{study}.txt").rename(root / GDC.format(study))
    return root


def read(root):
    return read_cohort(root)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("cohort", WRITERS)
def test_a_whole_release_is_usable(cohort, deep, tmp_path):
    WRITERS[cohort](tmp_path)
    lines, well = check_data(tmp_path, cohort, deep)
    assert well and any(" subjects, " in line for line in lines), lines
    # their readers open every scan, the surveys do not
    partly = cohort in ("brats", "mnms", "acdc") and not deep
    assert any(line.endswith(": usable") for line in lines) != partly


@pytest.mark.parametrize("cohort", READERS)
def test_an_empty_folder_and_none_are_refused(cohort, tmp_path):
    lines, well = check_data(tmp_path, cohort)
    assert not well and "refused: " in lines[0]
    assert not any(line.endswith(": usable") for line in lines)
    (tmp_path / "BraTS2018").mkdir()
    lines, well = check_data(tmp_path / "Brats2018", cohort)
    assert not well and len(lines) == 1
    assert f"there is no Brats2018 in {tmp_path} (there is BraTS2018/)" in lines[0]


def test_the_command_line_offers_every_reader(capsys):
    for cohort in READERS:
        assert _parser().parse_args(["doctor", "--cohort", cohort]).cohort == cohort


def test_counts_by_subgroup_have_intervals(brats):
    lines, _ = check_data(brats, "brats")
    people = read(brats).by_subject(["sex", "grade"])
    women = int((people["sex"] == "F").sum())
    low, high = (100 * float(end) for end in wilson(women, len(people)))
    share = f"{100 * women / len(people):.1f} % (95 % CI {low:.1f} to {high:.1f} %)"
    assert f"data (brats): sex F: {women} of {len(people)} subjects, {share}" in lines
    assert any(f"{len(people)} subjects, " in line for line in lines)


def test_a_release_in_part_is_not_usable_and_says_whom_it_lacks(brats):
    """Quick or deep, as the reader; the subjects that are whole are counted."""
    first, second = sorted(brats.glob("?GG/*"))[:2]
    (first / f"{first.name}_seg.nii.gz").unlink()
    for deep in (False, True):
        lines, well = check_data(brats, "brats", deep)
        text = "\n".join(lines)
        assert not well and f"{first.name}_seg.nii*" in text and "3 subjects, " in text
    with pytest.raises(DataError, match="_seg"):
        read(brats)
    shutil.copy(second / f"{second.name}_seg.nii.gz", first / f"{first.name}_seg.nii.gz")
    path = second / f"{second.name}_t1.nii.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255  # inside, where only the whole stream tells
    path.write_bytes(data)
    assert check_data(brats, "brats")[1]
    lines, well = check_data(brats, "brats", deep=True)
    assert not well and str(path) in "\n".join(lines)
    path.write_bytes(data[:-9])  # its end, which a header knows
    assert not check_data(brats, "brats")[1]


def test_half_of_a_release_is_counted_but_not_usable(brats):
    shutil.rmtree(brats / "LGG")
    lines, well = check_data(brats, "brats")
    assert not well and any("grade HGG: " in line for line in lines)
    assert any(f"{brats}: no folder LGG" in line for line in lines)


def test_every_broken_picture_is_named_in_depth(tmp_path):
    root = write_ham10000(tmp_path, DermoscopySettings(lesions=6))
    paths = sorted(root.glob("*/*.jpg"))[:2]
    for path in paths:  # their first and last bytes are sound: only the whole data tell
        Image.open(path).save(path, "PNG")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    assert check_data(root, "ham10000")[1]
    lines, well = check_data(root, "ham10000", deep=True)
    assert not well and all(any(str(path) in line for line in lines) for path in paths)
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    lines, well = check_data(root, "ham10000")
    assert well and "left out: image broken: 1" in "\n".join(lines)
    assert any(str(paths[0]) in line for line in lines)


def test_one_split_of_roco_is_enough(tmp_path):
    write_rocov2(tmp_path)
    lines, well = check_data(tmp_path, "rocov2")
    assert well and "data (rocov2, valid): not there" in lines
    (tmp_path / "valid_images").mkdir()  # begun
    lines, well = check_data(tmp_path, "rocov2")
    assert well and any("valid): refused: " in line for line in lines)
    (tmp_path / "train_captions.csv").unlink()
    assert not check_data(tmp_path, "rocov2")[1]


def test_clinical_tables_are_read_under_the_name_that_they_have_in_tcga(brats):
    lines, well = check_data(brats, "brats")
    assert well, lines
    assert set(read(brats).table["sex"].dropna()) == {"F", "M"}


def absent(root, study):
    (root / GDC.format(study)).unlink()


def doubled(root, study):
    shutil.copy(root / GDC.format(study), root / f"clinical_patient_{study}.txt")


@pytest.mark.parametrize("study", ["gbm", "lgg"])
@pytest.mark.parametrize(("change", "found"), [(absent, "none"), (doubled, "2")])
def test_one_clinical_table_of_each_study_and_no_other_number(brats, study, change, found):
    """The doctor's answer and the reader's."""
    change(brats, study)
    lines, well = check_data(brats, "brats")
    assert not well and f"refused: {brats}: {found} of the files match" in lines[0]
    with pytest.raises(
        DataError, match=rf"{found} .*\*clinical_patient_{study}\.txt.*, expected one"
    ):
        read(brats)


def test_the_map_of_names_has_one_name(brats):
    """BraTS 2020 has name_mapping_validation_data.csv as well, with other subjects."""
    (brats / "name_mapping.csv").rename(brats / "name_mapping_validation_data.csv")
    assert not check_data(brats, "brats")[1]
    with pytest.raises(DataError, match=r"name_mapping\.csv: cannot be read"):
        read(brats)


@pytest.mark.parametrize("moved", [".", "data"])
def test_roco_is_found_where_it_is_read(moved, tmp_path):
    """Under data/, as its script leaves it, and in the folder data itself."""
    write_real_roco(tmp_path)
    root = tmp_path / moved
    assert len(read_roco(root)) == 2
    assert check_data(root, "roco")[1]


def test_rocov2_is_found_where_it_is_read(tmp_path):
    write_rocov2(tmp_path)
    assert len(read_rocov2(tmp_path)) == 1 and check_data(tmp_path, "rocov2")[1]
    assert not check_data(tmp_path, "roco")[1]
