"""The phantom: from a person to a heart to images, and the truth about them. No subject exists.

The generative rules say which subjects are drawn, how sex, age, body and disease make the heart,
and its shape in a short-axis slice. Sizes are plausible for adults; the sizes of the effects are
choices of this book, written down in `expected_geometry`, so that what a generated heart shows can
be compared with known rules. Images are short-axis slices in end-diastole (ED) and end-systole
(ES).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fairlib.cohorts.cardiac import (
    DIAGNOSES,
    PIXEL_MM,
    SIZE,
    bmi_class,
    decade,
    normalise,
    prompt_of,
    stack,
)
from fairlib.errors import DataError
from fairlib.rng import numpy_rng
from fairlib.settings import Bound, Checked, Count, Fraction, Positive, require_known

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

# The rules, at the reference: a man of 50 years, 170 cm, 25 kg/m2. The rest stands in
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
# reader of images can be always right.
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
class PhantomSettings(Checked):
    """Which subjects to draw. Shares lie in [0, 1]; the imbalances are those that the paper names.

    subjects: how many (`draw_heart` takes any index, so that more can be drawn without changing the
    first).
    heart_failure: prevalence. female_healthy, female_heart_failure: women among the healthy and the
    diagnosed (few diagnosed women). young_healthy, young_heart_failure: people below 50 years
    (few). normal_bmi_healthy,
    normal_bmi_heart_failure: people with a body-mass index below 25 (few among the diagnosed).
    missing, unlabelled: in files of M&Ms' layout (tests write them), the share of subjects without
    height or weight, and of those whose masks are empty. size, pixel_mm: of the images.
    """

    subjects: Count = 600
    seed: int = 5
    heart_failure: Fraction = 0.25
    female_healthy: Fraction = 0.52
    female_heart_failure: Fraction = 0.28
    young_healthy: Fraction = 0.12
    young_heart_failure: Fraction = 0.06
    normal_bmi_healthy: Fraction = 0.40
    normal_bmi_heart_failure: Fraction = 0.14
    missing: Fraction = 0.03
    unlabelled: Fraction = 0.05
    size: Annotated[int, Bound(lambda value: value >= 16, "at least 16")] = SIZE
    pixel_mm: Positive = PIXEL_MM


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
    """The rules: expected geometry at mid-ventricle, given the attributes (years, kg/m2, cm).

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

    book/cardiac.md, Eq. (eq-heart-law).
    """
    share = _dilated_share(sex, bmi, diagnosis, face)
    faces = [_geometry(sex, age, bmi, height, name) for name in share]
    pairs = list(zip(share.values(), faces, strict=True))
    return {key: float(sum(w * g[key] for w, g in pairs)) for key in faces[0]}


def draw_person(rng: np.random.Generator, settings: PhantomSettings) -> Person:
    """Attributes of one person, with the shares of `settings`."""
    sick = rng.random() < settings.heart_failure
    group = "heart_failure" if sick else "healthy"
    female, young, normal = (
        rng.random() < getattr(settings, f"{what}_{group}")
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
    weight, vendor = round(bmi * (height / 100) ** 2, 1), int(rng.integers(len(VENDORS)))
    return Person(sex, int(age), height, weight, float(bmi), diagnosis, face, vendor)


def make_heart(rng: np.random.Generator, person: Person) -> Heart:
    """Draw an individual heart: `expected_geometry` at the person's own severity, with scatter."""
    severity = 1 + SCATTER["severity"] * np.clip(rng.standard_normal(), -2, 2)
    mean = _geometry(person.sex, person.age, person.bmi, person.height, person.face, severity)
    diameter, wall, ejection, thickening, right = np.clip(rng.standard_normal(5), -2.4, 2.4)
    outline, wall_waves = draw_outline(rng)
    reach = 21.5 if person.sex == "M" else 20.0
    fat = 3.4 + 0.20 * (person.bmi - 25) + 0.02 * (person.age - 50)
    failing = severity if person.face == "dilated" else 0.0
    return Heart(
        lv_radius=mean["diameter_ed"] / 2 * np.exp(SCATTER["diameter"] * diameter),
        wall=mean["wall_ed"] * np.exp(SCATTER["wall"] * wall),
        ejection=float(np.clip(mean["ejection"] + SCATTER["ejection"] * ejection, 0.08, 0.8)),
        thickening=mean["thickening"] + SCATTER["thickening"] * thickening,
        rv_reach=reach * (person.height / REFERENCE_CM) ** 0.4 * np.exp(0.09 * right),
        rv_breadth=0.97 * np.exp(0.05 * rng.standard_normal()),
        rv_ejection=float(np.clip(rng.normal(0.42 - 0.14 * failing, 0.05), 0.1, 0.6)),
        angle=np.pi + 0.30 + 0.14 * rng.standard_normal(),
        fat=float(np.clip(fat + rng.normal(0, 1.0), 0.6, 9.0)),
        outline=outline,
        wall_waves=wall_waves,
    )


