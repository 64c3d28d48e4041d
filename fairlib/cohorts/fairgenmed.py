"""FairGenMed as it is released (Luo et al., arXiv 2412.20374): npz files in three folders, and
`data_summary.csv`. An npz is never read through pickle: type and size of an array are read before
any of its data.

Source of the prompt: the released code of the paper (FairDiffusion).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import pandas as pd

from fairlib.cohorts.cohort import Cohort, prompted
from fairlib.cohorts.listing import (
    Excluded,
    broken_image,
    by_name,
    listed,
    missing,
    open_image,
    require_some,
    tracked,
)
from fairlib.cohorts.tables import (
    ATTRIBUTES,
    ETHNICITIES,
    RACES,
    SEX_CELLS,
    SEX_WORDS,
    SEXES,
    TAKE_AGAIN,
    itself,
    known_word,
    named_cells,
    number_of,
    read_rows,
    read_truth,
    refuse_twice,
    require_words,
    sound_rows,
    typed,
    word_of,
)
from fairlib.errors import DataError, SettingsError

TABLE, TRUTH = "data_summary.csv", "truth.csv"
GLAUCOMA = ("non-glaucoma", "glaucoma")
SEVERITIES = ("normal", "mild", "moderate", "severe")
CDR_STATUSES = ("normal", "borderline", "abnormal")
RNFLT_STATUSES = ("low", "medium", "high")
REFRACTIONS = ("hyperopia", "emmetropia", "myopia")
USES = ("training", "validation", "test")
FOLDERS = dict(zip(USES, ("Training", "Validation", "Test"), strict=True))
CDR_EDGES = (0.5, 0.7)  # ours: the release gives the status only

CONDITIONS = {
    "glaucoma": GLAUCOMA,
    "md_severity": SEVERITIES,
    "cdr_status": CDR_STATUSES,
    "refraction": REFRACTIONS,
}
PROMPTED = ATTRIBUTES | CONDITIONS  # what a prompt states, in its order
VISION = {degree: f"{degree} vision loss" for degree in SEVERITIES} | {"normal": "normal vision"}
TEMPLATE = re.compile(
    r"SLO fundus image of a (\S+) (\S+) (\S+) patient with the following conditions: "
    r"([^,]+), ([^,]+), ([^,]+) cup-disc ratio, ([^,]+)"
)
EXAMPLE = (
    "SLO fundus image of a Black Female Non-Hispanic patient with the following conditions: "
    "glaucoma, mild vision loss, abnormal cup-disc ratio, myopia"
)

# the csv's name, and the README's
REFRACTION_COLUMNS = ("near_vision_refraction_stage", "se_status")
RACE_WORDS = itself(RACES) | {"black or african american": "Black", "white or caucasian": "White"}
# the cohort's columns: limits of a number (years, dB), or the csv's words and ours
VALUES: dict[str, Any] = {
    "age": (0, 120),
    "sex": SEX_CELLS | {"f": "F", "m": "M"},
    "race": RACE_WORDS,
    "ethnicity": itself(ETHNICITIES),
    "glaucoma": {"yes": "glaucoma", "no": "non-glaucoma"},
    "md": (-60, 20),
    "md_severity": itself(SEVERITIES),
    "cdr_status": itself(CDR_STATUSES) | {"borderline abnormal": "borderline"},
    "rnflt_status": itself(RNFLT_STATUSES),
    "refraction": {"positive": "hyperopia", "neutral": "emmetropia", "negative": "myopia"}
    | itself(REFRACTIONS),
    "use": itself(USES),
}
# of an npz: our column, and the words of its codes
CODES: dict[str, tuple[str, dict]] = {
    "race": ("race", dict(enumerate(RACES)) | RACE_WORDS),
    "glaucoma": ("glaucoma", dict(enumerate(GLAUCOMA))),
    "male": ("sex", dict(enumerate(SEXES)) | {-1: None}),
    "hispanic": ("ethnicity", dict(enumerate(ETHNICITIES)) | {-1: None}),
}
MAX_BYTES = 1 << 27  # of one array
BROKEN = (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_fairgenmed(
    root: str | Path,
    *,
    rotate: bool = False,
    size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Read the fundus images of FairGenMed: `data_summary.csv`, and
    `{Training,Validation,Test}/data_XXXXX.npz` by its column `use`.

    Images are read when loaded (see `fundus_image`); each npz is opened once here for its codes
    alone.

    Parameters
    ----------
    root
        The folder that holds `data_summary.csv`.
    rotate
        Whether images are turned by -90 degrees, as the paper's code does.
    size
        Pixels a side.
    progress
        Called as `progress(done, subjects)` after each subject.

    Returns
    -------
    Cohort
        One row is one subject: subject, age (years), sex, race, ethnicity, glaucoma, md (dB),
        md_severity, cdr_status, rnflt_status, refraction, use, image, prompt (missing where one of
        its attributes is: `with_prompt()` counts and drops those), and the truth of a phantom
        (`truth.csv`: cdr, disc_diameter, ...). Images are float32 `[N, 1, size, size]` in [-1, 1];
        `parts()` is the release's split. In `excluded` are a faulty row (an unknown word, ...), a
        row without its npz, an npz without a row, one that is broken or has no image (nor a jpg
        beside it), a code outside of the release's, and csv and npz that disagree on race,
        glaucoma, sex or ethnicity.

    Raises
    ------
    DataError
        Another layout, a missing column, a file name twice, a table without any row that can be
        used, or an npz whose arrays are pickled objects (they are never unpickled).
    """
    root = Path(root).expanduser()
    (subjects, excluded), files = read_subjects(root / TABLE), find_npz(root)
    stated = {*subjects, *(name for name, *_ in excluded)}
    others = {name: part for name, (part, _) in files.items() if name not in stated}
    excluded += [(name, "not in the table", part) for name, part in others.items()]
    for name, subject in tracked(subjects.items(), progress):
        problem = _problem(root, name, subject, files)
        excluded += [(name, *problem)] if problem else []
    gone = {name for name, *_ in excluded}
    kept = [subject for name, subject in subjects.items() if name not in gone]
    require_some(kept, excluded, root, "subjects", "check folder and csv")
    table = _with_truth(typed(kept, ("age", "md")), root / TRUTH)
    read_image = partial(_read_image, root, size, rotate)
    return prompted("fairgenmed", table, PROMPTED, prompt_of, read_image, excluded)


