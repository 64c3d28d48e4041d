"""The anatomy oracle: sex from the width and length of the brain's outline alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.errors import DataError
from fairlib.io import read_json, write_json
from fairlib.measures.shares import logit, sigmoid
from studies.brain.anatomy import PIXEL_MM, measure

# the area adds nothing to these two (same AUC), the ventricles tell age
FEATURES = ("width_mm", "length_mm")


@dataclass(frozen=True)
class AnatomyOracle:
    """Logistic regression of sex on log width and log length, each taken about the mean of its
    contrast.

    Fluid around the brain shows on t2 and not on t1, so one brain measures 6 % more area on t2:
    contrasts have their own mean. `means`: {contrast: (log width, log length, log extent)}, the
    average of both sexes' means; `spread`: standard deviations within sex of log width and log
    length; `weights`: of the two features, and the intercept.
    """

    means: dict[str, tuple[float, float, float]]
    spread: tuple[float, float]
    weights: tuple[float, float, float]
    pixel_mm: float = PIXEL_MM

    def read(self, images, contrasts) -> pd.DataFrame:
        """One row an image: the columns of `measure`, `p_female` in [0, 1], and `extent_mm` freed
        of the contrast.

        images: [N, 1, H, H] in [-1, 1]; contrasts: [N]. An image without a brain reads NaN: see
        `readable`.
        """
        table = measure(images, contrasts, self.pixel_mm)
        return table.assign(
            p_female=self.p_female(table, contrasts), extent_mm=self.extent_mm(table, contrasts)
        )

    def p_female(self, measures: pd.DataFrame, contrasts) -> np.ndarray:
        """Probability of female [N] from the columns of `measure`.

        Raises `DataError` on a contrast never fitted.
        """
        features = (_logs(measures) - self._means(contrasts))[:, :2] / self.spread
        return sigmoid(features @ self.weights[:2] + self.weights[2])

    def extent_mm(self, measures: pd.DataFrame, contrasts) -> np.ndarray:
        """Diameter of the circle of the brain's area, mm, as it would measure on the average
        contrast: [N].
        """
        typical = np.mean([mean[2] for mean in self.means.values()])
        return np.exp(_logs(measures)[:, 2] - self._means(contrasts)[:, 2] + typical)

    def logit_female(self, measures: pd.DataFrame, contrasts) -> np.ndarray:
        """log(p / (1 - p)) of `p_female`, [N]."""
        return logit(self.p_female(measures, contrasts))

    def _means(self, contrasts) -> np.ndarray:
        unknown = sorted(set(contrasts) - set(self.means))
        if unknown:
            raise DataError(
                f"the oracle was never fitted on contrast {unknown[0]!r}; it knows "
                f"{', '.join(self.means)}"
            )
        return np.array([self.means[contrast] for contrast in contrasts])

    def save(self, path: str | Path) -> Path:
        """Write the oracle as JSON."""
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> AnatomyOracle:
        """Read what `save` wrote."""
        found = read_json(path)
        means = {contrast: tuple(values) for contrast, values in found["means"].items()}
        return cls(means, tuple(found["spread"]), tuple(found["weights"]), found["pixel_mm"])


def fit_oracle(images, female, contrasts, pixel_mm: float = PIXEL_MM) -> AnatomyOracle:
    """Fit the oracle on real slices [N, 1, H, H] with `female` [N] (1 or 0) and `contrasts` [N].

    Classes are weighted equally, so 0.5 lies half way between the sexes whatever their shares.
    Slices without a readable brain are left out; `DataError` when more than 5 % are, or a contrast
    lacks a sex.
    """
    measures, female, contrasts = (
        measure(images, None, pixel_mm),
        np.asarray(female),
        np.asarray(contrasts),
    )
    good = measures.extent_mm.notna().to_numpy()
    if not len(good) == len(female) == len(contrasts) or good.mean() < 0.95:
        raise DataError(
            f"{int((~good).sum())} of {len(good)} slices show no brain that can be outlined; "
            "give slices in [-1, 1] with background -1, one sex and one contrast for each"
        )
    return _fit(_logs(measures[good]), female[good], contrasts[good], pixel_mm)


def _fit(logs: np.ndarray, female, contrasts, pixel_mm) -> AnatomyOracle:
    from sklearn.linear_model import LogisticRegression

    means = {
        str(name): _middle(logs[contrasts == name], female[contrasts == name], name)
        for name in np.unique(contrasts)
    }
    centred = logs - np.array([means[str(name)] for name in contrasts])
    within = np.concatenate(
        [centred[female == sex] - centred[female == sex].mean(0) for sex in (0, 1)]
    )
    spread = within.std(0)[:2]
    model = LogisticRegression(C=10.0, class_weight="balanced").fit(centred[:, :2] / spread, female)
    return AnatomyOracle(
        means, _floats(spread), _floats([*model.coef_[0], model.intercept_[0]]), pixel_mm
    )


def _middle(logs: np.ndarray, female: np.ndarray, contrast) -> tuple[float, ...]:
    """Half way between the mean woman and the mean man of one contrast."""
    if set(np.unique(female)) != {0, 1}:
        raise DataError(
            f"contrast {contrast!r} lacks slices of one sex; the oracle needs both, as 1 (female) "
            "and 0 (male)"
        )
    return _floats((logs[female == 0].mean(0) + logs[female == 1].mean(0)) / 2)


def _logs(measures: pd.DataFrame) -> np.ndarray:
    return np.log(measures[[*FEATURES, "extent_mm"]].to_numpy(float))


def _floats(values) -> tuple[float, ...]:
    return tuple(map(float, values))
