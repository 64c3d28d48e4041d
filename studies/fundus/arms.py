"""The arms: fine-tunings with the same start, batches, time steps and noises in a seed, and what
each generates.

What an arm does differently is one function: the weights of its loss, or, for "balanced", the rows
that its batches are drawn from. Images of all arms of a seed start from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from fairlib.errors import SettingsError
from fairlib.io import read_json, read_tensors, to_bytes, to_images, write_bytes, write_tensors
from fairlib.methods.finetuning import (
    FinetuneSettings,
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
from fairlib.methods.perturbation import FairBayesianPerturbation, PerturbationSettings, RandomSigma
from fairlib.models.generator import Generator
from fairlib.rng import numpy_rng
from studies.engine import StudyStream
from studies.engine.images import (
    Images,
    Sampling,
    encode,
    load_generator,
    load_images,
    save_images,
)
from studies.engine.recipe import load_latents
from studies.engine.stage import Artifact, Progress, in_blocks, stage
from studies.engine.study import Arm
from studies.fundus.data import (
    BASE,
    EVERYONE,
    REAL,
    UNTUNED,
    FundusSettings,
    Vocabulary,
    subjects,
)

SAVE = 40  # steps between two saves
NOISE, PREVIEW = 9000, 8999  # noises of seed 0; noises of images to look at
SIDE = 128
Form, Sigma = Literal["released", "repaired"], type[FairBayesianPerturbation | RandomSigma]
Sizes = tuple[int, ...]  # groups of each attribute
Weigh = Callable[[np.ndarray, Sizes, int, int], SampleWeights]
Rows = Callable[[np.ndarray, tuple[str, ...], int], np.ndarray]


# ---- what an arm does differently: (groups [N, A] of the training set, sizes, window, seed) ->
# weights


def plain(groups: np.ndarray, sizes: Sizes, window: int, seed: int) -> SampleWeights:
    """Weigh every patient the same."""
    return Uniform(sizes)


def inverse(groups: np.ndarray, sizes: Sizes, window: int, seed: int) -> SampleWeights:
    """Weigh by inverse frequency over the attributes."""
    return InverseFrequency(groups, sizes)


def dro(groups: np.ndarray, sizes: Sizes, window: int, seed: int) -> SampleWeights:
    """Weigh by group distributionally robust optimisation over the attributes."""
    return GroupDRO(groups, sizes)


def noisy(
    kind: Sigma, form: Form, groups: np.ndarray, sizes: Sizes, window: int, seed: int
) -> SampleWeights:
    """Weigh by noise, whose standard deviation `kind` chooses."""
    return kind(sizes, PerturbationSettings(form, window=window, seed=seed))


def each_once(groups: np.ndarray, names: tuple[str, ...], seed: int) -> np.ndarray:
    """Draw batches from every row once."""
    return np.arange(len(groups))


def even_groups(groups: np.ndarray, names: tuple[str, ...], seed: int) -> np.ndarray:
    """Draw batches from as many rows, as many of each group of the first attribute (such as race):
    within a group the counts differ by one at most. Raises `SettingsError` when one is missing.
    """
    rng = numpy_rng(seed, StudyStream.EVEN_ROWS)
    places = np.array_split(np.arange(len(groups)), len(names))
    of_group = [rng.permutation(np.flatnonzero(groups[:, 0] == code)) for code in range(len(names))]
    missing = [name for name, rows in zip(names, of_group, strict=True) if not len(rows)]
    if missing:
        raise SettingsError(
            f"arm 'balanced' draws {', '.join(names)} alike, but no {missing[0]} patient is among "
            f"the {len(groups)} of training; give more of them"
        )
    pairs = zip(of_group, places, strict=True)
    return np.concatenate([np.resize(rows, len(place)) for rows, place in pairs])


@dataclass(frozen=True)
class Tuning:
    """One way of fine-tuning. weigh: the weights of the loss; rows: what batches are drawn from."""

    weigh: Weigh
    says: str
    rows: Rows = each_once


BAYES = FairBayesianPerturbation
TUNINGS = {
    "plain": Tuning(plain, "plain fine-tuning"),
    "released": Tuning(partial(noisy, BAYES, "released"), "Fair Bayesian Perturbation as released"),
    "repaired": Tuning(partial(noisy, BAYES, "repaired"), "the same, weights never negative"),
    "random": Tuning(partial(noisy, RandomSigma, "released"), "released form, random sigma"),
    "random-repaired": Tuning(partial(noisy, RandomSigma, "repaired"), "repaired, random sigma"),
    "inverse": Tuning(inverse, "inverse frequency over the attributes"),
    "dro": Tuning(dro, "group DRO over the attributes"),
    "balanced": Tuning(plain, "no weights; as many rows of each race", even_groups),
}


# ---- generators, and what they are shown


def fundus_generator(settings: FundusSettings, arm: str = BASE) -> Artifact[Generator]:
    """The generator before fine-tuning, or that of reference "everyone"."""
    folder = settings.everyone if arm == EVERYONE else settings.weights
    return Artifact.weights(folder, load_generator)


def unfit(settings: FundusSettings) -> str | None:
    """Why a generator cannot learn the images of a cohort; None where it can."""
    cohort, folders = settings.cohort, (settings.weights, settings.everyone)
    of_book = {FundusSettings.weights, FundusSettings.everyone}.intersection(folders)
    if of_book and not settings.vocabulary.has_disc:
        words = "give others as weights and everyone, or '' for no everyone"
        return f"{' and '.join(sorted(of_book))}: made for fundus images, not {cohort}; {words}"
    config, channels = Path(folders[0]) / "vae" / "config.json", settings.vocabulary.channels
    if channels > 1 and config.is_file() and read_json(config)["out_channels"] != channels:
        return f"{cohort} is in colour and {folders[0]} makes grey images; give other weights"
    return None


@stage(load=load_latents, verify=False)
def encode_images(
    out: Path, progress: Progress, generator: Artifact[Generator], given: Artifact[Images]
) -> None:
    """Encode all images of a part."""
    loaded, blocks = generator.load(), given.load().stored.split(100)
    shown = progress.track(blocks, len(blocks), "latents")
    latents = [encode(loaded, to_images(block)) for block in shown]
    write_tensors(out / "latents.safetensors", {"latents": torch.cat(latents)})


@dataclass(frozen=True)
class Shown:
    """What every fine-tuning from one generator is shown: patients to train on, and held-out ones
    as a probe (`per_group` of every group, at `times` noise levels).
    """

    generator: Artifact[Generator]
    train: Artifact[Images]
    held_out: Artifact[Images]
    held_out_latents: Artifact[Tensor]
    vocabulary: Vocabulary
    per_group: int
    times: int
    seed: int

    def prompts(self) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Embeddings [M, L, D] of the distinct prompts of both, and the row of each patient's."""
        texts = [self.train.load().table["prompt"], self.held_out.load().table["prompt"]]
        rows = {text: row for row, text in enumerate(dict.fromkeys([*texts[0], *texts[1]]))}
        trained, held_out = (np.array([rows[text] for text in part]) for part in texts)
        return self.generator.load().encode_prompts(list(rows)), trained, held_out

    def probe(self, rows: np.ndarray) -> Probe:
        """The probe; `rows`: of its patients' prompts."""
        groups = self.vocabulary.codes(self.held_out.load().table)
        chosen = (self.vocabulary.sizes, self.per_group, self.times)
        return choose_probe(self.held_out_latents.load(), rows, groups, *chosen, seed=self.seed)


