"""A cohort: a pandas table in which one row is one image, and a lazy reader of those images."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
import pandas as pd
import torch

from fairlib.cohorts.splitting import split_subjects
from fairlib.errors import DataError
from fairlib.settings import unknown_key

REPORT_COLUMNS = ("item", "reason", "detail")


def report(rows: Sequence[tuple[str, str, str]] = ()) -> pd.DataFrame:
    """A table of what was left out or wants a word: item, reason (short, countable), detail."""
    return pd.DataFrame(list(rows), columns=list(REPORT_COLUMNS), dtype="str")


@dataclass(frozen=True, eq=False)
class Cohort:
    """Who is in the data.

    table: one row per image, with at least `subject`, `sex` ("F", "M" or missing) and `image` (the
    reader's key); brain cohorts add grade, contrast, slice, side, caption, age (years). Its index
    is always 0..N-1.
    reader: key -> float32 [H, W] in [-1, 1] (brains: row 0 anterior, column 0 the patient's right),
    or [3, H, W] where the pictures have colours; only `load` reads.
    excluded: what was left out; notes: what was kept but wants a word (columns item, reason,
    detail). Raises `DataError` on a missing column, another word for a sex, or an image named
    twice.
    """

    name: str
    table: pd.DataFrame
    reader: Callable[[Hashable], np.ndarray] = field(repr=False)
    excluded: pd.DataFrame = field(default_factory=report, repr=False)
    notes: pd.DataFrame = field(default_factory=report, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "table", _checked(self.name, self.table))

    def __len__(self) -> int:
        return len(self.table)

    def select(self, rows) -> Cohort:
        """The cohort of these rows: a boolean mask (missing counts as False) or a list of
        positions.
        """
        return replace(self, table=self.table.iloc[_positions(rows, len(self))])

    def load(self, rows=None) -> torch.Tensor:
        """Images of these rows (all by default): float32 [N, 1, H, W] in [-1, 1], [N, 3, H, W] in
        colour.
        """
        chosen = np.arange(len(self)) if rows is None else _positions(rows, len(self))
        if not len(chosen):
            raise DataError(f"{self.name}: no rows to load; choose at least one")
        return _stack(self.name, [self.reader(key) for key in self.table["image"].iloc[chosen]])

    def labels(self) -> torch.Tensor:
        """Sex as int64 [N], 1 = female, 0 = male; `DataError` if any is missing."""
        missing = int(self.table["sex"].isna().sum())
        if missing:
            raise DataError(
                f"{self.name}: {missing} of {len(self)} rows have no sex; call with_known_sex() "
                "first"
            )
        return torch.from_numpy((self.table["sex"] == "F").to_numpy(dtype=np.int64))

    def subjects(self) -> list[str]:
        """The subject ids, each once, sorted."""
        return sorted(self.table["subject"].unique())

    def by_subject(self, columns: Sequence[str] = ("sex",)) -> pd.DataFrame:
        """One row per subject, sorted: `columns` and the number of images. `DataError` if a subject
        has two values.
        """
        columns = list(columns)
        _require(self.name, self.table, columns)
        people = self.table[["subject", *columns]].drop_duplicates()
        twice = people.loc[people["subject"].duplicated(), "subject"]
        if len(twice):
            raise DataError(
                f"{self.name}: subject {twice.iloc[0]!r} has several values of {columns}; correct "
                "the table"
            )
        counts = self.table["subject"].value_counts().rename("images")
        return people.merge(counts, left_on="subject", right_index=True).sort_values(
            "subject", ignore_index=True
        )

    def with_known_sex(self) -> Cohort:
        """Only the subjects whose sex is known; the others are listed in `excluded`."""
        unknown = self.table["sex"].isna()
        ids = sorted(self.table.loc[unknown, "subject"].unique())
        why = dict(zip(self.notes["item"], self.notes["reason"], strict=True))
        lost = report([(subject, "sex unknown", why.get(subject, "")) for subject in ids])
        return replace(
            self.select(~unknown), excluded=pd.concat([self.excluded, lost], ignore_index=True)
        )

    def split(
        self, fractions: dict[str, float], seed: int, stratify: Sequence[str] = ("sex", "grade")
    ) -> dict[str, Cohort]:
        """Disjoint cohorts by subject, stratified: in each stratum every part is within one subject
        of its fraction.

        The same for the same seed whatever the order of rows. Raises `SettingsError` when the
        fractions do not sum to one, `DataError` naming the stratum when it holds too few subjects
        to give every part at least one.
        """
        part = split_subjects(self.by_subject(stratify), fractions, seed, list(stratify))
        of_row = self.table["subject"].map(part)
        return {
            name: replace(self.select(of_row == name), name=f"{self.name}/{name}")
            for name in fractions
        }

    def shares(self, by: str | Sequence[str] | None = None, unit: str = "subject") -> pd.DataFrame:
        """Female share with a 95 % Wilson interval, one row per group of `by` (one row in all when
        None).

        Columns: those of `by`, then female, n (known sex, in `unit` "subject" or "image"), unknown,
        share, low, high. Images of one subject are not independent, so the interval for images uses
        Kish's effective number of subjects, (sum w)^2 / sum w^2 with w the images of each.
        """
        by = [] if by is None else [by] if isinstance(by, str) else list(by)
        _require(self.name, self.table, by)
        if unit not in ("subject", "image"):
            raise DataError(f"{self.name}: unit is {unit!r}; count in 'subject' or 'image'")
        table = (
            self.table.drop_duplicates(["subject", "sex", *by]) if unit == "subject" else self.table
        )
        if not by:
            return pd.DataFrame([_share(table)])
        return pd.DataFrame(
            [
                {**dict(zip(by, values, strict=True)), **_share(group)}
                for values, group in table.groupby(by, dropna=False, sort=True)
            ]
        )


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (nan, nan) when n is 0. Source: Wilson, JASA
    1927.
    """
    if n <= 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(rows: pd.DataFrame) -> dict[str, float]:
    known = rows[rows["sex"].notna()]
    female, n = int((known["sex"] == "F").sum()), len(known)
    weights = known["subject"].value_counts().to_numpy(dtype=float)
    effective = weights.sum() ** 2 / (weights**2).sum() if n else 0
    share = female / n if n else math.nan
    low, high = wilson(share * effective, effective)
    return {
        "female": female,
        "n": n,
        "unknown": len(rows) - n,
        "share": share,
        "low": low,
        "high": high,
    }


def _checked(name: str, table: pd.DataFrame) -> pd.DataFrame:
    _require(name, table, ["subject", "sex", "image"])
    table = table.reset_index(drop=True)
    table["sex"] = table["sex"].astype("string")
    other = set(table["sex"].dropna()) - {"F", "M"}
    if other:
        raise DataError(f"{name}: sex is {sorted(other)}; write 'F', 'M' or leave it missing")
    if table["subject"].isna().any():
        raise DataError(
            f"{name}: a row has no subject; a split by subject needs one for each image"
        )
    twice = table.loc[table["image"].duplicated(), "image"]
    if len(twice):
        raise DataError(f"{name}: image {twice.iloc[0]!r} is listed twice; keep one row per image")
    return table


def _require(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in table:
            raise DataError(f"{name}: {unknown_key(column, list(table.columns), 'the table')}")


def _positions(rows, n: int) -> np.ndarray:
    if isinstance(rows, pd.Series) and pd.api.types.is_bool_dtype(rows):
        rows = rows.to_numpy(dtype=bool, na_value=False)
    rows = np.asarray(rows) if len(rows) else np.zeros(0, dtype=int)
    if rows.dtype == bool:
        if len(rows) != n:
            raise DataError(
                f"the mask has {len(rows)} entries, the cohort {n} rows; make it from this "
                "cohort's table"
            )
        return np.flatnonzero(rows)
    if (
        rows.ndim != 1
        or rows.dtype.kind not in "iu"
        or (len(rows) and not (rows.min() >= 0 and rows.max() < n))
    ):
        raise DataError(f"rows must be a boolean mask or positions from 0 to {n - 1}")
    return rows


def _stack(name: str, images: list[np.ndarray]) -> torch.Tensor:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DataError(
            f"{name}: images of several shapes {sorted(shapes)}; read the cohort with one size"
        )
    stack = torch.from_numpy(np.stack(images).astype(np.float32, copy=False))
    stack = stack[:, None] if stack.ndim == 3 else stack
    low, high = float(stack.min()), float(stack.max())
    if not (low >= -1 and high <= 1):
        raise DataError(
            f"{name}: image values reach from {low} to {high}; the reader must return [-1, 1]"
        )
    return stack
