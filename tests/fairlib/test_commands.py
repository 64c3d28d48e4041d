"""The commands of `fairlib`: what they print and write."""

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
from fairlib.models.generator import Generator
from studies.engine.stage import write_manifest
from tests.fairlib import strangers
from tests.fairlib.strangers import FEW, GROUPED, LABELLED


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
    monkeypatch.setitem(sys.modules, "strangers_classifier", strangers)
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
        logits = strangers.bright()(pool)
        far = {
            pair: min(
                sum((logits[row] - point) ** 2 for row, point in zip(order, points, strict=True))
                for order in itertools.permutations(pair)
            )
            for pair in itertools.combinations(range(6), 2)
        }
        for got, row in zip(read[2 * place :], min(far, key=far.get), strict=False):
            assert np.abs(got - pool[row, 0].numpy()).max() <= 0.5 / 127.5 + 1e-5


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
    monkeypatch.setitem(sys.modules, "strangers_classifier", strangers)
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


def test_sampling_in_half_precision_and_another_size(pipeline, tmp_path, capsys):
    command = ["sample", str(pipeline), "brain", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--image-size", "64", "--precision", "bf16"]) == 0
    with Image.open(tmp_path / "out" / "00000.png") as image:
        assert image.size == (64, 64)
    assert main([*command, "--image-size", "100"]) == 2
    assert "give a multiple of 16" in capsys.readouterr().err


def test_tune_writes_a_pipeline_that_has_moved(pipeline, tuning, tmp_path, capsys, monkeypatch):
    out, embed = tmp_path / "tuned", clip.Clip(None, None, 1, 8)
    embed.embed_images = lambda images: seen.append(len(images)) or images.flatten(1)
    seen = []
    monkeypatch.setattr("fairlib.inputs.load_clip", lambda name, local: embed)
    command = [*tuning, "--steps", "1", "--out", str(out)]
    assert main([*command, "--lora", "2", "--clip", "a_folder"]) == 0 and seen
    assert "step 1 of 1: F " in capsys.readouterr().out
    before, after = (Generator.load(place).denoiser.state_dict() for place in (pipeline, out))
    assert any(not torch.equal(before[name], value) for name, value in after.items())


START = """
import sys
sys.path.insert(0, {place!r})
import fairlib.cli
import fairlib.commands
fairlib.commands.FEW = {few}
sys.exit(fairlib.cli.main({command}))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_tuning_that_is_killed_twice_ends_with_the_same_bits(pipeline, tuning, tmp_path):
    """SIGKILL at a random moment after a step's line; the same command goes on after the last saved
    state.
    """
    (tmp_path / "other_process.py").write_text(inspect.getsource(strangers.bright))
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
    calls, classifier = [], strangers.bright()

    def classify(images):
        calls.append(len(images))
        if len(calls) == last:
            raise KeyboardInterrupt
        return classifier(images)

    monkeypatch.setattr(strangers, "bright", lambda: classify)
    return calls


@pytest.mark.parametrize("labelled", [False, True])
def test_groups_of_prompts_have_targets_of_their_own(
    pipeline, tmp_path, capsys, monkeypatch, labelled
):
    """The command makes the weights that the library's call makes, to the bit."""
    monkeypatch.setitem(sys.modules, "strangers_classifier", strangers)
    monkeypatch.setattr("fairlib.commands.FEW", FEW)
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
    for _ in tune(
        generator, strangers.bright(), groups, Target.by_group(targets), settings=settings
    ):
        pass
    generator.save(tmp_path / "library")
    ours, theirs = (Generator.load(tmp_path / name).denoiser for name in ("tuned", "library"))
    before = Generator.load(pipeline).denoiser.state_dict()
    held = theirs.state_dict()
    assert all(torch.equal(held[name], value) for name, value in ours.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in held.items())


def test_audit_samples_reads_and_writes(pipeline, tmp_path, capsys, monkeypatch):
    """A pipeline, and the folder of its images, give the same numbers."""
    monkeypatch.setitem(sys.modules, "strangers_classifier", strangers)
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
