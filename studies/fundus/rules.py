"""The generative rules behind the synthetic fundi: who is drawn, and how attributes and disease
make the eye.

The sizes of the effects are choices of this book, so that what a generated fundus shows can be
compared with something known:

glaucoma, md_severity   cup-to-disc ratio (`expected_cdr`); nerve-fibre layer (`expected_rnfl`),
                        whose bright striae fade with it; a dark wedge in the striae where the loss
                        of vision is severe
cdr_status              the true vertical ratio against 0.5 and 0.7
race                    pigment p of 0.22 (White), 0.50 (Asian), 0.80 (Black), scatter 0.07, and by
                        it: background brightness 0.45 - 0.22 p, choroidal vessels 0.13 (1 - p),
                        step from rim to cup 0.31 - 0.17 p, so that one ratio is harder to see where
                        p is high; vertical diameter of the disc 37.5, 38.5, 40.0 pixels (White,
                        Asian, Black), scatter 1.5. The cup-to-disc ratio does not depend on race
refraction              myopia: a bright crescent at the disc's temporal side, and a tilted,
                        narrower disc; hyperopia: vessels twice as tortuous, and a disc 5 % smaller
sex                     calibre of the vessels: 0.82 (F) or 1.18 (M) of the average
ethnicity               the temporal side is brighter (Hispanic) or darker (Non-Hispanic) by 12 % at
                        the image's edge

The effects of sex and ethnicity, and of race beyond pigment and size, are conventions of this
phantom, not medicine: they let a requested attribute be read from an image, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri
from scipy.stats import truncnorm

from fairlib.cohorts.fairgenmed import (
    CDR_EDGES,
    CDR_STATUSES,
    GLAUCOMA,
    PROMPTED,
    REFRACTIONS,
    RNFLT_STATUSES,
    SEVERITIES,
    cdr_status,
)
from fairlib.cohorts.tables import ETHNICITIES
from fairlib.errors import DataError, SettingsError
from fairlib.settings import unknown_key

SEVERITY_SHARES = {"glaucoma": (0.15, 0.45, 0.25, 0.15), "non-glaucoma": (0.80, 0.16, 0.03, 0.01)}
REFRACTION_SHARES = (0.33, 0.30, 0.37)
# mean and standard deviation, years; 18 to 95
AGE = {"glaucoma": (66.0, 11.0), "non-glaucoma": (58.0, 14.0)}
# of each severity, from the worst to the best field, dB
MD_DB = dict(
    zip(SEVERITIES, ((-1.0, 2.0), (-6.0, -1.0), (-12.0, -6.0), (-28.0, -12.0)), strict=True)
)

CDR, CDR_GLAUCOMA, CDR_SEVERITY, CDR_SCATTER = 0.38, 0.18, (0.0, 0.05, 0.12, 0.20), 0.085
CDR_RANGE = (0.15, 0.92)
# micrometres
RNFL, RNFL_GLAUCOMA, RNFL_SEVERITY, RNFL_SCATTER = 98.0, -10.0, (0.0, -6.0, -16.0, -26.0), 8.0
RNFL_EDGES = (72.0, 88.0)  # of low, medium, high
OTHER_CAUSE = 0.3  # what a loss of vision without glaucoma counts
PIGMENT, PIGMENT_SCATTER = {"Asian": 0.50, "Black": 0.80, "White": 0.22}, 0.07
# vertical diameter, pixels of 128
DISC, DISC_SCATTER = {"Asian": 38.5, "Black": 40.0, "White": 37.5}, 1.5
CALIBRE = {"F": 0.82, "M": 1.18}
GRADIENT = {"Hispanic": 0.12, "Non-Hispanic": -0.12}


@dataclass(frozen=True)
class PhantomSettings:
    """The patients to draw. The shares are ours, as unbalanced as this kind of cohort is; Asian is
    what white and black leave.

    subjects: how many (`draw_fundus` takes any index, so that more can be drawn without changing
    the first); size: side of the image in pixels; whatever the size, it shows the same field.
    """

    subjects: int = 1000
    seed: int = 9
    white: float = 0.76
    black: float = 0.15
    female: float = 0.57
    hispanic: float = 0.05
    glaucoma: float = 0.50
    size: int = 128

    def __post_init__(self) -> None:
        shares = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        wrong = {name: value for name, value in shares.items() if not 0 <= value <= 1}
        if wrong or self.white + self.black > 1 + 1e-9 or self.subjects < 1 or self.size < 32:
            raise SettingsError(
                f"{self}: shares must lie in [0, 1] (not so: {wrong}), white and black together at "
                "most 1, subjects at least 1, size at least 32"
            )


@dataclass(frozen=True)
class Patient:
    """One synthetic patient.

    age in years, md (mean deviation) in dB, cdr: vertical cup-to-disc ratio, rnfl in micrometres,
    pigment in [0, 1], disc_diameter: vertical, in pixels of 128.
    """

    race: str
    sex: str
    ethnicity: str
    glaucoma: str
    md_severity: str
    refraction: str
    age: int
    md: float
    cdr: float
    rnfl: float
    pigment: float
    disc_diameter: float

    @property
    def cdr_status(self) -> str:
        """ "normal", "borderline" or "abnormal": the ratio against 0.5 and 0.7."""
        return cdr_status(self.cdr)

    @property
    def rnflt_status(self) -> str:
        """ "low", "medium" or "high": the nerve-fibre layer against 72 and 88 micrometres (edges
        are ours).
        """
        return RNFLT_STATUSES[int(np.searchsorted(RNFL_EDGES, self.rnfl, side="right"))]


def expected_cdr(glaucoma: str, severity: str) -> float:
    """Give the mean vertical cup-to-disc ratio of a diagnosis and a severity of the visual field's
    loss, whatever the race.

    0.38, and 0.18 more with glaucoma; mild, moderate, severe add 0.05, 0.12, 0.20 (without glaucoma
    0.3 of that). Individuals scatter by 0.085, within 0.15 to 0.92. Raises `DataError` on an
    unknown word.
    """
    return _along(glaucoma, severity, CDR, CDR_GLAUCOMA, CDR_SEVERITY)


def expected_rnfl(glaucoma: str, severity: str) -> float:
    """Give the mean thickness of the nerve-fibre layer, micrometres: 98, 10 less with glaucoma, 6,
    16, 26 less by severity (without glaucoma 0.3 of that); individuals scatter by 8.

    Raises `DataError` on an unknown word.
    """
    return _along(glaucoma, severity, RNFL, RNFL_GLAUCOMA, RNFL_SEVERITY)


@lru_cache(maxsize=64)
def requested_cdr(glaucoma: str, md_severity: str, cdr_status: str) -> float:
    """Give the cup-to-disc ratio that the words of a prompt stand for: the mean true ratio of
    patients with these three words.

    Diagnosis and severity set the mean of a normal distribution with scatter 0.085, and the class
    of the ratio cuts it. Raises `DataError` on unknown words.
    """
    low, high = _status_range(cdr_status)
    mean = expected_cdr(glaucoma, md_severity)
    ends = (np.array([low, high]) - mean) / CDR_SCATTER
    return float(mean + CDR_SCATTER * truncnorm.mean(*ends))


def requested_ratios(table: pd.DataFrame) -> np.ndarray:
    """Give `requested_cdr` of every row of a table, columns glaucoma, md_severity, cdr_status:
    [N].
    """
    words = table[["glaucoma", "md_severity", "cdr_status"]]
    return np.array([requested_cdr(*row) for row in words.itertuples(index=False)])


def draw_patient(rng: np.random.Generator, settings: PhantomSettings) -> Patient:
    """Draw one patient with the shares of `settings`; all attributes but those of the disease are
    independent.
    """
    rest = max(0.0, 1 - settings.white - settings.black)
    race = rng.choice(("White", "Black", "Asian"), p=(settings.white, settings.black, rest))
    female, hispanic, ill = rng.random(3) < (settings.female, settings.hispanic, settings.glaucoma)
    glaucoma = GLAUCOMA[int(ill)]
    severity = rng.choice(SEVERITIES, p=SEVERITY_SHARES[glaucoma])
    return make_patient(
        rng,
        race=str(race),
        sex="F" if female else "M",
        ethnicity=ETHNICITIES[int(hispanic)],
        glaucoma=glaucoma,
        md_severity=str(severity),
        refraction=str(rng.choice(REFRACTIONS, p=REFRACTION_SHARES)),
    )


def make_patient(
    rng: np.random.Generator,
    cdr: float | None = None,
    cdr_status: str | None = None,
    age: float | None = None,
    **words: str,
) -> Patient:
    """Make a patient with GIVEN attributes; the rest is drawn, by the same draws whatever the
    attributes are.

    words: race, sex, ethnicity, glaucoma, md_severity and refraction, in the vocabularies of
    `fairlib.cohorts.fairgenmed`. cdr: the true ratio, 0.15 to 0.92; without it the rules decide,
    within `cdr_status` when that is given. Raises `DataError` on attributes outside the
    vocabularies.
    """
    _check_words(words, cdr_status)
    glaucoma, severity, race = (words[name] for name in ("glaucoma", "md_severity", "race"))
    years, field, cup = (rng.random() for _ in range(3))
    layer, pigment, disc = rng.standard_normal(3).clip(-2.5, 2.5)
    low, high = MD_DB[severity]
    smaller = 0.95 if words["refraction"] == "hyperopia" else 1.0
    return Patient(
        **words,
        age=int(_quantile(years, *AGE[glaucoma], 18, 95) if age is None else age),
        md=round(low + (high - low) * field, 2),
        cdr=_ratio(cup, expected_cdr(glaucoma, severity), cdr, cdr_status),
        rnfl=max(40.0, expected_rnfl(glaucoma, severity) + RNFL_SCATTER * layer),
        pigment=float(np.clip(PIGMENT[race] + PIGMENT_SCATTER * pigment, 0, 1)),
        disc_diameter=float((DISC[race] + DISC_SCATTER * disc) * smaller),
    )


def _check_words(words: dict[str, str], status: str | None) -> None:
    given = words if status is None else words | {"cdr_status": status}
    for name, values in PROMPTED.items():
        value = given.get(name, values[0] if name == "cdr_status" else None)
        if value not in values:
            raise DataError(unknown_key(str(value), list(values), f"{name} of a synthetic patient"))


def _ratio(quantile: float, mean: float, cdr: float | None, status: str | None) -> float:
    if cdr is None:
        low, high = CDR_RANGE if status is None else _status_range(status)
        return _quantile(
            quantile, mean, CDR_SCATTER, low, np.nextafter(high, 0) if status else high
        )
    if not CDR_RANGE[0] <= cdr <= CDR_RANGE[1] or status not in (None, cdr_status(cdr)):
        raise DataError(
            f"cup-to-disc ratio {cdr} with status {status!r}: a phantom's ratio lies between 0.15 "
            "and 0.92, and in its status when one is given"
        )
    return float(cdr)


def _status_range(status: str) -> tuple[float, float]:
    """The lowest ratio of a status, and the one at which the next begins."""
    if status not in CDR_STATUSES:
        raise DataError(unknown_key(status, list(CDR_STATUSES), "cdr_status of the phantom"))
    edges, place = (CDR_RANGE[0], *CDR_EDGES, CDR_RANGE[1]), CDR_STATUSES.index(status)
    return edges[place], edges[place + 1]


def _quantile(quantile: float, mean: float, spread: float, low: float, high: float) -> float:
    """The quantile of a normal distribution cut at low and high."""
    below, above = ndtr([(low - mean) / spread, (high - mean) / spread])
    return float(np.clip(mean + spread * ndtri(below + quantile * (above - below)), low, high))


def _along(
    glaucoma: str, severity: str, start: float, disease: float, steps: tuple[float, ...]
) -> float:
    for value, words in ((glaucoma, GLAUCOMA), (severity, SEVERITIES)):
        if value not in words:
            raise DataError(unknown_key(str(value), list(words), "the rules of the fundus phantom"))
    step = steps[SEVERITIES.index(severity)]
    return start + (disease + step if glaucoma == "glaucoma" else OTHER_CAUSE * step)
