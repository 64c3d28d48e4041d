"""Tuning a model whose truth is known: shares move, runs resume to the same bits, counters
count.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fairlib.errors import SettingsError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.methods import alignment as al
from fairlib.methods.alignment import AlignmentSettings, cache_base
from fairlib.methods.targets import Target
from fairlib.models.solvers import dpm_solver_2m
from fairlib.settings import from_dict

PROMPTS = ["HGG", "LGG"]
RNG = np.random.default_rng(0)
FEMALE, MALE = RNG.normal(3, 1, 100), RNG.normal(-3, 1, 100)
SHORT = AlignmentSettings(
    family="quantile",
    steps=6,
    prompts_per_step=2,
    images_per_prompt=4,
    cache_size=8,
    sampling_steps=4,
    replay_steps=2,
    warmup=1,
    learning_rate=0.01,
    pool_size=12,
)
LONG = dataclasses.replace(
    SHORT,
    steps=60,
    images_per_prompt=16,
    cache_size=512,
    learning_rate=0.02,
    pool_size=0,
    sampling_steps=6,
    warmup=3,
)


SEXES = ["F"] * len(FEMALE) + ["M"] * len(MALE)


def target_of(name, share, female=FEMALE, male=MALE):
    scores = np.concatenate([female, male])
    return Target.shares({"F": share, "M": 1 - share}, scores, SEXES, name=name)


def targets_of(*shares):
    return [target_of(prompt, share) for prompt, share in zip(PROMPTS, shares, strict=True)]


def tuned(generator, readers, settings, targets=None, **more):
    classifier, embed = readers
    targets = targets or targets_of(0.458, 0.458)
    return list(
        al.tune(generator, classifier, PROMPTS, targets, embed=embed, settings=settings, **more)
    )


def started(generator, readers, settings):
    classifier, embed = readers
    targets = targets_of(0.458, 0.458)
    return al.tune(generator, classifier, PROMPTS, targets, embed=embed, settings=settings)


def cached(base, readers, settings=None):
    classifier, embed = readers
    return cache_base(base, classifier, PROMPTS, embed=embed, settings=settings or SHORT)


@torch.no_grad()
def drawn(generator, classifier, prompt, count=500):
    """Logits of fresh noises, never seen in tuning."""
    embeds = generator.encode_prompts([prompt]).expand(count, -1, -1)
    solver = dpm_solver_2m(generator.alphas_cumprod, 6)
    noise = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(7))
    return classifier(
        generator.decode(solver.run(lambda x, t: generator.predict_noise(x, t, embeds, 1.0), noise))
    )


def share(logits):
    return float((logits > 0).double().mean())


@pytest.mark.parametrize("family", ["quantile", "transport", "class"])
def test_tuning_moves_the_share_to_the_target(size_generator, size_readers, family):
    """Ranks in a batch need a large one; a transport map and, here, confident classes do with
    less.
    """
    before = share(drawn(size_generator, size_readers[0], "HGG"))
    settings = dataclasses.replace(
        LONG, family=family, images_per_prompt=64 if family == "quantile" else 16
    )
    records = tuned(size_generator, size_readers, settings)
    after = [share(drawn(size_generator, size_readers[0], prompt)) for prompt in PROMPTS]
    assert len(records) == settings.steps and before < 0.25
    assert np.abs(np.array(after) - 0.458).mean() < 0.05


def test_conditional_targets_part_the_groups(size_generator, size_readers):
    settings = dataclasses.replace(LONG, family="transport")
    tuned(size_generator, size_readers, settings, targets_of(0.2, 0.7))
    after = [share(drawn(size_generator, size_readers[0], prompt)) for prompt in PROMPTS]
    assert after == pytest.approx([0.2, 0.7], abs=0.06)


def test_quantile_targets_keep_the_spread_where_classes_polarise_and_means_blur(
    size_generator, size_readers
):
    """The trial's third lesson: shares alone do not show what became of the distribution."""
    start = {name: value.clone() for name, value in size_generator.state_dict().items()}
    wide = [target_of(prompt, 0.458, FEMALE / 2, MALE / 2) for prompt in PROMPTS]
    ambiguous = {}
    for family in ("transport", "class", "mean_kl"):
        size_generator.load_state_dict(start)
        tuned(size_generator, size_readers, dataclasses.replace(LONG, family=family), wide)
        chance = torch.sigmoid(
            torch.cat([drawn(size_generator, size_readers[0], prompt) for prompt in PROMPTS])
        )
        ambiguous[family] = float(((chance > 0.2) & (chance < 0.8)).double().mean())
    wanted = 1 / (1 + np.exp(-wide[0].distribution().quantile(np.linspace(0, 1, 1001))))
    truth = ((wanted > 0.2) & (wanted < 0.8)).mean()
    assert ambiguous["transport"] == pytest.approx(truth, abs=0.1)
    assert ambiguous["class"] < truth - 0.15
    assert ambiguous["mean_kl"] > truth + 0.05