def shown(settings: FundusSettings, arm: str = BASE) -> Shown:
    """What a generator before fine-tuning is shown."""
    generator, held_out = fundus_generator(settings, arm), subjects(settings, "probe")
    latents, train = encode_images(generator, held_out), subjects(settings, "train")
    probe = (settings.probe_per_group, settings.probe_times, settings.split_seed)
    return Shown(generator, train, held_out, latents, settings.vocabulary, *probe)


# ---- fine-tuning


@stage()
def fine_tune(
    out: Path,
    progress: Progress,
    given: Shown,
    latents: Artifact[Tensor],
    weigh: Weigh,
    rows: Rows,
    settings: FinetuneSettings,
    window: int,
) -> None:
    """Fine-tune once: `denoiser.safetensors` (the averaged weights), `history.csv`, `probe.csv`."""
    loop = tune(given, latents, weigh, rows, settings, window, out / "working")
    label = f"fine-tuning, seed {settings.seed}"
    *_, (state, history) = progress.track(loop, settings.steps, label)
    state.use_average()
    write_tensors(out / "denoiser.safetensors", state.module.state_dict())
    _write(out / "history.csv", history)
    _write(out / "probe.csv", [probe_row(given, state.module, settings.batch_size)])


def tune(
    given: Shown,
    latents: Artifact[Tensor],
    weigh: Weigh,
    rows: Rows,
    settings: FinetuneSettings,
    window: int,
    working: Path | None = None,
) -> Iterator[tuple[FinetuneState, list[dict]]]:
    """Fine-tune a copy of the generator, yielding (state, rows of the history so far) after each
    step.

    Into `working` it saves every `SAVE` steps, and from there it goes on; the last step is always
    saved.
    """
    generator, words = given.generator.load().frozen_copy(), given.vocabulary
    groups, seed = words.codes(given.train.load().table), settings.seed
    weights, chosen = weigh(groups, words.sizes, window, seed), rows(groups, words.first[1], seed)
    embeds, prompts, held_out = given.prompts()
    state, history = FinetuneState(generator.denoiser, weights, settings), []
    saved = None if working is None else (working / "history.csv", working / "state.safetensors")
    if saved and saved[1].is_file():
        state.from_tensors(read_tensors(saved[1]))
        history = pd.read_csv(saved[0]).iloc[: state.step].to_dict("records")
        if state.step == settings.steps:
            yield state, history
    for done in finetune(
        generator.denoiser,
        latents.load()[chosen],
        embeds,
        prompts[chosen],
        groups[chosen],
        weights,
        settings,
        null=generator.encode_prompts([""]),
        scheduler=generator.pipeline.scheduler,
        state=state,
        probe=given.probe(held_out),
    ):
        history.append(log_row(done, words))
        if saved and (done.step % SAVE == 0 or done.step == settings.steps):
            _write(saved[0], history)
            write_tensors(saved[1], state.to_tensors())
        yield state, history


