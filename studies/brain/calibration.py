"""Calibration sets: images of known sex on which an evaluator's errors are counted.

A correction takes error rates from these images to generated ones, and assumes that the evaluator
errs alike on both. Which images those are is a choice, so there are several: synthetic radiology
slices of known sex, as the generator learnt them ("radiology", the primary set); the same after the
generator has noised and denoised them ("denoised"), which gives them its texture; the target
cohort's test slices ("test"). In counterfactual pairs ("pairs") one subject is drawn as female and
as male with the same random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.io import read_tensors, to_bytes, to_images, write_bytes, write_tensors
from fairlib.models.generator import Generator
from fairlib.models.solvers import Solver, ddim
from studies.brain.arms import base_model
from studies.brain.data import ComparisonSettings, cohort, split
from studies.brain.phantom import RadiologySettings, draw_slice
from studies.engine.stage import Artifact, Progress, stage

SETS = ("radiology", "denoised", "test", "pairs")
COLUMNS = ["subject", "sex", "grade", "contrast", "side"]
DENOISED_FROM = 3  # of eight steps of sampling, the first that is done again: timestep 624


@dataclass(frozen=True)
class KnownSex:
    """Images [N, 1, H, W], uint8, and a row each: subject, sex, grade, contrast, side, caption."""

    images: Tensor
    table: pd.DataFrame


def read_known_sex(folder: Path) -> KnownSex:
    """Read what a stage of this module wrote."""
    table = pd.read_csv(folder / "table.csv", keep_default_na=False)
    return KnownSex(read_tensors(folder / "images.safetensors")["images"], table)


def _write(out: Path, images: Tensor, table: pd.DataFrame) -> None:
    write_tensors(out / "images.safetensors", {"images": images})
    write_bytes(out / "table.csv", table.to_csv(index=False).encode())


@stage(load=read_known_sex)
def known_sex_slices(
    out: Path, progress: Progress, settings: RadiologySettings, male_shares: tuple[float, ...]
) -> None:
    """Draw synthetic radiology slices; with two `male_shares` (0 and 1) each subject twice, as
    female and as male.
    """
    rows, images = [], []
    for index in progress.track(range(settings.slices), settings.slices, "slices of known sex"):
        for share in male_shares:
            image, truth = draw_slice(replace(settings, male_share=share), index)
            images.append(to_bytes(torch.from_numpy(image))[None])
            rows.append({"subject": f"synthetic-{settings.seed}-{index:05d}", **truth})
    _write(out, torch.stack(images), pd.DataFrame(rows)[[*COLUMNS, "caption"]])


@stage(load=read_known_sex)
def denoised_slices(
    out: Path,
    progress: Progress,
    slices: Artifact[KnownSex],
    base: Artifact[Generator],
    count: int,
    steps: int,
    guidance_scale: float,
    seed: int,
) -> None:
    """Noise the first `count` slices to the fourth of eight timesteps and denoise them with their
    own captions: generated texture, and a sex that is nearly known.
    """
    known, generator, parts = slices.load(), base.load(), []
    for start in progress.track(range(0, count, 50), (count + 49) // 50, "denoising slices"):
        rows = slice(start, min(start + 50, count))
        texts = known.table.caption[rows].tolist()
        clean = to_images(known.images[rows]).to(generator.device)
        made = denoise_again(generator, clean, texts, steps, guidance_scale, [seed, start])
        parts.append(to_bytes(made).cpu())
    _write(out, torch.cat(parts), known.table.iloc[:count])


@torch.no_grad()
def denoise_again(
    generator: Generator,
    images: Tensor,
    prompts: list[str],
    steps: int,
    guidance_scale: float,
    seed: list[int],
) -> Tensor:
    """Images [N, 1, H, W] in [-1, 1], encoded, noised to the fourth of `steps` timesteps and
    denoised from there (Meng et al. 2022, SDEdit).
    """
    vae = generator.pipeline.vae
    colours = images.expand(-1, vae.config.in_channels, -1, -1)
    latents = vae.encode(colours.to(vae.dtype)).latent_dist.mean.float() * vae.config.scaling_factor
    whole = ddim(generator.alphas_cumprod, steps, prediction_type=generator.prediction_type)
    rest = Solver(
        whole.name,
        whole.timesteps[DENOISED_FROM:],
        *(
            getattr(whole, name)[DENOISED_FROM:]
            for name in ("data", "output", "carry", "current", "previous")
        ),
    )
    alpha = float(generator.alphas_cumprod[rest.timesteps[0]])
    drawn = np.random.default_rng(seed).standard_normal(latents.shape).astype(np.float32)
    noise = torch.from_numpy(drawn).to(latents)
    embeds = generator.encode_prompts(prompts)
    clean = rest.run(
        lambda x, t: generator.predict_noise(x, t, embeds, guidance_scale),
        alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise,
    )
    return generator.decode(clean).clamp(-1, 1)


def calibration_sets(settings: ComparisonSettings) -> dict[str, Artifact[KnownSex]]:
    """The synthetic calibration sets, half female, of the evaluation prompts' contrasts and
    grades.
    """
    drawn = RadiologySettings(
        slices=settings.calibration,
        validation=0,
        male_share=0.5,
        high_grade=0.5,
        low_grade=0.5,
        mention=0.0,
        effect=settings.effect,
        seed=51,
    )
    radiology = known_sex_slices(drawn, (drawn.male_share,))
    scale = settings.guidance_scale
    denoised = denoised_slices(
        radiology, base_model(settings), settings.denoised, settings.sampling_steps, scale, 52
    )
    pairs = known_sex_slices(replace(drawn, slices=settings.pairs, seed=53), (0.0, 1.0))
    return {"radiology": radiology, "denoised": denoised, "pairs": pairs}


def known_images(known: Artifact[KnownSex]) -> tuple[Tensor, list[str]]:
    """Images [N, 1, H, W] in [-1, 1] and their contrasts, for an evaluator to read."""
    found = known.load()
    return to_images(found.images), found.table.contrast.tolist()


def test_images(settings: ComparisonSettings) -> KnownSex:
    """The target cohort's test slices."""
    test = split(cohort(settings).load(), settings.split_seed)["test"]
    return KnownSex(to_bytes(test.load()), test.table[COLUMNS].reset_index(drop=True))