@pytest.mark.parametrize("family", ["quantile", "transport", "class"])
def test_a_resumed_run_ends_with_the_same_bits(size_generator, size_readers, family, tmp_path):
    settings = dataclasses.replace(SHORT, family=family)
    fresh = type(size_generator)()
    whole = tuned(size_generator, size_readers, settings)[-1].state.to_tensors()

    run = started(fresh, size_readers, settings)
    for record in run:
        if record.step == 2:
            write_tensors(tmp_path / "state.safetensors", record.state.to_tensors())
            break
    again = type(size_generator)()
    state = read_tensors(tmp_path / "state.safetensors")
    records = tuned(
        again, size_readers, settings, state=state, base=type(size_generator)().frozen_copy()
    )
    assert [record.step for record in records] == [3, 4, 5]
    resumed = records[-1].state.to_tensors()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.fixture
def interrupted(size_generator, size_readers):
    """(the generator as a run left it after three steps, its saved state, what the whole run ends
    with).
    """
    whole = tuned(type(size_generator)(), size_readers, SHORT)[-1].state.to_tensors()
    for record in started(size_generator, size_readers, SHORT):
        if record.step == 2:
            return size_generator, record.state.to_tensors(), whole


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name]) for name in wanted
    )


def test_a_resumed_run_wants_the_model_that_it_began_with(interrupted, size_readers):
    """A generator that has moved cannot give the frozen original: it would be held to what it was
    tuned to.
    """
    moved, saved, whole = interrupted
    with pytest.raises(
        WeightsError,
        match="not the one that the run began with; .* fresh one, or give `base` or `base_cache`",
    ):
        tuned(moved, size_readers, SHORT, state=saved)
    original = type(moved)()
    for generator, more in (
        (type(moved)(), {}),
        (moved, {"base": original.frozen_copy()}),
        (moved, {"base_cache": cached(original, size_readers)}),
    ):
        records = tuned(generator, size_readers, SHORT, state=saved, **more)
        assert same(records[-1].state.to_tensors(), whole)


def test_a_run_is_resumed_in_memory_too(size_generator, size_readers):
    whole = tuned(type(size_generator)(), size_readers, SHORT)[-1].state.to_tensors()
    state = next(started(size_generator, size_readers, SHORT)).state.to_tensors()
    with pytest.raises(WeightsError, match="not the one that the run began with"):
        tuned(size_generator, size_readers, SHORT, state=state)
    records = tuned(
        size_generator,
        size_readers,
        SHORT,
        state=state,
        base=type(size_generator)().frozen_copy(),
    )
    assert same(records[-1].state.to_tensors(), whole)


def test_a_state_that_does_not_know_its_beginning_wants_the_original(interrupted, size_readers):
    """Such as those saved before a state held that."""
    moved, saved, whole = interrupted
    older = {name: value for name, value in saved.items() if name != "extra/origin"}
    with pytest.raises(WeightsError, match="not the one that the run began with"):
        tuned(type(moved)(), size_readers, SHORT, state=older)
    records = tuned(
        type(moved)(),
        size_readers,
        SHORT,
        state=older,
        base=type(moved)().frozen_copy(),
    )
    assert torch.equal(records[-1].state.ema["0.weight"], whole["ema/0.weight"])


