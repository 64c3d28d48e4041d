"""Losses against closed forms and the torch functions they are not made of."""

import math

import pytest
import torch

from fairlib import losses


@pytest.fixture
def logits():
    return torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_denoising_is_the_mean_square(logits):
    assert losses.denoising(logits, torch.zeros(7)) == pytest.approx(float((logits**2).sum() / 7))


@pytest.mark.parametrize("gap,expected", [(0.0, 0.0), (0.5, 0.125), (3.0, 2.5), (-3.0, 2.5)])
def test_quantile_alignment_is_quadratic_then_linear(gap, expected):
    assert float(
        losses.quantile_alignment(torch.tensor([1.0 + gap]), torch.tensor([1.0]))
    ) == pytest.approx(expected)


def test_quantile_alignment_is_linear_beyond_beta():
    assert float(
        losses.quantile_alignment(torch.tensor([3.0]), torch.zeros(1), beta=2.0)
    ) == pytest.approx(3 - 1)


def test_class_alignment_leaves_out_the_unsure_but_divides_by_all(logits):
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 1])
    confidence = torch.tensor([0.9, 0.5, 0.8, 0.79, 1.0, 0.6, 0.95])
    each = [-math.log(torch.sigmoid(x if y else -x)) for x, y in zip(logits, labels, strict=True)]
    expected = (each[0] + each[2] + each[4] + each[6]) / 7
    assert float(losses.class_alignment(logits, labels, confidence, 0.8)) == pytest.approx(expected)


def test_two_classes_as_softmax_are_the_binary_loss(logits):
    pair = torch.stack([torch.zeros_like(logits), logits], dim=1)
    labels, sure = torch.tensor([1, 0, 1, 0, 1, 0, 1]), torch.tensor([1.0, 1, 0, 1, 1, 0.9, 1])
    expected = losses.class_alignment(logits, labels, sure)
    assert float(losses.multiclass_alignment(pair, labels, sure)) == pytest.approx(float(expected))


def test_no_confident_image_gives_zero_and_a_gradient(logits):
    leaf = logits.clone().requires_grad_()
    loss = losses.class_alignment(leaf, torch.ones(7), torch.zeros(7))
    loss.backward()
    assert loss.item() == 0 and not leaf.grad.any()


def test_mean_probability_kl_is_the_divergence_in_nats(logits):
    mean = float(torch.sigmoid(logits).mean())
    expected = 0.458 * math.log(0.458 / mean) + 0.542 * math.log(0.542 / (1 - mean))
    assert float(losses.mean_probability_kl(logits, 0.458)) == pytest.approx(expected)


def test_mean_probability_losses_of_k_classes_agree_with_the_binary_ones(logits):
    pair, shares = torch.stack([logits, torch.zeros_like(logits)], dim=1), torch.tensor([0.3, 0.7])
    for loss in (losses.mean_probability_kl, losses.mean_probability_l2):
        assert float(loss(pair, shares)) == pytest.approx(float(loss(logits, 0.3)))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_mean_probability_kl_takes_shares_of_nought_and_one(logits, share):
    mean = float(torch.sigmoid(logits).mean())
    assert float(losses.mean_probability_kl(logits, share)) == pytest.approx(
        -math.log(mean if share else 1 - mean)
    )


def test_mean_losses_are_blind_to_ambiguity():
    """Their degenerate optimum: every image at the share itself is as good as the right mixture of
    sure images.
    """
    ambiguous = torch.full((1000,), math.log(0.458 / 0.542), dtype=torch.float64)
    sure = torch.cat([torch.full((458,), 30.0), torch.full((542,), -30.0)]).double()
    for loss in (losses.mean_probability_kl, losses.mean_probability_l2):
        assert float(loss(ambiguous, 0.458)) == pytest.approx(0, abs=1e-9)
        assert float(loss(sure, 0.458)) == pytest.approx(0, abs=1e-9)


def test_mean_probability_l2_counts_both_classes(logits):
    mean = float(torch.sigmoid(logits).mean())
    assert float(losses.mean_probability_l2(logits, 0.2)) == pytest.approx(2 * (mean - 0.2) ** 2)


def test_consistency_is_weighted_one_minus_cosine():
    angles = torch.tensor([0.0, math.pi / 3, math.pi], dtype=torch.float64)
    embeds = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1]])
    reference = torch.tensor([[2.0, 0.0]] * 3, dtype=torch.float64)
    assert float(losses.consistency(embeds, reference)) == pytest.approx((0 + 0.5 + 2) / 3)
    weights = torch.tensor([1.0, 1.0, 0.2])
    assert float(losses.consistency(embeds, reference, weights)) == pytest.approx(
        (0 + 0.5 + 0.4) / 3
    )


def test_every_loss_passes_gradcheck(logits):
    leaf, other = logits.clone().requires_grad_(), torch.linspace(-2, 2, 7, dtype=torch.float64)
    sure = torch.ones(7)
    for loss in (
        lambda x: losses.quantile_alignment(x, other),
        lambda x: losses.class_alignment(x, (other > 0).double(), sure),
        lambda x: losses.mean_probability_kl(x, 0.3),
        lambda x: losses.mean_probability_l2(x, 0.3),
    ):
        assert torch.autograd.gradcheck(loss, (leaf,))
