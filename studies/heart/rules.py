"""The law behind the synthetic hearts: who is drawn, and how sex, age, body and disease make the
heart.

Sizes are plausible for adults; the sizes of the effects are choices of this book, written down in
`expected_geometry`, so that what a generated heart shows can be held against a known law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairlib.cohorts.cardiac import DIAGNOSES, PIXEL_MM, SIZE, prompt_of
from fairlib.errors import DataError, SettingsError
from fairlib.settings import unknown_key
from studies.heart.shape import Heart, draw_outline

FACES = ("dilated", "preserved")  # of heart failure
PATHOLOGY = {"healthy": "NOR", "dilated": "DCM", "preserved": "HHD"}  # the codes of M&Ms
VENDORS = (
    ("Siemens", "A", 1),
    ("Philips", "B", 2),
    ("Philips", "B", 3),
    ("GE", "C", 4),
    ("Canon", "D", 5),
)
REFERENCE_CM = 170.0
# mean and standard deviation; one centimetre less per decade after 50
HEIGHT_CM = {"M": (176.0, 6.5), "F": (163.0, 6.0)}

# The law, at the reference: a man of 50 years, 170 cm, 25 kg/m2. The rest stands in
# `expected_geometry`.
DIAMETER_MM, WALL_MM, EJECTION = 49.5, 8.8, 0.58
# Against the healthy, at the average severity (1): cavity diameter and wall as factors, ejection
# added; and the area of the wall in end-systole over that in end-diastole.
DISEASE = {
    "healthy": {"diameter": 1.00, "wall": 1.00, "ejection": 0.00, "thickening": 1.15},
    "dilated": {"diameter": 1.20, "wall": 0.86, "ejection": -0.30, "thickening": 1.08},
    "preserved": {"diameter": 0.90, "wall": 1.32, "ejection": -0.08, "thickening": 1.11},
}
# Individual scatter: standard deviations of log diameter, log wall, ejection, thickening, and of
# the disease's severity (about 1, from 0.1 to 1.9): mild disease looks much like health, so that no
# reader of pictures can be always right.
SCATTER = {
    "diameter": 0.055,
    "wall": 0.095,
    "ejection": 0.045,
    "thickening": 0.05,
    "severity": 0.45,
}
# Odds of the dilated face among the diagnosed: sex and body-mass index both count.
# True: BMI of 25 and more
DILATED_SHARE = {("M", False): 0.55, ("M", True): 0.80, ("F", False): 0.20, ("F", True): 0.45}


@dataclass(frozen=True)
class HeartSettings:
    """Whom to draw. All shares lie in [0, 1]; the imbalances are those that the paper names.

    subjects: how many (`draw_heart` takes any index, so that more can be drawn without changing the
    first).
    heart_failure: prevalence. female_healthy, female_heart_failure: women among the healthy and the
    diagnosed (few diagnosed women). young_healthy, young_heart_failure: people below 50 years
    (few). normal_bmi_healthy,
    normal_bmi_heart_failure: people with a body-mass index below 25 (few among the diagnosed).
    missing: share of subjects without height or weight in the written table. unlabelled: share
    whose masks are empty there. size, pixel_mm: of the pictures.
    """

    subjects: int = 600
    seed: int = 5
    heart_failure: float = 0.25
    female_healthy: float = 0.52
    female_heart_failure: float = 0.28
    young_healthy: float = 0.12
    young_heart_failure: float = 0.06
    normal_bmi_healthy: float = 0.40
    normal_bmi_heart_failure: float = 0.14
    missing: float = 0.03
    unlabelled: float = 0.05
    size: int = SIZE
    pixel_mm: float = PIXEL_MM

    def __post_init__(self):
        shares = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, float) and name != "pixel_mm"
        }
        wrong = {name: value for name, value in shares.items() if not 0 <= value <= 1}
        if wrong or self.subjects < 1 or self.size < 16 or self.pixel_mm <= 0:
            raise SettingsError(
                f"{self}: shares must lie in [0, 1] (not so: {wrong}), subjects at least 1, size "
                "at least 16"
            )


@dataclass(frozen=True)
class Person:
    """One synthetic person.

    age in years, height in cm, weight in kg, bmi in kg/m2; face: "healthy", "dilated", "preserved".
    """

    sex: str
    age: int
    height: float
    weight: float
    bmi: float
    diagnosis: str
    face: str
    vendor: int


def expected_geometry(
    sex: str, age: float, bmi: float, height: float, diagnosis: str, face: str | None = None
) -> dict:
    """The law: expected geometry at mid-ventricle, given the attributes (years, kg/m2, cm).

    Cavity diameter in end-diastole, mm = 49.5 (men) or 46.8 (women) x (height / 170)^0.4 x (1 +
    0.003 (bmi - 25)) x (1 - 0.0012 (age - 50)); wall, mm = 8.8 (men) or 8.0 (women) + 0.025 (age -
    50) + 0.06 (bmi - 25); ejection by area 0.58 (women 0.01 more). Heart failure has two faces:
    "dilated" (diameter x 1.20, wall x 0.86, ejection 0.28) and "preserved" (diameter x 0.90, wall x
    1.32, ejection 0.50); `DILATED_SHARE` says how often which. The wall's area grows in systole by
    15 % (healthy), 8 % (dilated), 11 % (preserved).

    Returns diameter_ed (mm), lv_ed_area, lv_es_area (mm2), wall_ed, wall_es (mm), ejection (share),
    thickening (wall's area in end-systole over end-diastole), myo_ed_area (mm2). Individuals
    scatter about it (`SCATTER`, severity of disease included; areas are those of the median
    person). With `face` None and heart failure it is the average over both faces. Raises
    `DataError` on an unknown sex, diagnosis or face.
    """
    share = _dilated_share(sex, bmi, diagnosis, face)
    faces = [_geometry(sex, age, bmi, height, name) for name in share]
    return {
        key: float(sum(w * g[key] for w, g in zip(share.values(), faces, strict=True)))
        for key in faces[0]
    }


def draw_person(rng: np.random.Generator, settings: HeartSettings) -> Person:
    """Attributes of one person, with the shares of `settings`."""
    sick = rng.random() < settings.heart_failure
    whom = "heart_failure" if sick else "healthy"
    female, young, normal = (
        rng.random() < getattr(settings, f"{what}_{whom}")
        for what in ("female", "young", "normal_bmi")
    )
    age, bmi = _draw_age(rng, young, sick), _draw_bmi(rng, normal, sick)
    sex = "F" if female else "M"
    return make_person(rng, sex, age, bmi, DIAGNOSES[sick])


def make_person(
    rng: np.random.Generator,
    sex: str,
    age: float,
    bmi: float,
    diagnosis: str,
    height: float | None = None,
    face: str | None = None,
) -> Person:
    """A person with GIVEN attributes; what is None is drawn. Raises `DataError` on attributes
    outside the template.
    """
    prompt_of({"sex": sex, "age": age, "bmi": bmi, "diagnosis": diagnosis})
    mean, spread = HEIGHT_CM[sex]
    drawn = float(np.clip(rng.normal(mean - max(0.0, age - 50) / 10, spread), 145, 203))
    height = round(drawn if height is None else float(height))
    share = _dilated_share(sex, bmi, diagnosis, face)
    face = str(rng.choice(list(share), p=list(share.values())))
    weight = round(bmi * (height / 100) ** 2, 1)
    return Person(
        sex, int(age), height, weight, float(bmi), diagnosis, face, int(rng.integers(len(VENDORS)))
    )


def make_heart(rng: np.random.Generator, person: Person) -> Heart:
    """An individual heart: the law of `expected_geometry` at the person's own severity, and scatter
    about it.
    """
    severity = 1 + SCATTER["severity"] * np.clip(rng.standard_normal(), -2, 2)
    law = _geometry(person.sex, person.age, person.bmi, person.height, person.face, severity)
    diameter, wall, ejection, thickening, right = np.clip(rng.standard_normal(5), -2.4, 2.4)
    outline, waves = draw_outline(rng)
    failing = severity if person.face == "dilated" else 0.0
    return Heart(
        lv_radius=law["diameter_ed"] / 2 * np.exp(SCATTER["diameter"] * diameter),
        wall=law["wall_ed"] * np.exp(SCATTER["wall"] * wall),
        ejection=float(np.clip(law["ejection"] + SCATTER["ejection"] * ejection, 0.08, 0.8)),
        thickening=law["thickening"] + SCATTER["thickening"] * thickening,
        rv_reach=(21.5 if person.sex == "M" else 20.0)
        * (person.height / REFERENCE_CM) ** 0.4
        * np.exp(0.09 * right),
        rv_breadth=0.97 * np.exp(0.05 * rng.standard_normal()),
        rv_ejection=float(np.clip(rng.normal(0.42 - 0.14 * failing, 0.05), 0.1, 0.6)),
        angle=np.pi + 0.30 + 0.14 * rng.standard_normal(),
        fat=float(
            np.clip(
                3.4 + 0.20 * (person.bmi - 25) + 0.02 * (person.age - 50) + rng.normal(0, 1.0),
                0.6,
                9.0,
            )
        ),
        outline=outline,
        wall_waves=waves,
    )


def _geometry(
    sex: str, age: float, bmi: float, height: float, face: str, severity: float = 1.0
) -> dict[str, float]:
    diameter = DIAMETER_MM * (0.945 if sex == "F" else 1.0) * (height / REFERENCE_CM) ** 0.4
    diameter *= (
        (1 + 0.003 * (bmi - 25)) * (1 - 0.0012 * (age - 50)) * _effect(face, "diameter", severity)
    )
    wall = WALL_MM * (0.91 if sex == "F" else 1.0) + 0.025 * (age - 50) + 0.06 * (bmi - 25)
    wall *= _effect(face, "wall", severity)
    ejection = EJECTION + (0.01 if sex == "F" else 0.0) + _effect(face, "ejection", severity)
    thickening = _effect(face, "thickening", severity)
    area, radius = np.pi * diameter**2 / 4, diameter / 2
    muscle = np.pi * ((radius + wall) ** 2 - radius**2)
    small = area * (1 - ejection)
    wall_es = np.sqrt((small + muscle * thickening) / np.pi) - np.sqrt(small / np.pi)
    return {
        "diameter_ed": diameter,
        "lv_ed_area": area,
        "lv_es_area": small,
        "wall_ed": wall,
        "wall_es": wall_es,
        "ejection": ejection,
        "thickening": thickening,
        "myo_ed_area": muscle,
    }


def _effect(face: str, what: str, severity: float) -> float:
    """The disease's value of `what`, `severity` times as far from the healthy one as on average."""
    healthy = DISEASE["healthy"][what]
    return healthy + severity * (DISEASE[face][what] - healthy)


def _dilated_share(sex: str, bmi: float, diagnosis: str, face: str | None) -> dict[str, float]:
    """How often which face: one entry with share 1 when it is known."""
    for value, known in (
        (sex, list(HEIGHT_CM)),
        (diagnosis, list(DIAGNOSES)),
        (face, [None, *DISEASE]),
    ):
        if value not in known:
            raise DataError(
                unknown_key(
                    str(value), [str(name) for name in known], "a synthetic person's attributes"
                )
            )
    if diagnosis == "healthy":
        if face not in (None, "healthy"):
            raise DataError(
                f"a healthy heart has no face {face!r} of heart failure; leave the face out"
            )
        return {"healthy": 1.0}
    if face == "healthy":
        raise DataError(
            f"a heart in failure cannot have the face 'healthy'; choose one of {FACES} or leave it "
            "out"
        )
    share = DILATED_SHARE[sex, bool(bmi >= 25)]
    return {face: 1.0} if face else {"dilated": share, "preserved": 1 - share}


def _draw_age(rng: np.random.Generator, young: bool, sick: bool) -> int:
    if young:
        return int(rng.integers(24, 50))
    while True:  # a normal distribution cut at 50 and 89
        age = rng.normal(68 if sick else 63, 9)
        if 50 <= age < 90:
            return int(age)


def _draw_bmi(rng: np.random.Generator, normal: bool, sick: bool) -> float:
    if normal:
        return round(
            float(
                rng.uniform(16.8, 18.4) if rng.random() < 0.04 else rng.triangular(18.6, 23.8, 24.9)
            ),
            1,
        )
    overweight = rng.random() < (0.48 if sick else 0.64)
    return round(
        float(rng.uniform(25.1, 29.9) if overweight else min(30.1 + rng.exponential(3.2), 43)), 1
    )
