"""Generate the images of an arm and have every judge read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.io import read_tensors, to_images, write_bytes, write_tensors
from fairlib.models import solvers
from fairlib.models.generator import Generator
from studies.brain.judges import Judges
from studies.brain.prompts import EVALUATION_PROMPTS, Prompt
from studies.brain.settings import Study
from studies.engine.stage import run_stage

NOISE = 5000  # seeds of evaluation noise start here; tuning uses its own seed as it is


def prompts_of(count: int, prompts: tuple[Prompt, ...] = EVALUATION_PROMPTS) -> list[Prompt]:
    """The prompt of each of `count` images: equal shares, in blocks."""
    return [prompts[i * len(prompts) // count] for i in range(count)]


@torch.no_grad()
def generate(
    generator: Generator,
    study: Study,
    seed: int,
    count: int,
    prompts=EVALUATION_PROMPTS,
    progress=iter,
    guidance_scale: float | None = None,
) -> Tensor:
    """`count` images, uint8 [N, 1, H, W]; image i has prompt i of `prompts_of` and noise i of bank
    `NOISE + seed`.

    The same noise for every arm, so that before and after can be laid side by side.
    """
    solver = solvers.dpm_solver_2m(
        generator.alphas_cumprod, study.sampling_steps, prediction_type=generator.prediction_type
    )
    scale = study.guidance_scale if guidance_scale is None else guidance_scale
    texts = [prompt.text for prompt in prompts_of(count, prompts)]
    found = []
    for start in progress(range(0, count, study.batch_size)):
        rows = range(start, min(start + study.batch_size, count))
        embeds = generator.encode_prompts([texts[i] for i in rows])
        latents = solver.run(
            lambda x, t, embeds=embeds: generator.predict_noise(x, t, embeds, scale),
            generator.noise(NOISE + seed, list(rows)),
        )
        found.append(
            ((generator.decode(latents) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
        )
    return torch.cat(found)


def read_images(
    judges: Judges, images: Tensor, prompts: list[Prompt], arm: str, seed: int
) -> pd.DataFrame:
    """One row an image: arm, seed, prompt (contrast-grade-side), group, what each judge says, size
    in mm.
    """
    table = pd.DataFrame(
        {
            "arm": arm,
            "seed": seed,
            "image": range(len(images)),
            "prompt": [f"{p.contrast}-{p.grade}-{p.side}" for p in prompts],
            "contrast": [p.contrast for p in prompts],
            "group": [p.group for p in prompts],
        }
    )
    readings = judges.read(to_images(images), list(table.contrast))
    return table.assign(**{name: np.round(values, 5) for name, values in readings.items()})


def arm_readings(
    study: Study,
    judges: Judges,
    judges_key: list[str],
    generator: Generator,
    generator_key: str,
    arm: str,
    seed: int,
) -> tuple[pd.DataFrame, Tensor]:
    """Readings and images of one arm and seed, from their stage."""

    def build(out: Path, progress) -> None:
        images = generate(
            generator,
            study,
            seed,
            study.images,
            progress=lambda steps: progress.track(
                steps, len(steps), f"images of {arm}, seed {seed}"
            ),
        )
        table = read_images(judges, images, prompts_of(study.images), arm, seed)
        write_tensors(out / "images.safetensors", {"images": images})
        write_bytes(out / "readings.csv", table.to_csv(index=False).encode())

    settings = {
        "arm": arm,
        "seed": seed,
        "images": study.images,
        "steps": study.sampling_steps,
        "guidance": study.guidance_scale,
        "batch": study.batch_size,
    }
    folder = run_stage(None, "readings", settings, [*judges_key, generator_key], build)
    return pd.read_csv(folder / "readings.csv"), read_tensors(folder / "images.safetensors")[
        "images"
    ]
