"""BraTS 2018 as it is released, as a cohort of captioned axial slices, with the sex that it does
not carry: the official name mapping gives the TCGA id, the TCGA clinical tables give sex and age.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.cohort import Cohort, report
from fairlib.cohorts.listing import by_name, folders, missing, only, tracked
from fairlib.cohorts.slices import (
    CONTRASTS,
    STANDARD,
    SliceSettings,
    SliceStore,
    SubjectSlices,
    extract,
)
from fairlib.cohorts.tables import (
    SEX_CELLS,
    is_missing,
    named_cells,
    read_rows,
    refuse_twice,
    word_of,
)
from fairlib.errors import CorruptScan, DataError
from fairlib.nifti import affine_note, read_labels, read_volume, require_same_grid

GRADES = ("HGG", "LGG")
SCANS = (*CONTRASTS, "seg")
NAME_MAPPING = "name_mapping.csv"
SCAN_AGAIN = "have one .nii or .nii.gz of each scan, as the release has"
TCGA, AGE = "TCGA_TCIA_subject_ID", "age_at_initial_pathologic_diagnosis"

# What a caption says, and each wording of it (synonyms change with the template).
_CONTRAST = {
    "t1": ("T1-weighted", "T1 weighted"),
    "t1ce": ("contrast-enhanced T1-weighted", "post-contrast T1"),
    "t2": ("T2-weighted", "T2 weighted"),
    "flair": ("FLAIR", "fluid attenuated inversion recovery"),
}
_GRADE = {
    "HGG": ("high-grade glioma", "glioblastoma"),
    "LGG": ("low-grade glioma", "diffuse low-grade glioma"),
}
_TEMPLATES = (
    "Axial {contrast} MRI of the brain showing a {grade} in the {side} hemisphere.",
    "{contrast} axial MR image of the brain with a {grade} on the {side} side.",
    "Brain MRI, axial {contrast} sequence: {side} hemispheric {grade}.",
    "Axial {contrast} magnetic resonance imaging demonstrates a {grade} of the {side} hemisphere.",
)
_NORMAL = (
    "Axial {contrast} MRI of the brain without a mass.",
    "{contrast} axial MR image of the brain, no focal lesion.",
    "Brain MRI, axial {contrast} sequence: no mass.",
    "Axial {contrast} magnetic resonance imaging demonstrates a normal brain.",
)


@dataclass(frozen=True)
class SubjectFiles:
    """One subject's folder: its five files by name (t1, t1ce, t2, flair, seg)."""

    subject: str
    grade: str
    files: dict[str, Path]


