"""Calibration sets of known sex."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairlib.io import to_images
from fairlib.models.solvers import ddim
from studies.brain.anatomy import measure
from studies.brain.calibration import denoise_again, known_sex_slices
from studies.brain.phantom import RadiologySettings


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIRLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        settings = RadiologySettings(slices=6, high_grade=0.5, low_grade=0.5, mention=0.0, seed=53)
        return known_sex_slices(settings, (0.0, 1.0)).load()


def test_a_counterfactual_pair_is_one_subject_and_the_woman_is_smaller(pairs):
    table = pairs.table
    assert table.sex.tolist() == ["F", "M"] * 6
    for name in ("subject", "grade", "contrast", "side"):
        assert (table[name][::2].to_numpy() == table[name][1::2].to_numpy()).all()
    extent = measure(to_images(pairs.images).numpy()).extent_mm.to_numpy()
    ratio = extent[1::2] / extent[::2]
    assert np.log(ratio) == pytest.approx(0.090, abs=0.02)  # the rule of the phantom


class Perfect:
    """A generator whose denoiser knows the clean latents, on images that are their own latents."""

    alphas_cumprod = torch.linspace(0.999, 0.005, 1000, dtype=torch.float64)
    prediction_type = "epsilon"

    def __init__(self, clean: torch.Tensor):
        self.clean = clean
        self.pipeline = self
        self.vae = self
        self.config = type("Config", (), {"in_channels": 1, "scaling_factor": 1.0})
        self.dtype = torch.float32
        self.steps: list[int] = []

    def encode(self, images: torch.Tensor):
        return type("Encoded", (), {"latent_dist": type("Latents", (), {"mean": images})})

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        return torch.zeros(len(prompts), 1, 1)

    def predict_noise(self, latents, timestep, embeds, scale):
        self.steps.append(timestep)
        alpha = float(self.alphas_cumprod[timestep])
        return (latents - alpha**0.5 * self.clean) / (1 - alpha) ** 0.5

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def test_denoising_again_with_a_perfect_denoiser_gives_the_image_back():
    clean = torch.rand(3, 1, 4, 4) * 2 - 1
    model = Perfect(clean)
    found = denoise_again(model, clean, ["a"] * 3, 8, 2.0, [1, 0])
    assert torch.allclose(found, clean, atol=1e-4)
    assert tuple(model.steps) == ddim(model.alphas_cumprod, 8).timesteps[3:]
