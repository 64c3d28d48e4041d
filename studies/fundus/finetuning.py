"""Every arm's fine-tuning: the same start, batches, time steps and noises in a seed, and weights of
the loss that differ.

One arm, "balanced", weighs nobody and deals other batches instead.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from fairlib.cohorts.attributes import ATTRIBUTES, group_names
from fairlib.errors import SettingsError
from fairlib.io import read_tensors, write_bytes, write_tensors
from fairlib.methods.finetuning import (
    FinetuneState,
    FinetuneStep,
    Probe,
    choose_probe,
    finetune,
    probe_losses,
)
from fairlib.methods.group_weights import (
    GroupDRO,
    InverseFrequency,
    SampleWeights,
    Uniform,
    attribute_gaps,
    group_means,
)
from fairlib.methods.perturbation import (
    FairBayesianPerturbation,
    PerturbationSettings,
    RandomSigma,
)
from fairlib.models.generator import Generator
from fairlib.settings import unknown_key
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator
from studies.engine.stage import run_stage
from studies.fundus.cohorts import fundi, part_digest
from studies.fundus.settings import ARMS, UNTUNED, FundusStudy, untuned

SIZES = tuple(len(values) for values in ATTRIBUTES.values())
GROUPS = tuple(value for _, value in group_names())
SAVE = 40  # steps between two saves


@lru_cache(maxsize=2)
def fundus_generator(study: FundusStudy) -> Generator:
    """The generator before fine-tuning, on the accelerator if there is one."""
    return Generator.load(study.weights, accelerator())


def generator_digest(study: FundusStudy) -> str:
    """What the generator is: the hashes in its manifest, or its name where it has none."""
    folder = Path(study.weights)
    return content_digest(folder) if (folder / "manifest.json").is_file() else study.weights


def latents(study: FundusStudy, part: str) -> Tensor:
    """Scaled latents [N, 4, h, w] of the pictures of a part."""

    def build(out: Path, progress) -> None:
        generator, pictures = fundus_generator(study), fundi(study, part).images
        blocks = pictures.split(100)
        found = [
            encode(generator, block)
            for block in progress.track(blocks, len(blocks), f"latents, {part}")
        ]
        write_tensors(out / "latents.safetensors", {"latents": torch.cat(found)})

    folder = run_stage(
        None,
        f"fundus-latents-{part}",
        {},
        [generator_digest(study), part_digest(study, part)],
        build,
        verify=False,
    )
    return read_tensors(folder / "latents.safetensors")["latents"]


@torch.no_grad()
def encode(generator: Generator, images: Tensor) -> Tensor:
    """Scaled latents on the CPU of pictures uint8 [N, 1, H, W], on the pipeline's own grid and in
    its number of channels.
    """
    vae = generator.pipeline.vae
    pictures = (images.float() / 127.5 - 1).to(generator.device)
    size = generator.latent_shape[-1] * generator.pipeline.vae_scale_factor
    if pictures.shape[-1] != size:
        pictures = F.interpolate(pictures, (size, size), mode="bilinear")
    pictures = pictures.expand(-1, vae.config.in_channels, -1, -1)
    return (vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor).cpu()


def weights_of(study: FundusStudy, arm: str, seed: int, codes) -> SampleWeights:
    """The weights of one arm; `codes` [N, 3] are the groups of the training set. Raises
    `SettingsError` on an unknown arm.
    """
    if arm not in ARMS:
        raise SettingsError(unknown_key(arm, list(ARMS), "the arms"))
    if arm in ("plain", "balanced"):
        return Uniform(SIZES)
    if arm == "inverse":
        return InverseFrequency(codes, SIZES)
    if arm == "dro":
        return GroupDRO(codes, SIZES)
    form = "repaired" if arm.endswith("repaired") else "released"
    kind = RandomSigma if arm.startswith("random") else FairBayesianPerturbation
    return kind(SIZES, PerturbationSettings(form, window=study.window, seed=seed))


def training_rows(arm: str, groups: np.ndarray, seed: int) -> np.ndarray:
    """Rows [N] that an arm's batches are dealt from; `groups` [N, 3], race first. Everybody once,
    or for "balanced" as many rows,
    a third of each race: within a race the counts differ by one at most.
    """
    if arm != "balanced":
        return np.arange(len(groups))
    rng, places = (
        np.random.default_rng([seed, 43]),
        np.array_split(np.arange(len(groups)), SIZES[0]),
    )
    of_race = [rng.permutation(np.flatnonzero(groups[:, 0] == race)) for race in range(SIZES[0])]
    missing = [GROUPS[race] for race, rows in enumerate(of_race) if not len(rows)]
    if missing:
        raise SettingsError(
            f"arm 'balanced' deals every race alike, but nobody of race {missing[0]} is among the "
            f"{len(groups)} "
            "training people; give more of them"
        )
    return np.concatenate(
        [np.resize(rows, len(place)) for rows, place in zip(of_race, places, strict=True)]
    )


def tuned(study: FundusStudy, arm: str, seed: int) -> Path:
    """The stage folder of one fine-tuning: `denoiser.safetensors` (the averaged weights),
    `history.csv`, `probe.csv`.
    """
    chosen = {
        "arm": arm,
        "window": study.window,
        "probe": [study.probe_per_group, study.probe_times],
        **vars(study.finetune(seed)),
    }
    inputs = [generator_digest(study), part_digest(study, "train"), part_digest(study, "probe")]
    # an unknown arm is refused before any work
    weights_of(study, arm, seed, fundi(study, "train").groups())
    return run_stage(
        None,
        f"fundus-{arm}",
        chosen,
        inputs,
        lambda out, progress: _tune(study, arm, seed, out, progress),
    )


def _tune(study: FundusStudy, arm: str, seed: int, out: Path, progress) -> None:
    *_, (state, rows) = tuning(study, arm, seed, out / "working", progress)
    state.use_average()
    write_tensors(out / "denoiser.safetensors", state.module.state_dict())
    _write(out / "history.csv", rows)
    _write(out / "probe.csv", [_look(study, state.module)])


def tuning(study: FundusStudy, arm: str, seed: int, working: Path | None = None, progress=None):
    """Fine-tune a copy of the generator, yielding (state, rows of the diary so far) after each
    step.

    Into `working` it saves every `SAVE` steps, and from there it goes on; the last step is always
    saved.
    """
    generator, train, settings = (
        fundus_generator(study).frozen_copy(),
        fundi(study, "train"),
        study.finetune(seed),
    )
    weights = weights_of(study, arm, seed, train.groups())
    state, rows, dealt = (
        FinetuneState(generator.denoiser, weights, settings),
        [],
        training_rows(arm, train.groups(), seed),
    )
    paths = None if working is None else (working / "history.csv", working / "state.safetensors")
    if paths and paths[1].is_file():
        state.from_tensors(read_tensors(paths[1]))
        rows = pd.read_csv(paths[0]).iloc[: state.step].to_dict("records")
        if state.step == settings.steps:
            yield state, rows
    probe, embeds = _probing(study)
    loop = finetune(
        generator.denoiser,
        latents(study, "train")[dealt],
        embeds,
        _rows(study, "train")[dealt],
        train.groups()[dealt],
        weights,
        settings,
        null=generator.encode_prompts([""]),
        scheduler=generator.pipeline.scheduler,
        state=state,
        probe=probe,
    )
    left = settings.steps - state.step
    for done in (
        loop if progress is None else progress.track(loop, left, f"fine-tuning {arm}, seed {seed}")
    ):
        rows.append(diary(done))
        if paths and (done.step % SAVE == 0 or done.step == settings.steps):
            _write(paths[0], rows)
            write_tensors(paths[1], state.to_tensors())
        yield state, rows


def diary(done: FinetuneStep) -> dict:
    """One row of `history.csv`: step, loss (weighted), plain_loss, gap (of the batch), weight_min,
    weight_mean, share_negative,

    sigma_<group>, and where the probe was looked at probe_loss (mean over races), probe_gap and
    probe_<group>.
    """
    row = {
        "step": done.step,
        "loss": done.loss,
        "plain_loss": done.plain_loss,
        "gap": done.gap,
        "weight_min": done.weight_min,
        "weight_mean": done.weight_mean,
        "share_negative": done.share_negative,
    }
    sigma = np.full(len(GROUPS), np.nan) if done.sigma is None else done.sigma.numpy()
    row |= {f"sigma_{name}": value for name, value in zip(GROUPS, sigma, strict=True)}
    return row | _of_probe(done.probe_losses)


def history(study: FundusStudy, arm: str, seed: int) -> pd.DataFrame:
    """The diary of a fine-tuning; columns of `diary`."""
    return pd.read_csv(tuned(study, arm, seed) / "history.csv")


def final_probe(study: FundusStudy, arm: str, seed: int) -> dict:
    """Losses of the finished, averaged denoiser on the probe: probe_loss, probe_gap, probe_<group>;
    also of rows of `UNTUNED`.
    """
    if arm in UNTUNED:
        start = untuned(study, arm)
        return _look(start, fundus_generator(start).denoiser)
    return pd.read_csv(tuned(study, arm, seed) / "probe.csv").iloc[0].to_dict()


def tuned_generator(study: FundusStudy, arm: str, seed: int) -> Generator:
    """The generator as an arm leaves it; those of `UNTUNED` as they are."""
    if arm in UNTUNED:
        return fundus_generator(untuned(study, arm))
    generator = fundus_generator(study).frozen_copy()
    generator.denoiser.load_state_dict(
        read_tensors(tuned(study, arm, seed) / "denoiser.safetensors")
    )
    return generator


@lru_cache(maxsize=2)
def _words(study: FundusStudy) -> tuple[dict[str, int], Tensor]:
    """The distinct prompts of training people and probe: row of each, and their embeddings [M, L,
    D].
    """
    texts = [*fundi(study, "train").table["prompt"], *fundi(study, "probe").table["prompt"]]
    distinct = list(dict.fromkeys(texts))
    return {text: row for row, text in enumerate(distinct)}, fundus_generator(study).encode_prompts(
        distinct
    )


def _rows(study: FundusStudy, part: str) -> np.ndarray:
    rows, _ = _words(study)
    return np.array([rows[text] for text in fundi(study, part).table["prompt"]])


@lru_cache(maxsize=2)
def _probing(study: FundusStudy) -> tuple[Probe, Tensor]:
    """The probe of held-out people, and the embeddings that its prompt rows count in."""
    pool = fundi(study, "probe")
    probe = choose_probe(
        latents(study, "probe"),
        _rows(study, "probe"),
        pool.groups(),
        SIZES,
        study.probe_per_group,
        study.probe_times,
        seed=study.split_seed,
    )
    return probe, _words(study)[1]


def _look(study: FundusStudy, denoiser) -> dict:
    probe, embeds = _probing(study)
    prediction = fundus_generator(study).pipeline.scheduler.config.prediction_type
    return _of_probe(
        group_means(
            probe_losses(denoiser, probe, embeds, prediction, study.batch_size),
            probe.group_codes,
            SIZES,
        )
    )


def _of_probe(means: Tensor | None) -> dict:
    found = torch.full((len(GROUPS),), torch.nan, dtype=torch.float64) if means is None else means
    row = {
        "probe_loss": float(found[: SIZES[0]].mean()),
        "probe_gap": float(attribute_gaps(found, SIZES).sum()),
    }
    return row | {f"probe_{name}": float(value) for name, value in zip(GROUPS, found, strict=True)}


def _write(path: Path, rows: list[dict]) -> None:
    write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())
