from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fairlib.errors import DataError
from fairlib.io import read_tensors, write_tensors
from fairlib.models.controlnet import build_controlnet, controlled_noise, fit_controlnet
from fairlib.models.generator import add_noise, alphas_cumprod, build_denoiser
from fairlib.models.training import FitSettings, Trainer, rows_of_step
from fairlib.rng import Stream, torch_rng

SETTINGS = FitSettings(6, 4, 1e-3, warmup=2, ema_decay=0.9, seed=5)


@pytest.fixture(scope="module")
def task():
    """Latents that are the control image, four times coarser: only the ControlNet can know them."""
    chance = torch.Generator().manual_seed(0)
    control = (
        torch.randint(0, 4, (12, 3, 8, 8), generator=chance)
        .float()
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)
        / 3
    )
    latents = 2 * control[:, [0, 1, 2, 0], ::4, ::4] - 1
    return (
        latents,
        control,
        torch.randn(2, 5, 32, generator=chance),
        torch.arange(12) % 2,
        torch.zeros(1, 5, 32),
    )


def networks():
    torch.manual_seed(0)
    denoiser = build_denoiser(channels=(16, 32), text_width=32)
    return denoiser, build_controlnet(denoiser)


def fitted(task, settings=SETTINGS, stop=None, trainer=None, denoiser=None, weights=None):
    if trainer is None:
        denoiser, controlnet = networks()
        trainer = Trainer(controlnet, settings)
    losses = []
    for state in fit_controlnet(
        denoiser, trainer.module, *task, settings, weights=weights, trainer=trainer
    ):
        losses.append(state.loss)
        if state.step == stop:
            break
    return trainer, losses


def test_only_the_controlnet_learns(task):
    denoiser, controlnet = networks()
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    trainer = Trainer(controlnet, SETTINGS)
    fitted(task, trainer=trainer, denoiser=denoiser)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert all(block.weight.any() for block in controlnet.controlnet_down_blocks)


def test_the_loss_falls_where_the_mask_tells_the_image(task):
    _, losses = fitted(task, FitSettings(30, 12, 5e-3, warmup=2))
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:3])


@pytest.mark.parametrize("weighted", [False, True])
def test_a_resumed_fit_ends_with_the_same_bits(task, tmp_path, weighted):
    weights = np.arange(1.0, 13) if weighted else None
    whole = fitted(task, weights=weights)[0].to_tensors()
    write_tensors(
        tmp_path / "state.safetensors", fitted(task, stop=3, weights=weights)[0].to_tensors()
    )
    torch.manual_seed(99)
    denoiser = networks()[0]
    again = Trainer(build_controlnet(denoiser), SETTINGS)
    again.from_tensors(read_tensors(tmp_path / "state.safetensors"))
    resumed = fitted(task, trainer=again, denoiser=denoiser, weights=weights)[0].to_tensors()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_what_is_predicted_are_those_of_the_scheduler(task, kind, power):
    """The loss of the first step, by hand; of Stable Diffusion's noise, and of another."""
    latents, control, embeds, rows_of, null = task
    alphas = alphas_cumprod().float() ** power
    scheduler = SimpleNamespace(alphas_cumprod=alphas, config=SimpleNamespace(prediction_type=kind))
    found = next(
        fit_controlnet(*networks(), *task, SETTINGS, dropout=0.0, scheduler=scheduler)
    ).loss
    rows = rows_of_step(SETTINGS, 0, 12)
    _, time, noise = add_noise(latents[rows], torch_rng(SETTINGS.seed, Stream.CONTROLNET, 0))
    signal = alphas[time].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents[rows] + (1 - signal).sqrt() * noise
    wanted = (
        noise if kind == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * latents[rows]
    )
    with torch.no_grad():
        predicted = controlled_noise(*networks(), noisy, time, embeds[rows_of[rows]], control[rows])
    assert found == pytest.approx(float((predicted - wanted).square().mean()), rel=1e-4)


def test_parts_of_different_length_are_refused(task):
    latents, control, *rest = task
    with pytest.raises(DataError, match="'control': 11"):
        next(fit_controlnet(*networks(), latents, control[:11], *rest, SETTINGS))
