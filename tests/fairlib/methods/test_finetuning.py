import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import norm
from torch import nn

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.methods.finetuning import (
    FinetuneSettings,
    FinetuneState,
    Probe,
    choose_probe,
    finetune,
    probe_losses,
    sample_losses,
)
from fairlib.methods.group_weights import (
    GroupDRO,
    InverseFrequency,
    Uniform,
    attribute_gaps,
    group_means,
    loss_gap,
)
from fairlib.methods.perturbation import (
    FairBayesianPerturbation,
    PerturbationSettings,
    RandomSigma,
)
from fairlib.models.generator import (
    add_noise,
    alphas_cumprod,
    prediction_target,
    training_schedule,
)
from fairlib.models.training import batch_indices
from fairlib.rng import Stream, torch_rng

SIZES = (2, 2)
SETTINGS = FinetuneSettings(
    steps=8, batch_size=8, learning_rate=1e-2, ema_decay=0.9, probe_every=2, seed=5
)
SMALL_WINDOW = PerturbationSettings(window=3, seed=2)
REPAIRED = PerturbationSettings(form="repaired", window=3, seed=2)


class Tiny(nn.Module):
    """Linear in the latents, the words and the time: a network whose every gradient is at hand."""

    def __init__(self):
        super().__init__()
        chance = torch.Generator().manual_seed(0)
        self.pixels, self.words = nn.Conv2d(4, 4, 1), nn.Linear(3, 4)
        self.time = nn.Parameter(torch.zeros(4))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=chance))
        self.asked = []

    def forward(self, latents, time, words):
        self.asked.append((latents.detach().clone(), time.clone(), words.clone()))
        shift = self.words(words.mean(1)) + self.time * (time / 1000).view(-1, 1)
        return SimpleNamespace(sample=self.pixels(latents) + shift[:, :, None, None])


