"""Every network of the heart study is fitted, and read, on the accelerator; "meta" stands in for
one, as in tests/models.
"""

import pytest
import torch
from torch import nn

from fairlib.methods import downstream as method
from fairlib.models.classifier import ClassifierSettings
from fairlib.models.segmenter import SegmenterSettings
from fairlib.models.training import device_of
from studies.engine.progress import Progress
from studies.heart import Hearts, HeartStudy, downstream, judges
from studies.heart import base as heart_base
from studies.heart.phantom import HeartSettings, draw_hearts


class Seen(Exception):
    """Where the network lies that somebody was about to fit."""


def stop(network, *given, **more):
    raise Seen(device_of(network).type)


@pytest.fixture(autouse=True)
def on_meta(monkeypatch):
    monkeypatch.setenv("FAIRLIB_DEVICE", "meta")


@pytest.fixture(scope="module")
def people():
    images, masks, table = draw_hearts(HeartSettings(subjects=8, heart_failure=0.5))
    return Hearts(images, table, masks)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("segmenter", SegmenterSettings()),
        ("diagnosis", method.DownstreamSettings().classifier),
        ("reader", ClassifierSettings(1, 4)),
    ],
)
def test_instruments_are_fitted_there(name, settings, people, monkeypatch, tmp_path):
    monkeypatch.setattr(judges, "_two", lambda study: (people, people))
    monkeypatch.setattr(judges, "fit_segmenter", stop)
    monkeypatch.setattr(judges, "fit_classifier", stop)
    with pytest.raises(Seen, match="meta"):
        getattr(judges, f"_{name}")(None, settings, tmp_path, Progress())


def test_instruments_read_there(monkeypatch):
    monkeypatch.setattr(judges, "_folders", lambda study: "abc")
    for name in ("segmenter", "classifier"):
        monkeypatch.setattr(judges, f"load_{name}", lambda folder: nn.Linear(1, 1))
    found = judges.fit_heart_judges(HeartStudy(data_dir="of this test alone"))
    judges.fit_heart_judges.cache_clear()
    assert {device_of(network).type for network in vars(found).values()} == {"meta"}


def test_downstream_classifiers_are_trained_there(people, monkeypatch):
    monkeypatch.setattr(downstream, "own_people", lambda study: people)
    monkeypatch.setattr(
        downstream,
        "hearts",
        lambda study, part: Hearts(
            people.images, people.table.assign(subject=part + people.table["subject"]), people.masks
        ),
    )
    monkeypatch.setattr(method, "fit_plan", stop)
    study = HeartStudy()
    with pytest.raises(Seen, match="meta"):
        downstream._margins(study, downstream.downstream_settings(study), "real", 0)


def test_the_text_tower_is_fitted_there(monkeypatch, tmp_path):
    monkeypatch.setattr(heart_base, "Trainer", stop)
    with pytest.raises(Seen, match="meta"):
        heart_base.words_phase(tmp_path, torch.zeros(0), [], heart_base.TINY, print)
