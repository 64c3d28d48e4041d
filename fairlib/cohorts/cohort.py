"""A cohort: a pandas table in which one row is one image, and functions that read image and mask of
a row when they are needed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fairlib.errors import DataError, SettingsError
from fairlib.measures.intervals import wilson
from fairlib.settings import unknown_key

REPORT_COLUMNS = ("item", "reason", "detail")
Rows: TypeAlias = pd.Series | np.ndarray | Sequence[int] | Sequence[bool]


def report(rows: Sequence[tuple[str, str, str]] = ()) -> pd.DataFrame:
    """A table of what was left out or wants a word: item, reason (short, countable), detail."""
    return pd.DataFrame(list(rows), columns=list(REPORT_COLUMNS), dtype="str")


def no_prompt(row: Mapping, needed: Sequence[str] = ()) -> tuple[str, str, str]:
    """Image, reason and detail of a row without prompt: which columns of `needed` are missing."""
    unknown = [name for name in needed if pd.isna(row[name])]
    also = "also " + ", ".join(unknown[1:]) if unknown[1:] else ""
    return row["image"], f"{(unknown or ['prompt'])[0]} unknown", also


@dataclass(frozen=True, eq=False)
class Cohort:
    """Subjects, their images and what is known of them.

    Parameters
    ----------
    name
        Of the data set, and of the part.
    table
        One row an image, with at least `subject` and `image` (a key); its index is always 0..N-1.
        Further columns are the data set's (see its reader), among them `sex` ("F", "M" or missing),
        `prompt` (a text, missing where the row cannot state all of it), and `use` (the release's
        own split).
    read_image
        A key of `image` to float32 `[H, W]` or `[C, H, W]` in [-1, 1]; only `load` calls it.
    excluded, notes
        What was left out, and what was kept but needs a remark: columns item, reason, detail.
    read_mask
        A key of `image` to uint8 `[C, H, W]`, where the data set has masks; only `load_masks` calls
        it.
    why_no_prompt
        A row without prompt to (item, reason, detail) for `excluded`.
    strata
        Columns by which `split` stratifies by default.
    not_stated
        A column that the data set does not have, to what to do instead.

    Raises
    ------
    DataError
        A missing column, another word for a sex, or an image named twice.
    """

    name: str
    table: pd.DataFrame
    read_image: Callable[[Hashable], np.ndarray] = field(repr=False)
    excluded: pd.DataFrame = field(default_factory=report, repr=False)
    notes: pd.DataFrame = field(default_factory=report, repr=False)
    read_mask: Callable[[Hashable], np.ndarray] | None = field(default=None, repr=False)
    why_no_prompt: Callable[[Mapping], tuple[str, str, str]] = field(default=no_prompt, repr=False)
    strata: tuple[str, ...] = ("sex",)
    not_stated: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        table = self.table.reset_index(drop=True)
        object.__setattr__(self, "table", table)
        _require(self, ["subject", "image"])
        if "sex" in table:
            table["sex"] = table["sex"].astype("string")
            if other := set(table["sex"].dropna()) - {"F", "M"}:
                words = f"sex is {sorted(other)}; write 'F', 'M' or leave it missing"
                raise DataError(f"{self.name}: {words}")
        if table["subject"].isna().any():
            why = "a split by subject needs one for each image"
            raise DataError(f"{self.name}: a row has no subject; {why}")
        twice = table.loc[table["image"].duplicated(), "image"]
        if len(twice):
            image = f"image {twice.iloc[0]!r}"
            raise DataError(f"{self.name}: {image} is listed twice; keep one row per image")

    def __len__(self) -> int:
        return len(self.table)

    def select(self, rows: Rows) -> Cohort:
        """The cohort of these rows: a boolean mask (missing counts as False) or a list of
        positions.
        """
        return replace(self, table=self.table.iloc[_positions(rows, len(self))])

    def load(self, rows: Rows | None = None) -> Tensor:
        """Read the images of these rows (all by default): float32 [N, C, H, W] in [-1, 1]; C is 1
        where images are grey.
        """
        stack = _stack(self, self.read_image, rows).astype(np.float32, copy=False)
        stack = stack[:, None] if stack.ndim == 3 else stack
        low, high = float(stack.min()), float(stack.max())
        if not (low >= -1 and high <= 1):
            limits = f"from {low} to {high}; the reader must return [-1, 1]"
            raise DataError(f"{self.name}: image values reach {limits}")
        return torch.from_numpy(stack)

    def load_masks(self, rows: Rows | None = None) -> Tensor:
        """Read the masks of these rows (all by default): uint8 [N, C, H, W].

        Raises `DataError` where the data set has none.
        """
        if self.read_mask is None:
            raise DataError(f"{self.name}: has no masks; use load() for the images")
        return torch.from_numpy(_stack(self, self.read_mask, rows))

    def labels(self) -> Tensor:
        """Sex as int64 [N], 1 = female, 0 = male; `DataError` if any is missing."""
        _require(self, ["sex"])
        if missing := int(self.table["sex"].isna().sum()):
            rows = f"{missing} of {len(self)} rows have no sex"
            raise DataError(f"{self.name}: {rows}; call with_known_sex() first")
        return torch.from_numpy((self.table["sex"] == "F").to_numpy(dtype=np.int64))

    def subjects(self) -> list[str]:
        """The subject ids, each once, sorted."""
        return sorted(self.table["subject"].unique())

    def by_subject(self, columns: Sequence[str] = ("sex",)) -> pd.DataFrame:
        """One row per subject, sorted: `columns` and the number of images.

        Raises `DataError` if a subject has two values.
        """
        columns = list(columns)
        _require(self, columns)
        subjects = self.table[["subject", *columns]].drop_duplicates()
        _require_one_row(self, subjects, f"several values of {columns}; correct the table")
        counts = self.table["subject"].value_counts().rename("images")
        table = subjects.merge(counts, left_on="subject", right_index=True)
        return table.sort_values("subject", ignore_index=True)

    def with_known_sex(self) -> Cohort:
        """Only the subjects whose sex is known; the others are listed in `excluded`."""
        _require(self, ["sex"])
        unknown = self.table["sex"].isna()
        why = dict(zip(self.notes["item"], self.notes["reason"], strict=True))
        ids = sorted(self.table.loc[unknown, "subject"].unique())
        return _without(self, unknown, [(one, "sex unknown", why.get(one, "")) for one in ids])

    def with_prompt(self) -> Cohort:
        """Only the rows that have a prompt; the others are listed in `excluded`, with what is
        unknown of them.
        """
        _require(self, ["prompt"])
        lacking = self.table["prompt"].isna()
        rows = self.table[lacking].to_dict("records")
        return _without(self, lacking, list(dict.fromkeys(map(self.why_no_prompt, rows))))

    def parts(self) -> dict[str, Cohort]:
        """The release's own split: one cohort for each value of `use`.

        Raises `DataError` if a subject is in two, or none is given.
        """
        if "use" not in self.table:
            instead = "use split(fractions, seed, stratify)"
            raise DataError(f"{self.name}: the release gives no split; {instead}")
        uses = self.table[["subject", "use"]].drop_duplicates()
        _require_one_row(self, uses, "two parts; correct the table, or use split()", "is in")
        return _parts(self, self.table["use"], self.table["use"].unique())

    def split(
        self, fractions: dict[str, float], seed: int, stratify: Sequence[str] | None = None
    ) -> dict[str, Cohort]:
        """Split into disjoint cohorts by subject; the same for the same seed whatever the order of
        rows.

        Parameters
        ----------
        fractions
            Part to its fraction, above 0; 1 in all.
        seed
            Of the order of subjects; see `split_subjects`.
        stratify
            Columns within whose values every part is within one subject of its fraction; by default
            `strata`.

        Returns
        -------
        dict
            Part to its cohort.

        Raises
        ------
        SettingsError
            Fractions that are not positive or do not sum to 1.
        DataError
            A stratum (named) with too few subjects to give every part at least one.
        """
        stratify = list(self.strata if stratify is None else stratify)
        part = split_subjects(self.by_subject(stratify), fractions, seed, stratify)
        return _parts(self, self.table["subject"].map(part), fractions)

    def shares(self, by: str | Sequence[str] | None = None, unit: str = "subject") -> pd.DataFrame:
        """Count the female share with its 95 % Wilson interval.

        Images of one subject are not independent, so the interval for images uses Kish's effective
        number of subjects, (sum w)^2 / sum w^2 with w the images of each.

        Parameters
        ----------
        by
            Columns that define groups; None counts all rows as one.
        unit
            What is counted: "subject" or "image".

        Returns
        -------
        DataFrame
            One row a group: the columns of `by`, then female, n (known sex, in `unit`), unknown,
            share, low and high (in [0, 1]; NaN where n is 0).

        Raises
        ------
        DataError
            A missing column, or another unit.
        """
        by = [] if by is None else [by] if isinstance(by, str) else list(by)
        _require(self, ["sex", *by])
        if unit not in ("subject", "image"):
            raise DataError(f"{self.name}: unit is {unit!r}; count in 'subject' or 'image'")
        table = self.table
        table = table.drop_duplicates(["subject", "sex", *by]) if unit == "subject" else table
        groups = table.groupby(by, dropna=False, sort=True) if by else [((), table)]
        cells = [dict(zip(by, values, strict=True)) | _share(rows) for values, rows in groups]
        return pd.DataFrame(cells)


def prompted(
    name: str,
    table: pd.DataFrame,
    needed: Iterable[str],
    prompt_of: Callable[[Mapping], str],
    read_image: Callable[[Hashable], np.ndarray],
    excluded: Sequence[tuple[str, str, str]],
    notes: Sequence[tuple[str, str, str]] = (),
) -> Cohort:
    """Make a cohort whose column `prompt` is `prompt_of(row)` where every column `needed` is known,
    else missing.
    """
    columns = list(needed)
    known, rows = table[columns].notna().all(axis=1), table[columns].to_dict("records")
    prompts = [prompt_of(row) if whole else pd.NA for row, whole in zip(rows, known, strict=True)]
    table = table.assign(prompt=pd.array(prompts, dtype="string"))
    why = partial(no_prompt, needed=columns)
    return Cohort(name, table, read_image, report(excluded), report(notes), why_no_prompt=why)


def split_subjects(
    subjects: pd.DataFrame, fractions: dict[str, float], seed: int, stratify: Sequence[str]
) -> dict[str, str]:
    """Assign each subject to a part, stratified; subjects are split, never slices.

    Subjects are ordered by a hash of seed and id, so neither the order of rows nor the other
    subjects matter to it.

    Parameters
    ----------
    subjects
        One row a subject: columns `subject` and those of `stratify`.
    fractions
        Part to its fraction, above 0; 1 in all.
    seed
        Of the hash.
    stratify
        Columns: in each combination of their values every part is within one subject of its
        fraction.

    Returns
    -------
    dict
        Subject to part.

    Raises
    ------
    SettingsError
        Fractions that are not positive or do not sum to 1.
    DataError
        A stratum (named) with too few subjects to give every part at least one.
    """
    total = sum(fractions.values())
    if not fractions or min(fractions.values()) <= 0 or abs(total - 1) > 1e-6:
        what = f"split fractions {fractions} sum to {total:g}"
        raise SettingsError(f"{what}; give each part more than 0 and 1 in all")
    keys = subjects[list(stratify)].astype("string").fillna("unknown")
    # subjects so far minus quota: a tie goes to the part that is most behind
    ahead = dict.fromkeys(fractions, 0.0)
    part: dict[str, str] = {}
    by = [keys[name] for name in stratify] or (lambda _: "all")
    for stratum, rows in subjects.groupby(by, sort=True):
        ids = sorted(
            rows["subject"], key=lambda one: hashlib.sha256(f"{seed}:{one}".encode()).digest()
        )
        counts = allot(len(ids), fractions, ahead)
        if counts is None:
            values = stratum if stratify else ()
            names = [f"{key}={value}" for key, value in zip(stratify, values, strict=True)]
            raise DataError(
                f"{', '.join(names) or 'the cohort'}: {len(ids)} subject(s) ({', '.join(ids[:5])}) "
                f"cannot give each of {list(fractions)} one; use fewer parts, stratify by less, or "
                "leave the subgroup out (with_known_sex() drops those without a sex)"
            )
        for name, count in counts.items():
            ahead[name] += count - fractions[name] * len(ids)
            part.update(dict.fromkeys(ids[:count], name))
            ids = ids[count:]
    return part


def allot(n: int, fractions: dict[str, float], ahead: dict[str, float]) -> dict[str, int] | None:
    """Whole numbers that sum to `n`, each at least 1 and within one of its fraction of `n`; None
    when there are none.

    Largest remainder; ties go to the part least `ahead`. A part left with nothing takes one from
    the part most over.
    """
    quota = {name: fraction * n for name, fraction in fractions.items()}
    counts = {name: math.floor(value + 1e-9) for name, value in quota.items()}
    need = sorted(
        quota, key=lambda name: (round(counts[name] - quota[name], 9), round(ahead[name], 9))
    )
    for name in need[: n - sum(counts.values())]:
        counts[name] += 1
    for name in [name for name in counts if counts[name] == 0]:
        spare = {k: count - quota[k] if count > 1 else -math.inf for k, count in counts.items()}
        giver = max(spare, key=spare.__getitem__)
        if counts[giver] < 2 or quota[giver] - (counts[giver] - 1) > 1 + 1e-9:
            return None
        counts[giver] -= 1
        counts[name] = 1
    return counts


def _share(rows: pd.DataFrame) -> dict[str, float]:
    known = rows[rows["sex"].notna()]
    female, n = int((known["sex"] == "F").sum()), len(known)
    weights = known["subject"].value_counts().to_numpy(dtype=float)
    effective = weights.sum() ** 2 / (weights**2).sum() if n else 0
    share = female / n if n else math.nan
    low, high = map(float, wilson(share * effective, effective)) if n else (math.nan, math.nan)
    counts = {"female": female, "n": n, "unknown": len(rows) - n}
    return counts | {"share": share, "low": low, "high": high}


def _require(cohort: Cohort, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in cohort.table:
            near = unknown_key(name, list(cohort.table.columns), "the table")
            raise DataError(f"{cohort.name}: has no {name}; {cohort.not_stated.get(name, near)}")


def _require_one_row(cohort: Cohort, rows: pd.DataFrame, what: str, verb: str = "has") -> None:
    twice = rows.loc[rows["subject"].duplicated(), "subject"]
    if len(twice):
        raise DataError(f"{cohort.name}: subject {twice.iloc[0]!r} {verb} {what}")


def _without(cohort: Cohort, gone: pd.Series, why: Sequence[tuple[str, str, str]]) -> Cohort:
    excluded = pd.concat([cohort.excluded, report(why)], ignore_index=True)
    return replace(cohort.select(~gone), excluded=excluded)


def _parts(cohort: Cohort, part: pd.Series, names: Iterable[str]) -> dict[str, Cohort]:
    chosen = {name: cohort.select(part == name) for name in names}
    return {name: replace(one, name=f"{cohort.name}/{name}") for name, one in chosen.items()}


def _positions(rows: Rows, n: int) -> np.ndarray:
    if isinstance(rows, pd.Series) and pd.api.types.is_bool_dtype(rows):
        rows = rows.to_numpy(dtype=bool, na_value=False)
    rows = np.asarray(rows) if len(rows) else np.zeros(0, dtype=int)
    if rows.dtype == bool:
        if len(rows) != n:
            sizes = f"{len(rows)} entries, the cohort {n} rows"
            raise DataError(f"the mask has {sizes}; make it from this cohort's table")
        return np.flatnonzero(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not np.isin(rows, np.arange(n)).all():
        raise DataError(f"rows must be a boolean mask or positions from 0 to {n - 1}")
    return rows


def _stack(cohort: Cohort, read: Callable[[Hashable], np.ndarray], rows: Rows | None) -> np.ndarray:
    """What `read` returns of these rows, in one array."""
    chosen = np.arange(len(cohort)) if rows is None else _positions(rows, len(cohort))
    if not len(chosen):
        raise DataError(f"{cohort.name}: no rows to load; choose at least one")
    arrays = [read(key) for key in cohort.table["image"].iloc[chosen]]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        several = f"images of several shapes {sorted(shapes)}"
        raise DataError(f"{cohort.name}: {several}; read the cohort with one size")
    return np.stack(arrays)
