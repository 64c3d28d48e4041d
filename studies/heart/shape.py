"""The shape of a synthetic heart: cavity, wall and right ventricle in a short-axis slice, at any
phase and level.

A `Heart` is a handful of numbers; `depths` evaluates it at any points. Picture coordinates in mm: x
to the right, y down, origin at the centre of the left ventricle; the right ventricle lies to the
left, as seen from the apex. Level runs from -1 (base) over 0 (mid-ventricle) to 1 (apex), phase
from 0 (end-diastole) to 1 (end-systole).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    thin = heart.wall * _wall_scale(level)
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
    return {
        "lv": cavity - radius,
        "epicardium": cavity + wall - radius,
        "rv": rv,
        "rv_wall": rv + 3.0,
    }


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
    """Points x, y [size, size] in mm of a square picture about `centre`."""
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


def _wall_scale(level: float) -> float:
    return 1 - 0.15 * max(level, 0.0) ** 2


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
    shrink = np.sqrt(1 - phase * heart.rv_ejection) * (
        1 - 0.06 * level - 0.45 * max(level, 0.0) ** 2
    )
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
