"""Progress: every item passes, lines are rare, and the estimate is the arithmetic one."""

import io

import pytest

from studies.engine.progress import Progress, duration, line, progress


class Clock:
    """Each look at the clock is `step` seconds later."""

    def __init__(self, step):
        self.now, self.step = -step, step

    def __call__(self):
        self.now += self.step
        return self.now


def test_items_pass_unchanged_and_in_order():
    assert list(progress(range(50), every=1e9)) == list(range(50))


def test_lines_are_no_more_frequent_than_asked():
    stream = io.StringIO()
    list(Progress(every=10, stream=stream, clock=Clock(3)).track(range(20), label="fit"))
    # 20 items of 3 s: lines at 12, 24, 36, 48 and 60 s
    assert [text.split("/")[0] for text in stream.getvalue().splitlines()] == [
        f"fit: {n}" for n in (4, 8, 12, 16, 20)
    ]


def test_estimate_is_the_mean_time_times_what_is_left():
    stream = io.StringIO()
    list(
        Progress(every=7, stream=stream, clock=Clock(7)).track(
            range(4), total=14, label="x", done=10
        )
    )
    assert stream.getvalue().splitlines()[0] == "x: 11/14, 7 s so far, about 21 s left"


def test_without_a_total_there_is_no_estimate():
    assert line("read", 5, None, 2.0, 10.0) == "read: 5, 10 s so far"


@pytest.mark.parametrize(
    "seconds, words",
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_consumer_that_stops_early_stops_the_source():
    seen = []
    for item in progress((seen.append(n) or n for n in range(10)), total=10, every=1e9):
        if item == 3:
            break
    assert seen == [0, 1, 2, 3]
