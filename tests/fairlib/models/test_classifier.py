"""One classifier of any heads: it learns, reads, and says what is wrong with what it is given."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.nn import functional as F

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_json, read_tensors, write_json, write_tensors
from fairlib.models.classifier import (
    CARDIAC,
    CARDIAC_SMALL,
    RESIDUAL,
    SLIM,
    SMALL,
    WIDE_MAX,
    Architecture,
    ClassifierSettings,
    attack,
    augment,
    build_classifier,
    calibrate,
    choose_threshold,
    fit_classifier,
    load_classifier,
    predict,
    save_classifier,
    set_threshold,
    truth_of,
)
from fairlib.models.training import Trainer, rows_of_step
from fairlib.rng import torch_rng

SEX = {"female": "binary"}
CLASSES = {"side": ("left", "right"), "level": ("dark", "grey", "bright")}
NUMBERS = {"female": "binary", "age": "number", "bmi": "number"}
QUICK = ClassifierSettings(
    steps=30, batch_size=16, learning_rate=4e-3, warmup=7, ema_decay=0.98, augmentation="shift"
)


def discs(n=60, seed=0):
    """Bright discs of two sizes: label 1 (female) is the smaller."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(n) % 2
    y, x = np.mgrid[:128, :128] - 63.5
    radius = np.where(labels.numpy() == 1, 38, 46) + rng.normal(0, 1.5, n)
    images = np.where(np.hypot(x, y)[None] < radius[:, None, None], 0.4, -1.0)
    return torch.tensor(images, dtype=torch.float32)[:, None], labels


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


def shaded(count=96):
    """Side is which half is brighter, level how bright the image is."""
    rng = torch.Generator().manual_seed(0)
    side, level = (torch.randint(0, high, (count,), generator=rng) for high in (2, 3))
    images = ((level - 1) * 0.5).view(-1, 1, 1, 1) + (side * 2 - 1).view(
        -1, 1, 1, 1
    ) * 0.3 * torch.linspace(-1, 1, 64).sign()
    images = images.expand(count, 1, 64, 64)
    return ((images + 1) * 127.5).to(torch.uint8), {"side": side, "level": level}


def subjects(count=96):
    """Sex is which half is bright, age how bright ED is, body-mass index how bright ES is."""
    rng = torch.Generator().manual_seed(0)
    female = torch.randint(0, 2, (count,), generator=rng)
    level = torch.rand(2, count, generator=rng)
    images = torch.zeros(count, 3, 64, 64)
    images[:, [0, 2]] += (level[0] - 0.5).view(-1, 1, 1, 1)
    images[:, 1] += (level[1] - 0.5).view(-1, 1, 1)
    images += (female * 2 - 1).view(-1, 1, 1, 1) * torch.linspace(-1, 1, 64).sign() * 0.5
    truth = {"female": female, "age": 30 + 50 * level[0], "bmi": 18 + 20 * level[1]}
    return images.clamp(-1, 1), truth


def fitted(images, truth, settings=QUICK, heads=SEX, architecture=CARDIAC_SMALL, seed=0, **keys):
    classifier = build_classifier(heads, architecture, seed)
    for _ in fit_classifier(classifier, images, truth, settings, **keys):
        pass
    return classifier


@pytest.fixture(scope="module")
def reads_classes():
    settings = replace(QUICK, steps=50, batch_size=24, warmup=5, augmentation="light")
    return fitted(*shaded(), settings, CLASSES, SLIM, seed=1)


@pytest.fixture(scope="module")
def reads_numbers():
    settings = replace(QUICK, steps=60, batch_size=32, learning_rate=3e-3, ema_decay=0.8)
    return fitted(*subjects(), settings, NUMBERS, CARDIAC)


# what it learns


