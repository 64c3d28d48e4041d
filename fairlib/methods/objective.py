"""What one batch of images is asked for, and the loss that asks it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairlib import losses
from fairlib.methods.settings import AlignmentSettings
from fairlib.methods.targets import Target, binary_class_targets, quantile_targets


@dataclass(frozen=True)
class Batch:
    """One optimiser step's images: prompt and noise of each, and the frozen model's reading of the
    same pair.
    """

    prompts: tuple[int, ...]
    noises: tuple[int, ...]
    frozen_logits: Tensor
    frozen_embeds: Tensor


@dataclass(frozen=True)
class Assignment:
    """For each image `[N]`: its target (logit, label or share), confidence in it, and whether its
    class must change.
    """

    values: Tensor
    confidence: Tensor
    changes: Tensor


@dataclass(frozen=True)
class Objective:
    """The tuning loss of one family; `fixed` maps a prompt to its bank's target logits (family
    "monge" only).
    """

    settings: AlignmentSettings
    targets: tuple[Target, ...]
    fixed: dict[int, Tensor]

    def groups(self, batch: Batch) -> dict[str, Tensor]:
        """Rows of the batch that are ranked together, by the name of their group."""
        names = [self.targets[prompt].group for prompt in batch.prompts]
        device = batch.frozen_logits.device
        return {
            name: torch.tensor(
                [row for row, other in enumerate(names) if other == name], device=device
            )
            for name in dict.fromkeys(names)
        }

    def assign(self, logits: Tensor, batch: Batch, pools: dict[str, Tensor]) -> Assignment:
        """Targets for the detached `logits` `[N]`, given the pool of recent logits of each
        group.
        """
        values, confidence = torch.empty_like(logits), torch.ones_like(logits)
        for name, rows in self.groups(batch).items():
            values[rows], confidence[rows] = self._assign_group(
                name, rows, logits[rows], batch, pools.get(name)
            )
        return Assignment(
            values, confidence, self._changes(values, confidence, batch.frozen_logits)
        )

    def _assign_group(self, name, rows, logits, batch, pool):
        target = next(target for target in self.targets if target.group == name)
        family, sure = self.settings.family, torch.ones_like(logits)
        if family == "monge":
            picked = [self.fixed[batch.prompts[row]][batch.noises[row]] for row in rows.tolist()]
            return torch.stack(picked).to(logits), sure
        if family == "quantile":
            return quantile_targets(logits, target.distribution(), pool), sure
        if family == "class":
            return binary_class_targets(logits, target.female_share, pool)
        return torch.full_like(logits, target.female_share), sure

    def _changes(self, values: Tensor, confidence: Tensor, frozen_logits: Tensor) -> Tensor:
        """Where the target is not the frozen image's class, or (as in Shen et al.) there is no
        confident target.
        """
        if self.settings.family in ("quantile", "monge"):
            return (values > 0) != (frozen_logits > 0)
        if self.settings.family == "class":
            unsure = confidence < self.settings.confidence_threshold
            return unsure | ((values > 0.5) != (frozen_logits > 0))
        return torch.zeros_like(values, dtype=torch.bool)

    def alignment(self, logits: Tensor, batch: Batch, assignment: Assignment) -> Tensor:
        """The alignment loss of `logits` `[N]`, a mean over images."""
        family, values = self.settings.family, assignment.values
        if family in ("quantile", "monge"):
            return losses.quantile_alignment(logits, values, self.settings.smooth_l1_beta)
        if family == "class":
            return losses.class_alignment(
                logits, values, assignment.confidence, self.settings.confidence_threshold
            )
        mean_loss = (
            losses.mean_probability_kl if family == "mean_kl" else losses.mean_probability_l2
        )
        each = [
            len(rows) * mean_loss(logits[rows], values[rows[0]])
            for rows in self.groups(batch).values()
        ]
        return torch.stack(each).sum() / len(logits)

    def consistency(self, embeds: Tensor, batch: Batch, assignment: Assignment) -> Tensor:
        """The distance of `embeds` `[N, D]` to the frozen ones, with less weight where the class
        must change.
        """
        factor = self.settings.consistency_change_factor
        weights = torch.where(assignment.changes, factor, 1.0).to(embeds)
        return losses.consistency(embeds, batch.frozen_embeds, weights)
