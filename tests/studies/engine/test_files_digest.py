"""What files too many to be read are known by."""

import os

from studies.engine.manifest import files_digest


def test_files_are_told_apart_by_name_size_and_time_in_any_order(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(b"x")
        os.utime(path, ns=(1, 1))
    assert files_digest([one, two]) == files_digest([two, one]) != files_digest([one, one])
