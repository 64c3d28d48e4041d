"""A cohort of hearts: a `Cohort` whose images come with masks, prompts and reasons for who has no
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fairlib.cohorts.cardiac import bmi_class, body_mass_index, decade, prompt_of, stack
from fairlib.cohorts.cardiac_slices import CardiacSettings, HeartSlices
from fairlib.cohorts.nifti_affine import scale_note
from fairlib.cohorts.slice_cache import cache_path
from fairlib.cohorts.table import Cohort, _positions, report
from fairlib.errors import DataError, WeightsError
from fairlib.io import read_tensors, write_tensors

FORMAT = 2  # of the cached slices; raise it when they are read or drawn otherwise
NEEDED = ("sex", "age", "bmi", "diagnosis")  # for a prompt
COLUMNS = (
    "subject",
    "sex",
    "age",
    "height",
    "weight",
    "bmi",
    "diagnosis",
    "pathology",
    "centre",
    "vendor",
    "part",
    "slice",
    "decade",
    "bmi_class",
    "prompt",
    "image",
)


@dataclass(frozen=True, eq=False)
class HeartCohort(Cohort):
    """One row is one slice position of one subject, in end-diastole and end-systole.

    Columns: subject, sex, age (years), height (cm), weight (kg), bmi, diagnosis ("healthy", "heart
    failure" or missing), pathology (the raw code), centre, vendor, part, slice, decade, bmi_class,
    prompt (missing where one of sex, age, bmi, diagnosis is), image. reader: key -> float32 [2, H,
    W] (ED, ES); masks: key -> uint8 [2, H, W].
    """

    masks: Callable[[Hashable], np.ndarray] = field(default=None, repr=False)

    def load(self, rows=None) -> torch.Tensor:
        """Images of these rows (all by default): float32 [N, 3, H, W] (ED, ES, ED) in [-1, 1]."""
        return stack(torch.from_numpy(np.stack([self.reader(key) for key in self._keys(rows)])))

    def load_masks(self, rows=None) -> torch.Tensor:
        """Masks of these rows: uint8 [N, 2, H, W] (ED, ES); 0 background, 1 LV, 2 MYO, 3 RV."""
        return torch.from_numpy(np.stack([self.masks(key) for key in self._keys(rows)]))

    def with_prompt(self) -> HeartCohort:
        """Only the subjects whose sex, age, body-mass index and diagnosis are known; the others are
        listed in `excluded`.
        """
        lacking = self.table["prompt"].isna()
        people = self.table[lacking].drop_duplicates("subject")
        lost = report([(row["subject"], *_why(row)) for _, row in people.iterrows()])
        return replace(
            self.select(~lacking), excluded=pd.concat([self.excluded, lost], ignore_index=True)
        )

    def _keys(self, rows) -> pd.Series:
        chosen = np.arange(len(self)) if rows is None else _positions(rows, len(self))
        if not len(chosen):
            raise DataError(f"{self.name}: no rows to load; choose at least one")
        return self.table["image"].iloc[chosen]


def person_row(person: Mapping, diagnoses: Mapping[str, str | None], where: str) -> dict:
    """The attributes of one subject, completed: bmi, diagnosis, decade, bmi_class, prompt; missing
    stays missing.

    Raises `DataError` on a pathology code that `diagnoses` does not know (None there means
    "neither").
    """
    code = person["pathology"]
    if code is not None and code not in diagnoses:
        raise DataError(
            f"{where}: pathology {code!r} has no mapping (known: {sorted(diagnoses)}); add it to "
            "`diagnoses`, "
            "with None for neither healthy nor heart failure"
        )
    try:
        return _completed({**person, "diagnosis": None if code is None else diagnoses[code]})
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _completed(row: dict) -> dict:
    known = not (pd.isna(row["height"]) or pd.isna(row["weight"]))
    row["bmi"] = body_mass_index(row["height"], row["weight"]) if known else np.nan
    row["decade"] = None if pd.isna(row["age"]) else decade(row["age"])
    row["bmi_class"] = bmi_class(row["bmi"]) if known else None
    return {**row, "prompt": None if any(pd.isna(row[name]) for name in NEEDED) else prompt_of(row)}


def slice_rows(person: Mapping, slices: HeartSlices) -> list[dict]:
    """One row for each slice of a subject: its attributes, the slice's number and the key of its
    picture.
    """
    return [
        {**person, "slice": index, "image": f"{person['subject']}/{number}"}
        for number, index in enumerate(slices.index)
    ]


def heart_notes(
    kept: Mapping[str, HeartSlices], files: Mapping[str, Iterable[Path]], settings: CardiacSettings
) -> pd.DataFrame:
    """A report of the subjects whose segmentation is wider than the picture, and of those whose
    scans' voxel size (`files`) comes from pixdim, because the sform states another (see
    `nifti_affine.read_affine`).
    """
    wide = [
        (subject, "heart cropped", f"wider than {settings.field_of_view_mm:g} mm")
        for subject, slices in kept.items()
        if slices.cropped
    ]
    scales = {subject: scale_note(files[subject]) for subject in kept}
    return report(
        wide
        + [(subject, "voxel size from pixdim", note) for subject, note in scales.items() if note]
    )


def heart_table(rows: list[dict]) -> pd.DataFrame:
    """The cohort's table, with its column types, from rows that have every one of its columns."""
    numbers = ("age", "height", "weight", "bmi", "slice")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(
        {
            name: float if name in numbers[:4] else int if name == "slice" else "string"
            for name in COLUMNS
        }
    )