def cdr_status(cdr: float) -> str:
    """ "normal" (a vertical cup-to-disc ratio below 0.5), "borderline" (below 0.7) or "abnormal".

    The edges are ours. Raises `DataError` when the ratio is missing or not between 0 and 1.
    """
    if not 0 <= cdr <= 1:  # also NaN
        expected = "a number between 0 and 1; leave images without one out"
        raise DataError(f"cup-to-disc ratio {cdr}: expected {expected}")
    return CDR_STATUSES[int(np.searchsorted(CDR_EDGES, cdr, side="right"))]


def prompt_of(row: Mapping) -> str:
    """The prompt of one row (mapping with race, sex, ethnicity, glaucoma, md_severity, cdr_status,
    refraction).

    For example "SLO fundus image of a Black Female Non-Hispanic patient with the following
    conditions: glaucoma, mild vision loss, abnormal cup-disc ratio, myopia". Raises `DataError`
    naming the attribute that is missing or unknown.
    """
    require_words(row, PROMPTED)
    patient = f"{row['race']} {SEX_WORDS[row['sex']]} {row['ethnicity']} patient"
    vision, cup = VISION[row["md_severity"]], f"{row['cdr_status']} cup-disc ratio"
    conditions = f"{row['glaucoma']}, {vision}, {cup}, {row['refraction']}"
    return f"SLO fundus image of a {patient} with the following conditions: {conditions}"


def parse_prompt(text: str) -> dict[str, str]:
    """What a prompt states: race, sex ("F"/"M"), ethnicity, glaucoma, md_severity, cdr_status,
    refraction, in this order.

    Inverse of `prompt_of`. Raises `SettingsError` naming the words that are unknown, and the
    nearest known ones.
    """
    match = TEMPLATE.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"prompt {text!r} does not follow the template; write {EXAMPLE!r}")
    row = dict(zip(PROMPTED, match.groups(), strict=True))
    for name, words in {"sex": SEX_WORDS, "md_severity": VISION}.items():
        values = {word: value for value, word in words.items()}
        row[name] = values[known_word(text, row[name], list(values))]
    return {name: known_word(text, row[name], words) for name, words in PROMPTED.items()}


