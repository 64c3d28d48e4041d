"""A closer look at how the generator draws and at what the judges answer to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fairlib.models import solvers
from fairlib.models.generator import Generator
from fairlib.models.training import device_of
from studies.brain.judges import Judges
from studies.brain.prompts import EVALUATION_PROMPTS
from studies.brain.settings import Study
from studies.brain.views.tables import READERS


@torch.no_grad()
def denoising_path(
    generator: Generator, study: Study, noise: Tensor, texts: list[str]
) -> list[tuple[int, Tensor]]:
    """(timestep, what the model takes the images for at that step [N, 1, H, W]) for each solver
    step, and (0, the result).
    """
    embeds = generator.encode_prompts(texts)
    solver = solvers.dpm_solver_2m(
        generator.alphas_cumprod, study.sampling_steps, prediction_type=generator.prediction_type
    )
    steps = list(
        solver.sample(
            lambda x, t: generator.predict_noise(x, t, embeds, study.guidance_scale), noise
        )
    )
    path = [(step.timestep, generator.decode(step.data_prediction).cpu()) for step in steps]
    return [*path, (0, generator.decode(steps[-1].next_latents).cpu())]


@torch.no_grad()
def solver_errors(
    generator: Generator,
    study: Study,
    noise: Tensor,
    texts: list[str],
    counts,
    reference: int = 100,
) -> pd.DataFrame:
    """Distance of each solver's images to those of `reference` DDIM steps: solver, steps, distance
    (root mean square).

    In units of the [-1, 1] range; the same noise for all.
    """
    embeds = generator.encode_prompts(texts)

    def images(make, steps: int) -> Tensor:
        solver = make(generator.alphas_cumprod, steps, prediction_type=generator.prediction_type)
        return generator.decode(
            solver.run(
                lambda x, t: generator.predict_noise(x, t, embeds, study.guidance_scale), noise
            )
        )

    wanted = images(solvers.ddim, reference)

    def distance(make, steps: int) -> float:
        return float((images(make, steps) - wanted).square().mean().sqrt())

    return pd.DataFrame(
        [
            {"solver": name, "steps": steps, "distance": distance(make, steps)}
            for name, make in (("DDIM", solvers.ddim), ("DPM-Solver++ 2M", solvers.dpm_solver_2m))
            for steps in counts
        ]
    )


def saliency(classifier, images: Tensor) -> Tensor:
    """Gradient of each image's logit with respect to its pixels: what a small change of each would
    do; shape of `images`.
    """
    where = device_of(classifier) if isinstance(classifier, nn.Module) else images.device
    pixels = images.detach().clone().to(where).requires_grad_()
    return torch.autograd.grad(classifier(pixels).sum(), pixels)[0].cpu()


def rim_share(values: Tensor, shapes: list, width: float = 5.0) -> float:
    """Share of the power of maps [N, 1, H, W] that lies within `width` pixels of each slice's
    outline, in [0, 1].
    """
    size = values.shape[-1]
    row, column = np.mgrid[:size, :size]
    near = np.stack([np.abs(_beyond(shape, row, column)) <= width for shape in shapes])
    power = values[:, 0].numpy() ** 2
    return float(power[near].sum() / power.sum())


def _beyond(shape, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """How far pixels lie outside an `Outline` along their own ray, in pixels; negative inside."""
    up, right = shape.centre[0] - row, column - shape.centre[1]
    ray = np.round(np.arctan2(up, right) / (2 * np.pi) * len(shape.radii)).astype(int) % len(
        shape.radii
    )
    return np.hypot(up, right) - shape.radii[ray]


def disturbed(images: Tensor, kind: str, level: float, seed: int = 0) -> Tensor:
    """`images` with white noise of standard deviation `level`, or blurred by a Gaussian of `level`
    pixels; no size changes.
    """
    if kind == "noise":
        chance = torch.Generator().manual_seed(seed)
        return (images + level * torch.randn(images.shape, generator=chance)).clamp(-1, 1)
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, level, level)))


def disturbance_table(
    judges: Judges, images: Tensor, contrasts: list[str], levels: dict[str, tuple[float, ...]]
) -> pd.DataFrame:
    """How far noise and blur move each judge: kind, level, judge, moved (mean |change of p|),
    flipped (share of readings).
    """
    clean, rows = judges.read(images, contrasts), []
    for kind, level in [(kind, level) for kind, several in levels.items() for level in several]:
        found = judges.read(disturbed(images, kind, level), contrasts)
        rows += [
            {
                "kind": kind,
                "level": level,
                "judge": shown,
                "moved": float(np.nanmean(np.abs(found[name] - clean[name]))),
                "flipped": float(np.mean((found[name] > 0.5) != (clean[name] > 0.5))),
            }
            for name, shown in READERS.items()
        ]
    return pd.DataFrame(rows)


def prompt_grid(generator: Generator, study: Study, seed: int) -> Tensor:
    """One image of each evaluation prompt from one and the same noise, uint8 [prompts, 1, H, W]."""
    solver = solvers.dpm_solver_2m(
        generator.alphas_cumprod, study.sampling_steps, prediction_type=generator.prediction_type
    )
    embeds = generator.encode_prompts([prompt.text for prompt in EVALUATION_PROMPTS])
    noise = generator.noise(seed, [0]).expand(len(embeds), -1, -1, -1)
    with torch.no_grad():
        latents = solver.run(
            lambda x, t: generator.predict_noise(x, t, embeds, study.guidance_scale), noise
        )
        return generator.decode(latents).cpu()
