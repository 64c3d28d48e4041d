"""The code that a function can reach: every definition of the project that its result may depend
on.

A key made of whole files recomputes a night's work for a comment; one made of a list kept by hand
misses what nobody thought of. So the syntax trees are followed from name to name: a definition
counts when the function names it, or when a definition that counts does. Docstrings and comments
are no part of a tree, and neither is a definition that nobody names. What cannot be followed is a
name that only exists as text (`getattr(module, "name")`).
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, cast

PROJECT = ("fairlib", "studies")
# what carries results about and cannot change one, so that a change there recomputes nothing
PLUMBING = ("studies.engine.stage", "studies.engine.reach")
Name = tuple[str, str]  # of a module, and of a definition in it


def code_digest(function: Any) -> str:
    """A short hash of `function` (or class), of all project code that it can reach, and of the
    packages these import.

    Of a function within a function, and of a lambda, the outermost one counts.
    """
    return _digest(*start_of(function))


def reachable(function: Any) -> set[Name]:
    """The definitions of the project that `function` can reach, itself among them, as (module,
    name).
    """
    return set(_reach(*start_of(function))[0])


def start_of(function: Any) -> Name:
    """Where the search starts: the module, and its outermost definition that holds `function`.

    A lambda of a module, which has no name, stands for itself under a name made of its line.
    """
    name = function.__qualname__.partition(".")[0]
    if name == "<lambda>":
        name = f"<lambda> {function.__code__.co_firstlineno}"
        source = module_of(function.__module__)
        source.statements.setdefault(name, source.lambdas.get(function.__code__.co_firstlineno, []))
    return function.__module__, name


def script_digest(text: str) -> str:
    """A short hash of the project's code that the Python source `text` can reach, and of the
    packages that both import; of all the project's code where a name cannot be followed.

    A name that a package hands out only when asked for it (PEP 562) is followed to its definition.
    """
    named = set(Source("", statements={"": [ast.parse(text)]}).named_by(""))
    outside = sorted({place.partition(".")[0] for place, _ in named} - set(PROJECT))
    try:
        inside = sorted(_digest(*_defined(*name)) for name in named if file_of(name[0]))
    except (NameError, AttributeError):
        inside = [project_digest()]
    versions = [f"{package} {_version(package)}" for package in outside]
    return hashlib.sha256("\n".join([*inside, *versions]).encode()).hexdigest()[:12]


def _defined(module: str, name: str) -> Name:
    source = module_of(module)
    if "__getattr__" not in source.statements or name in {"", *source.statements, *source.imports}:
        return module, name
    return start_of(getattr(import_module(module), name))


def project_digest() -> str:
    """A short hash of all code of the project, without docstrings and comments."""
    text = []
    for top in PROJECT:
        root = Path(util.find_spec(top).submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            tree = WithoutDocstrings().visit(ast.parse(path.read_text(encoding="utf-8")))
            text.append(f"{top}/{path.relative_to(root).as_posix()} {ast.dump(tree)}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:12]


@cache
def _digest(module: str, name: str) -> str:
    code, outside = _reach(module, name)
    text = [  # a lambda's line is no part of what it does
        f"{place}.{what.partition(' ')[0]} {module_of(place).text(what)}"
        for place, what in sorted(code)
    ]
    text += [f"{package} {_version(package)}" for package in sorted(outside)]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:12]


@cache
def _reach(module: str, name: str) -> tuple[frozenset[Name], frozenset[str]]:
    found, outside, left = set(), set(), [(module, name)]
    while left:
        place, what = left.pop()
        if place in PLUMBING:
            continue
        if place.partition(".")[0] not in PROJECT and place != module:
            outside.add(place.partition(".")[0])
        elif (place, what) not in found:
            source = module_of(place)
            if what in source.imports and what not in source.statements:
                left.append(source.imports[what])
            elif what in source.statements:
                found.add((place, what))
                left += source.named_by(what)
            elif not what:  # a module as a value: all that it defines
                left += [(place, each) for each in source.statements]
            elif file_of(f"{place}.{what}"):
                left.append((f"{place}.{what}", ""))
            else:
                raise NameError(
                    f"{place} does not define {what!r}, as far as its text tells; import it by name"
                )
    return frozenset(found), frozenset(outside)


@dataclass
class Source:
    """One module: the statements behind each of its names, and where imported names come from."""

    name: str
    is_package: bool = False
    statements: dict[str, list[ast.AST]] = field(default_factory=dict)
    imports: dict[str, Name] = field(default_factory=dict)
    lambdas: dict[int, list[ast.AST]] = field(default_factory=dict)

    def text(self, what: str) -> str:
        """The trees of a definition as text, without docstrings and places."""
        return "\n".join(ast.dump(node) for node in self.statements[what])

    def named_by(self, what: str) -> list[Name]:
        """The definitions, here and elsewhere, that a definition names."""
        return [name for node in self.statements[what] for name in self._names(node)]

    def _names(self, node: ast.AST) -> Iterator[Name]:
        local = {
            name: target
            for part in ast.walk(node)
            if isinstance(part, (ast.Import, ast.ImportFrom))
            for name, target in imported(part, self.name, self.is_package)
        }
        known = self.imports | local
        # `solvers` in `solvers.ddim`, where it is a module: only what is taken from it counts
        skipped = set()
        for part in ast.walk(node):  # an attribute before the name that it is of
            if isinstance(part, ast.Attribute):
                module, chain = module_behind(part, known)
                member = self._member(part, known)
                if module:
                    skipped |= chain
                    yield module, part.attr
                elif member:
                    skipped.add(part.value)
                    yield member
            elif isinstance(part, ast.Name) and part not in skipped:
                if part.id in known:
                    yield known[part.id]
                elif part.id in self.statements:
                    yield self.name, part.id

    def _member(self, node: ast.Attribute, known: dict[str, Name]) -> Name | None:
        """The definition of an enum's member, where `node` is one (`Stream.NOISE`)."""
        if not isinstance(node.value, ast.Name):
            return None
        place, name = known.get(node.value.id, (self.name, node.value.id))
        source = self if place == self.name else module_of(place) if file_of(place) else None
        member = f"{name}.{node.attr}"
        return (place, member) if source and member in source.statements else None