def read_subjects(path: str | Path) -> tuple[dict[str, dict], list[Excluded]]:
    """Read `data_summary.csv`: npz file name -> attributes in our words, missing ones None or NaN;
    and the rows that are faulty.

    Raises `DataError`.
    """
    rows = read_rows(path)
    refraction = next((name for name in REFRACTION_COLUMNS if name in rows[0]), None)
    fields = {name: name for name in ("filename", *VALUES)}
    fields |= {"sex": "gender", "refraction": refraction or REFRACTION_COLUMNS[0]}
    cells = named_cells(path, rows, fields)
    for row in cells:
        row["filename"] = f"{row['filename'].removesuffix('.npz')}.npz"
    refuse_twice(path, [row["filename"] for row in cells])
    made = partial(_attributes, path, fields=fields)
    subjects, excluded = sound_rows(path, cells, made, "filename")
    return dict(subjects), excluded


def find_npz(root: Path) -> dict[str, tuple[str, Path]]:
    """npz file name -> (folder it lies in, its path).

    Raises `DataError` when no folder is there, or a name lies in two.
    """
    present = [folder for folder in FOLDERS.values() if (root / folder).is_dir()]
    if not present:
        what = f"none of {', '.join(FOLDERS.values())} is there"
        raise missing(root, what, f"give the folder that holds {TABLE}")
    return by_name(root, {folder: listed(root / folder, "*.npz") for folder in present})


class Pickled(DataError):
    """An array of pickled objects, which nobody should have in a release."""


class UnknownCode(DataError):
    """A code in an npz that the release does not know."""


def read_codes(path: str | Path) -> dict[str, str | None]:
    """Read what an npz says itself: race, glaucoma and, where they are there, sex and ethnicity
    (None where the code is -1).

    Codes: race 0 Asian, 1 Black, 2 White (or those words); glaucoma, male, hispanic 0/1. Raises
    `UnknownCode` on another one, `DataError` on a file that cannot be read without pickle.
    """
    arrays = read_npz(path, ("race", "glaucoma"), ("male", "hispanic"))
    return {CODES[name][0]: _decoded(path, name, value) for name, value in arrays.items()}


