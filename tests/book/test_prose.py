"""The sources of the book, without building it."""

import itertools
import re
from pathlib import Path

import book_build
import pytest

PROSE = book_build.prose()
TOLD = ("start", "fairness", "diffusion", "paper", "cardiac", "fairdiffusion", "limits")
CHAPTERS = [path for path in PROSE if path.stem in TOLD]
FENCED = re.compile(r"^```(?!\{).*?^```", re.M | re.S)
LOOKS = [*book_build.BOOK.glob("css/*.css"), *book_build.BOOK.glob("figures/*.svg")]
NAMES = [path.stem for path in PROSE]


def text(path):
    """The page without its code samples."""
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def cited(page):
    return {
        key.strip()
        for keys in re.findall(r"\{cite:\w+\}`([^`]+)`", page)
        for key in keys.split(",")
    }


def library():
    return set(
        re.findall(
            r"^@\w+\{([^,]+),",
            (book_build.BOOK / "references.bib").read_text(encoding="utf-8"),
            re.M,
        )
    )


def test_every_page_of_the_contents_is_in_the_book_folder_and_every_page_is_in_the_contents():
    assert {path.relative_to(book_build.ROOT) for path in PROSE} == {
        path.relative_to(book_build.ROOT) for path in book_build.BOOK.glob("*.md")
    }


def test_every_citation_is_in_the_list_of_references_and_every_reference_is_cited():
    assert set().union(*(cited(text(path)) for path in PROSE)) == library()


@pytest.mark.parametrize("path", PROSE, ids=NAMES)
def test_headings_begin_at_one_and_never_skip_a_level(path):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text(path), re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("path", PROSE, ids=NAMES)
def test_every_figure_has_a_name_a_caption_and_a_text_for_those_who_cannot_see_it(path):
    for source, body in re.findall(r"^:::\{figure\} (\S+)\n(.*?)^:::$", text(path), re.M | re.S):
        alt = re.search(r"^:alt: (.+)$", body, re.M)
        caption = re.sub(r"^:\w+:.*$", "", body, flags=re.M).strip()
        assert (path.parent / source).exists(), source
        assert alt and len(alt[1].split()) >= 8, (
            f"{source} needs a text that tells what the image shows"
        )
        assert ":name: fig-" in body and len(caption.split()) >= 6, source
    assert "![" not in text(path), "use a figure, which has a caption"


@pytest.mark.parametrize("path", PROSE, ids=NAMES)
def test_links_between_pages_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+?\.(?:md|ipynb))\)", text(path)):
        page = (path.parent / target).resolve().relative_to(book_build.ROOT)
        assert str(page.with_suffix("")) in book_build.pages(), target


@pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])
def test_every_chapter_says_what_it_teaches_and_asks_afterwards(path):
    page = text(path)
    assert re.search(r"\{admonition\} This chapter: \d+ minutes to read", page)
    assert "**Questions.**" in page and "**After it you can**" in page
    assert ":class: keypoints" in page
    questions = page[page.index("\n## Questions") :]
    asked = len(re.findall(r"^\d+\. ", questions, re.M))
    assert asked >= 2 and questions.count("{dropdown} Answer") == asked


@pytest.mark.parametrize("path", [*PROSE, *LOOKS], ids=lambda path: Path(path).name)
def test_no_source_takes_an_image_script_or_style_from_another_host(path):
    taken = r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|!\[[^\]]*\]\(https?:"""
    assert not re.search(taken, path.read_text(encoding="utf-8"))


def test_the_notebooks_of_the_contents_are_numbered_without_a_gap():
    study = [page for page in book_build.pages() if page.startswith("notebooks/")]
    assert [page.split("/")[1][:2] for page in study] == [
        f"{number:02d}" for number in range(1, len(study) + 1)
    ]


def test_every_quoted_number_names_its_notebook_its_key_and_its_format():
    """Without a format the builder takes the key for one, and the sentence loses its number."""
    for path in PROSE:
        quoted = re.findall(r"\{glue:\w+\}`[^`]*`", text(path))
        assert len(quoted) == len(book_build.GLUE.findall(text(path))), f"{path.name}: {quoted}"


def test_the_example_of_the_readme_is_the_one_that_a_test_of_the_library_runs():
    readme = (book_build.ROOT / "README.md").read_text(encoding="utf-8")
    example = (book_build.ROOT / "tests" / "fairlib" / "example.py").read_text(encoding="utf-8")
    lines = re.search(r"^```python\n(.*?)^```", readme, re.M | re.S)[1].splitlines()
    assert 5 <= len(lines) <= 10
    for line in lines:  # up to the arguments that only the test gives, or the name of its folder
        start = re.split(r'\)|"tuned"', line.split("#")[0].strip())[0]
        assert start in example, line


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_readme_into_the_repository_lead_somewhere(name):
    text = (book_build.ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (book_build.ROOT / target).exists(), target
