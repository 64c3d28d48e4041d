import numpy as np
import pytest
import torch
from torch import nn

from fairlib.errors import DataError, WeightsError
from fairlib.models.classifier import (
    ClassifierSettings,
    Ensemble,
    SexClassifier,
    attack,
    augment,
    calibrate,
    class_accuracies,
    fit_classifier,
    load_classifier,
    predict,
    save_classifier,
)
from fairlib.models.training import generator_for


def discs(n=60, seed=0):
    """Bright discs of two sizes: label 1 (female) is the smaller."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(n) % 2
    y, x = np.mgrid[:128, :128] - 63.5
    radius = np.where(labels.numpy() == 1, 38, 46) + rng.normal(0, 1.5, n)
    images = np.where(np.hypot(x, y)[None] < radius[:, None, None], 0.4, -1.0)
    return torch.tensor(images, dtype=torch.float32)[:, None], labels


@pytest.mark.parametrize("architecture", ["plain", "residual"])
def test_a_classifier_learns_size(architecture):
    images, labels = discs()
    torch.manual_seed(0)
    classifier = SexClassifier(architecture)
    for _ in fit_classifier(
        classifier, images, labels, ClassifierSettings(architecture, steps=50, batch_size=16)
    ):
        pass
    held_out = discs(seed=1)
    accuracy = class_accuracies(predict(classifier, held_out[0]), held_out[1])
    assert min(accuracy.values()) >= 0.8
    assert torch.allclose(
        predict(classifier, images, 7), predict(classifier, images, 60), atol=1e-4
    )


def test_augmentation_never_changes_size():
    images, _ = discs(8)
    changed = augment(images, generator_for(0))
    area = (nn.functional.avg_pool2d(changed, 5, stride=1) > -0.5).float().sum((1, 2, 3))
    before = (nn.functional.avg_pool2d(images, 5, stride=1) > -0.5).float().sum((1, 2, 3))
    assert torch.allclose(area, before, rtol=0.05)


def test_the_attack_stays_in_its_ball_and_raises_the_loss():
    images, labels = discs(8)
    torch.manual_seed(0)
    classifier = SexClassifier().eval()
    moved = attack(classifier, images, labels.float(), radius=2.0, steps=3)
    distance = (moved - images).flatten(1).norm(dim=1)
    assert (distance <= 2.0 + 1e-4).all() and (distance > 1.9).all()

    def loss(x):
        return nn.functional.binary_cross_entropy_with_logits(
            predict(classifier, x), labels.float()
        )

    assert loss(moved) > loss(images)


def test_calibration_finds_a_known_temperature():
    """Logits three times too large, and shifted, around a known truth."""
    rng = np.random.default_rng(0)
    true = torch.tensor(rng.normal(0, 1.5, 4000))
    labels = torch.tensor((rng.random(4000) < torch.sigmoid(true).numpy()).astype(np.int64))

    class Line(SexClassifier):
        def __init__(self):
            super().__init__()
            self.body = nn.Identity()

    line = Line()
    calibrate(line, (3 * true + 1).float()[:, None], labels)
    assert float(line.temperature) == pytest.approx(3, rel=0.12)
    assert float(line.offset) == pytest.approx(-1 / 3, abs=0.12)


def test_an_ensemble_is_the_mean_logit():
    torch.manual_seed(0)
    members, images = [SexClassifier().eval(), SexClassifier().eval()], discs(4)[0]
    mean = (members[0](images) + members[1](images)) / 2
    assert torch.allclose(Ensemble(members)(images), mean)


def test_one_sex_alone_is_refused():
    images, _ = discs(4)
    with pytest.raises(DataError, match="both sexes"):
        next(
            fit_classifier(
                SexClassifier(),
                images,
                torch.zeros(4, dtype=torch.long),
                ClassifierSettings(steps=1),
            )
        )


def test_a_saved_classifier_reads_the_same(tmp_path):
    torch.manual_seed(0)
    classifier, images = SexClassifier("residual").eval(), discs(3)[0]
    save_classifier(tmp_path, classifier, {"hold_out": {}})
    assert torch.equal(load_classifier(tmp_path)(images), classifier(images))
    with pytest.raises(WeightsError, match="no classifier here"):
        load_classifier(tmp_path / "nothing")
