"""The fundus study on the paper's two other cohorts, skin and chest, each in its released layout."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.cohorts.chexpert import read_chexpert
from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json
from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.autoencoder import build_autoencoder
from studies.engine.criteria import criteria_of
from studies.engine.images import Sampling, encode
from studies.engine.profiles import notebook_parameters, notebooks
from studies.engine.running import run_study
from studies.engine.stage import write_manifest
from studies.engine.study import load_results
from studies.fundus.arms import sample
from studies.fundus.data import CHEST, PARTS, SKIN, FundusSettings, real_rows, subjects
from studies.fundus.study import STUDY
from tests.fairlib.cohorts.phantoms import (
    ChestSettings,
    DermoscopySettings,
    write_chexpert,
    write_ham10000,
)
from tests.studies.fundus.conftest import CONFIG
from tests.studies.tracing import stages_traced

SKINS = DermoscopySettings(
    lesions=300, male=0.5, width=48, height=36, malignant=0.5, older=0.5, sex_unknown=0, seed=4
)
CHESTS = ChestSettings(
    patients=450,
    validation=4,
    width=32,
    height=40,
    female=0.5,
    races=(0.34, 0.33, 0.33),
    uncertain=0.1,
    blank=0.1,
)
WORDS = {"ham10000": SKIN, "chexpert": CHEST}


@pytest.fixture(scope="module")
def in_colour(tmp_path_factory):
    """An untrained pipeline in colour whose text encoder reads 77 tokens."""
    place = tmp_path_factory.mktemp("colour")
    cl.write_vocabulary(place / "words", cl.learn_merges(["Dermoscopic image of a patient"], 20))
    torch.manual_seed(0)
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "context_length": 77}}
    encoder = cl.text_encoder_of(cl.build_clip(place / "words", config))
    tokens, denoiser = cl.pipeline_tokenizer(place / "words", 77), gen.build_denoiser((16, 32), 32)
    autoencoder = build_autoencoder((8, 8, 8, 8), image_channels=3)
    gen.save_pipeline(place / "weights", gen.assemble(encoder, tokens, autoencoder, denoiser))
    write_manifest(place / "weights", {}, 0.0)
    return str(place / "weights")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of each release."""
    place = tmp_path_factory.mktemp("releases")
    return {
        "ham10000": write_ham10000(place / "ham10000", SKINS),
        "chexpert": write_chexpert(place / "chexpert", CHESTS),
    }


@pytest.fixture
def real(settings, in_colour, written, request):
    """The tiny study on the release that a test names."""
    sizes = {"train_subjects": 60, "probe_per_group": 1, "probe_subjects": 12, "images": 30}
    return replace(
        settings,
        **{**sizes, "reference_subjects": 30, "evaluator_subjects": 30},
        cohort=request.param,
        data_dir=str(written[request.param]),
        weights=in_colour,
        everyone="",
    )


both = pytest.mark.parametrize("real", ["ham10000", "chexpert"], indirect=True)


@both
@pytest.mark.slow
def test_the_study_runs_end_to_end_and_leaves_the_cup_out(real, runs, tmp_path):
    out = run_study(STUDY, real, ["plain", "released", "balanced"], [1], tmp_path / "out")
    words, found = WORDS[real.cohort], load_results(STUDY, out)
    assert read_json(out / "study.json")["people"].startswith("patients of ")
    by, values = words.first
    assert set(found["readings"]["arm"]) == {"real", "base", "plain", "released", "balanced"}
    assert found["readings"].groupby("arm")[by].value_counts().nunique() == 1, "even over the first"
    assert {f"sigma_{group}" for group in words.groups} <= set(found["history"])
    assert set(found["values"]["by"]) == {"all", *words.compared}
    mmd = found["values"].query("measure == 'mmd' and arm == 'plain'")
    assert set(mmd["by"]) <= {"all", by} and set(values) <= {*mmd["group"], "gap", "worst"}
    asked = found["values"].query("measure == 'attribute recovered'")["task"]
    assert set(asked) == {*words.compared, *words.learnt}
    assert set(found["values"].query("measure.str.startswith('auc')")["task"]) == set(words.learnt)
    assert not {"cdr", "has_disc"} & set(found["readings"])
    assert not {"cdr error", "no disc"} & set(found["values"]["measure"])
    criteria = criteria_of(STUDY, out)
    over = {"ham10000": "gap over sexes: ", "chexpert": "gap over races: "}[real.cohort]
    assert len(criteria) and criteria["figure"].str.startswith(over).all()
    parts = set(found["subjects"]["part"].value_counts())
    assert set(criteria["n"]) <= parts and criteria["estimate"].notna().any()


