"""The engine on a toy study: one entry makes a new arm, table, cohort or criterion; nothing is
lost, mixed or made twice.
"""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from fairlib.errors import DataError, SettingsError
from fairlib.io import read_json, write_json
from fairlib.measures.intervals import Interval
from studies.engine import cli
from studies.engine import study as engine
from studies.engine.criteria import Criterion, Rule, interval_at
from studies.engine.stage import Artifact, stage
from studies.engine.study import Arm, Source, Study, Table

CALLS = []


@dataclasses.dataclass(frozen=True)
class Settings:
    cohort: str = "numbers"
    data_dir: str = ""
    count: int = 3


def read(folder: Path) -> list:
    return read_json(folder / "values.json")


@stage(load=read)
def draw(out, progress, count: int, step: int, seed: int) -> None:
    CALLS.append((count, step, seed))
    write_json(out / "values.json", [seed + step * place for place in range(count)])


@stage(load=read)
def cohort(out, progress, count: int) -> None:
    write_json(out / "values.json", list(range(count)))


ARMS = {
    "base": Arm(lambda settings, seed: draw(settings.count, 0, seed), "does nothing", "nowhere"),
    "one": Arm(lambda settings, seed: draw(settings.count, 1, seed), "steps of one"),
    "two": Arm(lambda settings, seed: draw(settings.count, 2, seed), "steps of two"),
}


def readings(run):
    return pd.DataFrame({"value": run.artifact.load()})


def means(tables, settings):
    return tables["readings"].groupby("arm", sort=False)["value"].mean().reset_index()


MEAN = Criterion("mean", "mean value", 2.5, Rule.AT_LEAST)


def criteria(tables, settings):
    return [
        MEAN.row(row.arm, "eye", Interval(row.value, row.value, row.value), 1)
        for row in tables["means"].itertuples()
    ]


STUDY = Study(
    "toy",
    Settings,
    ARMS,
    tables={
        "readings": Table(readings, compressed=True),
        "people": Table(
            lambda settings: pd.DataFrame({"person": cohort(settings.count).load()}), "study"
        ),
        "means": Table(means, "summary"),
    },
    sources={"numbers": Source(lambda s: cohort(s.count), lambda s: cohort(s.count).digest)},
    criteria=criteria,
    references=lambda settings: ("base",),
    default_arms=lambda settings: ("one",),
    seeds=(1, 2),
)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FAIRLIB_DEVICE", "cpu")
    CALLS.clear()


def test_tables_hold_references_and_arms_in_order(tmp_path):
    out = engine.run_study(STUDY, Settings(), ["two", "one", "two"], [2, 1], tmp_path / "out")
    table = engine.load_results(STUDY, out)
    pairs = list(
        table["readings"][["seed", "arm"]].drop_duplicates().itertuples(index=False, name=None)
    )
    assert pairs == [(1, "base"), (1, "one"), (1, "two"), (2, "base"), (2, "one"), (2, "two")]
    assert table["readings"].query("arm == 'two' and seed == 2")["value"].tolist() == [2, 4, 6]
    assert table["people"]["person"].tolist() == [0, 1, 2]
    assert dict(table["means"].itertuples(index=False)) == {"base": 1.5, "one": 2.5, "two": 3.5}
    assert read_json(out / "study.json")["runs"] == {"base": [1, 2], "one": [1, 2], "two": [1, 2]}


def test_memory_and_disk_hold_the_same(tmp_path):
    out = engine.run_study(STUDY, Settings(), None, None, tmp_path / "out")
    for name, table in engine.tables_of(STUDY, Settings(), None, STUDY.seeds).items():
        pd.testing.assert_frame_equal(table, engine.read_tables(STUDY, out)[name])


def test_what_is_there_is_kept_and_nothing_is_computed_twice(tmp_path):
    engine.run_study(STUDY, Settings(), ["one"], [1], tmp_path / "out")
    first = len(CALLS)
    engine.run_study(STUDY, Settings(), ["two"], [1], tmp_path / "out")
    table = engine.load_results(STUDY, tmp_path / "out")["readings"]
    assert (
        first == 2
        and len(CALLS) == 3
        and set(table["arm"]) == {"base", "one", "two"}
        and len(table) == 9
    )