def read_brats(
    root: str | Path,
    *,
    name_mapping: str | Path | None = None,
    clinical: Sequence[str | Path] | None = None,
    settings: SliceSettings = STANDARD,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Read informative axial slices of `root/{HGG,LGG}/<id>/<id>_{flair,t1,t1ce,t2,seg}.nii[.gz]`.

    Every volume is opened once. A slice without visible tumour has side "none" and a caption that
    names none; `grade` stays the subject's. On the released training data 166 of 285 subjects have
    a recorded sex, 76 of them female.

    Parameters
    ----------
    root
        The folder of the BraTS 2018 training data, which holds HGG and LGG.
    name_mapping
        The official map of BraTS ids to TCGA ids; by default `root/name_mapping.csv`.
    clinical
        TCGA's patient tables, which state sex and age; by default the two in `root` whose names end
        in `clinical_patient_gbm.txt` and `clinical_patient_lgg.txt`.
    settings
        How slices are chosen and drawn, such as the size in pixels and the field of view in mm.
    cache_dir
        Where the drawn slices are kept, one file a subject, keyed by settings, file size and time;
        in memory when None.
    progress
        Called as `progress(done, subjects)` after each subject.

    Returns
    -------
    Cohort
        One row is one (subject, slice, contrast): subject, sex, grade, contrast, slice (axial index
        from the feet), side (of the tumour in that slice, the patient's), caption, age (years or
        NaN), image. Images are float32 `[N, 1, size, size]` in [-1, 1]; row 0 is anterior, column 0
        the patient's right. Subjects without a recorded sex stay, with the reason in `notes`; a
        second scan of the same patient is in `excluded`, since it could fall on both sides of a
        split.

    Raises
    ------
    DataError
        Another layout, a missing or doubled scan, ids or tables that do not fit.
    CorruptScan
        A scan that cannot be trusted.
    """
    root = Path(root).expanduser()
    entries = find_subjects(root)
    name_mapping = root / NAME_MAPPING if name_mapping is None else name_mapping
    clinical = find_biotabs(root) if clinical is None else clinical
    table = join_sex([entry.subject for entry in entries], name_mapping, clinical)
    table = table.set_index("subject")
    folder_of = pd.Series({entry.subject: entry.grade for entry in entries})
    for one in table.index[table["grade"].notna() & (table["grade"] != folder_of)]:
        differ = f"{one} is {table.at[one, 'grade']}, its folder {folder_of[one]}"
        raise DataError(f"{name_mapping}: {differ}; move the folder")
    second = _same_patient(table)
    entries = [entry for entry in entries if entry.subject not in second]
    store = SliceStore(SubjectSlices, cache_dir)
    rows, notes = [], []
    for entry in tracked(entries, progress):
        files, make = entry.files.values(), partial(read_subject, entry, settings)
        slices = store.add(entry.subject, files, make, settings)
        rows += _rows(entry, slices, table.loc[entry.subject])
        notes += _notes(entry, slices, table.loc[entry.subject], settings)
    excluded = [
        (subject, "second scan of one patient", f"same as {first}")
        for subject, first in second.items()
    ]
    return Cohort(
        "brats",
        pd.DataFrame(rows).astype({"sex": "string", "age": float}),
        partial(_read_image, store),
        report(excluded),
        report(notes),
        strata=("sex", "grade"),
    )


def find_subjects(root: str | Path) -> list[SubjectFiles]:
    """The subjects under `root/HGG` and `root/LGG`, sorted by grade and id.

    Raises `DataError` naming the missing folder or scan, a scan present as .nii and .nii.gz, or an
    id in both grades.
    """
    root = Path(root)
    for grade in GRADES:
        if not (root / grade).is_dir():
            remedy = "give the folder that holds HGG and LGG (BraTS 2018 training data)"
            raise missing(root, f"no folder {grade}", remedy)
    found = by_name(root, {grade: folders(root / grade) for grade in GRADES})
    if not found:
        remedy = "give the folder of the training release"
        raise missing(root, "HGG and LGG hold no subject folders", remedy)
    return [
        SubjectFiles(
            subject,
            grade,
            {scan: only(folder, f"{folder.name}_{scan}.nii*", SCAN_AGAIN) for scan in SCANS},
        )
        for subject, (grade, folder) in found.items()
    ]


def read_subject(entry: SubjectFiles, settings: SliceSettings) -> SubjectSlices:
    """Read the five volumes of one subject, check that they share one grid, and draw its slices."""
    labels, affine = read_labels(entry.files["seg"])
    volumes = {}
    for contrast in CONTRASTS:
        path = entry.files[contrast]
        volumes[contrast], grid = read_volume(path)
        require_same_grid(path, volumes[contrast], grid, labels.shape, affine)
    try:
        return extract(volumes, labels, affine, settings)
    except DataError as error:
        raise CorruptScan(entry.files["t1"].parent, str(error)) from error


def read_name_mapping(path: str | Path) -> pd.DataFrame:
    """Read the official id map of the 2019 or 2020 release: columns subject (id of any year), tcga
    (or missing), grade.

    Raises `DataError` when the TCGA column or every BraTS id column is missing, or when an id
    stands twice.
    """
    rows = read_rows(path)
    years = [name for name in rows[0] if name.startswith("BraTS_") and name.endswith("_subject_ID")]
    if not years:
        remedy = f"take {NAME_MAPPING} from BraTS 2019 or 2020"
        raise missing(path, "no column BraTS_<year>_subject_ID", remedy)
    fields = {"tcga": TCGA, "grade": "Grade"}
    cells = named_cells(path, rows, fields | {year: year for year in years})
    table = pd.DataFrame(cells, dtype="string").melt(list(fields), years, value_name="subject")
    table = table.loc[~table["subject"].map(is_missing), ["subject", *fields]]
    refuse_twice(path, table["subject"])
    return table.assign(tcga=table["tcga"].where(~table["tcga"].map(is_missing)))


def find_biotabs(root: str | Path) -> list[Path]:
    """TCGA's patient tables of glioblastoma and of lower-grade glioma in the folder `root`, in this
    order.

    Their names end in `clinical_patient_gbm.txt` and `clinical_patient_lgg.txt`; TCGA's data portal
    puts `nationwidechildrens.org_` before that. Raises `DataError` unless there is exactly one of
    each.
    """
    remedy = "put the one patient table (biotab) of TCGA there"
    return [only(Path(root), f"*clinical_patient_{study}.txt", remedy) for study in ("gbm", "lgg")]


def read_biotab(path: str | Path) -> pd.DataFrame:
    """Read a TCGA biotab patient table (tabs, three header lines): columns tcga, sex ("F", "M" or
    missing), age (years).

    Age is missing (NaN) where the table has no such column or no number. Raises `DataError` on a
    missing column, other header lines, another word for a sex, or a barcode that stands twice.
    """
    rows = read_rows(path, "\t")
    fields = {"tcga": "bcr_patient_barcode", "sex": "gender"}
    fields |= {"age": AGE} if AGE in rows[0] else {}
    cells = named_cells(path, rows, fields)
    if len(cells) < 2 or any(row["sex"].lower() in SEX_CELLS for row in cells[:2]):
        raise DataError(
            f"{path}: expected three header lines (names, alternates, CDE ids); take the biotab "
            "file as it is"
        )
    table = pd.DataFrame(cells[2:], columns=["tcga", "sex", "age"], dtype="string")
    refuse_twice(path, table["tcga"])
    # biotab writes [Not Available], [Unknown], ... where it knows nothing
    known = table["sex"].where(~table["sex"].str.startswith("["), "")
    sex = [word_of(str(path), "gender", text, SEX_CELLS) for text in known]
    age = pd.to_numeric(table["age"], errors="coerce").astype(float)
    return table.assign(sex=pd.array(sex, dtype="string"), age=age)


def join_sex(
    ids: Sequence[str], name_mapping: str | Path, clinical: Sequence[str | Path]
) -> pd.DataFrame:
    """Join sex and age to each BraTS id: columns subject, tcga, grade (of the map), sex, age,
    reason (why sex is missing, else "").

    One row per id, in the order given; an id that finds no partner keeps its row. Raises
    `DataError` when no id at all is in the map (the map of another release), or a barcode stands in
    two clinical tables.
    """
    mapping, empty = read_name_mapping(name_mapping), pd.DataFrame(columns=["tcga", "sex", "age"])
    patients = pd.concat([*map(read_biotab, clinical)] or [empty], ignore_index=True)
    refuse_twice(" and ".join(str(path) for path in clinical), patients["tcga"])
    if not mapping["subject"].isin(list(ids)).any():
        what = f"holds none of the {len(ids)} subjects (such as {ids[0]})"
        raise missing(name_mapping, what, "is it of another release?")
    table = pd.DataFrame({"subject": list(ids)}).merge(mapping, "left", "subject")
    table = table.merge(patients, "left", "tcga")
    reasons = {
        "id not in the name mapping": ~table["subject"].isin(mapping["subject"]),
        "no TCGA id in the name mapping": table["tcga"].isna(),
        "TCGA id not in the clinical tables": ~table["tcga"].isin(patients["tcga"]),
        "sex not stated in the clinical tables": table["sex"].isna(),
    }
    table["reason"] = np.select(list(reasons.values()), list(reasons), "")
    return table.astype({"sex": "string", "tcga": "string", "age": float})


def caption(
    contrast: str, grade: str = "none", side: str = "none", template: int = 0, person: str = ""
) -> str:
    """The caption of one slice, in the words of radiology.

    `template` picks one of four wordings (synonyms change with it); `person`, such as "54-year-old
    woman", is put behind as "54-year-old woman." and left out when empty.
    """
    synonym = template // len(_TEMPLATES) % 2
    form = (_NORMAL if grade == "none" else _TEMPLATES)[template % len(_TEMPLATES)]
    grade_words = _GRADE.get(grade, ("", ""))[synonym]
    text = form.format(contrast=_CONTRAST[contrast][synonym], grade=grade_words, side=side)
    return f"{text} {person[:1].upper()}{person[1:]}." if person else text


def _same_patient(table: pd.DataFrame) -> dict[str, str]:
    """Subject -> the earlier subject who is the same TCGA patient."""
    known = table["tcga"].dropna()
    first = {tcga: subject for subject, tcga in known[::-1].items()}
    return {subject: first[tcga] for subject, tcga in known[known.duplicated()].items()}


def _rows(entry: SubjectFiles, slices: SubjectSlices, subject: pd.Series) -> list[dict]:
    return [
        {
            "subject": entry.subject,
            "sex": subject["sex"],
            "grade": entry.grade,
            "contrast": contrast,
            "slice": index,
            "side": side,
            "caption": caption(contrast, "none" if side == "none" else entry.grade, side),
            "age": subject["age"],
            "image": f"{entry.subject}/{contrast}/{number}",
        }
        for number, (index, side) in enumerate(zip(slices.index, slices.sides, strict=True))
        for contrast in CONTRASTS
    ]


def _read_image(store: SliceStore, key: str) -> np.ndarray:
    """`key` is "subject/contrast/number", number counting the chosen slices from 0."""
    subject, contrast, number = key.rsplit("/", 2)
    return store.read(subject, "images", int(number))[CONTRASTS.index(contrast)]


def _notes(
    entry: SubjectFiles, slices: SubjectSlices, subject: pd.Series, settings: SliceSettings
) -> list[tuple[str, str, str]]:
    count, most = len(slices.index), settings.slices_per_subject
    tcga = "" if pd.isna(subject["tcga"]) else subject["tcga"]
    unusual = affine_note(entry.files.values())
    notes = [
        (*unusual, unusual[0]),
        (subject["reason"], tcga, subject["reason"]),
        ("brain cropped", f"wider than {settings.field_of_view_mm:g} mm", slices.cropped),
        ("fewer slices", f"{count} of {most}", count < most),
    ]
    return [(entry.subject, reason, detail) for reason, detail, applies in notes if applies]
