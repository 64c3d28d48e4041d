"""The set-up in Colab against a dated copy of the list of packages that Colab publishes: nothing
that the runtime has loaded is replaced, and nothing that a notebook imports is missing.

`additions.json` has the declared requirements of what the set-up adds, read from the wheels that
pip chose for that list on the day of the test's writing.
"""

import ast
import json
import os
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from studies.book import colab
from studies.book.notebooks import code_of
from studies.engine import repository, stages_folder
from studies.engine.profiles import chapters, notebooks

DATA = Path(__file__).resolve().parents[2] / "colab"
[LIST] = DATA.glob("packages-*.txt")
PYTHON = "3.13"
LISTED = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in LIST.read_text().splitlines())
    if version
}
WHEELS = {
    (canonicalize_name(name), version): about
    for (name, version), about in (
        (text.split("=="), about)
        for text, about in json.loads((DATA / "additions.json").read_text()).items()
    )
}
ADDED = {"open-clip-torch": "3.3.0", "nilearn": "0.13.1", "papermill": "2.7.0", "ftfy": "6.3.1"}


@pytest.fixture
def in_colab(monkeypatch):
    """What is installed is what the list says."""

    def version(name):
        if canonicalize_name(name) not in LISTED:
            raise metadata.PackageNotFoundError(name)
        return LISTED[canonicalize_name(name)]

    monkeypatch.setattr(colab.metadata, "version", version)


def unmet(wheel, installed):
    """The requirements of a wheel that `installed` does not meet."""
    asked = [Requirement(text) for text in WHEELS[wheel]["requires"]]
    asked = [
        one for one in asked if not one.marker or one.marker.evaluate({"python_version": PYTHON})
    ]
    return [
        str(one)
        for one in asked
        if not one.specifier.contains(installed.get(canonicalize_name(one.name), "0"))
        or canonicalize_name(one.name) not in installed
    ]


def test_the_list_is_the_one_that_the_reference_describes():
    stated = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "pandas": "2.2.3", "requests": "2.32.4", "scipy": "1.16.3",
              "diffusers": "0.39.0", "transformers": "5.15.0", "peft": "0.20.0", "ipywidgets": "7.7.1", "ipython": "7.34.0"}  # fmt: skip
    assert stated.items() <= LISTED.items() and not ADDED.keys() & LISTED.keys()


def test_only_what_is_missing_is_installed(in_colab):
    found = colab.missing(colab.requirements())
    assert {canonicalize_name(Requirement(text).name) for text in found} == ADDED.keys() - {"ftfy"}
    for text in found:
        assert Requirement(text).specifier.contains(
            ADDED[canonicalize_name(Requirement(text).name)]
        )


def test_what_is_installed_is_content_with_all_that_is_there():
    """So pip has no reason to replace anything."""
    after = LISTED | ADDED
    for wheel in ADDED.items():
        assert SpecifierSet(WHEELS[wheel]["requires_python"]).contains(PYTHON)
        assert unmet(wheel, after) == []


def test_the_newest_nilearn_would_replace_pandas_and_requests():
    """The reason for the constraints: without them pip takes this one."""
    assert unmet(("nilearn", "0.14.1"), LISTED) == ["pandas>=2.3.0", "requests>=2.33.0"]


def test_pip_is_told_to_leave_loaded_packages_as_they_are(in_colab, monkeypatch, capsys):
    calls = []

    def run(command, **_):
        calls.append((command, Path(command[command.index("-c") + 1]).read_text().split()))
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(colab.subprocess, "run", run)
    colab.install(colab.missing(colab.requirements()))
    [(command, fixed)] = calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"] and "--upgrade" not in command
    assert fixed == [f"{name}=={LISTED[name]}" for name in colab.KEPT]
    assert {"torch", "numpy", "pandas", "requests"} <= set(colab.KEPT)
    assert capsys.readouterr().out.startswith("installing open_clip_torch, papermill, nilearn")
    colab.install([])
    assert len(calls) == 1, "a second run has nothing to install"


def test_a_failed_installation_is_an_error(in_colab, monkeypatch):
    failed = types.SimpleNamespace(returncode=1, stderr="no network")
    monkeypatch.setattr(colab.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="run this cell again\nno network"):
        colab.install(["nilearn"])


