"""`python -m studies report`: every figure of the study with its interval, its bound, and whether
it holds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.io import read_json
from fairlib.measures.intervals import Interval
from fairlib.measures.shares import Evaluator, group_table, share_table, within_sex_table
from studies.brain.settings import ARMS
from studies.engine.bounds import COLUMNS, Exam, exam, verdict
from studies.engine.places import repository

FIDELITY = ("contrast", "tumour", "side", "grade")


def load_results(folder: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """The tables that `python -m studies study` wrote: readings, slices, measures, history.

    Raises `DataError` when they are not there.
    """
    folder = Path(folder or repository() / "results" / "brain")
    if not (folder / "readings.csv.gz").is_file():
        raise DataError(
            f"{folder}: no results here (readings.csv.gz is missing); make them with `python -m "
            "fairlib study`"
        )
    found = {
        name: pd.read_csv(folder / f"{name}.csv.gz", keep_default_na=False, na_values=[""])
        for name in ("readings", "slices")
    }
    return found | {
        name: pd.read_csv(folder / f"{name}.csv")
        for name in ("measures", "history")
        if (folder / f"{name}.csv").is_file()
    }


def many_images_folder() -> Path | None:
    """The folder beside `results/brain` whose runs drew the most images (`brain-4000`); None when
    there is none.
    """
    found = {
        int(path.name.split("-")[1]): path
        for path in (repository() / "results").glob("brain-*")
        if path.name.split("-")[1].isdigit()
    }
    return found[max(found)] if found else None


def judge_columns(guide: str = "robust") -> dict[str, str]:
    """Which columns of the readings are the guide, the auditor and the oracle."""
    return {"guide": f"guide_{guide}", "auditor": "auditor", "oracle": "oracle"}


def exam_table(
    results: dict[str, pd.DataFrame],
    tuned: str = "robust",
    guide: str = "robust",
    replicates: int = 500,
) -> pd.DataFrame:
    """The bounds that the readings decide, for the arm `tuned`. Deterministic."""
    settings = Exam(tuned=tuned, conditional="conditional")
    return exam(
        results["readings"],
        results["slices"],
        np.random.default_rng(0),
        settings,
        judge_columns(guide),
        replicates,
    )


def report(folder: str | Path | None = None, tuned: str = "robust") -> pd.DataFrame:
    """All bounds of the study: those of `exam_table`, prompt fidelity, quality, consistency and
    cost.

    Of a folder that holds readings only (`results/brain-4000`), the bounds that these decide.
    """
    results = load_results(folder)
    if "measures" not in results:
        return exam_table(results, tuned)
    rows = [*_measured(results["measures"], tuned), *_cost(repository() / "results" / "cost.json")]
    return pd.concat(
        [exam_table(results, tuned), pd.DataFrame(rows, columns=list(COLUMNS))], ignore_index=True
    )


def headline(
    results: dict[str, pd.DataFrame], tuned: str = "robust", replicates: int = 200
) -> dict[str, float]:
    """The numbers that the book's prose quotes from the long runs, by name (`long_<arm>_<judge>`
    and more).

    Each arm is read by the guide that tuned it; shares are corrected, with 95 % intervals, over all
    of the arm's seeds.
    """
    readings, slices, rng = results["readings"], results["slices"], np.random.default_rng(1)
    found = {}
    for arm in ("base", "plain", tuned):
        part = readings[readings.arm == arm]
        if part.empty:
            continue
        judges = judge_columns(ARMS[arm].guide if arm in ARMS else ARMS[tuned].guide)
        evaluators = [Evaluator(name, column) for name, column in judges.items()]
        for row in share_table(part, slices, evaluators, rng, ("arm",), replicates).itertuples():
            name = f"long_{arm}_{row.evaluator}"
            found |= {
                name: row.corrected,
                f"{name}_low": row.corrected_low,
                f"{name}_high": row.corrected_high,
            }
        table = within_sex_table(part, slices, evaluators, rng, ("arm",), replicates)
        for row in table[(table.evaluator == "oracle") & (table.against == "truth")].itertuples():
            found[f"long_{arm}_size_{row.sex}"] = row.difference
        guide, oracle = part[judges["guide"]] > 0.5, part["oracle"] > 0.5
        found |= {
            f"long_{arm}_disagree": float((guide != oracle).mean()),
            f"long_{arm}_images": len(part),
            f"long_{arm}_seeds": int(part.seed.nunique()),
        }
        measures = results["measures"][results["measures"].arm == arm]
        found |= {
            f"long_{arm}_{name}": float(measures[name].mean())
            for name in (*FIDELITY, "cosine_kept")
        }
    return found | _conditional(readings, slices, rng, replicates)


def _conditional(readings, slices, rng, replicates: int) -> dict[str, float]:
    """Each grade's share under the conditional target, by every judge, and how many seeds it stands
    on; nothing without one.
    """
    part = readings[readings.arm == "conditional"]
    if part.empty:
        return {}
    wanted = dict(Exam().conditional_targets)
    judges = judge_columns(ARMS["conditional"].guide)
    evaluators = [Evaluator(name, column) for name, column in judges.items()]
    table = group_table(part, slices, evaluators, wanted, rng, ("arm",), replicates)
    shares = {
        f"long_conditional_{row.group}_{row.evaluator}": row.share for row in table.itertuples()
    }
    return shares | {"long_conditional_seeds": int(part.seed.nunique())}


def _over_seeds(values: pd.Series) -> Interval:
    """Mean over seeds, with the least and the greatest of them (five seeds are too few for
    more).
    """
    return Interval(float(values.mean()), float(values.min()), float(values.max()))


def _measured(measures: pd.DataFrame, tuned: str) -> list[dict]:
    base, after = (measures[measures.arm == arm].set_index("seed") for arm in ("base", tuned))
    rows = []
    for name in FIDELITY:
        rows.append(
            verdict(
                f"prompt fidelity, {name}",
                "base",
                "attributes",
                _over_seeds(base[name]),
                0.9,
                len(base),
                True,
            )
        )
        loss = 100 * (base[name] - after[name])
        rows.append(
            verdict(
                f"loss of fidelity, {name}, points",
                tuned,
                "attributes",
                _over_seeds(loss),
                3.0,
                len(after),
            )
        )
    change = Interval(
        *(
            float(after[column].mean())
            for column in ("mmd_change", "mmd_change_low", "mmd_change_high")
        )
    )
    rows.append(
        verdict("change of MMD to the target cohort", tuned, "attributes", change, 0.0, len(after))
    )
    kept = _over_seeds(after.cosine_kept)
    rows.append(
        verdict("CLIP cosine where the class stays", tuned, "clip", kept, 0.90, len(after), True)
    )
    return rows


def _cost(path: Path) -> list[dict]:
    """The two figures of `benchmarks/alignment_cost.py`, if it was run."""
    if not path.is_file():
        return []
    found = read_json(path)
    rows = []
    for figure, key, bound, at_least in (
        ("U-Net evaluations against the published order", "evaluations_ratio", 1 / 3, False),
        ("gradient cosine to all steps", "gradient_cosine", 0.99, True),
        ("saved activations, 50 steps against 5", "memory_ratio", 1.1, False),
    ):
        if key in found:
            value = Interval(float(found[key]), float(found[key]), float(found[key]))
            rows.append(verdict(figure, "replay", "counter", value, bound, 1, at_least))
    return rows
