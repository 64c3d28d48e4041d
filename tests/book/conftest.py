"""One build of the book for all tests that look at pages.

The notebooks in it are stand-ins, so that no model has to run. To look at the real pages instead,
after `make book`: `BOOK_HTML=_build/html pytest tests/book`.
"""

import os
import sys
from pathlib import Path

import pytest

# the helpers book_build and book_browser lie beside the tests
sys.path.insert(0, str(Path(__file__).parent))

import book_build  # noqa: E402


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """(folder of pages, exit code, words of the build)."""
    if "BOOK_HTML" in os.environ:
        return Path(os.environ["BOOK_HTML"]).resolve(), 0, ""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    book_build.assemble(source)
    code, words = book_build.build(source, target)
    return target / "_build" / "html", code, words
