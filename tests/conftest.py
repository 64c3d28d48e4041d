"""What every test stands on: no network, no chance that is not seeded, no model hub."""

from __future__ import annotations

import os
import random
import socket

import numpy as np
import pytest
import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

HERE = ("127.0.0.1", "::1", "localhost")


def pytest_addoption(parser):
    parser.addoption(
        "--skip-slow",
        action="store_true",
        help="leave out the tests marked slow (they run by default)",
    )


def pytest_collection_modifyitems(config, items):
    # For whoever works on one room and wants an answer in seconds. `make test` and CI never give
    # it: nothing is left out there.
    if config.getoption("--skip-slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="--skip-slow"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """Say in the very last line what was not looked at, so that nobody takes a skip for a pass."""
    result = yield
    if reporter := session.config.pluginmanager.get_plugin("terminalreporter"):
        skipped = reporter.stats.get("skipped", [])
        missed = [each.nodeid for each in skipped if "no chromium" in str(each.longrepr)]
        if missed:
            tests = dict.fromkeys(name.partition("[")[0].rpartition("::")[2] for name in missed)
            text = (
                f"{len(missed)} skipped, no Chromium on the PATH (Debian: apt-get install chromium)"
            )
            reporter.write_line(f"{text}: {', '.join(tests)}", yellow=True)
    return result


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches for another host fails at once, with the address in its message."""

    def guarded(original):
        def connect(self, address):
            host = address[0] if isinstance(address, tuple) else "localhost"
            if host not in HERE:
                raise AssertionError(f"a test tried to reach {address}")
            return original(self, address)

        return connect

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))


@pytest.fixture(autouse=True)
def seeded():
    """A test that forgets its generator is still the same every time."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
