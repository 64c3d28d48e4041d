"""Lanes of work: what runs at the same time, what does not, and how all of it ends."""

import io
import signal
import threading
import time

import pytest
import torch

from fairlib import SettingsError
from studies.book.parallel import Lines, Stop, in_lanes, jobs_for

LONG = 60  # seconds: nothing here waits that long unless it is broken


@pytest.mark.parametrize(
    "jobs, lanes, cores, device, expected",
    [
        (None, 3, 2, "cpu", 2),
        (None, 3, 64, "cpu", 2),
        (None, 1, 64, "cpu", 1),
        (None, 3, 1, "cpu", 1),
        (None, 3, 64, "cuda", 1),
        (1, 3, 64, "cpu", 1),
        (3, 3, 1, "cuda", 3),
        (9, 3, 2, "cpu", 3),
        (2, 0, 2, "cpu", 1),
    ],
)
def test_as_many_jobs_as_make_sense(monkeypatch, jobs, lanes, cores, device, expected):
    monkeypatch.setattr("studies.book.parallel.cores", lambda: cores)
    monkeypatch.setattr("studies.book.parallel.accelerator", lambda: torch.device(device))
    assert jobs_for(jobs, lanes) == expected


@pytest.mark.parametrize("jobs", [0, -1, 1.5, "two", True])
def test_a_number_of_jobs_that_is_none(jobs):
    with pytest.raises(SettingsError, match=f"jobs is {jobs!r}; .*whole number from 1"):
        jobs_for(jobs, 3)


def test_lanes_overlap_and_keep_their_order():
    """The first items meet at a barrier; whatever comes later in a lane finds all before it
    done.
    """
    meeting, done = threading.Barrier(2), []

    def work(item, stop):
        if item[1] == 0:
            meeting.wait(LONG)
        time.sleep(0.002)
        done.append(item)

    lanes = [[("a", number) for number in range(5)], [("b", number) for number in range(9)]]
    in_lanes(lanes, 2, work)
    assert [item for item in done if item[0] == "a"] == lanes[0] and [
        item for item in done if item[0] == "b"
    ] == lanes[1]


@pytest.mark.parametrize("jobs, most", [(1, 1), (2, 2), (3, 3)])
def test_no_more_lanes_than_jobs_and_the_longest_first(jobs, most):
    alone, now, seen, started = threading.Lock(), set(), [], []

    def work(item, stop):
        with alone:
            now.add(item)
            seen.append(len(now))
            started.append(item)
        time.sleep(0.02)
        with alone:
            now.remove(item)

    in_lanes([["x"], ["1", "2", "3", "4"], ["p", "q"]], jobs, work)
    assert max(seen) == most and started[0] == "1" and len(started) == 7
    assert jobs == 3 or started.index("p") < started.index("x")


def test_the_first_error_stops_every_lane():
    done = []

    def work(item, stop):
        if item == "waits":
            assert stop.wait(LONG), "nobody told this lane to stop"
            raise RuntimeError("torn off")
        if item == "fails":
            raise KeyError("the error")
        done.append(item)

    with pytest.raises(KeyError, match="the error"):
        in_lanes([["a", "fails", "b"], ["waits", "c"], ["d"]], 2, work)
    assert done == ["a"]


@pytest.fixture
def heard():
    """Ctrl-C is heard in the test, though whoever started it in the background had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_stops_every_lane(heard):
    before = set(threading.enumerate())  # libraries keep threads of their own
    both, ended = threading.Barrier(3), []

    def work(item, stop):
        both.wait(LONG)
        assert stop.wait(LONG)
        ended.append(item)

    def interrupt():
        both.wait(LONG)
        time.sleep(0.2)  # until the main thread waits
        # the system may pick any thread; not the one that waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        in_lanes([["a", "b"], ["c"]], 2, work)
    other.join()
    assert sorted(ended) == ["a", "c"] and set(threading.enumerate()) <= before


def test_stop_makes_its_calls_once_and_late_ones_at_once():
    stop, calls = Stop(), []
    stop.call(lambda: calls.append("early"))
    assert not calls
    stop.set()
    assert calls == ["early"]
    stop.call(lambda: calls.append("late"))
    assert calls == ["early", "late"]


def test_lines_arrive_whole_and_labelled():
    target = io.StringIO()
    one, two = Lines(target, "1 | "), Lines(target)
    print("half a", end="", file=one, flush=True)
    print("two\nlines", file=two)
    assert target.getvalue() == "two\nlines\n", "half a line must wait"
    one.write(" line\nand the rest")
    one.end()
    one.end()
    assert target.getvalue() == "two\nlines\n1 | half a line\n1 | and the rest\n"
    assert not one.isatty()
