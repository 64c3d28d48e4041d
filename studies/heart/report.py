"""The bounds of the heart study: each figure with its interval, its bound, and whether it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.io import read_json
from fairlib.measures.intervals import Interval
from studies.engine.bounds import COLUMNS, verdict
from studies.engine.places import repository
from studies.engine.results import read_table
from studies.heart.control import as_interval, lowest_dice
from studies.heart.downstream import best_synthetic
from studies.heart.settings import WAYS

DICE_LEAST, DICE_LOSS, RECOVERED = 0.85, -0.05, 0.9


def heart_results_folder(name: str = "heart") -> Path:
    """Where a long run of the heart study lies, by `HeartStudy.name`; without one the main
    study's.
    """
    return repository() / "results" / name


def load_heart_results(folder: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """The tables that `python -m studies heart` wrote.

    Raises `DataError` when they are not there.
    """
    folder = Path(folder or heart_results_folder())
    if not (folder / "margins.csv.gz").is_file() or not (folder / "differences.csv").is_file():
        raise DataError(
            f"{folder}: no results here (margins.csv.gz or differences.csv is missing); make them "
            "with "
            "`python -m studies heart`"
        )
    return _tables(folder)


def load_shared_results() -> dict | None:
    """The tables of the small hospital (`python -m studies heart --people N`) and its record
    `study`; None where not made.
    """
    folder = heart_results_folder("heart-shared")
    return _with_record(folder) if (folder / "differences.csv").is_file() else None


def load_guidance_results() -> dict[float, dict]:
    """The tables and the record `study` of every guidance scale beside the paper's (`python -m
    fairlib heart --guidance S`) that was run to its end, by scale; empty where none was.
    """
    folders = heart_results_folder().parent.glob("heart-guidance*")
    found = [_with_record(folder) for folder in folders if (folder / "study.json").is_file()]
    by_scale = {float(one["study"]["study"]["guidance_scale"]): one for one in found}
    return {scale: by_scale[scale] for scale in sorted(by_scale)}


def _with_record(folder: Path) -> dict:
    return _tables(folder) | {"study": read_json(folder / "study.json")}


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table of a folder, by its name without the ending."""
    return {
        path.name.split(".")[0]: read_table(path)
        for path in sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")])
    }


def heart_report(
    folder: str | Path | None = None, results: dict[str, pd.DataFrame] | None = None
) -> pd.DataFrame:
    """All bounds, columns `measures.bounds.COLUMNS`; from `results` (as a notebook has them) or
    from the folder.

    With neither, the long run's: the main study, then the small hospital and the other guidance
    scales as far as they were run.
    """
    found = load_heart_results(folder) if results is None else results
    rows = _hearts(found) + (_downstream(found) if "margins" in found else [])
    if folder is None and results is None:
        rows += _beside()
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _beside() -> list[dict]:
    """The same bounds for what was run beside the main study, each row saying where."""
    shared, rows = load_shared_results(), []
    if shared is not None:
        rows += _downstream(shared, f", {shared['study']['study']['classifier_people']} own hearts")
    for scale, found in load_guidance_results().items():
        rows += [row | {"figure": f"{row['figure']}, guidance {scale:g}"} for row in _hearts(found)]
    return rows


def _hearts(found: dict[str, pd.DataFrame]) -> list[dict]:
    return [*_control(found), *_memorisation(found["memorisation"])]


def _control(found: dict[str, pd.DataFrame]) -> list[dict]:
    rows = []
    for way in WAYS:
        name, low, loss = lowest_dice(found["dice"][found["dice"]["way"] == way])
        rows.append(
            verdict(
                f"Dice, lowest subgroup ({name})",
                way,
                "re-segmenter",
                as_interval(low, "mean", "low", "high"),
                DICE_LEAST,
                int(low["images"]),
                True,
            )
        )
        against = as_interval(loss, "difference", "difference_low", "difference_high")
        rows.append(
            verdict(
                f"Dice less that on real hearts, lowest ({loss['attribute']}: {loss['group']})",
                way,
                "re-segmenter",
                against,
                DICE_LOSS,
                int(loss["images"]),
                True,
            )
        )
    told = found["recovered"]
    for row in told[told["attribute"] == "diagnosis"].to_dict("records"):
        rows.append(
            verdict(
                "diagnosis recovered, share of real",
                row["way"],
                "diagnosis",
                as_interval(row, "ratio", "ratio_low", "ratio_high"),
                RECOVERED,
                int(row["n"]),
                True,
            )
        )
    return rows


def _memorisation(table: pd.DataFrame) -> list[dict]:
    """One row a quantile: generated hearts under unseen masks, against the very same people's
    pictures.

    A generator that copies nothing has a share near the quantile, so half of the time a little
    above it: the bound holds unless the whole interval lies above.
    """
    part = table[(table["way"] == "unseen") & (table["reading"] == "through the autoencoder")]
    rows = []
    for row in part.to_dict("records"):
        found = as_interval(row, "share", "low", "high")
        figure = f"nearer to training than {row['quantile']:.0%} of real people"
        made = verdict(figure, "unseen", "distance", found, row["quantile"], int(row["n"]))
        rows.append(made | {"holds": bool(found.low <= row["quantile"])})
    return rows


def _downstream(found: dict[str, pd.DataFrame], where: str = "") -> list[dict]:
    """The worst subgroup of the best synthetic arm against real-only; `floor` is what as many real
    images more would give.

    This bound holds only with its whole interval above zero.
    """
    best, rows = best_synthetic(found["margins"], found["people"]), []
    people = int((found["people"]["part"] == "test").sum())
    for arm in [
        best,
        *(arm for arm in ("reweighted", "resampled") if arm in set(found["differences"]["arm"])),
    ]:
        row = worst_difference(found["differences"], arm)
        ideal = worst_difference(found["differences"], "extra_real")
        made = verdict(
            f"worst subgroup, balanced accuracy less real-only{where}",
            arm,
            "diagnosis",
            row,
            0.0,
            people,
            True,
            ideal.estimate if ideal else np.nan,
        )
        rows.append(made | {"holds": made["certain"]})
    return rows[:1] + [
        row | {"figure": row["figure"] + " (for comparison)", "bound": np.nan, "holds": True}
        for row in rows[1:]
    ]


def worst_difference(
    differences: pd.DataFrame,
    arm: str,
    by: str = "all three",
    prevalence: float = 0.01,
    group: str = "worst",
    metric: str = "balanced_accuracy",
) -> Interval | None:
    """The difference of `arm` to real-only with its interval; None where it was not trained."""
    chosen = differences[
        (differences["arm"] == arm)
        & (differences["by"] == by)
        & (differences["group"] == group)
        & (differences["metric_id"] == metric)
        & np.isclose(differences["prevalence"], prevalence)
    ]
    return as_interval(chosen.iloc[0], "estimate", "low", "high") if len(chosen) else None


def in_words(differences: pd.DataFrame, arm: str, rival: str = "reweighted") -> str:
    """What the downstream test says of a synthetic arm, in plain sentences: whether it changes what
    real-only does, and whether more than reweighting. Of two intervals that overlap nothing is
    said; they are wider apart than one of the difference would ask.
    """
    found, other = worst_difference(differences, arm), worst_difference(differences, rival)
    ideal = worst_difference(differences, "extra_real")
    gain = f"{100 * found.estimate:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    if found.low > 0:
        said = f"Arm {arm} raises the worst subgroup's balanced accuracy by {gain}."
    elif found.high < 0:
        said = f"Arm {arm} lowers the worst subgroup's balanced accuracy, by {gain}."
    else:
        said = (
            f"Whether arm {arm} changes the worst subgroup's balanced accuracy cannot be told: "
            f"{gain}."
        )
    if other is not None:
        least = f"{100 * other.estimate:+.1f} ({100 * other.low:+.1f} to {100 * other.high:+.1f})"
        more = (
            "the generator does more."
            if found.low > other.high
            else "the generator does less."
            if found.high < other.low
            else "these intervals do not tell the two apart."
        )
        said += f" Arm {rival}, which needs no generator, changes it by {least}: {more}"
    if ideal is not None:
        said += f" As many real images more would change it by {100 * ideal.estimate:+.1f}."
    return said
