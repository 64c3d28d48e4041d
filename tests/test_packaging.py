"""The package as a stranger gets it: what it imports is declared, and the wheel holds the library alone."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTIONS = metadata.packages_distributions()


def imported(folder):
    """{package: first file that imports it}, of all packages from outside."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], path.relative_to(ROOT).as_posix())
    beside = {path.stem for path in (ROOT / folder).rglob("*.py")}  # scripts of one folder
    ours = {"fairlib", "studies", "_typeshed", *sys.stdlib_module_names, *beside}
    return {name: path for name, path in found.items() if name not in ours}


def names(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


@pytest.mark.parametrize(
    ("folder", "groups"),
    [("fairlib", ("models", "figures", "imagenet")), ("studies", ("models", "figures", "notebooks", "book")),
     ("book", ("figures", "notebooks", "book")),],
)  # fmt: skip
def test_what_is_imported_is_declared(folder, groups):
    declared = names(PROJECT["dependencies"]).union(*(names(EXTRAS[group]) for group in groups))
    for package, path in imported(folder).items():
        distributions = {canonicalize_name(name) for name in DISTRIBUTIONS.get(package, [package])}
        assert distributions & declared, f"{path} imports {package}, which is not declared"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"  # building leaves files beside the sources
    shutil.copytree(
        ROOT / "fairlib", source / "fairlib", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-CONTENT"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", place, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    [found] = place.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(wheel):
    files = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in files}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"fairlib"}
    assert "fairlib/py.typed" in files
    assert wheel.name.startswith("fairlib_imaging-")


@pytest.mark.slow
def test_the_wheel_runs_the_readme_example(wheel, tmp_path):
    """Installed beside nothing of this checkout, in a process that starts elsewhere."""
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    (tmp_path / "example.py").write_text((ROOT / "tests" / "fairlib" / "example.py").read_text())
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "example.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert str(target) in result.stdout
