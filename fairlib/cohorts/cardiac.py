"""What every heart cohort shares: the picture (crop, stacking, control image), the prompt, classes
and balancing weights.

Source: Skorupko et al., arXiv 2403.19508, and its released code (crop around the segmentation,
channels ED, ES, ED, prompt template, body-mass-index classes at 18.5, 25 and 30, capped
inverse-frequency sampling).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch

from fairlib.errors import DataError, SettingsError
from fairlib.settings import unknown_key

SIZE, PIXEL_MM = 64, 2.0
LABELS = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
BMI_EDGES = (18.5, 25.0, 30.0)
BMI_CLASSES = ("underweight", "normal", "overweight", "obese")
DIAGNOSES = ("healthy", "heart failure")
SEXES = {"F": "Female", "M": "Male"}
CLIP_PERCENTILES = (0.5, 99.5)


def body_mass_index(height: float, weight: float) -> float:
    """kg/m2 from cm and kg.

    Raises `DataError` outside 100 to 230 cm and 20 to 300 kg: other units are not guessed.
    """
    if not (100 <= height <= 230 and 20 <= weight <= 300):
        raise DataError(
            f"height {height:g} and weight {weight:g}: expected 100 to 230 cm and 20 to 300 kg; "
            "convert the units"
        )
    return weight / (height / 100) ** 2


def bmi_class(bmi: float) -> str:
    """ "underweight" (below 18.5), "normal" (below 25), "overweight" (below 30) or "obese".

    Raises `DataError` when the index is missing or not between 8 and 100 kg/m2.
    """
    if not 8 <= bmi <= 100:  # also NaN
        raise DataError(
            f"body-mass index {bmi}: expected kg/m2 between 8 and 100; leave subjects without one "
            "out"
        )
    return BMI_CLASSES[int(np.searchsorted(BMI_EDGES, bmi, side="right"))]


def decade(age: float) -> str:
    """The decade of an age in years: 57 -> "50s". Raises `DataError` when the age is missing or not
    10 to 109.
    """
    if not 10 <= age < 110:  # also NaN
        raise DataError(
            f"age {age}: expected years between 10 and 109; leave subjects without an age out"
        )
    return f"{int(age) // 10 * 10}s"


def prompt_of(row) -> str:
    """The prompt of one row (mapping with sex, age, bmi, diagnosis), for example

    "Female, age in 60s, overweight BMI, heart failure". Raises `DataError` on a value outside the
    template.
    """
    sex, diagnosis = row["sex"], row["diagnosis"]
    if sex not in SEXES:
        raise DataError(
            f"sex {sex!r}: the prompt knows {sorted(SEXES)}; leave subjects without one out"
        )
    if diagnosis not in DIAGNOSES:
        raise DataError(
            f"diagnosis {diagnosis!r}: the prompt knows {DIAGNOSES}; map the pathology to one of "
            "them"
        )
    return f"{SEXES[sex]}, age in {decade(row['age'])}, {bmi_class(row['bmi'])} BMI, {diagnosis}"


def parse_prompt(text: str) -> dict[str, str]:
    """The attributes a prompt names: sex ("F"/"M"), decade ("60s"), bmi_class, diagnosis. Inverse
    of `prompt_of`.

    Raises `SettingsError` naming the attribute that is unknown, and the nearest known one.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4:
        raise SettingsError(
            f"prompt {text!r} has {len(parts)} parts; write 'Female, age in 60s, normal BMI, "
            "healthy'"
        )
    sexes = {word: sex for sex, word in SEXES.items()}
    age = re.fullmatch(r"age in ([1-9]0|100)s", parts[1])
    if age is None:
        raise SettingsError(
            f"prompt {text!r}: {parts[1]!r} is no age; write a decade such as 'age in 60s'"
        )
    return {
        "sex": sexes[_known(text, parts[0], list(sexes))],
        "decade": f"{age[1]}s",
        "bmi_class": _known(text, parts[2], [f"{name} BMI" for name in BMI_CLASSES]).removesuffix(
            " BMI"
        ),
        "diagnosis": _known(text, parts[3], list(DIAGNOSES)),
    }


def balancing_weights(prompts: Sequence[str], clip: float = 20) -> np.ndarray:
    """Sampling weight of each image, float64 [N]: min(1 / count of its full prompt, 1 / (9 *
    clip)).

    Inverse frequency, capped so that a class of fewer than 9 * clip images is not drawn beyond
    that. The paper's code takes clip 20 in training and 5 in generation.
    """
    if clip <= 0:
        raise SettingsError(
            f"clip {clip}: must be positive; the paper takes 20 in training, 5 in generation"
        )
    _, which, counts = np.unique(
        np.asarray(prompts, dtype=str), return_inverse=True, return_counts=True
    )
    return np.minimum(1 / counts[which], 1 / (9 * clip))


def stack(images: torch.Tensor) -> torch.Tensor:
    """ED and ES [N, 2, H, W] as three channels (ED, ES, ED) [N, 3, H, W]; the type is kept."""
    if images.ndim != 4 or images.shape[1] != 2:
        raise DataError(f"images of shape {tuple(images.shape)}; expected [N, 2, H, W] (ED, ES)")
    return images[:, [0, 1, 0]]


def control_image(masks: torch.Tensor) -> torch.Tensor:
    """Labels [N, 2, H, W] (0 to 3) as the control image float32 [N, 3, H, W]: label / 3, channels
    (ED, ES, ED).
    """
    if len(masks) and not 0 <= int(masks.min()) <= int(masks.max()) <= 3:
        raise DataError(f"labels from {int(masks.min())} to {int(masks.max())}; expected {LABELS}")
    return stack(masks).float() / 3


def normalise(images: np.ndarray) -> np.ndarray:
    """Brightness [..., H, W] linearly to float32 [-1, 1], between the 0.5 and 99.5 percentile of
    the whole array.

    ED and ES of a slice go in together, so that blood stays as bright. Raises `DataError` when all
    values are equal.
    """
    low, high = np.percentile(images, CLIP_PERCENTILES)
    if not high > low:
        raise DataError(f"the picture has the single value {low:g}; export it again")
    return (np.clip((images - low) / (high - low), 0, 1) * 2 - 1).astype(np.float32)


def _known(text: str, part: str, known: list[str]) -> str:
    if part not in known:
        raise SettingsError(unknown_key(part, known, f"prompt {text!r}"))
    return part
