"""Every figure shows its data: what is drawn equals what was given, in two channels, without a
display.
"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc

from fairlib import figures
from fairlib.errors import DataError

RNG = np.random.default_rng


@pytest.fixture(autouse=True)
def clean():
    with matplotlib.rc_context():
        figures.house_style()
        yield
    plt.close("all")


def draw(thing):
    """Rendered once, so that a figure that cannot be drawn fails here."""
    figure = getattr(thing, "figure", thing) if not isinstance(thing, plt.Figure) else thing
    figure.canvas.draw()
    return thing


def points(container):
    """(x, y) of an errorbar's markers."""
    return [np.asarray(values, dtype=float) for values in container.lines[0].get_data()]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


EVALUATORS = ("tuning classifier", "held-out classifier", "anatomical measurement")


def shares(arms=("base", "tuned"), evaluators=EVALUATORS, seeds=1):
    rows = [
        {
            "arm": arm,
            "evaluator": evaluator,
            "seed": seed,
            "corrected": 0.2 + 0.2 * i + 0.01 * j + 0.001 * seed,
        }
        for i, arm in enumerate(arms)
        for j, evaluator in enumerate(evaluators)
        for seed in range(seeds)
    ]
    table = pd.DataFrame(rows)
    return table.assign(corrected_low=table.corrected - 0.03, corrected_high=table.corrected + 0.05)


class TestShares:
    def plot(self, table, ax=None):
        keys = {"share": True, "label": "female share", "ax": ax}
        return figures.dot_plot(table, "corrected", "evaluator", "arm", 0.458, **keys)

    def test_draws_the_shares_and_their_intervals(self):
        table = shares()
        ax = draw(self.plot(table))
        for container, arm in zip(ax.containers, ("base", "tuned"), strict=True):
            x, y = points(container)
            assert list(x) == list(table[table.arm == arm].corrected)
            assert np.round(y).astype(int).tolist() == [0, 1, 2]
            ends = np.array([segment[:, 0] for segment in container.lines[2][0].get_segments()])
            assert ends == pytest.approx(
                table.loc[table.arm == arm, ["corrected_low", "corrected_high"]].to_numpy()
            )
        assert legend(ax) == ["target (45.8 %)", "base", "tuned"]
        assert [tick.get_text() for tick in ax.get_yticklabels()] == list(EVALUATORS)
        assert ax.xaxis.get_major_formatter()(0.4, 0) == "40 %"

    def test_the_target_is_a_line_at_the_target(self):
        assert list(self.plot(shares()).lines[0].get_xdata()) == [0.458, 0.458]

    def test_seeds_are_side_by_side(self):
        _, y = points(self.plot(shares(seeds=3)).containers[0])
        assert len(set(np.round(y, 3))) == 9

    def test_draws_on_the_axes_it_is_given(self):
        _, ax = plt.subplots()
        assert self.plot(shares(), ax) is ax

    def test_no_two_series_share_a_colour_or_a_marker(self):
        names = ("untuned", "class-standard", "tuned", "transport-robust")
        drawn = [c.lines[0] for c in self.plot(shares(names)).containers]
        assert (
            len({to_hex(line.get_color()) for line in drawn})
            == len({line.get_marker() for line in drawn})
            == 4
        )


class TestPerPrompt:
    TABLE = pd.DataFrame(
        {
            "arm": ["base", "base", "tuned", "tuned"],
            "prompt": ["a", "b"] * 2,
            "share": [0.1, 0.2, 0.5, 0.4],
            "low": [0.05, 0.15, 0.45, 0.35],
            "high": [0.2, 0.3, 0.6, 0.5],
            "target": [0.376, 0.585] * 2,
        }
    )

    def test_draws_the_shares_and_a_line_between_them(self):
        ax = draw(figures.dot_plot(self.TABLE, "share", "prompt", "arm", 0.458, connect=True))
        for container, arm in zip(ax.containers, ("base", "tuned"), strict=True):
            x, y = points(container)
            assert list(x) == list(self.TABLE[self.TABLE.arm == arm].share)
            assert np.round(y).tolist() == [0, 1]
            ends = np.array([segment[:, 0] for segment in container.lines[2][0].get_segments()])
            expected = self.TABLE.loc[self.TABLE.arm == arm, ["low", "high"]]
            assert ends == pytest.approx(expected.to_numpy())
        between = np.array([segment[:, 0] for segment in ax.collections[0].get_segments()])
        assert between == pytest.approx(np.array([[0.1, 0.5], [0.2, 0.4]]))
        assert ax.yaxis_inverted() and [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]

    def test_breaks_a_long_name(self):
        long = "transport targets, standard classifier (8 seeds)"
        ax = draw(figures.dot_plot(self.TABLE.replace({"a": long}), "share", "prompt", "arm"))
        labels = [tick.get_text() for tick in ax.get_yticklabels()]
        assert labels == ["transport targets, standard\nclassifier (8 seeds)", "b"]

    def test_marks_the_target_of_each_prompt(self):
        ax = draw(figures.dot_plot(self.TABLE, "share", "prompt", "arm", "target"))
        marks = next(line for line in ax.lines if line.get_label() == "target")
        assert list(marks.get_xdata()) == [0.376, 0.585] and list(marks.get_ydata()) == [0, 1]