@pytest.mark.parametrize("architecture", [SMALL, RESIDUAL], ids=["small", "residual"])
def test_a_classifier_learns_size(architecture):
    settings = ClassifierSettings(steps=50, batch_size=16, balance=True)
    classifier = fitted(*discs(), settings, architecture=architecture)
    images, labels = discs(seed=1)
    read = predict(classifier, images)
    for label in (0, 1):
        assert ((read.logit > 0) == (labels == 1))[labels == label].float().mean() >= 0.8
    assert torch.allclose(predict(classifier, images, 7).logit, read.logit, atol=1e-4)


def test_it_learns_contraction():
    classifier, (images, labels) = fitted(*rings()), rings(seed=1)
    set_threshold(classifier, *rings(seed=2))
    read = predict(classifier, images)
    assert (read.positive().long() == labels).float().mean() >= 0.9
    assert torch.equal(read.positive(), read.logit > classifier.threshold[0])


def test_it_reads_classes(reads_classes):
    images, truth = shaded()
    read = predict(reads_classes, images, batch_size=40)
    for name, values in CLASSES.items():
        right = read.classes(name) == np.array(values)[truth[name]]
        assert right.mean() > 0.95
        assert read.probabilities(name).sum(1) == pytest.approx(1)
    assert read.features.shape == (96, 64)


def test_it_reads_numbers_in_their_own_units(reads_numbers):
    images, truth = subjects()
    read = predict(reads_numbers, images)
    assert ((read.logits["female"] > 0) == truth["female"].bool()).float().mean() > 0.9
    assert read.probabilities("female") == pytest.approx(
        read.logits["female"].double().sigmoid().numpy()
    )
    for name in ("age", "bmi"):
        assert torch.corrcoef(torch.stack([read.logits[name], truth[name]]))[0, 1] > 0.6
        assert float(read.logits[name].mean()) == pytest.approx(float(truth[name].mean()), abs=5)


