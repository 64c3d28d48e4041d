"""Two processes tune as one does: targets of the global batch, the same gradients, the same
weights.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fairlib.errors import SettingsError
from fairlib.io import read_tensors
from fairlib.methods import processes

SCRIPT = Path(__file__).with_name("tune_processes.py")
ROOT = Path(__file__).parents[3]
FAMILIES = ("transport", "quantile")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def launch(out, count):
    """Run the script in `count` processes, with the variables that `torchrun` and `accelerate
    launch` set; the folder of what each wrote.
    """
    out.mkdir()
    common = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, out, *FAMILIES],
            env={**common, "RANK": str(place), "LOCAL_RANK": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for place in range(count)
    ]
    printed = [each.communicate(timeout=300)[0] for each in running]
    assert [each.returncode for each in running] == [0] * count, "\n".join(printed)
    return out


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return [launch(folder / str(count), count) for count in (1, 2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_tune_as_one_does(launched, family):
    """The second family samples and replays in micro-batches and ranks in a pool."""
    one, two = launched
    alone = read_tensors(one / f"{family}-0.safetensors")
    pair = [read_tensors(two / f"{family}-{place}.safetensors") for place in (0, 1)]
    weights = [name for name in alone if name.startswith("weight/")]
    assert len(alone["losses"]) == 5 and alone["losses"][:, 0].unique().numel() == 5
    for found in pair:
        assert (found["losses"] - alone["losses"]).abs().max() <= 1e-9
        assert max(float((found[name] - alone[name]).abs().max()) for name in weights) <= 1e-8
        for name in ("logits", "targets", "images"):
            torch.testing.assert_close(found[name], alone[name], rtol=0, atol=1e-8)
        assert torch.equal(found["counts"], alone["counts"])
        # each evaluates half of the images
        assert int(found["calls"]) * 2 == int(alone["calls"])
    assert all(torch.equal(pair[0][name], pair[1][name]) for name in alone)


class TestAlone:
    def test_nothing_is_shared(self, monkeypatch):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        part = torch.arange(4.0)
        assert (processes.start(), processes.count()) == (0, 1)
        assert processes.own_rows(7) == slice(0, 7)
        assert processes.join_processes(part) is part

    def test_processes_that_have_not_joined_are_an_error(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(SettingsError, match=r"2 processes .* not joined; call .*start\(\)"):
            processes.check_processes(torch.zeros(4, dtype=torch.uint8))


@pytest.fixture
def three(monkeypatch):
    """The second of three processes; what the others send differs by the number in the list."""
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "place", lambda: 1)

    apart = [0]

    def all_gather(parts, own):
        for other, part in enumerate(parts):
            part.copy_(own + (other - 1) * apart[0])

    monkeypatch.setattr(processes.distributed, "all_gather", all_gather)
    return apart


class TestOneOfThree:
    def test_it_takes_its_part_of_the_rows(self, three):
        assert processes.own_rows(12) == slice(4, 8)

    def test_parts_are_joined_in_order(self, three):
        three[0] = 10
        assert processes.join_processes(torch.tensor([20, 21])).tolist() == [10, 11, 20, 21, 30, 31]

    def test_rows_that_do_not_divide_are_an_error(self, three):
        with pytest.raises(SettingsError, match="images_per_step is 8; expected a multiple of 3"):
            processes.check_processes(torch.zeros(4), images_per_step=8)

    def test_other_weights_in_another_process_are_an_error(self, three):
        processes.check_processes(torch.zeros(4), images_per_step=9)
        three[0] = 1
        with pytest.raises(SettingsError, match="hold different generators"):
            processes.check_processes(torch.zeros(4), images_per_step=9)
