from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.cohorts.cardiac import control_image, parse_prompt, prompt_of
from fairlib.errors import DataError, SettingsError
from fairlib.io import read_tensors, write_tensors
from fairlib.methods.control import copies, fit_controlnet, new_combinations
from fairlib.methods.resampling import balancing_weights, rows_of_step
from fairlib.models.controlnet import build_controlnet, controlled_noise
from fairlib.models.generator import add_noise, alphas_cumprod, build_denoiser
from fairlib.models.training import FitSettings, Trainer, generator_for

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


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_the_denoiser_predicts_is_told_by_the_scheduler(task, kind):
    """The loss of the first step, by hand."""
    latents, control, embeds, rows_of, null = task
    scheduler = SimpleNamespace(
        alphas_cumprod=alphas_cumprod().float(), config=SimpleNamespace(prediction_type=kind)
    )
    found = next(
        fit_controlnet(*networks(), *task, SETTINGS, dropout=0.0, scheduler=scheduler)
    ).loss
    rows = rows_of_step(SETTINGS, 0, 12)
    noisy, time, noise = add_noise(latents[rows], generator_for(SETTINGS.seed, 13, 0))
    signal = alphas_cumprod().float()[time].view(-1, 1, 1, 1)
    wanted = (
        noise if kind == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * latents[rows]
    )
    with torch.no_grad():
        predicted = controlled_noise(*networks(), noisy, time, embeds[rows_of[rows]], control[rows])
    assert found == pytest.approx(float((predicted - wanted).square().mean()), rel=1e-4)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    with pytest.raises(SettingsError, match="another noise schedule"):
        next(fit_controlnet(*networks(), *task, SETTINGS, scheduler=scheduler))


def test_parts_of_different_length_are_refused(task):
    latents, control, *rest = task
    with pytest.raises(DataError, match="'control': 11"):
        next(fit_controlnet(*networks(), latents, control[:11], *rest, SETTINGS))


@pytest.fixture(scope="module")
def cohort():
    """Ninety of one kind and ten of another; every mask is constant and names its row."""
    sick = np.arange(100) >= 90
    table = pd.DataFrame(
        {
            "subject": [f"s{i}" for i in range(100)],
            "sex": np.where(sick, "F", "M"),
            "age": np.where(sick, 55, 67),
            "bmi": np.where(sick, 22.0, 31.0),
            "diagnosis": np.where(sick, "heart failure", "healthy"),
        }
    )
    masks = torch.zeros(100, 2, 4, 4, dtype=torch.uint8)
    digits = np.arange(100)
    for cell in range(4):  # the row number in base 4
        masks[:, :, 0, cell] = torch.tensor(digits // 4**cell % 4)[:, None]
    return table, masks


def row_of(control):
    digits = (control[:, 0, 0] * 3).round().long()
    return (digits * 4 ** torch.arange(4)).sum(1)


def test_copies_repeat_real_pairs_by_capped_inverse_frequency(cohort):
    table, masks = cohort
    # of either kind; caps
    for clip, weights in ((0.5, (1 / 90, 1 / 10)), (2, (1 / 90, 1 / 18)), (5, (1 / 90, 1 / 45))):
        requests, control = copies(table, masks, 3000, seed=1, clip=clip)
        real = table.iloc[requests["source"]].reset_index(drop=True)
        assert requests["prompt"].tolist() == [prompt_of(row) for row in real.to_dict("records")]
        assert (requests["subject"] == real["subject"]).all()
        assert torch.equal(row_of(control), torch.tensor(requests["source"].tolist()))
        wanted = 10 * weights[1] / (90 * weights[0] + 10 * weights[1])
        assert abs((requests["diagnosis"] == "heart failure").mean() - wanted) < 0.04


def test_new_combinations_are_even_and_keep_the_diagnosis_of_the_mask(cohort):
    table, masks = cohort
    requests, control = new_combinations(table, masks, 2000, seed=2)
    real = table.iloc[requests["source"]].reset_index(drop=True)
    assert (requests["diagnosis"] == real["diagnosis"]).all() and (
        requests["sex"] != real["sex"]
    ).mean() > 0.4
    assert torch.equal(control, control_image(masks[torch.tensor(requests["source"].tolist())]))
    kinds = {"sex": 2, "decade": 5, "bmi_class": 3, "diagnosis": 2}
    for column, count in kinds.items():
        shares = requests[column].value_counts(normalize=True)
        assert len(shares) == count and (shares - 1 / count).abs().max() < 0.05
    assert requests["prompt"].nunique() == 2 * 5 * 3 * 2
    for row in requests.head(50).to_dict("records"):
        assert parse_prompt(row["prompt"]) == {
            name: row[name] for name in ("sex", "decade", "bmi_class", "diagnosis")
        }


def test_decades_can_be_those_of_the_table(cohort):
    requests, _ = new_combinations(*cohort, 200, seed=3, present_only=True)
    assert set(requests["decade"]) == {"50s", "60s"}
    with pytest.raises(SettingsError, match="none of them is in the table"):
        new_combinations(*cohort, 5, seed=3, decades=("80s",), present_only=True)
    with pytest.raises(SettingsError, match="'sixties' is none"):
        new_combinations(*cohort, 5, seed=3, decades=("sixties",))


@pytest.mark.parametrize("ask", [copies, new_combinations])
def test_requests_are_a_function_of_the_seed(cohort, ask):
    (one, _), (again, _), (other, _) = (ask(*cohort, 40, seed=seed) for seed in (4, 4, 5))
    pd.testing.assert_frame_equal(one, again)
    assert not one.equals(other)


def test_a_diagnosis_without_masks_and_a_missing_mask_are_refused(cohort):
    table, masks = cohort
    with pytest.raises(DataError, match="no mask of diagnosis 'heart failure'"):
        new_combinations(table[:90], masks[:90], 5, seed=0)
    with pytest.raises(DataError, match="'masks': 99"):
        copies(table, masks[:99], 5, seed=0)


def test_the_cap_is_that_of_the_cohort(cohort):
    """The sampler behind `copies` and training is the cohort's own weights, not another."""
    prompts = [prompt_of(row) for row in cohort[0].to_dict("records")]
    assert balancing_weights(prompts, 5)[[0, 99]] == pytest.approx([1 / 90, 1 / 45])
