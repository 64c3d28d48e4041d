"""Fair-GRPO against closed forms, and on a toy generator whose truth is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fairlib.errors import SettingsError, WeightsError
from fairlib.methods import grpo as gr
from fairlib.methods.targets import Target
from fairlib.models.solvers import ddim, dpm_solver_2m

PROMPTS = ["HGG", "LGG"]
EACH = [Target.shares({"F": 0.458, "M": 0.542}, name=prompt) for prompt in PROMPTS]
SHORT = gr.GRPOSettings(
    steps=4,
    prompts_per_step=2,
    images_per_prompt=4,
    cache_size=8,
    sampling_steps=4,
    replay_steps=2,
    warmup=1,
    learning_rate=0.01,
    guidance_scale=1.0,
)


def test_advantages_are_centred_log_ratios_and_vanish_at_the_target():
    target = Target.shares({"F": 0.25, "M": 0.75})
    logits = torch.tensor([1.0, 1.0, -1.0, -1.0])
    first, second = math.log(0.25 / 0.5), math.log(0.75 / 0.5)
    expected = np.array([first, first, second, second]) - (first + second) / 2
    assert gr.advantages(logits, target).numpy() == pytest.approx(expected, abs=1e-5)
    assert gr.advantages(torch.tensor([1.0, -1, -1, -1]), target).abs().max() < 1e-6
    assert gr.advantages(torch.ones(4), Target.shares({"F": 0, "M": 1})).tolist() == [0] * 4
    mixed = gr.advantages(logits, Target.shares({"F": 0, "M": 1}), limit=2.0)
    assert mixed.tolist() == [-2, -2, 2, 2]


def test_at_one_half_the_advantage_is_half_of_the_published_one():
    logits = torch.tensor([1.0] * 3 + [-1.0] * 7)
    published = np.array([math.log(7 / 3)] * 3 + [math.log(3 / 7)] * 7)
    ours = gr.advantages(logits, Target.shares({"F": 0.5, "M": 0.5})).numpy()
    assert ours == pytest.approx((published - published.mean()) / 2, abs=1e-5)


def test_three_groups_are_rewarded_by_place():
    target = Target.shares({"a": 0.2, "b": 0.3, "c": 0.5})
    logits = torch.eye(3)[[0, 0, 1, 2]]
    reward = np.log(np.array([0.2 / 0.5, 0.2 / 0.5, 0.3 / 0.25, 0.5 / 0.25]))
    assert gr.advantages(logits, target).numpy() == pytest.approx(reward - reward.mean(), abs=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_without_noise_the_sampler_is_ddim(alphas_cumprod, kind):
    solver, spread = gr.noisy_ddim(alphas_cumprod, 7, 0.0, kind)
    plain = ddim(alphas_cumprod, 7, prediction_type=kind)
    assert not spread.any()
    for part in ("data", "output", "carry", "current"):
        assert getattr(solver, part) == pytest.approx(getattr(plain, part))


def test_with_noise_the_variance_of_each_level_is_kept(alphas_cumprod):
    """Of a clean image of zero and its true noise, x_t has the variance 1 - a_t at every step."""
    solver, spread = gr.noisy_ddim(alphas_cumprod, 6)
    after = np.append(alphas_cumprod.numpy()[list(solver.timesteps)][1:], 1)
    before = alphas_cumprod.numpy()[list(solver.timesteps)]
    assert solver.carry**2 * (1 - before) + spread**2 == pytest.approx(1 - after)
    assert spread[-1] == 0 and (spread[:-1] > 0).all()


def test_log_probability_and_clipped_loss_are_the_closed_forms():
    latents, mean = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    normal = torch.distributions.Normal(mean, 0.3)
    expected = normal.log_prob(latents).flatten(1).mean(1)
    assert torch.allclose(gr.log_probability(latents, mean, 0.3), expected, atol=1e-5)
    log_p = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0]))
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss = gr.clipped_loss(log_p, torch.zeros(5), advantage, 0.2)
    assert loss.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8, -2.0])


def run(generator, classifier, settings=SHORT, targets=EACH, **more):
    return list(gr.grpo(generator, classifier, PROMPTS, targets, settings=settings, **more))


def test_the_first_gradient_is_reinforce(size_generator, size_readers):
    """One update a batch, all noisy steps: - mean A d log p, by automatic differentiation."""
    settings = dataclasses.replace(SHORT, steps=1, replay_steps=4, kl_weight=0.0)
    live = gr.AlignmentState(size_generator.trainable_parameters(), settings)
    job = gr._Run(
        size_generator, size_generator.frozen_copy(), size_readers[0], PROMPTS, EACH, settings, live
    )
    batch, _, logits = job._sample(0, (0, 0, 0, 1, 1, 1), (0, 1, 2, 0, 1, 2))
    assert job._backward(batch, 0)[0] == 18
    found = [parameter.grad for parameter in live.named.values()]
    loss = 0
    for index in range(3):
        mean = job._mean(size_generator, batch.path[index], batch.embeds, index)
        normal = torch.distributions.Normal(mean, float(job.spread[index]))
        log_p = normal.log_prob(batch.path[index + 1]).flatten()
        assert torch.allclose(log_p, batch.old_log_p[index], atol=1e-5)
        loss = loss - (batch.advantages * log_p).mean() / 3
    wanted = torch.autograd.grad(loss, list(live.named.values()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))
    parts = [gr.advantages(logits[:3], EACH[0]), gr.advantages(logits[3:], EACH[1])]
    assert torch.equal(batch.advantages, torch.cat(parts))


def share(generator, classifier, prompt, count=1000):
    noise = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(7))
    embeds = generator.encode_prompts([prompt]).expand(count, -1, -1)
    solver = dpm_solver_2m(generator.alphas_cumprod, 6)
    with torch.no_grad():
        clean = solver.run(lambda x, t: generator.predict_noise(x, t, embeds, 1.0), noise)
        return float((classifier(generator.decode(clean)) > 0).double().mean())


def test_tuning_moves_the_shares_without_a_gradient_of_the_classifier(size_generator, size_readers):
    settings = dataclasses.replace(
        SHORT,
        steps=60,
        images_per_prompt=32,
        cache_size=512,
        sampling_steps=6,
        replay_steps=5,
        learning_rate=0.02,
        warmup=3,
        kl_weight=0.0,
    )

    def classifier(images):
        return size_readers[0](images).sign().detach()

    before = [share(size_generator, size_readers[0], prompt) for prompt in PROMPTS]
    records = run(size_generator, classifier, settings)
    after = [share(size_generator, size_readers[0], prompt) for prompt in PROMPTS]
    assert before[0] < 0.2 and after == pytest.approx([0.458, 0.458], abs=0.12)
    assert records[-1].step == 59


def test_the_kl_penalty_holds_the_base_model(size_generator, size_readers):
    def moved(weight):
        generator = type(size_generator)()
        records = run(generator, size_readers[0], dataclasses.replace(SHORT, kl_weight=weight))
        return records[-1].consistency

    free, held = moved(1e-9), moved(100.0)
    assert 0 <= held < free


def test_records_count_evaluations(size_generator, size_readers):
    settings = dataclasses.replace(SHORT, updates_per_batch=2, steps=2)
    records = run(size_generator, size_readers[0], settings)
    assert [record.step for record in records] == [0, 1]
    first = records[0]
    assert (first.forward, first.backward, first.base) == (8 * 4 + 32, 32, 32)
    assert records[-1].state.step == 4 and first.shares.keys() == {"F", "M"}
    assert torch.equal(first.changes, first.targets < 0) and first.images.shape == (8, 1, 4, 4)
    assert size_generator.calls == sum(record.forward for record in records)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_resumed_run_ends_with_the_same_bits(size_generator, size_readers, updates):
    settings = dataclasses.replace(SHORT, updates_per_batch=updates, micro_batch=3)
    whole = run(type(size_generator)(), size_readers[0], settings)[-1].state.to_tensors()
    partial = gr.grpo(size_generator, size_readers[0], PROMPTS, EACH, settings=settings)
    saved = [next(partial).state.to_tensors() for _ in range(2)][-1]
    partial.close()
    with pytest.raises(WeightsError, match="not the one that the run began with"):
        run(size_generator, size_readers[0], settings, state=saved)
    base = type(size_generator)().frozen_copy()
    records = run(size_generator, size_readers[0], settings, state=saved, base=base)
    resumed = records[-1].state.to_tensors()
    assert len(records) == 2 and whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_micro_batches_change_nothing_but_rounding(size_generator, size_readers):
    whole = run(type(size_generator)(), size_readers[0])[-1].state.to_tensors()
    settings = dataclasses.replace(SHORT, micro_batch=3)
    parts = run(type(size_generator)(), size_readers[0], settings)[-1].state.to_tensors()
    assert all(torch.allclose(whole[name], parts[name], atol=1e-4) for name in whole)


def test_logits_of_the_wrong_shape_are_refused(size_generator):
    with pytest.raises(SettingsError, match="groups"):
        run(size_generator, lambda images: torch.zeros(len(images), 3))
