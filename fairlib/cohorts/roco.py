"""ROCO and ROCOv2: radiology images with captions, read from the layouts in which they are
released.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.cohort import Cohort, report
from fairlib.cohorts.listing import faulty_images, read_file, read_grey, require_some
from fairlib.cohorts.tables import named_cells, read_rows, read_text, read_truth, refuse_twice
from fairlib.errors import DataError
from fairlib.settings import require_known

FEMALE = "females?|wom[ae]n|girls?|lady|ladies|she|hers?"
MALE = "males?|m[ae]n|boys?|gentlem[ae]n|he|him|his"
FINDINGS = ("sex", "grade", "contrast", "side")  # known of a phantom only
TRUTH = ("subject", "age", *FINDINGS)
COLUMNS = ("subject", "sex", "grade", "contrast", "slice", "side", "caption", "age", "image")
OF_CAPTION = ("split", "mentions_sex", "sex_in_caption")


def read_roco(root: str | Path, *, split: str = "train", size: int = 128) -> Cohort:
    """Read ROCO's radiology part: `root/data/<split>/radiology/captions.txt` (id, tab, caption) and
    `images/<id>.jpg`.

    Parameters
    ----------
    root
        The folder of the release, or its folder `data`.
    split
        "train", "validation" or "test".
    size
        Pixels a side; images are padded to a square with black.

    Returns
    -------
    Cohort
        One row is one image: the columns of a brain cohort (see `read_brats`), split, mentions_sex
        (bool) and sex_in_caption ("F", "M", "both", "none"). `subject` is the article (PMC id) of
        `licences.txt` where that file is there, else the image. Sex and other truths come from
        `truth.csv` (phantoms only), else they are missing. Images are read when loaded: grey
        float32 `[N, 1, size, size]` in [-1, 1]. Captions without an image are
        in `excluded`, and so are those whose image is broken: by its header, and by its data where
        the file does not end as it should.

    Raises
    ------
    DataError
        Another layout, or an unknown split.
    """
    require_known(split, ("train", "validation", "test"), "the splits of ROCO", DataError)
    root = Path(root).expanduser()
    root = root / "data" if (root / "data").is_dir() else root
    folder = root / split / "radiology"
    captions = _tabbed_captions(folder / "captions.txt")
    articles = _articles(folder / "licences.txt")
    images, truth = folder / "images", folder / "truth.csv"
    return _cohort("roco", captions, images, split, size, articles, truth)


def read_rocov2(root: str | Path, *, split: str = "train", size: int = 128) -> Cohort:
    """Read ROCOv2's csv form: `root/<split>_captions.csv` (ID, Caption) and
    `root/<split>_images/<id>.jpg`.

    Parameters
    ----------
    root
        The folder that holds them.
    split
        "train", "valid" or "test".
    size
        Pixels a side; images are padded to a square with black.

    Returns
    -------
    Cohort
        As `read_roco`; the subject is the image.

    Raises
    ------
    DataError
        Another layout, or an unknown split.
    """
    require_known(split, ("train", "valid", "test"), "the splits of ROCOv2", DataError)
    root = Path(root).expanduser()
    captions = _csv_captions(root / f"{split}_captions.csv")
    images, truth = root / f"{split}_images", root / "truth.csv"
    return _cohort("rocov2", captions, images, split, size, {}, truth)


def sex_in_caption(caption: str) -> str:
    """ "F", "M", "both" or "none": whether whole words of a caption name a sex ("HER-2" is not
    one).
    """
    return {(True, False): "F", (False, True): "M", (True, True): "both"}.get(
        (bool(_FEMALE.search(caption)), bool(_MALE.search(caption))), "none"
    )


def _pattern(words: str) -> re.Pattern:
    return re.compile(rf"\b(?:{words})\b(?!-?\d)", re.IGNORECASE)


_FEMALE, _MALE = _pattern(FEMALE), _pattern(MALE)


def _cohort(
    name: str,
    captions: Mapping[str, str],
    images: Path,
    split: str,
    size: int,
    articles: Mapping[str, str],
    truth: Path,
) -> Cohort:
    files = {key: images / f"{key}.jpg" for key in captions}
    excluded = [(key, "caption empty", "") for key, text in captions.items() if not text]
    excluded += faulty_images({key: path for key, path in files.items() if captions[key]})
    gone = {key for key, *_ in excluded}
    kept = {key: text for key, text in captions.items() if key not in gone}
    first = [path.name for path in files.values() if not path.is_file()][:1]
    require_some(kept, excluded, images, "captioned images", "fetch the images first", *first)
    table = _with_truth(_table(kept, split, articles), truth)
    read_image = partial(read_file, read_grey, files.__getitem__, size)
    return Cohort(name, table, read_image, report(excluded), strata=("sex", "grade"))


def _table(captions: Mapping[str, str], split: str, articles: Mapping[str, str]) -> pd.DataFrame:
    table = pd.DataFrame({"image": list(captions), "caption": list(captions.values())}, dtype="str")
    table["subject"] = [articles.get(key, key) for key in captions]
    table["sex_in_caption"] = [sex_in_caption(text) for text in captions.values()]
    table["mentions_sex"], table["split"] = table["sex_in_caption"] != "none", split
    table["age"], table["slice"] = np.nan, pd.array([pd.NA] * len(table), dtype="Int64")
    for name in FINDINGS:
        table[name] = pd.array([pd.NA] * len(table), dtype="string")
    return table[[*COLUMNS, *OF_CAPTION]]


def _with_truth(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Fill in what a phantom knows of its images; an image the file does not name keeps its missing
    values.
    """
    if not path.is_file():
        return table
    truth = read_truth(path, "image_id", table["image"], TRUTH).reset_index(drop=True)
    for name in FINDINGS:
        table[name] = truth[name]
    table["subject"] = truth["subject"].fillna(table["subject"]).to_numpy()
    ages = pd.to_numeric(truth["age"], errors="coerce")
    return table.assign(age=ages.to_numpy(dtype=float, na_value=np.nan))


def _tabbed_captions(path: Path) -> dict[str, str]:
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        if not tab:
            remedy = "take the file from the release"
            raise DataError(f"{path}: line {number} has no tab between id and caption; {remedy}")
        pairs.append((key.strip(), caption.strip()))
    refuse_twice(path, [key for key, _ in pairs])
    return dict(pairs)


def _csv_captions(path: Path) -> dict[str, str]:
    header, *body = read_rows(path)
    header = ["image_id" if name.lower() == "id" else name.lower() for name in header]
    cells = named_cells(path, [header, *body], {"key": "image_id", "caption": "caption"})
    refuse_twice(path, [row["key"] for row in cells])
    return {row["key"]: row["caption"] for row in cells}


def _articles(path: Path) -> dict[str, str]:
    """Image id -> PMC id, so that two figures of one article (one patient, most often) are never
    split apart.

    The column PMC_ID holds article and figure, as `PMC4608653_cro-0008-0385-g01.jpg`: the article
    ends at the first "_".
    """
    if not path.is_file():
        return {}
    cells = named_cells(path, read_rows(path), {"key": "ROCO_ID", "article": "PMC_ID"})
    return {row["key"]: row["article"].split("_", 1)[0] for row in cells if row["article"]}
