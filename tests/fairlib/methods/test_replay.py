"""Replay against autograd through the detached chain, unbiased step choice, golden weights, flat
memory.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fairlib.errors import SettingsError
from fairlib.methods import replay as rp
from fairlib.models.solvers import ddim, dpm_solver_2m


class TinyDenoiser(nn.Module):
    """A convolution, cross-attention to the prompt, time, and guidance inside."""

    def __init__(self, channels=4):
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.time = nn.Linear(2, channels)
        self.key, self.value = nn.Linear(3, channels), nn.Linear(3, channels)
        self.head = nn.Conv2d(channels, 2, 3, padding=1)

    def one(self, x, t, prompt):
        time = torch.as_tensor(t, dtype=x.dtype).view(-1, 1) / 1000
        h = torch.tanh(self.stem(x) + self.time(torch.cat([time, time**2], 1))[:, :, None, None])
        score = torch.einsum("nchw,nlc->nlhw", h, self.key(prompt)).softmax(dim=1)
        return self.head(torch.tanh(h + torch.einsum("nlhw,nlc->nchw", score, self.value(prompt))))

    def forward(self, x, t, prompt, guidance=3.0):
        empty = self.one(x, t, torch.zeros_like(prompt))
        return empty + guidance * (self.one(x, t, prompt) - empty)


@pytest.fixture
def study(alphas_cumprod):
    generator = torch.Generator().manual_seed(0)
    net = TinyDenoiser().double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            )
    noise = torch.randn(5, 2, 6, 6, generator=generator, dtype=torch.float64)
    prompt = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    return net, noise, prompt, alphas_cumprod


def loss_of(sample):
    return (
        sample.square() * torch.arange(1, 6, dtype=sample.dtype)[:, None, None, None]
    ).tanh().mean() + sample.std()


def cotangent_of(sample):
    leaf = sample.clone().requires_grad_()
    return torch.autograd.grad(loss_of(leaf), leaf)[0]


def autograd_through_detached_chain(net, solver, noise, prompt):
    x0 = solver.run(lambda x, t: net(x.detach(), t, prompt), noise)
    return torch.autograd.grad(loss_of(x0), list(net.parameters()))


def replayed(net, solver, noise, prompt, importance=None, coefficients=None, micro_batch=None):
    net.zero_grad(set_to_none=True)
    run = rp.record(solver, net, noise, prompt)
    coefficients = solver.chain_coefficients()[1] if coefficients is None else coefficients
    importance = np.ones((len(solver), len(noise))) if importance is None else importance
    evaluations = rp.replay(
        net, run, cotangent_of(run.sample), coefficients, importance, micro_batch
    )
    assert evaluations == np.count_nonzero(importance)
    return [parameter.grad.clone() for parameter in net.parameters()]


@pytest.mark.parametrize("make", [ddim, dpm_solver_2m])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_replay_equals_autograd_through_the_detached_chain(study, make, steps, micro_batch):
    net, noise, prompt, schedule = study
    solver = make(schedule, steps)
    expected = autograd_through_detached_chain(net, solver, noise, prompt)
    found = replayed(net, solver, noise, prompt, micro_batch=micro_batch)
    whole = torch.cat([grad.flatten() for grad in expected]).norm()
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm()) <= 1e-10 * float(whole)


def test_replay_adds_to_gradients_already_there(study):
    net, noise, prompt, schedule = study
    solver = ddim(schedule, 3)
    single = replayed(net, solver, noise, prompt)
    run = rp.record(solver, net, noise, prompt)
    rp.replay(net, run, cotangent_of(run.sample), solver.chain_coefficients()[1], np.ones((3, 5)))
    for parameter, once in zip(net.parameters(), single, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * once)


def test_the_mean_over_every_stratified_choice_is_the_full_gradient(study):
    net, noise, prompt, schedule = study
    solver = dpm_solver_2m(schedule, 5)
    full = replayed(net, solver, noise, prompt)
    choices = list(itertools.product([0, 1], [2, 3, 4]))
    total = [torch.zeros_like(grad) for grad in full]
    for shift in range(len(choices)):  # every image meets every choice once
        importance = np.zeros((5, 5))
        for image in range(5):
            importance[list(choices[(shift + image) % len(choices)]), image] = 2.0, 3.0
        part = replayed(net, solver, noise, prompt, importance)
        total = [one + other / len(choices) for one, other in zip(total, part, strict=True)]
    for one, other in zip(total, full, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_images_may_replay_different_steps_in_any_micro_batch(study):
    net, noise, prompt, schedule = study
    solver = dpm_solver_2m(schedule, 6)
    coefficients = solver.chain_coefficients()[1]
    importance = rp.choose_steps(
        6, 2, "importance", coefficients, torch.Generator().manual_seed(0), 5
    )
    expected = None
    for image in range(5):  # one image at a time, the others' cotangents unused
        alone = np.where(np.arange(5) == image, importance, 0)
        part = replayed(net, solver, noise, prompt, alone)
        expected = (
            part
            if expected is None
            else [one + other for one, other in zip(expected, part, strict=True)]
        )
    for micro_batch in (None, 1, 2):
        found = replayed(net, solver, noise, prompt, importance, micro_batch=micro_batch)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("micro_batch", "calls"), [(None, 3), (4, 3), (1, 12)])
def test_images_at_different_steps_share_calls_as_large_as_those_of_sampling(
    study, micro_batch, calls
):
    """Few images at each of many steps would make many small calls, which are slow."""
    net, noise, prompt, schedule = study
    solver, sizes = dpm_solver_2m(schedule, 6), []
    importance = np.zeros((6, 5))
    importance[[0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 5], [0, 1, 2, 2, 3, 4, 0, 4, 1, 3, 2, 1]] = 2.0
    run = rp.record(solver, net, noise, prompt)

    def counted(x, *rest):
        sizes.append(len(x))
        return net(x, *rest)

    cotangent, coefficients = cotangent_of(run.sample), solver.chain_coefficients()[1]
    rp.replay(counted, run, cotangent, coefficients, importance, micro_batch)
    assert len(sizes) == calls and sum(sizes) == 12 and max(sizes) <= (micro_batch or len(noise))


def estimates(total, count, scheme, coefficients, values, draws=1500, images=1):
    """Estimates `[draws]` of the mean over images of sum_t coefficients_t * values_t."""
    generator = torch.Generator().manual_seed(1)
    found = np.empty(draws)
    for k in range(draws):
        importance = rp.choose_steps(total, count, scheme, coefficients, generator, images)
        assert (
            importance.shape == (total, images)
            and (np.count_nonzero(importance, axis=0) == count).all()
        )
        found[k] = (importance.mean(axis=1) * coefficients * values).sum()
    return found


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("scheme", ["uniform", "stratified", "importance"])
@pytest.mark.parametrize("total,count", [(10, 3), (7, 4), (20, 1)])
def test_sub_sampling_is_unbiased(alphas_cumprod, scheme, total, count, images):
    coefficients = dpm_solver_2m(alphas_cumprod, total).chain_coefficients()[1]
    values = np.random.default_rng(0).normal(size=total)
    found = estimates(total, count, scheme, coefficients, values, images=images)
    error = abs(found.mean() - (coefficients * values).sum())
    assert error < 4 * found.std() / np.sqrt(len(found)) + 1e-12


@pytest.mark.parametrize("scheme", ["uniform", "stratified", "importance"])
def test_every_image_alone_is_unbiased(alphas_cumprod, scheme):
    coefficients = dpm_solver_2m(alphas_cumprod, 6).chain_coefficients()[1]
    generator = torch.Generator().manual_seed(3)
    drawn = np.stack(
        [rp.choose_steps(6, 2, scheme, coefficients, generator, 3) for _ in range(3000)]
    )
    assert (np.abs(drawn.mean(axis=0) - 1) < 4.5 * drawn.std(axis=0) / np.sqrt(3000) + 1e-12).all()


def test_importance_is_exactly_unbiased_over_its_random_shift(alphas_cumprod):
    size = np.abs(dpm_solver_2m(alphas_cumprod, 12).chain_coefficients()[1])
    edges = np.unique(np.concatenate([[0, 1], np.cumsum(rp.inclusion_chances(size, 4)) % 1]))
    expected = sum(
        (end - start) * rp.systematic(size, 4, (start + end) / 2)
        for start, end in itertools.pairwise(edges)
    )
    np.testing.assert_allclose(expected, 1, atol=1e-9)


def test_spread_over_images_beats_one_choice_for_all(alphas_cumprod):
    coefficients = dpm_solver_2m(alphas_cumprod, 8).chain_coefficients()[1]
    values = np.random.default_rng(0).normal(size=8)
    alone, spread = (
        estimates(8, 2, "importance", coefficients, values, images=n).std() for n in (1, 16)
    )
    assert spread < alone / 4  # independent choices would give a quarter


def test_inclusion_chances_are_proportional_until_certain():
    np.testing.assert_allclose(rp.inclusion_chances(np.array([1.0, 1, 2]), 2), [0.5, 0.5, 1])
    np.testing.assert_allclose(
        rp.inclusion_chances(np.array([1.0, 3, 100, 0]), 2), [0.25, 0.75, 1, 0]
    )


def test_importance_beats_uniform_on_the_chain(alphas_cumprod):
    coefficients = dpm_solver_2m(alphas_cumprod, 10).chain_coefficients()[1]
    values = 1 + 0.1 * np.random.default_rng(0).normal(size=10)
    spread = {
        s: estimates(10, 3, s, coefficients, values).std()
        for s in ("uniform", "stratified", "importance")
    }
    assert spread["importance"] < spread["stratified"] < spread["uniform"]


def test_early_takes_the_first_steps_and_keeps_the_absolute_sum(alphas_cumprod):
    coefficients = dpm_solver_2m(alphas_cumprod, 10).chain_coefficients()[1]
    importance = rp.choose_steps(10, 3, "early", coefficients, torch.Generator(), 2)
    assert (importance[:3] > 0).all() and not importance[3:].any()
    np.testing.assert_allclose(np.abs(coefficients) @ importance, np.abs(coefficients).sum())


@pytest.mark.parametrize("make", [ddim, dpm_solver_2m])
def test_last_is_the_gradient_through_the_last_step_alone(study, make):
    """DRaFT-1: sample without gradient but for the last step, then differentiate as it is."""
    net, noise, prompt, alphas = study
    solver = make(alphas, 4)
    with torch.no_grad():
        *_, before, last = solver.sample(lambda x, t: net(x, t, prompt), noise)
    output = net(last.latents, last.timestep, prompt)
    x0 = solver.advance(3, last.latents, output, before.data_prediction)[1]
    expected = torch.autograd.grad(loss_of(x0), list(net.parameters()))
    importance = rp.choose_steps(4, 1, "last", np.ones(4), torch.Generator(), len(noise))
    found = replayed(net, solver, noise, prompt, importance)
    assert importance.sum() == len(noise)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, expected, strict=True))


def test_all_and_a_full_count_take_every_step_once():
    for scheme, count in (("all", 2), ("uniform", 5), ("stratified", 5), ("importance", 5)):
        assert (
            rp.choose_steps(5, count, scheme, np.ones(5), torch.Generator(), 3) == np.ones((5, 3))
        ).all()


def test_flat_weights_are_of_one_size_and_of_the_natural_sum(alphas_cumprod):
    natural = dpm_solver_2m(alphas_cumprod, 20).chain_coefficients()[1]
    flat = rp.effective_coefficients(natural, "flat")
    assert np.ptp(np.abs(flat)) < 1e-12
    assert np.abs(flat).sum() == pytest.approx(np.abs(natural).sum())
    assert (np.sign(flat) == np.sign(natural)).all()
    assert (rp.effective_coefficients(natural, "natural") == natural).all()


def test_reference_hook_times_solver_coefficient_is_nearly_flat(alphas_cumprod):
    """Shen et al.'s k_t, normalised to geometric mean 1, times |c_t| at 20 steps of their
    solver.
    """
    solver = dpm_solver_2m(alphas_cumprod, 20, spacing="linspace")
    size = np.abs(solver.chain_coefficients()[1])
    assert (size.max(), size.min()) == pytest.approx((2.99, 0.107), abs=0.005)
    assert size.max() / size.min() == pytest.approx(28, abs=0.5)
    level = alphas_cumprod.numpy()[list(solver.timesteps)]
    per_step = (alphas_cumprod[1:] / alphas_cumprod[:-1]).numpy()[np.array(solver.timesteps) - 1]
    hook = np.sqrt(level) * np.sqrt(1 - level) / (1 - per_step)
    effective = hook / np.exp(np.log(hook).mean()) * size
    assert effective[0] == pytest.approx(0.22, abs=0.005)
    assert effective[1:16] == pytest.approx(0.39, abs=0.015)
    assert effective[-2:] == pytest.approx([0.74, 0.71], abs=0.005)
    assert effective.max() / effective.min() == pytest.approx(3.4, abs=0.05)


def peak_saved_bytes(work):
    """Most bytes that autograd holds for backward at one time."""
    live, peak = {}, [0]

    class Handle:
        def __init__(self, tensor):
            self.tensor = tensor
            live[id(self)] = tensor.numel() * tensor.element_size()
            peak[0] = max(peak[0], sum(live.values()))

        def __del__(self):
            live.pop(id(self), None)

    with torch.autograd.graph.saved_tensors_hooks(Handle, lambda handle: handle.tensor):
        work()
    return peak[0]


def test_saved_activations_do_not_grow_with_the_steps(study):
    net, noise, prompt, schedule = study
    held = {
        n: peak_saved_bytes(lambda n=n: replayed(net, dpm_solver_2m(schedule, n), noise, prompt))
        for n in (5, 50)
    }
    chain = {
        n: peak_saved_bytes(
            lambda n=n: autograd_through_detached_chain(
                net, dpm_solver_2m(schedule, n), noise, prompt
            )
        )
        for n in (5, 50)
    }
    assert held[50] <= 1.1 * held[5]
    assert chain[50] > 8 * chain[5]


@pytest.mark.parametrize("scheme,count", [("nearest", 2), ("uniform", 0), ("uniform", 11)])
def test_impossible_choices_are_refused(scheme, count):
    with pytest.raises(SettingsError, match="replay"):
        rp.choose_steps(10, count, scheme, np.ones(10), torch.Generator())


def test_unknown_step_weights_are_refused():
    with pytest.raises(SettingsError, match="natural, flat"):
        rp.effective_coefficients(np.ones(3), "round")