def _geometry(
    sex: str, age: float, bmi: float, height: float, face: str, severity: float = 1.0
) -> dict[str, float]:
    # the disease lies `severity` times as far from health as on average
    healthy, ill = DISEASE["healthy"], DISEASE[face]
    effect = {name: value + severity * (ill[name] - value) for name, value in healthy.items()}
    diameter = DIAMETER_MM * (0.945 if sex == "F" else 1.0) * (height / REFERENCE_CM) ** 0.4
    diameter *= (1 + 0.003 * (bmi - 25)) * (1 - 0.0012 * (age - 50)) * effect["diameter"]
    wall = WALL_MM * (0.91 if sex == "F" else 1.0) + 0.025 * (age - 50) + 0.06 * (bmi - 25)
    wall *= effect["wall"]
    ejection = EJECTION + (0.01 if sex == "F" else 0.0) + effect["ejection"]
    area, radius = np.pi * diameter**2 / 4, diameter / 2
    muscle = np.pi * ((radius + wall) ** 2 - radius**2)
    small = area * (1 - ejection)
    wall_es = np.sqrt((small + muscle * effect["thickening"]) / np.pi) - np.sqrt(small / np.pi)
    return {
        "diameter_ed": diameter,
        "lv_ed_area": area,
        "lv_es_area": small,
        "wall_ed": wall,
        "wall_es": wall_es,
        "ejection": ejection,
        "thickening": effect["thickening"],
        "myo_ed_area": muscle,
    }


def _dilated_share(sex: str, bmi: float, diagnosis: str, face: str | None) -> dict[str, float]:
    """How often which face: one entry with share 1 when it is known."""
    for value, known in ((sex, HEIGHT_CM), (diagnosis, DIAGNOSES), (face, (None, *DISEASE))):
        require_known(value, known, "a synthetic person's attributes", DataError)
    faces = ("healthy",) if diagnosis == "healthy" else FACES
    if face not in (None, *faces):
        raise DataError(f"{diagnosis} cannot have the face {face!r}; choose one of {faces} or none")
    if diagnosis == "healthy":
        return {"healthy": 1.0}
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
        thin = rng.random() < 0.04
        bmi = rng.uniform(16.8, 18.4) if thin else rng.triangular(18.6, 23.8, 24.9)
    else:
        overweight = rng.random() < (0.48 if sick else 0.64)
        bmi = rng.uniform(25.1, 29.9) if overweight else min(30.1 + rng.exponential(3.2), 43)
    return round(float(bmi), 1)


# ---- the shape of a heart

LV, MYO, RV = 1, 2, 3  # label order of M&Ms
ORDERS = np.arange(2, 6)  # waves around the outline of the cavity
WALL_ORDERS = np.arange(1, 4)  # waves of the wall's thickness
ROUNDNESS = 2.3  # exponent of the superellipse of the right ventricle


@dataclass(frozen=True)
class Heart:
    """One heart at mid-ventricle. Lengths in mm, angles in radians, ejections are shares of area,
    all at level 0.

    lv_radius: of the circle with the cavity's area in end-diastole; wall: mean thickness in
    end-diastole;
    thickening: area of the wall in end-systole over end-diastole; rv_reach: how far the right
    ventricle reaches beyond the wall of the left; rv_breadth: its half breadth over the outer
    radius; angle: where it lies;
    fat: thickness of the fat around the heart; outline [4, 2] and wall_waves [3, 2]: relative
    cosine and sine amplitudes of the deformations.
    """

    lv_radius: float
    wall: float
    ejection: float
    thickening: float
    rv_reach: float
    rv_breadth: float
    rv_ejection: float
    angle: float
    fat: float
    outline: np.ndarray
    wall_waves: np.ndarray


