"""Which code of the project a stage really runs, held against the code that its key is made of.

with stages_traced() as unseen:
    run_study(...)
assert unseen == {}

The key of a stage follows names through the sources (`studies.engine.reach`). What it cannot follow,
such as `getattr(module, name)` or a method of an object that came in without its class being named,
shows here: the function ran while the stage was built, and no key would notice that it changed.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from studies.engine import stage
from studies.engine.reach import PROJECT, Name, file_of, names_bound, reachable, statements

# the engine says how work is kept, not what it is
ENGINE = ("studies.engine", "fairlib.doctor")
HASHING = {
    ("fairlib.io", "_check_hash"),
    ("fairlib.io", "hashes"),
    ("fairlib.io", "parse_manifest"),
    ("fairlib.io", "read_manifest"),
    ("fairlib.io", "sha256"),
    ("fairlib.io", "write_json"),
}  # what the engine does with a finished result


@contextmanager
def calls_traced() -> Iterator[set[Name]]:
    """The definitions of the project that are called inside the block, as (module, name).

    A method counts as its class, a function within a function as the outermost one. What an import
    runs does not count, and neither do other threads.
    """
    found: set[Name] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        module = _module_of(code.co_filename) if event == "call" else None
        if module and not _importing(frame) and (name := _outermost(module, code.co_firstlineno)):
            found.add((module, name))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


@contextmanager
def stages_traced() -> Iterator[dict[str, set[Name]]]:
    """Trace the build of every stage that is made inside the block; {stage: what its key misses}.

    Stages whose keys miss nothing are not among them; `stages_traced.built` names all that were made.
    """
    unseen: dict[str, set[Name]] = {}
    make = stage._make
    stages_traced.built = set()

    def traced(final: Path, name: str, parameters: dict, extra: dict, build: Callable) -> None:
        stage._loaded.cache_clear()  # so that the readers of the artifacts run, too
        with calls_traced() as called:
            make(final, name, parameters, extra, build)
        stages_traced.built.add(name)
        inside = inspect.getclosurevars(build).nonlocals
        missed = {each for each in called if not each[0].startswith(ENGINE)}
        missed -= reachable(inside["function"]) | in_the_key_of(inside["values"]) | HASHING
        if missed:
            unseen.setdefault(name, set()).update(missed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_make", traced)
        yield unseen


def in_the_key_of(value: Any) -> set[Name]:
    """The definitions that an argument of a stage brings into its key: functions, readers of
    artifacts.
    """
    if isinstance(value, stage.Artifact):
        is_given = isinstance(value.reader, functools.partial)
        return (in_the_key_of if is_given else reachable)(value.reader)
    if isinstance(value, functools.partial):
        return reachable(value.func) | in_the_key_of([value.args, value.keywords])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return set().union(*map(in_the_key_of, value))
    return reachable(value) if isinstance(value, type) or inspect.isfunction(value) else set()


@functools.cache
def _module_of(filename: str) -> str | None:
    """The module of the project that a file is; None for other files."""
    for top in PROJECT:
        root = file_of(top).parent.parent
        if Path(filename).is_relative_to(root / top):
            parts = Path(filename).relative_to(root).with_suffix("").parts
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return None


@functools.cache
def _outermost(module: str, line: int) -> str | None:
    """The definition of a module that a line lies in."""
    for node in statements(ast.parse(file_of(module).read_text(encoding="utf-8")).body):
        first = min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", []))])
        if first <= line <= (node.end_lineno or first) and (names := names_bound(node)):
            return names[0]
    return None


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and _module_of(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False
