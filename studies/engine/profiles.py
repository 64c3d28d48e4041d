"""Profiles: one YAML file gives every notebook its parameters, and each value is checked before
anything runs.

`quick` is the profile whose values stand in the notebooks themselves; a test holds them together.
So a parameter that differs from it was changed by the reader, and goes over any other profile.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, TypeVar

from fairlib.errors import SettingsError
from fairlib.settings import checked, from_dict, require_known
from studies.engine import repository

T = TypeVar("T")  # the settings of a study: a frozen dataclass
COMMON = "common"
DEFAULT = "quick"
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
INJECTED = "# Parameters\n"  # the first line of the cell that papermill puts in
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Profile:
    """What a profile sets: the values of each notebook's parameters, by its stem."""

    name: str
    values: dict[str, dict[str, Any]]

    def parameters(self, notebook: str) -> dict[str, Any]:
        """The parameters of one notebook: the common ones that it has, and over them its own."""
        return dict(self.values.get(notebook, {}))


def load_parameters(notebook: str, namespace: dict[str, Any]) -> Any:
    """The parameters of a running notebook: those of the profile that its parameter `profile`
    names, and over them what was changed.

    `settings = load_parameters("05_alignment_tuning", globals())`, below the parameters cell, gives
    a frozen dataclass with a field for each parameter: `settings.images`. Changed is what papermill
    put in, and what differs from the `quick` profile, whose values the notebook declares; so a
    reader who sets `profile = "colab"` gets the values of `profiles/colab.yml`, however the
    notebook runs. Texts that begin with `~` lie in the home folder.

    Raises `SettingsError` on an unknown notebook or profile, a parameter that the notebook lacks
    (naming the nearest one) or that is not set, and a value of another type than declared.
    """
    sources = notebooks()
    require_known(notebook, sources, "the notebooks")
    declared = notebook_parameters(sources[notebook])
    injected = _injected(namespace)
    for name in injected:
        require_known(name, declared, f"the parameters of {notebook}")
    for name in declared:
        if name not in namespace:
            raise SettingsError(f"{notebook}.{name} is not set; run the parameters cell first")
    name = checked(namespace["profile"], str, f"{notebook}.profile")
    chosen, usual = (load_profile(each).parameters(notebook) for each in (name, DEFAULT))
    values = {}
    for name, kind in declared.items():
        value = namespace[name]
        if name in chosen and name not in injected and value == usual.get(name):
            value = chosen[name]
        values[name] = at_home(typed(value, kind, f"{notebook}.{name}"))
    made = make_dataclass("Parameters", [(n, type(v)) for n, v in values.items()], frozen=True)
    return made(**values)


def at_home(value: Any) -> Any:
    """`value`; a text that begins with `~` lies in the home folder."""
    is_home = isinstance(value, str) and value.startswith("~")
    return str(Path(value).expanduser()) if is_home else value


def settings_from(kind: type[T], parameters: Any, **others: Any) -> T:
    """Settings of class `kind` from the parameters of a notebook that are called as one of its
    fields, and over them `others`.

    Raises `SettingsError` on a value of another type or out of range.
    """
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return from_dict(kind, {k: v for k, v in vars(parameters).items() if k in names} | others)


def _injected(namespace: dict[str, Any]) -> set[str]:
    """The names that papermill set, by the cells that ran (IPython keeps their text in `In`)."""
    cells = [ast.parse(text) for text in namespace.get("In", []) if text.startswith(INJECTED)]
    nodes = [node for cell in cells for node in ast.walk(cell) if isinstance(node, ast.Name)]
    return {node.id for node in nodes if isinstance(node.ctx, ast.Store)}


def known_profiles() -> list[str]:
    """The names of the profiles that exist."""
    return sorted(path.stem for path in (repository() / "profiles").glob("*.yml"))


def load_profile(name: str) -> Profile:
    """Read `profiles/<name>.yml` and hold every key and value against the notebooks' parameters
    cells.

    Raises `SettingsError` on an unknown profile (listing those known), section or key (naming the
    nearest known one), or a value of another type than the notebook declares.
    """
    path, known = repository() / "profiles" / f"{name}.yml", known_profiles()
    if name not in known:
        what = f"unknown profile {name!r}"
        raise SettingsError(f"{what}; known profiles: {', '.join(known) or 'none'}")
    declared = {stem: notebook_parameters(file) for stem, file in notebooks().items()}
    return Profile(name, _values(path, _parse(path), declared))