@both
def test_parts_are_split_by_subject_and_even_with_one_image_a_subject(real, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLIB_RUNS", str(tmp_path))
    with stages_traced() as unseen:
        parts = {part: subjects(real, part).load() for part in PARTS}
    assert unseen == {} and stages_traced.built == {"read_subjects"}
    people = {part: set(fundi.table["subject"]) for part, fundi in parts.items()}
    for part, fundi in parts.items():
        others = set().union(*(ids for other, ids in people.items() if other != part))
        assert not people[part] & others
        assert fundi.stored.shape[1:] == (real.vocabulary.channels, 128, 128)
        if part != "train":
            assert fundi.table["subject"].is_unique
            assert fundi.table[real.vocabulary.first[0]].value_counts().nunique() == 1
        groups = real.vocabulary.codes(fundi.table)
        assert groups.shape == (len(fundi), len(real.vocabulary.compared))
    assert len(parts["train"]) == 60
    again = subjects(replace(real, split_seed=1), "requested").load().table["subject"]
    assert set(again) != people["requested"]


def test_a_second_image_of_a_subject_is_in_no_even_part():
    table = pd.DataFrame({"subject": list("aabbcd"), "sex": list("FFMMFM")})
    part = replace(PARTS["requested"], share=1, rest=False)
    rows = real_rows(table, part, 0, 6, ("sex", ("F", "M")))
    assert rows.tolist() == [0, 2, 4, 5]
    with pytest.raises(DataError, match="no patient left of sex M among 2"):
        real_rows(table[:2], part, 0, 6, ("sex", ("F", "M")))


@pytest.mark.parametrize("real", ["chexpert"], indirect=True)
def test_an_uncertain_label_is_absent_as_in_the_code_of_the_paper(real, written, runs):
    table = subjects(real, "train").load().table
    cohort = read_chexpert(written["chexpert"], uncertain="zeros").with_prompt()
    uncertain = cohort.table.query("mention == 'uncertain'")["image"]
    found = table[table["image"].isin(uncertain)]
    assert len(found) and set(found["finding"]) == {"non Pleural Effusion"}


@pytest.mark.parametrize("cohort", ["ham10000", "chexpert"])
def test_what_these_cohorts_cannot_have_is_one_sentence_before_the_work(
    cohort, in_colour, settings
):
    real = FundusSettings(cohort=cohort)
    with pytest.raises(SettingsError, match="fundus and weights/fundus-white: made for fundus"):
        STUDY.arms_of(real, None)
    with pytest.raises(SettingsError, match="^arm 'plain': weights/fundus: made for fundus"):
        STUDY.arms_of(replace(real, weights=in_colour), ["plain"])
    assert STUDY.arms_of(replace(real, weights=in_colour, everyone=""), ["plain"])
    grey = replace(real, weights=settings.weights, everyone="")
    if cohort == "ham10000":
        with pytest.raises(SettingsError, match="ham10000 is in colour .* makes grey images"):
            STUDY.arms_of(grey, ["plain"])
    else:
        assert STUDY.arms_of(grey, ["plain"])
    with pytest.raises(DataError, match=f"cohort '{cohort}' needs data_dir, the folder that holds"):
        subjects(real, "train")
    declared = notebook_parameters(notebooks()["09_fairdiffusion"])
    parameters = type("Parameters", (), dict.fromkeys(declared))
    parameters.cohort, parameters.evaluator_subjects = cohort, 8
    with pytest.raises(SettingsError, match=f"studies fundus --cohort {cohort}"):
        FundusSettings.from_parameters(parameters)
    assert STUDY.results(real).name == f"fundus-{cohort}" and STUDY.results().name == "fundus"


def test_colours_are_kept_or_averaged_as_the_cohort_has_them(in_colour):
    generator = gen.Generator.load(in_colour)
    noise = generator.noise(0, [0])
    grey, colour = (
        sample(generator, ["a"], noise, Sampling(1, 1.0, 1, channels)) for channels in (1, 3)
    )
    assert colour.shape == (1, 3, 128, 128) and colour.std(1).max() > 0
    torch.testing.assert_close(grey, colour.mean(1, keepdim=True))
    same = encode(generator, grey), encode(generator, grey.expand(-1, 3, -1, -1))
    assert torch.equal(*same) and not torch.equal(same[0], encode(generator, colour))


def test_the_groups_are_those_of_the_paper():
    assert SKIN.sizes == (2, 2) and CHEST.sizes == (3, 2)
    assert SKIN.groups == ("F", "M", "under 60", "60 or older")
    assert CHEST.groups == ("Asian", "Black", "White", "F", "M")
    assert np.array(CHEST.strata).tolist() == ["race", "sex", "finding"]
    assert list(dict(SKIN.stated)) == ["sex", "age_group", "category"]
    assert not SKIN.has_disc and not CHEST.has_disc
