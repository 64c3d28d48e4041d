"""Two kinds of requests for synthetic hearts (Skorupko et al. 2024, section on the generator).

Images are drawn by capped inverse frequency of their full prompt, in the training of the ControlNet
(`models.controlnet.fit_controlnet`) and again here: `copies` of real pairs of prompt and mask, or
`new_combinations` of attributes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fairlib.cohorts.cardiac import (
    BMI_CLASSES,
    DIAGNOSES,
    bmi_class,
    control_image,
    decade,
    prompt_of,
)
from fairlib.errors import DataError, SettingsError
from fairlib.methods.group_weights import balancing_weights
from fairlib.models.training import draw_rows, same_length
from fairlib.rng import Stream, numpy_rng

if TYPE_CHECKING:
    import pandas as pd

DECADES = ("50s", "60s", "70s", "80s", "90s")  # those of the paper's random mode
# kg/m2 that stand for a class of the random mode
TYPICAL_BMI = {"normal": 22.0, "overweight": 27.5, "obese": 33.0}


def copies(
    table: pd.DataFrame, masks: Tensor, count: int, seed: int, clip: float = 5
) -> tuple[pd.DataFrame, Tensor]:
    """Requests for `count` hearts that repeat real pairs of prompt and mask, drawn by capped
    inverse frequency.

    `table`: one row a heart with sex, age, bmi, diagnosis (and subject, if known); `masks`: uint8
    [N, 2, H, W], one a row. Returns the requests (columns prompt, sex, age, bmi, decade, bmi_class,
    diagnosis, source; source is the row of `table`) and their control images [count, 3, H, W]. As
    in the paper; `clip` 5 is its cap in generation.
    """
    same_length(table=table, masks=masks)
    prompts = [prompt_of(row) for row in table.to_dict("records")]
    source = draw_rows(balancing_weights(prompts, clip), count, seed, Stream.COPIES)
    return _requests(table, table.iloc[source.numpy()], source), control_image(masks[source])


def new_combinations(
    table: pd.DataFrame,
    masks: Tensor,
    count: int,
    seed: int,
    decades: Sequence[str] = DECADES,
    present_only: bool = False,
) -> tuple[pd.DataFrame, Tensor]:
    """Requests for `count` hearts of random attributes, each with a random real mask of the same
    diagnosis.

    Sex, decade, body-mass class (normal, overweight, obese) and diagnosis are drawn evenly and
    independently of each other, as in the random mode of the paper's code; `present_only` leaves
    out the decades that `table` has not. The mask may therefore belong to another sex, age and
    weight than the prompt. Arguments and result as in `copies`, age and bmi being typical of the
    requested class. Raises `DataError` when a diagnosis has no mask.
    """
    import pandas as pd

    same_length(table=table, masks=masks)
    ages = _typical_ages(
        decades, {decade(age) for age in table["age"]} if present_only else set(decades)
    )
    pools = {name: np.flatnonzero((table["diagnosis"] == name).to_numpy()) for name in DIAGNOSES}
    empty = [name for name, rows in pools.items() if not len(rows)]
    if empty:
        raise DataError(
            f"no mask of diagnosis {empty[0]!r} in the table; a new combination takes a mask of "
            "its diagnosis"
        )
    rng = numpy_rng(seed, Stream.COMBINATIONS)
    choices = {
        "sex": ("F", "M"),
        "age": ages,
        "bmi": [TYPICAL_BMI[name] for name in BMI_CLASSES[1:]],
        "diagnosis": DIAGNOSES,
    }
    rows = []
    for _ in range(count):
        drawn = {name: _one(rng, values) for name, values in choices.items()}
        rows.append(drawn | {"source": int(_one(rng, pools[drawn["diagnosis"]]))})
    requested = pd.DataFrame(rows, columns=[*choices, "source"])
    source = torch.tensor(requested["source"].to_numpy(dtype=np.int64))
    return _requests(table, requested, source), control_image(masks[source])


def _requests(table: pd.DataFrame, requested: pd.DataFrame, source: Tensor) -> pd.DataFrame:
    """The table of requests: the attributes requested, and the row (and subject, where known) of
    the mask.
    """
    import pandas as pd

    rows = requested[["sex", "age", "bmi", "diagnosis"]].reset_index(drop=True)
    requests = pd.DataFrame(
        {
            "prompt": [prompt_of(row) for row in rows.to_dict("records")],
            **rows,
            "decade": [decade(age) for age in rows["age"]],
            "bmi_class": [bmi_class(bmi) for bmi in rows["bmi"]],
            "source": source.numpy(),
        }
    )
    if "subject" in table:
        requests["subject"] = table["subject"].to_numpy()[source.numpy()]
    return requests


def _typical_ages(decades: Sequence[str], present: set[str]) -> list[float]:
    """The middle of each of the decades that are `present`, in years.

    Raises `SettingsError` on a word that names none.
    """
    for name in decades:
        if re.fullmatch(r"[1-9]0s", name) is None:
            raise SettingsError(
                f"decades {list(decades)}: {name!r} is none; write for example '60s'"
            )
    chosen = [name for name in decades if name in present]
    if not chosen:
        raise SettingsError(
            f"decades {list(decades)}: none of them is in the table, which has {sorted(present)}"
        )
    return [float(name[:-1]) + 5 for name in chosen]


def _one(rng: np.random.Generator, choices: Sequence[Any] | np.ndarray) -> Any:
    return choices[int(rng.integers(len(choices)))]