def draw_outline(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random deformations (outline [4, 2], wall_waves [3, 2]): slightly oval, low-frequency, a few
    per cent.
    """
    outline = rng.normal(0, 1, (len(ORDERS), 2)) * np.array([0.030, 0.014, 0.008, 0.005])[:, None]
    wall = rng.normal(0, 1, (len(WALL_ORDERS), 2)) * np.array([0.06, 0.05, 0.03])[:, None]
    return np.clip(outline, -0.07, 0.07), np.clip(wall, -0.14, 0.14)


def cavity_area(heart: Heart, phase: float = 0.0) -> float:
    """Area of the left ventricle's cavity at mid-ventricle, mm2."""
    return float(np.pi * heart.lv_radius**2 * (1 - phase * heart.ejection))


def mean_wall(heart: Heart, phase: float = 0.0, level: float = 0.0) -> float:
    """Mean thickness of the wall, mm: in end-diastole `heart.wall`, later what keeps `thickening`
    of its area.
    """
    thin = heart.wall * (1 - 0.15 * max(level, 0.0) ** 2)
    linear, square = _wall_area_terms(heart, 0.0, level)
    target = (thin * linear + thin**2 * square) * (1 + phase * (heart.thickening - 1))
    linear, square = _wall_area_terms(heart, phase, level)
    return float((np.sqrt(linear**2 + 4 * square * target) - linear) / (2 * square))


def depths(
    heart: Heart, x: np.ndarray, y: np.ndarray, phase: float, level: float = 0.0
) -> dict[str, np.ndarray]:
    """Depth in mm (positive inside) of points below the surfaces: cavity, epicardium, RV cavity, RV
    wall.
    """
    radius, theta = np.hypot(x, y), np.arctan2(y, x)
    cavity = _cavity_radius(heart, phase, level) * _shape(heart, theta)
    wall = mean_wall(heart, phase, level) * (1 + waves(theta, WALL_ORDERS, heart.wall_waves))
    rv = _rv_depth(heart, x, y, phase, level)
    outer = cavity + wall - radius
    return {"lv": cavity - radius, "epicardium": outer, "rv": rv, "rv_wall": rv + 3.0}


def masks(depth: dict[str, np.ndarray]) -> np.ndarray:
    """Labels of points from their `depths`: uint8, 0 background, 1 LV cavity, 2 myocardium, 3 RV
    cavity.
    """
    found = np.where(depth["rv"] > 0, RV, 0)
    found = np.where(depth["epicardium"] > 0, MYO, found)
    return np.where(depth["lv"] > 0, LV, found).astype(np.uint8)


def truth(heart: Heart) -> dict[str, float]:
    """What the heart measures at mid-ventricle: areas in mm2, mean wall thickness in mm, ejection
    by area.
    """
    return {
        "lv_ed_area": cavity_area(heart, 0.0),
        "lv_es_area": cavity_area(heart, 1.0),
        "wall_ed": mean_wall(heart, 0.0),
        "wall_es": mean_wall(heart, 1.0),
        "ejection": float(heart.ejection),
    }


def grid(
    size: int, pixel: float, centre: tuple[float, float] = (0.0, 0.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Points x, y [size, size] in mm of a square image about `centre`."""
    axis = (np.arange(size) - (size - 1) / 2) * pixel
    return np.meshgrid(axis + centre[0], axis + centre[1])


def waves(theta: np.ndarray, orders: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Sum of waves at angles theta (any shape): amplitudes [K, 2] are those of cosine and sine of
    each order.
    """
    turn = np.exp(1j * theta.astype(np.float32))
    return sum(
        (turn ** int(order) * complex(cosine, -sine)).real
        for order, (cosine, sine) in zip(orders, amplitudes, strict=True)
    )


def _shape(heart: Heart, theta: np.ndarray) -> np.ndarray:
    """Radius over the radius of the circle with the same area: the deformation leaves the area
    alone.
    """
    return (1 + waves(theta, ORDERS, heart.outline)) / np.sqrt(1 + 0.5 * (heart.outline**2).sum())


def _cavity_radius(heart: Heart, phase: float, level: float) -> float:
    down = max(level, 0.0)
    return np.sqrt(cavity_area(heart, phase) / np.pi) * (1 - 0.02 * level - 0.38 * down**2)


def _wall_area_terms(heart: Heart, phase: float, level: float) -> tuple[float, float]:
    """The wall's area is mean * linear + mean^2 * square; both integrals are exact for waves of
    these orders.
    """
    theta = np.arange(64) * (2 * np.pi / 64)
    uneven = 1 + waves(theta, WALL_ORDERS, heart.wall_waves)
    radius = _cavity_radius(heart, phase, level) * _shape(heart, theta)
    return float(2 * np.pi * (radius * uneven).mean()), float(np.pi * (uneven**2).mean())


def _rv_depth(heart: Heart, x: np.ndarray, y: np.ndarray, phase: float, level: float) -> np.ndarray:
    """Depth below the surface of a superellipse that the septum cuts; its tips sit on the wall of
    the left ventricle.
    """
    outer = _cavity_radius(heart, phase, level) + mean_wall(heart, phase, level)
    down = max(level, 0.0) ** 2
    shrink = np.sqrt(1 - phase * heart.rv_ejection) * (1 - 0.06 * level - 0.45 * down)
    still = (heart.lv_radius + heart.wall) * (1 - 0.38 * down)
    reach = heart.rv_reach * shrink**1.5
    breadth = heart.rv_breadth * (0.5 * still + 0.5 * outer) * np.sqrt(shrink)
    u = x * np.cos(heart.angle) + y * np.sin(heart.angle)
    v = y * np.cos(heart.angle) - x * np.sin(heart.angle)
    middle = 0.55 * outer
    half = np.where(u > middle, outer + reach - middle, 0.40 * outer)
    along, across = np.abs(u - middle) / half, np.abs(v + 0.10 * reach) / breadth
    norm = (along**ROUNDNESS + across**ROUNDNESS) ** (1 / ROUNDNESS) + 1e-6
    return np.hypot(u - middle, v + 0.10 * reach) * (1 / norm - 1)


# ---- the image: surroundings, brightness, scanner

# Brightness of a balanced steady-state free precession image, 1 = fat.
BLOOD, MUSCLE, FAT, LUNG, LIVER, CHEST = 0.82, 0.30, 0.95, 0.05, 0.40, 0.26


@dataclass(frozen=True)
class Scene:
    """What surrounds the heart, and how it was scanned. Lengths in mm from the heart's edge, angles
    in radians.

    chest and liver: (direction, distance, curvature 1/mm); chest_fat: depth at which muscle gives
    way to fat; aorta: (direction, distance, radius); patches [3, 2]: amplitudes of the fat's
    unevenness; vessels [K, 3]: x, y, radius; bias [3]: per 100 mm along x, y and squared; blood,
    muscle: their brightness; noise: standard deviation; blur: mm.
    """

    chest: tuple[float, float, float]
    chest_fat: float
    liver: tuple[float, float, float]
    aorta: tuple[float, float, float]
    patches: np.ndarray
    vessels: np.ndarray
    bias: np.ndarray
    blood: float
    muscle: float
    noise: float
    blur: float


def draw_scene(rng: np.random.Generator, heart: Heart) -> Scene:
    """Random surroundings; the layer of fat in the chest wall grows with the fat around the
    heart.
    """
    vessels = np.stack([*rng.uniform(-75, 75, (2, 14)), rng.uniform(1.0, 2.4, 14)], axis=1)
    return Scene(
        chest=(heart.angle + rng.normal(0.45, 0.15), rng.uniform(6, 14), rng.uniform(0.002, 0.006)),
        chest_fat=rng.uniform(8, 14) - 0.6 * heart.fat,
        liver=(np.pi / 2 + rng.normal(0.25, 0.18), rng.uniform(3, 12), rng.uniform(-0.008, -0.002)),
        aorta=(rng.normal(0.75, 0.14), rng.uniform(4, 10), rng.uniform(9, 12)),
        patches=rng.normal(0, 0.6, (len(WALL_ORDERS), 2)),
        vessels=vessels,
        bias=np.concatenate([rng.normal(0, 0.16, 2), rng.normal(0, 0.12, 1)]),
        blood=BLOOD * rng.uniform(0.92, 1.08),
        muscle=MUSCLE * rng.uniform(0.88, 1.12),
        noise=rng.uniform(0.016, 0.032),
        blur=rng.uniform(0.8, 1.3),
    )


def render(
    heart: Heart,
    scene: Scene,
    x: np.ndarray,
    y: np.ndarray,
    phases: Sequence[float],
    level: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """One slice at several phases, at points x, y [H, W]: brightness float32 [P, H, W], about 0 to
    1.1 (before blur and noise), and labels uint8 [P, H, W].
    """
    x, y = x.astype(np.float32), y.astype(np.float32)
    behind, bias, theta = _surroundings(heart, scene, x, y), _bias(scene, x, y), np.arctan2(y, x)
    fat = _fat(heart, scene, theta) - 0.6
    depth = [depths(heart, x, y, phase, level) for phase in phases]
    images = [_paint(scene, behind, each, fat) * bias for each in depth]
    return np.stack(images), np.stack([masks(each) for each in depth])


def finish(image: np.ndarray, scene: Scene, pixel: float, rng: np.random.Generator) -> np.ndarray:
    """The scanner's share: blur within the plane [..., H, W], then noise (the magnitude of a
    complex signal).
    """
    sigma = (0,) * (image.ndim - 2) + (scene.blur / pixel,) * 2
    smooth = gaussian_filter(image.astype(np.float32), sigma, mode="nearest")
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * scene.noise
    return np.hypot(smooth + real, imaginary)


def _paint(
    scene: Scene, behind: np.ndarray, depth: dict[str, np.ndarray], fat: np.ndarray
) -> np.ndarray:
    edge = np.maximum(depth["epicardium"], depth["rv_wall"])
    value = _over(behind, FAT, _soft(edge + fat))
    value = _over(value, scene.muscle, _soft(edge))
    value = _over(value, 0.97 * scene.blood, _soft(depth["rv"]))
    value = _over(value, scene.muscle, _soft(depth["epicardium"]))
    return _over(value, scene.blood, _soft(depth["lv"]))


def _surroundings(heart: Heart, scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lung with vessels, the chest wall (muscle, then fat), the liver under its dome, the
    descending aorta.
    """
    outer = heart.lv_radius + heart.wall
    value = np.full_like(x, LUNG)
    for across, down, radius in scene.vessels:
        value = _over(value, 0.35, _soft(radius - np.hypot(x - across, y - down)))
    angle, gap, radius = scene.aorta
    away = outer + gap + radius
    aorta = np.hypot(x - away * np.cos(angle), y - away * np.sin(angle))
    value = _over(value, CHEST, _soft(radius + 1.5 - aorta))
    value = _over(value, 0.9 * scene.blood, _soft(radius - aorta))
    liver = _beyond(x, y, scene.liver, outer)
    value = _over(value, FAT * 0.8, _soft(liver + 0.8 * heart.fat))
    value = _over(value, LIVER * (1 + 0.05 * np.sin(x / 7 + 1) * np.sin(y / 6)), _soft(liver))
    chest = _beyond(x, y, scene.chest, outer + 0.9 * heart.rv_reach)
    value = _over(value, CHEST, _soft(chest))
    return _over(value, FAT, _soft(chest - scene.chest_fat))


def _fat(heart: Heart, scene: Scene, theta: np.ndarray) -> np.ndarray:
    """Thickness of the fat around the heart, mm: most over the right ventricle, patches elsewhere,
    none in between.
    """
    patches = waves(theta, WALL_ORDERS, scene.patches)
    share = 0.5 + 0.8 * np.cos(theta - heart.angle - 0.2) + 0.5 * patches
    return heart.fat * np.clip(share, 0, None)


def _beyond(
    x: np.ndarray, y: np.ndarray, surface: tuple[float, float, float], edge: float
) -> np.ndarray:
    """Depth beyond a bent line that lies `surface[1]` mm from the heart's edge in the direction
    `surface[0]`.
    """
    angle, gap, bend = surface
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return along - edge - gap + bend * across**2


def _bias(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    u, v = x / 100, y / 100
    return 1 + scene.bias[0] * u + scene.bias[1] * v - abs(scene.bias[2]) * (u**2 + v**2)


def _over(below: np.ndarray, value, share: np.ndarray) -> np.ndarray:
    return below + (value - below) * share


def _soft(depth: np.ndarray, width: float = 0.5) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(depth / (2 * width))


# ---- subjects


@dataclass(frozen=True, eq=False)
class HeartSubject:
    """One synthetic subject: who, what the heart truly measures, and the mid-ventricular slice.

    row: the attributes of a cohort's row and the truth (`lv_ed_area`, `lv_es_area` mm2, `wall_ed`,
    `wall_es` mm mean thickness, `ejection` = 1 - es / ed area, `face`); images: float32 [2, 64, 64]
    (ED, ES) in [-1, 1]; masks: uint8 [2, 64, 64], 0 background, 1 LV, 2 MYO, 3 RV.
    """

    row: dict
    heart: Heart
    images: np.ndarray
    masks: np.ndarray


def draw_heart(settings: PhantomSettings, index: int) -> HeartSubject:
    """Subject number `index`: a function of (settings.seed, index) and the shares alone."""
    rng = numpy_rng(settings.seed, index)
    return draw_subject(rng, draw_person(rng, settings), f"synthetic-heart-{index:05d}", settings)


def draw_hearts(
    settings: PhantomSettings, indices: Iterable[int] | None = None
) -> tuple[Tensor, Tensor, pd.DataFrame]:
    """Draw many subjects (`indices` None: the first `settings.subjects`).

    Returns images float32 [N, 3, 64, 64] (ED, ES, ED) in [-1, 1], masks uint8 [N, 2, 64, 64], and a
    table with one row each: attributes, prompt, classes and truth. Raises `DataError` without an
    index.
    """
    chosen = range(settings.subjects) if indices is None else list(indices)
    if not len(chosen):
        raise DataError("no hearts to draw; give at least one index")
    found = [draw_heart(settings, int(index)) for index in chosen]
    images = torch.from_numpy(np.stack([subject.images for subject in found]))
    labels = torch.from_numpy(np.stack([subject.masks for subject in found]))
    return stack(images), labels, pd.DataFrame([subject.row for subject in found])


def table_of(settings: PhantomSettings, part: str) -> pd.DataFrame:
    """The table of `draw_hearts` for all subjects, without drawing their images; they are named
    after `part`.
    """
    rows = []
    for index in range(settings.subjects):
        _, person, heart = make_subject(settings, index)
        rows.append(_row(person, heart, f"{part}-{index:05d}"))
    return pd.DataFrame(rows)


def image_centre(heart: Heart) -> tuple[float, float]:
    """The middle (x, y) in mm of the box around the segmentation of both phases at
    mid-ventricle.
    """
    x, y = grid(80, 2.0, (-12.0, 0.0))
    found = np.logical_or(*[masks(depths(heart, x, y, phase)) > 0 for phase in (0.0, 1.0)])
    return tuple(float(axis[found].min() + axis[found].max()) / 2 for axis in (x, y))


def draw_subject(
    rng: np.random.Generator,
    person: Person,
    name: str = "synthetic-heart",
    settings: PhantomSettings | None = None,
) -> HeartSubject:
    """Draw the heart of a given person (see `make_person`); `settings` says the size of the
    image.
    """
    settings = settings or PhantomSettings()
    heart = make_heart(rng, person)
    scene = draw_scene(rng, heart)
    x, y = grid(settings.size, settings.pixel_mm, image_centre(heart))
    raw, labels = render(heart, scene, x, y, (0.0, 1.0))
    images = normalise(finish(raw, scene, settings.pixel_mm, rng))
    return HeartSubject(_row(person, heart, name), heart, images, labels)


def make_subject(
    settings: PhantomSettings, index: int
) -> tuple[np.random.Generator, Person, Heart]:
    """Person and heart of subject number `index`, and the random number generator that goes on to
    the image.
    """
    rng = numpy_rng(settings.seed, index)
    person = draw_person(rng, settings)
    return rng, person, make_heart(rng, person)


def _row(person: Person, heart: Heart, name: str) -> dict:
    known = attributes(person, heart)
    return {
        "subject": name,
        **known,
        "pathology": PATHOLOGY[person.face],
        "centre": VENDORS[person.vendor][2],
        "slice": 0,
        "decade": decade(person.age),
        "bmi_class": bmi_class(person.bmi),
        "prompt": prompt_of(known),
    }


def attributes(person: Person, heart: Heart) -> dict:
    """The attributes of a subject, and what the heart truly measures."""
    return {**vars(person), "vendor": VENDORS[person.vendor][0], **truth(heart)}