def test_a_seed_decides_everything(size_generator, size_readers):
    def weights(seed):
        settings = dataclasses.replace(SHORT, seed=seed, steps=2)
        return tuned(type(size_generator)(), size_readers, settings)[-1].state.to_tensors()[
            "weight/0.weight"
        ]

    torch.rand(5)
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("family", ["quantile", "class", "mean_kl", "mean_l2"])
def test_micro_batches_do_not_change_the_step(size_generator, size_readers, family):
    """The gradient of the first: AdamW blows the rounding of a gradient near zero up, and one is."""

    def gradient(micro_batch):
        settings = dataclasses.replace(SHORT, family=family, micro_batch=micro_batch, steps=1)
        [record] = tuned(type(size_generator)(), size_readers, settings)
        assert record.images.shape == (8, 1, 4, 4)
        return record.state.to_tensors()["exp_avg/4.weight"]

    whole = gradient(None)
    assert (whole != 0).all()
    torch.testing.assert_close(gradient(3), whole, rtol=1e-4, atol=1e-7)


def test_counters_are_the_calls_that_were_made(size_generator, size_readers):
    before = size_generator.calls
    frozen = size_generator.frozen_copy()
    records = tuned(size_generator, size_readers, SHORT, base=frozen)
    assert all((record.forward, record.backward) == (8 * (4 + 2), 8 * 2) for record in records)
    assert size_generator.calls - before == sum(record.forward for record in records)
    assert frozen.calls == sum(record.base for record in records)


def test_the_frozen_model_draws_each_image_once(size_generator, size_readers):
    records = tuned(size_generator, size_readers, SHORT)
    assert [record.base for record in records] == [2 * 8 * 4, 0, 0, 0, 0, 0]
    blocks = tuned(type(size_generator)(), size_readers, dataclasses.replace(SHORT, cache_block=4))
    assert [record.base for record in blocks] == [2 * 4 * 4, 2 * 4 * 4, 0, 0, 0, 0]


def test_a_bank_serves_several_runs_but_not_another_seed(size_generator, size_readers):
    cache = cached(size_generator.frozen_copy(), size_readers)
    first = tuned(type(size_generator)(), size_readers, SHORT, base_cache=cache)
    second = tuned(type(size_generator)(), size_readers, SHORT, base_cache=cache)
    assert sum(record.base for record in second) == 0 < sum(record.base for record in first)
    assert torch.equal(first[-1].logits, second[-1].logits)
    with pytest.raises(SettingsError, match="base cache was made with another noise_seed"):
        tuned(
            type(size_generator)(),
            size_readers,
            dataclasses.replace(SHORT, seed=1),
            base_cache=cache,
        )


def test_one_bank_of_noises_for_several_seeds(size_generator, size_readers):
    settings = [dataclasses.replace(SHORT, seed=seed, noise_seed=9, steps=2) for seed in (0, 1)]
    cache = cached(size_generator.frozen_copy(), size_readers, settings[0])
    assert list(cache.fill())[-1] == (2, 2)
    runs = [
        tuned(type(size_generator)(), size_readers, each, base_cache=cache) for each in settings
    ]
    assert all(record.base == 0 for records in runs for record in records)
    assert not torch.equal(runs[0][-1].state.named["0.weight"], runs[1][-1].state.named["0.weight"])


def test_saved_latents_serve_another_classifier(size_generator, size_readers, tmp_path):
    cache = cached(size_generator.frozen_copy(), size_readers)
    expected = cache.all_logits(1)
    write_tensors(tmp_path / "cache.safetensors", cache.to_tensors())
    other = cached(cache.base, (lambda images: -size_readers[0](images), size_readers[1]))
    other.load(read_tensors(tmp_path / "cache.safetensors"))
    assert torch.equal(other.all_logits(1), -expected)
    assert other.evaluations == 0 < cache.evaluations


