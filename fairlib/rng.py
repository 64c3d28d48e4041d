"""Random streams: every draw is a function of a seed, the stream that it belongs to, and counters.

Two users of one stream and seed draw the same numbers, so each use has a stream of its own. The
numbers are part of every result: never give one to another use, and take a free one for a new use.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@unique
class Stream(IntEnum):
    """Who draws what from the stream; the counters stand in brackets."""

    PROMPT_ORDER = 0  # tuning: the order of prompts [round]
    NOISE_ORDER = 1  # tuning: the order of the base cache's noises [pass, prompt]
    REPLAY_STEPS = 2  # tuning: which sampling steps carry gradient [step]
    CLASS_DRAWS = 3  # tuning: classes behind the targets of more than two groups [step, first row]
    CLASSIFIER = 5  # augmentation and dropout of a classifier's training [step]
    CLASSIFIER_2 = 6  # the same of a second classifier, which differs at one seed [step]
    ROW_ORDER = 7  # every training: the order of rows [epoch]
    NOISE = 11  # starting latents of the generator [index of the image]
    WEIGHTED_ROWS = 12  # every training: rows drawn in proportion to weights [step]
    CONTROLNET = 13  # ControlNet training: noise, time steps, dropped prompts [step]
    COPIES = 14  # rows that requests for synthetic hearts repeat
    COMBINATIONS = 15  # attributes and masks of requests for new combinations
    TEXT_TOWER = 16  # training of a text tower: shifts of images, prompts to read [step]
    CLASSIFIER_3 = 17  # augmentation and dropout of a third classifier [step]
    FINETUNING = 21  # fine-tuning: noise, time steps, dropped prompts [step]
    WEIGHT_NOISE = 22  # perturbation: noise on the weights of samples [step]
    SIGMA_DRIFT = 23  # perturbation: the drift of sigma [step]
    SIGMA_SEARCH = 24  # perturbation: starting points of the search for sigma [step]
    PROBE_ROWS = 25  # fine-tuning: which samples make the probe
    SIGMA_CANDIDATES = 26  # perturbation without its optimiser: candidates of sigma [step]
    PROBE_NOISE = 27  # fine-tuning: noise of the probe [time step]
    CLASSIFIER_4 = 28  # augmentation and dropout of a fourth classifier [step]
    ARM_IMAGES = 31  # downstream test: which synthetic or extra images an arm takes
    PREVALENCE = 37  # downstream test: which subjects remain at a prevalence
    POLICY_NOISE = 41  # policy gradient: noise of the sampling steps [step]
    KEEPING = 43  # generate and keep: which images are accepted [prompt]
    AUTOENCODER = 51  # autoencoder training: crops, mirroring, noise of the posterior [step]
    CLIP = 52  # CLIP training: shifts of images [step]
    DENOISER = 53  # denoiser training: noise, time steps, dropped prompts [step]
    SEGMENTER = 54  # segmenter training: augmentation [step]
    AUDIT = 61  # audit: bootstrap draws, which reference images are compared


def torch_rng(seed: int, stream: int, *counters: int) -> torch.Generator:
    """A CPU generator of torch that is a function of its arguments.

    Parameters
    ----------
    seed
        Of the run, at least 0.
    stream
        Member of `Stream`, or of an enum of the caller's own with other numbers.
    counters
        Such as the step; other counters give independent numbers.
    """
    import torch

    first, second = derived_seeds(seed, stream, *counters, count=2)
    return torch.Generator().manual_seed(first << 31 ^ second)


def numpy_rng(seed: int, stream: int, *counters: int) -> np.random.Generator:
    """A generator of numpy that is a function of its arguments, which are those of `torch_rng`."""
    return np.random.default_rng([seed, int(stream), *counters])


def derived_seeds(seed: int, stream: int, *counters: int, count: int = 1) -> list[int]:
    """`count` 32-bit seeds for generators of any other kind; arguments as of `torch_rng`."""
    sequence = np.random.SeedSequence([seed, int(stream), *counters])
    return sequence.generate_state(count, np.uint32).tolist()
