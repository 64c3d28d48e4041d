"""A synthetic heart as a function of space and phase: what a short-axis slice of it looks like.

A `Heart` is a handful of numbers. `render` evaluates it at any points of a slice, so that one definition
makes both the 64 x 64 pictures and the volumes in the M&Ms layout. Picture coordinates in mm: x to the right, y
down, origin at the centre of the left ventricle; the right ventricle lies to the left, as seen from the apex.
Level runs from -1 (base) over 0 (mid-ventricle) to 1 (apex), phase from 0 (end-diastole) to 1 (end-systole).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LV, MYO, RV = 1, 2, 3  # label order of M&Ms
ORDERS = np.arange(2, 6)  # waves around the outline of the cavity
WALL_ORDERS = np.arange(1, 4)  # waves of the wall's thickness
ROUNDNESS = 2.3  # exponent of the superellipse of the right ventricle
# Brightness of a balanced steady-state free precession picture, 1 = fat.
BLOOD, MUSCLE, FAT, LUNG, LIVER, CHEST = 0.82, 0.30, 0.95, 0.05, 0.40, 0.26


@dataclass(frozen=True)
class Heart:
    """One heart at mid-ventricle. Lengths in mm, angles in radians, ejections are shares of area, all at level 0.

    lv_radius: of the circle with the cavity's area in end-diastole; wall: mean thickness in end-diastole;
    thickening: area of the wall in end-systole over end-diastole; rv_reach: how far the right ventricle reaches
    beyond the wall of the left; rv_breadth: its half breadth over the outer radius; angle: where it lies;
    fat: thickness of the fat around the heart; outline [4, 2] and wall_waves [3, 2]: relative cosine and sine
    amplitudes of the deformations.
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


@dataclass(frozen=True)
class Scene:
    """What surrounds the heart, and how it was scanned. Lengths in mm from the heart's edge, angles in radians.

    chest and liver: (direction, distance, curvature 1/mm); chest_fat: depth at which muscle gives way to fat;
    aorta: (direction, distance, radius); patches [3, 2]: amplitudes of the fat's unevenness; vessels [K, 3]: x, y, radius; bias [3]: per 100 mm along x, y and squared;
    blood, muscle: brightness of blood and of muscle; noise: standard deviation; blur: in mm.
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


def draw_outline(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random deformations (outline [4, 2], wall_waves [3, 2]): slightly oval, low-frequency, a few per cent."""
    outline = rng.normal(0, 1, (len(ORDERS), 2)) * np.array([0.030, 0.014, 0.008, 0.005])[:, None]
    waves = rng.normal(0, 1, (len(WALL_ORDERS), 2)) * np.array([0.06, 0.05, 0.03])[:, None]
    return np.clip(outline, -0.07, 0.07), np.clip(waves, -0.14, 0.14)


def draw_scene(rng: np.random.Generator, heart: Heart) -> Scene:
    """Random surroundings; the layer of fat in the chest wall grows with the fat around the heart."""
    vessels = np.stack([rng.uniform(-75, 75, 14), rng.uniform(-75, 75, 14), rng.uniform(1.0, 2.4, 14)], axis=1)
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


def cavity_area(heart: Heart, phase: float = 0.0) -> float:
    """Area of the left ventricle's cavity at mid-ventricle, mm2."""
    return float(np.pi * heart.lv_radius**2 * (1 - phase * heart.ejection))


def mean_wall(heart: Heart, phase: float = 0.0, level: float = 0.0) -> float:
    """Mean thickness of the wall, mm: in end-diastole `heart.wall`, later what keeps `thickening` of its area."""
    thin = heart.wall * _wall_scale(level)
    linear, square = _wall_area_terms(heart, 0.0, level)
    target = (thin * linear + thin**2 * square) * (1 + phase * (heart.thickening - 1))
    linear, square = _wall_area_terms(heart, phase, level)
    return float((np.sqrt(linear**2 + 4 * square * target) - linear) / (2 * square))


