"""The phantom: from a patient to an eye to a grey image centred near the optic disc, and the truth
about it. None of these patients exists.

The generative rules say who is drawn, and how attributes and disease make the eye. The sizes of the
effects are choices of this book, so that what a generated fundus shows can be compared with
something known:

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

Lengths are pixels of a 128 x 128 image, x to the right, y down, from the image's middle. Every eye
is shown as a right eye: nose to the right, macula to the left. Brightness runs from about 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
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
    USES,
    VALUES,
    cdr_status,
    prompt_of,
)
from fairlib.cohorts.tables import ETHNICITIES
from fairlib.errors import DataError, SettingsError
from fairlib.rng import numpy_rng
from fairlib.settings import Bound, Count, Fraction, check_bounds, require_known
from studies.fundus.vessels import FIELD, Vessels, coverage, grow_vessels

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

    subjects: Count = 1000
    seed: int = 9
    white: Fraction = 0.76
    black: Fraction = 0.15
    female: Fraction = 0.57
    hispanic: Fraction = 0.05
    glaucoma: Fraction = 0.50
    size: Annotated[int, Bound(lambda value: value >= 32, "at least 32")] = 128

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.white + self.black > 1 + 1e-9:
            raise SettingsError(f"{self}: white and black together must be at most 1")


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
    _check(**{name: words.get(name) for name in PROMPTED if name != "cdr_status"})
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


def _check(**words: str | None) -> None:
    """Raise `DataError` on a word that is not in the vocabulary of its attribute."""
    for name, value in words.items():
        require_known(value, PROMPTED[name], f"{name} of a synthetic patient", DataError)


def _ratio(quantile: float, mean: float, cdr: float | None, status: str | None) -> float:
    if cdr is None:
        low, high = CDR_RANGE if status is None else _status_range(status)
        high = np.nextafter(high, 0) if status else high
        return _quantile(quantile, mean, CDR_SCATTER, low, high)
    if not CDR_RANGE[0] <= cdr <= CDR_RANGE[1] or status not in (None, cdr_status(cdr)):
        raise DataError(
            f"cup-to-disc ratio {cdr} with status {status!r}: a phantom's ratio lies between 0.15 "
            "and 0.92, and in its status when one is given"
        )
    return float(cdr)


def _status_range(status: str) -> tuple[float, float]:
    """The lowest ratio of a status, and the one at which the next begins."""
    _check(cdr_status=status)
    edges, place = (CDR_RANGE[0], *CDR_EDGES, CDR_RANGE[1]), CDR_STATUSES.index(status)
    return edges[place], edges[place + 1]


def _quantile(quantile: float, mean: float, spread: float, low: float, high: float) -> float:
    """The quantile of a normal distribution cut at low and high."""
    below, above = ndtr([(low - mean) / spread, (high - mean) / spread])
    return float(np.clip(mean + spread * ndtri(below + quantile * (above - below)), low, high))


def _along(
    glaucoma: str, severity: str, start: float, disease: float, steps: tuple[float, ...]
) -> float:
    _check(glaucoma=glaucoma, md_severity=severity)
    step = steps[SEVERITIES.index(severity)]
    return start + (disease + step if glaucoma == "glaucoma" else OTHER_CAUSE * step)


CUP, DISC_EDGE, CUP_EDGE = 0.93, 0.8, 1.5  # brightness of the cup; softness of both edges
# nodes of the random textures, down and across
NETWORK, BLOTCHES, GRAIN, LAMINA = (30, 17), (7, 7), (80, 80), (40, 40)
LEVEL, BLUR, NOISE = (0.95, 1.05), (0.45, 0.70), (0.012, 0.024)  # of the camera, from and to
FIBRES = 220  # nodes of the streaks around the disc
# directions of the thick fibre bundles, radians, 0 to the right and positive upward
BUNDLES = (1.95, -1.95)
KNOWN = tuple(name for name in VALUES if name != "use")
TRUTH = ("cdr", "disc_diameter", "pigment", "rnfl")


@dataclass(frozen=True, eq=False)
class FundusSubject:
    """One synthetic subject. row: the attributes of a cohort's row, the prompt and the truth
    (`cdr`, `disc_diameter`, `pigment`, `rnfl`: see `rules.Patient`); image: float32 [1, H, H] in
    [-1, 1].
    """

    row: dict
    image: np.ndarray


def draw_fundus_with(
    rng: np.random.Generator, subject: str = "synthetic-fundus", size: int = 128, **attributes: Any
) -> FundusSubject:
    """Draw one subject with GIVEN attributes, those of `rules.make_patient`; `rng` decides
    everything else.

    The same draws are made whatever the attributes are: the same seed gives one eye under other
    attributes. Raises `DataError` on attributes outside the vocabularies.
    """
    patient = make_patient(rng, **attributes)
    return FundusSubject(row_of(patient, subject, USES[0]), _image(rng, patient, size))


def draw_fundus(settings: PhantomSettings, index: int) -> FundusSubject:
    """Draw subject number `index`: a function of (settings.seed, index), the shares and the size
    alone.
    """
    rng, patient = patient_of(settings, index)
    row = row_of(patient, f"synthetic-fundus-{index:05d}", use_of(index))
    return FundusSubject(row, _image(rng, patient, settings.size))


def patient_of(settings: PhantomSettings, index: int) -> tuple[np.random.Generator, Patient]:
    """Draw the patient of subject number `index`, and give the generator that goes on to its
    eye.
    """
    rng = numpy_rng(settings.seed, index)
    return rng, draw_patient(rng, settings)


def use_of(index: int) -> str:
    """The part of the cohort that subject number `index` is in: six in ten train, three test."""
    return USES[(0, 0, 0, 0, 0, 0, 1, 2, 2, 2)[index % 10]]


def row_of(patient: Patient, name: str, use: str) -> dict:
    """The row of a patient in the table of a cohort: attributes, use, prompt, truth."""
    recorded, truth = ({key: getattr(patient, key) for key in keys} for keys in (KNOWN, TRUTH))
    row = {"subject": name, **recorded, "use": use}
    return {**row, "prompt": prompt_of(row), **truth}


def _image(rng: np.random.Generator, patient: Patient, size: int) -> np.ndarray:
    eye = make_eye(rng, patient)
    scene = draw_scene(rng, patient, eye)
    return finish(render(patient, eye, scene, size), scene, rng)[None]


@dataclass(frozen=True, eq=False)
class Eye:
    """The geometry of one eye. Semi-axes and offsets in pixels, angles in radians.

    disc: (x, y) of its middle; axes: (horizontal, vertical) of the disc before the turn by `tilt`;
    cup: (x, y) of its middle; cup_axes; wedge: (direction, half width, depth) of the defect in the
    nerve fibres; crescent: width at the temporal side.
    """

    disc: tuple[float, float]
    axes: tuple[float, float]
    tilt: float
    cup: tuple[float, float]
    cup_axes: tuple[float, float]
    wedge: tuple[float, float, float]
    crescent: float

    def depths(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth below the edges of disc and cup; see `_depth`."""
        parts = ((self.disc, self.axes), (self.cup, self.cup_axes))
        disc, cup = (_depth(x, y, *part, self.tilt) for part in parts)
        return disc, cup


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything else that is in a image: textures, vessels, light, blur and noise."""

    vessels: Vessels
    network: np.ndarray
    blotches: np.ndarray
    grain: np.ndarray
    lamina: np.ndarray
    fibres: np.ndarray
    light: tuple[float, float, float]
    level: float
    blur: float
    noise: float


def make_eye(rng: np.random.Generator, patient: Patient) -> Eye:
    """The patient's disc, cup and nerve fibres.

    The vertical extents of cup and disc are in the ratio `patient.cdr`.
    """
    z = rng.standard_normal(9).clip(-2.2, 2.2)
    myope = patient.refraction == "myopia"
    aspect = 0.93 + 0.025 * z[0] - (0.09 if myope else 0.0)
    tilt = 0.06 * z[1] + (0.10 + 0.16 * abs(z[1])) * np.sign(z[2]) * myope
    scale = patient.disc_diameter / 2 / _upright(aspect, 1.0, tilt)
    axes = (aspect * scale, scale)
    broad = aspect * min(1 + 0.05 * z[3], 0.97 / patient.cdr)
    size = patient.cdr * patient.disc_diameter / 2 / _upright(broad, 1.0, tilt)
    disc = (2.0 * z[4], 2.0 * z[5])
    room = 1 - patient.cdr
    cup = (disc[0] - axes[0] * room * (0.10 + 0.08 * z[6]), disc[1] + axes[1] * room * 0.08 * z[7])
    severe = 1.0 * (patient.md_severity == "severe")
    wedge = (BUNDLES[rng.integers(2)] * (1 + 0.05 * z[8]), rng.uniform(0.16, 0.26), severe)
    width = rng.uniform(3.0, 6.0)
    return Eye(disc, axes, float(tilt), cup, (broad * size, size), wedge, width if myope else 0.0)


def draw_scene(rng: np.random.Generator, patient: Patient, eye: Eye) -> Scene:
    """Random surroundings: as many draws whatever the patient, so that one seed gives one scene
    under other attributes.
    """
    # vessels keep to the nasal side of the cup
    hub = (eye.cup[0] + 0.8 * eye.cup_axes[0] + 0.8, eye.cup[1])
    winding = 2.0 if patient.refraction == "hyperopia" else 1.0
    calibre = CALIBRE[patient.sex] * float(np.exp(0.05 * rng.standard_normal()))
    vessels = grow_vessels(rng, hub, calibre, winding)
    shapes = (NETWORK, BLOTCHES, GRAIN, LAMINA)
    textures = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    fibres = rng.standard_normal(FIBRES)
    tilt_x, tilt_y, dark = rng.normal(0, (0.02, 0.04, 0.04))
    light = (float(tilt_x) - GRADIENT[patient.ethnicity], float(tilt_y), float(0.18 + dark))
    level, blur, noise = (float(rng.uniform(*ends)) for ends in (LEVEL, BLUR, NOISE))
    bent = _bent(vessels, eye, patient.cdr)
    return Scene(bent, *textures, fibres, light, level, blur, noise)


def render(patient: Patient, eye: Eye, scene: Scene, size: int = 128) -> np.ndarray:
    """The fundus before the camera's blur and noise: float32 [size, size]."""
    axis = ((np.arange(size) + 0.5) * (FIELD / size) - FIELD / 2).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    disc, cup = eye.depths(x, y)
    value = _background(patient, scene, axis, size) + _striae(patient, eye, scene, x, y)
    value = _over(value, value + 0.15, _crescent(eye, x, y, disc))
    value = value + 0.03 * np.exp(-((disc + 1.2) ** 2) / 3.0)  # the thin ring around the disc
    rim = CUP - (0.31 - 0.17 * patient.pigment)
    rim = rim + 0.25 * (value - value.mean()) - 0.0025 * (x - eye.disc[0])
    value = _over(value, rim, _soft(disc, DISC_EDGE))
    floor = CUP + 0.030 * _texture(scene.lamina, size) * np.clip(cup / 6, 0, 1)
    value = _over(value, floor, _soft(cup, CUP_EDGE))
    value = _with_vessels(value, scene.vessels, size)
    across, down, dark = scene.light
    light = across * x / 64 + down * y / 64 - dark * (x * x + y * y) / 64**2
    return (value * scene.level * (1 + light)).astype(np.float32)