def test_two_that_write_at_the_same_time_keep_each_others_rows(tmp_path, monkeypatch):
    """Reading a table takes long enough for another process to read it as well."""
    engine.run_study(STUDY, Settings(), ["one"], [1], tmp_path / "out")
    read_table = engine.read_table
    monkeypatch.setattr(engine, "read_table", lambda path: (time.sleep(0.05), read_table(path))[1])
    threads = [
        threading.Thread(
            target=engine.run_study, args=(STUDY, Settings(), [arm], [2], tmp_path / "out")
        )
        for arm in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = read_json(tmp_path / "out" / "study.json")["runs"]
    assert runs == {"base": [1, 2], "one": [1, 2], "two": [2]}
    assert len(engine.load_results(STUDY, tmp_path / "out")["readings"]) == 15


def test_settings_that_are_not_json_are_read_back_as_the_same_study(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Several(Settings):
        sizes: tuple[int, ...] = (1, 2)

    study = dataclasses.replace(STUDY, settings=Several)
    out = engine.run_study(study, Several(), ["one"], [1], tmp_path / "out")
    engine.run_study(study, Several(), ["two"], [1], out)


def test_another_study_is_refused(tmp_path):
    out = engine.run_study(STUDY, Settings(), ["one"], [1], tmp_path / "out")
    with pytest.raises(DataError, match="another study.*'study'"):
        engine.run_study(STUDY, Settings(count=4), ["one"], [1], out)
    record = read_json(out / "study.json")
    write_json(out / "study.json", record | {"inputs": {"cohort": "other"}})
    with pytest.raises(DataError, match="'inputs'"):
        engine.run_study(STUDY, Settings(), ["one"], [1], out)
    del record["inputs"]  # as older records are
    write_json(out / "study.json", record)
    engine.run_study(STUDY, Settings(), ["one"], [1], out)


@pytest.mark.parametrize(
    ("arms", "only", "message"),
    [(["tow"], None, "did you mean 'two'"), (None, ["reading"], "'readings'")],
)
def test_unknown_names_are_refused_at_once(tmp_path, arms, only, message):
    with pytest.raises(SettingsError, match=message):
        engine.run_study(STUDY, Settings(), arms, [1], tmp_path / "out", only)
    assert not CALLS


def test_no_results_say_how_to_make_them(tmp_path):
    with pytest.raises(DataError, match="python -m studies toy"):
        engine.load_results(STUDY, tmp_path)


def test_one_entry_makes_an_arm_a_table_and_a_cohort(tmp_path):
    """What a newcomer adds is a function and a line."""
    more = dataclasses.replace(
        STUDY,
        arms={
            **ARMS,
            "ten": Arm(
                lambda settings, seed: draw(settings.count, 10, seed), "steps of ten", "sampling"
            ),
        },
        tables={
            **STUDY.tables,
            "largest": Table(
                lambda tables, s: tables["readings"].groupby("arm")["value"].max().reset_index(),
                "summary",
            ),
        },
        sources={
            **STUDY.sources,
            "few": Source(lambda s: cohort(1), lambda s: cohort(1).digest, "patients"),
        },
    )
    out = engine.run_study(more, Settings(cohort="few"), ["ten"], [0], tmp_path / "out")
    tables = engine.load_results(more, out)
    assert dict(tables["largest"].itertuples(index=False)) == {"base": 0, "ten": 20}
    assert read_json(out / "study.json")["people"] == "patients"


def test_a_table_can_be_left_out_by_arm_and_by_setting():
    chosen = {
        "readings": dataclasses.replace(STUDY.tables["readings"], arms=lambda arm: arm != "base"),
        "people": dataclasses.replace(
            STUDY.tables["people"], when=lambda settings: settings.count > 9
        ),
    }
    found = engine.tables_of(dataclasses.replace(STUDY, tables=chosen), Settings())
    assert set(found) == {"readings"} and set(found["readings"]["arm"]) == {"one"}


def test_references_can_be_left_out(tmp_path):
    out = engine.run_study(STUDY, Settings(), ["two"], [1], tmp_path, references=False)
    assert set(engine.load_results(STUDY, out)["readings"]["arm"]) == {"two"}


def test_a_chapter_of_a_study_without_images_shows_stored_rows_or_makes_some(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "repository", lambda: tmp_path)
    engine.run_study(STUDY, Settings(), ["two"], [1, 2])
    made = len(CALLS)
    tables, images, seed = engine.results_of(STUDY, Settings(), "stored", ["one"], [7, 8])
    assert set(tables["readings"].arm) == {"base", "two"} and images == {} and seed == 1
    assert len(CALLS) == made, "stored rows need no run"
    tables, images, seed = engine.results_of(STUDY, Settings(), "live", ["one"], [7, 8])
    assert set(tables["readings"].arm) == {"base", "one"} and images == {} and seed == 7
    assert set(tables["readings"].seed) == {7, 8} and len(CALLS) == made + 4
    with pytest.raises(DataError, match="of cohort 'numbers', not 'patients'; set runs = 'live'"):
        engine.results_of(STUDY, Settings("patients"), "stored", ["one"], 1)


def test_criteria_are_those_of_the_stored_tables_and_settings(tmp_path):
    out = engine.run_study(STUDY, Settings(count=4), None, [1], tmp_path)
    found = engine.criteria_of(STUDY, out).set_index("arm")
    assert found["estimate"].to_dict() == {"base": 1.0, "one": 2.5}
    assert found["met"].to_dict() == {"base": False, "one": True}
    with pytest.raises(DataError, match="no results here"):
        engine.criteria_of(STUDY, tmp_path / "nothing")


def test_every_arm_and_seed_says_what_made_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "commit", lambda: "abc")
    out = engine.run_study(STUDY, Settings(), ["one"], [1], tmp_path)
    first = read_json(out / "study.json")
    [row] = first["rows"]["one"]["1"]
    assert (row["commit"], row["clean"]) == ("abc", True) and len(row["code"]) == 12
    assert row["cohort"] == cohort(3).digest
    assert [row] != first["rows"]["base"]["1"], "an arm is part of the code of its rows"
    monkeypatch.setattr(engine, "commit", lambda: "def+")
    engine.run_study(STUDY, Settings(), ["one"], [2], out, references=False)
    rows = read_json(out / "study.json")["rows"]
    assert rows["base"] == first["rows"]["base"] and rows["one"]["1"] == [row]
    assert rows["one"]["2"] == [row | {"commit": "def", "clean": False}]
    assert engine.criteria_of(STUDY, out).attrs["outdated"] == {}, "another commit, the same code"


def test_rows_of_different_code_are_told(tmp_path):
    """By the code of the arm's latest rows, and of the other arms when these were made."""
    out = engine.run_study(STUDY, Settings(), ["one"], [1], tmp_path)
    arms = {**ARMS, "one": Arm(lambda s, seed: draw(s.count, 1, seed + 0), "steps of one")}
    later = dataclasses.replace(STUDY, arms=arms)
    engine.run_study(later, Settings(), ["two"], [1], out)
    assert engine.outdated(out) == {"one": [1]}
    engine.run_study(later, Settings(), ["one"], [1, 2], out, references=False)
    assert engine.outdated(out) == {}


def test_a_table_made_again_alone_adds_to_what_made_the_rows(tmp_path, monkeypatch):
    two = dataclasses.replace(
        STUDY,
        tables={**STUDY.tables, "counts": Table(lambda run: readings(run).count().to_frame())},
    )
    for name, only in (("abc", None), ("def", ["counts"]), ("def", ["counts"])):
        monkeypatch.setattr(engine, "commit", lambda name=name: name)
        engine.run_study(two, Settings(), ["one"], [1], tmp_path, only)
    made = [row["commit"] for row in read_json(tmp_path / "study.json")["rows"]["one"]["1"]]
    assert made == ["abc", "def"]


def test_results_older_than_these_notes_are_passed_over(tmp_path):
    out = engine.run_study(STUDY, Settings(), ["one"], [1], tmp_path)
    record = read_json(out / "study.json")
    del record["rows"], record["latest"]
    write_json(out / "study.json", record)
    assert engine.outdated(out) == {}
    engine.run_study(STUDY, Settings(), ["two"], [1], out, references=False)
    assert engine.outdated(out) == {"base": [1], "one": [1]}


def test_settings_are_read_back(tmp_path):
    out = engine.run_study(STUDY, Settings(count=4), ["one"], [1], tmp_path / "out")
    assert engine.settings_of(STUDY, out) == Settings(count=4)


def test_where_things_lie_is_no_part_of_the_identity():
    assert STUDY.identity(Settings(data_dir="/a")) == STUDY.identity(Settings(data_dir="/b"))


# ---- cells of several studies
# --------------------------------------------------------------------------------------------


def fails(settings, seed):
    raise ValueError(f"no images at seed {seed}")


GRID = dataclasses.replace(
    STUDY,
    arms={"one": ARMS["one"], "bad": Arm(fails, "fails")},
    references=lambda settings: (),
    default_arms=lambda settings: ("bad", "one"),
)


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """`python -m studies grid ...` with the toy study of this file; results lie in `tmp_path`."""
    monkeypatch.setattr(cli, "STUDIES", {"toy": (f"{__name__}:GRID", "")})
    monkeypatch.setattr(engine, "repository", lambda: tmp_path)
    return lambda *options: cli.main(["grid", *options])


@pytest.mark.slow
def test_a_grid_goes_on_after_a_failure_and_resumes(grid, tmp_path, capfd):
    assert grid("toy::1", "--jobs", "2", "--settings", '{"count": 4}') == 1
    error = capfd.readouterr().err
    assert error.endswith("failed: toy:bad:1\n") and "no images at seed 1" in error
    out = tmp_path / "results" / "toy"
    tables = engine.load_results(GRID, out)
    assert tables["readings"]["value"].tolist() == [1, 2, 3, 4]
    assert len(tables["people"]) == 4 and tables["means"]["value"].tolist() == [2.5]
    assert set(read_json(out / "study.json")["rows"]) == {"one"}
    assert grid("toy::1", "--list", "--settings", '{"count": 4}') == 0
    assert capfd.readouterr().out == "toy:bad:1\n"


def test_a_grid_lists_what_is_left_and_reads_the_list(grid, tmp_path, capsys, monkeypatch):
    engine.run_study(GRID, Settings(), ["one"], [1])
    assert grid("toy", "toy:one", "--list") == 0
    left = capsys.readouterr().out
    assert left == "toy:bad:1\ntoy:bad:2\ntoy:one:2\n"
    (tmp_path / "cells").write_text(left)
    given = []
    monkeypatch.setattr(engine, "run_grid", lambda *options: given.append(options) or [])
    assert grid(f"@{tmp_path / 'cells'}", "--jobs", "3", "--device", "meta") == 0
    assert given[0][2:] == ([("toy", "bad", 1), ("toy", "bad", 2), ("toy", "one", 2)], 3)
    assert os.environ["FAIRLIB_DEVICE"] == "meta"


def test_a_grid_is_exported_as_a_workflow_of_what_is_left(grid, tmp_path, monkeypatch):
    """Snakemake reads it, where it is installed; without it, Python stands in for its rules."""
    engine.run_study(GRID, Settings(count=3), ["one"], [1])
    path, settings = tmp_path / "Snakefile", '{"count": 3}'
    assert grid("toy", "toy:one", "--snakemake", str(path), "--settings", settings) == 0
    head, rules = path.read_text().split("\nrule all:")
    names = {}
    exec(head, names)
    assert names["CELLS"] == ["toy:bad:1", "toy:bad:2", "toy:one:2"]
    assert shlex.split(names["PYTHON"]) == [sys.executable]
    [shell] = re.findall(r'shell: "(.*)"', rules)
    quoted = re.sub(r"{(?:wildcards|params)\.(\w+)(?::q)?}", r"{\1}", shell)
    text = shlex.quote(names["SETTINGS"])
    command = shlex.split(quoted.format(cell="toy:one:2", settings=text, python=names["PYTHON"]))
    assert command[:3] == [sys.executable, "-m", "studies"]
    made = []
    monkeypatch.setattr(engine, "run_grid", lambda *options: made.append(options) or [])
    assert cli.main(command[3:]) == 0
    assert made == [({"toy": f"{__name__}:GRID"}, {"count": 3}, [("toy", "one", 2)], 1)]
    if snakemake := shutil.which("snakemake"):
        done = subprocess.run(
            [snakemake, "-n", "-s", path], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert re.search(r"^cell +3$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tyo"], "did you mean 'toy'"),
        (["toy:oen"], "did you mean 'one'"),
        (["toy:one:1-3"], "give seeds as 1,2,3"),
        (["toy", "--jobs", "0"], "jobs is 0"),
        (["toy", "--settings", '{"cuont": 3}'], "did you mean 'count'"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_before_any_runs(grid, capsys, options, message):
    assert grid(*options) == 2 and message in capsys.readouterr().err and not CALLS


# ---- artifacts and their identity
# ------------------------------------------------------------------------------------


def test_a_stage_is_known_by_its_arguments_and_its_inputs():
    one, again, other = draw(3, 1, 0), draw(3, 1, 0), draw(3, 1, 1)
    assert one == again and one.digest != other.digest and len(CALLS) == 2
    assert one.load() is again.load() and one.load() == [0, 1, 2]


def test_arguments_without_identity_are_refused():
    with pytest.raises(SettingsError, match="count is a object"):
        draw(object(), 1, 0)


def test_functions_and_tables_have_an_identity():
    from studies.engine.stage import identity

    frame = pd.DataFrame({"a": [1.0]})
    assert identity(frame) == identity(frame.copy()) != identity(frame + 1)
    assert identity(read) != identity(readings)
    assert identity({"b": (1, 2), "a": Settings()}) == {
        "b": [1, 2],
        "a": {"cohort": "numbers", "data_dir": "", "count": 3},
    }


def test_foreign_weights_are_known_by_manifest_or_name(tmp_path):
    from studies.engine.stage import write_manifest

    assert Artifact.weights("owner/model", read).digest == "owner/model"
    (tmp_path / "a").write_text("x")
    write_manifest(tmp_path, {}, 0.0)
    before = Artifact.weights(tmp_path, read).digest
    (tmp_path / "a").write_text("y")
    write_manifest(tmp_path, {}, 0.0)
    assert Artifact.weights(tmp_path, read).digest != before


def test_a_release_is_known_by_the_files_that_match(tmp_path):
    settings = dataclasses.replace(Settings(), data_dir=str(tmp_path))
    (tmp_path / "part").mkdir()
    for name in ("table.csv", "part/scan.nii", "notes.txt"):
        (tmp_path / name).write_text(name)

    def found(*patterns):
        return engine.release_folder(settings, "table.csv", patterns, read)

    first = found("*.csv", "**/*.nii")
    assert first.folder == tmp_path and first.reader is read
    (tmp_path / "notes.txt").write_text("no part of the release")
    assert found("**/*.nii", "*.csv").digest == first.digest
    (tmp_path / "part" / "scan.nii").write_text("another scan")
    assert found("*.csv", "**/*.nii").digest != first.digest
    with pytest.raises(DataError, match="cohort 'numbers' needs data_dir, the folder that holds t"):
        engine.release_folder(Settings(), "table.csv", ("*.csv",), read)


# ---- criteria
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        (Rule.AT_MOST, True),
        (Rule.AT_LEAST, False),
        (Rule.WHOLE_AT_MOST, False),
        (Rule.WHOLE_AT_LEAST, False),
        (Rule.NOT_ABOVE, True),
        (Rule.NONE, None),
    ],
)
def test_a_rule_says_what_meets_a_criterion(rule, met):
    row = Criterion("x", "share of {group}", 1.0, rule).row(
        "a", "e", Interval(0.9, 0.8, 1.2), 5, group="F"
    )
    assert row["met"] is met and row["figure"] == "share of F" and row["rule"] == rule.value