@pytest.fixture(scope="module")
def task():
    """Forty people; the rare group's latents are another constant, known from the prompt."""
    chance = torch.Generator().manual_seed(1)
    rare = (torch.arange(40) % 5 == 0).long()
    codes = torch.stack([rare, torch.arange(40) // 2 % 2], 1)
    latents = 0.3 * torch.randn(40, 4, 2, 2, generator=chance) + (2.0 * rare - 0.5).view(
        -1, 1, 1, 1
    )
    return latents, torch.randn(2, 3, 3, generator=chance), rare, codes


NULL = torch.zeros(1, 3, 3)
ARMS = {
    "plain": lambda codes: Uniform(SIZES),
    "released": lambda codes: FairBayesianPerturbation(SIZES, SMALL_WINDOW),
    "repaired": lambda codes: FairBayesianPerturbation(SIZES, REPAIRED),
    "random": lambda codes: RandomSigma(SIZES, SMALL_WINDOW),
    "inverse": lambda codes: InverseFrequency(codes, SIZES),
    "dro": lambda codes: GroupDRO(codes, SIZES, rate=0.5),
}


def probe_of(task):
    latents, _, prompts, codes = task
    return choose_probe(latents, prompts, codes, SIZES, per_group=2, times=2)


def fitted(task, arm="plain", settings=SETTINGS, stop=None, state=None, **options):
    """(state, steps) after `stop` steps, or all."""
    if state is None:
        state = FinetuneState(Tiny(), ARMS[arm](task[-1]), settings)
    options = {"null": NULL, "probe": probe_of(task)} | options
    found = []
    for step in finetune(state.module, *task, state.weights, settings, state=state, **options):
        found.append(step)
        if step.step == stop:
            break
    return state, found


@pytest.mark.parametrize("arm", ARMS)
def test_a_resumed_run_has_the_same_bits(task, arm, tmp_path):
    whole, steps = fitted(task, arm)
    state, first = fitted(task, arm, stop=5)
    write_tensors(tmp_path / "state.safetensors", state.to_tensors())
    torch.manual_seed(99)
    again = FinetuneState(Tiny(), ARMS[arm](task[-1]), SETTINGS)
    again.from_tensors(read_tensors(tmp_path / "state.safetensors"))
    resumed, rest = fitted(task, arm, state=again)
    one, other = whole.to_tensors(), resumed.to_tensors()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert [step.loss for step in first + rest] == [step.loss for step in steps]


def test_the_plain_arm_is_adam_on_the_mean_loss(task):
    """Held against the loop written out."""
    latents, embeds, prompts, _ = task
    settings = FinetuneSettings(
        steps=3, batch_size=8, learning_rate=1e-2, prompt_dropout=0.0, ema_decay=0.0, seed=5
    )
    module = Tiny()
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    losses = []
    for step in range(3):
        rows = batch_indices(5, step, 40, 8)
        noisy, time, noise = add_noise(latents[rows], torch_rng(5, Stream.FINETUNING, step))
        loss = nn.functional.mse_loss(module(noisy, time, embeds[prompts[rows]]).sample, noise)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    state, steps = fitted(task, settings=settings, null=None, probe=None)
    assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-5)
    for one, other in zip(state.module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_arms_of_one_seed_see_the_same_batches_and_noises(task):
    asked = {}
    for arm in ARMS:
        state, steps = fitted(task, arm, probe=probe_of(task) if arm == "repaired" else None)
        asked[arm] = [call for call in state.module.asked if len(call[0]) == 8][:8]
        assert steps[0].plain_loss == pytest.approx(fitted(task, "plain", stop=1)[1][0].plain_loss)
    for arm, calls in asked.items():
        for one, other in zip(calls, asked["plain"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), arm
    other, _ = fitted(task, settings=FinetuneSettings(steps=1, batch_size=8, seed=6), probe=None)
    assert not torch.equal(other.module.asked[0][0], asked["plain"][0][0])


@pytest.mark.parametrize("form", ["released", "repaired"])
def test_in_expectation_the_gradient_is_the_plain_one(task, form):
    """The gradient of the weighted loss is linear in the weights, so the mean over 1,000 draws of
    the
    noise must agree with the plain gradient to within its standard error, in every parameter; and
    single draws do differ from it.
    """
    latents, embeds, prompts, codes = task
    module, batch = Tiny(), torch.arange(8)
    noisy, time, noise = add_noise(latents[batch], torch.Generator().manual_seed(3))
    each = sample_losses(module(noisy, time, embeds[prompts[batch]]).sample, noise)
    gradients = torch.stack(
        [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(one, list(module.parameters()), retain_graph=True)
                ]
            )
            for one in each
        ]
    ).double()
    weights = RandomSigma(SIZES, PerturbationSettings(form=form), fixed=1.0)
    draws = (
        torch.stack([weights.weights(codes[batch], step) for step in range(1000)]) @ gradients / 8
    )
    error = draws.std(0) / 1000**0.5
    assert bool(((draws.mean(0) - gradients.mean(0)).abs() < 4.5 * error).all())
    assert float((draws[0] - gradients.mean(0)).norm()) > 0.1 * float(gradients.mean(0).norm())


def test_the_weighted_loss_is_the_mean_of_weight_times_loss(task):
    """The first step by hand: weights of the arm, losses of the untrained network."""
    latents, embeds, prompts, codes = task
    settings = FinetuneSettings(steps=1, batch_size=8, prompt_dropout=0.0, seed=5)
    state, [step] = fitted(task, "released", settings, probe=None, null=None)
    rows = batch_indices(5, 0, 40, 8)
    noisy, time, noise = add_noise(latents[rows], torch_rng(5, Stream.FINETUNING, 0))
    each = (
        (Tiny()(noisy, time, embeds[prompts[rows]]).sample - noise)
        .square()
        .mean((1, 2, 3))
        .detach()
    )
    weights = FairBayesianPerturbation(SIZES, SMALL_WINDOW).weights(codes[rows], 0)
    assert step.loss == pytest.approx(float((weights * each).mean()), rel=1e-5)
    assert step.plain_loss == pytest.approx(float(each.mean()), rel=1e-5)
    torch.testing.assert_close(
        step.group_losses, group_means(each, codes[rows], SIZES), equal_nan=True, rtol=1e-5, atol=0
    )
    assert step.gap == pytest.approx(loss_gap(each, codes[rows], SIZES), rel=1e-5)
    assert (step.weight_min, step.weight_mean) == pytest.approx(
        (float(weights.min()), float(weights.mean()))
    )
    assert step.share_negative == float((weights < 0).double().mean()) and torch.equal(
        step.sigma, torch.ones(4).double()
    )
    assert step.probe_gap is None and state.step == 1


def test_the_share_of_negative_weights_is_the_known_one(task):
    """Sigma one throughout, two attributes: Phi(-1 / sqrt(2)); none in the repaired form."""
    settings = FinetuneSettings(steps=100, batch_size=32, learning_rate=1e-5, seed=1)
    state = FinetuneState(
        Tiny(), RandomSigma(SIZES, PerturbationSettings(seed=1), fixed=1.0), settings
    )
    _, steps = fitted(task, settings=settings, state=state, probe=None)
    share = norm.cdf(-1 / 2**0.5)
    assert np.mean([step.share_negative for step in steps]) == pytest.approx(
        share, abs=4.5 * (share / 3200) ** 0.5
    )
    assert max(step.share_negative for step in fitted(task, "repaired")[1]) == 0


def test_the_probe_is_looked_at_by_every_arm_and_shown_to_the_repaired_one(task):
    """After each look: the losses of the network as it then is; and the arm's outcomes are the
    falls between looks.
    """
    for arm in ("plain", "repaired"):
        state = FinetuneState(Tiny(), ARMS[arm](task[-1]), SETTINGS)
        wanted, found = {}, {}
        for step in finetune(
            state.module,
            *task,
            state.weights,
            SETTINGS,
            state=state,
            null=NULL,
            probe=probe_of(task),
        ):
            losses = probe_losses(state.module, probe_of(task), task[1])
            wanted[step.step] = float(
                attribute_gaps(group_means(losses, probe_of(task).group_codes, SIZES), SIZES).sum()
            )
            found[step.step] = step.probe_gap
        assert [step for step, gap in found.items() if gap is not None] == [2, 4, 6, 8]
        assert all(found[step] == pytest.approx(wanted[step], rel=1e-6) for step in (2, 4, 6, 8))
    assert state.weights.outcomes.tolist() == pytest.approx(
        [found[a] - found[a + 2] for a in (2, 4, 6)], abs=1e-9
    )


def test_weights_for_the_rare_group_lower_its_loss(task):
    """Twice the weight on what is rare moves the fit towards it: against plain, same seed, on all
    people.
    """
    settings = FinetuneSettings(steps=100, batch_size=16, learning_rate=2e-2, seed=3)
    probe = choose_probe(task[0], task[2], task[3], SIZES, per_group=8, times=8)
    losses = {
        arm: group_means(
            probe_losses(fitted(task, arm, settings, probe=None)[0].module, probe, task[1]),
            probe.group_codes,
            SIZES,
        )
        for arm in ("plain", "inverse", "dro")
    }
    assert losses["inverse"][1] < losses["plain"][1] and losses["dro"][1] < losses["plain"][1]
    assert losses["inverse"][0] > losses["plain"][0]


def test_the_learning_rate_stays_or_falls(task):
    rates = {}
    for kind in ("none", "cosine"):
        settings = FinetuneSettings(
            steps=6, batch_size=4, learning_rate=1e-3, warmup=2, anneal=kind
        )
        rates[kind] = [
            step.learning_rate for step in fitted(task, settings=settings, probe=None)[1]
        ]
    assert rates["none"] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    assert rates["cosine"][2:] == pytest.approx(
        [1e-3 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    )


def test_prompts_are_dropped_in_their_share(task):
    null = torch.full((1, 3, 3), 7.0)
    state, _ = fitted(
        task,
        settings=FinetuneSettings(steps=50, batch_size=40, prompt_dropout=0.25, learning_rate=1e-6),
        null=null,
        probe=None,
    )
    dropped = torch.cat([(words == 7).all((1, 2)) for _, _, words in state.module.asked]).double()
    assert float(dropped.mean()) == pytest.approx(0.25, abs=4.5 * (0.25 * 0.75 / 2000) ** 0.5)


def test_the_prediction_type_is_that_of_the_scheduler(task):
    """A denoiser asked for velocities: the loss of the first step is that to the velocity."""
    scheduler = SimpleNamespace(
        alphas_cumprod=alphas_cumprod().float(),
        config=SimpleNamespace(prediction_type="v_prediction"),
    )
    settings = FinetuneSettings(steps=1, batch_size=8, prompt_dropout=0.0, seed=5)
    _, [step] = fitted(task, settings=settings, scheduler=scheduler, null=None, probe=None)
    latents, embeds, prompts, _ = task
    rows = batch_indices(5, 0, 40, 8)
    noisy, time, noise = add_noise(latents[rows], torch_rng(5, Stream.FINETUNING, 0))
    target = prediction_target("v_prediction", latents[rows], noise, time)
    wanted = nn.functional.mse_loss(Tiny()(noisy, time, embeds[prompts[rows]]).sample, target)
    assert step.loss == pytest.approx(float(wanted.detach()), rel=1e-5)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
                                       DDPMScheduler(num_train_timesteps=100)])  # fmt: skip
