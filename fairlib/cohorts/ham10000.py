"""HAM10000 as it is released, as a cohort of dermoscopic images in colour, with the prompt of Luo
et al. (arXiv 2412.20374).

Malignant are melanoma (mel), basal cell carcinoma (bcc) and actinic keratosis with Bowen's disease
(akiec), which is a precancer or a carcinoma in situ; the other four diagnoses are benign. The
release has no such column, and how the paper grouped is not stated: this is the usual grouping, and
a choice of this book.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from fairlib.cohorts.cohort import Cohort, prompted
from fairlib.cohorts.listing import (
    faulty_images,
    first_of,
    folders,
    listed,
    missing,
    read_colour,
    read_file,
    require_some,
)
from fairlib.cohorts.tables import (
    SEX_CELLS,
    SEX_WORDS,
    SEXES,
    named_cells,
    number_of,
    read_rows,
    refuse_twice,
    require_words,
    sound_rows,
    typed,
    word_of,
)
from fairlib.errors import DataError

# by source: no ending, csv, or Dataverse's tab
TABLES = re.compile(r"HAM10000_metadata(\.(csv|tab|tsv|txt|xlsx))?", re.IGNORECASE)
IMAGES = "ISIC_*.[jJ][pP]*[gG]"
CATEGORIES, AGE_GROUPS = ("benign", "malignant"), ("under 60", "60 or older")
MALIGNANT, BENIGN = ("akiec", "bcc", "mel"), ("bkl", "df", "nv", "vasc")
CATEGORY_OF = dict.fromkeys(MALIGNANT, "malignant") | dict.fromkeys(BENIGN, "benign")
ATTRIBUTES = {"sex": SEXES, "age_group": AGE_GROUPS}  # four groups for the perturbation
PROMPTED = {**ATTRIBUTES, "category": CATEGORIES}  # what a prompt states, in its order
AGE_WORDS = {"under 60": "Age under 60", "60 or older": "Age equal 60 or older"}
FIELDS = ("lesion_id", "image_id", "sex", "age", "dx", "dx_type", "localization")


def read_ham10000(root: str | Path, *, size: int = 128) -> Cohort:
    """Read the dermoscopic images of HAM10000: `HAM10000_metadata(.csv|.tab)` and
    `HAM10000_images_part_1|2/<image_id>.jpg`, or both parts in one folder.

    Parameters
    ----------
    root
        The folder that holds the table and the folders of images.
    size
        Pixels a side; the square in the middle of each image is taken.

    Returns
    -------
    Cohort
        One row is one image: subject (the lesion, so that `split()` never parts two images of one),
        sex, age (years), age_group, dx, category ("benign" or "malignant"), dx_type, localization,
        image, prompt. Images are read when loaded: float32 `[N, 3, size, size]` in [-1, 1]. In
        `excluded` are images that are nowhere or broken, faulty rows, and rows whose sex or age is
        unknown.

    Raises
    ------
    DataError
        Another layout, a missing column, an image listed twice, a table without any row that can be
        used.
    """
    root = Path(root).expanduser()
    name, remedy = "HAM10000_metadata.csv", "give the folder of the release"
    absent = missing(root, f"neither {name} nor HAM10000_metadata is there", remedy, name)
    path = first_of((path for path in listed(root) if TABLES.fullmatch(path.name)), absent)
    cells = named_cells(path, read_rows(path), {name: name for name in FIELDS})
    refuse_twice(path, [row["image_id"] for row in cells if row["image_id"]])
    rows, excluded = sound_rows(path, cells, partial(_attributes, path), "image_id")
    files, images = find_images(root), [row["image"] for row in rows]
    excluded += faulty_images({one: files.get(one, root / "*" / f"{one}.jpg") for one in images})
    gone = {image for image, *_ in excluded}
    kept = [row for row in rows if row["image"] not in gone]
    require_some(kept, excluded, root, f"images of {path.name}", "unpack part 1 and part 2")
    read_image = partial(read_file, read_colour, files.__getitem__, size)
    table = typed(kept, ("age",))
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
    """Image id -> file, in `root` and in its folders, two levels down. Raises `DataError` when
    there is none.
    """
    places = [root, *folders(root), *(one for place in folders(root) for one in folders(place))]
    files = {path.stem: path for place in places for path in listed(place, IMAGES)}
    if not files:
        what = "no ISIC_*.jpg is there, nor in the folders in it"
        raise missing(root, what, "unpack part 1 and part 2 there", "HAM10000_images_part_1")
    return files


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
        "image": cells["image_id"].removesuffix(".jpg"),
    }
