"""The pages in a real browser that can reach no host, as files, as a reader with a USB stick has
them.
"""

import os

import book_browser
import book_build
import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    # A browser is no Python package, so `make test` cannot install one. What is tested here is also
    # checked, less strictly, by test_pages.py without a browser.
    pytest.mark.skipif(book_browser.CHROMIUM is None, reason="no chromium on this machine"),
]
HIDDEN_TEXT = (
    """[...document.querySelectorAll("article figure img")].filter(i => !i.naturalWidth).length"""
)
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser():
    with book_browser.Browser() as browser:
        yield browser


@pytest.mark.parametrize("name", book_build.pages())
def test_a_page_asks_nobody_and_nothing_fails(built, browser, name):
    visit = browser.visit(built[0] / f"{name}.html")
    assert visit.abroad == [] and visit.faults == []
    assert browser.run(HIDDEN_TEXT) == 0


@pytest.mark.parametrize("name", book_build.pages())
def test_a_page_fits_a_phone(built, browser, name):
    browser.visit(built[0] / f"{name}.html", width=375, height=720)
    assert browser.run(TOO_WIDE) <= 0


@pytest.mark.parametrize("name", ["book/fairness", "book/diffusion", "book/paper"])
def test_every_formula_is_set(built, browser, name):
    browser.visit(built[0] / f"{name}.html")
    assert browser.run('document.querySelectorAll(".math mjx-container").length') > 10
    assert browser.run('document.querySelectorAll(".math:not(:has(mjx-container))").length') == 0
    assert browser.run('document.querySelectorAll("[data-mml-node=merror]").length') == 0


# With BOOK_HTML these tests look at a real book, whose chapter 1 has no slider made for this test.
@pytest.mark.skipif("BOOK_HTML" in os.environ, reason="the slider is in the stand-in for chapter 1")
def test_a_slider_turns_the_leaves_without_a_kernel_on_a_page_with_formulas(built, browser):
    visit = browser.visit(built[0] / "notebooks/01_cohort.html")
    assert visit.faults == []
    leaves = '[...document.querySelectorAll(".widget-tab-contents .widget-html")]'
    leaf = f"{leaves}.find(leaf => leaf.offsetParent)?.innerText.trim()"
    assert browser.run(leaf) == "first leaf"
    browser.run("""document.querySelector(".widget-slider .noUi-handle").focus()""")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key="ArrowRight",
            code="ArrowRight",
            windowsVirtualKeyCode=39,
        )
    assert browser.run(f"new Promise(done => setTimeout(() => done({leaf}), 500))") == "second leaf"


def test_the_leash_holds(built, browser, tmp_path):
    """A page that does ask another host is caught, or none of the tests above could fail."""
    page = tmp_path / "page.html"
    page.write_text(
        "<html><body><img "
        "src='https://example.org/picture.png'><script>missing()</script></body></html>"
    )
    visit = browser.visit(page)
    assert visit.abroad == ["https://example.org/picture.png"]
    assert any("missing" in fault for fault in visit.faults)
