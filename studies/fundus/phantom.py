"""Synthetic fundi: grey images centred near the optic disc, and the truth about them.

None of these patients exists. `rules` makes the patient; here the eye is drawn: disc and cup, nerve
fibres, choroid, and what the camera adds. Lengths are pixels of a 128 x 128 image, x to the right,
y down, from the image's middle. Every eye is shown as a right eye: nose to the right, macula to the
left. Brightness runs from about 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fairlib.cohorts.fairgenmed import USES, prompt_of
from fairlib.errors import DataError
from studies.fundus.rules import (
    CALIBRE,
    GRADIENT,
    Patient,
    PhantomSettings,
    draw_patient,
    make_patient,
)
from studies.fundus.vessels import FIELD, Vessels, coverage, grow_vessels

CUP, DISC_EDGE, CUP_EDGE = 0.93, 0.8, 1.5  # brightness of the cup; softness of both edges
# nodes of the random textures, down and across
NETWORK, BLOTCHES, GRAIN, LAMINA = (30, 17), (7, 7), (80, 80), (40, 40)
LEVEL, BLUR, NOISE = (0.95, 1.05), (0.45, 0.70), (0.012, 0.024)  # of the camera, from and to
FIBRES = 220  # nodes of the streaks around the disc
# directions of the thick fibre bundles, radians, 0 to the right and positive upward
BUNDLES = (1.95, -1.95)
KNOWN = (
    *("age", "sex", "race", "ethnicity", "glaucoma", "md", "md_severity", "cdr_status"),
    *("rnflt_status", "refraction"),
)
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
    rng: np.random.Generator,
    subject: str = "synthetic-fundus",
    size: int = 128,
    **attributes: Any,
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
    rng = np.random.default_rng([settings.seed, index])
    return rng, draw_patient(rng, settings)


def use_of(index: int) -> str:
    """The part of the cohort that subject number `index` is in: six in ten train, three test."""
    return USES[(0, 0, 0, 0, 0, 0, 1, 2, 2, 2)[index % 10]]


def draw_fundi(
    settings: PhantomSettings, indices: Iterable[int] | None = None
) -> tuple[Tensor, pd.DataFrame]:
    """Draw many subjects: images float32 [N, 1, H, H] in [-1, 1], and a table (one row each:
    attributes, prompt, truth).

    `indices` None: the first `settings.subjects`. Raises `DataError` when there are none.
    """
    chosen = range(settings.subjects) if indices is None else list(indices)
    if not len(chosen):
        raise DataError("no fundi to draw; give at least one index")
    subjects = [draw_fundus(settings, int(index)) for index in chosen]
    images = torch.from_numpy(np.stack([subject.image for subject in subjects]))
    return images, pd.DataFrame([subject.row for subject in subjects])


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
    network, blotches, grain, lamina = (
        rng.standard_normal(shape, dtype=np.float32) for shape in shapes
    )
    fibres = rng.standard_normal(FIBRES)
    tilt_x, tilt_y, dark = rng.normal(0, (0.02, 0.04, 0.04))
    light = (float(tilt_x) - GRADIENT[patient.ethnicity], float(tilt_y), float(0.18 + dark))
    level, blur, noise = (float(rng.uniform(*ends)) for ends in (LEVEL, BLUR, NOISE))
    bent = _bent(vessels, eye, patient.cdr)
    return Scene(bent, network, blotches, grain, lamina, fibres, light, level, blur, noise)


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
