"""Generate and keep against closed forms, brute force and a toy generator."""

import itertools

import numpy as np
import pytest
import torch

from fairlib.errors import SettingsError
from fairlib.methods import selection as sel
from fairlib.methods.targets import Target, group_shares
from fairlib.models.solvers import dpm_solver_2m

RNG = np.random.default_rng(0)
SCORES = np.concatenate([RNG.normal(3, 1, 60), RNG.normal(-3, 1, 60)])
TARGET = Target.shares({"F": 0.458, "M": 0.542}, SCORES, ["F"] * 60 + ["M"] * 60)
THREE = Target.shares(
    {"a": 0.2, "b": 0.3, "c": 0.5}, RNG.normal(size=(30, 3)) + 4 * np.eye(3).repeat(10, 0)
)


def test_acceptance_brings_the_base_shares_to_the_target():
    base, shares = np.array([0.16, 0.3, 0.54]), np.array([0.5, 0.1, 0.4])
    for strength in (0.0, 0.5, 1.0):
        chances, rate = sel.acceptance(base, shares, strength)
        assert rate == pytest.approx(base @ chances)
        assert base * chances / rate == pytest.approx(base + strength * (shares - base))
    assert rate == pytest.approx(0.16 / 0.5) and chances.max() == 1
    assert sel.acceptance([0.5, 0.5], [1, 0])[0].tolist() == [1, 0]


def test_a_group_that_is_never_generated_cannot_be_kept():
    with pytest.raises(SettingsError, match="no draw is ever of that group"):
        sel.acceptance([0, 1], [0.458, 0.542])
    with pytest.raises(SettingsError, match=r"strength is 2; expected in \[0, 1\]"):
        sel.acceptance([0.5, 0.5], [0.458, 0.542], 2)


def distance(rows, logits, points):
    """Least total squared distance of some images to points, over every pairing."""
    return min(
        sum(
            float(np.sum((logits[row] - point) ** 2))
            for row, point in zip(order, points, strict=True)
        )
        for order in itertools.permutations(rows)
    )


@pytest.mark.parametrize("target", [TARGET, THREE])
def test_transport_chooses_the_nearest_of_all_subsets(target):
    two, count = target is TARGET, 3
    logits = 3 * np.random.default_rng(1).normal(size=7 if two else (7, 3))
    levels = (np.arange(count) + 0.5) / count
    points = target.distribution().quantile(levels) if two else target.sample(count)
    chosen = sel.choose_noises(torch.tensor(logits), target, count)
    best = min(itertools.combinations(range(7), count), key=lambda r: distance(r, logits, points))
    assert chosen.tolist() == list(best)


@pytest.mark.parametrize("target", [TARGET, THREE])
def test_a_large_pool_gives_the_shares_of_the_target(target):
    shape = 400 if target is TARGET else (400, 3)
    logits = torch.tensor(4 * np.random.default_rng(2).normal(size=shape) - 1)
    rows = sel.choose_noises(logits, target, 50)
    assert len(set(rows.tolist())) == 50
    shares = group_shares(logits[rows], target.groups)
    assert list(shares.values()) == pytest.approx(target.proportions, abs=0.03)


def test_all_of_a_pool_is_all_of_it_and_more_is_refused():
    logits = torch.tensor([1.0, -1.0, -2.0])
    assert sel.choose_noises(logits, TARGET, 3).tolist() == [0, 1, 2]
    with pytest.raises(SettingsError, match="4 images cannot be chosen among 3"):
        sel.choose_noises(logits, TARGET, 4)


@pytest.fixture
def sampler(size_generator):
    """The toy generator with `Generator.sample`."""

    def sample(prompts, *, noise, steps=6, guidance_scale=1.0):
        embeds = size_generator.encode_prompts(prompts)
        solver = dpm_solver_2m(size_generator.alphas_cumprod, steps)
        with torch.no_grad():
            return size_generator.decode(
                solver.run(
                    lambda x, t: size_generator.predict_noise(x, t, embeds, guidance_scale), noise
                )
            )

    size_generator.sample = sample
    return size_generator


def base_shares(sampler, classifier, count=4000):
    noise = sampler.noise(5, range(count))
    return [
        group_shares(classifier(sampler.sample([prompt] * count, noise=noise)), TARGET.groups)
        for prompt in ("HGG", "LGG")
    ]


def test_accept_and_reject_reaches_the_shares_at_the_expected_cost(sampler, size_readers):
    shares = base_shares(sampler, size_readers[0])
    kept = list(
        sel.generate_and_keep(
            sampler, size_readers[0], ["HGG", "LGG"], TARGET, 500, base_shares=shares, block=200
        )
    )
    for prompt in (0, 1):
        images = [image for image in kept if image.prompt == prompt]
        female = np.mean([float(image.logits) > 0 for image in images])
        _, rate = sel.acceptance(list(shares[prompt].values()), TARGET.proportions)
        assert len(images) == 500 and female == pytest.approx(0.458, abs=0.06)
        assert images[-1].draws == images[-1].noise + 1
        assert images[-1].draws * rate == pytest.approx(500, rel=0.15)
        assert shares[prompt]["F"] < 0.45


def test_which_images_are_kept_does_not_depend_on_the_block(sampler, size_readers):
    def noises(block, seed=0):
        return [
            (image.prompt, image.noise)
            for image in sel.generate_and_keep(
                sampler,
                size_readers[0],
                ["HGG", "LGG"],
                TARGET,
                9,
                base_shares=[{"F": 0.2, "M": 0.8}] * 2,
                block=block,
                seed=seed,
            )
        ]

    assert noises(4) == noises(7) != noises(4, seed=1)


def test_a_pool_brings_the_whole_distribution(sampler, size_readers):
    given = {"rule": "transport", "draws_per_image": 8, "block": 40}
    wide = Target.shares({"F": 0.458, "M": 0.542}, SCORES / 2, ["F"] * 60 + ["M"] * 60)
    kept = list(sel.generate_and_keep(sampler, size_readers[0], ["LGG"], wide, 40, **given))
    logits = np.sort([float(image.logits) for image in kept])
    assert kept[0].draws == 320
    levels = (np.arange(40) + 0.5) / 40
    assert np.abs(logits - wide.distribution().quantile(levels)).mean() < 0.2


@pytest.mark.parametrize("pool", [0.5, 0, -3.0, float("nan"), float("inf")])
def test_a_pool_smaller_than_its_choice_or_without_an_end_is_refused(sampler, size_readers, pool):
    given = {"rule": "transport", "draws_per_image": pool}
    with pytest.raises(SettingsError, match=f"draws_per_image is {pool}; give a number from 1"):
        list(sel.generate_and_keep(sampler, size_readers[0], ["LGG"], TARGET, 2, **given))


def test_wrong_base_shares_end_with_an_error(sampler, size_readers):
    with pytest.raises(SettingsError, match="0 base shares for 1 prompts"):
        next(sel.generate_and_keep(sampler, size_readers[0], ["HGG"], TARGET, 4))
    with pytest.raises(SettingsError, match="rule is 'best'"):
        next(sel.generate_and_keep(sampler, size_readers[0], ["HGG"], TARGET, 4, rule="best"))
    never = Target.shares({"F": 1, "M": 0})
    with pytest.raises(SettingsError, match="gave 0 of 4 images and 4 were expected"):
        list(
            sel.generate_and_keep(
                sampler,
                lambda images: -torch.ones(len(images)),
                ["HGG"],
                never,
                4,
                base_shares=[{"F": 1.0, "M": 0.0}],
            )
        )