def notebooks() -> dict[str, Path]:
    """`{stem: path}` of the source notebooks, in reading order."""
    paths = sorted((repository() / "notebooks").glob("[0-9]*.ipynb"))
    return {path.stem: path for path in paths}


def chapters() -> dict[str, Path]:
    """`{stem: path}` of the notebooks that the book's `_toc.yml` lists, in reading order; of all
    where there is no such list.
    """
    listed = {stem for lane in lanes() for stem in lane}
    return {stem: path for stem, path in notebooks().items() if stem in listed}


def lanes() -> list[list[str]]:
    """The stems of `chapters()` by part of the book, each part in reading order.

    In a part, notebooks take up what earlier ones left behind; parts share nothing, and so may run
    at the same time. All notebooks are one lane where `_toc.yml` is missing or has no captions.
    """
    contents, stems = repository() / "_toc.yml", list(notebooks())
    if not contents.is_file():
        return [stems]
    parts = [
        set(re.findall(r"file: *notebooks/(\S+)", part))
        for part in re.split(r"(?m)^\W*caption:", contents.read_text())
    ]
    return [lane for part in parts if (lane := [stem for stem in stems if stem in part])]


def notebook_parameters(path: Path) -> dict[str, str]:
    """The parameters of the notebook at `path` and their types, as its parameters cell declares.

    Raises `SettingsError` when the cell is missing or a parameter in it has no type this project
    can check.
    """
    import logging

    from papermill import inspect_notebook

    logging.getLogger("papermill").setLevel(logging.ERROR)
    entries = inspect_notebook(str(path)).items()
    if not entries:
        raise SettingsError(f"{path}: no cell tagged 'parameters'; give the notebook exactly one")
    kinds = {name: entry["inferred_type_name"] for name, entry in entries}
    for name, kind in kinds.items():
        if kind.split("[")[0] not in TYPES:
            what = f"{path}: parameter {name!r} has type {kind}"
            raise SettingsError(f"{what}; annotate it: {', '.join(TYPES)}")
    return kinds


def _parse(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        what = f"{path}: not valid YAML ({' '.join(str(error).split())})"
        raise SettingsError(f"{what}; mend the file") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected sections, found {type(content).__name__}")
    for name, section in content.items():
        if section is not None and not isinstance(section, dict):
            what = f"{path}: section {name!r} is {section!r}"
            raise SettingsError(f"{what}; expected `parameter: value` lines")
    return {str(name): section or {} for name, section in content.items()}


def _values(
    path: Path, sections: dict[str, dict[str, Any]], declared: dict[str, dict[str, str]]
) -> dict[str, dict[str, Any]]:
    """The values of each notebook's parameters, each of the type that the notebook declares."""
    common, values = sections.pop(COMMON, {}), {}
    everywhere = sorted({key for known in declared.values() for key in known})
    places = [(sections, [COMMON, *declared], ""), (common, everywhere, "")]
    places += [(own, declared.get(n, ()), f", for notebook {n}") for n, own in sections.items()]
    for given, known, where in places:
        for key in given:
            require_known(key, known, f"{path}{where}")
    for notebook, known in declared.items():
        found = {key: value for key, value in common.items() if key in known}
        values[notebook] = {
            key: typed(value, known[key], f"{path}: {notebook}.{key}")
            for key, value in {**found, **sections.get(notebook, {})}.items()
        }
    return values


def typed(value: Any, annotation: str, name: str) -> Any:
    """`value` as one of the type that `annotation` (such as `int`, `str` or `list[float]`) names.

    A number that YAML takes for text, as 1e-4, is one. Raises `SettingsError` that names `name`.
    """
    outer, _, inner = annotation.replace(" ", "").rstrip("]").partition("[")
    if "float" in (outer, inner):
        value = [_number(item) for item in value] if isinstance(value, list) else _number(value)
    return checked(value, TYPES[outer][TYPES[inner]] if inner in TYPES else TYPES[outer], name)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
