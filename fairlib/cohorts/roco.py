"""ROCO and ROCOv2: radiology pictures with captions, read from the layouts in which they are
released.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.table import Cohort, report
from fairlib.cohorts.text_tables import column, read_rows, read_text, refuse_twice
from fairlib.errors import DataError
from fairlib.settings import unknown_key

FEMALE = (
    "female",
    "females",
    "woman",
    "women",
    "girl",
    "girls",
    "lady",
    "ladies",
    "she",
    "her",
    "hers",
)
MALE = ("male", "males", "man", "men", "boy", "boys", "gentleman", "gentlemen", "he", "him", "his")
TRUTH = ("subject", "sex", "contrast", "grade", "side", "age")
COLUMNS = (
    "subject",
    "sex",
    "grade",
    "contrast",
    "slice",
    "side",
    "caption",
    "age",
    "image",
    "split",
    "mentions_sex",
    "sex_in_caption",
)
MAX_PIXELS = 1 << 26


def read_roco(root: str | Path, split: str = "train", size: int = 128) -> Cohort:
    """ROCO's radiology part: `root/data/<split>/radiology/captions.txt` (id, tab, caption) and
    `images/<id>.jpg`.

    `split`: "train", "validation" or "test". One row an image; columns as in a brain cohort, and
    split, mentions_sex (bool) and sex_in_caption ("F", "M", "both", "none"). `subject` is the
    article (PMC id) of `licences.txt` where that file is there, else the image. Sex and other
    truths come from `truth.csv` (phantoms only), else they are missing. Captions whose image was
    never fetched are listed in `excluded`. Raises `DataError` on another layout.
    """
    folder = _split_folder(Path(root), split) / "radiology"
    captions = _tabbed_captions(folder / "captions.txt")
    return _cohort(
        "roco",
        captions,
        folder / "images",
        split,
        size,
        _articles(folder / "licences.txt"),
        folder / "truth.csv",
    )


def read_rocov2(root: str | Path, split: str = "train", size: int = 128) -> Cohort:
    """ROCOv2's csv form: `root/<split>_captions.csv` (ID, Caption) and
    `root/<split>_images/<id>.jpg`.

    `split`: "train", "valid" or "test". The rest as `read_roco`; the subject is the image.
    """
    root = Path(root)
    if split not in ("train", "valid", "test"):
        raise DataError(unknown_key(split, ["train", "valid", "test"], "the splits of ROCOv2"))
    captions = _csv_captions(root / f"{split}_captions.csv")
    return _cohort(
        "rocov2", captions, root / f"{split}_images", split, size, {}, root / "truth.csv"
    )


def sex_in_caption(caption: str) -> str:
    """ "F", "M", "both" or "none": whether whole words of a caption name a sex ("HER-2" is not
    one).
    """
    return {(True, False): "F", (False, True): "M", (True, True): "both"}.get(
        (bool(_FEMALE.search(caption)), bool(_MALE.search(caption))), "none"
    )


def open_picture(path: Path, mode: str = "L"):
    """One picture as a PIL image in `mode` ("L" grey, "RGB" colour).

    Raises `DataError` naming a file that cannot be decoded or is too large.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {picture.width} x {picture.height} pixels; make it smaller"
                )
            return picture.convert(mode)
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise (
            error
            if isinstance(error, DataError)
            else DataError(
                f"{path}: cannot be decoded ({error}); fetch it again or delete it, then it is "
                "counted as missing"
            )
        ) from error


def read_picture(path: Path, size: int) -> np.ndarray:
    """One picture as grey float32 [size, size] in [-1, 1]: padded to a square with black, then
    resized.

    Raises `DataError` as `open_picture`.
    """
    from PIL import Image

    grey = open_picture(path)
    side = max(grey.size)
    square = Image.new("L", (side, side))
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    small = square.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32) / 127.5 - 1


def _pattern(words: tuple[str, ...]) -> re.Pattern:
    return re.compile(rf"\b(?:{'|'.join(words)})\b(?!-?\d)", re.IGNORECASE)


_FEMALE, _MALE = _pattern(FEMALE), _pattern(MALE)


