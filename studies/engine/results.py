"""The tables that a long run leaves in `results/`: written the same way by every study, grown arm
by arm, never mixed.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from fairlib.errors import DataError
from fairlib.io import read_json, write_bytes, write_json
from studies.engine.manifest import commit, device, versions
from studies.engine.stage import alone

# of a record: digests of what the study read; records of before lack it, and are taken as they are
INPUTS = "inputs"


def write_table(path: Path, table: pd.DataFrame, decimals: int = 5) -> None:
    """CSV with numbers in `decimals`, gzipped where the name ends in .gz; the same table gives the
    same bytes.
    """
    data = table.round(decimals).to_csv(index=False).encode()
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_table(path: Path) -> pd.DataFrame:
    """A table written by `write_table`; a word such as NA stays a word."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def merged(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    """`new` (columns arm, seed) with what the table at `path` holds of other arms and seeds, if it
    is there.
    """
    if path.is_file():
        old, done = read_table(path), set(zip(new["arm"], new["seed"], strict=True))
        new = pd.concat(
            [old[[key not in done for key in zip(old["arm"], old["seed"], strict=True)]], new]
        )
    return new.sort_values(["arm", "seed"], kind="stable", ignore_index=True)


def same_study(path: Path, identity: dict) -> None:
    """Raise `DataError` when the record at `path` is there and was made by a study that differs in
    `identity`.
    """
    found = read_json(path) if path.is_file() else identity
    odd = [
        key
        for key in identity
        if found.get(key) != identity[key] and (key != INPUTS or key in found)
    ]
    if odd:
        raise DataError(
            f"{path}: these results come from another study (they differ in {odd[0]!r}); choose "
            "another --out, "
            "or delete the folder"
        )


@contextmanager
def growing(out: Path, identity: dict) -> Iterator[None]:
    """Have the folder `out` to oneself between reading its tables and writing them, so that no
    process loses another's rows.

    Raises `DataError` when it holds another study (see `same_study`). Not to be entered twice.
    """
    # beside it, so that it holds results alone
    with alone(out.resolve().parent, out.resolve().name):
        same_study(out / "study.json", identity)
        yield


def write_record(
    path: Path, identity: dict, table: pd.DataFrame, people: str = "synthetic", **more
) -> None:
    """What `table` (columns arm, seed) was made with and by: `identity`, arms and seeds, commit,
    device, versions.
    """
    runs = {arm: sorted(map(int, rows["seed"].unique())) for arm, rows in table.groupby("arm")}
    write_json(
        path,
        {
            **identity,
            "runs": runs,
            "commit": commit(),
            "device": device(),
            "packages": versions(),
            "people": people,
            **more,
        },
    )
