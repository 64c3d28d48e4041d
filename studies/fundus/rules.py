"""The law behind the synthetic fundi: who is drawn, and how attributes and disease make the eye.

The sizes of the effects are choices of this book, written down in `law`, so that what a generated
fundus shows can be held against something known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairlib.cohorts.attributes import ETHNICITIES, RACES, SEXES
from fairlib.cohorts.fairgenmed import (
    CDR_EDGES,
    CDR_STATUSES,
    GLAUCOMA,
    REFRACTIONS,
    RNFLT_STATUSES,
    SEVERITIES,
    cdr_status,
)
from fairlib.errors import DataError, SettingsError
from fairlib.settings import unknown_key

KNOWN = {
    "race": RACES,
    "sex": SEXES,
    "ethnicity": ETHNICITIES,
    "glaucoma": GLAUCOMA,
    "md_severity": SEVERITIES,
    "refraction": REFRACTIONS,
    "cdr_status": (None, *CDR_STATUSES),
}
SEVERITY_SHARES = {"glaucoma": (0.15, 0.45, 0.25, 0.15), "non-glaucoma": (0.80, 0.16, 0.03, 0.01)}
REFRACTION_SHARES = (0.33, 0.30, 0.37)
# mean and standard deviation, years; 18 to 95
AGE = {"glaucoma": (66.0, 11.0), "non-glaucoma": (58.0, 14.0)}
MD_DB = {
    "normal": (-1.0, 2.0),
    "mild": (-6.0, -1.0),
    "moderate": (-12.0, -6.0),
    "severe": (-28.0, -12.0),
}

# The law; `law` says it in words.
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
class FundusSettings:
    """Whom to draw. The shares are ours, as unbalanced as this kind of cohort is; Asian is what
    white and black leave.

    subjects: how many (`draw_fundus` takes any index, so that more can be drawn without changing
    the first);
    size: side of the picture in pixels, whatever the size it shows the same field.
    """

    subjects: int = 1000
    seed: int = 9
    white: float = 0.76
    black: float = 0.15
    female: float = 0.57
    hispanic: float = 0.05
    glaucoma: float = 0.50
    size: int = 128

    def __post_init__(self):
        shares = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        wrong = {name: value for name, value in shares.items() if not 0 <= value <= 1}
        if wrong or self.white + self.black > 1 + 1e-9 or self.subjects < 1 or self.size < 32:
            raise SettingsError(
                f"{self}: shares must lie in [0, 1] (not so: {wrong}), white and black together at "
                "most 1, "
                "subjects at least 1, size at least 32"
            )


@dataclass(frozen=True)
class Patient:
    """One synthetic person.

    age in years, md (mean deviation) in dB, cdr: vertical cup-to-disc ratio, rnfl in micrometres.
    """

    race: str
    sex: str
    ethnicity: str
    age: int
    glaucoma: str
    md_severity: str
    md: float
    refraction: str
    cdr: float
    rnfl: float
    pigment: float
    disc_diameter: float

    @property
    def rnflt_status(self) -> str:
        """ "low", "medium" or "high": the nerve-fibre layer against 72 and 88 micrometres (edges
        are ours).
        """
        return RNFLT_STATUSES[int(np.searchsorted(RNFL_EDGES, self.rnfl, side="right"))]


def expected_cdr(glaucoma: str, severity: str) -> float:
    """The law: mean vertical cup-to-disc ratio given diagnosis and severity of the visual field's
    loss, whatever the race.

    0.38, and 0.18 more with glaucoma; mild, moderate, severe add 0.05, 0.12, 0.20 (without glaucoma
    0.3 of that). Individuals scatter by 0.085, within 0.15 to 0.92. Raises `DataError` on an
    unknown word.
    """
    return _along(glaucoma, severity, CDR, CDR_GLAUCOMA, CDR_SEVERITY)


def expected_rnfl(glaucoma: str, severity: str) -> float:
    """The law: mean thickness of the nerve-fibre layer, micrometres: 98, 10 less with glaucoma, 6,
    16, 26 less by severity

    (without glaucoma 0.3 of that); individuals scatter by 8. Raises `DataError` on an unknown word.
    """
    return _along(glaucoma, severity, RNFL, RNFL_GLAUCOMA, RNFL_SEVERITY)


def law() -> dict[str, str]:
    """What each attribute moves in a picture, with numbers. The effects of sex and ethnicity, and
    of race beyond pigment

    and size, are conventions of this phantom, not medicine: they are there so that an asked
    attribute can be read from a picture, and no more should be read into them.
    """
    return {
        "glaucoma, md_severity": "cup-to-disc ratio (`expected_cdr`); nerve-fibre layer "
        "(`expected_rnfl`), whose bright striae "
        "fade with it; a dark wedge in the striae where the loss of vision is severe",
        "cdr_status": "the true vertical ratio against 0.5 and 0.7",
        "race": "pigment 0.22 (White), 0.50 (Asian), 0.80 (Black), scatter 0.07, and by it: "
        "background brightness "
        "0.45 - 0.22 p, choroidal vessels 0.13 (1 - p), step from rim to cup 0.31 - 0.17 p, so "
        "that one ratio is "
        "harder to see where p is high; vertical diameter of the disc 37.5, 38.5, 40.0 pixels "
        "(White, Asian, Black), "
        "scatter 1.5. The law of the cup-to-disc ratio does not know race",
        "refraction": "myopia: a bright crescent at the disc's temporal side, and a tilted, "
        "narrower disc; hyperopia: vessels "
        "twice as tortuous, and a disc 5 % smaller",
        "sex": "calibre of the vessels: 0.82 (F) or 1.18 (M) of the average",
        "ethnicity": "the temporal side is brighter (Hispanic) or darker (Non-Hispanic) by 12 % at "
        "the picture's edge",
    }


def draw_patient(rng: np.random.Generator, settings: FundusSettings) -> Patient:
    """One person with the shares of `settings`; all attributes but those of the disease are
    independent.
    """
    race = str(
        rng.choice(
            ("White", "Black", "Asian"),
            p=(settings.white, settings.black, max(0.0, 1 - settings.white - settings.black)),
        )
    )
    female, hispanic, sick = rng.random(3) < (settings.female, settings.hispanic, settings.glaucoma)
    glaucoma = GLAUCOMA[int(sick)]
    severity = str(rng.choice(SEVERITIES, p=SEVERITY_SHARES[glaucoma]))
    refraction = str(rng.choice(REFRACTIONS, p=REFRACTION_SHARES))
    return make_patient(
        rng,
        race,
        "F" if female else "M",
        ETHNICITIES[int(hispanic)],
        glaucoma,
        severity,
        refraction,
    )


def make_patient(
    rng: np.random.Generator,
    race: str,
    sex: str,
    ethnicity: str,
    glaucoma: str,
    md_severity: str,
    refraction: str,
    cdr: float | None = None,
    cdr_status: str | None = None,
    age: float | None = None,
) -> Patient:
    """A person with GIVEN attributes; what is None is drawn. The same draws are made whatever the
    attributes are.

    With `cdr_status` and no `cdr`, the ratio follows the law within that status. Raises `DataError`
    on attributes outside the vocabularies, or a ratio outside 0.15 to 0.92.
    """
    given = {
        "race": race,
        "sex": sex,
        "ethnicity": ethnicity,
        "glaucoma": glaucoma,
        "md_severity": md_severity,
        "refraction": refraction,
        "cdr_status": cdr_status,
    }
    for name, value in given.items():
        if value not in KNOWN[name]:
            raise DataError(
                unknown_key(
                    str(value),
                    [str(word) for word in KNOWN[name]],
                    f"{name} of a synthetic patient",
                )
            )
    years, field, cup, layer, pigment, disc = (
        rng.random(),
        rng.random(),
        rng.random(),
        *rng.standard_normal(3).clip(-2.5, 2.5),
    )
    mean, spread = AGE[glaucoma]
    low, high = MD_DB[md_severity]
    return Patient(
        race,
        sex,
        ethnicity,
        int(_quantile(years, mean, spread, 18, 95)) if age is None else int(age),
        glaucoma,
        md_severity,
        round(low + (high - low) * field, 2),
        refraction,
        _ratio(cup, glaucoma, md_severity, cdr, cdr_status),
        rnfl=max(40.0, expected_rnfl(glaucoma, md_severity) + RNFL_SCATTER * layer),
        pigment=float(np.clip(PIGMENT[race] + PIGMENT_SCATTER * pigment, 0, 1)),
        disc_diameter=float(
            (DISC[race] + DISC_SCATTER * disc) * (0.95 if refraction == "hyperopia" else 1.0)
        ),
    )


def _ratio(
    chance: float, glaucoma: str, severity: str, cdr: float | None, status: str | None
) -> float:
    if cdr is None:
        low, high = _status_range(status)
        return _quantile(chance, expected_cdr(glaucoma, severity), CDR_SCATTER, low, high)
    if not CDR_RANGE[0] <= cdr <= CDR_RANGE[1] or (
        status is not None and cdr_status(cdr) != status
    ):
        raise DataError(
            f"cup-to-disc ratio {cdr} with status {status!r}: a phantom's ratio lies between 0.15 "
            "and 0.92, "
            "and in its status when one is given"
        )
    return float(cdr)


def _status_range(status: str | None) -> tuple[float, float]:
    if status is None:
        return CDR_RANGE
    edges = (CDR_RANGE[0], *CDR_EDGES, CDR_RANGE[1])
    number = CDR_STATUSES.index(status)
    return edges[number], np.nextafter(edges[number + 1], 0)


def _quantile(chance: float, mean: float, spread: float, low: float, high: float) -> float:
    """The `chance` quantile of a normal distribution cut at low and high."""
    from scipy.special import ndtr, ndtri

    below, above = ndtr([(low - mean) / spread, (high - mean) / spread])
    return float(np.clip(mean + spread * ndtri(below + chance * (above - below)), low, high))


def _along(
    glaucoma: str, severity: str, start: float, disease: float, steps: tuple[float, ...]
) -> float:
    for value, known in ((glaucoma, GLAUCOMA), (severity, SEVERITIES)):
        if value not in known:
            raise DataError(unknown_key(str(value), list(known), "the law of the fundus phantom"))
    step = steps[SEVERITIES.index(severity)]
    return start + (disease + step if glaucoma == "glaucoma" else OTHER_CAUSE * step)
