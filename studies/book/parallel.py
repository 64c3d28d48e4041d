"""Several notebooks at the same time: lanes of work, each in its own order, and a failure in one
ends all of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TextIO, TypeVar

from fairlib.errors import SettingsError
from studies.engine.places import accelerator

T = TypeVar("T")
# seconds: a Ctrl-C that the system hands to another thread does not wake the one that waits
LOOK = 0.5
AT_MOST = 2  # a third lane saves little after the longest one, and every kernel takes memory


def jobs_for(jobs: int | None, lanes: int) -> int:
    """How many of `lanes` to run at the same time: `jobs` of them, or with None as many as make
    sense here.

    That is two, but one where there is a single core, and on an accelerator, which two notebooks
    would have to share. Raises `SettingsError` when `jobs` is not a whole number above zero.
    """
    if jobs is None:
        jobs = 1 if cores() == 1 or accelerator().type != "cpu" else AT_MOST
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise SettingsError(
            f"jobs is {jobs!r}; it is how many notebooks run at the same time: give a whole number "
            "from 1"
        )
    return max(1, min(jobs, lanes))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Stop(threading.Event):
    """An event that calls what was left with it as soon as it is set, and at once what comes
    later.
    """

    def __init__(self):
        super().__init__()
        self._calls, self._alone = [], threading.Lock()

    def call(self, function: Callable[[], object]) -> None:
        """Have `function()` called when the time has come, by the thread that sets the event."""
        with self._alone:
            self._calls.append(function)
            late = self.is_set()
        if late:
            function()

    def set(self) -> None:
        """Set the event and make the calls."""
        with self._alone:
            super().set()
            calls = list(self._calls)
        for function in calls:
            function()


def in_lanes(lanes: Sequence[Sequence[T]], jobs: int, work: Callable[[T, Stop], None]) -> None:
    """Call `work(item, stop)` on the items of every lane in their order, with `jobs` lanes at the
    same time.

    The longest lane starts first. The first error, and Ctrl-C as well, sets `stop`, upon which
    `work` has to come to an end; it is raised once all lanes have. Lanes are threads of this
    process: `work` should wait for others to compute.
    """
    stop = Stop()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            running = {
                pool.submit(_follow, lane, work, stop)
                for lane in sorted(lanes, key=len, reverse=True)
            }
            while running:
                done, running = wait(running, LOOK, FIRST_COMPLETED)
                for lane in done:
                    lane.result()
        except BaseException:  # Ctrl-C reaches this thread alone
            stop.set()
            raise


def _follow(lane: Sequence[T], work: Callable[[T, Stop], None], stop: Stop) -> None:
    try:
        for item in lane:
            if stop.is_set():
                return
            work(item, stop)
    except BaseException:
        if not stop.is_set():  # else it is only what came of being stopped
            stop.set()
            raise
    finally:
        _close_event_loop()


def _close_event_loop() -> None:
    """Jupyter's client opens an event loop in every thread that uses it, and leaves it open."""
    from jupyter_core.utils import ensure_event_loop

    ensure_event_loop().close()


@dataclass(frozen=True)
class Company:
    """What a notebook that runs beside others has to know.

    stream: where its progress goes; stop: set when it has to end; threads: how many its kernel
    computes with, where the user's environment does not say.
    """

    stream: TextIO
    stop: Stop
    threads: int


class Lines:
    """A stream that hands whole lines on to `stream`, each after `label`, so that no lane breaks
    into another's line.
    """

    _alone = threading.Lock()

    def __init__(self, stream: TextIO, label: str = ""):
        self.stream, self.label, self.rest = stream, label, ""

    def write(self, text: str) -> int:
        """Pass on the lines that `text` completes; keep what comes after the last of them."""
        *whole, self.rest = (self.rest + text).split("\n")
        with self._alone:
            self.stream.write("".join(f"{self.label}{line}\n" for line in whole))
            self.stream.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing: a line goes on as soon as it is whole, and not before."""

    def end(self) -> None:
        """Make what is left a line."""
        if self.rest:
            self.write("\n")

    def isatty(self) -> bool:
        """Whether a person watches."""
        return self.stream.isatty()