@dataclass(frozen=True)
class _PictureReader:
    folder: Path
    size: int

    def __call__(self, key: str) -> np.ndarray:
        return read_picture(self.folder / f"{key}.jpg", self.size)


def _cohort(
    name: str,
    captions: dict[str, str],
    images: Path,
    split: str,
    size: int,
    articles: dict,
    truth: Path,
) -> Cohort:
    kept, lost = {}, []
    present = {path.stem for path in images.glob("*.jpg")}
    for key, text in captions.items():
        if key not in present:
            lost.append((key, "image missing", str(images / f"{key}.jpg")))
        elif not text:
            lost.append((key, "caption empty", ""))
        else:
            kept[key] = text
    if not kept:
        raise DataError(
            f"{images}: none of the {len(captions)} captioned images is there; fetch the images "
            "first"
        )
    table = _with_truth(_table(kept, split, articles), truth)
    return Cohort(name, table, _PictureReader(images, size), report(lost))


def _table(captions: dict[str, str], split: str, articles: dict[str, str]) -> pd.DataFrame:
    table = pd.DataFrame({"image": list(captions), "caption": list(captions.values())}, dtype="str")
    table["subject"] = [articles.get(key, key) for key in captions]
    table["sex_in_caption"] = [sex_in_caption(text) for text in captions.values()]
    table["mentions_sex"], table["split"] = table["sex_in_caption"] != "none", split
    for name in ("sex", "grade", "contrast", "side"):
        table[name] = pd.array([pd.NA] * len(table), dtype="string")
    table["age"], table["slice"] = np.nan, pd.array([pd.NA] * len(table), dtype="Int64")
    return table[list(COLUMNS)]


def _with_truth(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Fill in what a phantom knows of its images; an image the file does not name keeps its missing
    values.
    """
    if not path.is_file():
        return table
    rows = read_rows(path)
    for name in ("image_id", *TRUTH):
        column(path, rows[0], name)
    truth = pd.DataFrame(rows[1:], columns=rows[0], dtype="string").replace(
        {"": pd.NA, "NA": pd.NA}
    )
    refuse_twice(path, truth["image_id"].tolist())
    truth = truth.set_index("image_id").reindex(table["image"])
    for name in ("sex", "contrast", "grade", "side"):
        table[name] = truth[name].to_numpy()
    table["subject"] = (
        truth["subject"].fillna(pd.Series(table["subject"].to_numpy(), truth.index)).to_numpy()
    )
    table["age"] = pd.to_numeric(truth["age"], errors="coerce").to_numpy(
        dtype=float, na_value=np.nan
    )
    return table.astype(dict.fromkeys(("sex", "contrast", "grade", "side"), "string"))


def _split_folder(root: Path, split: str) -> Path:
    known = ["train", "validation", "test"]
    if split not in known:
        raise DataError(unknown_key(split, known, "the splits of ROCO"))
    return root / "data" / split if (root / "data").is_dir() else root / split


def _tabbed_captions(path: Path) -> dict[str, str]:
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        if not tab:
            raise DataError(
                f"{path}: line {number} has no tab between id and caption; take the file from the "
                "release"
            )
        pairs.append((key.strip(), caption.strip()))
    return _unique(path, pairs)


def _csv_captions(path: Path) -> dict[str, str]:
    rows = read_rows(path)
    header = [{"id": "image_id"}.get(name.lower(), name.lower()) for name in rows[0]]
    key, caption = column(path, header, "image_id"), column(path, header, "caption")
    return _unique(path, [(row[key], row[caption]) for row in rows[1:]])


def _articles(path: Path) -> dict[str, str]:
    """Image id -> PMC id, so that two figures of one article (one patient, most often) are never
    split apart.

    The column PMC_ID holds article and figure, as `PMC4608653_cro-0008-0385-g01.jpg`: the article
    ends at the first "_".
    """
    if not path.is_file():
        return {}
    rows = read_rows(path)
    key, article = column(path, rows[0], "ROCO_ID"), column(path, rows[0], "PMC_ID")
    return {row[key]: row[article].split("_", 1)[0] for row in rows[1:] if row[article]}


def _unique(path: Path, pairs: list[tuple[str, str]]) -> dict[str, str]:
    refuse_twice(path, (key for key, _ in pairs))
    return dict(pairs)
