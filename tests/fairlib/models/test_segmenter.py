"""The re-segmenter on rings with a side chamber, whose masks are known."""

import numpy as np
import pytest
import torch

from fairlib.errors import DataError, WeightsError
from fairlib.io import write_json, write_tensors
from fairlib.measures.dice import dice, mean_dice
from fairlib.models.segmenter import (
    Segmenter,
    SegmenterSettings,
    augment_frames,
    fit_segmenter,
    frames_of,
    load_segmenter,
    save_segmenter,
    segment,
    soft_dice,
)
from fairlib.models.training import FitSettings, Trainer
from fairlib.rng import torch_rng

SMALL = (8, 16)


def rings(n=16, size=32, seed=0):
    """Images [N, 3, size, size] and masks: bright cavity, dark ring, bright crescent on the left of
    it.
    """
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, 2, size, size), np.uint8)
    for row, frame in np.ndindex(n, 2):
        y, x = np.mgrid[:size, :size] - (size - 1) / 2 - rng.uniform(-2, 2, (2, 1, 1))
        inner = rng.uniform(4, 6) * (1 - 0.25 * frame)
        away = np.hypot(x, y)
        masks[row, frame][np.hypot(x + 7, y) < 7] = 3
        masks[row, frame][away < inner + 3] = 2
        masks[row, frame][away < inner] = 1
    frames = np.array([-0.9, 0.7, -0.2, 0.7])[masks] + rng.normal(0, 0.05, masks.shape)
    return torch.tensor(frames[:, [0, 1, 0]], dtype=torch.float32), torch.from_numpy(masks)


def fitted(steps=50, settings=None, widths=SMALL):
    torch.manual_seed(0)
    segmenter = Segmenter(widths)
    for _ in fit_segmenter(
        segmenter,
        *rings(),
        settings or SegmenterSettings(steps=steps, batch_size=8, learning_rate=1e-2),
    ):
        pass
    return segmenter


@pytest.fixture(scope="module")
def segmenter():
    return fitted()


def test_it_finds_the_structures_of_unseen_images(segmenter):
    images, masks = rings(16, seed=1)
    scores = dice(masks, segment(segmenter, images))
    assert mean_dice(scores) > 0.9
    torch.manual_seed(0)
    assert mean_dice(dice(masks, segment(Segmenter(SMALL), images))) < 0.5


def test_frames_come_from_the_right_channels(segmenter):
    images, masks = rings(6, seed=2)
    found = segment(segmenter, images)
    assert found.dtype == torch.uint8 and found.shape == (6, 2, 32, 32)
    assert torch.equal(found, segment(segmenter, images, batch_size=5))
    swapped = images[:, [1, 0, 1]]
    assert torch.equal(segment(segmenter, swapped), found[:, [1, 0]])
    frames = frames_of(torch.stack([torch.full((1, 8, 8), v) for v in (0.2, -0.5, 0.4)], 1))
    assert frames[0, :, 0, 0].tolist() == pytest.approx([0.3, -0.5])
    assert segment(segmenter, images[:0]).shape == (0, 2, 32, 32)


def test_size_of_the_default_network():
    segmenter = Segmenter()
    assert 300_000 <= sum(p.numel() for p in segmenter.parameters()) <= 600_000
    assert segmenter(torch.zeros(2, 1, 64, 64)).shape == (2, 4, 64, 64)


def test_soft_dice_of_certain_answers():
    """One-hot certainty: 1 - mean over structures of the (add-one) Dice of the batch; perfect
    answers cost nothing.
    """
    labels = rings(4)[1][:, 0].long()
    guess = labels.roll(2, dims=-1)
    logits = 50.0 * torch.nn.functional.one_hot(guess, 4).movedim(-1, 1)
    by_hand = [
        (2 * ((guess == k) & (labels == k)).sum() + 1)
        / ((guess == k).sum() + (labels == k).sum() + 1)
        for k in (1, 2, 3)
    ]
    assert float(soft_dice(logits, labels)) == pytest.approx(1 - float(sum(by_hand)) / 3, abs=1e-5)
    assert float(soft_dice(logits, guess)) == pytest.approx(0, abs=1e-5)


