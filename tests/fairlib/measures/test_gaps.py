"""Gaps per prompt, and what chance alone makes of a generator that is exactly on target."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlib.errors import DataError
from fairlib.measures.gaps import beyond_chance, per_prompt_gap, sampling_floor
from fairlib.measures.shares import CalibrationSet, corrected_share

RNG = np.random.default_rng
# an evaluator that is always right
EXACT = CalibrationSet(np.array([0.9, 0.1]), np.array([1, 0]), np.array(["a", "b"]))


def readings(counts, n=100):
    """`counts` {prompt: number of n images read as female} as (p_female, prompts)."""
    p = np.concatenate([np.repeat([0.9, 0.1], [count, n - count]) for count in counts.values()])
    return p, np.repeat(list(counts), n)


def test_hand_worked():
    found = per_prompt_gap(*readings({"a": 50, "b": 30}), 0.45, EXACT, RNG(0), replicates=50)
    assert found.mean == pytest.approx((0.05 + 0.15) / 2)
    assert found.prompts.set_index("prompt").share.to_dict() == pytest.approx({"a": 0.5, "b": 0.3})
    assert (found.prompts.low <= found.prompts.share).all() and (
        found.prompts.share <= found.prompts.high
    ).all()


def test_a_target_for_each_prompt():
    found = per_prompt_gap(
        *readings({"a": 50, "b": 30}), {"a": 0.5, "b": 0.3}, EXACT, RNG(0), replicates=50
    )
    assert found.mean == pytest.approx(0) and found.beyond_chance.estimate == 0


def test_correction_uses_the_held_out_accuracies():
    """a_F = a_M = 0.75: an observed 0.5 + x is a true 0.5 + 2x."""
    truth = np.repeat([1, 0], 40)
    real = CalibrationSet(
        np.where((np.arange(80) % 4 > 0) == (truth == 1), 0.9, 0.1), truth, np.arange(80)
    )
    found = per_prompt_gap(*readings({"a": 60, "b": 45}), 0.5, real, RNG(0), 50)
    assert found.prompts.share.tolist() == pytest.approx([0.7, 0.4])
    assert found.mean == pytest.approx(0.15)


def test_floor_against_simulation():
    rng, a_f, a_m = RNG(0), 0.85, 0.9
    female = rng.random((20000, 60)) < 0.458
    read = np.where(female, rng.random(female.shape) < a_f, rng.random(female.shape) >= a_m).mean(1)
    corrected = np.clip((read + a_m - 1) / (a_f + a_m - 1), 0, 1)
    assert sampling_floor(0.458, 60, a_f, a_m) == pytest.approx(
        np.abs(corrected - 0.458).mean(), rel=0.02
    )


def test_floor_by_hand_and_by_number():
    assert sampling_floor(0.5, 1) == pytest.approx(0.5)
    assert sampling_floor(0.5, 2) == pytest.approx(0.25)
    floors = [sampling_floor(0.458, n) for n in (50, 200, 800)]
    assert floors[0] / floors[1] == pytest.approx(2, rel=0.03) and floors[1] / floors[
        2
    ] == pytest.approx(2, rel=0.03)


def test_a_generator_on_target_shows_its_floor_and_nothing_beyond():
    rng = RNG(1)
    # prompts enough for the mean of their gaps to be sharp
    prompts = np.repeat(np.arange(200), 100)
    found = per_prompt_gap(
        (rng.random(20000) < 0.458).astype(float), prompts, 0.458, EXACT, rng, replicates=50
    )
    assert found.mean == pytest.approx(found.floor, rel=0.1)
    assert found.beyond_chance.estimate < 0.015 < found.floor and 0 in found.beyond_chance


def observed(rng, share, n=125, people=186, draws=200, target=0.458, rates=(0.87, 0.9)):
    """Gaps [K] of prompts with true `share` [K], their variance [K] and noise [draws, K]: counts of `n` images and of
    `people` of each sex in the calibration set, drawn as the bootstrap draws them.
    """

    def corrected(raw, a_f, a_m):
        return (raw + a_m - 1) / (a_f + a_m - 1)

    a_f, a_m = rates
    real = [rng.binomial(n, a_f * share + (1 - a_m) * (1 - share)) / n]
    real += [rng.binomial(people, rate) / people for rate in rates]
    again = [rng.binomial(n, real[0], (draws, len(share))) / n]
    again += [rng.binomial(people, rate, (draws, 1)) / people for rate in real[1:]]
    variance = real[0] * (1 - real[0]) / (n - 1) / (real[1] + real[2] - 1) ** 2
    return corrected(*real) - target, variance, corrected(*again) - corrected(*real)


def test_beyond_chance_recovers_the_true_gap():
    """Half of the prompts 0.1 above, half 0.1 below: root mean square 0.1, whatever the number of
    images.
    """
    for n in (30, 300):
        gaps = observed(RNG(2), np.tile([0.558, 0.358], 400), n, 10**6)
        assert beyond_chance(*gaps).estimate == pytest.approx(0.1, abs=0.012)


def test_beyond_chance_without_noise_is_the_root_mean_square():
    found = beyond_chance(np.array([0.3, -0.1]), np.zeros(2), np.zeros((20, 2)))
    assert (found.estimate, found.low, found.high) == pytest.approx([np.sqrt(0.05)] * 3)
    assert beyond_chance(np.zeros(3), np.zeros(3), np.zeros((20, 3))).high == 0


def test_one_prompt_has_the_interval_of_its_gap():
    """Normal noise of 0.02 about a gap of 0.1: the ends are its quantiles."""
    noise = RNG(0).normal(0, 0.02, (20_000, 1))
    found = beyond_chance(np.array([-0.1]), np.array([0.0004]), noise)
    assert found.low == pytest.approx(0.1 - 1.812 * 0.02, abs=1e-3)
    assert found.high == pytest.approx(0.1 + 2.054 * 0.02, abs=1e-3)


@pytest.mark.parametrize("spread, shift", [(0, 0), (0.04, 0), (0.15, 0), (0, 0.04)])
def test_interval_covers_the_true_gap(spread, shift):
    """On target, where prompts truly spread by 4 or 15 points, and where all are off alike."""
    rng, hits, repeats = RNG(3), 0, 400
    for _ in range(repeats):
        gaps = spread * rng.normal(size=8) + shift
        true = np.sqrt(np.mean(gaps**2))
        hits += true in beyond_chance(*observed(rng, 0.458 + gaps))
    assert 0.93 <= hits / repeats <= 0.975


def test_interval_covers_the_true_gap_of_images():
    """The same through the readings of images, drawn again by prompt and by subject."""
    rng, hits = RNG(3), 0
    share = 0.458 + 0.06 * np.array([1, -1, 1, -1])
    for _ in range(60):
        p = (rng.random((4, 200)) < share[:, None]).astype(float).ravel()
        found = per_prompt_gap(p, np.repeat(np.arange(4), 200), 0.458, EXACT, rng, replicates=100)
        hits += 0.06 in found.beyond_chance
    assert hits >= 53


def test_an_evaluator_near_chance_is_refused_as_where_shares_are_corrected():
    """Right on 11 of 20 people of either sex: in a third of the draws the evaluator is no better than a
    coin.
    """
    truth = np.repeat([1, 0], 20)
    real = CalibrationSet(
        np.where((np.arange(40) % 20 < 11) == (truth == 1), 0.9, 0.1), truth, np.arange(40)
    )
    p, prompts = readings({"a": 60, "b": 45})
    for measured in (
        lambda: corrected_share(p, real, RNG(0), 200),
        lambda: per_prompt_gap(p, prompts, 0.5, real, RNG(0), 200),
    ):
        with pytest.raises(DataError, match="of the bootstrap replicates are undefined"):
            measured()


@given(st.lists(st.integers(0, 20), min_size=2, max_size=5), st.floats(0, 1))
def test_relabelling_prompts_changes_nothing(counts, target):
    counts = {f"prompt {i}": count for i, count in enumerate(counts)}
    p, prompts = readings(counts, 20)
    one = per_prompt_gap(p, prompts, target, EXACT, RNG(0), replicates=5)
    other = per_prompt_gap(
        p[::-1], np.char.add("z", prompts[::-1]), target, EXACT, RNG(0), replicates=5
    )
    assert one.mean == pytest.approx(other.mean) and 0 <= one.mean <= 1


@pytest.mark.parametrize(
    "target, words", [({"a": 0.5}, "no target share for prompt 'b'"), (1.2, "do not all lie")]
)
def test_bad_targets_are_refused(target, words):
    with pytest.raises(DataError, match=words):
        per_prompt_gap(*readings({"a": 5, "b": 5}, 10), target, EXACT, RNG(0))


def test_prompts_of_two_strata_have_their_own_errors():
    """Right on all of "a" and three in four of "b": 0.5 is read 0.5, 0.4 is read (0.4 - 0.25) / 0.5."""
    truth, strata = np.tile([1, 0], 80), np.repeat(["a", "b"], 80)
    right = (strata == "a") | (np.arange(160) // 2 % 4 > 0)
    known = CalibrationSet(np.where(right == (truth == 1), 0.9, 0.1), truth, np.arange(160), strata)
    p, prompts = readings({"a": 50, "b": 40})
    found = per_prompt_gap(p, prompts, 0.5, known, RNG(0), 30, prompts)
    assert found.prompts.share.tolist() == pytest.approx([0.5, 0.3])
    assert found.prompts.floor[1] > found.prompts.floor[0]
    with pytest.raises(DataError, match="two strata"):
        per_prompt_gap(p, prompts, 0.5, known, RNG(0), 5, np.tile(["a", "b"], 100))
