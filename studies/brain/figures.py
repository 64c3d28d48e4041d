"""What the chapters on the brain show besides the tables of the study: how the generator samples,
and what the evaluators answer to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fairlib.measures.intervals import Sample, bootstrap_interval
from fairlib.models import solvers
from fairlib.models.generator import Generator
from fairlib.models.training import device_of
from studies.brain.data import BrainSettings
from studies.brain.evaluators import EVALUATORS, NAMES
from studies.brain.quality import disturbed

Make = Callable[..., solvers.Solver]
SOLVERS = {"DDIM": solvers.ddim, "DPM-Solver++ 2M": solvers.dpm_solver_2m}


@torch.no_grad()
def denoising_path(
    generator: Generator, settings: BrainSettings, noise: Tensor, texts: list[str]
) -> list[tuple[int, Tensor]]:
    """(timestep, what the model takes the images for at that step [N, 1, H, W]) for each solver
    step, and (0, the result).
    """
    solver, embeds = solvers.dpm_solver_2m, generator.encode_prompts(texts)
    steps = list(_steps(generator, settings, noise, embeds, solver, settings.sampling_steps))
    path = [(step.timestep, generator.decode(step.data_prediction).cpu()) for step in steps]
    return [*path, (0, generator.decode(steps[-1].next_latents).cpu())]


def _steps(
    generator: Generator,
    settings: BrainSettings,
    noise: Tensor,
    embeds: Tensor,
    make: Make,
    count: int,
) -> Iterable[solvers.SamplingStep]:
    kind, scale = generator.prediction_type, settings.guidance_scale
    solver = make(generator.alphas_cumprod, count, prediction_type=kind)
    return solver.sample(lambda x, t: generator.predict_noise(x, t, embeds, scale), noise)


@torch.no_grad()
def solver_errors(
    generator: Generator,
    settings: BrainSettings,
    noise: Tensor,
    texts: list[str],
    counts: Iterable[int],
    reference: int = 100,
) -> pd.DataFrame:
    """Distance of each solver's images to those of `reference` DDIM steps: solver, steps, distance
    (root mean square).

    In units of the [-1, 1] range; the same noise for all.
    """
    embeds = generator.encode_prompts(texts)

    def images(make: Make, count: int) -> Tensor:
        *_, last = _steps(generator, settings, noise, embeds, make, count)
        return generator.decode(last.next_latents)

    wanted = images(solvers.ddim, reference)
    rows = []
    for name, make in SOLVERS.items():
        for count in counts:
            distance = (images(make, count) - wanted).square().mean().sqrt()
            rows.append({"solver": name, "steps": count, "distance": float(distance)})
    return pd.DataFrame(rows)


def saliency(classifier: nn.Module | Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Gradient of each image's logit with respect to its pixels: what a small change of each would
    do; shape of `images`.
    """
    where = device_of(classifier) if isinstance(classifier, nn.Module) else images.device
    pixels = images.detach().clone().to(where).requires_grad_()
    return torch.autograd.grad(classifier(pixels).sum(), pixels)[0].cpu()


def disturbance_table(
    settings: BrainSettings,
    images: Tensor,
    contrasts: list[str],
    levels: Mapping[str, Iterable[float]],
) -> pd.DataFrame:
    """How far noise and blur move each evaluator: kind, level, evaluator, moved (mean |change of
    p|), flipped (share of readings).
    """
    fitted = {column: EVALUATORS[column].fit(settings, 0) for column in NAMES}

    def read(column: str, shown: Tensor) -> np.ndarray:
        return EVALUATORS[column].read(column, fitted[column], shown, contrasts)[column]

    clean, rows = {column: read(column, images) for column in NAMES}, []
    for kind, level in [(kind, level) for kind, several in levels.items() for level in several]:
        changed = disturbed(images, kind, level)
        for column, name in NAMES.items():
            before, after = clean[column], read(column, changed)
            moved = float(np.nanmean(np.abs(after - before)))
            flipped = float(np.mean((after > 0.5) != (before > 0.5)))
            rows.append((kind, level, name, moved, flipped))
    return pd.DataFrame(rows, columns=["kind", "level", "evaluator", "moved", "flipped"])


def accuracy_table(slices: pd.DataFrame, seed: int, replicates: int = 500) -> pd.DataFrame:
    """Sensitivity and specificity of each evaluator on `slices`, by subject: evaluator, what, n,
    value, value_low, value_high.
    """
    rng, rows = np.random.default_rng(seed), []
    for column, name in NAMES.items():
        good = slices[slices[column].notna()]
        for what, sex in (("sensitivity", "F"), ("specificity", "M")):
            part = good[good.sex == sex]
            right = (part[column] > 0.5) == (sex == "F")
            sample = Sample(right, clusters=part.subject.to_numpy(str))
            value = bootstrap_interval(np.mean, [sample], rng, replicates)
            rows.append((name, what, len(part), value.estimate, value.low, value.high))
    return pd.DataFrame(
        rows, columns=["evaluator", "what", "n", "value", "value_low", "value_high"]
    )


def cost_table(history: pd.DataFrame, sampling_steps: int) -> pd.DataFrame:
    """Denoiser calls an image and optimiser step, a backward pass as two: arm, sampling, replay,
    frozen, calls, published, ratio.

    The published order of work: three samplings, one of them with a graph that is computed again (6
    T calls in all).
    """
    counts = history.groupby("arm", sort=False)[["forward", "backward", "frozen"]].sum()
    # sampled in all steps together
    images = (counts.forward - counts.backward) / sampling_steps
    replay, frozen = 3 * counts.backward / images, counts.frozen / images
    table = pd.DataFrame({"sampling": sampling_steps, "replay": replay, "frozen": frozen})
    calls, published = table.sum(axis="columns"), 6 * sampling_steps
    return table.assign(calls=calls, published=published, ratio=calls / published).reset_index()


@torch.no_grad()
def prompt_effects(
    generator: Generator, noise: Tensor, pairs: Mapping[str, tuple[str, str]]
) -> pd.DataFrame:
    """How far one change of words changes the noise prediction: words, change (relative), n.

    pairs: name -> two prompts. change: root mean square of the difference of the two predictions
    over that of the first, mean over three time steps; the same latents `noise` [N, 4, h, w] for
    both.
    """
    rows = []
    for words, both in pairs.items():
        embeds = [generator.encode_prompts([text] * len(noise)) for text in both]
        changes = []
        for timestep in (900, 624, 300):
            one, other = (generator.predict_noise(noise, timestep, each) for each in embeds)
            changes.append(float((one - other).norm() / one.norm()))
        rows.append({"words": words, "change": float(np.mean(changes)), "n": len(noise)})
    return pd.DataFrame(rows)
