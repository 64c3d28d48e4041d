"""Two rivals that act at sampling time alone: batch guidance, and an offset of the null prompt.

Balancing Act (Parihar et al., CVPR 2024, arXiv 2402.18206; code rishubhpar/debiasing_gen_models): a
linear classifier a solver step reads the group from the denoiser's bottleneck h; while a batch is
sampled, the mean of its predicted probabilities is drawn to the target by one gradient step on h,
and the rest of the denoiser goes on from there. As released: one flat linear layer a step, fitted
to a classifier's labels; the gradient goes through that layer alone. Simplified or changed here:
heads are fitted on the base model's own images (released: on images with labels), with an L2
penalty and features in units of the root of their total variance; the distance is KL(target ||
batch mean) (released: KL(batch mean || 1/2) at temperature 8, at which the mean is near one half
whatever the shares); the gradient is multiplied by the batch size, so that `strength` does not
depend on it; with classifier-free guidance only the prompted half moves.

StayFair (Kim et al., NeurIPS 2026, arXiv 2605.28036; code Kim-Myeong-Soo/stay-fair): classifier-
free guidance with the null prompt's embedding moved by alpha along a direction, alpha chosen for
each prompt so that the share does not change with the guidance scale. As released the direction is
the unit difference of two prompts' embeddings, token by token. Of the released w e(c) - (w - v)
e(offset) + (1 - v) e(null) this is the case v = 1, which leaves unguided samples as they are and
needs no third evaluation. Here alpha may also be chosen so that the share meets a target, and where
no prompt names the group the direction may be the gradient of the classifier's logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairlib.errors import SettingsError
from fairlib.methods.alignment import mean_probability_kl
from fairlib.methods.base_cache import ImageFunction
from fairlib.methods.replay import record, replay
from fairlib.methods.targets import Target, class_logits, classes_of
from fairlib.models.generator import Generator
from fairlib.models.solvers import dpm_solver_2m


@dataclass(frozen=True)
class BottleneckHead:
    """Linear classifiers of the denoiser's bottleneck, one a solver step.

    weight `[T, 1, D]` (two groups: logits of the first) or `[T, K, D]`, bias `[T, 1]` or `[T, K]`,
    for features in their own units; scale `[T]`: the root of their total variance. sampling: what
    `Generator.sample` was given when they were fitted, and is given again.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    sampling: dict[str, Any]

    def logits(self, step: int, features: Tensor) -> Tensor:
        """Logits `[N]` or `[N, K]` of `features` `[N, C, h, w]` at solver step `step`."""
        outputs = features.flatten(1).float() @ self.weight[step].T + self.bias[step]
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    @torch.enable_grad()
    def guide(self, step: int, features: Tensor, target: Target, strength: float) -> Tensor:
        """`features` after one gradient step of the batch's distance to the target's shares."""
        logits = self.logits(step, features).detach().requires_grad_()
        shares = logits.new_tensor(target.proportions)
        distance = mean_probability_kl(logits, shares[0] if logits.ndim == 1 else shares)
        slope = torch.autograd.grad(distance, logits)[0].view(len(features), -1) @ self.weight[step]
        shift = strength * len(features) * self.scale[step] ** 2 * slope
        return features - shift.view_as(features).to(features)


def fit_bottleneck_head(
    generator: Generator,
    classifier: ImageFunction,
    prompts: Sequence[str],
    noise: Tensor,
    *,
    penalty: float = 0.05,
    micro_batch: int | None = None,
    **sampling: Any,
) -> BottleneckHead:
    """Fit the heads on the generator's images of `prompts` at `noise` `[N, C, h, w]`, labelled by
    the classifier.

    Parameters
    ----------
    generator, classifier
        The base model, and the tuning classifier, which needs no gradient.
    prompts, noise
        Of each image to fit on; some hundred.
    penalty
        L2, on features whose total variance is one. Besides over-fitting it keeps the logits from
        saturating, where they have no gradient.
    micro_batch
        Images sampled at once.
    sampling
        `steps`, `guidance_scale` and `solver` of `Generator.sample`.

    Raises
    ------
    SettingsError
        A group that is not among the images.
    """
    from sklearn.linear_model import LogisticRegression

    seen: list[Tensor] = []
    defaults: dict[str, Any] = {"steps": 10, "guidance_scale": 3.0, "solver": dpm_solver_2m}
    sampling = defaults | sampling

    def keep(_: nn.Module, __: Any, h: Tensor) -> None:
        seen.append(_prompted(h, sampling).flatten(1).float())

    with generator.denoiser.mid_block.register_forward_hook(keep):
        images = generator.sample(prompts, noise=noise, micro_batch=micro_batch, **sampling)
    with torch.no_grad():
        logits = class_logits(classifier(images))
    labels = classes_of(logits).cpu().numpy()
    groups = 2 if logits.ndim == 1 else logits.shape[1]
    if len(np.unique(labels)) < groups:
        raise SettingsError(
            f"the classifier finds {len(np.unique(labels))} of {groups} groups among "
            f"{len(images)} images; fit the heads on more images"
        )
    heads = []
    for step in range(sampling["steps"]):
        features = torch.cat(seen[step :: sampling["steps"]])
        scale, centre = features.std(dim=0).norm(), features.mean(dim=0)
        fit = LogisticRegression(C=1 / penalty, max_iter=1000)
        fit.fit(((features - centre) / scale).cpu().numpy(), labels)
        weight = torch.as_tensor(fit.coef_).to(features) / scale
        bias = torch.as_tensor(fit.intercept_).to(features) - weight @ centre
        heads.append((weight, bias, scale))
    weights, biases, scales = (torch.stack(part) for part in zip(*heads, strict=True))
    return BottleneckHead(weights, biases, scales, sampling)