def test_saved_readings_spare_decoding_too(size_generator, size_readers, tmp_path):
    cache = cached(size_generator.frozen_copy(), size_readers)
    drawn = list(cache.draw())
    assert drawn[-1] == (2, 2) and not cache.readings
    expected = cache.read(0, [3, 1])
    write_tensors(tmp_path / "readings.safetensors", cache.to_tensors(readings=True))
    other = cached(cache.base, (None, None)).load(read_tensors(tmp_path / "readings.safetensors"))
    for found, wanted in zip(other.read(0, [3, 1]), expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_bank_reads_what_the_frozen_model_draws(size_generator, size_readers):
    cache = cached(size_generator.frozen_copy(), size_readers)
    logits, embeds = cache.read(1, [6, 0, 6])
    noise = size_generator.noise(SHORT.seed, [6, 0, 6])
    prompt = size_generator.encode_prompts(["LGG"]).expand(3, -1, -1)
    solver = dpm_solver_2m(size_generator.alphas_cumprod, 4)
    images = size_generator.decode(
        solver.run(lambda x, t: size_generator.predict_noise(x, t, prompt, 3.0), noise)
    )
    torch.testing.assert_close(logits, size_readers[0](images))
    torch.testing.assert_close(embeds, size_readers[1](images))


def test_a_model_that_predicts_velocity_is_sampled_as_its_twin_that_predicts_noise(
    size_generator, size_readers
):
    """The same model in other words: v = sqrt(a) noise - sqrt(1 - a) clean, here (noise - sqrt(1 -
    a) x) / sqrt(a).
    """

    class Velocity(type(size_generator)):
        prediction_type = "v_prediction"

        def predict_noise(self, latents, timestep, *rest):
            signal = self.alphas_cumprod.to(latents)[torch.as_tensor(timestep).view(-1, 1, 1, 1)]
            return (
                super().predict_noise(latents, timestep, *rest) - (1 - signal) ** 0.5 * latents
            ) / signal**0.5

    settings = dataclasses.replace(SHORT, steps=1, family="transport")
    one, other = (tuned(model, size_readers, settings)[0] for model in (size_generator, Velocity()))
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-3, atol=1e-3)
    # of the frozen copies
    torch.testing.assert_close(one.targets, other.targets, rtol=1e-3, atol=1e-3)


def test_the_first_step_sees_the_frozen_images(size_generator, size_readers):
    record = tuned(size_generator, size_readers, SHORT)[0]
    assert record.cosine.min() > 1 - 1e-6 and record.consistency == pytest.approx(0, abs=1e-6)


def test_transport_targets_never_change_and_quantile_targets_do(size_generator, size_readers):
    def seen(family):
        settings = dataclasses.replace(SHORT, family=family, steps=10, pool_size=0)
        found = {}
        for record in tuned(type(size_generator)(), size_readers, settings):
            for key, value in zip(
                zip(record.prompts, record.noises, strict=True),
                record.targets.tolist(),
                strict=True,
            ):
                found.setdefault(key, set()).add(round(value, 5))
        return max(len(values) for values in found.values())

    assert seen("transport") == 1 < seen("quantile")


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(size_generator, size_readers):
    calls = []

    def broken(images):
        calls.append(len(images))
        return size_readers[0](images) * (
            math.nan if images.requires_grad and len(calls) == 5 else 1
        )

    before = size_generator.net[-1].weight.clone()
    records = tuned(
        size_generator, (broken, size_readers[1]), dataclasses.replace(SHORT, cache_size=4, steps=3)
    )
    assert [record.skipped for record in records] == [False, True, False]
    assert records[-1].state.skipped == 1 and records[-1].state.updates == 2
    assert size_generator.net[-1].weight.isfinite().all() and not torch.equal(
        size_generator.net[-1].weight, before
    )


def test_the_consistency_floor_stops_the_run(size_generator, size_readers):
    def turning(images):
        """An embedding that turns fast with size."""
        angle = size_readers[0](images)
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    settings = dataclasses.replace(
        SHORT, steps=60, learning_rate=0.05, consistency_weight=0.0, consistency_floor=0.9
    )
    frozen = size_generator.frozen_copy()
    records = tuned(size_generator, (size_readers[0], turning), settings)
    assert len(records) < 60
    assert records[-1].state.extra["cosine"] < 0.9
    assert not tuned(
        size_generator,
        (size_readers[0], turning),
        settings,
        state=records[-1].state.to_tensors(),
        base=frozen,
    )


def test_consistency_holds_the_images_and_less_so_where_the_class_must_change(
    size_generator, size_readers
):
    def cosines(weight, factor):
        settings = dataclasses.replace(
            LONG,
            family="transport",
            steps=25,
            consistency_weight=weight,
            consistency_change_factor=factor,
        )
        record = tuned(type(size_generator)(), size_readers, settings)[-1]
        return float(record.cosine[record.changes].mean())

    free, partly, held = cosines(0.0, 0.2), cosines(200.0, 0.02), cosines(200.0, 1.0)
    assert free < partly < held


