"""What a command line of `fairlib` names, read and checked: pipelines, classifiers, prompts,
shares, and tables of real images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

from fairlib.cohorts.tables import read_prompts, read_table, refuse_twice
from fairlib.errors import DataError, SettingsError
from fairlib.methods.targets import Target
from fairlib.models.classifier import find_classifier
from fairlib.models.clip import Clip, load_clip
from fairlib.models.generator import Generator
from fairlib.settings import need

REAL = ("image", "group", "label")  # texts in the table of real images; its numbers are logits


def accelerator(name: str = "") -> str:
    """`name`, or "cuda" where there is one, or "cpu"."""
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def load_generator(options: argparse.Namespace) -> Generator:
    """The pipeline on the device, in the precision and for the image size that are asked for."""
    device, local = accelerator(options.device), not options.download
    generator = Generator.load(options.pipeline, device, local_files_only=local)
    generator.adapt(options.precision, options.image_size)
    return generator


def load_embedding(options: argparse.Namespace) -> Clip:
    """The CLIP that --clip names, on the device."""
    return load_clip(options.clip, not options.download).to(accelerator(options.device))


def classifiers_of(options: argparse.Namespace) -> dict[str, Callable]:
    """{name: classifier} from NAME=CLASSIFIER; a CLASSIFIER alone is called "classifier"."""
    given = [f"classifier={part}" if "=" not in part else part for part in options.classifier]
    named = dict(part.split("=", 1) for part in given)
    if len(named) < len(given):
        raise SettingsError(f"--classifier {' '.join(given)}: give each a name of its own")
    device = accelerator(options.device)
    return {name: find_classifier(place, device) for name, place in named.items()}


def prompts_of(given: list[str]) -> list[str]:
    """Prompts as they are given, or those of a file."""
    prompts = _listed(given)["prompt"].tolist()
    if not prompts:
        raise SettingsError("no prompts; give at least one")
    return prompts


def _listed(given: list[str]) -> pd.DataFrame:
    """Prompts, and what a file states of each."""
    is_file = len(given) == 1 and given[0].endswith((".txt", ".csv"))
    return read_prompts(given[0]) if is_file else pd.DataFrame({"prompt": given})


def aim_of(options: argparse.Namespace) -> tuple[Any, Any]:
    """Prompts and target of `tune` and of a choice of images: one target for all; or, where
    --shares is a table with a row a group, {prompt: group} and {group: target}.
    """
    place, prompts = "".join(options.shares), _listed(options.prompts)
    if not place.endswith(".csv"):
        return prompts_of(options.prompts), _target(shares_of(options.shares), options.scores)
    need(prompts, "group", name="the table of prompts")
    table = _numbers(place, "the share of each class in each group", ("group",))
    need(table, "group", name=place)
    refuse_twice(place, table["group"])
    targets = {
        group: _target(shares, options.scores, group)
        for group, shares in table.set_index("group").to_dict("index").items()
    }
    return dict(zip(prompts["prompt"], prompts["group"], strict=True)), Target.by_group(targets)


def shares_of(given: list[str]) -> dict[str, float]:
    """{"F": 0.458, ...} from F=0.458 ..."""
    try:
        return {name: float(value) for name, value in (part.split("=") for part in given)}
    except ValueError:
        raise SettingsError(
            f"--shares {' '.join(given)}: give name=share for every group, as F=0.458 M=0.542"
        ) from None


def _target(shares: dict[str, float], path: str, group: str = "") -> Target:
    """The target of all prompts, or of those of a `group`, from a table of real images: the logits
    of the classifier in one column, or in one a class, and where there is a column `label` the
    recorded group of each image; where it has a column `group`, from the rows of that group.
    """
    what = "the classifier's logits on real images; text stands in image, group and label alone"
    table, where, labels = _numbers(path, what, REAL), path, None
    if group and "group" in table:
        table, where = table[table["group"] == group], f"{path} (group {group!r})"
    elif "group" in table and set(table["group"]) <= set(shares):
        raise DataError(
            f"{path}: its column `group` holds the groups of --shares, not groups of prompts; call "
            "the column with the recorded group of each image `label`"
        )
    if "image" in table:
        refuse_twice(where, table["image"])
    if "label" in table:
        labels = _labels(where, table["label"], shares)
    columns = [name for name in table if name not in REAL]
    if len(columns) > 1 and columns != list(shares):
        raise DataError(
            f"{path}: the columns {', '.join(columns)} would all be logits; give one, or those of "
            f"--shares in the order of the classifier's outputs ({', '.join(shares)})"
        )
    logits = table[columns].to_numpy()
    logits = logits[:, 0] if len(columns) == 1 else logits
    return Target.shares(shares, logits, labels, name=group or "all")


def aim_in_words(path: str) -> str:
    """Whether labels or the classifier decide of which group a real image is."""
    if "label" in read_table(path):
        return f"aim: shares by the recorded groups (column `label` of {path})"
    return f"aim: shares as the classifier reads them; {path} has no column `label`"


def _labels(where: str, labels: pd.Series, shares: dict[str, float]) -> list[str]:
    """The recorded group of each real image.

    Raises `DataError` for a label without a share, and for a share without an image.
    """
    groups, wrong = ", ".join(shares), labels[~labels.isin(list(shares))]
    if len(wrong):
        raise DataError(
            f"{where}: row {wrong.index[0] + 2} has the label {wrong.iloc[0]!r} ({len(wrong)} such "
            f"rows of {len(labels)}); the groups of --shares are {groups}: correct the label, or "
            "leave out images whose group is not recorded"
        )
    lacking = [name for name, share in shares.items() if share and name not in set(labels)]
    if lacking:
        raise DataError(
            f"{where}: none of {len(labels)} images has the label {lacking[0]!r}, which has a "
            f"share of {shares[lacking[0]]:g}; add real images of that group"
        )
    return labels.tolist()


def _numbers(path: str, what: str, texts: Sequence[str]) -> pd.DataFrame:
    """A table of numbers, but for its columns of `texts`."""
    table = read_table(path)
    need(table, name=path)
    try:
        return table.astype({name: float for name in table if name not in texts})
    except ValueError as error:
        raise DataError(f"{path}: {error}; give {what}") from None