def finish(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The camera's share: blur, then noise that grows with brightness; then lowest to -1 and
    highest to 1, [H, H].
    """
    smooth = gaussian_filter(image, scene.blur * len(image) / FIELD, mode="nearest")
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    noisy = smooth + scene.noise * np.sqrt(np.clip(0.5 + smooth, 0.2, None)) * grain
    low, high = float(noisy.min()), float(noisy.max())
    return np.clip((noisy - low) * (2 / (high - low)) - 1, -1, 1).astype(np.float32)


def _background(patient: Patient, scene: Scene, axis: np.ndarray, size: int) -> np.ndarray:
    """Retina over choroid: pigment darkens it and hides the choroid's vessels, which are bright
    bands between dark ones.
    """
    clear = 1 - patient.pigment
    ridges = np.exp(-1.6 * _texture(scene.network, size) ** 2) - 0.5
    slow, fine = 0.022 * _texture(scene.blotches, size), 0.012 * _texture(scene.grain, size)
    fading = np.clip(np.abs(axis) / 40, 0, 1)  # the choroid shows less close to the disc
    shown = np.maximum(fading[:, None], fading[None, :]) * 0.75 + 0.25
    return 0.45 - 0.22 * patient.pigment + 0.13 * clear * shown * ridges + slow + fine


def _striae(patient: Patient, eye: Eye, scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bright streaks that leave the disc and bend towards the macula; thickest above and below,
    fading with the layer.
    """
    u, v = x - eye.disc[0], eye.disc[1] - y
    away = np.hypot(u, v)
    angle = np.arctan2(v, u)
    # A fibre's own direction at the disc: temporal fibres run in arcs around the macula.
    origin = angle - 0.0055 * np.sin(angle) * np.clip(away - 18, 0, None) * (u < 0)
    apart = [np.abs(_wrapped(origin - bundle)) for bundle in BUNDLES]
    thick = 0.25 + sum(np.exp(-((one / 0.55) ** 2)) for one in apart)
    middle, half, depth = eye.wedge
    gone = depth * _soft(half - np.abs(_wrapped(origin - middle)), 0.03)
    nodes, turn = np.append(scene.fibres, scene.fibres[0]), 2 * np.pi
    streaks = np.interp((origin + np.pi) % turn, np.linspace(0, turn, FIBRES + 1), nodes)
    fading = np.exp(-np.clip(away - 18, 0, None) / 32)
    layer = np.clip((patient.rnfl - 38) / 60, 0, 1.15)
    bright = layer * (1 - gone) * thick * fading * (0.060 + 0.038 * streaks)
    return (bright - 0.055 * gone * fading).astype(np.float32)


def _crescent(eye: Eye, x: np.ndarray, y: np.ndarray, disc: np.ndarray) -> np.ndarray:
    if not eye.crescent:
        return np.zeros_like(x)
    moved = _depth(x, y, (eye.disc[0] - eye.crescent, eye.disc[1]), eye.axes, eye.tilt)
    return _soft(moved, 1.0) * _soft(-disc, 1.0)


def _with_vessels(value: np.ndarray, vessels: Vessels, size: int) -> np.ndarray:
    scale = size / FIELD
    value = value * (1 - coverage(vessels, 1.0, size, scale))
    return value + 0.16 * coverage(vessels.where(vessels.reflex), 0.36, size, scale)


def _bent(vessels: Vessels, eye: Eye, cdr: float) -> Vessels:
    """Vessels step aside at the cup's edge, the more the deeper it is, and are paler on its
    floor.
    """
    disc, inside = eye.depths(vessels.x, vessels.y)
    x = vessels.x + np.clip(inside / 2.5, 0, 1) * 4.0 * max(cdr - 0.35, 0.0)
    opacity = vessels.opacity * (1 - 0.35 * np.clip(inside / 4, 0, 1))
    return replace(vessels, x=x, opacity=opacity, reflex=vessels.reflex & (disc < 0))


def _depth(
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, float],
    axes: tuple[float, float],
    tilt: float,
) -> np.ndarray:
    """Depth in pixels below the edge of an ellipse (negative outside), exact at the edge and near
    it.
    """
    u, v = x - centre[0], y - centre[1]
    u, v = u * np.cos(tilt) + v * np.sin(tilt), v * np.cos(tilt) - u * np.sin(tilt)
    norm = np.hypot(u / axes[0], v / axes[1])
    slope = np.hypot(u / axes[0] ** 2, v / axes[1] ** 2) / np.maximum(norm, 1e-6)
    return (1 - norm) / np.maximum(slope, 1 / max(axes))


def _upright(across: float, along: float, tilt: float) -> float:
    """Half the vertical extent of a turned ellipse."""
    return float(np.hypot(across * np.sin(tilt), along * np.cos(tilt)))


def _texture(nodes: np.ndarray, size: int) -> np.ndarray:
    """Smooth random field [size, size] of about unit variance from independent nodes [n, m]."""
    return _basis(nodes.shape[0], size) @ nodes @ _basis(nodes.shape[1], size).T


@lru_cache(maxsize=32)
def _basis(nodes: int, size: int) -> np.ndarray:
    """Gaussian bumps on a lattice, float32 [size, nodes]; rows have unit norm, so that unit
    variance stays.
    """
    place = (np.arange(size) + 0.5) / size * (nodes - 1)
    bumps = np.exp(-((place[:, None] - np.arange(nodes)) ** 2) / (2 * 0.6**2))
    return (bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32)


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _over(below: np.ndarray, value: float | np.ndarray, share: np.ndarray) -> np.ndarray:
    return below + (value - below) * share


def _soft(depth: np.ndarray, width: float) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(depth / width)
