"""Progress in plain lines, with an estimate of what is left: for a terminal, a log file and a
notebook alike.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")


def progress(
    iterable: Iterable[T], total: int | None = None, label: str = "", every: float | None = None
) -> Iterator[T]:
    """Pass `iterable` through, and say now and then how far it is and how long the rest will take.

    `every` is the least number of seconds between two lines: 2 on a terminal, 10 elsewhere. Lines
    go to stderr, so that they never become part of a notebook's published output.
    """
    yield from Progress(every=every).track(iterable, total, label)


class Progress:
    """Prints lines about long work to `stream` (stderr), at most one every `every` seconds."""

    def __init__(
        self,
        every: float | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stream = stream or sys.stderr
        self.every = (2.0 if self.stream.isatty() else 10.0) if every is None else every
        self.clock = clock

    def say(self, text: str) -> None:
        """Print one line at once, whatever the interval."""
        print(text, file=self.stream, flush=True)

    def track(
        self, iterable: Iterable[T], total: int | None = None, label: str = "", done: int = 0
    ) -> Iterator[T]:
        """Pass `iterable` through with progress lines; `done` of `total` were there before (a
        resumed run).
        """
        if total is None and hasattr(iterable, "__len__"):
            total = done + len(iterable)
        start = last = self.clock()
        for count, item in enumerate(iterable, 1):
            yield item
            now = self.clock()
            if now - last >= self.every:
                last = now
                self.say(line(label, done + count, total, (now - start) / count, now - start))


def line(label: str, count: int, total: int | None, seconds_each: float, elapsed: float) -> str:
    """One progress line, such as `fit: 40/100, 12 s so far, about 18 s left`."""
    head = f"{label}: " if label else ""
    if total is None:
        return f"{head}{count}, {duration(elapsed)} so far"
    left = duration(seconds_each * max(total - count, 0))
    return f"{head}{count}/{total}, {duration(elapsed)} so far, about {left} left"


def duration(seconds: float) -> str:
    """Seconds in words: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
