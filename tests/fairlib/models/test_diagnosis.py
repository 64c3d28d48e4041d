"""The heart-failure classifier: it learns, weights and probabilities do what they say, its
threshold is the best one.
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch.nn import functional as F

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.models import diagnosis
from fairlib.models.classifier import predict
from fairlib.models.diagnosis import (
    DiagnosisSettings,
    build_classifier,
    choose_threshold,
    diagnose,
    fit_diagnosis,
    load_diagnosis,
    save_diagnosis,
    set_threshold,
)
from fairlib.models.training import FitSettings, Trainer

QUICK = DiagnosisSettings(steps=30, batch_size=16, learning_rate=4e-3)


def rings(n=80, seed=0):
    """Bright discs; the ill (label 1) hardly contract from ED to ES."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(n) % 2
    y, x = np.mgrid[:64, :64] - 31.5
    ed = rng.normal(15, 1.0, n)
    radii = np.stack([ed, ed * np.where(labels.numpy() == 1, 0.9, 0.65)], axis=1)
    pair = np.where(np.hypot(x, y) < radii[:, :, None, None], 0.5, -0.6) + 0.1 * rng.normal(
        size=(n, 2, 64, 64)
    )
    return torch.tensor(pair[:, [0, 1, 0]], dtype=torch.float32).clamp(-1, 1), labels


def fitted(images, labels, settings=QUICK, seed=0, **keys):
    classifier = build_classifier(seed)
    for _ in fit_diagnosis(classifier, images, labels, settings, **keys):
        pass
    return classifier


def test_it_learns_contraction():
    classifier, held_out = fitted(*rings()), rings(seed=1)
    set_threshold(classifier, *rings(seed=2))
    logits, ill = diagnose(classifier, held_out[0])
    assert (ill.long() == held_out[1]).float().mean() >= 0.9
    assert torch.equal(ill, logits > classifier.threshold)
    assert torch.allclose(predict(classifier, held_out[0], 7), logits, atol=1e-4)


def test_the_difference_of_the_two_ed_channels_is_not_seen():
    """It would tell generated images from real ones."""
    classifier, images = build_classifier(0).eval(), rings(4)[0]
    noise = 0.3 * torch.randn(4, 64, 64)
    moved = torch.stack([images[:, 0] + noise, images[:, 1], images[:, 2] - noise], dim=1)
    assert torch.allclose(classifier(images), classifier(moved), atol=1e-4)


