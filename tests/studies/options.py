"""The options of the command line that stand for settings."""

from __future__ import annotations

import dataclasses
from typing import Any


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