def imported(text):
    """`{dotted name: names taken from it}` of every import in a source text."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, [alias.name for alias in node.names]


def packages_of(notebook):
    """Packages from outside that a notebook can import: itself, through the studies, or through
    any module of the library.
    """
    left, done, found = [notebook, *sorted((repository() / "fairlib").rglob("*.py"))], set(), set()
    while left:
        path = left.pop()
        for module, names in imported(code_of(path) if path == notebook else path.read_text()):
            top, place = module.partition(".")[0], repository().joinpath(*module.split("."))
            if top == "studies":
                files = [
                    place.with_suffix(".py"),
                    place / "__init__.py",
                    *(place / f"{name}.py" for name in names),
                ]
                new = [file for file in files if file.is_file() and file not in done]
                done.update(new)
                left += new
            elif top not in {"fairlib", "google", *sys.stdlib_module_names}:
                found.add(top)
    return found


@pytest.mark.parametrize("stem", notebooks())
def test_all_that_a_notebook_imports_is_there(stem):
    known, there = metadata.packages_distributions(), LISTED | ADDED
    found = packages_of(notebooks()[stem])
    assert {"torch", "pandas", "papermill", "yaml"} <= found
    for package in found - {"_typeshed"}:
        assert any(canonicalize_name(name) in there for name in known.get(package, [package])), (
            package
        )


def test_the_set_up_needs_nothing_that_it_installs():
    top = ast.parse(Path(colab.__file__).read_text()).body
    names = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in top
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"packaging"}


@pytest.fixture
def drive(monkeypatch):
    """Google Drive, and no folder chosen; gives the places where it was mounted."""
    mounted = []
    module = types.SimpleNamespace(mount=mounted.append)
    for name in ("google", "google.colab", "google.colab.drive"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("FAIRLIB_RUNS", "")
    monkeypatch.delenv("FAIRLIB_RUNS")
    return mounted


def test_drive_is_mounted_only_on_request(drive):
    assert colab.keep_results(drive=False) == colab.HERE and drive == []
    assert colab.keep_results(drive=True) == "/content/drive/MyDrive/fairlib-runs"
    assert drive == ["/content/drive"]
    assert str(stages_folder()) == "/content/drive/MyDrive/fairlib-runs/stages"
    assert colab.keep_results(drive=False) == os.environ["FAIRLIB_RUNS"], "a second run keeps it"


def test_a_chosen_folder_is_kept(drive, monkeypatch):
    monkeypatch.setenv("FAIRLIB_RUNS", "/content/drive/MyDrive/mine")
    for asked in (False, True):
        assert colab.keep_results(asked) == "/content/drive/MyDrive/mine"


@pytest.mark.parametrize("gpu", [True, False])
def test_the_set_up_says_what_there_is(drive, monkeypatch, capsys, gpu):
    import torch

    monkeypatch.setattr(colab, "missing", lambda texts: [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    colab.set_up()
    results, lost, device = capsys.readouterr().out.splitlines()
    assert results.startswith("results: /content/fairlib-runs; ") and "--drive" in lost
    assert device == "GPU: Tesla T4" if gpu else "no GPU" in device and "five minutes" in device


def test_it_runs_as_a_script():
    command = [sys.executable, colab.__file__, "--help"]
    assert "--drive" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_stored_run_is_of_every_chapter_with_the_listed_versions():
    """`make colab` makes it. Of what it installed only pip, and what belongs to CUDA, may differ."""
    made = json.loads((repository() / "results" / "colab" / "summary.json").read_text())
    assert made["notebooks"].keys() == set(chapters())
    assert all(outcome["seconds"] > 0 for outcome in made["notebooks"].values())
    assert made["list"] == LIST.name and made["python"].startswith(PYTHON)
    assert {name.split("-")[0] for name in made["other_versions"]} <= {"cuda", "nvidia", "pip"}
    listed = {name: LISTED.get(canonicalize_name(name)) for name in made["packages"]}
    assert listed["torch"] and listed["pandas"]
    for name, version in listed.items():
        assert version is None or version.split("+")[0] == made["packages"][name]
