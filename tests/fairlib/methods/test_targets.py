"""Targets against numpy's quantiles, scipy's binomial, brute force and POT."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlib.errors import SettingsError
from fairlib.methods import targets as tg

FEMALE = np.random.default_rng(0).normal(2, 1.5, 38)
MALE = np.random.default_rng(1).normal(-2, 1.0, 63)
LEVELS = np.linspace(0, 1, 101)


def target_of(female, male, share, name="all"):
    labels = ["F"] * len(female) + ["M"] * len(male)
    scores = np.concatenate([np.asarray(female, dtype=float), np.asarray(male, dtype=float)])
    return tg.Target.shares({"F": share, "M": 1 - share}, scores, labels, name=name)


def mixture(female, male, share):
    return target_of(female, male, share).distribution()


def logits_of(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_equal_weights_give_numpys_hazen_quantiles():
    found = tg.weighted(MALE).quantile(LEVELS)
    np.testing.assert_allclose(found, np.quantile(MALE, LEVELS, method="hazen"), atol=1e-12)


def test_the_natural_share_gives_the_pooled_quantiles():
    pooled = np.concatenate([FEMALE, MALE])
    found = mixture(FEMALE, MALE, 38 / 101).quantile(LEVELS)
    np.testing.assert_allclose(found, np.quantile(pooled, LEVELS, method="hazen"), atol=1e-12)


def test_any_share_is_that_of_a_resampled_cohort():
    """Weights 3:1 are the same as each woman three times."""
    share = 3 * 38 / (3 * 38 + 63)
    repeated = np.concatenate([np.repeat(FEMALE, 3), MALE])
    found = mixture(FEMALE, MALE, share).quantile(LEVELS)
    wanted = np.quantile(repeated, LEVELS, method="hazen")
    assert np.abs(found - wanted).max() < 0.4 and np.abs(found - wanted).mean() < 0.03


@pytest.mark.parametrize("share,group", [(1.0, FEMALE), (0.0, MALE)])
def test_extreme_shares_are_one_sex_alone(share, group):
    np.testing.assert_allclose(
        mixture(FEMALE, MALE, share).quantile(LEVELS), tg.weighted(group).quantile(LEVELS)
    )


def test_separated_sexes_give_exactly_the_share():
    distribution = mixture(np.full(38, 3.0), np.full(63, -3.0), 0.458)
    assert (distribution.quantile((np.arange(10_000) + 0.5) / 10_000) > 0).mean() == pytest.approx(
        0.458, abs=0.015
    )


def test_ranks_go_to_midpoint_quantiles_in_order():
    distribution = tg.weighted(MALE)
    found = tg.quantile_targets(logits_of(5.0, -1.0, 0.0, 7.0), distribution)
    wanted = np.quantile(MALE, [0.625, 0.125, 0.375, 0.875], method="hazen")
    np.testing.assert_allclose(found.numpy(), wanted)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=30, unique=True), st.floats(0, 1))
def test_targets_are_monotone_and_the_cheapest_matching(values, share):
    """1-D optimal transport: no reordering of the targets is nearer to the logits."""
    logits = logits_of(*values)
    found = tg.quantile_targets(logits, mixture(FEMALE, MALE, share))
    order = logits.argsort()
    assert (found[order].diff() >= 0).all()
    shuffled = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]
    assert (
        float((logits - found).square().sum()) <= float((logits - shuffled).square().sum()) + 1e-9
    )


def test_targets_are_the_optimal_assignment_by_brute_force():
    logits = logits_of(0.3, -2.0, 1.1, 0.2, -0.5)
    found = tg.quantile_targets(logits, mixture(FEMALE, MALE, 0.458)).numpy()
    costs = [
        np.abs(logits.numpy() - found[list(p)]).sum() for p in itertools.permutations(range(5))
    ]
    assert np.abs(logits.numpy() - found).sum() == pytest.approx(min(costs))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_a_pool_keeps_the_spread_that_small_batches_lose(size):
    """Logits already distributed as the target: their targets should be too."""
    rng = np.random.default_rng(size)
    distribution = mixture(FEMALE, MALE, 0.458)
    spread = distribution.quantile((np.arange(5000) + 0.5) / 5000).std()

    def targets(pool_size):
        found = []
        for _ in range(600):
            draw = torch.as_tensor(distribution.quantile(rng.random(size + pool_size)))
            pool = draw[size:] if pool_size else None
            found.append(tg.quantile_targets(draw[:size], distribution, pool).numpy())
        return np.concatenate(found).std() / spread

    assert targets(128) == pytest.approx(1, abs=0.06)
    shrunk = targets(0)
    levels = (np.arange(size) + 0.5) / size
    assert shrunk == pytest.approx(distribution.quantile(levels).std() / spread, abs=1e-9)
    assert shrunk < {1: 1e-6, 2: 0.95, 4: 0.985, 8: 0.999, 16: 1}[size]


def test_ties_share_no_rank():
    assert sorted(tg.ranks(torch.zeros(4))[0]) == [0, 1, 2, 3]


def test_pooled_ranks_count_the_pool_below():
    rank, count = tg.ranks(logits_of(0.0, 2.0), logits_of(-1.0, 1.0, 3.0))
    assert rank.tolist() == [1, 3] and count == 5


def test_the_transport_map_carries_the_cache_onto_the_target():
    base = torch.randn(400, generator=torch.Generator().manual_seed(0)) - 3
    distribution = mixture(FEMALE, MALE, 0.458)
    mapped = tg.quantile_targets(base, distribution)
    assert (mapped[base.argsort()].diff() >= 0).all()
    wanted = distribution.quantile((np.arange(400) + 0.5) / 400)
    np.testing.assert_allclose(np.sort(mapped.numpy()), wanted, atol=1e-5)


def by_enumeration(count, male_share):
    """P(the image of ascending rank r is female) over every outcome of `count` coin flips."""
    female = np.zeros(count)
    for coins in itertools.product([0, 1], repeat=count):
        males = coins.count(0)
        chance = male_share**males * (1 - male_share) ** (count - males)
        female[males:] += chance
    return female


@pytest.mark.parametrize("share", [0.0, 0.2, 0.458, 0.5, 0.9, 1.0])
def test_the_rank_rule_is_the_enumeration(share):
    values = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, confidence = tg.binary_class_targets(values, share)
    expected = by_enumeration(7, 1 - share)
    order = values.argsort()
    np.testing.assert_allclose(
        confidence[order].numpy(), np.maximum(expected, 1 - expected), atol=1e-12
    )
    assert labels[order].tolist() == (expected > 0.5).tolist()


def test_the_published_example_keeps_twenty_of_twenty_four():
    """papers: N = 24, class-0 share 0.458, confidence 0.8."""
    labels, confidence = tg.binary_class_targets(torch.arange(24.0), 1 - 0.458)
    assert int((confidence >= 0.8).sum()) == 20
    assert int(labels.sum()) == 13  # 24 * 0.542


def test_the_label_share_follows_the_target_for_any_share():
    for share in (0.05, 0.3, 0.458, 0.8):
        labels, _ = tg.binary_class_targets(
            torch.randn(500, generator=torch.Generator().manual_seed(0)), share
        )
        assert float(labels.mean()) == pytest.approx(share, abs=0.004)


def test_optimal_transport_of_two_classes_is_the_rank_rule():
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    p = torch.sigmoid(logits)
    pair = torch.stack([1 - p, p], dim=1)
    labels, confidence = tg.optimal_transport_class_targets(
        pair, [0.542, 0.458], 4000, np.random.default_rng(0)
    )
    expected, sure = tg.binary_class_targets(logits, 0.458)
    np.testing.assert_allclose(confidence.numpy(), sure.numpy(), atol=0.03)
    clear = sure > 0.6
    assert (labels[clear] == expected[clear]).all()


def test_an_assignment_costs_what_pot_finds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import looks for backends that are not here
        import ot
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.dirichlet([0.7] * 4, size=16)
        counts = rng.multinomial(16, [0.1, 0.2, 0.3, 0.4])
        cost = np.linalg.norm(points[:, None] - np.eye(4), axis=2)
        classes = tg.assign(cost, counts)
        assert np.bincount(classes, minlength=4).tolist() == counts.tolist()
        expected = ot.emd2(np.full(16, 1 / 16), counts / 16, cost)
        assert cost[np.arange(16), classes].mean() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("share", [-0.1, 1.2, float("nan")])
def test_a_share_outside_nought_and_one_is_refused(share):
    with pytest.raises(SettingsError, match="one non-negative share a group"):
        target_of(FEMALE, MALE, share)


@pytest.mark.parametrize(
    "shares", [[0.5, 0.6], [0.2, 0.2, 0.2], [1.5, -0.5], [1.0], [float("nan"), 1.0]]
)
def test_shares_that_do_not_sum_to_one_are_refused(shares):
    with pytest.raises(SettingsError, match="shares"):
        tg.optimal_transport_class_targets(
            torch.ones(3, len(shares)), shares, 2, np.random.default_rng(0)
        )


def test_shares_and_classes_must_agree():
    with pytest.raises(SettingsError, match="3 shares"):
        tg.optimal_transport_class_targets(
            torch.ones(3, 2), [0.2, 0.3, 0.5], 2, np.random.default_rng(0)
        )


@pytest.mark.parametrize(
    "female,male,share", [([], MALE, 0.4), (FEMALE, [], 0.4), ([float("nan")], MALE, 0.4)]
)
def test_a_sex_without_logits_is_refused(female, male, share):
    with pytest.raises(SettingsError, match="not the finite logits of real images of '(F|M)'"):
        mixture(female, male, share)


# ---- groups of any names


def three(count=24, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.array(["a", "b", "c"])[np.arange(count) % 3]
    scores = rng.normal(0, 1, (count, 3)) + 3 * (np.arange(3) == (np.arange(count) % 3)[:, None])
    return torch.tensor(scores), labels.tolist()


def test_two_columns_are_the_difference_of_the_first_and_the_second():
    scores = torch.tensor([[3.0, 1.0], [-1.0, 2.0]])
    assert tg.class_logits(scores).tolist() == [2, -3]
    pair = tg.Target.shares({"x": 0.3, "y": 0.7}, scores)
    assert pair == tg.Target.shares({"x": 0.3, "y": 0.7}, [2.0, -3.0])
    assert tg.classes_of(tg.class_logits(scores)).tolist() == [1, 0]
    assert tg.group_shares(torch.tensor([1.0, 2.0, -3.0]), ("x", "y")) == pytest.approx(
        {"x": 2 / 3, "y": 1 / 3}
    )


def test_logits_of_three_groups_are_centred_and_their_shares_counted():
    scores, _ = three()
    logits = tg.class_logits(scores + 7)
    assert torch.allclose(logits.mean(1), torch.zeros(24).double()) and torch.allclose(
        logits, tg.class_logits(scores)
    )
    shares = tg.group_shares(logits, ("a", "b", "c"))
    assert shares == pytest.approx(
        dict(zip("abc", (np.bincount(scores.argmax(1), minlength=3) / 24).tolist(), strict=True))
    )


def test_without_labels_the_classifier_names_the_groups():
    scores, labels = three()
    named = ["abc"[place] for place in scores.argmax(1)]
    shares = {"a": 0.2, "b": 0.3, "c": 0.5}
    assert tg.Target.shares(shares, scores) == tg.Target.shares(shares, scores, named)
    assert tg.Target.shares(shares, scores, labels).logits[1][0] == pytest.approx(
        tg.class_logits(scores)[1].tolist()
    )


def test_each_recorded_group_has_its_share_as_mass_whatever_the_classifier_says():
    """A classifier that is right on 2 of 3 of the first group and on 3 of 4 of the second."""
    scores, labels = [-2.0, 3.0, 4.0, -5.0, -4.0, -3.0, 1.0], ["F"] * 3 + ["M"] * 4
    values, weights = tg.Target.shares({"F": 0.3, "M": 0.7}, scores, labels).weighted_logits()
    mass = dict(zip(values.tolist(), weights.tolist(), strict=True))
    assert mass == pytest.approx(dict.fromkeys(scores[:3], 0.1) | dict.fromkeys(scores[3:], 0.175))
    read_as_first = 0.3 * 2 / 3 + 0.7 * 1 / 4
    assert weights[values > 0].sum() == pytest.approx(read_as_first)
    values, weights = tg.Target.shares({"F": 0.3, "M": 0.7}, scores).weighted_logits()
    assert weights[values > 0].sum() == pytest.approx(0.3)


def test_a_sample_of_the_target_has_its_shares():
    scores, labels = three(300)
    target = tg.Target.shares({"a": 0.2, "b": 0.3, "c": 0.5}, scores, labels)
    classes = {
        tuple(row): group for group, rows in zip("abc", target.logits, strict=True) for row in rows
    }
    counts = [classes[tuple(row)] for row in target.sample(50).tolist()]
    assert [counts.count(group) for group in "abc"] == [10, 15, 25]


def test_transport_of_three_groups_is_the_cheapest_assignment():
    scores, labels = three()
    target = tg.Target.shares({"a": 0.5, "b": 0.25, "c": 0.25}, scores, labels)
    logits = tg.class_logits(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    found = tg.transport_targets(logits, target).double()
    points = torch.as_tensor(target.sample(5))
    costs = [
        float((logits - points[list(order)]).square().sum())
        for order in itertools.permutations(range(5))
    ]
    assert float((logits - found).square().sum()) == pytest.approx(min(costs), rel=1e-6)
    assert sorted(map(tuple, found.float().tolist())) == sorted(map(tuple, points.float().tolist()))


def test_a_pool_takes_part_in_the_assignment_and_is_left_out_of_the_answer():
    scores, labels = three()
    target = tg.Target.shares({"a": 0.5, "b": 0.25, "c": 0.25}, scores, labels)
    logits = tg.class_logits(scores[:4])
    alone, pooled = (
        tg.transport_targets(logits, target),
        tg.transport_targets(logits, target, logits),
    )
    assert alone.shape == pooled.shape == (4, 3) and not torch.equal(alone, pooled)
    rng = np.random.default_rng(0)
    classes, confidence = tg.class_targets(logits, target, logits, draws=50, rng=rng)
    assert classes.shape == confidence.shape == (4,) and classes.dtype == torch.int64


def test_each_prompt_has_the_target_of_its_group():
    both = tg.Target.by_group(
        {"HGG": target_of(FEMALE, MALE, 0.4), "LGG": target_of(FEMALE, MALE, 0.6)}
    )
    assert [each.name for each in both.values()] == ["HGG", "LGG"]
    chosen = tg.target_of_each({"p": "LGG", "q": "HGG", "r": "LGG"}, both)
    assert [each.proportions[0] for each in chosen] == [0.6, 0.4, 0.6]
    assert len(tg.target_of_each(["p", "q"], both["HGG"])) == 2
    other = tg.Target.shares({"x": 0.5, "y": 0.5})
    with pytest.raises(SettingsError, match="name different groups"):
        tg.Target.by_group({"HGG": both["HGG"], "LGG": other})
