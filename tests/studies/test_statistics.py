"""The statistics chapter: simulations against closed forms and the truth of the simulation, exact
coverage against drawing, and the chapter from end to end in miniature.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from fairlib.errors import DataError, SettingsError
from fairlib.measures.distances import expected_floor
from fairlib.measures.intervals import auc as area
from studies import statistics as chapter
from studies.engine import running, study
from studies.engine.cli import main
from studies.engine.criteria import criteria_of
from studies.statistics import (
    BOOTSTRAP,
    METHODS,
    PUBLISHED,
    STUDY,
    SWAP,
    StatisticsSettings,
    distance_by_size,
    equity_by_groups,
    exact_coverage,
    null_rates,
    percentile_bootstrap,
    published_p,
    published_rate,
    rare_intersections,
    separation,
    simulated_arms,
)


def test_the_published_p_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50)) + np.array([[0.0], [0.2]])
    assert published_p(second - first) == pytest.approx(ttest_rel(second, first).pvalue)


def test_the_published_rate_in_closed_form():
    """A normal mean bootstrapped B times has replicates N(m, 1) about an observed m ~ N(0, 1): no
    simulation of AUCs needed.
    """
    rng = np.random.default_rng(1)
    for count in (1, 100, 1000):
        observed = rng.normal(size=200_000)
        expected = published_rate(count)
        assert (np.abs(observed) > 1.959964 / np.sqrt(count)).mean() == pytest.approx(
            expected, abs=0.004
        )
    assert published_rate(1) == pytest.approx(0.05) and published_rate(100) == pytest.approx(
        0.845, abs=0.001
    )


def test_null_rates_show_the_one_and_the_other():
    table = null_rates(
        np.random.default_rng(2),
        (24, 36),
        (0.8, 0.8),
        repeats=60,
        replicates=100,
        published=(100, 1000),
    )
    found = table.set_index(["test", "statistic", "replicates"])
    assert (
        found.rejected[PUBLISHED, "auc", 100] > 0.7
        and found.rejected[PUBLISHED, "auc", 1000] > 0.85
    )
    assert found.expected[PUBLISHED, "auc", 1000] == published_rate(1000)
    for test in (BOOTSTRAP, SWAP):
        rows = table[table.test == test]
        assert (
            rows.statistic.tolist() == ["auc", "worst", "gap", "equity_scaled"]
            and rows.rejected.max() <= 0.2
        )
    assert (
        (table.low <= table.rejected).all()
        and (table.rejected <= table.high).all()
        and (table.repeats == 60).all()
    )


def test_simulated_arms_have_the_areas_they_were_asked_for():
    label, score, group = simulated_arms(
        np.random.default_rng(3), (4000, 2000), (0.8, 0.9), shared=0.6
    )
    for g, wanted in enumerate((0.8, 0.9)):
        for arm in (0, 1):
            rows = group == g
            found = area(score[arm, rows & (label == 1)], score[arm, rows & (label == 0)])
            assert found == pytest.approx(wanted, abs=0.025)
    ill = (label == 1) & (group == 0)
    assert np.corrcoef(score[:, ill])[0, 1] == pytest.approx(0.6, abs=0.04) and score[
        0, ill
    ].std() == pytest.approx(1, abs=0.05)
    assert separation(0.5) == 0


def test_frechet_measures_size_and_unbiased_mmd_does_not():
    rng = np.random.default_rng(4)
    table = distance_by_size(rng, (50, 100, 300), worse=0.3, dimensions=16, repeats=12)
    own = table.set_index(["group", "measure", "n"])["mean"].sort_index()
    frechet = own["as real", "Frechet, own n"]
    assert frechet[50] > 1.6 * frechet[100] > 4 * frechet[300]
    features = rng.normal(size=(20_000, 16)) / np.sqrt(np.arange(1, 17))
    assert frechet[300] == pytest.approx(expected_floor(features, 300), rel=0.15)
    assert frechet[50] > own["worse", "Frechet, own n", 300], (
        "the published reading names the wrong group"
    )
    for n in (50, 100, 300):
        assert own["worse", "MMD, equal n", 300] > 4 * abs(own["as real", "MMD, equal n", n])
        assert own["as real", "Frechet, equal n", n] == pytest.approx(frechet[50], rel=0.15), (
            "no more than n matters"
        )
    assert own["worse", "MMD, own n", 300] > 20 * abs(own["as real", "MMD, own n", 300])


def test_equity_scaled_falls_with_the_number_of_groups():
    table = equity_by_groups(np.random.default_rng(5), 600, (2, 5, 15), repeats=40).set_index(
        "groups"
    )
    assert table.auc.nunique() == 1 and table.auc[2] == pytest.approx(0.85, abs=0.01)
    assert (
        table.equity_scaled.is_monotonic_decreasing
        and table.equity_scaled[15] < 0.8 * table.equity_scaled[2]
    )
    assert table.worst.is_monotonic_decreasing and table.n.tolist() == [300, 120, 40]
    with pytest.raises(DataError, match="fewer than ten"):
        equity_by_groups(np.random.default_rng(0), 100, (6,))


def test_the_percentile_bootstrap_needs_no_drawing():
    rng = np.random.default_rng(0)
    for right, n in ((3, 7), (18, 20), (10, 10)):
        drawn = rng.binomial(n, right / n, 200_000) / n
        assert percentile_bootstrap(right, n) == pytest.approx(
            np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        )


@pytest.mark.parametrize("name", METHODS)
def test_exact_coverage_is_what_drawing_finds(name):
    rng = np.random.default_rng(2)
    [row] = exact_coverage(METHODS[name], 12, 0.85).itertuples()
    right = rng.binomial(12, 0.85, 100_000)
    low, high = METHODS[name](right, 12)
    assert row.coverage == pytest.approx(((low <= 0.85) & (high >= 0.85)).mean(), abs=0.005)
    assert row.width == pytest.approx((high - low).mean(), abs=0.003)
    assert row.no_width == pytest.approx((high == low).mean(), abs=0.003)


def test_what_each_interval_promises():
    table = rare_intersections((5, 10, 20, 50), np.arange(0.5, 0.995, 0.01))
    by = table.groupby("method")
    assert by.coverage.min()["Clopper-Pearson"] >= 0.95
    assert by.coverage.mean()["Wilson"] == pytest.approx(0.95, abs=0.015)
    assert by.coverage.min()["percentile bootstrap"] < 0.25
    few = table[(table.n == 5) & (table.method == "percentile bootstrap")]
    assert few.no_width.to_numpy() == pytest.approx(few.share**5 + (1 - few.share) ** 5)
    assert table[table.method != "percentile bootstrap"].no_width.max() == 0


TINY = StatisticsSettings(
    sizes=(50, 100),
    size_repeats=1,
    subjects=400,
    counts=(2, 3),
    equity_repeats=5,
    null_repeats=3,
    null_replicates=40,
    published=(100, 400),
    shrink=0.3,
    worst_repeats=6,
    worst_replicates=50,
    naive_repeats=3,
    rare=(5, 20),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return running.run_study(STUDY, TINY, out=tmp_path_factory.mktemp("statistics") / "out")


def test_tables_are_written_and_read(folder):
    tables = study.load_results(STUDY, folder)
    assert set(tables) == set(STUDY.tables) and all(len(table) for table in tables.values())
    assert set(tables["null"].world) == set(chapter.WORLDS) and (tables["null"].repeats == 3).all()
    assert tables["null"][tables["null"].test == PUBLISHED].replicates.tolist() == [100, 400]
    assert tables["worst"].groupby("metric").setting.nunique().tolist() == [8, 8]
    assert study.settings_of(STUDY, folder).seed == 2026


def test_same_seed_same_tables_and_each_part_has_its_own_generator(folder):
    again = study.tables_of(STUDY, dataclasses.replace(TINY, size_repeats=2))
    tables = study.load_results(STUDY, folder)
    for name in ("groups", "null", "worst", "rare"):
        pd.testing.assert_frame_equal(again[name].round(6), tables[name], check_dtype=False)


def test_report_has_every_criterion_of_the_chapter(folder):
    report = criteria_of(STUDY, folder)
    rates = report[report.metric_id == "false_positives"]
    assert len(report) == 2 * 5 + 16 and len(rates) == 10
    assert (report.met == report.estimate.between(report.criterion, report.upper)).all()
    tables = study.load_results(STUDY, folder)
    swap = tables["null"][(tables["null"].test == SWAP)].rejected
    assert rates[rates.figure.str.contains("swapped")].estimate.tolist() == swap.tolist()


def test_command_writes_and_prints(tmp_path, capsys):
    flags = []
    for name, value in dataclasses.asdict(TINY).items():
        values = value if isinstance(value, tuple) else (value,)
        flags += ["--" + name.replace("_", "-"), *map(str, values)]
    assert main(["statistics", "--out", str(tmp_path / "x"), *flags]) == 0
    assert capsys.readouterr().out.strip().endswith(str(tmp_path / "x"))
    settings = study.settings_of(STUDY, tmp_path / "x")
    assert settings.worst_repeats == TINY.worst_repeats and tuple(settings.rare) == TINY.rare
    assert (tmp_path / "x" / "null.csv").is_file()


def test_missing_tables_and_no_repeats_are_named(tmp_path):
    with pytest.raises(DataError, match="make them with `python -m studies statistics`"):
        study.load_results(STUDY, tmp_path)
    with pytest.raises(SettingsError, match="repeats of 0"):
        StatisticsSettings(worst_repeats=0)


def test_committed_results_can_be_continued():
    folder = STUDY.results()
    running.same_study(folder / "study.json", STUDY.identity(study.settings_of(STUDY, folder)))
    assert set(study.load_results(STUDY)) == set(STUDY.tables)
