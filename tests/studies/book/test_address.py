"""One address, in every place where a reader clicks or a machine fetches."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from fairlib import SettingsError
from studies.book.address import FILES, PLACEHOLDER, address, set_address, setup_cell
from studies.engine import repository
from studies.engine.cli import main
from studies.engine.profiles import notebooks

URL = "https://github.com/some-lab/fair.images"


def first_code_cell(path):
    cells = json.loads(path.read_text())["cells"]
    return "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The files that hold the address, in a folder of their own."""
    for name in FILES:
        shutil.copy(repository() / name, tmp_path / name)
    shutil.copytree(repository() / "notebooks", tmp_path / "notebooks")
    for module in ("book.address", "engine.profiles"):
        monkeypatch.setattr(f"studies.{module}.repository", lambda: tmp_path)
    return tmp_path


def check(root, url):
    """All places of the checkout at `root` name `url`."""
    name = url.removeprefix("https://github.com/")
    assert f'Repository = "{url}"' in (root / "pyproject.toml").read_text()
    assert yaml.safe_load((root / "CITATION.cff").read_text())["repository-code"] == url
    book = yaml.safe_load((root / "_config.yml").read_text())
    assert book["repository"] == {"url": url, "branch": "main", "path_to_book": ""}
    assert book["launch_buttons"]["colab_url"] == "https://colab.research.google.com"
    readme = (root / "README.md").read_text()
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        badge = f"https://colab.research.google.com/github/{name}/blob/main/notebooks/{path.name}"
        assert f"]({badge})" in readme and f"]({badge})" in path.read_text(), path.name
        assert first_code_cell(path) == setup_cell(url), path.name
    texts = [
        path.read_text()
        for path in (*root.glob("*.*"), *root.glob("notebooks/*"))
        if path.is_file()
    ]
    assert {
        found
        for text in texts
        for found in re.findall(r"google\.com/github/([\w.-]+/[\w.-]+)", text)
    } == {name}


def test_all_places_agree():
    check(repository(), address())


@pytest.mark.parametrize("text", [URL, f"{URL}/", f"{URL}.git"])
def test_one_command_writes_them_all(copy, capsys, text):
    before = {path: path.read_text() for path in copy.rglob("*.*")}
    assert main(["address", text]) == 0 and address() == URL
    assert len(capsys.readouterr().out.splitlines()) == len(FILES) + len(notebooks())
    check(copy, URL)
    assert set_address(URL) == []
    set_address(PLACEHOLDER)
    assert {path: path.read_text() for path in copy.rglob("*.*")} == before


def test_it_prints_the_address(capsys):
    assert main(["address"]) == 0 and capsys.readouterr().out == f"{address()}\n"


@pytest.mark.parametrize(
    "url",
    [
        "some-lab/fair",
        "https://example.org/a/b",
        "https://github.com/a",
        "https://github.com/a/b/tree/main",
    ],
)
def test_what_colab_cannot_open_is_refused(copy, url):
    with pytest.raises(SettingsError, match="give it as https://github.com/OWNER/NAME"):
        set_address(url)


@pytest.mark.parametrize("url", [PLACEHOLDER, URL])
def test_the_set_up_cell_has_four_lines_at_most(url):
    assert len([line for line in setup_cell(url).splitlines() if line.strip()]) <= 4


SESSION = """
import sys, types
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
sys.modules["google.colab"] = types.ModuleType("google.colab")
for _ in range(2):
    result = shell.run_cell(sys.stdin.read() if _ == 0 else cell)
    cell = result.info.raw_cell
    print("OUTCOME", result.success, result.error_in_exec)
"""


def session(cell, folder):
    """What is printed where the cell runs twice in one kernel."""
    environment = {
        "IPYTHONDIR": str(folder / "ipython"),
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", SESSION], input=cell, capture_output=True, text=True, env=environment
    )
    return done.stdout + done.stderr


def test_without_an_address_the_cell_says_what_to_do(tmp_path):
    said = session(setup_cell(PLACEHOLDER), tmp_path)
    assert (
        said.count("OUTCOME False") == 2
        and "run `python -m studies address https://github.com/...`" in said
    )


def test_the_cell_fetches_once_and_may_be_run_twice(tmp_path):
    """With a repository on this disk in place of the published one."""
    script = tmp_path / "published" / "studies" / "book" / "colab.py"
    script.parent.mkdir(parents=True)
    script.write_text("import sys\nprint('SET UP', __name__, sys.argv[1:])\n")
    git = [
        "git",
        "-C",
        str(tmp_path / "published"),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
    ]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    cell = (
        setup_cell(URL)
        .replace(URL, f"file://{tmp_path}/published")
        .replace("/content", str(tmp_path))
    )
    said = session(cell, tmp_path)
    assert said.count("SET UP __main__ []") == said.count("OUTCOME True None") == 2, said
    assert "fatal" not in said and (tmp_path / "fairlib" / "studies").is_dir()
