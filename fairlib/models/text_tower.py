"""A small text tower that keeps every attribute of a prompt apart.

Contrast with images alone teaches words only as far as a small image tower sees them: others
collapse, and a denoiser that reads the hidden states then ignores them. So each attribute must also
be told from the mean hidden state. A prompt here is a list of attributes between commas: "Female,
age in 60s, overweight BMI, heart failure".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import DataError
from fairlib.models.clip import Clip, contrastive_loss
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
    generator_for,
)

# of the reading of attributes: directions of unit length, so that only hidden states can move
SHARPNESS = 10.0


def attributes_of(prompt: str) -> tuple[str, ...]:
    """The attributes of a prompt, in order."""
    return tuple(part.strip() for part in prompt.split(","))


class TextTower(nn.Module):
    """A `Clip` with one reading head an attribute.

    `prompts` are all that it must keep apart, those that no image has included; `values` lists what
    each attribute can be; `split` gives the attributes of a prompt (by default what stands between
    commas), always as many and in one order.
    """

    def __init__(
        self,
        clip: Clip,
        prompts: Sequence[str],
        split: Callable[[str], tuple[str, ...]] = attributes_of,
    ):
        super().__init__()
        self.split = split
        rows = sorted({split(prompt) for prompt in prompts})
        if len({len(row) for row in rows}) != 1:
            raise DataError(
                "prompts name different numbers of attributes; write each as 'sex, age, BMI, "
                "diagnosis'"
            )
        self.clip, self.prompts = clip, list(prompts)
        self.values = [sorted(set(column)) for column in zip(*rows, strict=True)]
        width = clip.model.ln_final.weight.shape[0]
        self.heads = nn.ParameterList([torch.randn(len(values), width) for values in self.values])

    def codes(self, prompts: Sequence[str]) -> Tensor:
        """Which value each attribute has, int64 [N, attributes]."""
        table = [{value: i for i, value in enumerate(values)} for values in self.values]
        return torch.tensor(
            [
                [codes[part] for codes, part in zip(table, self.split(prompt), strict=True)]
                for prompt in prompts
            ]
        )

    def hidden(self, tokens: Tensor) -> Tensor:
        """Hidden states [N, L, D] after the last layer norm: what the denoiser attends to."""
        model = self.clip.model
        states = model.token_embedding(tokens) + model.positional_embedding
        return model.ln_final(model.transformer(states, attn_mask=model.attn_mask))

    def reading_loss(self, tokens: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy of telling each attribute from the mean hidden state, by the nearest of
        fixed-length directions.

        The heads have unit length and the layer norm fixes the states' scale, so only their
        directions can give way.
        """
        mean = (
            F.layer_norm(self.hidden(tokens), (self.heads[0].shape[1],)).mean(1)
            / self.heads[0].shape[1] ** 0.5
        )
        logits = [SHARPNESS * mean @ F.normalize(head, dim=1).T for head in self.heads]
        return sum(F.cross_entropy(logit, codes[:, i]) for i, logit in enumerate(logits)) / len(
            logits
        )


def fit_text_tower(
    tower: TextTower,
    images: Tensor,
    prompts: list[str],
    settings: FitSettings,
    reading_weight: float = 1.0,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Contrastive training on `images` uint8 [N, C, H, W] and their prompts, plus the reading of
    every attribute.

    Prompts that say the same are no negatives of each other: the target spreads over equal prompts
    of the batch.
    """
    clip, tokens = tower.clip, tower.clip.tokenizer(prompts)
    known, codes = clip.tokenizer(tower.prompts), tower.codes(tower.prompts)
    trainer, device = trainer or Trainer(tower, settings), device_of(tower)

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(images), settings.batch_size)
        chance = generator_for(settings.seed, 16, step)
        shift = torch.randint(-2, 3, (2,), generator=chance)
        batch = torch.roll(
            images[rows].float() / 127.5 - 1, shifts=tuple(shift.tolist()), dims=(-2, -1)
        )
        words = tokens[rows].to(device)
        text = F.normalize(clip.model.encode_text(words), dim=-1)
        contrast = contrastive_loss(clip, clip.embed_images(batch), text, words)
        some = torch.randint(len(known), (settings.batch_size,), generator=chance)
        return contrast + reading_weight * tower.reading_loss(
            known[some].to(device), codes[some].to(device)
        )

    yield from trainer.run(loss)


@torch.no_grad()
def attribute_distances(
    embeds: Tensor, prompts: Sequence[str], split: Callable[[str], tuple[str, ...]] = attributes_of
) -> dict[tuple[str, str], float]:
    """How far apart hidden states are when one attribute alone differs, {(value, other value):
    distance}.

    `embeds` [N, L, D] of the distinct `prompts`. The distance is the norm of the difference, a mean
    over all pairs of prompts that differ in these two values and agree in the rest, over the
    root-mean-square distance of a state from the mean of all; 1.41 would be two unrelated prompts,
    0 two values that no reader can tell apart.
    """
    flat = embeds.flatten(1)
    scale = float((flat - flat.mean(0)).square().sum(1).mean().sqrt())
    rows = {split(prompt): state for prompt, state in zip(prompts, flat, strict=True)}
    found: dict[tuple[str, str], list[float]] = {}
    for one, state in rows.items():
        for other, partner in rows.items():
            differ = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
            if len(differ) == 1 and differ[0][0] < differ[0][1]:
                found.setdefault(differ[0], []).append(float((state - partner).norm()) / scale)
    return {pair: sum(values) / len(values) for pair, values in sorted(found.items())}