def test_it_is_small_and_starts_as_a_function_of_the_seed():
    state = torch.get_rng_state()
    first, again, other = build_classifier(1), build_classifier(1), build_classifier(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert 5e4 < sum(p.numel() for p in first.parameters()) < 3e5
    assert torch.equal(first.body[0].weight, again.body[0].weight)
    assert not torch.equal(first.body[0].weight, other.body[0].weight)


def test_the_loss_is_the_weighted_two_class_cross_entropy_of_logits():
    """First loss of an untouched network against torch's two-class form, which takes one softmax
    and not two.
    """
    images, labels = rings(12)
    weights = torch.linspace(0.2, 1.8, 12)
    classifier = build_classifier(0)
    logits = classifier(images).detach()
    settings = DiagnosisSettings(steps=1, batch_size=12, augment=False)
    [step] = list(fit_diagnosis(classifier, images, labels, settings, weights=weights))
    each = F.cross_entropy(torch.stack([torch.zeros(12), logits], dim=1), labels, reduction="none")
    assert step.loss == pytest.approx(float((weights * each).mean()), rel=1e-4)
    assert step.loss != pytest.approx(float(each.mean()), rel=1e-3)


def test_an_image_without_weight_or_chance_does_not_count():
    """Half of the labels are wrong; weight zero and probability zero each take them out exactly."""
    images, labels = rings(40)
    good = torch.arange(40) < 20
    spoilt = torch.where(good, labels, 1 - labels)
    for name in ("weights", "probabilities"):
        fits = [
            fitted(
                images,
                torch.where(good, labels, given),
                DiagnosisSettings(steps=3, batch_size=8),
                **{name: good.float()},
            )
            for given in (labels, spoilt)
        ]
        assert torch.equal(*(fit.body[0].weight for fit in fits))
    assert not torch.equal(
        fitted(images, labels, DiagnosisSettings(steps=3, batch_size=8)).body[0].weight,
        fitted(images, spoilt, DiagnosisSettings(steps=3, batch_size=8)).body[0].weight,
    )


def test_images_are_drawn_as_often_as_their_probability_says(monkeypatch):
    """The rows of every step are taken from the fit itself; the network is replaced by a single
    number.
    """
    drawn, original = [], diagnosis._rows
    monkeypatch.setattr(
        diagnosis, "_rows", lambda *given: drawn.append(original(*given)) or drawn[-1]
    )

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return self.value.expand(len(images))

    chances = torch.tensor([0.1, 0.2, 0.3, 0.4])
    settings = DiagnosisSettings(steps=40, batch_size=64, augment=False)
    list(fit_diagnosis(Constant(), *rings(4), settings, probabilities=chances))
    shares = torch.bincount(torch.cat(drawn), minlength=4) / (40 * 64)
    assert torch.allclose(shares, chances, atol=4 * (0.25 / 2560) ** 0.5)


def test_a_resumed_fit_ends_with_the_same_bits(tmp_path):
    images, labels = rings(20)
    settings = DiagnosisSettings(steps=6, batch_size=8)
    fit = FitSettings(
        6, 8, settings.learning_rate, warmup=1, weight_decay=settings.weight_decay, ema_decay=0.98
    )
    whole = fitted(images, labels, settings)
    started = build_classifier(0)
    trainer = Trainer(started, fit)
    for state in fit_diagnosis(started, images, labels, settings, trainer=trainer):
        if state.step == 3:
            break
    write_tensors(tmp_path / "state.safetensors", trainer.to_tensors())
    resumed = build_classifier(9)
    again = Trainer(resumed, fit)
    again.from_tensors(read_tensors(tmp_path / "state.safetensors"))
    list(fit_diagnosis(resumed, images, labels, settings, trainer=again))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


def test_a_pretrained_start_is_kept():
    images, labels = rings(40)
    classifier = fitted(images, labels)
    before = predict(classifier, images)
    list(
        fit_diagnosis(
            classifier, images, labels, DiagnosisSettings(steps=1, batch_size=8, learning_rate=1e-6)
        )
    )
    assert torch.allclose(predict(classifier, images), before, atol=1e-2)


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(5):
        labels = (rng.random(60) < 0.3).astype(int)
        labels[:2] = 0, 1
        scores = np.round(rng.normal(labels * 1.2, 1), 1)  # rounded, so that some are equal
        chosen = balanced_accuracy_score(labels, scores > choose_threshold(scores, labels))
        tried = [balanced_accuracy_score(labels, scores > cut) for cut in [-9, *np.unique(scores)]]
        assert chosen == pytest.approx(max(tried))


def test_the_threshold_does_not_depend_on_the_prevalence():
    rng = np.random.default_rng(1)
    labels = np.arange(50) % 2
    scores = rng.normal(labels, 1)
    rare = np.r_[np.flatnonzero(labels == 1), np.repeat(np.flatnonzero(labels == 0), 9)]
    assert choose_threshold(scores, labels) == choose_threshold(scores[rare], labels[rare])
    assert choose_threshold([3.0, 3.0], [0, 1]) == 3.0


def test_bad_input_is_refused():
    images, labels = rings(6)
    classifier = build_classifier(0)
    for bad, words in (
        ((images, torch.zeros(6, dtype=torch.long)), "needs healthy"),
        ((images[:, :1], labels), "expected"),
        ((images, labels[:5]), "expected"),
        ((images, labels, QUICK, torch.ones(5)), "weights"),
        ((images, labels, QUICK, None, torch.zeros(6)), "probabilities"),
    ):
        with pytest.raises(DataError, match=words):
            next(fit_diagnosis(classifier, *bad[:2], *(bad[2:] or (QUICK,))))
    with pytest.raises(DataError, match="both classes"):
        choose_threshold([0.1, 0.2], [1, 1])
    with pytest.raises(SettingsError, match="steps"):
        DiagnosisSettings(steps=0)


def test_a_saved_classifier_reads_the_same(tmp_path):
    classifier, images = build_classifier(3).eval(), rings(3)[0]
    classifier.threshold.fill_(0.7)
    save_diagnosis(tmp_path, classifier, {"validation": 0.9})
    loaded = load_diagnosis(tmp_path)
    assert torch.equal(loaded(images), classifier(images)) and float(
        loaded.threshold
    ) == pytest.approx(0.7)
    assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(WeightsError, match="no heart-failure classifier here"):
        load_diagnosis(tmp_path / "nothing")
    (tmp_path / "diagnosis.json").write_text('{"layers": [[1, 1, 1, 1]]}')
    with pytest.raises(WeightsError, match="fit it again"):
        load_diagnosis(tmp_path)
