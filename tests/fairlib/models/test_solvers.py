"""The solvers against diffusers' own schedulers, and their chain coefficients against sampling."""

import itertools

import numpy as np
import pytest
import torch

from fairlib.errors import SettingsError
from fairlib.models.solvers import choose_timesteps, ddim, dpm_solver_2m

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


@pytest.fixture(scope="module")
def alphas_cumprod():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


@pytest.fixture(scope="module")
def noise():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 3
    return lambda x, t: torch.tanh(torch.einsum("dc,nchw->ndhw", mix, x) + t / 1000) + 0.3 * x


def scheduled(scheduler, model, noise, steps):
    scheduler.set_timesteps(steps)
    latents = noise
    for t in scheduler.timesteps:
        latents = scheduler.step(model(latents, int(t)), t, latents).prev_sample
    return latents, scheduler.timesteps.tolist()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("spacing", "steps"),
    [
        *itertools.product(["trailing", "leading", "linspace"], [1, 4, 10, 25, 50]),
        *itertools.product(["leading", "linspace"], [3, 7, 33, 700]),
    ],
)
def test_ddim_is_that_of_diffusers(alphas_cumprod, noise, model, steps, spacing, prediction_type):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **BETAS, clip_sample=False, timestep_spacing=spacing, prediction_type=prediction_type
    )
    scheduler.alphas_cumprod = alphas_cumprod
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    expected, timesteps = scheduled(scheduler, model, noise, steps)
    solver = ddim(alphas_cumprod, steps, spacing=spacing, prediction_type=prediction_type)
    assert list(solver.timesteps) == timesteps
    torch.testing.assert_close(solver.run(model, noise), expected, rtol=1e-10, atol=1e-10)


# inside diffusers
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 14, 15, 20, 33])
def test_dpm_solver_is_that_of_diffusers(
    alphas_cumprod, noise, model, steps, spacing, prediction_type
):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        **BETAS, timestep_spacing=spacing, prediction_type=prediction_type
    )
    expected, timesteps = scheduled(scheduler, model, noise, steps)
    solver = dpm_solver_2m(alphas_cumprod, steps, spacing=spacing, prediction_type=prediction_type)
    assert list(solver.timesteps) == timesteps
    # its schedule is float32
    torch.testing.assert_close(solver.run(model, noise), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [ddim, dpm_solver_2m])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_chain_coefficients_rebuild_the_sample(
    alphas_cumprod, noise, model, make, steps, prediction_type
):
    solver = make(alphas_cumprod, steps, prediction_type=prediction_type)
    records = list(solver.sample(model, noise))
    carry, coefficients = solver.chain_coefficients()
    rebuilt = carry * noise + sum(
        c * record.noise_prediction for c, record in zip(coefficients, records, strict=True)
    )
    torch.testing.assert_close(rebuilt, records[-1].next_latents, rtol=1e-10, atol=1e-10)


def test_the_records_are_one_chain(alphas_cumprod, noise, model):
    records = list(dpm_solver_2m(alphas_cumprod, 6).sample(model, noise))
    assert [record.index for record in records] == list(range(6))
    assert records[0].latents is noise
    for before, after in itertools.pairwise(records):
        assert after.latents is before.next_latents
        assert after.timestep < before.timestep
    assert torch.equal(records[-1].next_latents, records[-1].data_prediction)


@pytest.mark.parametrize("make", [ddim, dpm_solver_2m])
def test_the_exact_denoiser_of_a_point_gives_that_point(alphas_cumprod, noise, make):
    """Closed form: if the data are one image, eps = (x - alpha image) / sigma and any solver must
    return it.
    """
    image = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(1, 3, 4, 4)

    def exact(x, t):
        return (x - alphas_cumprod[t].sqrt() * image) / (1 - alphas_cumprod[t]).sqrt()

    torch.testing.assert_close(
        make(alphas_cumprod, 8).run(exact, noise), image.expand_as(noise), rtol=1e-9, atol=1e-9
    )


def test_two_m_converges_faster_than_ddim(alphas_cumprod, noise):
    """Closed form: data N(0, s^2); the probability flow keeps x / sqrt(alpha^2 s^2 + sigma^2)
    constant.

    Read before the last step, which is first order in both.
    """

    def size(t):
        return (alphas_cumprod[t] * 0.5**2 + 1 - alphas_cumprod[t]).sqrt()

    def exact(x, t):
        return (1 - alphas_cumprod[t]).sqrt() * x / size(t) ** 2

    def error(make):
        last = list(make(alphas_cumprod, 40).sample(exact, noise))[-1]
        return float((last.latents / size(last.timestep) - noise / size(999)).norm())

    assert error(dpm_solver_2m) < error(ddim) / 5


def test_single_precision_stays_single(alphas_cumprod, noise, model):
    assert (
        ddim(alphas_cumprod.float(), 3).run(lambda x, t: x.tanh(), noise.float()).dtype
        == torch.float32
    )


def test_timesteps_end_low_and_start_at_pure_noise():
    assert choose_timesteps(1000, 10, "trailing").tolist() == [
        999,
        899,
        799,
        699,
        599,
        499,
        399,
        299,
        199,
        99,
    ]
    for steps in range(1, 60):
        chosen = choose_timesteps(1000, steps, "trailing")
        assert len(chosen) == steps and chosen[0] == 999 and (np.diff(chosen) < 0).all()


def test_the_default_leads_to_the_next_timestep_and_linspace_by_a_fixed_stride(alphas_cumprod):
    sigma = (1 - alphas_cumprod).sqrt().numpy()
    for steps in (10, 33):
        solver = ddim(alphas_cumprod, steps)
        times = np.array(solver.timesteps)
        assert np.allclose(solver.carry, np.append(sigma[times[1:]], 0) / sigma[times], rtol=1e-12)
    solver = ddim(alphas_cumprod, 10, spacing="linspace")
    times = np.array(solver.timesteps)
    assert np.allclose(solver.carry[:-1], (sigma[times - 100] / sigma[times])[:-1], rtol=1e-12)
    assert solver.carry[-1] == 0


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"steps": 1001}, {"spacing": "even"}, {"prediction_type": "sample"}]
)
def test_impossible_settings_are_refused(alphas_cumprod, change):
    with pytest.raises(SettingsError):
        ddim(alphas_cumprod, **({"steps": 10} | change))
