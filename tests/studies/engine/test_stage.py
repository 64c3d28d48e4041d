"""Stages: done once, keyed by all they depend on, whole or absent, and the same bits after any
kill.
"""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fairlib import SettingsError, WeightsError
from fairlib.doctor import versions
from fairlib.io import hashes, read_manifest
from studies.engine import accelerator
from studies.engine.stage import (
    WORKING,
    Artifact,
    Progress,
    content_digest,
    duration,
    files_digest,
    identity,
    make,
    provenance,
    stage_key,
    write_manifest,
)


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


WALK = '''
import io, sys, time
from pathlib import Path
import numpy as np
from studies.engine import stage
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

# spares each process the seconds it takes to load torch
stage.device = stage.accelerator = lambda *_: "cpu"
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


# ---- manifests: whatever byte changes, and whatever file goes missing, is noticed and named ----


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.bin").write_bytes(bytes(range(256)))
    (tmp_path / "note.txt").write_text("hello")
    write_manifest(tmp_path, {"seed": 7, "steps": 3}, seconds=1.234)
    return tmp_path


def test_hashes_are_those_of_hashlib(folder):
    assert hashes(folder) == {
        "note.txt": hashlib.sha256(b"hello").hexdigest(),
        "unet/w.bin": hashlib.sha256(bytes(range(256))).hexdigest(),
    }


def test_a_card_is_no_part_of_what_a_folder_holds(folder):
    before = hashes(folder)
    (folder / "README.md").write_text("what this is")
    assert hashes(folder) == before
    assert read_manifest(folder)["files"] == before


def test_manifest_tells_where_a_number_is_from(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["seed"] == 7
        and manifest["parameters"]["steps"] == 3
        and manifest["seconds"] == 1.23
    )
    assert manifest["packages"]["torch"] == versions()["torch"]
    assert {"commit", "device", "format"} <= set(manifest)


def test_manifest_names_the_device_that_networks_run_on(monkeypatch):
    """With a card in the machine and networks told to stay on the processor, the processor."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda which: f"card {which.index}")
    monkeypatch.setenv("FAIRLIB_DEVICE", "cpu")
    assert provenance()["device"].startswith("cpu (")
    monkeypatch.setenv("FAIRLIB_DEVICE", "cuda:1")
    assert provenance()["device"] == "card 1"


def test_untouched_folder_is_accepted(folder):
    assert read_manifest(folder)["files"] == hashes(folder)


@pytest.mark.parametrize("position", [0, 100, 255])
def test_one_flipped_bit_is_found(folder, position):
    data = bytearray((folder / "unet" / "w.bin").read_bytes())
    data[position] ^= 1
    (folder / "unet" / "w.bin").write_bytes(data)
    with pytest.raises(WeightsError, match=r"w\.bin: sha256 .* restore it"):
        read_manifest(folder)
    read_manifest(folder, verify=False)  # cheap look: presence only


def test_missing_file_is_named_even_without_verifying(folder):
    (folder / "note.txt").unlink()
    with pytest.raises(WeightsError, match=r"note\.txt: .* missing"):
        read_manifest(folder, verify=False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"seed": 1}'])
def test_broken_manifest(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match="not a readable manifest"):
        read_manifest(folder)


def test_no_manifest(tmp_path):
    with pytest.raises(WeightsError, match=r"no manifest\.json"):
        read_manifest(tmp_path)


def test_content_digest_follows_content_alone(folder, tmp_path):
    before = content_digest(folder)
    write_manifest(folder, {"seed": 8}, seconds=99.0)
    assert content_digest(folder) == before
    (folder / "note.txt").write_text("hellO")
    write_manifest(folder, {"seed": 8}, seconds=99.0)
    assert content_digest(folder) != before


def test_weights_without_a_manifest_are_known_by_their_files(tmp_path):
    """A folder of somebody else's that changes in place is another one."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"one")
    first = Artifact.weights(tmp_path, len)
    assert Artifact.weights(tmp_path, len) == first
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"other")
    assert Artifact.weights(tmp_path, len).digest != first.digest
    assert Artifact.weights("owner/name", len).digest == "owner/name", "of a hub, by its name"


def test_a_reader_with_arguments_is_known_by_them(tmp_path):
    """Two readers of one folder that give different things have different identities."""
    readers = [partial(write, size) for size in (0, 256, 256)]
    one, other, same = (Artifact(tmp_path, "digest", reader).identity for reader in readers)
    assert one != other == same and one[0] == other[0] == "digest"


def test_versions_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr("fairlib.doctor.PACKAGES", "numpy no-such-package-here")
    assert set(versions()) == {"python", "numpy"}


# ---- what files too many to be read are known by ----


def test_files_are_told_apart_by_name_size_and_time_in_any_order(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(b"x")
        os.utime(path, ns=(1, 1))
    assert files_digest([one, two]) == files_digest([two, one]) != files_digest([one, one])


# ---- progress: every item passes, lines are rare, and the estimate is the arithmetic one ----


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def spent(monkeypatch):
    """Items that take so many seconds each, by a clock that nothing else moves."""
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    class Items:
        def __init__(self, count, seconds):
            self.count, self.seconds = count, seconds

        def __len__(self):
            return self.count

        def __iter__(self):
            for item in range(self.count):
                now[0] += self.seconds
                yield item

    return Items


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_items_pass_unchanged_and_in_order(stream, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    items = [object() for _ in range(50)]
    assert list(Progress(stream=stream()).track(iter(items), 50, "x")) == items


def test_lines_are_no_more_frequent_than_asked(spent):
    stream = io.StringIO()
    list(Progress(every=10, stream=stream).track(spent(20, 3), label="fit"))
    # 20 items of 3 s: lines at 12, 24, 36, 48 and 60 s
    assert [text.split("/")[0] for text in stream.getvalue().splitlines()] == [
        f"fit: {n}" for n in (4, 8, 12, 16, 20)
    ]


def test_estimate_is_the_mean_time_times_what_is_left(spent):
    stream = io.StringIO()
    list(Progress(every=7, stream=stream).track(spent(4, 7), total=14, label="x", done=10))
    assert stream.getvalue().splitlines()[0] == "x: 11/14, 00:07 so far, about 00:21 left"


def test_the_total_of_a_resumed_run_counts_what_was_done(spent):
    stream = io.StringIO()
    list(Progress(every=1, stream=stream).track(spent(2, 5), done=3))
    assert stream.getvalue().splitlines()[-1] == "5/5, 00:10 so far, about 00:00 left"


def test_without_a_total_there_is_no_estimate(spent):
    stream = io.StringIO()
    list(Progress(every=0, stream=stream).track(iter(spent(5, 2)), label="read"))
    assert stream.getvalue().splitlines()[-1] == "read: 5/?, 00:10 so far"


def test_a_terminal_has_a_bar_and_texts_above_it(spent):
    stream = Terminal()
    progress = Progress(stream=stream)
    for item in progress.track(spent(3, 2), label="fit"):
        if item == 1:
            progress.say("a text")
    assert "fit:  33%" in stream.getvalue() and "\ra text\n" in stream.getvalue()
    assert stream.getvalue().endswith("\r")


def test_a_text_is_printed_at_once():
    stream = io.StringIO()
    Progress(stream=stream).say("a text")
    assert stream.getvalue() == "a text\n"


@pytest.mark.parametrize(
    "seconds, words",
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_consumer_that_stops_early_stops_the_source():
    seen = []
    for item in Progress().track((seen.append(n) or n for n in range(10)), total=10):
        if item == 3:
            break
    assert seen == [0, 1, 2, 3]
