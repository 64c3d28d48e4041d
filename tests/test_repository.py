"""The repository as a house: its lists agree with one another, it names no host, its notebooks are
clean.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from fairlib.io import hashes, read_manifest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WEIGHTS = sorted(path.parent for path in (ROOT / "weights").glob("*/manifest.json"))
HEAVY = (
    "pandas",
    "scipy",
    "sklearn",
    "diffusers",
    "transformers",
    "open_clip",
    "peft",
    "nibabel",
    "nilearn",
    "seaborn",
    "matplotlib",
    "papermill",
    "fairlearn",
    "pydantic",
)


def declared():
    """What the environment of the project holds: not the extra that no part of it needs."""
    extras = PROJECT["optional-dependencies"]
    groups = [PROJECT["dependencies"], *(extras[name] for name in extras if name != "imagenet")]
    return [Requirement(text) for group in groups for text in group]


def locked():
    """`{name: versions}` of the lock; a package may have one version for old Pythons and another
    for new ones.
    """
    found = {}
    for text in (ROOT / "requirements.lock").read_text().splitlines():
        if text and not text.startswith("#"):
            requirement = Requirement(text)
            [pin] = requirement.specifier
            assert pin.operator == "=="
            found.setdefault(canonicalize_name(requirement.name), []).append(Version(pin.version))
    return found


def test_lock_names_no_host_and_no_path():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^-|@ |file:|\.(com|org|net|io|dev|local)\b", text, re.M)


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_lock_satisfies_what_is_declared(requirement):
    pins = locked()[canonicalize_name(requirement.name)]
    assert all(requirement.specifier.contains(pin) for pin in pins)


def test_code_keeps_the_rules_that_the_project_names():
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", ROOT],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout


def modules():
    """`{dotted name: path}` of every module of the library and the studies."""
    paths = [path for top in ("fairlib", "studies") for path in (ROOT / top).rglob("*.py")]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


def imports(path, known, everywhere):
    """The modules of the project that the one at `path` imports: when it is loaded, or
    `everywhere`, within functions, too.
    """
    left, found = [ast.parse(path.read_text())], set()
    while left:
        node = left.pop()
        if everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in known else node.module for each in full.values()}
    return found & set(known)


def test_the_library_knows_no_study():
    known = modules()
    for name, path in known.items():
        if name.startswith("fairlib"):
            found = imports(path, known, everywhere=True)
            assert not [each for each in found if each.startswith("studies")], name


def test_no_module_imports_itself_by_way_of_others():
    """Raises `CycleError` with the circle otherwise."""
    known = modules()
    graph = {name: imports(path, known, everywhere=False) - {name} for name, path in known.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(known)


def test_torch_that_torchvision_cannot_stand_is_excluded():
    [torch] = [requirement for requirement in declared() if requirement.name == "torch"]
    assert not torch.specifier.contains("2.13.0") and torch.specifier.contains("2.11.0")


def test_core_has_no_upper_bounds():
    """A hosted notebook brings its own torch and numpy; installing fairlib must not replace
    them.
    """
    operators = {
        spec.operator for text in PROJECT["dependencies"] for spec in Requirement(text).specifier
    }
    assert operators <= {">=", "!="}


def test_conda_environment_is_the_same_one():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "fairlib"
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."], "all Python packages come from the lock"
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    [python] = [entry.partition("=")[2] for entry in conda if entry.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    names = {canonicalize_name(entry.partition("=")[0]) for entry in conda} - {
        "python",
        "pip",
        "make",
    }
    assert not names, "a package from conda beside its pin in the lock would be installed twice"


@pytest.mark.parametrize("module", ["fairlib", "studies.engine.cli", "studies.engine.profiles"])
def test_import_is_light(module):
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == ""


def test_make_verbs():
    result = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True)
    verbs = {line.split()[0] for line in result.stdout.splitlines() if line}
    assert {"book", "test", "html", "base", "bench", "smoke", "colab", "clean"} <= verbs


def test_make_sets_up_the_environment_for_book_and_test():
    """Neither verb may count on an earlier one."""
    for verb in ("book", "test"):
        text = subprocess.run(
            ["make", "-n", "-B", verb], capture_output=True, text=True, cwd=ROOT, check=True
        ).stdout
        assert text.index("requirements.lock") < text.index(
            "-m studies run" if verb == "book" else "-m pytest"
        )


def test_the_last_line_of_the_tests_names_those_that_had_no_browser():
    command = [sys.executable, "-m", "pytest", "-k", "leash", "tests/book/test_browser.py"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True, env={"PATH": "/nowhere"}
    )
    assert result.stdout.splitlines()[-1] == (
        "1 skipped, no Chromium on the PATH (Debian: apt-get install chromium): test_the_leash_holds"
    )


def test_licences_cover_code_and_prose():
    assert PROJECT["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()
    content = (ROOT / "LICENSE-CONTENT").read_text()
    assert "CC-BY-4.0" in content and "creativecommons.org/licenses/by/4.0" in content


def test_citation_is_in_step():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r'__version__ = "(.+)"', (ROOT / "fairlib" / "__init__.py").read_text())[1]
    assert (
        str(citation["version"]) == version
        and citation["cff-version"] == "1.2.0"
        and citation["license"] == "MIT"
    )
    dois = [entry["doi"] for entry in citation["references"] if "doi" in entry]
    assert dois and all(re.fullmatch(r"10\.\d{4,9}/\S+", doi) for doi in dois), (
        "a bare DOI, not its address"
    )


def test_tracked_files_are_clean():
    """No machine paths, no private hosts, no pickles; nothing large that was not meant to be
    there.
    """
    result = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if result.returncode:
        # an unpacked archive has no list of tracked files to look through
        pytest.skip("not a git checkout")
    for name in filter(None, result.stdout.split("\0")):
        path = ROOT / name
        assert path.suffix not in {".pkl", ".pt", ".ckpt", ".bin"}, name
        if (
            path.suffix in {".py", ".md", ".yml", ".toml", ".ipynb", ".lock", ".json"}
            and "vendor" not in name
        ):
            text = path.read_text()
            assert not re.search(r"(?<![\w.])/(?:work|root|home)/(?!me\b)\w+", text), (
                f"{name}: a path of some machine"
            )


# ---- the shipped weights and their cards
# ----------------------------------------------------------------------------------------


def settings_of(values):
    """All settings below a manifest's parameters, as (name, value)."""
    for name, value in values.items():
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if isinstance(part, dict):
                yield from settings_of(part)
            else:
                yield name, part


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda path: path.name)
class TestModelCard:
    """Each folder of weights has a card that agrees with its manifest and with the results."""

    def test_a_card_is_no_part_of_the_weights(self, folder):
        """Else a word changed in it would compute every result of these weights again."""
        assert (folder / "README.md").is_file()
        assert hashes(folder) == read_manifest(folder)["files"]

    def test_it_says_what_it_must(self, folder):
        text = (folder / "README.md").read_text()
        headings = ["Training", "How it was measured", "Intended use", "Not for", "Licence"]
        assert re.findall(r"^## (.+)$", text, re.M) == headings
        assert text.startswith("---\nlicense: mit\n") and "synthetic" in text[: text.index("## ")]

    def test_it_states_the_size_and_the_seeds_of_the_training(self, folder):
        text, manifest = (folder / "README.md").read_text(), read_manifest(folder)
        parameters = manifest["parameters"]
        [drawn] = [
            parameters[name] for name in ("radiology", "hearts", "fundi") if name in parameters
        ]
        count = drawn.get("subjects", drawn.get("slices"))
        assert f"{manifest.get('people_seen', count):,}" in text and f"{count:,}" in text
        assert f"seed {drawn['seed']}" in text
        trained = {"clip": ["clip"], "fundus-white": ["white"]}.get(
            folder.name,
            [name for name in ("pixels", "noise", "words", "control") if name in parameters],
        )
        for name in trained:
            for key, value in settings_of({name: parameters[name]}):
                assert key != "steps" or re.search(rf"\b{value}\b", text), (name, value)

    def test_its_figures_stand_in_the_results(self, folder):
        text = (folder / "README.md").read_text()
        for name in re.findall(r"`(results/[\w./-]+)`", text):
            assert (ROOT / name).exists(), name
        for figure, value, name in re.findall(
            r"^\| ([^|]+) \| (\d[^|]*) \| `(.+csv)` \|$", text, re.M
        ):
            wanted = re.findall(r"-?\d+\.\d+", value)
            rows = [line.split(",") for line in (ROOT / name).read_text().splitlines()]
            assert any(set(wanted) <= rounded(row, wanted[0]) for row in rows), figure