def test_ambiguous_targets_do_not_count():
    """Where a target is -1 or NaN, its head is not trained by that image; the other heads are."""
    images, truth = shaded(40)
    settings, hidden = replace(QUICK, steps=3), torch.arange(40) % 2 == 0
    masked = truth | {"side": truth["side"].masked_fill(hidden, -1)}
    one = fitted(images, masked, settings, CLASSES, SLIM).state_dict()
    spoilt = images.clone()
    spoilt[hidden] = 255 - spoilt[hidden]
    only_side = {"side": CLASSES["side"]}
    hide = {"side": masked["side"]}
    a, b = (
        fitted(i, hide, replace(settings, augmentation="none"), only_side, SLIM).state_dict()
        for i in (images, spoilt)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    full = fitted(images, truth, settings, CLASSES, SLIM).state_dict()
    assert not torch.equal(one["class_heads.side.weight"], full["class_heads.side.weight"])
    assert not torch.equal(
        one["class_heads.level.weight"],
        build_classifier(CLASSES, SLIM).state_dict()["class_heads.level.weight"],
    )
    images, truth = subjects(40)
    masked = truth | {"age": truth["age"].masked_fill(hidden, float("nan"))}
    found = fitted(images, masked, settings, NUMBERS, CARDIAC)
    known = truth["age"][~hidden]
    assert float(found.intercept[1]) == pytest.approx(float(known.mean()))
    assert all(bool(value.isfinite().all()) for value in found.state_dict().values())


@pytest.mark.parametrize("size", [64, 128, 256, 512])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_one_or_three_channels(size, channels):
    images = torch.rand(2, channels, size, size) * 2 - 1
    for architecture in (SMALL, RESIDUAL, SLIM, WIDE_MAX):
        classifier = build_classifier(CLASSES, replace(architecture, channels=channels)).eval()
        assert predict(classifier, images).logits["level"].shape == (2, 3)
    with pytest.raises(DataError, match=r"give \[N, 1, H, W\]"):
        build_classifier(SEX)(torch.zeros(1, 2, size, size))


# training


def test_it_is_small_and_starts_as_a_function_of_the_seed():
    state = torch.get_rng_state()
    first, again, other = (build_classifier(SEX, CARDIAC_SMALL, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert 5e4 < sum(p.numel() for p in first.parameters()) < 3e5
    assert torch.equal(first.body[0].weight, again.body[0].weight)
    assert not torch.equal(first.body[0].weight, other.body[0].weight)


def test_the_difference_of_the_two_ed_channels_is_not_seen(reads_numbers):
    """It would tell generated images from real ones."""
    images = rings(4)[0]
    noise = 0.3 * torch.randn(4, 64, 64)
    moved = torch.stack([images[:, 0] + noise, images[:, 1], images[:, 2] - noise], dim=1)
    one, other = predict(reads_numbers, images), predict(reads_numbers, moved)
    for name in NUMBERS:
        torch.testing.assert_close(one.logits[name], other.logits[name], rtol=1e-4, atol=1e-3)


def test_the_loss_is_the_weighted_two_class_cross_entropy_of_logits():
    """First loss of an untouched network against torch's two-class form, which takes one softmax
    and not two.
    """
    images, labels = rings(12)
    weights = torch.linspace(0.2, 1.8, 12)
    classifier = build_classifier(SEX, CARDIAC_SMALL)
    logits = classifier(images).detach()
    settings = replace(QUICK, steps=1, batch_size=12, augmentation="none")
    [step] = list(fit_classifier(classifier, images, labels, settings, weights=weights))
    each = F.cross_entropy(torch.stack([torch.zeros(12), logits], dim=1), labels, reduction="none")
    assert step.loss == pytest.approx(float((weights * each).mean()), rel=1e-4)
    assert step.loss != pytest.approx(float(each.mean()), rel=1e-3)


def test_balance_gives_every_class_equal_weight():
    images, _ = rings(12)
    labels = (torch.arange(12) < 3).long()
    losses = []
    for heads, truth in ((SEX, labels), ({"sex": ("M", "F")}, labels)):
        classifier = build_classifier(heads, CARDIAC_SMALL)
        logits = classifier(images).detach()
        settings = replace(QUICK, steps=1, batch_size=12, augmentation="none", balance=True)
        [step] = list(fit_classifier(classifier, images, truth, settings))
        two = logits if logits.ndim == 2 else torch.stack([torch.zeros(12), logits], dim=1)
        each = F.cross_entropy(two, labels, reduction="none")
        losses.append((step.loss, float((each[labels == 1].mean() + each[labels == 0].mean()) / 2)))
    for found, expected in losses:
        assert found == pytest.approx(expected, rel=1e-4)


def test_an_image_without_weight_or_probability_does_not_count():
    """Half of the labels are wrong; weight zero and probability zero each take them out exactly."""
    images, labels = rings(40)
    good = torch.arange(40) < 20
    spoilt = torch.where(good, labels, 1 - labels)
    settings = replace(QUICK, steps=3, batch_size=8)
    for name in ("weights", "probabilities"):
        fits = [
            fitted(images, given, settings, **{name: good.float()}) for given in (labels, spoilt)
        ]
        assert torch.equal(*(fit.body[0].weight for fit in fits))
    one, other = (fitted(images, given, settings) for given in (labels, spoilt))
    assert not torch.equal(one.body[0].weight, other.body[0].weight)


def test_images_are_drawn_as_often_as_their_probability_says():
    settings = replace(QUICK, steps=40, batch_size=64)
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    drawn = [rows_of_step(settings, step, 4, probabilities) for step in range(40)]
    shares = torch.bincount(torch.cat(drawn), minlength=4) / (40 * 64)
    assert torch.allclose(shares, probabilities, atol=4 * (0.25 / 2560) ** 0.5)


def test_a_resumed_fit_ends_with_the_same_bits(tmp_path):
    images, labels = rings(20)
    settings = replace(QUICK, steps=6, batch_size=8, warmup=1)
    whole = fitted(images, labels, settings)
    started = build_classifier(SEX, CARDIAC_SMALL)
    trainer = Trainer(started, settings)
    for state in fit_classifier(started, images, labels, settings, trainer=trainer):
        if state.step == 3:
            break
    write_tensors(tmp_path / "state.safetensors", trainer.to_tensors())
    resumed = build_classifier(SEX, CARDIAC_SMALL, 9)
    again = Trainer(resumed, settings)
    again.from_tensors(read_tensors(tmp_path / "state.safetensors"))
    list(fit_classifier(resumed, images, labels, settings, trainer=again))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_pretrained_start_is_kept():
    images, labels = rings(40)
    classifier = fitted(images, labels)
    before = predict(classifier, images).logit
    settings = replace(QUICK, steps=1, batch_size=8, learning_rate=1e-6)
    list(fit_classifier(classifier, images, labels, settings))
    assert torch.allclose(predict(classifier, images).logit, before, atol=1e-2)


# augmentation and adversary


def test_augmentation_never_changes_size():
    images, _ = discs(8)
    changed = augment(images, torch_rng(0, 0))
    area = (nn.functional.avg_pool2d(changed, 5, stride=1) > -0.5).float().sum((1, 2, 3))
    before = (nn.functional.avg_pool2d(images, 5, stride=1) > -0.5).float().sum((1, 2, 3))
    assert torch.allclose(area, before, rtol=0.05)
    assert augment(images, torch_rng(0, 0), "none") is images


def test_light_moves_and_lights_an_image_but_turns_nothing_round():
    ramp = torch.linspace(-1, 1, 64).expand(20, 1, 64, 64)
    found = augment(ramp, torch_rng(0, 1), "light")
    assert (found[..., 40:].mean((1, 2, 3)) > found[..., :24].mean((1, 2, 3))).all(), "no mirror"
    assert (found - ramp).abs().mean() < 0.15 and not torch.equal(found[0], found[1])


def test_the_attack_stays_in_its_ball_and_raises_the_loss():
    images, labels = discs(8)
    classifier = build_classifier(SEX).eval()

    def loss(x):
        return F.binary_cross_entropy_with_logits(classifier(x), labels.float(), reduction="sum")

    moved = attack(loss, images, radius=2.0, steps=3)
    distance = (moved - images).flatten(1).norm(dim=1)
    assert (distance <= 2.0 + 1e-4).all() and (distance > 1.9).all()
    assert loss(moved) > loss(images)


@pytest.mark.parametrize("heads", [SEX, CLASSES | {"age": "number"}], ids=["one", "several"])
def test_an_adversary_changes_the_fit(heads):
    images, labels = discs(24)
    truth = dict.fromkeys(heads, labels)
    settings = replace(QUICK, steps=2, batch_size=8, augmentation="none")
    plain, robust = (
        fitted(images, truth, replace(settings, radius=radius), heads, SMALL)
        for radius in (0.0, 2.0)
    )
    assert robust.training is False
    assert not torch.equal(plain.body[1].weight, robust.body[1].weight)


# calibration and threshold


def line(heads=SEX):
    """A classifier whose logit is the image itself, of one pixel."""
    classifier = build_classifier(heads)
    classifier.body, classifier.scalar_head = nn.Flatten(), nn.Identity()
    return classifier


def test_calibration_finds_a_known_temperature():
    """Logits three times too large, and shifted, around a known truth."""
    rng = np.random.default_rng(0)
    true = torch.tensor(rng.normal(0, 1.5, 4000))
    labels = torch.tensor((rng.random(4000) < torch.sigmoid(true).numpy()).astype(np.int64))
    classifier = line()
    calibrate(classifier, (3 * true + 1).float().view(-1, 1, 1, 1), labels)
    assert 1 / float(classifier.slope[0]) == pytest.approx(3, rel=0.12)
    assert float(classifier.intercept[0]) == pytest.approx(-1 / 3, abs=0.12)


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


# reading in and out


def test_bytes_and_floats_are_one_image(reads_classes):
    images, _ = shaded(8)
    both = [predict(reads_classes, given).logits["level"] for given in (images, images / 127.5 - 1)]
    assert torch.equal(*both)


@pytest.mark.parametrize(
    ("heads", "architecture"), [(SEX, RESIDUAL), (CLASSES, SLIM), (NUMBERS, CARDIAC)]
)
def test_a_saved_classifier_reads_the_same(heads, architecture, tmp_path):
    classifier = build_classifier(heads, architecture, 3).eval()
    classifier.threshold.fill_(0.7)
    classifier.slope.fill_(2.0)
    images = torch.rand(3, architecture.channels, 64, 64) * 2 - 1
    save_classifier(tmp_path, classifier, {"validation": 0.9})
    loaded = load_classifier(tmp_path)
    assert list(loaded.heads.items()) == list(heads.items())
    one, other = predict(loaded, images), predict(classifier, images)
    assert all(torch.equal(one.logits[name], other.logits[name]) for name in heads)
    assert torch.equal(loaded.threshold, classifier.threshold)
    assert not any(p.requires_grad for p in loaded.parameters())
    about = read_json(tmp_path / "classifier.json")
    assert about["validation"] == 0.9
    assert about["calibration"]["slope"] == [2.0] * len(about["calibration"]["heads"])
    with pytest.raises(WeightsError, match="no classifier here"):
        load_classifier(tmp_path / "nothing")
    about["architecture"]["layers"] = [[8, 3, 2]]
    write_json(tmp_path / "classifier.json", about)
    with pytest.raises(WeightsError, match="fit it again"):
        load_classifier(tmp_path)


def test_targets_come_from_a_table():
    table = pd.DataFrame(
        {"side": ["right", "left"], "level": ["grey", "dark"], "female": [1, 0], "age": [50, 60.5]}
    )
    found = truth_of(table, CLASSES | {"female": "binary", "age": "number"})
    assert {name: value.tolist() for name, value in found.items()} == {
        "side": [1, 0],
        "level": [1, 0],
        "female": [1, 0],
        "age": [50, 60.5],
    }
    with pytest.raises(DataError, match="side is 'top' in 1 of 2 rows"):
        truth_of(table.assign(side=["left", "top"]), CLASSES)
    with pytest.raises(DataError, match="age is 'nan' in 1 of 2 rows"):
        truth_of(table.assign(age=[50, None]), {"age": "number"})
    with pytest.raises(DataError, match="no column 'side'; its columns: sides"):
        truth_of(table.rename(columns={"side": "sides"}), CLASSES)


def test_mistakes_are_named():
    images, labels = rings(6)
    classifier = build_classifier(SEX, CARDIAC_SMALL)
    for words, given, keys in (
        ("female has the values", (images, torch.zeros(6, dtype=torch.long)), {}),
        ("female has the values", (images, labels * 2), {}),
        ("of 0 to 1", (images, labels * 0.5), {}),
        (r"give \[N, 3", (images[:, :1], labels), {}),
        ("one target an image", (images, labels[:5]), {}),
        ("one target an image", (images, {"sex": labels}), {}),
        ("weights", (images, labels), {"weights": torch.ones(5)}),
        ("probabilities", (images, labels), {"probabilities": torch.zeros(6)}),
    ):
        with pytest.raises(DataError, match=words):
            next(fit_classifier(classifier, *given, QUICK, **keys))
    with pytest.raises(DataError, match="age has the values"):
        age = torch.full((6,), torch.nan)
        next(fit_classifier(build_classifier({"age": "number"}, CARDIAC), images, age, QUICK))
    with pytest.raises(DataError, match="both classes"):
        choose_threshold([0.1, 0.2], [1, 1])
    with pytest.raises(SettingsError, match="steps"):
        ClassifierSettings(steps=0)
    with pytest.raises(DataError, match="NaN"):
        predict(classifier, images * torch.nan)


def test_an_architecture_is_data():
    one = Architecture(((8, 3, 2), (16, 3, 2)), features=0, grid=2)
    assert build_classifier(SEX, one).scalar_head.in_features == 64
