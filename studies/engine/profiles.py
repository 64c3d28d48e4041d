"""Profiles: one YAML file gives every notebook its parameters, and each value is checked before
anything runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlib.errors import SettingsError
from fairlib.settings import unknown_key
from studies.engine.places import repository

COMMON = "common"
TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook, as its parameters cell declares it."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True)
class Profile:
    """What a profile sets: `common` for every notebook that has such a parameter, `sections` for
    one notebook each (by its stem).

    `declared`: the parameters that each notebook has.
    """

    name: str
    path: Path
    common: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    declared: dict[str, frozenset[str]]

    def parameters(self, notebook: str) -> dict[str, Any]:
        """The parameters of one notebook: the common ones that it has, and over them its own."""
        known = self.declared.get(notebook, frozenset())
        return {
            **{key: value for key, value in self.common.items() if key in known},
            **self.sections.get(notebook, {}),
        }


def known_profiles(root: Path | None = None) -> list[str]:
    """The names of the profiles that exist."""
    return sorted(path.stem for path in ((root or repository()) / "profiles").glob("*.yml"))


def load_profile(name: str, root: Path | None = None) -> Profile:
    """Read `profiles/<name>.yml` and hold every key and value against the notebooks' parameters
    cells.

    Raises `SettingsError` on an unknown profile (listing those known), section or key (naming the
    nearest known one), or a value of another type than the notebook declares.
    """
    root = root or repository()
    path = root / "profiles" / f"{name}.yml"
    if name not in known_profiles(root):
        raise SettingsError(
            f"unknown profile {name!r}; known profiles: {', '.join(known_profiles(root)) or 'none'}"
        )
    sections = _parse(path)
    declared = {stem: notebook_parameters(file) for stem, file in notebooks(root).items()}
    known = {stem: frozenset(found) for stem, found in declared.items()}
    profile = Profile(name, path, sections.pop(COMMON, {}), sections, known)
    _check(profile, declared)
    return profile


def notebooks(root: Path | None = None) -> dict[str, Path]:
    """`{stem: path}` of the source notebooks, in reading order."""
    return {
        path.stem: path
        for path in sorted(((root or repository()) / "notebooks").glob("[0-9]*.ipynb"))
    }


def chapters(root: Path | None = None) -> dict[str, Path]:
    """`{stem: path}` of the notebooks that the book's `_toc.yml` lists, in reading order; of all
    where there is no such list.
    """
    contents, found = (root or repository()) / "_toc.yml", notebooks(root)
    if not contents.is_file():
        return found
    listed = _listed(contents.read_text())
    return {stem: path for stem, path in found.items() if stem in listed}


def lanes(root: Path | None = None) -> list[list[str]]:
    """The stems of `chapters()` by part of the book, each part in reading order.

    In a part, notebooks take up what earlier ones left behind; parts share nothing, and so may run
    at the same time. All notebooks are one lane where `_toc.yml` is missing or has no captions.
    """
    contents = (root or repository()) / "_toc.yml"
    if not contents.is_file():
        return [list(chapters(root))]
    parts = map(_listed, re.split(r"(?m)^\W*caption:", contents.read_text()))
    return [lane for part in parts if (lane := [stem for stem in chapters(root) if stem in part])]


def _listed(contents: str) -> set[str]:
    return set(re.findall(r"file: *notebooks/(\S+)", contents))


def notebook_parameters(path: Path) -> dict[str, Parameter]:
    """What the parameters cell of the notebook at `path` declares.

    Raises `SettingsError` when the cell is missing or a parameter in it has no type this project
    can check.
    """
    import logging

    from papermill import inspect_notebook

    logging.getLogger("papermill").setLevel(logging.ERROR)
    found = [_parameter(path, entry) for entry in inspect_notebook(str(path)).values()]
    if not found:
        raise SettingsError(f"{path}: no cell tagged 'parameters'; give the notebook exactly one")
    return {parameter.name: parameter for parameter in found}


def _parameter(path: Path, entry: dict[str, str]) -> Parameter:
    kind = entry["inferred_type_name"]
    if kind.split("[")[0] not in TYPES:
        raise SettingsError(
            f"{path}: parameter {entry['name']!r} has type {kind}; annotate it: {', '.join(TYPES)}"
        )
    return Parameter(entry["name"], kind, entry["default"], entry["help"])


def _parse(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise SettingsError(
            f"{path}: not valid YAML ({' '.join(str(error).split())}); mend the file"
        ) from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected sections, found {type(content).__name__}")
    for name, section in content.items():
        if section is not None and not isinstance(section, dict):
            raise SettingsError(
                f"{path}: section {name!r} is {section!r}; expected `parameter: value` lines"
            )
    return {str(name): section or {} for name, section in content.items()}


def _check(profile: Profile, declared: dict[str, dict[str, Parameter]]) -> None:
    for section in profile.sections:
        if section not in declared:
            raise SettingsError(unknown_key(section, [COMMON, *declared], str(profile.path)))
    everywhere = sorted({key for known in declared.values() for key in known})
    for key in profile.common:
        if key not in everywhere:
            raise SettingsError(unknown_key(str(key), everywhere, str(profile.path)))
    for notebook, known in declared.items():
        for key, value in profile.parameters(notebook).items():
            if key not in known:
                where = f"{profile.path}, for notebook {notebook}"
                raise SettingsError(unknown_key(str(key), list(known), where))
            if not fits(value, known[key].type):
                found = f"{notebook}.{key} is {value!r} ({type(value).__name__})"
                raise SettingsError(f"{profile.path}: {found}; expected {known[key].type}")


def fits(value: Any, kind: str) -> bool:
    """Whether `value` is of the annotated type `kind`, such as `int`, `str` or `list[float]`."""
    outer, _, inner = kind.replace(" ", "").partition("[")
    if isinstance(value, bool) and outer != "bool":
        return False
    if not isinstance(value, TYPES[outer]):
        return False
    inner = inner.rstrip("]")
    return all(fits(item, inner) for item in value) if outer == "list" and inner in TYPES else True
