"""Tables from readings: a planted study, whose shares and gaps are known, is measured back."""

import numpy as np
import pandas as pd
import pytest

from fairlib.errors import DataError
from fairlib.measures import shares as rd
from fairlib.measures.gaps import prompt_table
from fairlib.measures.shares import Evaluator, sigmoid

RNG = np.random.default_rng
EVALUATORS = ("robust", "heldout", "anatomy")


def by(*names):
    """Evaluators whose column has their name; all by default."""
    return [Evaluator(name, name) for name in names or EVALUATORS]


PROMPTS = [f"{contrast}-{grade}" for contrast in ("t1", "flair") for grade in ("HGG", "LGG")]


def read(female, rng, separation=1.2):
    """Readings by three evaluators of calibrated AUC 0.95."""
    sign = np.where(female, 1, -1)
    return pd.DataFrame(
        {
            evaluator: sigmoid(2 * separation * (separation * sign + rng.normal(size=len(sign))))
            for evaluator in EVALUATORS
        }
    )


@pytest.fixture(scope="module")
def slices():
    rng = RNG(24)
    female = np.repeat(np.arange(400) % 2 == 0, 2)
    return read(female, rng).assign(
        subject=np.repeat(np.arange(400), 2).astype(str), sex=np.where(female, "F", "M")
    )


def arm(name, shares, rng, n=400, seeds=(0, 1)):
    """Images of an arm with a planted female share for each prompt."""
    parts = []
    for seed in seeds:
        for prompt, share in zip(PROMPTS, shares, strict=True):
            female = np.arange(n) < round(share * n)
            table = read(female, rng)
            parts.append(
                table.assign(
                    truth=np.where(female, 0.99, 0.01),
                    arm=name,
                    seed=seed,
                    prompt=prompt,
                    group=prompt.split("-")[1],
                )
            )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def study():
    rng = RNG(1)
    return pd.concat(
        [
            arm("base", [0.15] * 4, rng),
            arm("tuned", [0.458] * 4, rng),
            arm("conditional", [0.376, 0.585] * 2, rng),
        ],
        ignore_index=True,
    )


