"""Progress for whoever waits: a bar on a terminal, plain lines in a log file and a notebook.

All goes to stderr, so that it never becomes part of a notebook's published output.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Progress:
    """What long work says to `stream` (stderr): texts, and how far it is, in a log at most every
    `every` seconds.
    """

    def __init__(self, every: float = 10.0, stream: TextIO | None = None):
        self.every, self.stream = every, stream or sys.stderr

    def say(self, text: str) -> None:
        """Print one line at once, whatever the interval."""
        if self.stream.isatty():
            tqdm.write(text, file=self.stream)  # above a bar
        else:
            print(text, file=self.stream, flush=True)

    def track(
        self, iterable: Iterable[T], total: int | None = None, label: str = "", done: int = 0
    ) -> Iterator[T]:
        """Pass `iterable` through and say how far it is and how long the rest will take; `done` of
        `total` were there before (a resumed run).
        """
        if total is None and hasattr(iterable, "__len__"):
            total = done + len(iterable)
        if self.stream.isatty():
            bar, options = tqdm, {"mininterval": 0.5, "dynamic_ncols": True}
        else:
            bar, options = _Lines, {"mininterval": self.every, "miniters": 1}
            options["delay"] = max(self.every, 1e-9)  # no line before the first item
        yield from bar(
            iterable,
            label,
            total,
            leave=False,
            file=self.stream,
            disable=False,  # whatever $TQDM_DISABLE tells other libraries
            smoothing=0,  # the mean time of all items
            initial=done,
            **options,
        )


class _Lines(tqdm):
    """A bar for a log: a line of its own each time, and none at the start and the end."""

    monitor_interval = 0  # no thread that looks after it

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the state as a line; `msg` is the empty text that would clear a bar."""
        if msg is None:
            left = ", about {remaining} left" if self.total else ""
            self.bar_format = "{desc}: {n_fmt}/{total_fmt}, {elapsed} so far" + left
            print(self, file=self.fp, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
