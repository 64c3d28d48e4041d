"""Tables put together for a figure or a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.measures.intervals import Sample, bootstrap_interval
from fairlib.measures.shares import logit
from fairlib.methods.targets import Target
from studies.brain.report import exam_table, many_images_folder, report
from studies.brain.settings import ARMS

READERS = {
    "guide_plain": "plain guide",
    "guide_robust": "robust guide",
    "auditor": "auditor",
    "oracle": "oracle",
}


def accuracy_table(slices: pd.DataFrame, seed: int, replicates: int = 500) -> pd.DataFrame:
    """Sensitivity and specificity of each judge on `slices`, by subject: judge, what, n, value,
    value_low, value_high.
    """
    rng, rows = np.random.default_rng(seed), []
    for judge, name in READERS.items():
        good = slices[slices[judge].notna()]
        for what, sex in (("sensitivity", "F"), ("specificity", "M")):
            part = good[good.sex == sex]
            right = (part[judge] > 0.5) == (sex == "F")
            found = bootstrap_interval(
                np.mean, [Sample(right, clusters=part.subject.to_numpy(str))], rng, replicates
            )
            rows.append(
                {
                    "judge": name,
                    "what": what,
                    "n": len(part),
                    "value": found.estimate,
                    "value_low": found.low,
                    "value_high": found.high,
                }
            )
    return pd.DataFrame(rows)


def long_readings(slices: pd.DataFrame) -> pd.DataFrame:
    """One row a slice and judge: evaluator, p_female, truth (1 = female); slices a judge could not
    read are left out.
    """
    long = slices.melt(["sex"], list(READERS), "evaluator", "p_female").dropna(subset=["p_female"])
    return long.assign(truth=(long.sex == "F").astype(int), evaluator=long.evaluator.map(READERS))


def logit_table(parts: dict[str, pd.DataFrame], judge: str) -> pd.DataFrame:
    """The logits of one judge on several tables of readings {arm: table}, one below the other: arm,
    logit.
    """
    return pd.concat(
        [
            pd.DataFrame({"arm": name, "logit": logit(part[judge].dropna())})
            for name, part in parts.items()
        ],
        ignore_index=True,
    )


def own_exam(readings: pd.DataFrame, slices: pd.DataFrame, tuned: str) -> pd.DataFrame:
    """The bounds that this run's readings decide: figure, arm, judge, this run (value with its
    interval).
    """
    table = exam_table(
        {"readings": readings, "slices": slices}, tuned, ARMS[tuned].guide, replicates=100
    )
    return table[["figure", "arm", "judge"]].assign(**{"this run": _with_interval(table)})


def _with_interval(table: pd.DataFrame) -> list[str]:
    """As "0.050 (0.012 to 0.095)", which a narrow column breaks before the bracket only; points
    have one decimal.
    """
    texts = []
    for row in table.itertuples():
        value, low, high = (
            f"{number:.{_decimals(row.figure)}f}" for number in (row.value, row.low, row.high)
        )
        texts.append(f"{value} ({low}\u00a0to\u00a0{high})" if np.isfinite(row.low) else value)
    return texts


def _decimals(figure: str) -> int:
    return 1 if "points" in figure else 3


def target_logits(targets: list[Target], count: int = 400) -> np.ndarray:
    """`count` logits spread as the mean of the `targets` asks (quantiles of each prompt's
    distribution, together), sorted.
    """
    levels = (np.arange(count // len(targets)) + 0.5) / (count // len(targets))
    return np.sort(np.concatenate([target.distribution().quantile(levels) for target in targets]))


def changed_images(
    readings: pd.DataFrame, name: str, count: int, judge: str = "guide_robust"
) -> np.ndarray:
    """Positions of `count` images spread from the one whose logit `name` moved most toward female
    to the one moved least.
    """
    p = {key: logit(readings[readings.arm == key][judge]) for key in ("base", name)}
    order = np.argsort(p["base"] - p[name], kind="stable")
    return order[np.linspace(0, len(order) - 1, count).astype(int)]


def cost_table(history: pd.DataFrame, sampling_steps: int) -> pd.DataFrame:
    """Denoiser calls an image and optimiser step, a backward pass as two: arm, sampling, replay,
    frozen, calls, published, ratio.

    The published order of work: three samplings, one of them with a graph that is computed again (6
    T calls in all).
    """
    rows = []
    for name, part in history.groupby("arm", sort=False):
        # sampled in all steps together
        images = (part.forward - part.backward).sum() / sampling_steps
        sampling, frozen = sampling_steps, part.frozen.sum() / images
        replay = 3 * part.backward.sum() / images
        rows.append(
            {
                "arm": name,
                "sampling": sampling,
                "replay": replay,
                "frozen": frozen,
                "calls": sampling + replay + frozen,
                "published": 6 * sampling_steps,
                "ratio": (sampling + replay + frozen) / (6 * sampling_steps),
            }
        )
    return pd.DataFrame(rows)


def disagreement(
    readings: pd.DataFrame, tuned: str = "robust", other: str = "oracle"
) -> pd.DataFrame:
    """Share of the images of each arm that its own guide and `other` place on different sides: arm,
    n, disagree.

    The untuned images are read by the guide of arm `tuned`. Images that `other` could not read are
    left out.
    """
    rows = []
    for name, part in readings.groupby("arm", sort=False):
        guide = f"guide_{ARMS[name if name in ARMS else tuned].guide}"
        part = part[part[other].notna()]
        apart = (part[guide] > 0.5) != (part[other] > 0.5)
        rows.append({"arm": name, "n": len(part), "disagree": float(apart.mean())})
    return pd.DataFrame(rows)


def bounds_table() -> pd.DataFrame | None:
    """The bounds of the long runs in words, `holds` as yes, no or (no bound) a dash; None when
    `results/brain` holds none.
    """
    try:
        table = report()
    except DataError:
        return None
    return _in_words(table, "long runs")


def _in_words(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """figure, arm, judge, bound, `name` (value with its interval), holds as yes, no or, without a
    bound, a dash.
    """
    none = table.bound.isna()  # of the untuned model: shown for comparison
    bounds = [
        "–" if np.isnan(row.bound) else f"{row.bound:.{_decimals(row.figure)}f}"
        for row in table.itertuples()
    ]
    text = {
        "bound": bounds,
        name: _with_interval(table),
        "holds": np.where(none, "–", np.where(table.holds, "yes", "no")),
    }
    return table[["figure", "arm", "judge"]].assign(**text)


def many_images_table() -> pd.DataFrame | None:
    """Gaps by prompt where many more images were drawn: figure, judge, bound, found (with its
    interval), holds, floor, n.

    n: images of all seeds; floor: as in `measures.shares.Gap`. None where no such run is stored.
    """
    folder = many_images_folder()
    if folder is None:
        return None
    table = report(folder)
    table = table[table.figure.str.contains("gap")].reset_index(drop=True)
    floor = ["–" if np.isnan(value) else f"{value:.3f}" for value in table.floor]
    return _in_words(table, "found").drop(columns="arm").assign(floor=floor, n=table.n)


def ablation_shares(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `load_ablation` with one row a variant, seed and judge: variant, judge, share,
    share_low, share_high.
    """
    rows = [
        {
            "variant": row["arm"],
            "judge": judge,
            "share": row[judge],
            "share_low": row[f"{judge}_low"],
            "share_high": row[f"{judge}_high"],
        }
        for row in table.to_dict("records")
        for judge in ("guide", "auditor", "oracle")
    ]
    return pd.DataFrame(rows)