def fundus_image(
    values: np.ndarray, size: int, rotate: bool = False, where: str = "image"
) -> np.ndarray:
    """Convert a fundus image [H, W] or [H, W, 3] of any brightness to grey float32 [size, size] in
    [-1, 1].

    Smallest value to -1 and largest to 1 (over the whole array, as the paper's code), the mean of
    the channels, a turn by -90 degrees (clockwise) with `rotate`, black to make it square, and
    bilinear to `size`. Raises `DataError` on another shape, NaN, or a single value.
    """
    from PIL import Image

    if why := _no_image_of(values.shape):
        raise DataError(f"{where}: {why}")
    numeric = values.dtype.kind in "uif" and np.isfinite(values).all()
    if not numeric or values.min() == values.max():
        what = "slo_fundus must hold finite numbers that differ"
        raise DataError(f"{where}: {what}; {TAKE_AGAIN}")
    values = values.astype(np.float64)
    grey = (values - values.min()) / (values.max() - values.min()) * 2 - 1
    grey = grey if grey.ndim == 2 else grey.mean(axis=2)
    grey = np.rot90(grey, -1) if rotate else grey
    margins = [(gap // 2, gap - gap // 2) for gap in max(grey.shape) - np.array(grey.shape)]
    square = np.pad(grey, margins, constant_values=-1).astype(np.float32)
    small = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(small, dtype=np.float32), -1, 1)


def read_npz(
    path: str | Path, needed: Sequence[str], optional: Sequence[str] = (), shapes: bool = False
) -> dict[str, np.ndarray]:
    """Read the arrays `needed` (all must be there) and `optional` (those that are there), or with
    `shapes` their shapes; no other one is opened.

    Raises one `DataError` that names the file: missing, no npz, broken, an array missing, too
    large, or of pickled objects.
    """
    try:
        with ZipFile(path) as archive:
            there = {name.removesuffix(".npy") for name in archive.namelist()}
            absent = [name for name in needed if name not in there]
            if absent:
                raise missing(path, f"has no array {absent[0]!r}, only {sorted(there)}", TAKE_AGAIN)
            names = [*needed, *(name for name in optional if name in there)]
            return {name: _read_array(path, archive, name, shapes) for name in names}
    except DataError:
        raise
    except (*BROKEN, BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as npz ({error}); {TAKE_AGAIN}") from error


def _read_array(path: str | Path, archive: ZipFile, name: str, shapes: bool) -> np.ndarray:
    where = f"{path}: array {name!r}"
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise DataError(f"{where} has npy version {version}; save it again with numpy.savez")
        shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        what = f"{where} holds pickled objects, and unpickling runs whatever code the file carries"
        raise Pickled(f"{what}; it is not opened: save it again as numbers or plain text")
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        limit = f"larger than {MAX_BYTES >> 20} MiB; check the file"
        raise DataError(f"{where} of shape {shape} is {limit}")
    if shapes:
        return np.array(shape)
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _attributes(
    path: str | Path, row: Mapping[str, str], fields: Mapping[str, str]
) -> tuple[str, dict]:
    name = row["filename"]
    if Path(name).name != name or name == ".npz":
        expected = "a name such as data_00001.npz, without a folder"
        raise DataError(f"{path}: filename {row['filename']!r}; expected {expected}")
    where = f"{path}: {name}"
    values: dict[str, Any] = {}
    for key, known in VALUES.items():
        place = (where, fields[key], row[key])
        numeric = isinstance(known, tuple)
        values[key] = number_of(*place, *known) if numeric else word_of(*place, known)
    if values["use"] is None:
        raise DataError(f"{where}: use is empty; expected one of {', '.join(USES)}")
    image = f"{FOLDERS[values['use']]}/{name}"
    return name, {"subject": name.removesuffix(".npz"), **values, "image": image}


def _problem(
    root: Path, name: str, subject: Mapping, files: Mapping[str, tuple[str, Path]]
) -> tuple[str, str] | None:
    """(reason, detail) why a row of the table cannot be used."""
    if name not in files:
        return "npz missing", f"expected {subject['image']}"
    folder, path = files[name]
    if folder != FOLDERS[subject["use"]]:
        return "npz in another folder", f"use says {subject['use']}, the file lies in {folder}"
    try:
        codes = read_codes(path)
        if lacking := _lacks_image(path):
            return lacking
    except UnknownCode as why:
        return "unknown code", str(why)
    except Pickled:
        raise
    except DataError as why:
        return "npz broken", str(why)
    apart = [
        f"{key}: csv {subject[key]}, npz {word}"
        for key, word in codes.items()
        if word is not None and subject[key] is not None and word != subject[key]
    ]
    return ("csv and npz disagree", "; ".join(apart)) if apart else None


def _with_truth(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Join what a phantom knows of its images: every column of `truth.csv` that the table lacks, by
    `filename`.
    """
    if not path.is_file():
        return table
    truth = read_truth(path, "filename", table["subject"] + ".npz")
    new = [name for name in truth if name not in table]
    numbers = truth[new].apply(pd.to_numeric)
    return table.assign(**{k: numbers[k].to_numpy(dtype=float, na_value=np.nan) for k in new})


def _jpg(path: Path) -> Path:
    """The image beside an npz, where it is not inside."""
    return path.with_name(path.name.replace("data_", "slo_fundus_")).with_suffix(".jpg")


def _lacks_image(path: Path) -> tuple[str, str] | None:
    """(reason, detail) why an npz has no image: only its shape is read, and the jpg beside it."""
    shape = read_npz(path, (), ("slo_fundus",), shapes=True).get("slo_fundus")
    if shape is None or 0 in shape:
        text = broken_image(_jpg(path)) if _jpg(path).is_file() else f"nor {_jpg(path).name}"
        return ("no image", f"{path}: no slo_fundus; {text}") if text else None
    why = _no_image_of(tuple(shape))
    return ("no image", f"{path}: {why}") if why else None


def _no_image_of(shape: tuple[int, ...]) -> str:
    wrong = len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)) or 0 in shape
    return f"slo_fundus has shape {shape}; expected [H, W] or [H, W, 3]" if wrong else ""


def _read_image(root: Path, size: int, rotate: bool, key: str) -> np.ndarray:
    """`key` is "Training/data_00001.npz"; where it has no `slo_fundus`,
    "Training/slo_fundus_00001.jpg" is read.
    """
    path = root / key
    values = read_npz(path, (), ("slo_fundus",)).get("slo_fundus")
    if values is None or not values.size:
        path = _jpg(path)
        values = np.asarray(open_image(path))
    return fundus_image(values, size, rotate, str(path))


def _decoded(path: str | Path, name: str, value: np.ndarray) -> str | None:
    words = CODES[name][1]
    code = value.item() if value.size == 1 else str(value)
    code = code.lower() if isinstance(code, str) else code
    if code not in words:
        known = ", ".join(f"{one} ({word})" for one, word in words.items() if isinstance(one, int))
        raise UnknownCode(f"{path}: {name} {code!r}; expected {known}")
    return words[code]