def test_augmentation_moves_image_and_mask_together():
    """A frame that is its own label: after the move the bright pixels still are the labelled ones,
    and areas are kept to 50 %.
    """
    labels = rings(16, 64)[1][:, 0].long()
    frames = labels[:, None].float() / 3 * 2 - 1
    moved, truth = augment_frames(frames, labels, torch_rng(0, 1))
    middle = torch.stack(
        [frame[mask == 2].median() for frame, mask in zip(moved[:, 0], truth, strict=True)]
    )
    inside = torch.stack(
        [frame[mask == 3].median() for frame, mask in zip(moved[:, 0], truth, strict=True)]
    )
    outside = torch.stack(
        [frame[mask == 0].median() for frame, mask in zip(moved[:, 0], truth, strict=True)]
    )
    assert (inside > middle + 0.1).all() and (middle > outside + 0.5).all()
    ratio = (truth > 0).sum((1, 2)) / (labels > 0).sum((1, 2))
    assert ratio.min() > 0.6 and ratio.max() < 1.6 and ratio.std() > 0.1
    # the chamber stays on the left of the cavity
    across = torch.arange(64.0)

    def place(label):
        return ((truth == label) * across).sum((1, 2)) / (truth == label).sum((1, 2))

    assert (place(3) < place(1) - 4).all()
    again = augment_frames(frames, labels, torch_rng(0, 1))
    assert torch.equal(moved, again[0]) and torch.equal(truth, again[1])


def test_an_interrupted_fit_ends_with_the_same_bits():
    settings = SegmenterSettings(steps=6, batch_size=4)
    whole = fitted(settings=settings, widths=(8, 8))
    fit = FitSettings(
        6, 4, settings.learning_rate, weight_decay=settings.weight_decay, ema_decay=0.99
    )
    torch.manual_seed(0)
    first = Segmenter((8, 8))
    trainer = Trainer(first, fit)
    for step in fit_segmenter(first, *rings(), settings, trainer):
        if step.step == 3:
            break
    second = Segmenter((8, 8))
    taken_up = Trainer(second, fit)
    taken_up.from_tensors(trainer.to_tensors())
    for _ in fit_segmenter(second, *rings(), settings, taken_up):
        pass
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_saved_segmenter_reads_the_same(tmp_path, segmenter):
    save_segmenter(tmp_path, segmenter, {"dice": 0.9})
    again = load_segmenter(tmp_path)
    images, _ = rings(3)
    assert torch.equal(segment(again, images), segment(segmenter, images))
    assert not any(p.requires_grad for p in again.parameters())


def test_bad_weights_are_refused(tmp_path, segmenter):
    with pytest.raises(WeightsError, match="no segmenter here"):
        load_segmenter(tmp_path / "nothing")
    save_segmenter(tmp_path, segmenter, {})
    write_json(tmp_path / "segmenter.json", {"widths": [8, 24]})
    with pytest.raises(WeightsError, match="do not fit"):
        load_segmenter(tmp_path)
    write_json(tmp_path / "segmenter.json", {"widths": list(SMALL)})
    state = segmenter.state_dict() | {"head.bias": torch.full((4,), torch.nan)}
    write_tensors(tmp_path / "segmenter.safetensors", state)
    with pytest.raises(WeightsError, match="head.bias"):
        load_segmenter(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda i, m: (i[:, :2], m), r"give \[N, 3, H, W\] \(ED, ES, ED\)"),
        (lambda i, m: (i * torch.nan, m), "NaN"),
        (lambda i, m: (i, m[..., :16]), "one grid"),
        (lambda i, m: (i, m[:3]), "one grid"),
        (lambda i, m: (i, m + 2), "only the integers 0 to 3"),
        (lambda i, m: (i, m.float()), "only the integers 0 to 3"),
    ],
)
def test_bad_input_is_refused(change, words):
    with pytest.raises(DataError, match=words):
        next(fit_segmenter(Segmenter(SMALL), *change(*rings(4)), SegmenterSettings(steps=1)))