class TestTables:
    def test_shares_come_back(self, study, slices):
        table = rd.share_table(study, slices, by(), RNG(0), ("arm",), 60).set_index(
            ["arm", "evaluator"]
        )
        for name, share in (("base", 0.15), ("tuned", 0.458)):
            for evaluator in EVALUATORS:
                row = table.loc[(name, evaluator)]
                assert row.corrected == pytest.approx(share, abs=0.035) and row.em == pytest.approx(
                    share, abs=0.035
                )
                assert row.corrected_low <= row.corrected <= row.corrected_high and row.n == 3200
        # the evaluators' errors make it look less biased than it is
        assert (table.loc["base"].raw > 0.2).all()

    def test_one_row_for_each_arm_seed_and_evaluator(self, study, slices):
        table = rd.share_table(study, slices, by("heldout"), RNG(0), replicates=5)
        assert list(zip(table.arm, table.seed, strict=True)) == [
            (a, s) for a in ("base", "tuned", "conditional") for s in (0, 1)
        ]
        assert (table.n == 1600).all() and (table.evaluator == "heldout").all()

    def test_evaluators_have_a_column_and_a_calibration_set_of_their_own(self, study, slices):
        renamed = study.rename(columns={"robust": "standard"})
        sets = {"calibration": slices, "other": slices.rename(columns={"robust": "standard"})}
        evaluator = Evaluator("robust", "standard", "other")
        table = rd.share_table(renamed, sets, [evaluator], RNG(0), ("arm",), 5)
        expected = rd.share_table(study, slices, by("robust"), RNG(0), ("arm",), 5)
        pd.testing.assert_frame_equal(table, expected)
        with pytest.raises(
            DataError, match="needs the calibration set 'other'; given: calibration"
        ):
            rd.share_table(renamed, slices, [evaluator], RNG(0), ("arm",), 5)

    def test_a_stratum_and_a_threshold_reach_the_share(self, study, slices):
        """With one error rate within each contrast the shares still come back; a threshold of 0.8
        reads fewer images as female.
        """
        parts = [table.assign(contrast="t1") for table in (study, slices)]
        half = parts[1].index % 2 == 0
        parts[1].loc[half, "contrast"] = "flair"
        parts[0].loc[parts[0].prompt.str.startswith("flair"), "contrast"] = "flair"
        strict = Evaluator("strict", "heldout", threshold=0.8, stratum=("contrast",))
        table = rd.share_table(*parts, [*by("heldout"), strict], RNG(0), ("arm",), 20)
        table = table.set_index(["evaluator", "arm"])
        assert (table.loc["strict"].raw < table.loc["heldout"].raw - 0.02).all()
        assert table.loc[("strict", "tuned"), "corrected"] == pytest.approx(0.458, abs=0.05)
        gaps = prompt_table(*parts, [strict], 0.458, RNG(0), ("arm",), 20).groupby("arm").gap
        assert gaps.mean()["tuned"] < 0.08 < 0.2 < gaps.mean()["base"]

    def test_prompts_come_back(self, study, slices):
        table = prompt_table(study, slices, by("anatomy"), 0.458, RNG(0), replicates=40)
        conditional = table[table.arm == "conditional"].set_index("prompt").share
        assert conditional[PROMPTS].to_numpy() == pytest.approx([0.376, 0.585] * 2, abs=0.06)

    def test_groups_come_back_with_signed_gaps(self, study, slices):
        targets = {"HGG": 0.376, "LGG": 0.585}
        table = rd.group_table(
            study, slices, by("heldout"), targets, RNG(0), ("arm",), 40
        ).set_index(["arm", "group"])
        assert table.loc["conditional"].gap.abs().max() < 0.05
        assert table.loc[("base", "LGG"), "gap"] == pytest.approx(0.15 - 0.585, abs=0.05)
        with pytest.raises(DataError, match="no target share for prompt group 'LGG'"):
            rd.group_table(study, slices, by(), {"HGG": 0.4}, RNG(0))

    def test_ambiguity_against_the_slices(self, study, slices):
        table = rd.ambiguity_table(study, slices, by(), RNG(0), ("arm",), 40)
        assert table.points.abs().max() < 5
        polarised = study.assign(**{name: study[name].round() for name in EVALUATORS})
        gone = rd.ambiguity_table(polarised, slices, by(), RNG(0), ("arm",), 40)
        assert (gone.share == 0).all() and gone.points.to_numpy() == pytest.approx(
            -100 * np.tile([((slices[j] > 0.2) & (slices[j] < 0.8)).mean() for j in EVALUATORS], 3)
        )


def test_a_standardised_difference_by_hand():
    assert rd.standardised_difference([3.0, 5.0], [1.0, 3.0]) == pytest.approx(2 / np.sqrt(2))


class TestBadTables:
    def test_unreadable_images_are_counted(self, study, slices):
        holes = study.copy()
        holes.loc[holes.index[:100], "anatomy"] = np.nan
        table = rd.share_table(
            holes, slices, by("anatomy", "heldout"), RNG(0), ("arm",), 5
        ).set_index(["arm", "evaluator"])
        assert table.unreadable[("base", "anatomy")] == 100 and table.n[("base", "anatomy")] == 3100
        assert table.unreadable.sum() == 100
        by_seed = rd.share_table(holes, slices, by("anatomy"), RNG(0), replicates=5)
        assert by_seed.unreadable.tolist() == [100, 0, 0, 0, 0, 0]

    def test_an_evaluator_that_reads_nothing_is_refused(self, study, slices):
        with pytest.raises(DataError, match="'anatomy' could read no image of {'arm': 'base'}"):
            rd.share_table(study.assign(anatomy=np.nan), slices, by(), RNG(0), ("arm",), 5)

    @pytest.mark.parametrize("column", ["prompt", "heldout", "seed"])
    def test_missing_columns_are_named(self, study, slices, column):
        with pytest.raises(DataError, match=f"readings .* lacks column '{column}'"):
            rd.share_table(study.drop(columns=column), slices, by(), RNG(0), replicates=5)

    def test_missing_columns_of_slices_are_named(self, study, slices):
        with pytest.raises(DataError, match="calibration .* lacks column 'sex'"):
            rd.share_table(study, slices.drop(columns="sex"), by(), RNG(0), replicates=5)

    def test_empty_tables_are_refused(self, study, slices):
        with pytest.raises(DataError, match="readings is empty"):
            rd.share_table(study[:0], slices, by(), RNG(0), replicates=5)