def sample_batch_guided(
    generator: Generator,
    prompts: Sequence[str],
    noise: Tensor,
    head: BottleneckHead,
    target: Target,
    strength: float,
) -> Tensor:
    """Images as of `Generator.sample`, drawn as one batch whose predicted shares are guided to the
    target's.

    Costs no evaluations more than `Generator.sample`.

    Parameters
    ----------
    prompts, noise
        Of each image. The whole batch is one distribution: give one group's prompts, and as many
        images as memory allows (the authors use 100).
    head
        Of `fit_bottleneck_head`, with the settings of sampling.
    target
        Whose shares the batch shall have; needs no logits.
    strength
        Of the gradient step, from 0, which leaves the images as they are; of the order of one.
    """
    steps = count()

    def edit(_: nn.Module, __: Any, h: Tensor) -> Tensor:
        prompted = _prompted(h, head.sampling)
        guided = head.guide(next(steps), prompted, target, strength)
        return torch.cat([h[: len(h) - len(prompted)], guided])

    with generator.denoiser.mid_block.register_forward_hook(edit):
        return generator.sample(prompts, noise=noise, **head.sampling)


def _prompted(bottleneck: Tensor, sampling: dict[str, Any]) -> Tensor:
    """The rows of the prompts; with guidance, those of the null prompt come before them."""
    return bottleneck if sampling["guidance_scale"] == 1 else bottleneck.chunk(2)[1]


def classifier_direction(
    generator: Generator,
    classifier: ImageFunction,
    prompts: Sequence[str],
    noise: Tensor,
    *,
    steps: int = 10,
    guidance_scale: float = 3.0,
    micro_batch: int | None = None,
) -> Tensor:
    """The direction `[1, L, D]`, of unit root-mean-square over tokens, in which the null prompt's
    embedding raises the mean logit of the first of two groups fastest (by replay of all steps).

    prompts and noise `[N, C, h, w]`: the images to average over.
    """
    kind = generator.prediction_type
    solver = dpm_solver_2m(generator.alphas_cumprod, steps, prediction_type=kind)
    offset = torch.zeros_like(generator.encode_prompts([""])).requires_grad_()
    offset.grad = torch.zeros_like(offset)
    view = null_offset(generator, offset, 1.0)
    predict = partial(view.predict_noise, guidance_scale=guidance_scale)
    path = record(solver, predict, noise, generator.encode_prompts(prompts), micro_batch)
    leaf = path.sample.detach().requires_grad_()
    mean = class_logits(classifier(generator.decode(leaf)), 2).mean()
    cotangent, weights = torch.autograd.grad(mean, leaf)[0], np.ones((steps, len(noise)))
    replay(predict, path, cotangent, solver.chain_coefficients()[1], weights, micro_batch)
    return offset.grad / offset.grad.norm(dim=-1).square().mean().sqrt()


def null_offset(generator: Generator, direction: Tensor, strength: float) -> Generator:
    """A view of the generator whose null prompt is moved by `strength` along `direction` `[1, L,
    D]`; the weights are shared.

    Parameters
    ----------
    direction
        Of `prompt_direction` or `classifier_direction`.
    strength
        The authors' alpha, of either sign; `strength_for_share` finds one. It has no effect at a
        guidance scale of 1.
    """
    view = copy.copy(generator)

    def encode(prompts: Sequence[str]) -> Tensor:
        embeds = generator.encode_prompts(prompts)
        empty = torch.tensor([prompt == "" for prompt in prompts], device=embeds.device)
        return embeds + strength * empty.view(-1, 1, 1) * direction.to(embeds)

    view.encode_prompts = encode  # type: ignore[method-assign]
    return view


def strength_for_share(
    share_at: Callable[[float], float], share: float, low: float, high: float, halvings: int = 6
) -> float:
    """The strength in [low, high] at which `share_at(strength)`, monotone, meets `share`; by
    bisection.

    `share`: the target's, or, for StayFair's constancy, the share without guidance. Raises
    `SettingsError` when it is not between the shares at both ends.
    """
    from scipy.optimize import bisect

    try:
        width = (high - low) / 2**halvings
        return bisect(lambda strength: share_at(strength) - share, low, high, xtol=width)
    except ValueError as error:
        what = f"{share:.3f} is not between the shares at {low} and at {high}"
        raise SettingsError(f"{what}; widen the range") from error
