"""The doctor knows every layout that a reader reads: what it passes the reader reads, and what it
misses is named.
"""

import shutil

import pytest
from PIL import Image

from fairlib import DataError
from fairlib.cli import _parser
from fairlib.cohorts.roco import read_roco, read_rocov2
from fairlib.doctor import LAYOUTS, check_layout
from studies.brain.data import read_cohort
from studies.brain.phantom import PhantomSettings, RadiologySettings, write_brats, write_roco
from studies.fundus.phantom import PhantomSettings as FundusPhantom
from studies.fundus.phantom import write_fairgenmed
from studies.heart.phantom import PhantomSettings as HeartPhantom
from studies.heart.phantom import write_mnms
from tests.fairlib.cohorts.phantoms import (
    ChestSettings,
    DermoscopySettings,
    write_chexpert,
    write_ham10000,
)

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


@pytest.mark.parametrize("cohort", WRITERS)
def test_a_whole_layout_is_found(cohort, tmp_path):
    WRITERS[cohort](tmp_path)
    lines, well = check_layout(str(tmp_path), cohort)
    assert well and len(lines) == len(LAYOUTS[cohort]), lines


@pytest.mark.parametrize("cohort", LAYOUTS)
def test_what_is_missing_is_named(cohort, tmp_path):
    lines, well = check_layout(str(tmp_path), cohort)
    assert not well and all("none, expected in" in line for line in lines)


def test_the_command_line_offers_every_layout(capsys):
    for cohort in LAYOUTS:
        assert _parser().parse_args(["doctor", "--cohort", cohort]).cohort == cohort


def test_clinical_tables_are_read_under_the_name_that_they_have_in_tcga(brats):
    lines, well = check_layout(str(brats), "brats")
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
    lines, well = check_layout(str(brats), "brats")
    line = next(line for line in lines if f"clinical_patient_{study}.txt" in line)
    assert not well and f": {found}, expected " in line
    with pytest.raises(
        DataError, match=rf"{found} .*\*clinical_patient_{study}\.txt.*, expected one"
    ):
        read(brats)


def test_the_map_of_names_has_one_name(brats):
    """BraTS 2020 has name_mapping_validation_data.csv as well, with other subjects."""
    (brats / "name_mapping.csv").rename(brats / "name_mapping_validation_data.csv")
    assert not check_layout(str(brats), "brats")[1]
    with pytest.raises(DataError, match=r"name_mapping\.csv: cannot be read"):
        read(brats)


@pytest.mark.parametrize("moved", [".", "data"])
def test_roco_is_found_where_it_is_read(moved, tmp_path):
    """Under data/, as its script leaves it, and in the folder data itself."""
    write_real_roco(tmp_path)
    root = tmp_path / moved
    assert len(read_roco(root)) == 2
    assert check_layout(str(root), "roco")[1]


def test_rocov2_is_found_where_it_is_read(tmp_path):
    write_rocov2(tmp_path)
    assert len(read_rocov2(tmp_path)) == 1 and check_layout(str(tmp_path), "rocov2")[1]
    assert not check_layout(str(tmp_path), "roco")[1]
