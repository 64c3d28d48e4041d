"""HAM10000 as it is released, as a cohort of dermoscopic pictures in colour, with the prompt of Luo
et al. (arXiv 2412.20374).

Malignant are melanoma (mel), basal cell carcinoma (bcc) and actinic keratosis with Bowen's disease
(akiec), which is a precancer or a carcinoma in situ; the other four diagnoses are benign. The
release has no such column, and how the paper
grouped is not stated: this is the usual grouping, and a choice of this book.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.fundus import SEX_WORDS, SEXES
from fairlib.cohorts.prompted import PromptCohort, with_prompts
from fairlib.cohorts.roco import open_picture
from fairlib.cohorts.table import report
from fairlib.cohorts.text_tables import column, read_rows, refuse_twice
from fairlib.cohorts.vocabulary import number_of, word_of
from fairlib.errors import DataError

# the file's name has no ending in one of its two sources
TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata")
PARTS = ("ham10000_images_part_1", "ham10000_images_part_2")  # in any case
MALIGNANT, BENIGN = ("akiec", "bcc", "mel"), ("bkl", "df", "nv", "vasc")
CATEGORIES, AGE_GROUPS = ("benign", "malignant"), ("under 60", "60 or older")
ATTRIBUTES = {"sex": SEXES, "age_group": AGE_GROUPS}  # four groups for the perturbation
NEEDED = ("sex", "age_group", "category")
AGE_WORDS = {"under 60": "Age under 60", "60 or older": "Age equal 60 or older"}
FIELDS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
SEX = {"female": "F", "male": "M"}
COLUMNS = (
    "subject",
    "sex",
    "age",
    "age_group",
    "dx",
    "category",
    "dx_type",
    "localization",
    "image",
)


def read_ham10000(root: str | Path, size: int = 128) -> PromptCohort:
    """The pictures of `root`: `HAM10000_metadata(.csv)` and
    `HAM10000_images_part_1|2/<image_id>.jpg`.

    One row is one picture: subject (the lesion, so that `split()` never parts two pictures of one),
    sex, age (years), age_group, dx, category ("benign"/"malignant"), dx_type, localization, image,
    prompt. Pictures are read when loaded: float32 [3, size, size] in [-1, 1], cut to the square in
    the middle. Left out and listed in `excluded`: an image that is in no part, and rows whose sex
    or age is unknown. Raises `DataError` on another layout, a missing column, an image listed
    twice, another diagnosis or sex, and an age that is none.
    """
    root = Path(root)
    path = _table_path(root)
    rows = read_rows(path)
    places = {name: column(path, rows[0], name) for name in FIELDS}
    people = [_row(path, {name: row[place] for name, place in places.items()}) for row in rows[1:]]
    refuse_twice(path, [row["image"] for row in people])
    found = find_images(root)
    lost = [
        (row["image"], "image missing", "in none of the parts")
        for row in people
        if row["image"] not in found
    ]
    kept = [row for row in people if row["image"] in found]
    if not kept:
        raise DataError(
            f"{root}: none of the {len(people)} images of {path.name} is there; unpack part 1 and "
            "part 2"
        )
    table = pd.DataFrame(kept, columns=list(COLUMNS))
    table = table.astype({name: float if name == "age" else "string" for name in COLUMNS})
    cohort = PromptCohort(
        "ham10000",
        with_prompts(table, NEEDED, prompt_of),
        _Reader(size, found),
        report(lost),
        needed=NEEDED,
    )
    return cohort.with_prompt()


def age_group(age: float) -> str:
    """ "under 60" or "60 or older", of an age in years.

    Raises `DataError` when it is missing or no age.
    """
    if not 0 <= age <= 120:  # also NaN
        raise DataError(
            f"age {age}: expected years between 0 and 120; leave pictures without an age out"
        )
    return AGE_GROUPS[int(age >= 60)]


def category(dx: str) -> str:
    """ "benign" or "malignant", of one of the seven diagnoses. Raises `DataError` on another
    one.
    """
    if dx not in MALIGNANT + BENIGN:
        raise DataError(
            f"dx {dx!r}: HAM10000 knows {', '.join(sorted(MALIGNANT + BENIGN))}; correct the table"
        )
    return CATEGORIES[int(dx in MALIGNANT)]


def prompt_of(row: Mapping) -> str:
    """The prompt of one row (mapping with sex, age_group, category).

    For example "Dermoscopic image of a Female Age under 60 patient with the following diagnostic
    category: malignant". Raises `DataError` on a value outside the template.
    """
    for name, known in {**ATTRIBUTES, "category": CATEGORIES}.items():
        if pd.isna(row[name]) or row[name] not in known:
            raise DataError(
                f"{name} {row[name]!r}: the prompt knows {', '.join(known)}; leave rows without "
                "one out"
            )
    return (
        f"Dermoscopic image of a {SEX_WORDS[row['sex']]} {AGE_WORDS[row['age_group']]} patient "
        "with the following "
        f"diagnostic category: {row['category']}"
    )


def find_images(root: Path) -> dict[str, Path]:
    """Image id -> file, over both parts. Raises `DataError` when neither part is there."""
    parts = [
        folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name.lower() in PARTS
    ]
    if not parts:
        raise DataError(
            f"{root}: neither HAM10000_images_part_1 nor _part_2 is there; give the folder that "
            "holds both"
        )
    return {path.stem: path for folder in parts for path in sorted(folder.glob("*.jpg"))}


def read_colour(path: Path, size: int) -> np.ndarray:
    """One picture as float32 [3, size, size] (red, green, blue) in [-1, 1]: the square in its
    middle, then resized.

    Raises `DataError` naming a file that cannot be decoded or is too large.
    """
    from PIL import Image

    picture = open_picture(path, "RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    return np.asarray(square, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1


@dataclass(frozen=True)
class _Reader:
    size: int
    files: Mapping[str, Path] = field(repr=False)

    def __call__(self, key: str) -> np.ndarray:
        return read_colour(self.files[key], self.size)


def _row(path: Path, cells: dict[str, str]) -> dict:
    where = f"{path}: {cells['image_id']}"
    if not cells["lesion_id"] or not cells["image_id"]:
        raise DataError(f"{where}: lesion_id or image_id is empty; a split by lesion needs both")
    age = number_of(where, "age", cells["age"], 0, 120)
    known = {
        "subject": cells["lesion_id"],
        "sex": word_of(where, "sex", cells["sex"], SEX),
        "age": age,
        "age_group": None if np.isnan(age) else age_group(age),
        "image": cells["image_id"],
    }
    try:
        known["category"] = category(cells["dx"])
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return {**known, **{name: cells[name] for name in ("dx", "dx_type", "localization")}}


def _table_path(root: Path) -> Path:
    found = [root / name for name in TABLES if (root / name).is_file()]
    if not found:
        raise DataError(
            f"{root}: neither {TABLES[0]} nor {TABLES[1]} is there; give the folder of the release"
        )
    return found[0]
