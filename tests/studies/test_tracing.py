"""The tracer finds a call that no name leads to, and nothing else."""

import sys
from functools import partial

import pytest
import torch

from fairlib.io import write_json
from fairlib.settings import digest
from studies.engine.stage import stage
from tests.studies.tracing import calls_traced, in_the_key_of, stages_traced


@stage
def honest(out, progress, function) -> None:
    write_json(out / "value.json", function({"a": 1}))


@stage
def sly(out, progress) -> None:
    hidden = sys.modules["fairlib.io"]
    write_json(out / "value.json", hidden.to_images(torch.zeros(())).item())


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLIB_RUNS", str(tmp_path))


def test_a_call_that_no_name_leads_to_is_found():
    with stages_traced() as unseen:
        honest(digest)
        sly()
    assert unseen == {"sly": {("fairlib.io", "to_images")}}
    assert stages_traced.built == {"honest", "sly"}


def test_methods_count_as_their_class_and_arguments_bring_their_code():
    from fairlib.methods.alignment import AlignmentSettings

    with calls_traced() as called:
        AlignmentSettings()
    own = {("fairlib.methods.alignment", "AlignmentSettings"), ("fairlib.settings", "check_bounds")}
    assert called >= own and {module for module, _ in called} == {module for module, _ in own}
    assert in_the_key_of({"a": [partial(digest, 1)]}) >= {("fairlib.settings", "digest")}
