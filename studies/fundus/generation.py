"""Pictures of every arm: one for each prompt that is asked for, from the same noise in all arms of
a seed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fairlib.errors import DataError
from fairlib.io import read_tensors, to_bytes, write_tensors
from fairlib.models.generator import Generator
from fairlib.models.solvers import dpm_solver_2m
from fairlib.settings import digest
from studies.engine.manifest import content_digest
from studies.engine.stage import run_stage
from studies.fundus.cohorts import Fundi, fundi, join
from studies.fundus.finetuning import fundus_generator, generator_digest, tuned, tuned_generator
from studies.fundus.settings import BASE, REAL, UNTUNED, FundusStudy, untuned

NOISE = 9000  # bank of starting noise of seed 0
SIDE = 128


def pictures_folder(study: FundusStudy, arm: str, seed: int) -> Path:
    """The stage folder with the pictures of one arm and seed (uint8 [N, 1, 128, 128]), resumable by
    batches.

    Picture i is made for person i of part "asked" from noise i of the seed's bank, whatever the arm
    and the batch.
    """
    prompts = fundi(study, "asked").table["prompt"].tolist()
    settings = {
        "steps": study.sampling_steps,
        "guidance": study.guidance_scale,
        "noise": NOISE + seed,
        "count": len(prompts),
        "batch": study.sample_batch,
    }
    source = source_digest(study, arm, seed)

    def build(out: Path, progress) -> None:
        generator, size = tuned_generator(study, arm, seed), study.sample_batch
        blocks = [
            list(range(start, min(start + size, len(prompts))))
            for start in range(0, len(prompts), size)
        ]
        paths = [out / "working" / f"{number:04d}.safetensors" for number in range(len(blocks))]
        for rows, path in progress.track(
            zip(blocks, paths, strict=True), len(blocks), f"pictures of {arm}, seed {seed}"
        ):
            if not path.is_file():
                noise = generator.noise(NOISE + seed, rows)
                write_tensors(
                    path,
                    {
                        "images": to_bytes(
                            sample(generator, study, [prompts[row] for row in rows], noise)
                        )
                    },
                )
        join(out, paths, "pictures")

    return run_stage(
        None,
        f"fundus-pictures-{arm}",
        settings,
        [generator_digest(study), source, digest(prompts)],
        build,
        verify=False,
    )


def source_digest(study: FundusStudy, arm: str, seed: int) -> str:
    """What draws the pictures of an arm."""
    return (
        generator_digest(untuned(study, arm))
        if arm in UNTUNED
        else content_digest(tuned(study, arm, seed))
    )


@lru_cache(maxsize=4)
def made(study: FundusStudy, arm: str, seed: int) -> Fundi:
    """The pictures of one arm and seed beside what was asked; of arm "real", the asked people's own
    pictures.
    """
    people = fundi(study, "asked")
    if arm == REAL:
        return people
    return Fundi(
        read_tensors(pictures_folder(study, arm, seed) / "pictures.safetensors")["images"],
        people.table,
    )


def swatches(
    study: FundusStudy, prompts: list[str], seed: int = 0, arm: str = BASE, tuning_seed: int = 1
) -> Tensor:
    """Pictures to look at, float32 [N, 1, 128, 128], all from ONE noise: `seed` of the bank."""

    def build(out: Path, progress) -> None:
        generator = tuned_generator(study, arm, tuning_seed)
        images = sample(
            generator, study, prompts, generator.noise(NOISE - 1, [seed] * len(prompts))
        )
        write_tensors(out / "pictures.safetensors", {"images": to_bytes(images)})

    if not prompts:
        raise DataError("no prompts; give at least one")
    settings = {
        "steps": study.sampling_steps,
        "guidance": study.guidance_scale,
        "seed": seed,
        "prompts": prompts,
    }
    source = source_digest(study, arm, tuning_seed)
    folder = run_stage(None, "fundus-swatches", settings, [generator_digest(study), source], build)
    return read_tensors(folder / "pictures.safetensors")["images"].float() / 127.5 - 1


@torch.no_grad()
def sample(generator: Generator, study: FundusStudy, prompts: list[str], noise: Tensor) -> Tensor:
    """Images [N, 1, 128, 128] in [-1, 1] on the CPU, as the study samples them."""
    kind = generator.pipeline.scheduler.config.prediction_type
    solver = dpm_solver_2m(generator.alphas_cumprod, study.sampling_steps, prediction_type=kind)
    embeds = generator.encode_prompts(prompts)
    found = solver.run(
        lambda x, t: generator.predict_noise(x, t, embeds, study.guidance_scale), noise
    )
    images = generator.decode(found).clamp(-1, 1)
    images = (
        images if images.shape[-1] == SIDE else F.interpolate(images, (SIDE, SIDE), mode="area")
    )
    return images.cpu()


__all__ = ["NOISE", "fundus_generator", "made", "pictures_folder", "sample", "swatches"]
