"""Chapters as `make book` shows them: with the stored long runs, and next to nothing computed."""

import papermill
import pytest

from studies.engine import repository
from studies.engine.profiles import load_profile, notebook_parameters, notebooks

SMALL = {  # of what a chapter computes besides
    "subjects": 0.3,
    "radiology": 16,
    "classifier_steps": 80,
    "images": 16,
    "sweep_images": 8,
    "scales": [1.0, 3.0],
    "cache_size": 12,
    "test_subjects": 240,
    "train_subjects": 200,
    "masks": 2,
}
STORED = [stem for stem, path in notebooks().items() if "runs" in notebook_parameters(path)]


def test_the_book_shows_stored_runs_and_a_check_makes_its_own():
    for stem in STORED:
        assert load_profile("quick").values[stem]["runs"] == "stored"
        assert load_profile("smoke").values[stem]["runs"] == "live"
    assert len(STORED) == 6


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where chapters find what earlier ones left behind."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
@pytest.mark.parametrize("stem", STORED)
def test_a_chapter_shows_the_stored_runs(stem, shared, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRLIB_RUNS", str(shared))
    path = notebooks()[stem]
    small = {name: value for name, value in SMALL.items() if name in notebook_parameters(path)}
    executed = papermill.execute_notebook(
        str(path),
        str(tmp_path / "out.ipynb"),
        {"profile": "quick", **small},
        kernel_name="python3",
        progress_bar=False,
        cwd=str(repository()),
    )
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    figures = [each for each in outputs if "image/png" in each.get("data", {})]
    assert len(figures) >= 4
