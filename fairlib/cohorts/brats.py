"""BraTS as it is released (2017 to 2021, and gliomas of 2023), as a cohort of captioned axial
slices, with the sex that it does not carry: the official name mapping gives the TCGA id, the TCGA
clinical tables give sex and age; or the user's own table gives them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.cohorts.cohort import Cohort, report
from fairlib.cohorts.listing import (
    FAULTY,
    Excluded,
    attempt,
    attempt_all,
    by_name,
    folders,
    listed,
    missing,
    nearest,
    only,
    refuse_all,
    require_some,
    tracked,
)
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
    number_of,
    read_rows,
    refuse_twice,
    word_of,
)
from fairlib.errors import CorruptScan, DataError, FairlibError
from fairlib.nifti import (
    Grid,
    affine_note,
    read_grid,
    read_labels,
    read_stored,
    require_one_grid,
)

Read = Callable[[Hashable], np.ndarray]
GRADES = ("HGG", "LGG")
# What releases call each scan: BraTS to 2021, from 2023 on, and TCGA's own.
SCANS = {
    "t1": ("t1", "t1n"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f"),
    "seg": ("seg",),
}
NAME_MAPPING = "name_mapping.csv"
SCAN_AGAIN = "have one .nii or .nii.gz of each scan, as the release has"
LEAVE_OUT = "skip_faulty=True leaves those subjects out and lists them in `excluded`"
TCGA, AGE = "TCGA_TCIA_subject_ID", "age_at_initial_pathologic_diagnosis"
# Of TCGA's biotab, and of the clinical.tsv of GDC's portal.
CLINICAL = {
    "tcga": ("bcr_patient_barcode", "case_submitter_id", "cases.submitter_id"),
    "sex": ("gender", "sex_at_birth", "demographic.gender", "demographic.sex_at_birth"),
    "age": (AGE, "age_at_index", "demographic.age_at_index"),
}
# Ids from 2023 on: challenge, patient, time point. Those of 2017 to 2019 end in the time point.
SINCE_2023 = re.compile(r"(BraTS-([A-Z]+)[A-Z-]*-\d+)(?:-(\d+))?", re.IGNORECASE)
TO_2019 = re.compile(r"(Brats1[789]_.+)_\d", re.IGNORECASE)
POST_TREATMENT = 100  # first time point of the scans after treatment (BraTS 2024)
NO_GLIOMA = {
    "MEN": "meningiomas",
    "MET": "metastases",
    "PED": "tumours of children, with other labels",
    "GOAT": "several kinds of tumour",
}

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
    "unknown": ("glioma", "glial tumour"),
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
    """The folder of one scan of a subject: its five files by name (t1, t1ce, t2, flair, seg).

    scan: the folder's name. subject: the same, without the time point where ids have one. grade:
    None where the folders do not tell. note: a file that is not called as the others are.
    """

    scan: str
    subject: str
    grade: str | None
    files: dict[str, Path]
    note: str = ""


@dataclass
class _Release:
    """The scans below a folder, what the tables say of each subject (its index), who is left out,
    and what is wrong with files of a scan.
    """

    root: Path
    entries: list[SubjectFiles] = field(default_factory=list)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    excluded: list[Excluded] = field(default_factory=list)
    faults: dict[str, FairlibError] = field(default_factory=dict)

    def cohort(self, rows: list[dict], read_image: Read, notes: list, skip_faulty: bool) -> Cohort:
        """The cohort of these rows. Raises the faults unless they are skipped."""
        if not skip_faulty:
            refuse_all(self.root, self.faults, LEAVE_OUT)
        excluded = [*self.excluded, *((k, FAULTY, str(error)) for k, error in self.faults.items())]
        require_some(rows, excluded, self.root, "subjects", SCAN_AGAIN)
        table, strata = pd.DataFrame(rows).astype({"sex": "string", "age": float}), ("sex", "grade")
        return Cohort("brats", table, read_image, report(excluded), report(notes), strata=strata)


def read_brats(
    root: str | Path,
    *,
    name_mapping: str | Path | None = None,
    clinical: Sequence[str | Path] | None = None,
    sex: str | Path | None = None,
    settings: SliceSettings = STANDARD,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    skip_faulty: bool = False,
) -> Cohort:
    """Read informative axial slices of `root/{HGG,LGG}/<id>/<id>_{flair,t1,t1ce,t2,seg}.nii[.gz]`
    (to 2019) or `root/<id>/...` (2020 and later; 2023 writes `<id>-{t2f,t1n,t1c,t2w,seg}`).

    Every volume is opened once. A slice without visible tumour has side "none" and a caption that
    names none; `grade` stays the subject's. On the released training data of 2018, 166 of 285
    subjects have a recorded sex, 76 of them female.

    Parameters
    ----------
    root
        The folder of the training data, which holds HGG and LGG, or the subjects' folders.
    name_mapping
        The official map of BraTS ids to TCGA ids; by default `root/name_mapping.csv`. Releases from
        2021 on do not have one, and are read without it; sex is then unknown.
    clinical
        TCGA's patient tables, which state sex and age; by default the two in `root` whose names end
        in `clinical_patient_gbm.txt` and `clinical_patient_lgg.txt`, or GDC's `clinical.tsv`.
    sex
        Your own table instead of these, with columns subject, sex (F, M, female, male or empty)
        and, if you like, age (years); a subject is named as its folder is.
    settings
        How slices are chosen and drawn, such as the size in pixels and the field of view in mm.
    cache_dir
        Where the drawn slices are kept, one file a subject, keyed by settings, file size and time;
        in memory when None.
    progress
        Called as `progress(done, scans)` after each scanned subject.
    skip_faulty
        Whether subjects with missing or broken files are left out, each listed in `excluded`. By
        default one error names them all, after everything has been read.

    Returns
    -------
    Cohort
        One row is one (subject, slice, contrast): subject, sex, grade (HGG, LGG, or missing where
        neither folder nor name mapping tells), contrast, slice (axial index from the feet), side
        (of the tumour in that slice, the patient's), caption, age (years or NaN), image. Images are
        float32 `[N, 1, size, size]` in [-1, 1]; row 0 is anterior, column 0 the patient's right.
        Several time points of one subject are one subject. Subjects without a recorded sex stay,
        with the reason in `notes`; a scan of the same patient under another id is in `excluded`,
        since it could fall on both sides of a split.

    Raises
    ------
    DataError
        Another layout or tumour, missing or doubled scans, ids or tables that do not fit.
    CorruptScan
        A scan that cannot be trusted.
    """
    release = _opened(root, name_mapping, clinical, sex)
    store = SliceStore(SubjectSlices, cache_dir)
    rows, notes = [], []
    for entry in tracked(release.entries, progress):
        make = partial(read_subject, entry, settings)
        add = partial(store.add, entry.scan, entry.files.values(), make, settings)
        if (slices := attempt(add, release.faults, entry.scan)) is not None:
            rows += _rows(entry, slices, release.table.loc[entry.subject])
            notes += _notes(entry, release.table.loc[entry.subject], slices, settings)
    return release.cohort(rows, partial(_read_image, store), notes, skip_faulty)


def survey_brats(root: str | Path, *, skip_faulty: bool = False) -> Cohort:
    """List the subjects that `read_brats` would read, by tables, names, masks and headers alone.

    One row is one scan: subject, sex, grade, age, image (the scan's folder), which cannot be
    loaded. Images damaged inside are not found. Raises as `read_brats`.
    """
    release = _opened(root, None, None, None)
    rows, notes = [], []
    for entry in release.entries:
        if attempt(partial(_check_grids, entry), release.faults, entry.scan):
            about = _about(entry, release.table.loc[entry.subject])
            rows.append(about | {"image": entry.scan})
            notes += _notes(entry, release.table.loc[entry.subject])
    return release.cohort(rows, _not_drawn, notes, skip_faulty)


def find_subjects(root: str | Path) -> list[SubjectFiles]:
    """The scans under `root/HGG` and `root/LGG`, or in `root`, sorted by grade and id.

    Raises `DataError` naming the missing folder or all missing scans, a scan present as .nii and
    .nii.gz, an id in both grades, or another tumour than a glioma before treatment.
    """
    release = _listed(Path(root).expanduser())
    refuse_all(root, release.faults)
    return release.entries


def _listed(root: Path) -> _Release:
    """The scans below `root`; folders that hold none are left out."""
    release = _Release(root)
    for scan, (grade, folder) in _folders(root, release.faults).items():
        _require_glioma(root, scan)
        if grade and not listed(folder, "*.nii*") and any(map(_is_subject, folders(folder))):
            what = "holds the folders of subjects, not a subject's scans"
            release.faults[scan] = missing(folder, what, "move them one level up")
        elif not _is_subject(folder):
            stray = (scan, "folder without scans", f"{folder}: move it away")
            release.excluded.append(stray)
        elif entry := attempt(partial(_files, folder, grade or None), release.faults, scan):
            release.entries.append(entry)
    if not release.entries:
        refuse_all(root, release.faults)
        raise missing(root, "HGG and LGG hold no subject folders", "give the training release")
    return release


def _folders(root: Path, faults: dict[str, FairlibError]) -> dict[str, tuple[str, Path]]:
    """The subjects' folders by name, with their grade ("" where subjects lie in `root`); of two
    grades one that is missing is a fault.
    """
    there = [grade for grade in GRADES if (root / grade).is_dir()]
    if not there and any(map(_is_subject, folders(root))):
        return by_name(root, {"": folders(root)})
    remedy = "give the folder that holds HGG and LGG, or the subjects' folders (BraTS 2020)"
    if not there:
        raise missing(root, "no folder HGG", remedy, "HGG", "BraTS*_*")
    for grade in set(GRADES).difference(there):
        faults[grade] = missing(root, f"no folder {grade}", remedy, grade)
    return by_name(root, {grade: folders(root / grade) for grade in there})


def _is_subject(folder: Path) -> bool:
    """Whether a folder holds scans, or is called as one that should."""
    if listed(folder, "*.nii*"):
        return True
    return folder.name.lower().startswith("brats") and not folders(folder)


def _require_glioma(root: Path, scan: str) -> None:
    match = SINCE_2023.fullmatch(scan)
    late = match and int(match[3] or 0) >= POST_TREATMENT
    treated = "gliomas after treatment (BraTS 2024), where label 4 is the resection cavity"
    kind = NO_GLIOMA.get(match[2].upper(), treated if late else "") if match else ""
    if kind:
        remedy = "give gliomas before treatment (BraTS 2017 to 2021, BraTS-GLI of 2023)"
        raise missing(root, f"{scan} is of a release of {kind}", remedy)


def _files(folder: Path, grade: str | None) -> SubjectFiles:
    """The five files of one folder. One spare mask of another name is taken for the missing one
    (BraTS 2020 has W39_1998.09.19_Segm.nii in folder 355), which `note` says.
    """
    spare, found, note = listed(folder, "*.nii*"), {}, ""
    for scan, names in SCANS.items():
        form = rf"{re.escape(folder.name)}[-_]({'|'.join(names)})\.nii(\.gz)?"
        named = [path for path in spare if re.fullmatch(form, path.name, re.I)]
        found[scan] = [path for path in named if path.is_file()]
    spare = [path for path in spare if path not in sum(found.values(), [])]
    masks = [path for path in spare if "seg" in path.name.lower() and path.is_file()]
    if not found["seg"] and len(masks) == 1:
        found["seg"], note = masks, f"the mask is read from {masks[0].name}"
    for scan, paths in found.items():
        if len(paths) > 1:
            there = f"{_called(folder, scan)} ({', '.join(path.name for path in paths)})"
            what = f"{len(paths)} of the files match {there}, expected one"
            raise missing(folder, what, SCAN_AGAIN)
    absent = [_called(folder, scan) for scan in SCANS if not found[scan]]
    if absent:
        there = ", ".join(path.name + "/" * path.is_dir() for path in spare)
        hint = f" (there is {there})" if there else nearest(folder, *absent)
        what = f"none of the files match {', '.join(absent)}, expected one{hint}"
        raise missing(folder, what, SCAN_AGAIN)
    files = {scan: paths[0] for scan, paths in found.items()}
    return SubjectFiles(folder.name, _patient(folder.name), grade, files, note)


def _called(folder: Path, scan: str) -> str:
    """The pattern of a scan's file, in the words of its release."""
    if SINCE_2023.fullmatch(folder.name):
        return f"{folder.name}-{SCANS[scan][:2][-1]}.nii*"
    return f"{folder.name}_{scan}.nii*"


def _patient(scan: str) -> str:
    """The subject of a scan: ids of several time points of one subject are one."""
    if match := SINCE_2023.fullmatch(scan):
        return match[1]
    match = TO_2019.fullmatch(scan)
    return f"{match[1]}_1" if match else scan


def _opened(
    root: str | Path,
    name_mapping: str | Path | None,
    clinical: Sequence[str | Path] | None,
    sex: str | Path | None,
) -> _Release:
    """The release in `root`, each patient once, with what the tables say."""
    root = Path(root).expanduser()
    release = _listed(root)
    scans = {entry.subject: entry.scan for entry in release.entries[::-1]}  # the first of each
    scans = dict(reversed(scans.items()))
    newer = all(re.match("BraTS(2021_|-)", scan, re.I) for scan in scans.values())
    mapping = root / NAME_MAPPING if name_mapping is None else Path(name_mapping).expanduser()
    mapped = mapping.is_file() or name_mapping is not None
    if sex is not None:
        table = _own_table(sex, list(scans))
    elif newer and not mapped:
        table = pd.DataFrame({"subject": list(scans), "sex": pd.NA, "age": np.nan})
        table["reason"] = "neither name mapping nor own table"
    else:
        clinical = find_biotabs(root) if clinical is None else clinical
        table = join_sex(list(scans.values()), mapping, clinical).assign(subject=list(scans))
    if "tcga" not in table:
        ids = read_name_mapping(mapping).set_index("subject") if mapped else pd.DataFrame()
        ids = ids.reindex(index=list(scans.values()), columns=["tcga", "grade"])
        table[["tcga", "grade"]] = ids.to_numpy(dtype=object, na_value=None)
    release.table = table = table.set_index("subject")
    for entry in release.entries:
        stated = table.at[entry.subject, "grade"]
        if entry.grade and pd.notna(stated) and stated != entry.grade:
            differ = f"{entry.scan} is {stated}, its folder {entry.grade}"
            raise DataError(f"{mapping}: {differ}; move the folder")
    second = _same_patient(table)
    release.entries = [entry for entry in release.entries if entry.subject not in second]
    why = "second scan of one patient"
    release.excluded += [(one, why, f"same as {first}") for one, first in second.items()]
    return release


def _own_table(path: str | Path, subjects: Sequence[str]) -> pd.DataFrame:
    """Sex and age of `subjects` by the user's own table, which names them or any of their scans."""
    rows = read_rows(path)
    rows[0] = [name.lower() for name in rows[0]]
    columns = [name for name in ("subject", "sex", "age") if name != "age" or name in rows[0]]
    cells = named_cells(path, rows, dict(zip(columns, columns, strict=True)))
    own = pd.DataFrame(cells, columns=["subject", "sex", "age"], dtype="string")
    refuse_twice(path, own["subject"])
    own = own.assign(subject=own["subject"].map(_patient)).drop_duplicates(["subject", "sex"])
    refuse_twice(f"{path}, of two sexes", own["subject"])
    if not own["subject"].isin(subjects).any():
        what = f"holds none of the {len(subjects)} subjects (such as {subjects[0]})"
        raise missing(path, what, "name subjects as their folders are")
    own = own.set_index("subject").reindex(subjects)
    where, words = [f"{path}: {subject}" for subject in subjects], SEX_CELLS | {"f": "F", "m": "M"}
    texts = own.fillna("")
    sex = [word_of(w, "sex", text, words) for w, text in zip(where, texts["sex"], strict=True)]
    age = [number_of(w, "age", text, 0, 120) for w, text in zip(where, texts["age"], strict=True)]
    reasons = ["subject not in your table", "sex not stated in your table"]
    reason = np.select([own["sex"].isna(), pd.isna(np.array(sex, dtype=object))], reasons, "")
    return pd.DataFrame({"subject": subjects, "sex": sex, "age": age, "reason": reason})


def _not_drawn(key: Hashable) -> np.ndarray:
    raise DataError(f"{key}: only listed, not read; use read_brats for images")


def _check_grids(entry: SubjectFiles) -> bool:
    """Check lengths and headers of the five files, the mask, and that they share one grid."""
    read: dict[str, Callable[[], Grid]] = {
        name: partial(read_grid, entry.files[name]) for name in CONTRASTS
    }
    grids = attempt_all(entry.files["seg"].parent, read | {"seg": lambda: _mask_grid(entry)})
    require_one_grid({entry.files[name]: grid for name, grid in grids.items()})
    return True


def _mask_grid(entry: SubjectFiles) -> Grid:
    labels, affine = _read_mask(entry)
    return labels.shape, affine


def _read_mask(entry: SubjectFiles) -> tuple[np.ndarray, np.ndarray]:
    """The labels of 2018, and the affine: from 2023 on, the label of enhancing tumour is 3."""
    path = entry.files["seg"]
    if not SINCE_2023.fullmatch(entry.scan):
        return read_labels(path)
    labels, affine = read_labels(path, frozenset(range(5)))
    if (labels == 4).any():
        what = "label 4 is the resection cavity of BraTS 2024 (after treatment)"
        raise CorruptScan(path, f"{what}; give gliomas before treatment")
    return np.where(labels == 3, 4, labels), affine


def read_subject(entry: SubjectFiles, settings: SliceSettings) -> SubjectSlices:
    """Read the five volumes of one subject, check that they share one grid, and draw its slices.

    Raises `CorruptScan`, or one `DataError` naming all the broken scans.
    """
    read: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        name: partial(read_stored, entry.files[name]) for name in CONTRASTS
    }
    read["seg"] = partial(_read_mask, entry)
    scans = attempt_all(entry.files["seg"].parent, read)
    require_one_grid({entry.files[name]: (one.shape, grid) for name, (one, grid) in scans.items()})
    labels, affine = scans.pop("seg")
    try:
        return extract({name: one[0] for name, one in scans.items()}, labels, affine, settings)
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
    root = Path(root)
    if not listed(root, "*clinical_patient_*.txt") and (tables := listed(root, "clinical.tsv")):
        return tables
    remedy = "put the one patient table (biotab) of TCGA there, or give your own with sex="
    return [only(root, f"*clinical_patient_{study}.txt", remedy) for study in ("gbm", "lgg")]


def read_biotab(path: str | Path) -> pd.DataFrame:
    """Read a TCGA biotab patient table (tabs, three header lines), or GDC's `clinical.tsv` (one
    header line, several rows a patient): columns tcga, sex ("F", "M" or missing), age (years).

    Age is missing (NaN) where the table has no such column or no number. Raises `DataError` on a
    missing column, other header lines, another word for a sex, or a barcode that stands twice.
    """
    rows = read_rows(path, "\t")
    fields = {name: next((one for one in names if one in rows[0]), names[0])
              for name, names in CLINICAL.items()}  # fmt: skip
    if fields["age"] not in rows[0]:
        del fields["age"]
    cells = named_cells(path, rows, fields)
    if fields["tcga"] == CLINICAL["tcga"][0]:
        if len(cells) < 2 or any(row["sex"].lower() in SEX_CELLS for row in cells[:2]):
            what = f"{path}: expected three header lines (names, alternates, CDE ids)"
            raise DataError(f"{what}; take the biotab file as it is")
        cells = cells[2:]
    else:
        cells = [dict(pairs) for pairs in dict.fromkeys(tuple(row.items()) for row in cells)]
    table = pd.DataFrame(cells, columns=["tcga", "sex", "age"], dtype="string")
    refuse_twice(path, table["tcga"])
    # [Not Available], [Unknown], ... in a biotab, '-- in GDC's table where nothing is known
    known = table["sex"].where(~table["sex"].str.startswith(("[", "'--")), "")
    known = known.where(known.str.lower() != "not reported", "")
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


def _about(entry: SubjectFiles, subject: pd.Series) -> dict:
    grade = entry.grade or (subject["grade"] if pd.notna(subject["grade"]) else None)
    sex, age = subject["sex"], subject["age"]
    return {"subject": entry.subject, "sex": sex, "grade": grade, "age": age}


def _rows(entry: SubjectFiles, slices: SubjectSlices, subject: pd.Series) -> list[dict]:
    about = _about(entry, subject)
    glioma = about["grade"] or "unknown"
    return [
        {
            "subject": entry.subject,
            "sex": about["sex"],
            "grade": about["grade"],
            "contrast": contrast,
            "slice": index,
            "side": side,
            "caption": caption(contrast, "none" if side == "none" else glioma, side),
            "age": about["age"],
            "image": f"{entry.scan}/{contrast}/{number}",
        }
        for number, (index, side) in enumerate(zip(slices.index, slices.sides, strict=True))
        for contrast in CONTRASTS
    ]


def _read_image(store: SliceStore, key: str) -> np.ndarray:
    """`key` is "subject/contrast/number", number counting the chosen slices from 0."""
    subject, contrast, number = key.rsplit("/", 2)
    return store.read(subject, "images", int(number))[CONTRASTS.index(contrast)]


def _notes(
    entry: SubjectFiles,
    subject: pd.Series,
    slices: SubjectSlices | None = None,
    settings: SliceSettings = STANDARD,
) -> list[Excluded]:
    tcga = "" if pd.isna(subject["tcga"]) else subject["tcga"]
    unusual = affine_note(entry.files.values())
    notes = [
        (*unusual, unusual[0]),
        (subject["reason"], tcga, subject["reason"]),
        ("file called otherwise", entry.note, entry.note),
    ]
    if slices is not None:
        count, most = len(slices.index), settings.slices_per_subject
        width = f"wider than {settings.field_of_view_mm:g} mm"
        notes.append(("brain cropped", width, slices.cropped))
        notes.append(("fewer slices", f"{count} of {most}", count < most))
    return [(entry.subject, reason, detail) for reason, detail, applies in notes if applies]
