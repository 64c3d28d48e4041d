"""The address of the repository. `pyproject.toml` states it; badges, launch buttons, the citation
and the notebooks' set-up cells repeat it. `python -m studies address URL` writes all of them.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from fairlib.errors import SettingsError
from fairlib.io import write_bytes
from studies.engine import repository
from studies.engine.profiles import notebooks

PLACEHOLDER = "https://github.com/OWNER/NAME"
URL = re.compile(r"(https://github\.com/[A-Za-z0-9-]+/[\w.-]+?)(?:\.git)?/?")
FILES = ("pyproject.toml", "CITATION.cff", "_config.yml", "README.md")  # and the notebooks
PLACES = re.compile(
    r"""((?:Repository = "|repository-code: "|repository: \{url: ")https://github\.com/"""
    r"""|colab\.research\.google\.com/github/)([\w.-]+/[\w.-]+)"""
)
SETUP = """import sys

if "google.colab" in sys.modules:  # elsewhere `make book` has set everything up
    """
FETCH = """!test -d /content/fairlib || git clone -q --depth 1 {url} /content/fairlib
    %run /content/fairlib/studies/book/colab.py"""
REFUSE = (
    'raise RuntimeError("this copy does not know where it is published: in a clone, run '
    '`python -m studies address https://github.com/...` and push the change")'
)


def address() -> str:
    """The repository's address, as `https://github.com/OWNER/NAME`; that very text, `PLACEHOLDER`,
    until one was set.
    """
    text = (repository() / "pyproject.toml").read_text()
    return tomllib.loads(text)["project"]["urls"]["Repository"]


def set_address(url: str) -> list[Path]:
    """Write `url` wherever the address stands; returns the files that changed.

    Raises `SettingsError` when it is not the address of a repository on GitHub, from which alone
    Colab opens notebooks.
    """
    found = URL.fullmatch(url)
    if not found:
        raise SettingsError(f"address {url!r}: give it as {PLACEHOLDER}")
    name, changed = found[1].removeprefix("https://github.com/"), []
    for path in [*(repository() / file for file in FILES), *notebooks().values()]:
        old = path.read_text()
        new = PLACES.sub(rf"\g<1>{name}", old)
        if path.suffix == ".ipynb":
            new = _with_setup(new, setup_cell(found[1]))
        if new != old:
            write_bytes(path, new.encode())
            changed.append(path)
    return changed


def setup_cell(url: str) -> str:
    """The source of a notebook's first code cell: in Colab it fetches the project and runs
    `studies/book/colab.py`, or says that the project has no address yet.
    """
    return SETUP + (REFUSE if url == PLACEHOLDER else FETCH.format(url=url))


def _with_setup(notebook: str, source: str) -> str:
    content = json.loads(notebook)
    first = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    first["source"] = source.splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
