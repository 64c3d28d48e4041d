"""Shares with the judge's error taken out: exact on exact frequencies, honest about what is not
known.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from sklearn.linear_model import LogisticRegression

from fairlib.errors import DataError
from fairlib.measures import proportions as pr

RNG = np.random.default_rng


def held_out(a_f=0.9, a_m=0.8, subjects=100, slices=4):
    """Exact frequencies: of each sex's subjects the stated share is read right on every slice."""
    truth = np.repeat(np.arange(subjects) < subjects // 2, slices).astype(int)
    rank = np.repeat(np.arange(subjects) % (subjects // 2), slices) / (subjects // 2)
    right = np.where(truth == 1, rank < a_f - 1e-9, rank < a_m - 1e-9)
    return pr.HeldOut(
        np.where(right == (truth == 1), 0.9, 0.1), truth, np.repeat(np.arange(subjects), slices)
    )


class TestRoganGladen:
    def test_hand_worked(self):
        """300 women and 700 men, right on 9 of 10 and 8 of 10: 270 + 140 = 410 of 1000 are read as
        female.
        """
        assert pr.rogan_gladen(0.41, 0.9, 0.8) == pytest.approx(0.3)

    def test_a_second_by_hand(self):
        """Observed 0.5 with a_F = 0.95, a_M = 0.65: (0.5 - 0.35) / 0.6 = 0.25."""
        assert pr.rogan_gladen(0.5, 0.95, 0.65) == pytest.approx(0.25)

    @given(st.floats(0, 1), st.floats(0.51, 1), st.floats(0.51, 1))
    def test_inverts_exact_frequencies(self, share, a_f, a_m):
        assert pr.rogan_gladen(a_f * share + (1 - a_m) * (1 - share), a_f, a_m) == pytest.approx(
            share, abs=1e-9
        )

    @given(st.floats(0, 1), st.floats(0.51, 1), st.floats(0.51, 1))
    def test_swapping_the_sexes_mirrors_the_share(self, share, a_f, a_m):
        assert pr.rogan_gladen(1 - share, a_m, a_f) == pytest.approx(
            1 - pr.rogan_gladen(share, a_f, a_m), abs=1e-9
        )

    def test_clips(self):
        assert pr.rogan_gladen(np.array([0.0, 1.0]), 0.9, 0.8).tolist() == [0, 1]

    @pytest.mark.parametrize("a_f, a_m", [(0.5, 0.5), (0.3, 0.6), (float("nan"), 0.9)])
    def test_a_judge_at_chance_is_refused(self, a_f, a_m):
        with pytest.raises(DataError, match="sum to more than 1"):
            pr.rogan_gladen(0.4, a_f, a_m)


class TestGroups:
    @given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5), st.floats(0.6, 1))
    def test_inverts_exact_frequencies(self, weights, right):
        shares = np.array(weights) / sum(weights)
        matrix = np.full((len(shares),) * 2, (1 - right) / (len(shares) - 1))
        np.fill_diagonal(matrix, right)
        assert pr.rogan_gladen_groups(matrix @ shares, matrix) == pytest.approx(shares, abs=1e-8)

    @given(st.floats(0, 1), st.floats(0.6, 1), st.floats(0.6, 1))
    def test_two_groups_are_the_binary_formula(self, share, a_f, a_m):
        matrix = np.array([[a_m, 1 - a_f], [1 - a_m, a_f]])
        found = pr.rogan_gladen_groups(np.array([1 - share, share]), matrix)
        assert found[1] == pytest.approx(float(pr.rogan_gladen(share, a_f, a_m)), abs=1e-9)

    def test_confusion_counts(self):
        matrix = pr.confusion(np.array([0, 0, 1, 1, 2, 2, 2]), np.array([0, 0, 0, 1, 1, 2, 2]), 3)
        assert matrix == pytest.approx(np.array([[2 / 3, 0, 0], [1 / 3, 1 / 2, 0], [0, 1 / 2, 1]]))

    def test_a_group_never_held_out_is_refused(self):
        with pytest.raises(DataError, match="no held-out slice of group 1"):
            pr.confusion(np.array([0, 2]), np.array([0, 2]), 3)

    def test_confused_groups_are_refused(self):
        with pytest.raises(DataError, match="confuses the groups"):
            pr.rogan_gladen_groups(np.array([0.5, 0.5]), np.full((2, 2), 0.5))

    @given(st.lists(st.floats(-2, 2), min_size=2, max_size=4))
    def test_projection_is_the_nearest_point(self, values):
        """Against the definition: max(v - tau, 0) for the tau that makes it sum to one, found by
        bisection.
        """
        values = np.array(values)
        tau = brentq(
            lambda t: np.maximum(values - t, 0).sum() - 1,
            values.min() - 1,
            values.max(),
            xtol=1e-12,
        )
        found = pr.project_to_simplex(values)
        assert found == pytest.approx(np.maximum(values - tau, 0), abs=1e-9)
        assert found.sum() == pytest.approx(1) and (found >= 0).all()


class TestSaerens:
    def test_finds_the_maximum_of_the_likelihood(self):
        rng = RNG(0)
        p = rng.beta(0.6, 0.8, 500)
        found = pr.saerens_em(np.stack([1 - p, p], 1), np.array([0.4, 0.6]), tolerance=1e-10)
        best = minimize_scalar(
            lambda s: -np.log(s * p / 0.6 + (1 - s) * (1 - p) / 0.4).sum(),
            bounds=(0, 1),
            method="bounded",
            options={"xatol": 1e-10},
        ).x
        assert found[1] == pytest.approx(best, abs=1e-5)

    def test_recovers_a_moved_prior(self):
        """Two normal populations, probabilities calibrated at 50 %, tested at 20 %."""
        rng = RNG(1)
        female = rng.random(20000) < 0.2
        p = pr.sigmoid(2 * 1.2 * (rng.normal(size=20000) + np.where(female, 1.2, -1.2)))
        assert pr.saerens_em(np.stack([1 - p, p], 1), np.array([0.5, 0.5]))[1] == pytest.approx(
            0.2, abs=0.01
        )

    def test_keeps_the_prior_of_a_judge_that_knows_nothing(self):
        assert pr.saerens_em(
            np.tile([0.3, 0.5, 0.2], (10, 1)), np.array([0.3, 0.5, 0.2])
        ) == pytest.approx([0.3, 0.5, 0.2])

    def test_recalibration_is_logistic_regression(self):
        rng = RNG(2)
        logits = rng.normal(0, 3, 600)
        truth = (rng.random(600) < pr.sigmoid(0.5 * logits - 0.4)).astype(int)
        theirs = LogisticRegression(C=np.inf).fit(logits[:, None], truth)
        assert pr.platt(logits, truth) == pytest.approx(
            (theirs.coef_[0, 0], theirs.intercept_[0]), abs=2e-3
        )

    def test_recalibration_of_a_judge_that_is_too_sure(self):
        """Right in nine of ten cases, and as sure of the tenth: whole Newton steps lead away from
        the minimum.
        """
        rng = RNG(3)
        truth = rng.random(5000) < 0.4
        right = np.where(rng.random(5000) < 0.9, 1, -1)
        logits = right * np.where(truth, 1, -1) * rng.normal(9, 2, 5000) - 2
        theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(logits[:, None], truth)
        assert pr.platt(logits, truth) == pytest.approx(
            (theirs.coef_[0, 0], theirs.intercept_[0]), abs=1e-3
        )
        assert theirs.coef_[0, 0] > 0.1

    def test_recalibration_survives_a_perfect_judge(self):
        slope, intercept = pr.platt(np.array([-5.0, -4, 4, 5]), np.array([0, 0, 1, 1]))
        assert np.isfinite([slope, intercept]).all() and slope > 0


class TestIntervals:
    def test_estimates(self):
        images = np.repeat([0.9, 0.1], [41, 59])
        assert pr.female_share(images, RNG(0), 50).estimate == pytest.approx(0.41)
        assert pr.corrected_share(images, held_out(), RNG(0), 50).estimate == pytest.approx(0.3)

    def test_the_held_out_set_widens_the_interval(self):
        """The same accuracies from ten times the subjects: a narrower interval."""
        images = np.repeat([0.9, 0.1], [410, 590])
        few, many = (
            pr.corrected_share(images, held_out(subjects=n), RNG(0), 300) for n in (40, 400)
        )
        assert few.high - few.low > 1.5 * (many.high - many.low)
        assert few.estimate == pytest.approx(many.estimate)

    def test_slices_of_a_subject_are_not_subjects(self):
        """Four identical slices of 40 subjects must not count as 160 subjects."""
        images = np.repeat([0.9, 0.1], [4100, 5900])
        real = held_out(subjects=40)
        loose = pr.HeldOut(real.p_female, real.truth, np.arange(len(real.truth)))
        by_subject, by_slice = (
            pr.corrected_share(images, part, RNG(0), 300) for part in (real, loose)
        )
        assert by_subject.high - by_subject.low > 1.5 * (by_slice.high - by_slice.low)

    @pytest.mark.parametrize("measure", [pr.corrected_share, pr.em_share])
    def test_coverage(self, measure):
        """A judge of AUC 0.95 on 60 held-out subjects of three correlated slices; true share
        0.3.
        """
        rng, hits, runs = RNG(4), 0, 40
        for _ in range(runs):
            images = _probabilities(rng.random(400) < 0.3, rng)
            truth = np.repeat(np.arange(60) % 2, 3)
            shared = np.repeat(rng.normal(size=60), 3)
            p = pr.sigmoid(
                2
                * 1.16
                * (np.where(truth == 1, 1.16, -1.16) + 0.8 * shared + 0.6 * rng.normal(size=180))
            )
            hits += 0.3 in measure(
                images, pr.HeldOut(p, truth, np.repeat(np.arange(60), 3)), rng, 60
            )
        assert 0.85 <= hits / runs <= 1.0

    def test_correction_removes_the_bias_of_the_raw_share(self):
        rng = RNG(5)
        images = _probabilities(rng.random(4000) < 0.1, rng, 0.8)
        truth = np.arange(2000) % 2
        real = pr.HeldOut(_probabilities(truth == 1, rng, 0.8), truth, np.arange(2000))
        assert 0.1 not in pr.female_share(images, rng, 100)
        assert 0.1 in pr.corrected_share(images, real, rng, 100)
        assert 0.1 in pr.em_share(images, real, rng, 100)

    def test_a_judge_at_chance_is_refused(self):
        with pytest.raises(DataError, match="use a better judge"):
            pr.corrected_share(np.array([0.2, 0.8]), held_out(0.5, 0.5), RNG(0), 10)

    def test_row_order_does_not_matter(self):
        images, real = np.repeat([0.9, 0.1], [41, 59]), held_out()
        order = RNG(0).permutation(400)
        moved = pr.HeldOut(real.p_female[order], real.truth[order], real.subjects[order])
        assert pr.corrected_share(images[::-1], moved, RNG(0), 20).estimate == pytest.approx(0.3)


@pytest.mark.parametrize(
    "p, truth, subjects, words",
    [
        ([0.1, 1.2], [0, 1], [1, 2], "in \\[0, 1\\]"),
        ([0.1, float("nan")], [0, 1], [1, 2], "in \\[0, 1\\]"),
        ([0.1, 0.2], [0, 0], [1, 2], "needs both"),
        ([0.1, 0.2], [0, 1], [1], "differ in length"),
    ],
)
def test_bad_held_out_readings_are_refused(p, truth, subjects, words):
    with pytest.raises(DataError, match=words):
        pr.HeldOut(p, truth, subjects)


def _probabilities(female, rng, separation=1.16):
    """Calibrated probabilities of two unit normals at +- separation (AUC 0.95 at 1.16)."""
    return pr.sigmoid(
        2 * separation * (np.where(female, separation, -separation) + rng.normal(size=len(female)))
    )