def test_line_plot_draws_one_line_an_evaluator_with_its_band():
    table = shares(arms=("base",)).merge(pd.DataFrame({"scale": [5.0, 1.0, 3.0]}), how="cross")
    table["corrected"] -= table.scale / 100
    ax = draw(
        figures.line_plot(table, "scale", "corrected", "evaluator", band=True, reference=0.458)
    )
    lines = {line.get_label(): line for line in ax.lines}
    for evaluator in EVALUATORS:
        part = table[table.evaluator == evaluator].sort_values("scale")
        assert list(lines[evaluator].get_xdata()) == [1, 3, 5]
        assert list(lines[evaluator].get_ydata()) == list(part.corrected)
    assert len({line.get_linestyle() for line in ax.lines}) == 4 and len(ax.collections) == 3


class TestCohortBars:
    TABLE = pd.DataFrame(
        {
            "subject": [1, 1, 2, 3, 4, 5],
            "sex": ["F", "F", "M", "M", "F", None],
            "grade": ["HGG", "HGG", "HGG", "HGG", "LGG", "LGG"],
        }
    )

    def test_counts_subjects_once_and_leaves_the_unknown_out(self):
        ax = draw(figures.cohort_bars(self.TABLE))
        women, men = ([bar.get_height() for bar in container] for container in ax.containers)
        assert (women, men) == ([1, 1], [2, 0])
        assert [tick.get_text() for tick in ax.get_xticklabels()] == [
            "HGG\n33.3 % female",
            "LGG\n100.0 % female",
        ]

    def test_hatch_tells_the_sexes_apart(self):
        assert (
            len(
                {
                    container[0].get_hatch() or ""
                    for container in figures.cohort_bars(self.TABLE).containers
                }
            )
            == 2
        )


def test_logits_are_drawn_as_densities():
    rng = RNG(0)
    table = pd.concat(
        [
            pd.DataFrame({"arm": arm, "logit": rng.normal(mean, 1, 400)})
            for arm, mean in (("target", 0), ("base", -2), ("tuned", 0.5))
        ]
    )
    ax = draw(figures.logit_distributions(table))
    for line, (arm, mean) in zip(
        ax.lines, (("target", 0), ("base", -2), ("tuned", 0.5)), strict=False
    ):
        x, y = line.get_data()
        assert line.get_label() == arm
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
        assert np.trapezoid(x * y, x) == pytest.approx(mean, abs=0.15)
    assert len(ax.collections) == 1  # the target alone is filled


class TestReliability:
    def table(self, n=2000):
        rng = RNG(0)
        p = rng.random(n)
        return pd.DataFrame({"p_female": p, "truth": (rng.random(n) < p).astype(int)})

    def test_agrees_with_sklearn(self):
        table = self.table()
        ours = figures.reliability(table, 8)
        observed, predicted = calibration_curve(table.truth, table.p_female, n_bins=8)
        assert ours.observed.to_numpy() == pytest.approx(
            observed
        ) and ours.predicted.to_numpy() == pytest.approx(predicted)
        assert ours.n.sum() == len(table)

    def test_interval_is_wilsons(self):
        """Five of ten at 95 %: 0.2366 to 0.7634."""
        found = figures.reliability(
            pd.DataFrame({"p_female": [0.55] * 10, "truth": [0, 1] * 5})
        ).iloc[0]
        assert (found.low, found.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)

    def test_draws_its_bins(self):
        table = self.table()
        ax = draw(figures.reliability_diagram(table))
        x, y = points(ax.containers[0])
        binned = figures.reliability(table)
        assert list(x) == list(binned.predicted) and list(y) == list(binned.observed)

    def test_bins_of_one_kind_can_be_drawn(self):
        draw(
            figures.reliability_diagram(
                pd.DataFrame({"p_female": [0.01, 0.02, 0.99, 1.0], "truth": [0, 0, 1, 1]})
            )
        )


