"""What a command line names, read and checked: targets, shares, prompts, classifiers."""

import sys

import numpy as np
import pandas as pd
import pytest

from fairlib.cli import main
from fairlib.methods.targets import Target
from tests.fairlib import strangers
from tests.fairlib.strangers import GROUPED, LABELLED


@pytest.fixture
def aimed(tuning, tmp_path, monkeypatch):
    """Run `tune` without a step, on a table of real images: status, and the target it has made."""
    monkeypatch.chdir(tmp_path)

    def run(table, *more):
        targets = []
        monkeypatch.setattr(
            "fairlib.methods.alignment.tune", lambda *given, **_: targets.append(given[3]) or []
        )
        (tmp_path / "real.csv").write_text(table)
        status = main([*tuning, "--scores", "real.csv", *more, "--out", str(tmp_path / "out")])
        return status, targets

    return run


@pytest.mark.parametrize("labels", [["F", "M", "F", "M"], None])
def test_labels_make_the_target_and_the_first_line_says_what_is_aimed_at(aimed, capsys, labels):
    logits = [-2.0, -1.0, 1.0, 2.0]
    ends = [f",{label}" for label in labels or ()] or [""] * 4
    rows = [
        f"{n}.png,{logit}{end}" for n, (logit, end) in enumerate(zip(logits, ends, strict=True))
    ]
    table = "\n".join([f"image,logit{',label' if labels else ''}", *rows])
    assert aimed(table) == (0, [Target.shares({"F": 0.458, "M": 0.542}, logits, labels)])
    first = capsys.readouterr().out.splitlines()[0]
    recorded = "aim: shares by the recorded groups (column `label` of real.csv)"
    decided = "aim: shares as the classifier reads them; real.csv has no column `label`"
    assert first == (recorded if labels else decided)


def test_labels_of_three_groups(aimed):
    logits, labels = np.eye(3)[[0, 1, 2, 0]] * 4, ["c", "a", "b", "a"]
    rows = [",".join([label, *map(str, row)]) for label, row in zip(labels, logits, strict=True)]
    status, [target] = aimed(
        "\n".join(["label,a,b,c", *rows]), "--shares", "a=0.5", "b=0.25", "c=0.25"
    )
    assert status == 0
    assert target == Target.shares({"a": 0.5, "b": 0.25, "c": 0.25}, logits, labels)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("logit,label\n-1,F\n1,m\n2,\n", "real.csv: row 3 has the label 'm' (2 such rows of 3)"),
        ("logit,label\n-1,F\n1,M\n2,\n", "row 4 has the label '' (1 such rows of 3); the groups"),
        ("logit,label\n-1,F\n1,F\n", "none of 2 images has the label 'M', which has a share of 0.542"),
        ("image,logit\na,-1\na,1\n", "real.csv: id 'a' stands twice"),
        ("logit,group\n-1,F\n1,M\n", "call the column with the recorded group of each image `label`"),
        ("logit,sex\n-1,F\n1,M\n", "text stands in image, group and label alone"),
        ("label\nF\nM\n", "logits have shape (2, 0)"),
        ("logit,label\n,F\n1,M\n", "give the classifier's logits on real images"),
        ("logit,label\n", "real.csv is empty"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_table_of_real_images_is_named(aimed, capsys, table, message):
    assert aimed(table) == (2, [])
    error = capsys.readouterr().err
    assert error.startswith("fairlib: ") and error.count("\n") == 1 and message in error, error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts.csv": "prompt\naxial brain\nbrain\n"}, "lacks column 'group'"),
        ({"prompts.csv": "prompt,group\nbrain,old\nbrain,young\n"}, "'brain' stands twice"),
        ({"prompts.csv": "text,group\nbrain,old\n"}, "has no column 'prompt'"),
        ({"prompts.csv": "prompt,group\nbrain,old\n"}, "no prompt is of group 'young'"),
        ({"shares.csv": "F,M\n0.4,0.6\n"}, "lacks column 'group'"),
        ({"shares.csv": "group,F,M\nold,0.4,0.6\nold,0.5,0.5\n"}, "'old' stands twice"),
        ({"shares.csv": "group,F,M\nold,0.4,x\n"}, "give the share of each class"),
        ({"scores.csv": "group,logit\nold,-2\nold,3\n"}, "target 'young' has a share of 0.9"),
        (
            {"scores.csv": LABELLED.replace("young,1,M", "young,1,F")},
            "scores.csv (group 'young'): none of 2 images has the label 'M'",
        ),
        ({"scores.csv": LABELLED.replace("young,1,M", "young,1,x")}, "row 6 has the label 'x'"),
        ({"scores.csv": LABELLED.replace("c,old", "a,old")}, "(group 'old'): id 'a' stands twice"),
    ],
)
def test_a_mistake_in_a_table_of_groups_is_named(
    pipeline, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.setitem(sys.modules, "strangers_classifier", strangers)
    monkeypatch.chdir(tmp_path)
    for name, text in (GROUPED | change).items():
        (tmp_path / name).write_text(text)
    command = ["tune", str(pipeline), "prompts.csv", "--shares", "shares.csv", "--out", "out"]
    assert (
        main([*command, "--scores", "scores.csv", "--classifier", "strangers_classifier:bright"])
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--shares": "F:0.4"}, "give name=share"),
        ({"--scores": "words.csv"}, "give the classifier's logits on real images"),
        ({"--scores": "nowhere.csv"}, "there is no nowhere.csv in"),
        ({"--classifier": "no_such_module:f"}, "package.module:function"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(
    pipeline, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.csv").write_text("logit\nhigh\n")
    pd.DataFrame({"logit": [-1.0, 1.0]}).to_csv(tmp_path / "scores.csv", index=False)
    options = {"--shares": "F=0.4", "--scores": str(tmp_path / "scores.csv"),
               "--classifier": str(tmp_path), "--out": str(tmp_path / "out")} | change  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    if "F=0.4" in words:
        words.insert(words.index("F=0.4"), "M=0.6")
    assert main(["tune", str(pipeline), "brain", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fairlib: ") and error.count("\n") == 1 and message in error


def test_classifiers_need_names_of_their_own(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "strangers_classifier", strangers)
    given = ["--classifier", "strangers_classifier:bright", "strangers_classifier:dark"]
    command = ["audit", str(pipeline), "brain", *given, "--shares", "F=0.4", "M=0.6"]
    command += ["--count", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "give each a name of its own" in capsys.readouterr().err
