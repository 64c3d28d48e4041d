"""Artifacts and their identity."""

import pandas as pd
import pytest

from fairlib.errors import SettingsError
from studies.engine.stage import Artifact, identity, write_manifest
from tests.studies.engine.toy import CALLS, Settings, draw, read, readings

pytestmark = pytest.mark.usefixtures("fresh")


def test_a_stage_is_known_by_its_arguments_and_its_inputs():
    one, again, other = draw(3, 1, 0), draw(3, 1, 0), draw(3, 1, 1)
    assert one == again and one.digest != other.digest and len(CALLS) == 2
    assert one.load() is again.load() and one.load() == [0, 1, 2]


def test_arguments_without_identity_are_refused():
    with pytest.raises(SettingsError, match="count is a object"):
        draw(object(), 1, 0)


def test_functions_and_tables_have_an_identity():
    frame = pd.DataFrame({"a": [1.0]})
    assert identity(frame) == identity(frame.copy()) != identity(frame + 1)
    assert identity(read) != identity(readings)
    assert identity({"b": (1, 2), "a": Settings()}) == {
        "b": [1, 2],
        "a": {"cohort": "numbers", "data_dir": "", "count": 3},
    }


def test_foreign_weights_are_known_by_manifest_or_name(tmp_path):
    assert Artifact.weights("owner/model", read).digest == "owner/model"
    (tmp_path / "a").write_text("x")
    write_manifest(tmp_path, {}, 0.0)
    before = Artifact.weights(tmp_path, read).digest
    (tmp_path / "a").write_text("y")
    write_manifest(tmp_path, {}, 0.0)
    assert Artifact.weights(tmp_path, read).digest != before
