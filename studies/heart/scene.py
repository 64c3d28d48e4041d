"""What a short-axis slice of a synthetic heart looks like: its surroundings, the tissues'
brightness, the scanner's share.

Coordinates, level and phase are those of `heart_shape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studies.heart.shape import WALL_ORDERS, Heart, depths, masks, waves

# Brightness of a balanced steady-state free precession picture, 1 = fat.
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
    vessels = np.stack(
        [rng.uniform(-75, 75, 14), rng.uniform(-75, 75, 14), rng.uniform(1.0, 2.4, 14)], axis=1
    )
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
    1.1 (before blur and

    noise), and labels uint8 [P, H, W].
    """
    x, y = x.astype(np.float32), y.astype(np.float32)
    behind, bias, theta = _surroundings(heart, scene, x, y), _bias(scene, x, y), np.arctan2(y, x)
    fat = _fat(heart, scene, theta) - 0.6
    depth = [depths(heart, x, y, phase, level) for phase in phases]
    pictures = [_paint(scene, behind, found, fat) * bias for found in depth]
    return np.stack(pictures), np.stack([masks(found) for found in depth])


def finish(picture: np.ndarray, scene: Scene, pixel: float, rng: np.random.Generator) -> np.ndarray:
    """The scanner's share: blur within the plane [..., H, W], then noise (the magnitude of a
    complex signal).
    """
    from scipy.ndimage import gaussian_filter

    sigma = (0,) * (picture.ndim - 2) + (scene.blur / pixel,) * 2
    smooth = gaussian_filter(picture.astype(np.float32), sigma, mode="nearest")
    real, imaginary = rng.standard_normal((2, *picture.shape), dtype=np.float32) * scene.noise
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
    value = _over(
        value,
        CHEST,
        _soft(radius + 1.5 - np.hypot(x - away * np.cos(angle), y - away * np.sin(angle))),
    )
    value = _over(
        value,
        0.9 * scene.blood,
        _soft(radius - np.hypot(x - away * np.cos(angle), y - away * np.sin(angle))),
    )
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
    share = (
        0.5
        + 0.8 * np.cos(theta - heart.angle - 0.2)
        + 0.5 * waves(theta, WALL_ORDERS, scene.patches)
    )
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