def test_the_noise_is_that_of_the_scheduler(task, scheduler):
    """By diffusers' own noising, in training and in the probe, which here has one row."""
    latents, embeds, prompts, codes = task
    settings = FinetuneSettings(steps=1, batch_size=1, prompt_dropout=0.0, seed=5, probe_every=1,
                                learning_rate=1e-9)  # fmt: skip
    probe = Probe(latents[:1], prompts[:1], codes[:1], times=2)
    options = {"scheduler": scheduler, "null": None, "probe": probe}
    _, [step] = fitted(task, settings=settings, **options)

    def loss(clean, noise, time, words):
        noisy = scheduler.add_noise(clean, noise, time)
        return float((Tiny()(noisy, time, words).sample - noise).square().mean().detach())

    rows, rng = batch_indices(5, 0, 40, 1), torch_rng(5, Stream.FINETUNING, 0)
    count, noise = len(scheduler.alphas_cumprod), torch.randn(latents[rows].shape, generator=rng)
    time = (torch.rand(1, generator=rng) * count).long()
    wanted = loss(latents[rows], noise, time, embeds[prompts[rows]])
    assert step.loss == pytest.approx(wanted, rel=1e-4)
    each = []
    for level in range(2):
        rng = torch_rng(0, Stream.PROBE_NOISE, level)
        noise = torch.randn(latents[:1].shape, generator=rng)
        time = torch.tensor([int((level + 0.5) / 2 * count)])
        each.append(loss(latents[:1], noise, time, embeds[prompts[:1]]))
    assert float(step.probe_losses.nanmean()) == pytest.approx(np.mean(each), rel=1e-4)