def log_row(done: FinetuneStep, vocabulary: Vocabulary) -> dict:
    """One row of `history.csv`: step, loss (weighted), plain_loss, gap (of the batch), weight_min,
    weight_mean, share_negative, sigma_<group>, and where the probe was measured probe_loss (mean
    over races, or what is the first attribute), probe_gap and probe_<group>.
    """
    names = ("step", "loss", "plain_loss", "gap", "weight_min", "weight_mean", "share_negative")
    groups = vocabulary.groups
    sigma = np.full(len(groups), np.nan) if done.sigma is None else done.sigma.numpy()
    row = {name: getattr(done, name) for name in names}
    row |= {f"sigma_{name}": value for name, value in zip(groups, sigma, strict=True)}
    return row | _of_probe(done.probe_losses, vocabulary)


@stage()
def measure_probe(out: Path, progress: Progress, given: Shown, batch_size: int) -> None:
    """Measure the probe on a generator as it is: `probe.csv`."""
    _write(out / "probe.csv", [probe_row(given, given.generator.load().denoiser, batch_size)])


def probe_row(given: Shown, denoiser: torch.nn.Module, batch_size: int) -> dict:
    """Losses of a denoiser on the probe: probe_loss, probe_gap, probe_<group>."""
    (embeds, _, rows), words = given.prompts(), given.vocabulary
    probe = given.probe(rows)
    kind = given.generator.load().prediction_type
    losses = probe_losses(denoiser, probe, embeds, kind, batch_size)
    return _of_probe(group_means(losses, probe.group_codes, words.sizes), words)


