"""Calibration sets: images of known sex on which an evaluator's errors are counted.

A correction takes error rates from these images to generated ones, and assumes that the evaluator
errs alike on both. Which images those are is a choice, so there are several: synthetic radiology
slices of known sex, as the generator learnt them ("radiology", the primary set); the same after the
generator has noised and denoised them ("denoised"), which gives them its texture; the target
cohort's test slices ("test"). In counterfactual pairs ("pairs") one subject is drawn as female and
as male with the same random numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.cohorts.cohort import Cohort
from fairlib.io import to_bytes, to_images
from fairlib.measures.intervals import Interval
from fairlib.measures.shares import CalibrationSet, corrected_share, em_share, ppi_share
from fairlib.models.generator import Generator
from fairlib.models.solvers import ddim
from fairlib.rng import numpy_rng
from studies.brain.arms import base_model
from studies.brain.data import BrainSettings, cohort, split
from studies.brain.phantom import RadiologySettings, draw_slice
from studies.engine import StudyStream
from studies.engine.images import Images, encode, load_images, save_images
from studies.engine.stage import Artifact, Progress, stage

COLUMNS = ["subject", "sex", "grade", "contrast", "side"]
DENOISED_FROM = 3 / 8  # of the steps of sampling: of eight, those from timestep 624 are done again


@stage(load=load_images)
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
    save_images(out, torch.stack(images), pd.DataFrame(rows)[[*COLUMNS, "caption"]])


@stage(load=load_images)
def denoised_slices(
    out: Path,
    progress: Progress,
    slices: Artifact[Images],
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
        clean = to_images(known.stored[rows]).to(generator.device)
        made = denoise_again(generator, clean, texts, steps, guidance_scale, [seed, start])
        parts.append(to_bytes(made).cpu())
    save_images(out, torch.cat(parts), known.table.iloc[:count])


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
    encoded = encode(generator, images.to(generator.pipeline.vae.dtype))
    latents = encoded.to(generator.device)
    whole = ddim(generator.alphas_cumprod, steps, prediction_type=generator.prediction_type)
    each = {name: values for name, values in vars(whole).items() if name != "name"}
    first = int(DENOISED_FROM * steps)
    rest = replace(whole, **{name: values[first:] for name, values in each.items()})
    alpha = float(generator.alphas_cumprod[rest.timesteps[0]])
    drawn = np.random.default_rng(seed).standard_normal(latents.shape).astype(np.float32)
    noise = torch.from_numpy(drawn).to(latents)
    embeds = generator.encode_prompts(prompts)
    clean = rest.run(
        lambda x, t: generator.predict_noise(x, t, embeds, guidance_scale),
        alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise,
    )
    return generator.decode(clean).clamp(-1, 1)


def calibration_sets(settings: BrainSettings) -> dict[str, Artifact[Images]]:
    """The synthetic calibration sets, half female, of the evaluation prompts' contrasts and
    grades; none for a real cohort, whose test slices are the calibration set.
    """
    if settings.cohort != "phantom":
        return {}
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


def known_images(known: Artifact[Images]) -> tuple[Tensor, list[str]]:
    """Images [N, 1, H, W] in [-1, 1] and their contrasts, for an evaluator to read."""
    found = known.load()
    return found.images, found.table.contrast.tolist()


def test_images(everyone: Artifact[Cohort], split_seed: int) -> tuple[Tensor, list[str]]:
    """The cohort's test slices [N, 1, H, W] in [-1, 1] and their contrasts."""
    test = split(everyone.load(), split_seed)["test"]
    return test.load(), list(test.table.contrast)


def test_table(settings: BrainSettings) -> pd.DataFrame:
    """A row a test slice: subject, sex, grade, contrast, side."""
    test = split(cohort(settings).load(), settings.split_seed)["test"]
    return test.table[COLUMNS].reset_index(drop=True)


# ---- what a correction is worth when its assumption fails: known shares, estimated in three ways

SHARES = (0.16, 0.458)
IMAGES, LABELS = 1000, 200


def estimators(
    calibration: pd.DataFrame, column: str = "heldout", repeats: int = 100, replicates: int = 200
) -> pd.DataFrame:
    """Bias and coverage of each estimator: errors_from (calibration set), method, share, mean,
    coverage, width, repeats. calibration: of one seed, with the sets "denoised" and "test".

    Images of known sex with generated texture are drawn in a known share and read by the held-out
    classifier. Rogan-Gladen and EM take its errors from a calibration set, once from images
    of the same kind and once from the target cohort's test slices, on which it errs otherwise.
    Prediction-powered inference takes 200 labels of the images themselves.
    """
    known = calibration[calibration["set"] == "denoised"]
    female = (known.sex == "F").to_numpy()
    drawn_from, errors_from = np.arange(len(known)) % 2 == 0, np.arange(len(known)) % 2 == 1
    sets = {
        "the same kind of image": _labelled(known[errors_from], column),
        "test slices": _labelled(calibration[calibration["set"] == "test"], column),
    }
    p, rows = known[column].to_numpy(float), []
    for share in SHARES:
        for repeat in range(repeats):
            rng = numpy_rng(StudyStream.PATIENTS, repeat)
            sexes = rng.random(IMAGES) < share
            places = np.array(
                [rng.choice(np.flatnonzero(drawn_from & (female == sex))) for sex in sexes]
            )
            found = _estimates(p[places], sexes, sets, rng, replicates)
            rows += [(*names, share, value) for names, value in found.items()]
    return _summary(pd.DataFrame(rows, columns=["method", "errors_from", "share", "interval"]))


def _labelled(table: pd.DataFrame, column: str) -> CalibrationSet:
    truth, subjects = (table.sex == "F").to_numpy(int), table.subject.to_numpy(str)
    return CalibrationSet(table[column].to_numpy(float), truth, subjects)


Sets = dict[str, CalibrationSet]


def _estimates(
    p: np.ndarray, sexes: np.ndarray, sets: Sets, rng: np.random.Generator, replicates: int
) -> dict[tuple[str, str], Interval]:
    found = {}
    for name, labelled in sets.items():
        found["Rogan-Gladen", name] = corrected_share(p, labelled, rng, replicates)
        found["EM", name] = em_share(p, labelled, rng, replicates)
    labels = sexes[:LABELS].astype(float)
    read = (p > 0.5).astype(float)
    found["prediction-powered", "200 labels"] = ppi_share(labels, read[:LABELS], read[LABELS:])
    found["labels alone", "200 labels"] = ppi_share(labels, np.full(LABELS, 0.5), read[LABELS:])
    return found


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    values = table.interval
    table = table.assign(
        mean=[value.estimate for value in values],
        coverage=[share in value for share, value in zip(table["share"], values, strict=True)],
        width=[value.high - value.low for value in values],
        repeats=1,
    )
    by = ["share", "method", "errors_from"]
    how = {"mean": "mean", "coverage": "mean", "width": "mean", "repeats": "sum"}
    return table.groupby(by, sort=False).agg(how).reset_index()