def module_behind(node: ast.Attribute, known: dict[str, Name]) -> tuple[str | None, set[ast.Name]]:
    """The project module whose attribute `node` is (None where it is none), and the names that lead
    to it.
    """
    parts, value = [], node.value
    while isinstance(value, ast.Attribute):
        parts.insert(0, value.attr)
        value = value.value
    if not isinstance(value, ast.Name) or value.id not in known:
        return None, set()
    module, name = known[value.id]
    full = ".".join(filter(None, (module, name, *parts)))
    return (full, {value}) if full.partition(".")[0] in PROJECT and file_of(full) else (None, set())


@cache
def module_of(name: str) -> Source:
    """The module called `name`, read from its source."""
    path = file_of(name) or Path(sys.modules[name].__file__)
    source = Source(name, path.name == "__init__.py")
    tree = WithoutDocstrings().visit(ast.parse(path.read_text(encoding="utf-8")))
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            source.lambdas.setdefault(node.lineno, []).append(node)
    for node in statements(tree.body):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            source.imports.update(imported(node, name, source.is_package))
        for bound in names_bound(node):
            source.statements.setdefault(bound, []).append(node)
        source.statements |= {name: [member] for name, member in enum_members(node)}
    return source


def enum_members(node: ast.stmt) -> Iterator[tuple[str, ast.Assign]]:
    """("Stream.NOISE", its line) of each member of an enum that has members alone.

    So one more member changes no key but those of what names it.
    """
    members = node.body if isinstance(node, ast.ClassDef) else []
    plain = all(isinstance(part, ast.Assign) for part in members)
    if plain and any("Enum" in ast.unparse(base) for base in getattr(node, "bases", [])):
        for part in cast("list[ast.Assign]", members):
            yield f"{node.name}.{ast.unparse(part.targets[0])}", part


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under its `if`, `try` and `with` among them."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            for part in [inner, *(handler.body for handler in getattr(node, "handlers", []))]:
                yield from statements(part)
        else:
            yield node


def names_bound(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines or changes."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [
        part.id
        for target in targets
        if target is not None
        for part in ast.walk(target)
        if isinstance(part, ast.Name)
    ]


def imported(
    node: ast.Import | ast.ImportFrom, module: str, is_package: bool = False
) -> Iterator[tuple[str, Name]]:
    """(local name, (module, name)) of an import; the name is empty where a module is imported as a
    whole.
    """
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield (alias.asname, (alias.name, "")) if alias.asname else (top, (top, ""))
        return
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package] if node.level else []
    source = ".".join([*base, *([node.module] if node.module else [])])
    for alias in node.names:
        if alias.name == "*" and source.partition(".")[0] in PROJECT:
            raise NameError(f"{module}: imports everything from {source}; name what is needed")
        full = f"{source}.{alias.name}"
        whole = source.partition(".")[0] in PROJECT and file_of(full)
        yield alias.asname or alias.name, (full, "") if whole else (source, alias.name)


@cache
def file_of(name: str) -> Path | None:
    """The source file of a module or package of the project; None where there is none of that
    dotted name.
    """
    top, *inner = name.split(".")
    if top not in PROJECT or (spec := util.find_spec(top)) is None:
        return None
    place = Path(spec.submodule_search_locations[0], *inner)
    return next(
        (path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None
    )


class WithoutDocstrings(ast.NodeTransformer):
    """Takes every string that is a statement of its own out of a tree."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Keep `node` unless it is a bare string."""
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Leave no body empty."""
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body.append(ast.Pass())
        return node


@cache
def _version(package: str) -> str:
    """The version of what is imported under that name; Python's for its own library."""
    if package in sys.stdlib_module_names:
        return ".".join(map(str, sys.version_info[:2]))
    names = _distributions().get(package, [package])
    try:
        return metadata.version(names[0])
    except metadata.PackageNotFoundError:
        return "?"


@lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    return {name: sorted(found) for name, found in metadata.packages_distributions().items()}
