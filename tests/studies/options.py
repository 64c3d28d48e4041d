"""The options of the command line that stand for settings, and what a notebook declares."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

from papermill import inspect_notebook


def command_options(settings: Any) -> list[str]:
    """What to add to the name of a study for these settings: an option for each that is not at its
    default.
    """
    options = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            options += [f"--{field.name.replace('_', '-')}", str(value)]
    return options


def declared_defaults(notebook: Path) -> dict[str, Any]:
    """The values that the parameters cell of a notebook gives its parameters."""
    entries = inspect_notebook(str(notebook)).items()
    return {name: ast.literal_eval(entry["default"]) for name, entry in entries}
