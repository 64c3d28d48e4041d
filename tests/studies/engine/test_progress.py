"""Progress: every item passes, lines are rare, and the estimate is the arithmetic one."""

import io

import pytest

from studies.engine.progress import Progress, duration


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
