"""What the notebooks look at: tables put together from the stages of the study, each kept as a stage of its own."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...cohorts.captions import EVALUATION_PROMPTS, FIDELITY_PROMPTS, Prompt
from ...files import read_tensors, write_bytes, write_tensors
from ...models.clip import load_clip
from ...models.generator import Generator
from ..manifest import code_digest, content_digest
from ..stages import stage
from .cohorts import brain_cohort, splits
from .judges import Judges, fit_judges, judges_digest
from .readings import arm_readings, generate, prompts_of, read_images, to_images
from .settings import Study
from .tuning import base_digest, history, tune_arm, tuned_generator

JUDGES = {"guide": "guide_robust", "auditor": "auditor", "oracle": "oracle"}
CODE = ("measures/anatomy.py", "measures/oracle.py", "models/classifier.py", "runs/brain/views.py")


@lru_cache(maxsize=2)
def judges_of(study: Study) -> tuple[Judges, tuple[str, ...]]:
    """The judges of `study` and the digests that stages which use them depend on."""
    return fit_judges(study), tuple(judges_digest(study))


@lru_cache(maxsize=2)
def base_generator(study: Study) -> Generator:
    """The untuned model, its hashes checked."""
    return Generator.load(study.weights)


def phantom_truth(study: Study) -> pd.DataFrame | None:
    """What is known of the phantom's people and of nobody else: subject, sex, grade, age, side, log_size, known.

    One row a subject; None for a real cohort.
    """
    if study.cohort != "phantom":
        return None
    from .cohorts import _phantom

    return pd.read_csv(_phantom(study) / "truth.csv").rename(columns={"brats": "subject"})


def test_readings(study: Study) -> pd.DataFrame:
    """Every judge's reading of the test slices: subject, sex, grade, contrast, image; p of each judge; extent_mm."""
    judges, key = judges_of(study)

    def build(out: Path, progress) -> None:
        part = splits(study)["test"]
        table = part.table[["subject", "sex", "grade", "contrast"]].assign(image=range(len(part)))
        rows = [judges.read(part.load(list(chosen)), list(table.contrast.iloc[chosen]))
                for chosen in progress.track(np.array_split(np.arange(len(part)), -(-len(part) // 100)), label="test slices")]
        found = {name: np.concatenate([row[name] for row in rows]).round(5) for name in rows[0]}
        write_bytes(out / "readings.csv", table.assign(**found).to_csv(index=False).encode())

    return pd.read_csv(stage(None, "readings-test", {}, list(key), build, code=code_digest(*CODE)) / "readings.csv")


def arm(study: Study, name: str, seed: int, tuning_steps: int) -> tuple[Generator, str, Path | None]:
    """The generator of arm `name` ("base" or one of `settings.ARMS`), its digest, and the folder of its tuning (or None)."""
    if name == "base":
        return base_generator(study), base_digest(study), None
    judges, key = judges_of(study)
    folder = tune_arm(study, judges, list(key), name, seed, steps=tuning_steps)
    return tuned_generator(base_generator(study), folder), content_digest(folder), folder


def readings_of(study: Study, names, seed: int, tuning_steps: int) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Readings of the arms `names`, one below the other, and their images {arm: uint8 [N, 1, H, W]}, same noise in each."""
    judges, key = judges_of(study)
    tables, images = [], {}
    for name in names:
        generator, digest, _ = arm(study, name, seed, tuning_steps)
        table, images[name] = arm_readings(study, judges, list(key), generator, digest, name, seed)
        tables.append(table)
    return pd.concat(tables, ignore_index=True), images


def histories(study: Study, names, seed: int, tuning_steps: int) -> pd.DataFrame:
    """What each tuning step of the arms `names` saw, one arm below the other."""
    folders = {name: arm(study, name, seed, tuning_steps)[2] for name in names}
    return pd.concat([history(folder).assign(arm=name) for name, folder in folders.items()], ignore_index=True)


def guidance_sweep(study: Study, seed: int, scales: tuple[float, ...], count: int) -> tuple[pd.DataFrame, dict[float, Tensor]]:
    """Readings of `count` base images at each guidance scale (column `scale`), and the images {scale: uint8}."""
    judges, key = judges_of(study)

    def build(out: Path, progress) -> None:
        tables, kept = [], {}
        for scale in progress.track(scales, len(scales), "guidance scales"):
            images = generate(base_generator(study), study, seed, count, guidance_scale=scale)
            tables.append(read_images(judges, images, prompts_of(count), "base", seed).assign(scale=scale))
            kept[f"{scale:g}"] = images
        write_tensors(out / "images.safetensors", kept)
        write_bytes(out / "readings.csv", pd.concat(tables).to_csv(index=False).encode())

    settings = {"scales": list(scales), "count": count, "seed": seed, "steps": study.sampling_steps}
    folder = stage(None, "guidance", settings, [*key, base_digest(study)], build,
                   code=code_digest("models/solvers.py", "models/generator.py", *CODE))
    images = read_tensors(folder / "images.safetensors")
    return pd.read_csv(io.BytesIO((folder / "readings.csv").read_bytes())), {scale: images[f"{scale:g}"] for scale in scales}


def saliency(classifier, images: Tensor) -> Tensor:
    """Gradient of each image's logit with respect to its pixels: what a small change of each would do; shape of `images`."""
    pixels = images.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(classifier(pixels).sum(), pixels)
    return slope


DISTURBANCES = {"noise": (0.0, 0.05, 0.1, 0.2), "blur": (0.0, 0.7, 1.2, 2.0)}  # sd in units of [-1, 1]; sd in pixels


def disturbed(images: Tensor, kind: str, level: float, seed: int = 0) -> Tensor:
    """`images` with white noise of standard deviation `level`, or blurred by a Gaussian of `level` pixels; size unchanged."""
    if kind == "noise":
        chance = torch.Generator().manual_seed(seed)
        return (images + level * torch.randn(images.shape, generator=chance)).clamp(-1, 1)
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, level, level)))


def disturbance_table(judges: Judges, images: Tensor, contrasts: list[str], truth: np.ndarray) -> pd.DataFrame:
    """How each judge bears noise and blur: kind, level, judge, moved (mean |change of p|), accuracy. `truth` [N], 1 = F."""
    rows = []
    for kind, levels in DISTURBANCES.items():
        clean = None
        for level in levels:
            found = judges.read(disturbed(images, kind, level), contrasts)
            found = {name: values for name, values in found.items() if name != "extent_mm"}
            clean = clean or found
            rows += [{"kind": kind, "level": level, "judge": name, "moved": float(np.nanmean(np.abs(values - clean[name]))),
                      "accuracy": float(np.mean((values > 0.5) == truth))} for name, values in found.items()]
    return pd.DataFrame(rows)


def embeddings(study: Study, images: Tensor) -> np.ndarray:
    """CLIP embeddings [N, D] of uint8 or [-1, 1] images."""
    clip = load_clip(study.clip)
    images = to_images(images) if images.dtype == torch.uint8 else images
    with torch.no_grad():
        return torch.cat([clip.embed_images(part) for part in images.split(64)]).numpy()


def read_back(study: Study, images: Tensor, prompts: tuple[Prompt, ...] = EVALUATION_PROMPTS) -> pd.DataFrame:
    """Which prompt CLIP would give each image: asked and read contrast, grade and side, one row an image.

    Images are in the blocks of `prompts_of`; the choice is among `FIDELITY_PROMPTS` with either side.
    """
    from ...cohorts.captions import SIDES, caption

    clip = load_clip(study.clip)
    choices = [Prompt(caption(p.contrast, p.grade, side), p.contrast, p.grade, side)
               for p in FIDELITY_PROMPTS for side in (SIDES if p.grade != "none" else ("none",))]
    choices = list(dict.fromkeys(choices))
    with torch.no_grad():
        texts = clip.embed_texts([choice.text for choice in choices]).numpy()
    best = [choices[i] for i in (embeddings(study, images) @ texts.T).argmax(1)]
    asked = prompts_of(len(images), prompts)
    return pd.DataFrame({f"{when}_{what}": [getattr(p, what) for p in group] for when, group in (("asked", asked), ("read", best))
                         for what in ("contrast", "grade", "side")})


def cohort_images(study: Study, part: str, count: int, seed: int = 0) -> tuple[Tensor, pd.DataFrame]:
    """`count` slices of a part of the cohort (all when there are fewer), drawn at random, and their rows."""
    cohort = splits(study)[part]
    rows = np.sort(np.random.default_rng(seed).permutation(len(cohort))[:count])
    return cohort.load(rows), cohort.table.iloc[rows].reset_index(drop=True)


def one_slice_each(study: Study, contrast: str = "t1") -> tuple[Tensor, pd.DataFrame]:
    """The slice with the most brain around it (the second of four) of every subject with a known sex, in one contrast."""
    cohort = brain_cohort(study).with_known_sex()
    table = cohort.table[cohort.table.contrast == contrast]
    middle = table.groupby("subject").cumcount() == 1
    rows = table.index[middle].to_numpy()
    return cohort.load(rows), cohort.table.iloc[rows].reset_index(drop=True)
