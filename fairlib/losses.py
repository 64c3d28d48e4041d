"""Losses: pure functions on tensors. No models, no devices, no files.

Logits are `[N]`, positive = female; shares are female shares in [0, 1]; every loss is a scalar mean
over the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def denoising(prediction: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, both `[N, ...]` (Ho et al.

    2020, eq. 14; Han et al., stage 1).
    """
    return F.mse_loss(prediction, noise)


def quantile_alignment(logits: Tensor, targets: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth-L1 distance, in logits, of `logits` `[N]` to the quantiles `targets` `[N]` given to
    them.

    Quadratic below `beta`, linear above: one far image does not drive the step.
    """
    return F.smooth_l1_loss(logits, targets, beta=beta)


def class_alignment(
    logits: Tensor, labels: Tensor, confidence: Tensor, threshold: float = 0.8
) -> Tensor:
    """1/N sum_i 1[confidence_i >= threshold] * BCE(logits_i, labels_i), all `[N]` (Shen et al.

    2024, sec. 4.1).
    """
    each = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return (each * (confidence >= threshold)).mean()


def multiclass_alignment(
    logits: Tensor, labels: Tensor, confidence: Tensor, threshold: float = 0.8
) -> Tensor:
    """`class_alignment` for K classes: `logits` `[N, K]`, `labels` int64 `[N]` in 0..K-1,
    `confidence` `[N]`.
    """
    each = F.cross_entropy(logits, labels, reduction="none")
    return (each * (confidence >= threshold)).mean()


def mean_probability_kl(logits: Tensor, shares: Tensor | float) -> Tensor:
    """KL(shares || mean predicted probability), in nats; `logits` `[N]` with one share or `[N, K]`
    with `[K]`.

    Zero as soon as the *mean* is right, even when every image is ambiguous.
    """
    log_mean = _mean_probabilities(logits).clamp_min(torch.finfo(logits.dtype).tiny).log()
    wanted = _shares(logits, shares)
    return (torch.xlogy(wanted, wanted) - wanted * log_mean).sum()


def mean_probability_l2(logits: Tensor, shares: Tensor | float) -> Tensor:
    """Squared distance of the mean predicted probabilities to `shares`; shapes as in
    `mean_probability_kl`.
    """
    return (_mean_probabilities(logits) - _shares(logits, shares)).square().sum()


def consistency(embeds: Tensor, reference_embeds: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over images of weight_i * (1 - cos_i), `embeds` and `reference_embeds` `[N, D]`,
    `weights` `[N]` or None.

    Distillation of the frozen original: same prompt, same noise (Han et al., CLIP consistency; Shen
    et al. 4.3).
    """
    distance = 1 - F.cosine_similarity(embeds, reference_embeds, dim=-1)
    return distance.mean() if weights is None else (distance * weights).mean()


def _mean_probabilities(logits: Tensor) -> Tensor:
    if logits.ndim == 2:
        return logits.softmax(dim=1).mean(dim=0)
    return torch.stack([torch.sigmoid(logits).mean(), torch.sigmoid(-logits).mean()])


def _shares(logits: Tensor, shares: Tensor | float) -> Tensor:
    shares = torch.as_tensor(shares, dtype=logits.dtype, device=logits.device)
    return torch.stack([shares, 1 - shares]) if logits.ndim == 1 else shares
