"""The outcomes against simulated generators whose shares, gaps and sizes are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fairlib.errors import DataError
from fairlib.measures.shares import rogan_gladen
from studies.brain import outcomes

TARGET, SIZES = 0.458, {1: (138.0, 4.0), 0: (151.0, 4.0)}
SENSITIVITY, SPECIFICITY = 0.92, 0.87


def read(sex: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Probabilities of an evaluator with known error rates."""
    right = rng.random(sex.shape) < np.where(sex == 1, SENSITIVITY, SPECIFICITY)
    return np.where(right, sex, 1 - sex) * 0.8 + 0.1


def sizes(sex: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mean, spread = (np.where(sex == 1, SIZES[1][i], SIZES[0][i]) for i in (0, 1))
    return rng.normal(mean, spread)


def world(
    shares: dict[str, float], seed: int = 0, seeds: int = 5, each: int = 100, spread: float = 0.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Readings and a calibration set of generators with true `shares` of every prompt, or that
    share plus a prompt's own deviation of standard deviation `spread`.
    """
    rng, rows, known = np.random.default_rng(seed), [], []
    truth = np.repeat([1, 0], 1000)
    fixed = read(truth, rng)
    extents = sizes(truth, rng)
    for number in range(1, seeds + 1):
        sex = np.where(truth == 1, "F", "M")
        subjects = np.arange(len(truth)).astype(str)
        columns = {"set": "radiology", "seed": number, "subject": subjects, "sex": sex}
        known.append(pd.DataFrame(columns | {"anatomy": fixed, "extent_mm": extents}))
        for arm, share in shares.items():
            prompt = np.repeat(np.arange(8), each)
            level = share + spread * rng.standard_normal(8)[prompt]
            drawn = (rng.random(len(prompt)) < level).astype(int)
            columns = {"arm": arm, "seed": number, "image": np.arange(len(prompt))}
            columns |= {"prompt": [f"p{code}" for code in prompt], "anatomy": read(drawn, rng)}
            rows.append(pd.DataFrame(columns | {"extent_mm": sizes(drawn, rng)}))
    return pd.concat(rows), pd.concat(known)


def compared(shares: dict[str, float], **options) -> outcomes.Comparison:
    return outcomes.compare(*world(shares, **options), "anatomy", list(shares))


def test_the_share_is_rogan_gladen_and_its_interval_covers_the_truth():
    data = compared({"untuned": 0.2, "tuned": 0.45})
    draws = data.draws(200, np.random.default_rng(1))
    a_f, a_m = outcomes.error_rates(data, draws)
    read = data.known[0] > 0.5
    assert a_f[0] == pytest.approx([read[:1000].mean()] * 5)
    raw = (data.p[1] > 0.5).mean(1)
    found = outcomes.shares(data, draws)
    expected = rogan_gladen(raw, a_f[0, 0], a_m[0, 0]).mean()
    assert found[0, 1] == pytest.approx(float(expected), abs=1e-6)
    assert 0.45 in outcomes.interval_of(found[:, 1])


def test_a_difference_of_arms_is_sharper_than_a_share_because_evaluator_errors_are_common():
    data = compared({"untuned": 0.44, "tuned": 0.45})
    found = outcomes.shares(data, data.draws(300, np.random.default_rng(2)))
    one = outcomes.interval_of(found[:, 1])
    both = outcomes.interval_of(found[:, 1] - found[:, 0])
    assert both.high - both.low < np.sqrt(2) * (one.high - one.low)


def test_the_confirmation_ratio_is_one_where_both_read_the_same_change():
    data = compared({"untuned": 0.2, "tuned": 0.45}, seeds=8)
    rng = np.random.default_rng(3)
    draws = data.draws(200, rng)
    found = outcomes.confirmation_ratio(data, data, "tuned", draws, draws)
    assert found.estimate == pytest.approx(1)
    again = outcomes.same_images(data, draws, rng)
    assert 1 in outcomes.confirmation_ratio(data, data, "tuned", draws, again)


@pytest.mark.parametrize("spread", [0.0, 0.06])
def test_the_prompt_gap_covers_the_true_spread_on_target_and_off_it(spread):
    covered = []
    for seed in range(25):
        data = compared({"tuned": TARGET}, seed=seed, seeds=4, spread=spread)
        draws = data.draws(150, np.random.default_rng(seed))
        covered.append(spread in outcomes.prompt_gap(data, draws, "tuned", TARGET))
    assert np.mean(covered) >= 0.84


def test_sizes_like_with_like_are_near_zero_where_the_generator_draws_each_sex_in_place():
    data = compared({"tuned": 0.3})
    draws = data.draws(200, np.random.default_rng(4))
    for sex in "FM":
        found = outcomes.size_within(data, draws, "tuned", sex)
        assert 0 in found and found.high - found.low < 0.5
    shifted = outcomes.Comparison(**vars(data) | {"extent": data.extent + 4.0})
    moved = outcomes.size_within(shifted, draws, "tuned", "M")
    first = outcomes.size_within(data, draws, "tuned", "M")
    assert moved.estimate - first.estimate == pytest.approx(
        4 / data.known_extent[1000:].std(ddof=1)
    )


def test_the_distance_of_sizes_reaches_its_floor_on_target_alone():
    near, floor = outcomes.size_distance(compared({"tuned": TARGET}), "tuned", TARGET)
    far, _ = outcomes.size_distance(compared({"tuned": 0.16}), "tuned", TARGET)
    assert near < 2.5 * floor
    assert far == pytest.approx((TARGET - 0.16) * (151 - 138), abs=0.5)


def test_contrasts_are_paired_t_tests_with_holm():
    data = compared({"untuned": 0.2, "plain": 0.30, "tuned": 0.45}, seeds=8)
    table = outcomes.contrasts(data, TARGET, "tuned", ["untuned", "plain"])
    each = outcomes.cell_shares(data, data.draws(0, np.random.default_rng(0)))[0]
    distance = np.abs(each - TARGET)
    expected = stats.ttest_rel(distance[2], distance[1])
    assert table.p[1] == pytest.approx(expected.pvalue)
    smaller, larger = sorted(table.p)
    assert sorted(table.p_holm) == pytest.approx(sorted([2 * smaller, max(2 * smaller, larger)]))
    assert (table.p_holm >= table.p).all() and (table.p_holm < 0.001).all()


def test_holm_is_the_worked_example_of_its_definition():
    corrected = outcomes.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_arms_without_a_common_seed_are_refused():
    readings, known = world({"untuned": 0.2, "tuned": 0.4}, seeds=2)
    other = readings[~((readings.arm == "tuned") & (readings.seed == 1))]
    data = outcomes.compare(other, known, "anatomy", ["untuned", "tuned"])
    assert data.seeds == (2,)
    with pytest.raises(DataError, match="share no seed"):
        outcomes.compare(other[other.arm == "tuned"].assign(arm="a"), known, "anatomy", ["a", "b"])


def test_the_variance_of_chosen_images_is_that_of_repeated_choices():
    """Even steps of a score that another evaluator reads with errors, 4,000 times over."""
    rng, count = np.random.default_rng(5), 125
    score = np.sort(rng.normal(0, 4, count))  # what is chosen hardly varies between choices
    chance = 1 / (1 + np.exp(-score))
    values = (rng.random((4000, count)) < chance).astype(float)
    shuffled = rng.permuted(np.arange(count))
    orders = np.broadcast_to(score[shuffled], values.shape)
    found = outcomes.neighbour_variance(values[:, shuffled], orders).mean()
    assert found == pytest.approx(values.mean(1).var(), rel=0.1)
    share = values.mean()
    assert found < 0.5 * share * (1 - share) / count, "of independent draws it would be"


def test_the_gap_of_chosen_images_loses_only_their_own_variance():
    readings, known = world({"untuned": 0.2, "tuned": 0.4}, seeds=2)
    data = outcomes.compare(readings, known, "anatomy", ["untuned", "tuned"])
    draws, own = data.draws(0, np.random.default_rng(0)), data.p[1]  # ranked by the reading itself
    plain = outcomes.prompt_gap(data, draws, "tuned", TARGET).estimate
    chosen = outcomes.prompt_gap(data, draws, "tuned", TARGET, own).estimate
    assert chosen > plain and chosen > 0.03


@pytest.mark.parametrize("table", ["readings", "calibration"])
def test_a_missing_reading_is_refused_and_never_counts_as_male(table):
    tables = dict(
        zip(
            ("readings", "calibration"), world({"untuned": 0.2, "tuned": 0.4}, seeds=2), strict=True
        )
    )
    tables[table].loc[tables[table].index[3], "anatomy"] = np.nan
    with pytest.raises(DataError, match="anatomy did not read every image of arms untuned, tuned"):
        outcomes.compare(*tables.values(), "anatomy", ["untuned", "tuned"])


@pytest.mark.parametrize("seeds, spread", [(8, 0.056), (8, 0.02), (24, 0.056)])
def test_the_power_is_how_often_simulated_tests_see_the_difference(seeds, spread):
    rng = np.random.default_rng(3)
    drawn = rng.normal(0.04, spread, (20_000, seeds))
    seen = (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
    assert outcomes.power(0.04, spread, seeds) == pytest.approx(seen, abs=0.012)
    assert outcomes.power(0.0, spread, seeds) == pytest.approx(0.05)
    assert outcomes.power(0.04, 0.0, seeds) == 1