def test_classifiers_keep_no_gradient(size_generator, size_readers):
    scale = torch.nn.Parameter(torch.ones(()))
    tuned(size_generator, (lambda images: size_readers[0](images) * scale, size_readers[1]), SHORT)
    assert scale.grad is None
    assert all(parameter.grad is None for parameter in size_generator.parameters())


def test_lora_tunes_the_adapter_alone(size_generator, size_readers):
    before = {name: value.clone() for name, value in size_generator.state_dict().items()}
    settings = dataclasses.replace(SHORT, trainable="lora", lora_rank=3)
    record = tuned(size_generator, size_readers, settings)[-1]
    assert size_generator.lora_rank == 3
    changed = {
        name
        for name, value in size_generator.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"net.4.weight", "net.4.bias"}
    assert record.state.named.keys() == {"weight", "bias"}


@pytest.mark.parametrize("end", ["exhausted", "break", "close", "error"])
def test_however_the_loop_ends_the_model_holds_the_average(size_generator, size_readers, end):
    steps = started(size_generator, size_readers, SHORT)
    try:
        for record in steps:
            live = size_generator.net[0].weight.detach().clone()
            average = record.state.ema["0.weight"]
            assert torch.equal(record.state.to_tensors()["weight/0.weight"], live)
            if record.step == 2 and end == "break":
                break
            if record.step == 2 and end == "close":
                steps.close()
            if record.step == 2 and end == "error":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    del steps
    assert record.step == (5 if end == "exhausted" else 2) and not torch.equal(live, average)
    assert torch.equal(size_generator.net[0].weight, average)
    assert torch.equal(record.state.to_tensors()["weight/0.weight"], live), "to go on from"


def test_pools_keep_the_last_finite_logits(size_generator):
    state = al.AlignmentState(size_generator.trainable_parameters(), SHORT)
    state.remember("a", torch.tensor([1.0, math.nan, 2.0]), 3)
    state.remember("a", torch.tensor([3.0, 4.0]), 3)
    state.remember("b", torch.tensor([3.0]), 0)
    assert state.pool("a").tolist() == [2, 3, 4] and state.pool("b") is None


def test_the_schedule_is_even_and_pure():
    sizes = {"prompts_per_step": 2, "images_per_prompt": 4, "cache_size": 8}
    five, six = (al.AlignmentSettings(seed=seed, **sizes) for seed in (5, 6))
    pairs = [pair for step in range(12) for pair in al.schedule(five, step, 3)]
    seen = [(prompt, index) for prompt, indices in pairs for index in indices]
    assert sorted(seen) == sorted([(p, i) for p in range(3) for i in range(8)] * 4)
    assert al.schedule(five, 7, 3) == pairs[14:16]
    assert al.schedule(six, 7, 3) != pairs[14:16]
    first_lap = {(prompt, tuple(indices)) for prompt, indices in pairs[:6]}
    assert first_lap == {(p, block) for p in range(3) for block in [(0, 1, 2, 3), (4, 5, 6, 7)]}


def test_the_rate_warms_up_and_anneals():
    settings = dataclasses.replace(LONG, learning_rate=1.0, warmup=4, steps=104)
    rates = [settings.fit.learning_rate_at(step) for step in range(104)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[54] == pytest.approx(0.5) and rates[-1] < 1e-3
    assert dataclasses.replace(settings, anneal="none").fit.learning_rate_at(99) == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"replay_steps": 5},
        {"cache_size": 9},
        {"ema_decay": 1.0},
        {"learning_rate": 0.0},
        {"confidence_threshold": 0.3},
        {"cache_block": 0},
        {"pool_size": -3},
        {"warmup": -2},
        {"micro_batch": -1},
        {"seed": -1},
        {"noise_seed": -1},
        {"guidance_scale": -3.0},
        {"guidance_scale": math.nan},
        {"learning_rate": math.inf},
        {"weight_decay": -0.1},
        {"alignment_weight": -1.0},
        {"consistency_weight": -4.0},
        {"consistency_weight": math.nan},
        {"consistency_change_factor": -0.2},
        {"consistency_floor": 1.5},
    ],
)
def test_impossible_settings_are_refused(change):
    ((name, value),) = change.items()
    with pytest.raises(SettingsError, match=f"AlignmentSettings.{name} is {value}; expected"):
        dataclasses.replace(SHORT, **change)


