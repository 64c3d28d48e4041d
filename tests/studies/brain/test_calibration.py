"""Calibration sets of known sex."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.models.solvers import ddim
from studies.brain.anatomy import measure
from studies.brain.calibration import denoise_again, estimators, known_sex_slices
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
    extent = measure(pairs.images.numpy()).extent_mm.to_numpy()
    ratio = extent[1::2] / extent[::2]
    assert np.log(ratio) == pytest.approx(0.090, abs=0.02)  # the rule of the phantom


class Perfect:
    """A generator whose denoiser knows the clean latents, on images that are their own latents."""

    alphas_cumprod = torch.linspace(0.999, 0.005, 1000, dtype=torch.float64)
    prediction_type = "epsilon"
    latent_shape, vae_scale_factor, device = (1, 4, 4), 1, "cpu"

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


def read_set(kind: str, sensitivity: float, specificity: float, count: int, seed: int):
    rng = np.random.default_rng(seed)
    female = np.arange(count) // 2 % 2 == 0
    right = rng.random(count) < np.where(female, sensitivity, specificity)
    read = np.where(right, female, ~female)
    p = np.where(read, rng.uniform(0.55, 0.95, count), rng.uniform(0.05, 0.45, count))
    subject = [f"{kind}-{place}" for place in range(count)]
    sex = np.where(female, "F", "M")
    return pd.DataFrame({"set": kind, "subject": subject, "sex": sex, "heldout": p})


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    sets = [read_set("denoised", 0.80, 0.90, 1200, 1), read_set("test", 0.95, 0.80, 800, 2)]
    return estimators(pd.concat(sets), repeats=12, replicates=30)


def row(table: pd.DataFrame, method: str, errors_from: str, share: float) -> pd.Series:
    rows = table[(table.method == method) & (table.errors_from == errors_from)]
    return rows[np.isclose(rows["share"], share)].iloc[0]


@pytest.mark.parametrize("share", [0.16, 0.458])
def test_the_correction_is_right_where_its_assumption_holds_and_biased_where_it_fails(table, share):
    good = row(table, "Rogan-Gladen", "the same kind of image", share)
    assert good["mean"] == pytest.approx(share, abs=0.05)
    bad = row(table, "Rogan-Gladen", "test slices", share)
    raw = 0.80 * share + 0.10 * (1 - share)
    assert bad["mean"] == pytest.approx((raw + 0.80 - 1) / 0.75, abs=0.05)


@pytest.mark.parametrize("share", [0.16, 0.458])
def test_prediction_powered_inference_needs_no_assumption_and_is_narrower_than_labels_alone(
    table, share
):
    found = row(table, "prediction-powered", "200 labels", share)
    assert found["mean"] == pytest.approx(share, abs=0.03)
    assert found.coverage >= 0.75
    assert found.width < row(table, "labels alone", "200 labels", share).width
