"""The pages as they are built, with the real configuration and extension."""

import functools
import itertools
import re
import shutil
from html.parser import HTMLParser

import book_build
import pytest

pytestmark = pytest.mark.slow
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
LOADING_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "modulepreload",
    "manifest",
    "preconnect",
    "dns-prefetch",
    "prefetch",
}


class Page(HTMLParser):
    """What a page loads, which images it shows, where its links lead, and the levels of its
    headings.
    """

    def __init__(self, path):
        super().__init__()
        self.reading = False  # inside the article; the theme keeps a second title for print
        self.path, self.loads, self.images, self.links, self.ids, self.levels, self.language = (
            path,
            [],
            [],
            [],
            set(),
            [],
            None,
        )
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag in LOADED and given.get(LOADED[tag]):
            self.loads.append(given[LOADED[tag]])
        if tag == "link" and LOADING_LINKS & set((given.get("rel") or "").split()):
            self.loads.append(given.get("href", ""))
        if tag == "img":
            self.images.append(given)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "html":
            self.language = given.get("lang")
        self.reading |= tag == "article"
        if self.reading and re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))

    def handle_endtag(self, tag):
        self.reading &= tag != "article"


@functools.cache
def read(path):
    return Page(path)


@pytest.fixture(scope="module")
def pages(built):
    return {name: read(built[0] / f"{name}.html") for name in book_build.pages()}


def test_the_book_builds_without_a_warning(built):
    assert built[1] == 0, built[2][-3000:]


def test_the_book_opens_at_the_preface(built):
    assert "book/preface.html" in (built[0] / "index.html").read_text()


@pytest.mark.parametrize("name", book_build.pages())
def test_a_page_loads_nothing_from_another_host(pages, name):
    assert not [url for url in pages[name].loads if re.match(r"(https?:)?//", url)]
    assert "thebe" not in "".join(pages[name].loads)


@pytest.mark.parametrize("name", book_build.pages())
def test_every_image_of_a_page_has_words(pages, name):
    for image in pages[name].images:
        words = image.get("alt")
        logo = "logo" in image.get("class", "")  # the title stands beside it, so it is decoration
        assert logo or (
            words and " " in words and not re.search(r"\.(png|svg|jpe?g)$|^[0-9a-f]{32,}", words)
        ), image


@pytest.mark.parametrize("name", book_build.pages())
def test_every_link_of_a_page_into_the_book_arrives(pages, name):
    here = pages[name].path
    for link in pages[name].links:
        address, _, place = link.partition("#")
        if re.match(r"[a-z]+:|//", link):
            continue
        target = (here.parent / address).resolve() if address else here
        assert target.exists(), link
        if place and target.suffix == ".html":
            assert place in read(target).ids, link


@pytest.mark.parametrize("name", book_build.pages())
def test_a_page_names_its_language_and_its_headings_do_not_jump(pages, name):
    levels = pages[name].levels
    assert pages[name].language == "en"
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_an_image_without_words_stops_the_build(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "_config.yml").write_text((book_build.ROOT / "_config.yml").read_text())
    (source / "_toc.yml").write_text("format: jb-book\nroot: book/preface\n")
    shutil.copytree(book_build.BOOK, source / "book", ignore=shutil.ignore_patterns("*.md"))
    (source / "book" / "preface.md").write_text("# A page\n\n![](figures/way.svg)\n")
    code, words = book_build.build(source, tmp_path / "target")
    assert code != 0 and "image without alternative text" in words