def test_the_schedule_of_stable_diffusion_keeps_its_double_precision():
    single = SimpleNamespace(alphas_cumprod=alphas_cumprod().float(),
                             config=SimpleNamespace(prediction_type="sample"))  # fmt: skip
    for scheduler, kind in ((None, "epsilon"), (single, "sample")):
        assert training_schedule(scheduler)[0] == kind
        assert torch.equal(training_schedule(scheduler)[1], alphas_cumprod())


def test_a_learned_variance_does_not_count():
    target, variance = torch.randn(2, 3, 4, 4), torch.full((2, 3, 4, 4), 9.0)
    assert not sample_losses(torch.cat([target, variance], dim=1), target).any()


def test_a_frozen_denoiser_is_made_to_learn_and_its_average_is_kept(task):
    module = Tiny().requires_grad_(False)
    state = FinetuneState(module, Uniform(SIZES), SETTINGS)
    before = module.time.detach().clone()
    fitted(task, state=state)
    last = module.time.detach().clone()
    assert not torch.equal(before, last)
    state.use_average()
    assert torch.equal(module.time, state.ema["time"]) and not torch.equal(module.time, last)


def test_a_pipeline_denoiser_and_scheduler_fit_in(task):
    from diffusers import DDIMScheduler

    from fairlib.models.generator import SCHEDULE, build_denoiser

    torch.manual_seed(0)
    scheduler = DDIMScheduler(num_train_timesteps=1000, prediction_type="v_prediction", **SCHEDULE)
    latents = torch.randn(8, 4, 8, 8)
    steps = list(
        finetune(
            build_denoiser((16, 32), 32),
            latents,
            torch.randn(2, 5, 32),
            task[2][:8],
            task[3][:8],
            FairBayesianPerturbation(SIZES, SMALL_WINDOW),
            FinetuneSettings(steps=2, batch_size=4),
            null=torch.zeros(1, 5, 32),
            scheduler=scheduler,
        )
    )
    assert [step.step for step in steps] == [1, 2] and all(
        math.isfinite(step.loss) for step in steps
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"null": None}, SettingsError, "`null` is missing"),
        ({"probe": None}, SettingsError, "observes a probe"),
        ({"latents": torch.zeros(39, 4, 2, 2)}, DataError, "'latents': 39"),
        ({"embeds": torch.zeros(1, 3, 3)}, DataError, "prompt_rows run from 0 to 1"),
        (
            {"latents": torch.full((40, 4, 2, 2), float("nan"))},
            DataError,
            "loss of step 1 is not finite",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(task, change, error, message):
    parts = dict(zip(("latents", "embeds", "prompts", "codes"), task, strict=True))
    options = {"null": NULL, "probe": probe_of(task)}
    for name, value in change.items():
        (options if name in options else parts)[name] = value
    with pytest.raises(error, match=message):
        next(
            finetune(
                Tiny(),
                *parts.values(),
                FairBayesianPerturbation(SIZES, REPAIRED),
                SETTINGS,
                **options,
            )
        )


def test_a_state_of_another_arm_is_refused(task):
    state, _ = fitted(task, "released", stop=2)
    with pytest.raises(WeightsError, match="not one of GroupDRO"):
        FinetuneState(Tiny(), ARMS["dro"](task[-1]), SETTINGS).from_tensors(state.to_tensors())
    with pytest.raises(WeightsError, match="other weights or another denoiser"):
        next(finetune(Tiny(), *task, state.weights, SETTINGS, null=NULL, state=state))


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"ema_decay": 1.0}, {"anneal": "linear"}, {"probe_every": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SettingsError, match=f"FinetuneSettings.{next(iter(wrong))} is"):
        FinetuneSettings(**wrong)


