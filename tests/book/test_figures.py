"""The diagrams: drawn by the committed script, and saying what the text says."""

import importlib.util
import sys
from xml.etree import ElementTree

import book_build
import pytest
from PIL import Image

from fairlib.io import sha256

FIGURES = book_build.BOOK / "figures"


def load(name):
    """A module of book/figures, which is a plain folder."""
    sys.path.insert(0, str(FIGURES))
    try:
        specification = importlib.util.spec_from_file_location(
            f"book_figures_{name}", FIGURES / f"{name}.py"
        )
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FIGURES))


DRAWINGS = load("draw").DRAWINGS


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_a_drawing_is_what_its_script_draws_byte_for_byte(name):
    assert (FIGURES / name).read_text(encoding="utf-8") == DRAWINGS[name]().render()


def test_every_image_in_the_folder_has_a_script():
    assert {path.name for path in FIGURES.glob("*.svg")} == set(DRAWINGS)


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_nothing_in_a_drawing_lies_outside_its_sheet(name):
    root = ElementTree.fromstring((FIGURES / name).read_text(encoding="utf-8"))
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y = float(box.get("x", 0)), float(box.get("y", 0))
        assert (
            x >= 0
            and y >= 0
            and x + float(box.get("width")) <= width
            and y + float(box.get("height")) <= height
        )
    assert root.find("{http://www.w3.org/2000/svg}title").text


def test_the_chart_of_the_cohort_has_the_joined_counts():
    cohort = load("charts").COHORT
    assert (
        cohort["both"]
        == tuple(map(sum, zip(cohort["HGG"], cohort["LGG"], strict=True)))
        == (90, 76)
    )
    page = (book_build.BOOK / "fairness.md").read_text(encoding="utf-8")
    for male, female in cohort.values():
        assert f"{100 * female / (male + female):.1f} percent female" in page


def test_the_correction_in_the_chart_undoes_the_classifier():
    charts = load("charts")
    for true in (0.0, 0.2, 0.5, 1.0):
        read = charts.SENSITIVITY * true + (1 - charts.SPECIFICITY) * (1 - true)
        assert charts.corrected(read) == pytest.approx(true)
    assert charts.corrected(charts.READ) == pytest.approx(2 / 15)


def test_the_three_targets_show_what_their_captions_say():
    rows = {name: logits for name, logits, _ in load("charts").ROWS}
    female = {name: sum(value > 0 for value in logits) for name, logits in rows.items()}
    assert female["where the images are"] == 2
    assert female["class targets"] == female["quantile targets"] == female["target cohort"] == 6
    # 0.2 < p < 0.8
    near = {name: sum(abs(value) < 1.39 for value in logits) for name, logits in rows.items()}
    assert near["class targets"] == 0 and near["mean probability"] == 12
    assert near["quantile targets"] == near["target cohort"] > 0


@pytest.mark.parametrize("name", ["headline.png", "forest.png"])
def test_a_figure_of_the_preface_was_drawn_from_the_results_that_are_there(name):
    """`python book/figures/headline.py` draws them again."""
    with Image.open(FIGURES / name) as picture:
        drawn_from = picture.text["Description"]
    assert drawn_from == sha256(book_build.BOOK.parent / "results" / "brain" / "criteria.csv")