def tuned(settings: FundusSettings, arm: str, seed: int) -> Artifact[Path]:
    """The folder of one fine-tuning (see `fine_tune`), or of an untuned reference's probe."""
    given = shown(settings, arm)
    if arm in UNTUNED:
        return measure_probe(given, settings.batch_size)
    way, latents = TUNINGS[arm], encode_images(given.generator, given.train)
    return fine_tune(given, latents, way.weigh, way.rows, settings.finetune(seed), settings.window)


def _of_probe(means: Tensor | None, vocabulary: Vocabulary) -> dict:
    sizes, groups = vocabulary.sizes, vocabulary.groups
    losses = torch.full((len(groups),), torch.nan, dtype=torch.float64) if means is None else means
    gap = float(attribute_gaps(losses, sizes).sum())
    row = {"probe_loss": float(losses[: sizes[0]].mean()), "probe_gap": gap}
    return row | {f"probe_{name}": float(value) for name, value in zip(groups, losses, strict=True)}


def _write(path: Path, rows: list[dict]) -> None:
    write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())


# ---- images


@stage(load=load_images, verify=False)
def generate(
    out: Path,
    progress: Progress,
    generator: Artifact[Generator],
    tuning: Artifact[Path] | None,
    requested: pd.DataFrame,
    sampling: Sampling,
    noises: int,
    noise: int | None = None,
) -> None:
    """Generate one image for each row of `requested` (column prompt), resumable by batches.

    Image i starts from noise i of the seed `noises`, whatever the arm and the batch, or all from
    the one `noise`. tuning: what changed the generator's denoiser, if anything did.
    """
    loaded, prompts = generator.load(), requested["prompt"].tolist()
    if tuning is not None:
        loaded = loaded.frozen_copy()
        loaded.denoiser.load_state_dict(read_tensors(tuning.load() / "denoiser.safetensors"))

    def make(rows: range) -> dict[str, Tensor]:
        start = loaded.noise(noises, list(rows) if noise is None else [noise] * len(rows))
        images = sample(loaded, [prompts[row] for row in rows], start, sampling)
        return {"images": to_bytes(images)}

    tensors = in_blocks(out, progress, len(prompts), sampling.batch_size, "images", make)
    save_images(out, tensors["images"], requested)


@torch.no_grad()
def sample(generator: Generator, prompts: list[str], noise: Tensor, sampling: Sampling) -> Tensor:
    """Sample images [N, C, 128, 128] in [-1, 1] on the CPU."""
    steps, scale = sampling.steps, sampling.guidance_scale
    images = generator.sample(prompts, noise=noise, steps=steps, guidance_scale=scale)
    if images.shape[-1] != SIDE:
        images = F.interpolate(images, (SIDE, SIDE), mode="area")
    return (images.mean(1, keepdim=True) if sampling.channels == 1 else images).cpu()


def generated(
    arm: str,
    settings: FundusSettings,
    seed: int,
    requested: pd.DataFrame | None = None,
    noise: int | None = None,
) -> Artifact[Images]:
    """Images of an arm, one for each requested patient; or for each row of `requested`, all from
    the one `noise`, to look at.
    """
    table = subjects(settings, "requested").load().table if requested is None else requested
    tuning = None if arm in UNTUNED else tuned(settings, arm, seed)
    how = (settings.sampling_steps, settings.guidance_scale, settings.sample_batch)
    sampling = Sampling(*how, settings.vocabulary.channels)
    noises = NOISE + seed if noise is None else PREVIEW
    return generate(fundus_generator(settings, arm), tuning, table, sampling, noises, noise)


def real(settings: FundusSettings, seed: int) -> Artifact[Images]:
    """The requested patients' own images."""
    return subjects(settings, "requested")


ARMS: dict[str, Arm[FundusSettings]] = {
    REAL: Arm(real, "real images of the requested patients", "nowhere"),
    BASE: Arm(partial(generated, BASE), "the generator before fine-tuning", "nowhere"),
    EVERYONE: Arm(partial(generated, EVERYONE), "a generator trained on all patients", "training"),
    **{arm: Arm(partial(generated, arm), way.says, refused=unfit) for arm, way in TUNINGS.items()},
}
