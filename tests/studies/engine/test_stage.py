"""Stages: done once, keyed by all they depend on, whole or absent, and the same bits after any
kill.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fairlib import SettingsError, WeightsError
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator
from studies.engine.stage import WORKING, clean_working, identity, make, stage_key


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    seed: int = 0


def run_stage(root, name, settings, inputs, build):
    return make(name, {"settings": identity(settings), "inputs": inputs}, "code", build, root=root)


def write(text):
    return lambda folder, progress: (folder / "out.txt").write_text(text)


def test_result_is_made_once(tmp_path):
    calls = []

    def build(folder, progress):
        calls.append(1)
        (folder / "out.txt").write_text("a")

    first = run_stage(tmp_path, "fit", Settings(), [], build)
    again = run_stage(tmp_path, "fit", Settings(), [], build)
    assert first == again and calls == [1] and (first / "out.txt").read_text() == "a"


def test_every_dependence_changes_the_key():
    base = stage_key("fit", {"steps": 3}, "v1")
    others = [
        stage_key("tune", {"steps": 3}, "v1"),
        stage_key("fit", {"steps": 4}, "v1"),
        stage_key("fit", {"steps": 3}, "v2"),
    ]
    assert len({base, *others}) == 4
    assert base == stage_key("fit", {"steps": 3}, "v1")


def test_dataclass_and_dictionary_are_the_same_settings(tmp_path):
    made = run_stage(tmp_path, "fit", Settings(), [], write("a"))
    assert made == run_stage(tmp_path, "fit", {"seed": 0, "steps": 3}, [], write("never"))


def test_failed_build_leaves_no_result_but_its_working_folder(tmp_path):
    def fails(folder, progress):
        (folder / WORKING / "checkpoint").write_text("half")
        (folder / "out.txt").write_text("partial")
        raise RuntimeError("power cut")

    def goes_on(folder, progress):
        assert not (folder / "out.txt").exists(), (
            "what an earlier attempt left half done must be gone"
        )
        (folder / "out.txt").write_text(
            (folder / WORKING / "checkpoint").read_text() + " and the rest"
        )

    with pytest.raises(RuntimeError, match="power cut"):
        run_stage(tmp_path, "fit", {}, [], fails)
    assert not list(tmp_path.glob("fit-*"))
    done = run_stage(tmp_path, "fit", {}, [], goes_on)
    assert (done / "out.txt").read_text() == "half and the rest"
    assert not (done / WORKING).exists() and not list(tmp_path.glob(".attempt-*"))


def test_changed_result_is_refused(tmp_path):
    done = run_stage(tmp_path, "fit", {}, [], write("a"))
    (done / "out.txt").write_text("b")
    with pytest.raises(WeightsError, match=r"out\.txt.*delete"):
        run_stage(tmp_path, "fit", {}, [], write("a"))


def test_two_threads_build_once(tmp_path):
    calls = []

    def slow(folder, progress):
        calls.append(1)
        time.sleep(0.3)
        (folder / "out.txt").write_text("a")

    threads = [
        threading.Thread(target=run_stage, args=(tmp_path, "fit", {}, [], slow)) for _ in range(3)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert calls == [1]


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a b"])
def test_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(SettingsError, match="stage name"):
        run_stage(tmp_path, name, {}, [], write("a"))


def test_clean_working_deletes_unfinished_attempts_only(tmp_path):
    done = run_stage(tmp_path, "fit", {}, [], write("a"))
    (tmp_path / ".attempt-tune-123" / WORKING).mkdir(parents=True)
    assert clean_working(tmp_path) == 1
    assert done.exists() and not list(tmp_path.glob(".attempt-*"))


WALK = '''
import io, sys, time
from pathlib import Path
import numpy as np
from studies.engine import manifest
from fairlib.io import write_bytes
from studies.engine.stage import make

def build(folder, progress):
    """A random walk whose step t draws from (seed, t) alone; a checkpoint after every step."""
    checkpoint = folder / "working" / "state.npy"
    state = np.load(checkpoint) if checkpoint.exists() else np.zeros(65)
    for step in range(int(state[0]), 40):
        draw = np.random.default_rng((3, step)).normal(size=64)
        state = np.concatenate([[step + 1], np.tanh(state[1:] * 0.9 + draw)])
        buffer = io.BytesIO(); np.save(buffer, state); write_bytes(checkpoint, buffer.getvalue())
        print(step, flush=True)
        time.sleep(float(sys.argv[2]))
    np.save(folder / "walk.npy", state)

manifest.device = lambda: "cpu"  # spares each process the seconds it takes to load torch
print("at", make("walk", {"seed": 3}, "code", build, root=sys.argv[1]), flush=True)
'''


def walk(root, pause):
    script = Path(root).parent / "walk.py"
    script.write_text(WALK)  # a function's code is read from its file
    return subprocess.Popen(
        [sys.executable, script, str(root), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def kill_at(root, step):
    """Start the walk and end it, as a power cut would, once it has printed `step`."""
    process = walk(root, 0.02)
    for text in process.stdout:
        if text.strip() == str(step):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


# Windows has no signal that ends a process without a last word, so there is nothing to test there.
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_twice_and_resumed_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    walk(whole, 0).communicate()
    kill_at(killed, 5)
    assert not list(killed.glob("walk-*")), "a killed stage must not look finished"
    kill_at(killed, 20)
    output, _ = walk(killed, 0).communicate()
    steps = [int(text) for text in output.split() if text.isdigit()]
    assert steps[0] >= 20, "the second resume must not begin anew"
    [a], [b] = list(whole.glob("walk-*")), list(killed.glob("walk-*"))
    assert np.load(a / "walk.npy").tobytes() == np.load(b / "walk.npy").tobytes()
    assert content_digest(a) == content_digest(b) and a.name == b.name


def test_default_place_is_below_the_runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLIB_RUNS", str(tmp_path))
    assert run_stage(None, "fit", {}, [], write("a")).parent == Path(tmp_path) / "stages"


def test_networks_run_where_one_says(monkeypatch):
    monkeypatch.setenv("FAIRLIB_DEVICE", "meta")
    assert accelerator().type == "meta"
    monkeypatch.delenv("FAIRLIB_DEVICE")
    assert accelerator().type == ("cuda" if torch.cuda.is_available() else "cpu")
