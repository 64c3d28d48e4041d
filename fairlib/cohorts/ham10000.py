"""HAM10000 as it is released, as a cohort of dermoscopic images in colour, with the prompt of Luo
et al. (arXiv 2412.20374).

Malignant are melanoma (mel), basal cell carcinoma (bcc) and actinic keratosis with Bowen's disease
(akiec), which is a precancer or a carcinoma in situ; the other four diagnoses are benign. The
release has no such column, and how the paper grouped is not stated: this is the usual grouping, and
a choice of this book.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from fairlib.cohorts.cohort import Cohort, prompted
from fairlib.cohorts.listing import first_of, folders, listed, missing, read_colour, require_some
from fairlib.cohorts.tables import (
    SEX_CELLS,
    SEX_WORDS,
    SEXES,
    named_cells,
    number_of,
    read_rows,
    refuse_twice,
    require_words,
    typed,
    word_of,
)
from fairlib.errors import DataError

# the file's name has no ending in one of its two sources
TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata")
PARTS = ("ham10000_images_part_1", "ham10000_images_part_2")  # in any case
CATEGORIES, AGE_GROUPS = ("benign", "malignant"), ("under 60", "60 or older")
MALIGNANT, BENIGN = ("akiec", "bcc", "mel"), ("bkl", "df", "nv", "vasc")
CATEGORY_OF = dict.fromkeys(MALIGNANT, "malignant") | dict.fromkeys(BENIGN, "benign")
ATTRIBUTES = {"sex": SEXES, "age_group": AGE_GROUPS}  # four groups for the perturbation
PROMPTED = {**ATTRIBUTES, "category": CATEGORIES}  # what a prompt states, in its order
AGE_WORDS = {"under 60": "Age under 60", "60 or older": "Age equal 60 or older"}
FIELDS = ("lesion_id", "image_id", "sex", "age", "dx", "dx_type", "localization")


def read_ham10000(root: str | Path, *, size: int = 128) -> Cohort:
    """Read the dermoscopic images of HAM10000: `HAM10000_metadata(.csv)` and
    `HAM10000_images_part_1|2/<image_id>.jpg`.

    Parameters
    ----------
    root
        The folder that holds the table and both parts.
    size
        Pixels a side; the square in the middle of each image is taken.

    Returns
    -------
    Cohort
        One row is one image: subject (the lesion, so that `split()` never parts two images of one),
        sex, age (years), age_group, dx, category ("benign" or "malignant"), dx_type, localization,
        image, prompt. Images are read when loaded: float32 `[N, 3, size, size]` in [-1, 1]. In
        `excluded` are images that are in no part, and rows whose sex or age is unknown.

    Raises
    ------
    DataError
        Another layout, a missing column, an image listed twice, another diagnosis or sex, and an
        age that is none.
    """
    root = Path(root).expanduser()
    what, remedy = f"neither {TABLES[0]} nor {TABLES[1]} is there", "give the folder of the release"
    path = first_of((root / name for name in TABLES), missing(root, what, remedy))
    fields = {name: name for name in FIELDS}
    rows = [_attributes(path, row) for row in named_cells(path, read_rows(path), fields)]
    refuse_twice(path, [row["image"] for row in rows])
    files = find_images(root)
    kept = [row for row in rows if row["image"] in files]
    excluded = [
        (row["image"], "image missing", "in none of the parts")
        for row in rows
        if row["image"] not in files
    ]
    require_some(kept, excluded, root, f"images of {path.name}", "unpack part 1 and part 2")
    table, read_image = typed(kept, ("age",)), partial(_read_image, files, size)
    return prompted("ham10000", table, PROMPTED, prompt_of, read_image, excluded).with_prompt()


def age_group(age: float) -> str:
    """ "under 60" or "60 or older", of an age in years.

    Raises `DataError` when it is missing or no age.
    """
    if not 0 <= age <= 120:  # also NaN
        expected = "years between 0 and 120; leave images without an age out"
        raise DataError(f"age {age}: expected {expected}")
    return AGE_GROUPS[int(age >= 60)]


def prompt_of(row: Mapping) -> str:
    """The prompt of one row (mapping with sex, age_group, category).

    For example "Dermoscopic image of a Female Age under 60 patient with the following diagnostic
    category: malignant". Raises `DataError` on a value outside the template.
    """
    require_words(row, PROMPTED)
    patient = f"{SEX_WORDS[row['sex']]} {AGE_WORDS[row['age_group']]} patient"
    condition = f"the following diagnostic category: {row['category']}"
    return f"Dermoscopic image of a {patient} with {condition}"


def find_images(root: Path) -> dict[str, Path]:
    """Image id -> file, over both parts. Raises `DataError` when neither part is there."""
    parts = [folder for folder in folders(root) if folder.name.lower() in PARTS]
    if not parts:
        what = "neither HAM10000_images_part_1 nor _part_2 is there"
        raise missing(root, what, "give the folder that holds both")
    return {path.stem: path for folder in parts for path in listed(folder, "*.jpg")}


def _read_image(files: Mapping[str, Path], size: int, key: str) -> np.ndarray:
    return read_colour(files[key], size)


def _attributes(path: Path, cells: Mapping[str, str]) -> dict:
    where = f"{path}: {cells['image_id']}"
    if not cells["lesion_id"] or not cells["image_id"]:
        why = "a split by lesion needs both"
        raise DataError(f"{where}: lesion_id or image_id is empty; {why}")
    age = number_of(where, "age", cells["age"], 0, 120)
    if cells["dx"] not in CATEGORY_OF:
        known = ", ".join(sorted(CATEGORY_OF))
        raise DataError(f"{where}: dx {cells['dx']!r}: HAM10000 knows {known}; correct the table")
    return {
        "subject": cells["lesion_id"],
        "sex": word_of(where, "sex", cells["sex"], SEX_CELLS),
        "age": age,
        "age_group": None if np.isnan(age) else age_group(age),
        "dx": cells["dx"],
        "category": CATEGORY_OF[cells["dx"]],
        "dx_type": cells["dx_type"],
        "localization": cells["localization"],
        "image": cells["image_id"],
    }
