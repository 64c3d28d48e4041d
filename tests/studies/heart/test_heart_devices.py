"""Every network of the heart study is fitted, and read, on the accelerator; "meta" stands in for
one, as in tests/models.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fairlib.methods import downstream as method
from fairlib.models.classifier import ClassifierSettings
from fairlib.models.clip import attributes_of
from fairlib.models.segmenter import SegmenterSettings
from fairlib.models.training import FitSettings, device_of
from studies import bases
from studies.engine import images, recipe
from studies.engine.stage import Progress
from studies.heart import arms, evaluators
from studies.heart.data import Hearts, HeartSettings
from studies.heart.phantom import PhantomSettings, draw_hearts


def given(value):
    """Something that a stage loads."""
    return SimpleNamespace(load=lambda: value)


class Seen(Exception):
    """Where the network lies that somebody was about to fit."""


def stop(network, *given, **more):
    raise Seen(device_of(network).type)


@pytest.fixture(autouse=True)
def on_meta(monkeypatch):
    monkeypatch.setenv("FAIRLIB_DEVICE", "meta")


@pytest.fixture(scope="module")
def people():
    images, masks, table = draw_hearts(PhantomSettings(subjects=8, heart_failure=0.5))
    return Hearts(images, table, masks)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("segmenter", SegmenterSettings()),
        ("diagnosis", method.DownstreamSettings().classifier),
        ("attributes", ClassifierSettings(1, 4)),
    ],
)
def test_evaluators_are_fitted_there(name, settings, people, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluators, "fit_segmenter", stop)
    monkeypatch.setattr(images, "fit_classifier", stop)
    fit = evaluators.EVALUATORS[name].fit
    with pytest.raises(Seen, match="meta"):
        fit(tmp_path, Progress(), people, people, settings)


def test_evaluators_read_there(people, tmp_path):
    def read(network, hearts):
        raise Seen(device_of(network).type)

    pair = (given(nn.Linear(1, 1)), read)
    with pytest.raises(Seen, match="meta"):
        evaluators.evaluate.function(tmp_path, Progress(), given(people), None, {"one": pair})


def test_downstream_classifiers_are_trained_there(people, monkeypatch, tmp_path):
    parts = {
        part: given(
            Hearts(
                people.images,
                people.table.assign(subject=part + people.table["subject"]),
                people.masks,
            )
        )
        for part in arms.PARTS
    }
    monkeypatch.setattr(method, "fit_plan", stop)
    settings = arms.downstream_settings(HeartSettings())
    with pytest.raises(Seen, match="meta"):
        arms.train_arm.function(tmp_path, Progress(), "real", 0, settings, parts, 0, None, None)


def test_the_text_tower_is_fitted_there(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "Trainer", stop)
    drawn = given(SimpleNamespace(tensors={"images": torch.zeros(0)}, captions=[]))
    how = bases.HEART_CLIP, attributes_of, FitSettings(2, 8, 1e-3), 0
    with pytest.raises(Seen, match="meta"):
        recipe.text_tower.function(tmp_path, Progress(), drawn, bases.heart_prompts(), *how)
