"""A cohort whose rows have a prompt each, and reasons for those that have none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from fairlib.cohorts.table import Cohort, report
from fairlib.errors import DataError


@dataclass(frozen=True, eq=False)
class PromptCohort(Cohort):
    """One row is one image, with the column `prompt`: missing where one of the columns `needed` is.

    `use`, where the release gives a split, names the part of each row.
    """

    needed: tuple[str, ...] = ()

    def with_prompt(self) -> PromptCohort:
        """Only the rows that have a prompt; the others are listed in `excluded`, by image, with
        what is unknown of them.
        """
        lacking = self.table["prompt"].isna()
        gone = self.table.loc[lacking, ["image", *self.needed]]
        unknown = [
            [name for name in self.needed if pd.isna(row[name])] for _, row in gone.iterrows()
        ]
        lost = report(
            [
                (image, f"{names[0]} unknown", "also " + ", ".join(names[1:]) if names[1:] else "")
                for image, names in zip(gone["image"], unknown, strict=True)
            ]
        )
        return replace(
            self.select(~lacking), excluded=pd.concat([self.excluded, lost], ignore_index=True)
        )

    def parts(self) -> dict[str, PromptCohort]:
        """The release's own split: one cohort for each value of `use`. `DataError` if a subject is
        in two, or none is given.
        """
        if "use" not in self.table:
            raise DataError(
                f"{self.name}: the release gives no split; use split(fractions, seed, stratify)"
            )
        subjects = self.table[["subject", "use"]].drop_duplicates()
        twice = subjects.loc[subjects["subject"].duplicated(), "subject"]
        if len(twice):
            raise DataError(
                f"{self.name}: subject {twice.iloc[0]!r} is in two parts; correct the table, or "
                "use split()"
            )
        return {
            use: replace(self.select(self.table["use"] == use), name=f"{self.name}/{use}")
            for use in self.table["use"].unique()
        }


def with_prompts(
    table: pd.DataFrame, needed: Sequence[str], prompt_of: Callable[[Mapping], str]
) -> pd.DataFrame:
    """The table with a column `prompt` (string): `prompt_of(row)` where every column `needed` is
    known, else missing.
    """
    known = table[list(needed)].notna().all(axis=1)
    rows = table[list(needed)].to_dict("records")
    prompts = [prompt_of(row) if whole else pd.NA for row, whole in zip(rows, known, strict=True)]
    return table.assign(prompt=pd.array(prompts, dtype="string"))
