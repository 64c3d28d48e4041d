"""The tables behind figures and sentences of the notebooks, against counts by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.models.generator import Generator, alphas_cumprod
from studies.brain import figures
from studies.brain.arms import Plan, sample
from studies.brain.data import EVALUATION_PROMPTS, BrainSettings, sampling


def slices():
    """Ten slices of five people: the classifiers say 0.9 to every woman but one slice, the
    anatomical measurement misses one slice.
    """
    rng = np.random.default_rng(0)
    sex = np.repeat(["F", "F", "M", "M", "M"], 2)
    right = np.where(sex == "F", 0.9, 0.1)
    standard = right.copy()
    standard[0] = 0.2
    anatomy = right.copy()
    anatomy[9] = np.nan
    return pd.DataFrame(
        {
            "subject": np.repeat(list("abcde"), 2),
            "sex": sex,
            "standard": standard,
            "robust": right,
            "heldout": rng.random(10),
            "anatomy": anatomy,
        }
    )


def test_accuracies_are_counts_by_sex():
    found = figures.accuracy_table(slices(), seed=0, replicates=50).set_index(["evaluator", "what"])
    assert (
        found.value["standard tuning classifier", "sensitivity"] == 0.75
        and found.value["standard tuning classifier", "specificity"] == 1.0
    )
    assert found.n["anatomical measurement", "specificity"] == 5, (
        "a slice without a reading is not counted"
    )
    assert (found.value_low <= found.value).all() and (found.value <= found.value_high).all()
    assert found.value_low["standard tuning classifier", "sensitivity"] == 0.5, (
        "the interval draws people, so it reaches woman a alone"
    )


def test_cost_counts_calls_an_image():
    """Two steps of 32 images, 8 sampling steps, 2 of them replayed; the frozen model sampled in the
    first step alone.
    """
    steps = pd.DataFrame(
        {
            "arm": "transport-robust",
            "forward": [32 * 10] * 2,
            "backward": [32 * 2] * 2,
            "frozen": [32 * 8, 0],
        }
    )
    [row] = figures.cost_table(steps, 8).itertuples()
    assert (row.sampling, row.replay, row.frozen, row.calls, row.published) == (8, 6, 4, 18, 48)
    assert row.ratio == pytest.approx(18 / 48)


class Sure:
    """A model that takes everything for one image, 0.5 all over, and says so as noise or as
    velocity.
    """

    def __init__(self, prediction_type):
        self.prediction_type, self.alphas_cumprod = prediction_type, alphas_cumprod()

    device, latent_shape, sample = "cpu", (1, 4, 4), Generator.sample

    def encode_prompts(self, texts):
        return torch.zeros(len(texts), 1, 1)

    def noise(self, seed, indices):
        return torch.stack(
            [
                torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(seed + i))
                for i in indices
            ]
        )

    def predict_noise(self, latents, timestep, prompt_embeds, guidance_scale):
        signal = float(self.alphas_cumprod[timestep])
        noise = (latents - signal**0.5 * 0.5) / (1 - signal) ** 0.5
        return (
            noise
            if self.prediction_type == "epsilon"
            else signal**0.5 * noise - (1 - signal) ** 0.5 * 0.5
        )

    def decode(self, latents):
        return latents


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_sampling_asks_what_the_model_predicts(kind):
    model, settings = Sure(kind), BrainSettings(sampling_steps=4, batch_size=3)
    images = sample(model, sampling(settings), Plan(EVALUATION_PROMPTS, 5, 0))
    assert torch.equal(images, torch.full((5, 1, 4, 4), 191, dtype=torch.uint8))
    noise = model.noise(0, [0])
    for _, image in figures.denoising_path(model, settings, noise, ["one"]):
        torch.testing.assert_close(image, torch.full_like(image, 0.5), atol=1e-3, rtol=0)
    assert (
        figures.solver_errors(model, settings, noise, ["one"], [2, 4], reference=6).distance.max()
        < 1e-3
    )


def test_saliency_is_the_gradient_and_leaves_nothing_behind():
    weights = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.zeros(3, 1, 8, 8)
    found = figures.saliency(
        lambda x: (x * weights).sum((1, 2, 3)) ** 2 / 2 + (x * weights).sum((1, 2, 3)), images
    )
    assert torch.allclose(found, weights.expand_as(found)) and not images.requires_grad


def test_disturbing_is_repeatable_stays_in_range_and_keeps_the_mean():
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.6
    noisy = figures.disturbed(images, "noise", 0.1)
    assert torch.equal(noisy, figures.disturbed(images, "noise", 0.1)) and noisy.abs().max() <= 1
    assert float((noisy - images).std()) == pytest.approx(0.1, rel=0.1)
    blurred = figures.disturbed(images, "blur", 1.5)
    assert blurred.std() < 0.5 * images.std() and float(blurred.mean()) == pytest.approx(
        float(images.mean()), abs=0.01
    )
