"""The library's interface: types that a checker accepts, a docstring for every public name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fairlib

LIBRARY = Path(fairlib.__file__).parent
ROOT = LIBRARY.parent
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(body: list[ast.stmt], where: str) -> Iterator[tuple[str, Definition]]:
    """Every public function, class and method in `body`, with the place where it stands."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield f"{where}:{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{where}:{node.name}")


def is_annotated(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether every parameter but `self` and `cls`, and the return value, has a type."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    named = [one for one in named if one is not None and one.arg not in ("self", "cls")]
    return function.returns is not None and all(one.annotation is not None for one in named)


@pytest.fixture(scope="module")
def modules() -> dict[str, ast.Module]:
    files = sorted(LIBRARY.rglob("*.py"))
    return {str(path.relative_to(LIBRARY)): ast.parse(path.read_text()) for path in files}


@pytest.fixture(scope="module")
def public(modules) -> dict[str, Definition]:
    return {
        where: node
        for name, module in modules.items()
        for where, node in definitions(module.body, name)
    }


def test_every_public_name_has_a_docstring(modules, public):
    bare = [
        name for name, module in modules.items() if module.body and not ast.get_docstring(module)
    ]
    bare += [where for where, node in public.items() if not ast.get_docstring(node)]
    assert len(public) > 400 and bare == []


def test_public_functions_are_annotated(public):
    functions = {w: node for w, node in public.items() if not isinstance(node, ast.ClassDef)}
    bare = [where for where, node in functions.items() if not is_annotated(node)]
    assert len(functions) > 400 and len(bare) <= 0.02 * len(functions), bare


def test_few_type_errors_are_ignored_and_each_by_its_code():
    text = "\n".join(path.read_text() for path in LIBRARY.rglob("*.py"))
    ignores = text.count("# type: ignore")
    assert ignores <= 15 and ignores == text.count("# type: ignore[")


@pytest.mark.slow
def test_the_type_checker_accepts_the_library():
    checked = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
