"""The command `fairlib`: what it prints and writes, and with which status it ends."""

import inspect
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fairlib.cli import main
from fairlib.io import hashes
from fairlib.methods.alignment import AlignmentSettings, tune
from fairlib.methods.targets import Target
from fairlib.models import clip
from fairlib.models.autoencoder import build_autoencoder
from fairlib.models.generator import Generator, assemble, build_denoiser
from studies.engine.stage import write_manifest

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a tiny random pipeline."""
    place = tmp_path_factory.mktemp("cli")
    clip.write_vocabulary(place / "words", clip.learn_merges(["axial brain"], count=20))
    torch.manual_seed(0)
    encoder = clip.text_encoder_of(clip.build_clip(place / "words", CONFIG))
    parts = (encoder, clip.pipeline_tokenizer(place / "words"), build_autoencoder((8, 8, 8, 8)))
    generator = Generator(assemble(*parts, build_denoiser((16, 32), 32)))
    generator.save(place / "pipeline")
    return place / "pipeline"


GROUPED = {
    "prompts.csv": "prompt,group\naxial brain,old\nbrain,young\n",
    "shares.csv": "group,F,M\nold,0.4,0.6\nyoung,0.9,0.1\n",
    "scores.csv": "group,logit\nold,-2\nold,3\nyoung,-1\nyoung,1\n",
}


LABELLED = "image,group,logit,label\na,old,-2,F\nb,old,3,M\nc,old,2,F\na,young,-1,F\nd,young,1,M\n"


def bright():
    """A classifier: bright images are of the first group."""
    return lambda images: 20 * images.flatten(1).mean(1)


def test_sample_writes_the_images_of_the_seed(pipeline, tmp_path, capsys):
    command = ["sample", str(pipeline), "axial brain", "brain", "--count", "2", "--steps", "2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "images.csv")
    assert table["prompt"].tolist() == ["axial brain"] * 2 + ["brain"] * 2
    wanted = Generator.load(pipeline).sample(list(table["prompt"]), rng=0, steps=2)
    for name, image in zip(table["image"], wanted, strict=True):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (128, 128) and picture.mode == "L"
            values = torch.from_numpy(np.array(picture).astype("float32")) / 127.5 - 1
        assert (values - image[0]).abs().max() <= 0.5 / 127.5 + 1e-5


@pytest.mark.parametrize("form", ["scores.csv", "groups"])
def test_sample_chooses_the_images_whose_scores_match_the_target(
    pipeline, tmp_path, capsys, monkeypatch, form
):
    """By brute force: of all pairs of a pool of six, the one nearest to the target's quantiles."""
    monkeypatch.setitem(sys.modules, "strangers_classifier", sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.csv").write_text("logit,label\n-9,M\n9,F\n")
    (tmp_path / "prompts.csv").write_text("prompt,group\naxial brain,a\nbrain,b\n")
    (tmp_path / "shares.csv").write_text("group,F,M\na,0.5,0.5\nb,1,0\n")
    grouped = form == "groups"
    prompts = ["prompts.csv"] if grouped else ["axial brain", "brain"]
    shares = ["shares.csv"] if grouped else ["F=0.5", "M=0.5"]
    command = ["sample", str(pipeline), *prompts, "--count", "2", "--steps", "2", "--out", "out"]
    command += ["--classifier", "strangers_classifier:bright", "--shares", *shares]
    assert main([*command, "--scores", "scores.csv", "--draws-per-image", "3"]) == 0
    assert "aim: shares by the recorded groups" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "images.csv")
    assert table["prompt"].tolist() == ["axial brain"] * 2 + ["brain"] * 2
    read = [np.array(Image.open(tmp_path / "out" / name)) / 127.5 - 1 for name in table["image"]]
    generator = Generator.load(pipeline)
    for place, (prompt, points) in enumerate([("axial brain", (-9, 9)), ("brain", (-9, 9))]):
        points = (9, 9) if grouped and place else points
        noise = generator.noise(0, list(range(6)))
        pool = generator.sample([prompt] * 6, noise=noise, steps=2)
        logits = bright()(pool)
        far = {
            pair: min(
                sum((logits[row] - point) ** 2 for row, point in zip(order, points, strict=True))
                for order in itertools.permutations(pair)
            )
            for pair in itertools.combinations(range(6), 2)
        }
        for got, row in zip(read[2 * place :], min(far, key=far.get), strict=False):
            assert np.abs(got - pool[row, 0].numpy()).max() <= 0.5 / 127.5 + 1e-5


