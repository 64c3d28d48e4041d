"""The doctor knows every layout that a reader reads: what a phantom writer writes is found, an empty folder is not."""

import pytest

from fairlib.cohorts.phantoms.chest import ChestSettings, write_chexpert
from fairlib.cohorts.phantoms.dermoscopy import DermoscopySettings, write_ham10000
from fairlib.cohorts.phantoms.fundus import FundusSettings, write_fairgenmed
from fairlib.cohorts.phantoms.heart import HeartSettings, write_mnms
from fairlib.runs.doctor import LAYOUTS, check_layout

WRITERS = {"mnms": lambda root: write_mnms(root, HeartSettings(subjects=1)),
           "fairgenmed": lambda root: write_fairgenmed(root, FundusSettings(subjects=10)),
           "ham10000": lambda root: write_ham10000(root, DermoscopySettings(lesions=4)),
           "chexpert": lambda root: write_chexpert(root, ChestSettings(patients=4))}


@pytest.mark.parametrize("cohort", WRITERS)
def test_a_whole_layout_is_found(cohort, tmp_path):
    WRITERS[cohort](tmp_path)
    lines, well = check_layout(str(tmp_path), cohort)
    assert well and len(lines) == len(LAYOUTS[cohort]), lines


@pytest.mark.parametrize("cohort", LAYOUTS)
def test_what_is_missing_is_named(cohort, tmp_path):
    lines, well = check_layout(str(tmp_path), cohort)
    assert not well and all("none, expected in" in line for line in lines)