def rounded(row, like):
    """The numbers of a row, with as many decimals as `like` has."""
    decimals = len(like.partition(".")[2])
    numbers = [cell for cell in row if re.fullmatch(r"-?\d+(\.\d+)?", cell)]
    return {f"{float(cell):.{decimals}f}" for cell in numbers}


# ---- the source notebooks
# ----------------------------------------------------------------------------------------


def cells(path):
    return json.loads(path.read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return cell.get("metadata", {}).get("tags", [])


def code(path):
    return [cell for cell in cells(path) if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert not NOTEBOOKS or len(NOTEBOOKS) >= 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    """Clean, hosted-notebook-openable, parameterised, and every figure with words."""

    def test_no_outputs_and_no_traces(self, path):
        notebook = json.loads(path.read_text())
        assert set(notebook["metadata"]) <= {"kernelspec", "language_info", "accelerator", "colab"}
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        for cell in code(path):
            assert cell["outputs"] == [] and cell["execution_count"] is None
        identifiers = [cell["id"] for cell in notebook["cells"]]
        assert len(set(identifiers)) == len(identifiers)

    def test_opens_in_colab(self, path):
        badge = cells(path)[0]
        assert badge["cell_type"] == "markdown" and "remove-cell" in tags(badge)
        address = re.search(
            r"\]\((https://colab\.research\.google\.com/github/\S+)\)", source(badge)
        )[1]
        assert re.fullmatch(
            r".*/github/[^/]+/[^/]+/blob/[^/]+/notebooks/" + re.escape(path.name), address
        )

    def test_one_parameters_cell_typed_and_commented(self, path):
        [cell] = [cell for cell in cells(path) if "parameters" in tags(cell)]
        lines = [
            line for line in source(cell).splitlines() if line.strip() and not line.startswith("#")
        ]
        for line in lines:
            assert re.match(r"\w+: (int|float|str|bool|list\[\w+\]) = .+  # \S+", line), line
        names = {line.partition(":")[0] for line in lines}
        # chapter 11 reads any folder of captioned images, and no study's cohort
        chosen = set() if path.stem == "11_own_data" else {"cohort"}
        assert {"profile", "seed", "data_dir"} | chosen <= names

    def test_only_the_first_code_cell_knows_colab_and_none_installs(self, path):
        """What it does there is in one module; that it is the current one, `test_address` says."""
        first, *others = (source(cell) for cell in code(path))
        assert first.startswith('import sys\n\nif "google.colab" in sys.modules:')
        for text in others:
            assert not re.search(r"google\.colab|pip install|^\s*[%!]", text, re.M)

    def test_one_title_and_no_skipped_heading(self, path):
        text = "\n".join(source(cell) for cell in cells(path) if cell["cell_type"] == "markdown")
        levels = [
            len(marks)
            for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
        ]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))

    def test_markdown_reads_well_outside_of_the_book(self, path):
        """Directives and roles show up as raw code where notebooks are read otherwise."""
        for cell in cells(path):
            if cell["cell_type"] == "markdown":
                assert not re.search(r"```\{|:::|\{[\w:]+\}`", source(cell)), source(cell)[:80]

    def test_every_figure_has_words(self, path):
        """At most one figure a cell, through `show(figure, alt=..., caption=...)` or with alt text
        in its metadata.
        """
        figures = 0
        for cell in code(path):
            text = re.sub(r"^(\s*)[%!].*$", r"\1pass", source(cell), flags=re.M)
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            shows = [
                node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "show"
            ]
            for node in shows:
                given = {keyword.arg for keyword in node.keywords}
                assert {"alt", "caption"} <= given or len(node.args) >= 3, ast.unparse(node)[:80]
            draws = any(
                isinstance(node.func, ast.Attribute) and is_plot(node.func) for node in calls
            )
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(shows) <= 1 and (shows or alt or not draws), text[:200]
            figures += bool(shows or alt)
        assert figures, "a chapter without a figure"


def is_plot(function: ast.Attribute) -> bool:
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    return owner in {"figures", "plt", "sns"} and function.attr not in {"close", "set_theme"}
