"""What one FairGenMed npz says of its subject, and its picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairlib.cohorts.fundus import ETHNICITIES, GLAUCOMA, RACES, SEXES
from fairlib.cohorts.npz import read_npz
from fairlib.cohorts.roco import open_picture
from fairlib.cohorts.vocabulary import itself
from fairlib.errors import DataError

# position = code
CODES = {"race": RACES, "glaucoma": GLAUCOMA, "male": SEXES, "hispanic": ETHNICITIES}
# the cohort's columns
NAMES = {"race": "race", "glaucoma": "glaucoma", "male": "sex", "hispanic": "ethnicity"}
RACE_WORDS = itself(RACES) | {"black or african american": "Black", "white or caucasian": "White"}


def read_codes(path: str | Path) -> dict[str, str | None]:
    """What an npz says itself: race, glaucoma and, where they are there, sex and ethnicity (None
    where the code is -1).

    Codes: race 0 Asian, 1 Black, 2 White (or those words); glaucoma, male, hispanic 0/1. Raises
    `UnknownCode` on another one, `DataError` on a file that cannot be read without pickle.
    """
    arrays = read_npz(path, ("race", "glaucoma"), ("male", "hispanic"))
    return {NAMES[name]: _decoded(path, name, value) for name, value in arrays.items()}


class UnknownCode(DataError):
    """A code in an npz that the release does not know."""


def fundus_picture(
    values: np.ndarray, size: int, rotate: bool = False, where: str = "picture"
) -> np.ndarray:
    """A fundus picture [H, W] or [H, W, 3] of any brightness as grey float32 [size, size] in [-1,
    1].

    Smallest value to -1 and largest to 1 (over the whole array, as the paper's code), the mean of
    the channels, a turn by -90 degrees (clockwise) with `rotate`, black to make it square, and
    bilinear to `size`. Raises `DataError` on another shape, NaN, or a single value.
    """
    from PIL import Image

    if (
        values.ndim not in (2, 3)
        or values.ndim == 3
        and values.shape[2] not in (1, 3)
        or 0 in values.shape
    ):
        raise DataError(
            f"{where}: slo_fundus has shape {values.shape}; expected [H, W] or [H, W, 3]"
        )
    if (
        values.dtype.kind not in "uif"
        or not np.isfinite(values).all()
        or values.min() == values.max()
    ):
        raise DataError(
            f"{where}: slo_fundus must hold finite numbers that differ; take the file from its "
            "release again"
        )
    values = values.astype(np.float64)
    grey = (values - values.min()) / (values.max() - values.min()) * 2 - 1
    grey = grey if grey.ndim == 2 else grey.mean(axis=2)
    grey = np.rot90(grey, -1) if rotate else grey
    room = max(grey.shape) - np.array(grey.shape)
    square = np.pad(grey, [(gap // 2, gap - gap // 2) for gap in room], constant_values=-1).astype(
        np.float32
    )
    small = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(small, dtype=np.float32), -1, 1)


@dataclass(frozen=True)
class FundusReader:
    root: Path
    size: int
    rotate: bool

    def __call__(self, key: str) -> np.ndarray:
        """`key` is "Training/data_00001.npz"; where it has no `slo_fundus`,
        "Training/slo_fundus_00001.jpg" is read.
        """
        path = self.root / key
        found = read_npz(path, (), ("slo_fundus",))
        if not found:
            path = path.with_name(path.name.replace("data_", "slo_fundus_")).with_suffix(".jpg")
            found = {"slo_fundus": np.asarray(open_picture(path))}
        return fundus_picture(found["slo_fundus"], self.size, self.rotate, str(path))


def _decoded(path: str | Path, name: str, value: np.ndarray) -> str | None:
    known = CODES[name]
    code = value.item() if value.size == 1 else value.tolist()
    if name == "race" and isinstance(code, str) and code.lower() in RACE_WORDS:
        return RACE_WORDS[code.lower()]
    if name in ("male", "hispanic") and code == -1:
        return None
    if not isinstance(code, (bool, int, float)) or code not in range(len(known)):
        raise UnknownCode(
            f"{path}: {name} {code!r}; expected 0 to {len(known) - 1} ({', '.join(known)})"
        )
    return known[int(code)]