def test_roc_curves_and_their_areas():
    rng = RNG(0)
    truth = np.arange(300) % 2
    table = pd.concat(
        [
            pd.DataFrame(
                {
                    "evaluator": name,
                    "truth": truth,
                    "p_female": 1 / (1 + np.exp(-(truth - 0.5) * k - rng.normal(size=300))),
                }
            )
            for name, k in (("tuning classifier", 3), ("held-out classifier", 2))
        ]
    )
    ax = draw(figures.roc_curves(table))
    for line in ax.lines[1:]:
        assert f"AUC {auc(*line.get_data()):.3f}" in line.get_label()
    with pytest.raises(DataError, match="one sex alone"):
        figures.roc_curves(table[table.truth == 1])


class TestTraining:
    TABLE = pd.DataFrame(
        {
            "arm": ["plain"] * 4 + ["robust"] * 4,
            "step": [0, 1, 2, 3] * 2,
            "share": [0.2, 0.4, 0.3, 0.5] + [0.1] * 4,
        }
    )

    def test_draws_the_values(self):
        ax = draw(figures.training_curves(self.TABLE, "share", by="arm", target=0.458))
        lines = {line.get_label(): line for line in ax.lines}
        assert list(lines["plain"].get_ydata()) == [0.2, 0.4, 0.3, 0.5]
        assert lines["plain"].get_linestyle() != lines["robust"].get_linestyle()
        assert ax.get_ylabel() == "share read as female"

    def test_smooths_over_the_faint_values(self):
        ax = draw(figures.training_curves(self.TABLE[:4], "share", smooth=3))
        raw, mean = ax.lines
        assert list(raw.get_ydata()) == [0.2, 0.4, 0.3, 0.5] and raw.get_alpha() < 1
        assert mean.get_ydata() == pytest.approx([0.3, 0.3, 0.4, 0.4])
        assert ax.get_legend() is None


@pytest.mark.parametrize(
    "draw_one, table, words",
    [
        (figures.cohort_bars, pd.DataFrame({"sex": []}), "lacks column 'grade'"),
        (figures.roc_curves, shares().assign(p_female=0, truth=0)[:0], "empty"),
        (figures.logit_distributions, pd.DataFrame({"arm": ["base"]}), "lacks column 'logit'"),
    ],
)
def test_tables_that_lack_something_are_refused(draw_one, table, words):
    with pytest.raises(DataError, match=words):
        draw_one(table)


def test_colours_are_told_apart_by_lightness_or_hue_without_red_and_green():
    """Under simulated deuteranopia (Machado et al.

    2009, severity 1) no two series colours fall together.
    """
    matrix = np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    )
    seen = [
        matrix @ np.array(matplotlib.colors.to_rgb(look.colour)) ** 2.2 for look in figures.LOOKS
    ]
    for i, one in enumerate(seen):
        for other in seen[i + 1 :]:
            assert (
                np.linalg.norm(np.clip(one, 0, 1) ** (1 / 2.2) - np.clip(other, 0, 1) ** (1 / 2.2))
                > 0.12
            )


GROUPS = pd.DataFrame(
    {
        "group": ["Asian", "White"],
        "value": [0.7, 0.9],
        "low": [0.6, 0.88],
        "high": [0.8, 0.92],
        "n": [90, 1760],
    }
)


def test_bars_stand_for_their_groups():
    ax = figures.group_bars(GROUPS, 0.88, "words")
    assert [round(bar.get_y() + bar.get_height(), 9) for bar in ax.patches] == [0.7, 0.9]
    assert (
        len({bar.get_facecolor() for bar in ax.patches})
        == len({bar.get_hatch() for bar in ax.patches})
        == 2
    )
    ends = [segment[:, 1].tolist() for part in ax.collections for segment in part.get_segments()]
    assert ends == [pytest.approx([0.6, 0.8]), pytest.approx([0.88, 0.92])]
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "Asian\n90 people",
        "White\n1,760 people",
    ]
    assert (
        ax.get_legend().get_texts()[0].get_text() == "everybody (88.0 %)"
        and ax.get_title(loc="left") == "words"
    )


def test_a_table_without_a_column_is_refused():
    with pytest.raises(DataError, match="lacks column 'low'"):
        figures.group_bars(GROUPS.drop(columns="low"), 0.8)
