"""The synthetic cohorts: what they promise is what the real readers find in them."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from fairlib.cohorts.brats import caption, read_brats
from fairlib.cohorts.roco import read_roco
from fairlib.cohorts.slices import CONTRASTS
from fairlib.errors import SettingsError
from studies.brain.data import EVALUATION_PROMPTS, FIDELITY_PROMPTS, mirrored
from studies.brain.phantom import (
    BASE_SIZE,
    EFFECTS,
    PhantomSettings,
    RadiologySettings,
    draw_slice,
    draw_subject,
    normalise,
    render_slice,
    roster,
    slice_height,
    write_brats,
    write_roco,
)


@pytest.fixture(scope="module")
def brats(tmp_path_factory):
    root = tmp_path_factory.mktemp("brats")
    write_brats(root, PhantomSettings(multiple=0.01, unknown=1))
    return root


def read(root):
    return read_brats(root)


def test_default_counts_are_those_of_the_real_cohort():
    people = Counter((p["grade"], p["sex"]) for p in roster(PhantomSettings()) if p["known"])
    assert people == {("HGG", "M"): 63, ("HGG", "F"): 38, ("LGG", "M"): 27, ("LGG", "F"): 38}
    female = people["HGG", "F"] + people["LGG", "F"]
    assert round(female / sum(people.values()), 3) == 0.458
    assert len({p["tcga"] for p in roster(PhantomSettings(multiple=5))}) == len(
        roster(PhantomSettings(multiple=5))
    )


def test_the_real_reader_finds_what_was_drawn(brats):
    cohort, truth = read(brats), pd.read_csv(brats / "truth.csv").set_index("brats")
    people = cohort.table.drop_duplicates("subject").set_index("subject")
    assert set(people.index) == set(truth.index)
    known = truth[truth.known]
    assert (people.sex[known.index] == known.sex).all() and people.sex[
        truth.index[~truth.known]
    ].isna().all()
    assert (people.grade[truth.index] == truth.grade).all()
    tumour = cohort.table[cohort.table.side != "none"]
    assert len(tumour) and (tumour.side == truth.side[tumour.subject].to_numpy()).all()
    assert (abs(people.age[known.index] - known.age) <= 0.5 + 1e-6).all()


def test_a_subject_is_a_function_of_seed_and_number(brats, tmp_path):
    write_brats(tmp_path, PhantomSettings(multiple=0.01, unknown=0))
    for file in sorted(tmp_path.rglob("*_flair.nii.gz")):
        assert file.read_bytes() == (brats / file.relative_to(tmp_path)).read_bytes()


def test_area_follows_the_size_that_was_drawn():
    rng = np.random.default_rng(0)
    sizes, areas = [], []
    for _ in range(24):
        subject = draw_subject(rng, "M", effect="none")
        image, _ = render_slice(subject, slice_height(subject), "t1", rng)
        sizes.append(subject.log_size + np.mean(subject.stretch[:2]))
        areas.append(np.log((image > 0).sum()))
    slope, _ = np.polyfit(sizes, areas, 1)
    assert np.corrcoef(sizes, areas)[0, 1] > 0.9
    assert slope == pytest.approx(2, abs=0.4)  # an area grows with the square of a length


def test_effect_sizes_are_the_ones_stated():
    rng = np.random.default_rng(1)
    for effect, (difference, spread) in EFFECTS.items():
        men, women = (
            [draw_subject(rng, sex, effect=effect).log_size for _ in range(400)] for sex in "MF"
        )
        assert np.mean(men) - np.mean(women) == pytest.approx(
            difference, abs=4 * spread * np.sqrt(2 / 400)
        )
    assert np.exp(3 * EFFECTS["realistic"][0]) == pytest.approx(1.11)
    assert BASE_SIZE < 0
    with pytest.raises(SettingsError, match="teaching"):
        draw_subject(rng, "F", effect="techning")


def test_a_tumour_on_the_patients_left_shows_on_the_right_of_the_picture():
    rng = np.random.default_rng(2)
    for _ in range(6):
        subject = draw_subject(rng, "F", "HGG")
        _, labels = render_slice(subject, slice_height(subject), "flair", rng)
        column = np.argwhere(labels > 0)[:, 1].mean()
        assert (column > 63.5) == (subject.side == "left")
        assert set(np.unique(labels)) <= {0, 1, 2, 4}


def test_normalised_slices_fill_the_range():
    rng = np.random.default_rng(3)
    subject = draw_subject(rng, "F")
    image = normalise(render_slice(subject, slice_height(subject), "t2", rng)[0])
    assert image.dtype == np.float32 and image.min() == -1 and image.max() == 1
    assert (normalise(np.zeros((4, 4))) == -1).all()


def test_the_radiology_set_is_biased_as_promised():
    settings = RadiologySettings(slices=0)
    rng_truths = [draw_truth(settings, index) for index in range(300)]
    male = np.mean([truth["sex"] == "M" for truth in rng_truths])
    named = np.mean(
        [
            " man" in t["caption"] or "woman" in t["caption"] or "ale patient" in t["caption"]
            for t in rng_truths
        ]
    )
    assert male == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / 300))
    assert named == pytest.approx(0.05, abs=4 * np.sqrt(0.0475 / 300))


def draw_truth(settings, index, cache={}):  # noqa: B006 - drawn once for the module
    if index not in cache:
        cache[index] = draw_slice(settings, index)[1]
    return cache[index]


def test_the_real_roco_reader_finds_the_slices(tmp_path):
    settings = RadiologySettings(slices=6, validation=2)
    write_roco(tmp_path, settings)
    cohort = read_roco(tmp_path)
    assert len(cohort) == 6 and len(read_roco(tmp_path, split="validation")) == 2
    image, truth = draw_slice(settings, 3)
    row = list(cohort.table.caption).index(truth["caption"])
    assert cohort.table.sex.iloc[row] == truth["sex"]
    assert np.abs(cohort.load([row])[0, 0].numpy() - image).mean() < 0.03  # JPEG


def test_a_mirrored_caption_swaps_the_sides_and_nothing_else():
    text = caption("t2", "HGG", "left", person="61-year-old man")
    assert mirrored(text) == caption("t2", "HGG", "right", person="61-year-old man")
    assert mirrored(mirrored(text)) == text
    assert mirrored(caption("t2")) == caption("t2")
    assert mirrored("leftover, aleft") == "leftover, aleft"


def test_captions_say_what_they_are_asked_to():
    assert (
        caption("flair", "LGG", "left")
        == "Axial FLAIR MRI of the brain showing a low-grade glioma in the left hemisphere."
    )
    assert caption("t1", person="54-year-old woman").endswith(" 54-year-old woman.")
    assert len({(p.contrast, p.grade) for p in EVALUATION_PROMPTS}) == 8
    assert Counter(p.side for p in EVALUATION_PROMPTS) == {"left": 4, "right": 4}
    assert not any(
        word in p.text.lower().split()
        for p in FIDELITY_PROMPTS
        for word in ("man", "woman", "male", "female")
    )
    assert {p.contrast for p in FIDELITY_PROMPTS if p.grade == "none"} == set(CONTRASTS)
