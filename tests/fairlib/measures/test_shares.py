"""Shares with the evaluator's error taken out: exact on exact frequencies, honest about what is not
known.
"""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from fairlib.errors import DataError
from fairlib.measures import shares as pr

RNG = np.random.default_rng


def calibration(a_f=0.9, a_m=0.8, subjects=100, slices=4):
    """Exact frequencies: of each sex's subjects the stated share is read right on every slice."""
    truth = np.repeat(np.arange(subjects) < subjects // 2, slices).astype(int)
    rank = np.repeat(np.arange(subjects) % (subjects // 2), slices) / (subjects // 2)
    right = np.where(truth == 1, rank < a_f - 1e-9, rank < a_m - 1e-9)
    return pr.CalibrationSet(
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
    def test_an_evaluator_at_chance_is_refused(self, a_f, a_m):
        with pytest.raises(DataError, match="sum to more than 1"):
            pr.rogan_gladen(0.4, a_f, a_m)


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

    def test_another_library_agrees(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its imports
            quantification = pytest.importorskip("quapy.method.aggregative", reason="needs QuaPy")
        p = RNG(4).dirichlet([0.6, 0.8, 0.5], 500)
        prior = np.array([0.5, 0.2, 0.3])
        theirs, _ = quantification.EMQ.EM(prior, p, epsilon=1e-7)
        assert pr.saerens_em(p, prior) == pytest.approx(theirs, abs=1e-4)

    def test_recovers_a_moved_prior(self):
        """Two normal populations, probabilities calibrated at 50 %, tested at 20 %."""
        rng = RNG(1)
        female = rng.random(20000) < 0.2
        p = pr.sigmoid(2 * 1.2 * (rng.normal(size=20000) + np.where(female, 1.2, -1.2)))
        assert pr.saerens_em(np.stack([1 - p, p], 1), np.array([0.5, 0.5]))[1] == pytest.approx(
            0.2, abs=0.01
        )

    def test_keeps_the_prior_of_an_evaluator_that_knows_nothing(self):
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

    def test_recalibration_of_an_evaluator_that_is_too_sure(self):
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

    def test_recalibration_with_weights_is_that_of_repeated_rows(self):
        rng = RNG(4)
        logits, truth, weight = rng.normal(0, 2, 80), rng.random(80) < 0.5, rng.integers(1, 4, 80)
        repeated = pr.platt(np.repeat(logits, weight), np.repeat(truth, weight))
        assert pr.platt(logits, truth, weight) == pytest.approx(repeated, abs=1e-9)

    def test_recalibration_survives_a_perfect_evaluator(self):
        slope, intercept = pr.platt(np.array([-5.0, -4, 4, 5]), np.array([0, 0, 1, 1]))
        assert np.isfinite([slope, intercept]).all() and slope > 0


class TestIntervals:
    def test_estimates(self):
        images = np.repeat([0.9, 0.1], [41, 59])
        assert pr.raw_share(images, RNG(0), 50).estimate == pytest.approx(0.41)
        assert pr.corrected_share(images, calibration(), RNG(0), 50).estimate == pytest.approx(0.3)

    def test_the_held_out_set_widens_the_interval(self):
        """The same accuracies from ten times the subjects: a narrower interval."""
        images = np.repeat([0.9, 0.1], [410, 590])
        few, many = (
            pr.corrected_share(images, calibration(subjects=n), RNG(0), 300) for n in (40, 400)
        )
        assert few.high - few.low > 1.5 * (many.high - many.low)
        assert few.estimate == pytest.approx(many.estimate)

    def test_slices_of_a_subject_are_not_subjects(self):
        """Four identical slices of 40 subjects must not count as 160 subjects."""
        images = np.repeat([0.9, 0.1], [4100, 5900])
        real = calibration(subjects=40)
        loose = pr.CalibrationSet(real.p_female, real.truth, np.arange(len(real.truth)))
        by_subject, by_slice = (
            pr.corrected_share(images, part, RNG(0), 300) for part in (real, loose)
        )
        assert by_subject.high - by_subject.low > 1.5 * (by_slice.high - by_slice.low)

    @pytest.mark.parametrize("measure", [pr.corrected_share, pr.em_share])
    def test_coverage(self, measure):
        """An evaluator of AUC 0.95 on 60 held-out subjects of three correlated slices; true share
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
                images, pr.CalibrationSet(p, truth, np.repeat(np.arange(60), 3)), rng, 60
            )
        assert 0.85 <= hits / runs <= 1.0

    def test_correction_removes_the_bias_of_the_raw_share(self):
        rng = RNG(5)
        images = _probabilities(rng.random(4000) < 0.1, rng, 0.8)
        truth = np.arange(2000) % 2
        real = pr.CalibrationSet(_probabilities(truth == 1, rng, 0.8), truth, np.arange(2000))
        assert 0.1 not in pr.raw_share(images, rng, 100)
        assert 0.1 in pr.corrected_share(images, real, rng, 100)
        assert 0.1 in pr.em_share(images, real, rng, 100)

    def test_an_evaluator_at_chance_is_refused(self):
        with pytest.raises(DataError, match="use a better evaluator"):
            pr.corrected_share(np.array([0.2, 0.8]), calibration(0.5, 0.5), RNG(0), 10)

    def test_another_threshold_moves_the_reading_and_its_errors(self):
        """At 0.7 the 0.6 of the images reads male, on both sides alike."""
        truth = np.repeat([1, 0], 100)
        known = np.where(truth == 1, np.tile([0.9] * 8 + [0.6] * 2, 20), 0.1)
        images = np.repeat([0.9, 0.6, 0.1], [40, 10, 50])
        at = {
            threshold: pr.CalibrationSet(known, truth, np.arange(200), threshold=threshold)
            for threshold in (0.5, 0.7)
        }
        raw = [pr.raw_share(images, RNG(0), 20, threshold).estimate for threshold in at]
        corrected = [pr.corrected_share(images, part, RNG(0), 20).estimate for part in at.values()]
        assert raw == [0.5, 0.4] and corrected == pytest.approx([0.5, 0.4 / 0.8])

    @pytest.mark.parametrize("measure", [pr.corrected_share, pr.em_share])
    def test_one_stratum_changes_nothing(self, measure):
        known = calibration()
        named = pr.CalibrationSet(known.p_female, known.truth, known.subjects, np.full(400, "t1"))
        images = np.repeat([0.9, 0.1], [41, 59])
        plain = measure(images, known, RNG(0), 20)
        assert measure(images, named, RNG(0), 20, strata=np.full(100, "t1")) == plain

    def test_each_stratum_is_corrected_by_its_own_errors(self):
        """Right on all of t1 and on three in four of t2: 0.3 of t1 and (0.45 - 0.25) / 0.5 of t2;
        one pair of rates for both gives something else.
        """
        truth, strata = np.tile([1, 0], 80), np.repeat(["t1", "t2"], 80)
        right = (strata == "t1") | (np.arange(160) // 2 % 4 > 0)
        p = np.where(right == (truth == 1), 0.9, 0.1)
        known = pr.CalibrationSet(p, truth, np.arange(160), strata)
        images = np.concatenate([np.repeat([0.9, 0.1], [60, 140]), np.repeat([0.9, 0.1], [45, 55])])
        places = np.repeat(["t1", "t2"], [200, 100])
        found = pr.corrected_share(images, known, RNG(0), 50, places)
        assert found.estimate == pytest.approx((200 * 0.3 + 100 * 0.4) / 300)
        em = pr.em_share(images, known, RNG(0), 10, places)
        assert em.estimate == pytest.approx(found.estimate, abs=0.01)
        pooled = pr.CalibrationSet(p, truth, np.arange(160))
        assert pr.corrected_share(images, pooled, RNG(0), 50).estimate < found.estimate - 0.02
        with pytest.raises(DataError, match="no image of stratum 'flair'"):
            pr.corrected_share(images, known, RNG(0), 5, np.full(300, "flair"))
        with pytest.raises(DataError, match="every stratum needs both"):
            pr.CalibrationSet(p, truth, np.arange(160), np.where(truth == 1, "t1", "t2"))

    def test_row_order_does_not_matter(self):
        images, real = np.repeat([0.9, 0.1], [41, 59]), calibration()
        order = RNG(0).permutation(400)
        moved = pr.CalibrationSet(real.p_female[order], real.truth[order], real.subjects[order])
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
def test_bad_calibration_sets_are_refused(p, truth, subjects, words):
    with pytest.raises(DataError, match=words):
        pr.CalibrationSet(*map(np.array, (p, truth, subjects)))


def _probabilities(female, rng, separation=1.16):
    """Calibrated probabilities of two unit normals at +- separation (AUC 0.95 at 1.16)."""
    return pr.sigmoid(
        2 * separation * (np.where(female, separation, -separation) + rng.normal(size=len(female)))
    )
