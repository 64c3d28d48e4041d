"""Any folder of images with captions: one table, or a text file beside each image."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from fairlib.cohorts.cohort import Cohort, report
from fairlib.cohorts.listing import (
    Excluded,
    faulty_images,
    folders,
    listed,
    missing,
    read_colour,
    read_file,
    require_some,
)
from fairlib.cohorts.tables import named_cells, read_rows, read_text, refuse_twice
from fairlib.errors import DataError

TABLE = "captions.csv"
ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
REMEDY = f"write {TABLE} with the columns image and caption, or a text x.txt beside each image x"


def read_captions(root: str | Path, *, size: int = 128) -> Cohort:
    """Read `root/captions.csv` (columns `image`, a path below `root`, `caption`, and if known
    `subject`), or, where it is absent, each image of `root` and of the folders in it with the text
    file of the same name.

    Parameters
    ----------
    root
        The folder that holds the images.
    size
        Pixels a side; of an image that is not square the middle is taken.

    Returns
    -------
    Cohort
        One row is one image: subject (the image where nothing else is said), image, caption. Images
        are read when loaded: float32 `[N, 3, size, size]` in [-1, 1]; grey ones have three equal
        channels. Images without a caption, captions without an image, and broken images are in
        `excluded`.

    Raises
    ------
    DataError
        No captioned image, a table without these columns, or an image listed twice.
    """
    root = Path(root).expanduser()
    table = root / TABLE
    rows, excluded = _of_table(table) if table.is_file() else _of_texts(root)
    excluded += [(row["image"], "caption empty", "") for row in rows if not row["caption"]]
    excluded += faulty_images({row["image"]: root / row["image"] for row in rows if row["caption"]})
    gone = {image for image, *_ in excluded}
    kept = [row for row in rows if row["image"] not in gone]
    if not rows and not excluded:
        raise missing(root, "no images with captions", REMEDY, TABLE)
    require_some(kept, excluded, root, "images with captions", REMEDY)
    cells = pd.DataFrame(kept, columns=["subject", "image", "caption"], dtype="str")
    read_image = partial(read_file, read_colour, root.joinpath, size)
    return Cohort("captions", cells, read_image, report(excluded), strata=())


def _of_table(path: Path) -> tuple[list[dict[str, str]], list[Excluded]]:
    header, *body = read_rows(path)
    header = [name.lower() for name in header]
    names = {"image": "image", "caption": "caption"}
    names["subject"] = "subject" if "subject" in header else "image"
    rows = named_cells(path, [header, *body], names)
    refuse_twice(path, [row["image"] for row in rows])
    return [row | {"subject": row["subject"] or row["image"]} for row in rows], []


def _of_texts(root: Path) -> tuple[list[dict[str, str]], list[Excluded]]:
    rows: list[dict[str, str]] = []
    excluded: list[Excluded] = []
    for path in [path for place in (root, *folders(root)) for path in listed(place)]:
        if path.suffix.lower() not in ENDINGS:
            continue
        name, text = path.relative_to(root).as_posix(), path.with_suffix(".txt")
        if not text.is_file():
            excluded.append((name, "caption missing", f"no {text.name} beside it"))
            continue
        try:
            caption = " ".join(read_text(text).split())
            rows.append({"subject": name, "image": name, "caption": caption})
        except DataError as error:
            excluded.append((name, "caption broken", str(error)))
    return rows, excluded