@pytest.mark.parametrize(
    "name, value, near",
    [
        ("family", "quantiles", "quantile"),
        ("solver", "dpm", "dpm_solver_2m"),
        ("replay_scheme", "late", "early"),
        ("step_weights", "even", "flat"),
        ("anneal", "linear", "cosine"),
        ("trainable", "LoRA", "lora"),
    ],
)
def test_a_word_that_names_nothing_is_refused_whoever_builds_the_settings(name, value, near):
    """None of them may stand for something else in silence."""
    with pytest.raises(
        SettingsError, match=f"AlignmentSettings.{name} is {value!r}; expected one of .*{near!r}"
    ):
        AlignmentSettings(**{name: value})


def test_settings_come_from_a_profile():
    assert from_dict(AlignmentSettings, {"family": "class", "micro_batch": 4}).micro_batch == 4
    with pytest.raises(SettingsError, match="AlignmentSettings.family"):
        from_dict(AlignmentSettings, {"family": "quantiles"})
    with pytest.raises(SettingsError, match="replay_steps"):
        from_dict(AlignmentSettings, {"replay_step": 2})


@pytest.mark.parametrize(
    "prompts,targets,message",
    [
        (["HGG"], targets_of(0.4, 0.4), "targets; give one each"),
        (["HGG"], targets_of(0.4, 0.4)[:1], "prompts_per_step"),
        (
            PROMPTS,
            [target_of("all", p) for p in (0.3, 0.4)],
            "'all' has two targets",
        ),
    ],
)
def test_prompts_and_targets_must_fit(size_generator, size_readers, prompts, targets, message):
    with pytest.raises(SettingsError, match=message):
        al.tune(size_generator, size_readers[0], prompts, targets, settings=SHORT)


def test_a_state_of_another_model_is_refused(size_generator, size_readers):
    other = al.AlignmentState({"w": torch.nn.Parameter(torch.zeros(3))}, SHORT).to_tensors()
    with pytest.raises(WeightsError, match="not the one that the run began with"):
        tuned(size_generator, size_readers, SHORT, state=other)
    for state in (other, {"w": torch.zeros(3)}):
        with pytest.raises(WeightsError, match="does not fit this network"):
            tuned(
                size_generator, size_readers, SHORT, state=state, base=size_generator.frozen_copy()
            )


# ---- losses, against closed forms and the torch functions they are not made of


@pytest.fixture
def logits():
    return torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("gap,expected", [(0.0, 0.0), (0.5, 0.125), (3.0, 2.5), (-3.0, 2.5)])
def test_transport_alignment_is_quadratic_then_linear(gap, expected):
    assert float(
        al.transport_alignment(torch.tensor([1.0 + gap]), torch.tensor([1.0]))
    ) == pytest.approx(expected)


def test_transport_alignment_is_linear_beyond_beta():
    assert float(
        al.transport_alignment(torch.tensor([3.0]), torch.zeros(1), beta=2.0)
    ) == pytest.approx(3 - 1)


def test_class_alignment_leaves_out_the_unsure_but_divides_by_all(logits):
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 1])
    confidence = torch.tensor([0.9, 0.5, 0.8, 0.79, 1.0, 0.6, 0.95])
    each = [-math.log(torch.sigmoid(x if y else -x)) for x, y in zip(logits, labels, strict=True)]
    expected = (each[0] + each[2] + each[4] + each[6]) / 7
    assert float(al.class_alignment(logits, labels, confidence, 0.8)) == pytest.approx(expected)


def test_two_classes_as_softmax_are_the_binary_loss(logits):
    pair = torch.stack([torch.zeros_like(logits), logits], dim=1)
    labels, sure = torch.tensor([1, 0, 1, 0, 1, 0, 1]), torch.tensor([1.0, 1, 0, 1, 1, 0.9, 1])
    expected = al.class_alignment(logits, labels, sure)
    assert float(al.class_alignment(pair, labels, sure)) == pytest.approx(float(expected))


