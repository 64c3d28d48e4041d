"""The arms of the downstream test as recipes: which images are trained on, in which phase, with
which weights.

Source: Skorupko et al., arXiv 2403.19508, and its released code (real, or real and synthetic, each
with or without sampling by the inverse frequency of the meta-group); pre-training on synthetic
images as in RoentGen-v2 (arXiv 2508.16783). Pure functions on tables of one row an image with
`subject`, `diagnosis` ("healthy" or "heart failure") and, for balancing, `sex`, `age` (years) and
`bmi` (kg/m2). No images, no networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fairlib.errors import DataError, SettingsError
from fairlib.methods.subgroups import META_GROUP, age_edges, balancing, with_groups
from fairlib.settings import unknown_key

if TYPE_CHECKING:
    import pandas as pd

ARMS = (
    "real",
    "reweighted",
    "resampled",
    "mixed",
    "pretrained",
    "extra_real",
    "synthetic",
    "mixed_resampled",
)
"""The six arms compared, and two more of the paper: synthetic alone, and real with synthetic under
balanced sampling.
"""


@dataclass(frozen=True)
class RecipeSettings:
    """What the recipes share.

    weight_cap: the most that an image may count or be drawn, as a multiple of the mean.
    synthetic_count: synthetic (and extra real) images used; None takes all synthetic ones.
    pretrain_share: share of the steps spent on synthetic images in the arm `pretrained`;
    fine_tune_rate: learning rate of its second phase, as a multiple of the usual one. Every arm
    takes the same number of steps in all, so that none wins by training longer.
    """

    weight_cap: float = 10.0
    synthetic_count: int | None = None
    pretrain_share: float = 0.5
    fine_tune_rate: float = 0.5
    seed: int = 0

    def __post_init__(self):
        for name, holds in (
            ("weight_cap", self.weight_cap >= 1),
            ("pretrain_share", 0 < self.pretrain_share < 1),
            ("synthetic_count", self.synthetic_count is None or self.synthetic_count >= 1),
            ("fine_tune_rate", self.fine_tune_rate > 0),
        ):
            if not holds:
                raise SettingsError(
                    f"RecipeSettings.{name} is {getattr(self, name)}, out of its range"
                )


@dataclass(frozen=True, eq=False)
class Phase:
    """One stretch of training.

    rows: `{source: positions}` with source "real", "synthetic" or "extra", positions int64 in that
    table; the images of the phase are those of the sources in this order, N in all. weights: [N],
    mean one, or None. probabilities: [N], sum one, or None (each image once an epoch). share: of
    all steps; rate: factor of the learning rate.
    """

    rows: dict[str, np.ndarray]
    weights: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    share: float = 1.0
    rate: float = 1.0

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows.values())


@dataclass(frozen=True, eq=False)
class Recipe:
    """An arm and its phases; their shares sum to one."""

    arm: str
    phases: tuple[Phase, ...]

    def summary(self) -> pd.DataFrame:
        """One row a phase and source: arm, phase, source, images, share of the steps, sampling
        ("weighted" ...).
        """
        import pandas as pd

        def how(phase: Phase) -> str:
            return (
                "weighted"
                if phase.weights is not None
                else "resampled"
                if phase.probabilities is not None
                else "plain"
            )

        return pd.DataFrame(
            [
                {
                    "arm": self.arm,
                    "phase": number,
                    "source": source,
                    "images": len(rows),
                    "share": phase.share,
                    "sampling": how(phase),
                }
                for number, phase in enumerate(self.phases, 1)
                for source, rows in phase.rows.items()
            ]
        )


def recipe(arm: str, real, synthetic, extra, settings: RecipeSettings) -> Recipe:
    """The recipe of `arm` (one of `ARMS`) for three tables; `synthetic` and `extra` may be None
    where the arm uses neither.

    real, reweighted (loss weighted by inverse frequency of label x sex x age tertile x BMI class),
    resampled (drawn so), mixed (real + synthetic), pretrained (synthetic, then real), extra_real
    (real + as many extra real as mixed has
    synthetic: the bound), synthetic, mixed_resampled (drawn by inverse frequency within real +
    synthetic). Age tertiles are those of the real subjects. Raises `SettingsError` on an unknown
    arm, `DataError` on a missing table or column, or fewer images than asked for.
    """
    if arm not in ARMS:
        raise SettingsError(unknown_key(arm, list(ARMS), "the arms"))
    all_real = {"real": np.arange(len(real))}
    if arm == "real":
        return Recipe(arm, (Phase(all_real),))
    if arm in ("reweighted", "resampled"):
        return Recipe(arm, (_balanced(arm, all_real, {"real": real}, settings),))
    if arm == "extra_real":
        count = settings.synthetic_count or len(
            _chosen("synthetic", synthetic, None, arm, settings.seed)
        )
        return Recipe(
            arm, (Phase({**all_real, "extra": _chosen("extra", extra, count, arm, settings.seed)}),)
        )
    made = {
        "synthetic": _chosen("synthetic", synthetic, settings.synthetic_count, arm, settings.seed)
    }
    if arm == "mixed":
        return Recipe(arm, (Phase(all_real | made),))
    if arm == "synthetic":
        return Recipe(arm, (Phase(made),))
    if arm == "mixed_resampled":
        return Recipe(
            arm,
            (_balanced(arm, all_real | made, {"real": real, "synthetic": synthetic}, settings),),
        )
    first = Phase(made, share=settings.pretrain_share)
    return Recipe(
        arm,
        (first, Phase(all_real, share=1 - settings.pretrain_share, rate=settings.fine_tune_rate)),
    )


def _balanced(
    arm: str, rows: dict[str, np.ndarray], tables: dict, settings: RecipeSettings
) -> Phase:
    import pandas as pd

    edges = age_edges(tables["real"])
    used = pd.concat(
        [with_groups(tables[source].iloc[rows[source]], edges) for source in rows],
        ignore_index=True,
    )
    weights = balancing(used[list(META_GROUP)], settings.weight_cap)
    return (
        Phase(rows, weights=weights)
        if arm == "reweighted"
        else Phase(rows, probabilities=weights / weights.sum())
    )


def _chosen(name: str, table, count: int | None, arm: str, seed: int) -> np.ndarray:
    """Positions of `count` images of `table` (all when None), chosen by `seed`, in rising order."""
    if table is None or len(table) == 0:
        raise DataError(f"arm {arm!r} needs {name} images and there are none; give their table")
    if count is None:
        return np.arange(len(table))
    if count > len(table):
        raise DataError(
            f"arm {arm!r} asks for {count} {name} images, {len(table)} are there; make more or ask "
            "for fewer"
        )
    return np.sort(np.random.default_rng([seed, 31]).permutation(len(table))[:count])
