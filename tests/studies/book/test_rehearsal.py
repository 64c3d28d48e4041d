"""The rehearsal in Colab's versions: its summary names failures and versions that differ."""

import json

from studies.book import rehearsal
from studies.book.notebooks import NotebookError


def test_a_summary_of_every_notebook(house, monkeypatch, tmp_path):
    from fairlib.io import write_json

    def run_profile(profile, only, force):
        if only == ["02_second"]:
            raise NotebookError("02_second.ipynb, cell 3: KeyError: 'x'\nTraceback")
        write_json(tmp_path / "a.json", {"seconds": 2.5})
        return [tmp_path / "a.ipynb"]

    monkeypatch.setattr(rehearsal, "repository", lambda: house)
    monkeypatch.setattr(rehearsal, "run_profile", run_profile)
    (tmp_path / "list.txt").write_text("# a list\nnumpy==0.1+cu1\nnot_installed==1\n")
    assert rehearsal.main(str(tmp_path / "list.txt")) == 1
    made = json.loads((house / "results" / "colab" / "summary.json").read_text())
    assert (
        list(made["other_versions"]) == ["numpy"]
        and made["other_versions"]["numpy"][0] == "0.1+cu1"
    )
    assert made["notebooks"] == {
        "01_first": {"seconds": 2.5},
        "02_second": {"error": "02_second.ipynb, cell 3: KeyError: 'x'"},
    }


def test_the_local_part_of_a_version_is_no_difference(tmp_path):
    import numpy

    (tmp_path / "list.txt").write_text(f"numpy=={numpy.__version__}+cu128\n")
    assert rehearsal.differing(tmp_path / "list.txt") == {}
