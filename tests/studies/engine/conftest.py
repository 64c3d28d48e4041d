"""Where the toy study lies."""

import pytest

from tests.studies.engine.toy import CALLS


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FAIRLIB_DEVICE", "cpu")
    CALLS.clear()