@pytest.mark.parametrize(("value", "met"), [(0.02, False), (0.05, True), (0.08, False)])
def test_a_criterion_may_have_two_ends(value, met):
    from studies.engine.criteria import criteria_table, formatted

    rate = Criterion("rate", "false positives", 0.03, Rule.BETWEEN, 2, upper=0.07)
    row = rate.row("a", "e", Interval(value, value, value), 5)
    assert row["met"] is met and row["upper"] == 0.07
    assert formatted(criteria_table([row])).criterion[0] == "estimate between 0.03 and 0.07"


@pytest.mark.parametrize("p, words", [(2e-5, "< 0.001"), (0.0112, "0.011")])
def test_a_p_value_is_never_zero(p, words):
    from studies.engine.criteria import criteria_table, formatted

    row = Criterion("p", "the same, p value (Holm over 3)").row(
        "a", "b", Interval(p, *[float("nan")] * 2), 8
    )
    assert formatted(criteria_table([row]))["estimate (95 % CI)"][0] == words


def test_a_compared_arm_has_no_criterion():
    row = MEAN.row("base", "eye", Interval(0.0, 0.0, 0.0), 1, compared=True)
    assert row["met"] is None and row["criterion"] != row["criterion"]


def test_the_interval_of_the_first_row_that_fits():
    table = pd.DataFrame(
        {"arm": ["a", "b", "b"], "seed": [1, 1, 2], "mean": [0.1, 0.2, 0.3], "low": 0.0, "high": 1}
    )
    ends = ("mean", "low", "high")
    assert interval_at(table, ends, arm="b") == Interval(0.2, 0.0, 1.0)
    assert interval_at(table, ends, arm="b", seed=2) == Interval(0.3, 0.0, 1.0)
    assert interval_at(table, ends, arm="a", seed=2) is None


def test_the_table_for_readers_has_estimate_interval_and_rule():
    from studies.engine.criteria import criteria_table, formatted

    rows = [
        MEAN.row("a", "e", Interval(0.9, 0.8, 1.2), 1200),
        MEAN.row("b", "e", Interval(3.0, 3.0, 3.0), 1, compared=True),
    ]
    shown = formatted(criteria_table(rows))
    assert shown.loc[0].to_dict() == {
        "figure": "mean value",
        "arm": "a",
        "evaluator": "e",
        "estimate (95 % CI)": "0.900 (0.800 to 1.200)",
        "floor": "–",
        "criterion": "estimate at least 2.500",
        "met": "no",
        "n": "1,200",
    }
    assert shown.loc[1, "met"] == "–" and shown.loc[1, "estimate (95 % CI)"] == "3.000"