@dataclass
class HeartStore:
    """Holds the slices of many subjects, on disk (one safetensors file a subject) or in memory when
    `folder` is None.
    """

    folder: Path | None
    settings: CardiacSettings
    _kept: dict[str, Path | HeartSlices] = field(default_factory=dict, repr=False)

    def add(
        self, subject: str, files: Iterable[Path], make: Callable[[], HeartSlices], key=()
    ) -> HeartSlices:
        """The slices of `subject`, from the cache (named by files, settings and `key`) or, when it
        has none, from `make()`.
        """
        if self.folder is None:
            self._kept[subject] = made = make()
            return made
        self._kept[subject] = path = cache_path(
            self.folder, subject, files, (FORMAT, self.settings, key)
        )
        return _load(path) or _save(path, make())

    def images(self, key: str) -> np.ndarray:
        """float32 [2, size, size] of the key "subject/number", number counting the chosen slices
        from 0.
        """
        return self._slices(key).images[int(key.rsplit("/", 1)[1])]

    def masks(self, key: str) -> np.ndarray:
        """uint8 [2, size, size] of a key."""
        return self._slices(key).masks[int(key.rsplit("/", 1)[1])]

    def _slices(self, key: str) -> HeartSlices:
        kept = self._kept[key.rsplit("/", 1)[0]]
        found = _load(kept) if isinstance(kept, Path) else kept
        if found is None:
            raise DataError(f"{kept}: cached slices are gone or broken; read the cohort again")
        return found


def _why(row: pd.Series) -> tuple[str, str]:
    if pd.isna(row["bmi"]):
        return "body-mass index unknown", " and ".join(
            name for name in ("height", "weight") if pd.isna(row[name])
        ) + " missing"
    for name in ("sex", "age"):
        if pd.isna(row[name]):
            return f"{name} unknown", ""
    return "neither healthy nor heart failure", "" if pd.isna(
        row["pathology"]
    ) else f"pathology {row['pathology']}"


def _save(path: Path, slices: HeartSlices) -> HeartSlices:
    write_tensors(
        path,
        {
            "images": torch.from_numpy(slices.images),
            "masks": torch.from_numpy(slices.masks),
            "index": torch.tensor(slices.index),
            "order": torch.tensor(slices.order),
            "cropped": torch.tensor(slices.cropped),
        },
    )
    return slices


def _load(path: Path) -> HeartSlices | None:
    if not path.exists():
        return None
    try:
        kept = read_tensors(path)
        return HeartSlices(
            kept["images"].numpy(),
            kept["masks"].numpy(),
            tuple(kept["index"].tolist()),
            bool(kept["cropped"]),
            tuple(kept["order"].tolist()),
        )
    except (WeightsError, KeyError):  # a broken cache is no cache
        return None