# No machine of CI has a CUDA device, and nothing can stand in for one; on the processor the same
# call is tested above.
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_it_runs_where_the_denoiser_is(task):
    module = Tiny().cuda()
    steps = list(
        finetune(
            module,
            *task,
            FairBayesianPerturbation(SIZES, REPAIRED),
            SETTINGS,
            null=NULL,
            probe=probe_of(task),
        )
    )
    assert len(steps) == 8 and steps[-1].probe_losses.device.type == "cpu"


PROBE_SIZES = (3, 2)


class Zero(nn.Module):
    """Predicts nothing and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, latents, time, words):
        self.asked.append((latents.clone(), time.clone(), words.clone()))
        return SimpleNamespace(sample=torch.zeros_like(latents))


def samples(count=200, seed=0):
    chance = torch.Generator().manual_seed(seed)
    race = torch.bucketize(torch.rand(count, generator=chance), torch.tensor([0.7, 0.93]))
    codes = torch.stack([race, torch.randint(0, 2, (count,), generator=chance)], 1)
    return torch.randn(count, 4, 4, 4, generator=chance), torch.arange(count) % 5, codes


def test_a_probe_holds_every_group():
    latents, prompts, codes = samples()
    probe = choose_probe(latents, prompts, codes, PROBE_SIZES, per_group=3)
    counts = [
        torch.bincount(probe.group_codes[:, a], minlength=size)
        for a, size in enumerate(PROBE_SIZES)
    ]
    assert min(int(count.min()) for count in counts) >= 3 and len(probe.latents) <= 3 * 5
    again, other = (
        choose_probe(latents, prompts, codes, PROBE_SIZES, per_group=3, seed=seed)
        for seed in (0, 1)
    )
    assert torch.equal(probe.latents, again.latents) and not torch.equal(
        probe.latents, other.latents
    )
    for row in range(len(probe.latents)):  # rows stay together
        source = int((latents == probe.latents[row]).flatten(1).all(1).nonzero()[0])
        assert prompts[source] == probe.prompt_rows[row] and torch.equal(
            codes[source], probe.group_codes[row]
        )


def test_a_group_too_small_for_a_probe_is_named():
    latents, prompts, codes = samples()
    codes[:, 0].clamp_(max=1)  # nobody of the third
    with pytest.raises(DataError, match="code 2 of attribute 0 has 0"):
        choose_probe(latents, prompts, codes, PROBE_SIZES)


def test_everybody_meets_the_same_noise_at_the_same_time_steps_at_every_look():
    latents, prompts, codes = samples(12)
    probe, denoiser = Probe(latents, prompts, codes, times=2), Zero()
    embeds = torch.randn(5, 1, 3)
    one, two = (
        probe_losses(denoiser, probe, embeds, batch_size=5),
        probe_losses(denoiser, probe, embeds, batch_size=12),
    )
    assert torch.equal(one, two)  # neither look nor batch matters
    times = sorted({int(t) for _, time, _ in denoiser.asked for t in time})
    assert times == [250, 750]
    for noisy, time, words in denoiser.asked[-2:]:
        alpha = alphas_cumprod().float()[int(time[0])]
        noise = (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
        assert torch.allclose(noise, noise[:1].expand_as(noise), atol=1e-4) and torch.equal(
            words, embeds[prompts]
        )
    assert torch.allclose(one, one[0].expand(12)) and loss_gap(
        one, codes, PROBE_SIZES
    ) == pytest.approx(0, abs=1e-6)


def test_the_loss_of_a_probe_is_that_of_the_target():
    """A denoiser that answers zero has the mean square of the target as its loss."""
    latents, prompts, codes = samples(6)
    probe = Probe(latents, prompts, codes, times=1)
    found = probe_losses(Zero(), probe, torch.zeros(5, 1, 3), prediction="sample")
    assert found.tolist() == pytest.approx(latents.square().mean((1, 2, 3)).tolist(), rel=1e-6)


def test_targets_are_those_of_the_prediction_types():
    """Noise and velocity give back the clean latents by their definitions; another word is
    refused.
    """
    clean = torch.randn(8, 4, 4, 4)
    noisy, time, noise = add_noise(clean, torch.Generator().manual_seed(0))
    alpha = alphas_cumprod().float()[time].view(-1, 1, 1, 1)
    velocity = prediction_target("v_prediction", clean, noise, time)
    assert torch.allclose(alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, clean, atol=1e-5)
    assert (
        prediction_target("epsilon", clean, noise, time) is noise
        and prediction_target("sample", clean, noise, time) is clean
    )
    with pytest.raises(SettingsError, match="prediction type 'score'"):
        prediction_target("score", clean, noise, time)


def test_a_probe_of_unequal_parts_is_refused():
    latents, prompts, codes = samples(6)
    with pytest.raises(DataError, match="'group_codes': 5"):
        Probe(latents, prompts, codes[:5])
    with pytest.raises(SettingsError, match="Probe.times is 0"):
        Probe(latents, prompts, codes, times=0)