def depths(heart: Heart, x: np.ndarray, y: np.ndarray, phase: float, level: float = 0.0) -> dict[str, np.ndarray]:
    """Depth in mm (positive inside) of points below the surfaces: cavity, epicardium, RV cavity, RV wall."""
    radius, theta = np.hypot(x, y), np.arctan2(y, x)
    cavity = _cavity_radius(heart, phase, level) * _shape(heart, theta)
    wall = mean_wall(heart, phase, level) * (1 + _waves(theta, WALL_ORDERS, heart.wall_waves))
    rv = _rv_depth(heart, x, y, phase, level)
    return {"lv": cavity - radius, "epicardium": cavity + wall - radius, "rv": rv, "rv_wall": rv + 3.0}


def masks(depth: dict[str, np.ndarray]) -> np.ndarray:
    """Labels of points from their `depths`: uint8, 0 background, 1 LV cavity, 2 myocardium, 3 RV cavity."""
    found = np.where(depth["rv"] > 0, RV, 0)
    found = np.where(depth["epicardium"] > 0, MYO, found)
    return np.where(depth["lv"] > 0, LV, found).astype(np.uint8)


def render(heart: Heart, scene: Scene, x: np.ndarray, y: np.ndarray, phases: Sequence[float],
           level: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """One slice at several phases, at points x, y [H, W]: brightness float32 [P, H, W], about 0 to 1.1 (before blur and

    noise), and labels uint8 [P, H, W]."""
    x, y = x.astype(np.float32), y.astype(np.float32)
    behind, bias, theta = _surroundings(heart, scene, x, y), _bias(scene, x, y), np.arctan2(y, x)
    fat = _fat(heart, scene, theta) - 0.6
    depth = [depths(heart, x, y, phase, level) for phase in phases]
    pictures = [_paint(scene, behind, found, fat) * bias for found in depth]
    return np.stack(pictures), np.stack([masks(found) for found in depth])


def finish(picture: np.ndarray, scene: Scene, pixel: float, rng: np.random.Generator) -> np.ndarray:
    """The scanner's share: blur within the plane [..., H, W], then noise (the magnitude of a complex signal)."""
    from scipy.ndimage import gaussian_filter

    sigma = (0,) * (picture.ndim - 2) + (scene.blur / pixel,) * 2
    smooth = gaussian_filter(picture.astype(np.float32), sigma, mode="nearest")
    real, imaginary = rng.standard_normal((2, *picture.shape), dtype=np.float32) * scene.noise
    return np.hypot(smooth + real, imaginary)


def _paint(scene: Scene, behind: np.ndarray, depth: dict[str, np.ndarray], fat: np.ndarray) -> np.ndarray:
    edge = np.maximum(depth["epicardium"], depth["rv_wall"])
    value = _over(behind, FAT, _soft(edge + fat))
    value = _over(value, scene.muscle, _soft(edge))
    value = _over(value, 0.97 * scene.blood, _soft(depth["rv"]))
    value = _over(value, scene.muscle, _soft(depth["epicardium"]))
    return _over(value, scene.blood, _soft(depth["lv"]))


def _surroundings(heart: Heart, scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Lung with vessels, the chest wall (muscle, then fat), the liver under its dome, the descending aorta."""
    outer = heart.lv_radius + heart.wall
    value = np.full_like(x, LUNG)
    for across, down, radius in scene.vessels:
        value = _over(value, 0.35, _soft(radius - np.hypot(x - across, y - down)))
    angle, gap, radius = scene.aorta
    away = outer + gap + radius
    value = _over(value, CHEST, _soft(radius + 1.5 - np.hypot(x - away * np.cos(angle), y - away * np.sin(angle))))
    value = _over(value, 0.9 * scene.blood, _soft(radius - np.hypot(x - away * np.cos(angle), y - away * np.sin(angle))))
    liver = _beyond(x, y, scene.liver, outer)
    value = _over(value, FAT * 0.8, _soft(liver + 0.8 * heart.fat))
    value = _over(value, LIVER * (1 + 0.05 * np.sin(x / 7 + 1) * np.sin(y / 6)), _soft(liver))
    chest = _beyond(x, y, scene.chest, outer + 0.9 * heart.rv_reach)
    value = _over(value, CHEST, _soft(chest))
    return _over(value, FAT, _soft(chest - scene.chest_fat))


def _fat(heart: Heart, scene: Scene, theta: np.ndarray) -> np.ndarray:
    """Thickness of the fat around the heart, mm: most over the right ventricle, patches elsewhere, none in between."""
    share = 0.5 + 0.8 * np.cos(theta - heart.angle - 0.2) + 0.5 * _waves(theta, WALL_ORDERS, scene.patches)
    return heart.fat * np.clip(share, 0, None)


def _beyond(x: np.ndarray, y: np.ndarray, surface: tuple[float, float, float], edge: float) -> np.ndarray:
    """Depth beyond a bent line that lies `surface[1]` mm from the heart's edge in the direction `surface[0]`."""
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


def _waves(theta: np.ndarray, orders: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    turn = np.exp(1j * theta.astype(np.float32))
    return sum((turn**int(order) * complex(cosine, -sine)).real for order, (cosine, sine) in zip(orders, amplitudes, strict=True))


def _shape(heart: Heart, theta: np.ndarray) -> np.ndarray:
    """Radius over the radius of the circle with the same area: the deformation leaves the area alone."""
    return (1 + _waves(theta, ORDERS, heart.outline)) / np.sqrt(1 + 0.5 * (heart.outline**2).sum())


def _cavity_radius(heart: Heart, phase: float, level: float) -> float:
    down = max(level, 0.0)
    return np.sqrt(cavity_area(heart, phase) / np.pi) * (1 - 0.02 * level - 0.38 * down**2)


def _wall_scale(level: float) -> float:
    return 1 - 0.15 * max(level, 0.0) ** 2


def _wall_area_terms(heart: Heart, phase: float, level: float) -> tuple[float, float]:
    """The wall's area is mean * linear + mean^2 * square; both integrals are exact for waves of these orders."""
    theta = np.arange(64) * (2 * np.pi / 64)
    waves = 1 + _waves(theta, WALL_ORDERS, heart.wall_waves)
    radius = _cavity_radius(heart, phase, level) * _shape(heart, theta)
    return float(2 * np.pi * (radius * waves).mean()), float(np.pi * (waves**2).mean())


def _rv_depth(heart: Heart, x: np.ndarray, y: np.ndarray, phase: float, level: float) -> np.ndarray:
    """Depth below the surface of a superellipse that the septum cuts; its tips sit on the wall of the left ventricle."""
    outer = _cavity_radius(heart, phase, level) + mean_wall(heart, phase, level)
    shrink = np.sqrt(1 - phase * heart.rv_ejection) * (1 - 0.06 * level - 0.45 * max(level, 0.0) ** 2)
    still = (heart.lv_radius + heart.wall) * (1 - 0.38 * max(level, 0.0) ** 2)
    reach = heart.rv_reach * shrink**1.5
    breadth = heart.rv_breadth * (0.5 * still + 0.5 * outer) * np.sqrt(shrink)
    u = x * np.cos(heart.angle) + y * np.sin(heart.angle)
    v = y * np.cos(heart.angle) - x * np.sin(heart.angle)
    middle = 0.55 * outer
    half = np.where(u > middle, outer + reach - middle, 0.40 * outer)
    along, across = np.abs(u - middle) / half, np.abs(v + 0.10 * reach) / breadth
    norm = (along**ROUNDNESS + across**ROUNDNESS) ** (1 / ROUNDNESS) + 1e-6
    return np.hypot(u - middle, v + 0.10 * reach) * (1 / norm - 1)