def test_no_confident_image_gives_zero_and_a_gradient(logits):
    leaf = logits.clone().requires_grad_()
    loss = al.class_alignment(leaf, torch.ones(7), torch.zeros(7))
    loss.backward()
    assert loss.item() == 0 and not leaf.grad.any()


def test_mean_probability_kl_is_the_divergence_in_nats(logits):
    mean = float(torch.sigmoid(logits).mean())
    expected = 0.458 * math.log(0.458 / mean) + 0.542 * math.log(0.542 / (1 - mean))
    assert float(al.mean_probability_kl(logits, 0.458)) == pytest.approx(expected)


def test_mean_probability_losses_of_k_classes_agree_with_the_binary_ones(logits):
    pair, shares = torch.stack([logits, torch.zeros_like(logits)], dim=1), torch.tensor([0.3, 0.7])
    for loss in (al.mean_probability_kl, al.mean_probability_l2):
        assert float(loss(pair, shares)) == pytest.approx(float(loss(logits, 0.3)))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_mean_probability_kl_takes_shares_of_nought_and_one(logits, share):
    mean = float(torch.sigmoid(logits).mean())
    assert float(al.mean_probability_kl(logits, share)) == pytest.approx(
        -math.log(mean if share else 1 - mean)
    )


def test_mean_losses_are_blind_to_ambiguity():
    """Their degenerate optimum: every image at the share itself is as good as the right mixture of
    sure images.
    """
    ambiguous = torch.full((1000,), math.log(0.458 / 0.542), dtype=torch.float64)
    sure = torch.cat([torch.full((458,), 30.0), torch.full((542,), -30.0)]).double()
    for loss in (al.mean_probability_kl, al.mean_probability_l2):
        assert float(loss(ambiguous, 0.458)) == pytest.approx(0, abs=1e-9)
        assert float(loss(sure, 0.458)) == pytest.approx(0, abs=1e-9)


def test_mean_probability_l2_counts_both_classes(logits):
    mean = float(torch.sigmoid(logits).mean())
    assert float(al.mean_probability_l2(logits, 0.2)) == pytest.approx(2 * (mean - 0.2) ** 2)


def test_consistency_is_weighted_one_minus_cosine():
    angles = torch.tensor([0.0, math.pi / 3, math.pi], dtype=torch.float64)
    embeds = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1]])
    reference = torch.tensor([[2.0, 0.0]] * 3, dtype=torch.float64)
    assert float(al.consistency(embeds, reference)) == pytest.approx((0 + 0.5 + 2) / 3)
    weights = torch.tensor([1.0, 1.0, 0.2])
    assert float(al.consistency(embeds, reference, weights)) == pytest.approx((0 + 0.5 + 0.4) / 3)


def test_every_loss_passes_gradcheck(logits):
    leaf, other = logits.clone().requires_grad_(), torch.linspace(-2, 2, 7, dtype=torch.float64)
    sure = torch.ones(7)
    for loss in (
        lambda x: al.transport_alignment(x, other),
        lambda x: al.class_alignment(x, (other > 0).double(), sure),
        lambda x: al.mean_probability_kl(x, 0.3),
        lambda x: al.mean_probability_l2(x, 0.3),
    ):
        assert torch.autograd.gradcheck(loss, (leaf,))


# ---- memory


def test_a_micro_batch_bounds_sampling_decoding_and_the_base_cache(size_generator, size_readers):
    sizes = {"predict_noise": [], "decode": []}

    class Counting(type(size_generator)):
        def predict_noise(self, latents, *rest):
            sizes["predict_noise"].append(len(latents))
            return super().predict_noise(latents, *rest)

        def decode(self, latents):
            sizes["decode"].append(len(latents))
            return super().decode(latents)

    settings = dataclasses.replace(SHORT, steps=1, micro_batch=3)
    [record] = tuned(Counting(), size_readers, settings)
    assert max(sizes["predict_noise"]) == max(sizes["decode"]) == 3
    [whole] = tuned(size_generator, size_readers, dataclasses.replace(settings, micro_batch=None))
    torch.testing.assert_close(record.logits, whole.logits)
    assert (record.forward, record.base) == (whole.forward, whole.base)