def three():
    """A classifier of three groups."""
    return lambda images: torch.eye(3)[torch.arange(len(images)) % 3]


def broken():
    """A classifier whose logits overflow."""
    return lambda images: images.flatten(1).mean(1) * float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--classifier": []}, "give all three of --classifier, --scores and --shares"),
        ({"--scores": []}, "give all three of --classifier, --scores and --shares"),
        ({"--shares": []}, "give all three of --classifier, --scores and --shares"),
        ({"--classifier": ["strangers_classifier:three"]}, "logits of 3 groups but 2 have a share"),
        ({"--classifier": ["strangers_classifier:broken"]}, "'brain': logits hold NaN or infinity"),
        ({"--count": ["0"]}, "--count 0: give a whole number from 1"),
        ({"--draws-per-image": ["0.5"]}, "draws_per_image is 0.5; give a number from 1"),
        ({"prompts": ["brain"]}, "a prompt stands twice"),
        ({"--scores": ["indexed.csv"]}, "the columns unnamed, logit would all be logits"),
        ({"--scores": ["reversed.csv"]}, "in the order of the classifier's outputs (F, M)"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_choice_of_images_is_one_line(
    pipeline, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.setitem(sys.modules, "strangers_classifier", sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.csv").write_text("logit,label\n-9,M\n9,F\n")
    (tmp_path / "indexed.csv").write_text("unnamed,logit,label\n0,-9,M\n1,9,F\n")
    (tmp_path / "reversed.csv").write_text("M,F\n-9,1\n9,2\n")
    given = {"--classifier": ["strangers_classifier:bright"], "--scores": ["scores.csv"]}
    given |= {"--shares": ["F=0.5", "M=0.5"], "--count": ["2"], "--steps": ["1"]} | change
    prompts = ["brain", *given.pop("prompts", [])]
    options = [word for name, words in given.items() if words for word in (name, *words)]
    assert main(["sample", str(pipeline), *prompts, *options, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fairlib: ") and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "out").exists()


FEW = {"images_per_prompt": 2, "cache_size": 4, "cache_block": 2, "sampling_steps": 2,
       "replay_steps": 1}  # fmt: skip


@pytest.fixture
def tuning(pipeline, tmp_path, monkeypatch):
    """The start of a command that tunes the tiny pipeline, but for --steps and --out."""
    monkeypatch.setitem(sys.modules, "strangers_classifier", sys.modules[__name__])
    monkeypatch.setattr("fairlib.cli.FEW", FEW)
    pd.DataFrame({"logit": [-2.0, -1.0, 1.0, 2.0]}).to_csv(tmp_path / "scores.csv", index=False)
    (tmp_path / "prompts.txt").write_text("axial brain\n\nbrain\n")
    command = ["tune", str(pipeline), str(tmp_path / "prompts.txt"), "--scores"]
    command += [str(tmp_path / "scores.csv"), "--classifier", "strangers_classifier:bright"]
    return [*command, "--shares", "F=0.458", "M=0.542"]


def test_tune_writes_a_pipeline_that_has_moved(pipeline, tuning, tmp_path, capsys, monkeypatch):
    out, embed = tmp_path / "tuned", clip.Clip(None, None, 1, 8)
    embed.embed_images = lambda images: seen.append(len(images)) or images.flatten(1)
    seen = []
    monkeypatch.setattr(clip, "load_clip", lambda name, local: embed)
    command = [*tuning, "--steps", "1", "--out", str(out)]
    assert main([*command, "--lora", "2", "--clip", "a_folder"]) == 0 and seen
    assert "step 1 of 1: F " in capsys.readouterr().out
    before, after = (Generator.load(place).denoiser.state_dict() for place in (pipeline, out))
    assert any(not torch.equal(before[name], value) for name, value in after.items())


START = """
import sys
sys.path.insert(0, {place!r})
import fairlib.cli
fairlib.cli.FEW = {few}
sys.exit(fairlib.cli.main({command}))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_tuning_that_is_killed_twice_ends_with_the_same_bits(pipeline, tuning, tmp_path):
    """SIGKILL at a random moment after a step's line; the same command goes on after the last saved
    state.
    """
    (tmp_path / "other_process.py").write_text(inspect.getsource(bright))
    tuning[tuning.index("strangers_classifier:bright")] = "other_process:bright"
    tuning += ["--steps", "12", "--save-every", "1", "--lora", "2"]

    def start(out):
        command = [*tuning, "--out", str(tmp_path / out)]
        code = START.format(place=str(tmp_path), few=FEW, command=command)
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    with start("whole") as process:
        assert steps_in(process.stdout) == list(range(1, 13))
    for _ in range(2):
        with start("killed") as process:
            assert process.stdout.readline().startswith("aim: ")
            assert process.stdout.readline().startswith("step ")
            time.sleep(random.uniform(0, 0.05))
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed").exists()
    with start("killed") as process:
        left = steps_in(process.stdout)
    assert left[0] > 2 and left[-1] == 12
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole") != {}


def test_an_interrupted_tuning_is_taken_up_by_the_same_command_alone(
    tuning, tmp_path, capsys, monkeypatch
):
    """Interrupted in its last step; each other run ends, and leaves no state behind."""
    tuning += ["--steps", "3", "--save-every", "1", "--lora", "2"]

    def run(out, *more):
        status = main([*tuning, "--out", str(tmp_path / out), *more])
        return status, steps_in(capsys.readouterr().out.splitlines())

    with monkeypatch.context() as patched:
        calls = counted(patched)
        assert run("whole") == (0, [1, 2, 3])
        counted(patched, last=len(calls))
        assert run("left") == (130, [1, 2])
    [state] = tmp_path.glob("left-*.safetensors")
    (tmp_path / f".{state.name}.half").write_text("")
    assert run("left", "--seed", "1") == (0, [1, 2, 3]) and state.is_file()
    assert run("left") == (0, [3])
    assert hashes(tmp_path / "left") == hashes(tmp_path / "whole") != {}
    assert not list(tmp_path.glob("*.safetensors")) + list(tmp_path.glob(".*"))
    assert main([*tuning, "--out", str(tmp_path / "out"), "--save-every", "0"]) == 2
    assert "--save-every 0: give a whole number from 1" in capsys.readouterr().err


def steps_in(lines):
    """The numbers of the steps that were printed."""
    return [int(line.split()[1]) for line in lines if line.startswith("step ")]


def counted(monkeypatch, last=0):
    """The calls of `bright`'s classifier from now on; it is interrupted in its call number `last`."""
    calls, classifier = [], bright()

    def classify(images):
        calls.append(len(images))
        if len(calls) == last:
            raise KeyboardInterrupt
        return classifier(images)

    monkeypatch.setattr(sys.modules[__name__], "bright", lambda: classify)
    return calls


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


@pytest.mark.parametrize("labelled", [False, True])
def test_groups_of_prompts_have_targets_of_their_own(
    pipeline, tmp_path, capsys, monkeypatch, labelled
):
    """The command makes the weights that the library's call makes, to the bit."""
    monkeypatch.setitem(sys.modules, "strangers_classifier", sys.modules[__name__])
    monkeypatch.setattr("fairlib.cli.FEW", FEW)
    monkeypatch.chdir(tmp_path)
    for name, text in (GROUPED | ({"scores.csv": LABELLED} if labelled else {})).items():
        (tmp_path / name).write_text(text)
    command = ["tune", str(pipeline), "prompts.csv", "--shares", "shares.csv", "--steps", "1"]
    command += ["--scores", "scores.csv", "--classifier", "strangers_classifier:bright"]
    assert main([*command, "--out", "tuned"]) == 0, capsys.readouterr().err

    old, young = ([-2.0, 3.0], None), ([-1.0, 1.0], None)
    if labelled:
        old, young = ([-2.0, 3.0, 2.0], ["F", "M", "F"]), ([-1.0, 1.0], ["F", "M"])
    targets = {
        "old": Target.shares({"F": 0.4, "M": 0.6}, *old, name="old"),
        "young": Target.shares({"F": 0.9, "M": 0.1}, *young, name="young"),
    }
    generator = Generator.load(pipeline)
    settings = AlignmentSettings(steps=1, prompts_per_step=2, micro_batch=8, **FEW)
    groups = {"axial brain": "old", "brain": "young"}
    for _ in tune(generator, bright(), groups, Target.by_group(targets), settings=settings):
        pass
    generator.save(tmp_path / "library")
    ours, theirs = (Generator.load(tmp_path / name).denoiser for name in ("tuned", "library"))
    before = Generator.load(pipeline).denoiser.state_dict()
    held = theirs.state_dict()
    assert all(torch.equal(held[name], value) for name, value in ours.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in held.items())


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
    monkeypatch.setitem(sys.modules, "strangers_classifier", sys.modules[__name__])
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


def test_an_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fairlib.cli.examine", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "fairlib: interrupted\n"


def test_doctor_looks_into_the_home_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data" / "HGG").mkdir(parents=True)
    assert main(["doctor", "--weights", "~/weights", "--data-dir", "~/data", "--deep"]) == 1
    out = capsys.readouterr().out
    assert f"weights: none in {tmp_path}/weights" in out
    assert f"data (brats): refused: {tmp_path}/data: no folder LGG" in out


def test_doctor_finds_whole_weights(tmp_path, capsys):
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "w.bin").write_bytes(b"abc")
    write_manifest(tmp_path / "brain", {}, 0)
    assert main(["doctor", "--weights", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "weights: brain: 1 files, hashes match" in out and "torch: " in out and "device: " in out


def test_doctor_finds_changed_and_absent_weights(tmp_path, capsys):
    assert main(["doctor", "--weights", str(tmp_path)]) == 1
    assert "`make base` trains them" in capsys.readouterr().out
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "w.bin").write_bytes(b"abc")
    write_manifest(tmp_path / "brain", {}, 0)
    (tmp_path / "brain" / "w.bin").write_bytes(b"abd")
    assert main(["doctor", "--weights", str(tmp_path)]) == 1
    assert "w.bin: sha256" in capsys.readouterr().out


def test_audit_samples_reads_and_writes(pipeline, tmp_path, capsys, monkeypatch):
    """A pipeline, and the folder of its images, give the same numbers."""
    monkeypatch.setitem(sys.modules, "strangers_classifier", sys.modules[__name__])
    labelled = {"group": ["F", "M"] * 15, "one": [2.0, -2.0] * 15, "two": [3.0, -3.0] * 15}
    pd.DataFrame(labelled).to_csv(tmp_path / "labelled.csv", index=False)
    options = ["--classifier", "one=strangers_classifier:bright", "two=strangers_classifier:dark"]
    options += ["--shares", "F=0.458", "M=0.542"]
    sampling = ["--count", "3", "--steps", "2", "--seed", "5"]
    prompts = ["axial brain", "brain"]
    out = tmp_path / "one"
    command = ["audit", str(pipeline), *prompts, *sampling, *options, "--out", str(out)]
    assert main([*command, "--calibration", str(tmp_path / "labelled.csv")]) == 0
    assert capsys.readouterr().out.strip() == str(out / "audit.html")
    first = json.loads((out / "audit.json").read_text())
    assert "seed 5, 2 solver steps" in first["assumed"]["Sampling"]
    wanted = Generator.load(pipeline).sample([p for p in prompts for _ in range(3)], rng=5, steps=2)
    assert first["shares"][0]["raw"] == (wanted.mean((1, 2, 3)) > 0).float().mean()
    assert {row["evaluator"] for row in first["shares"]} == {"one", "two"}

    images = tmp_path / "images"
    main(["sample", str(pipeline), *prompts, *sampling, "--out", str(images)])
    assert main(["audit", str(images), *options, "--out", str(tmp_path / "two")]) == 0
    second = json.loads((tmp_path / "two" / "audit.json").read_text())
    assert [row["raw"] for row in second["shares"]] == [row["raw"] for row in first["shares"]]
    assert "corrected" in first["shares"][0] and "corrected" not in second["shares"][0]
    assert main(["audit", str(images), "brain", *options, "--out", str(tmp_path / "three")]) == 0
    third = json.loads((tmp_path / "three" / "audit.json").read_text())
    assert {row["n"] for row in third["shares"]} == {3}


def dark():
    return lambda images: -20 * images.flatten(1).mean(1) - 1


def test_classifiers_need_names_of_their_own(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "strangers_classifier", sys.modules[__name__])
    given = ["--classifier", "strangers_classifier:bright", "strangers_classifier:dark"]
    command = ["audit", str(pipeline), "brain", *given, "--shares", "F=0.4", "M=0.6"]
    command += ["--count", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "give each a name of its own" in capsys.readouterr().err


def test_sampling_in_half_precision_and_another_size(pipeline, tmp_path, capsys):
    command = ["sample", str(pipeline), "brain", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--image-size", "64", "--precision", "bf16"]) == 0
    with Image.open(tmp_path / "out" / "00000.png") as image:
        assert image.size == (64, 64)
    assert main([*command, "--image-size", "100"]) == 2
    assert "give a multiple of 16" in capsys.readouterr().err


def test_help_needs_nothing_heavy():
    code = """import sys, fairlib.cli
try: fairlib.cli.main(["--help"])
except SystemExit: print(*sys.modules, file=sys.stderr)"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "doctor" in result.stdout
    assert not {"torch", "pandas", "numpy"} & set(result.stderr.split())
