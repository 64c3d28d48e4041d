"""Retinal vessels of a synthetic fundus: arcades of arteries and veins that fork, taper and wind,
as points with radii.

Coordinates as in `phantom`: pixels of a 128 x 128 image, x to the right, y down, from the
image's middle. All vessels of one generation are grown at once; the number of draws does not
depend on the eye.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEP = 1.0  # pixels between the points of a vessel
# The trunks: direction at the disc (degrees, 0 to the right, 90 up), and how far it turns over a
# hundred pixels (right eye).
TRUNKS = ((100, 62), (-100, -62), (92, 82), (-92, -82), (58, -22), (-58, 22), (74, -46), (-74, 46))
ARTERY = np.array([True, True, False, False, True, True, False, False])
RADIUS = {True: 1.00, False: 1.35}  # of a trunk, artery or vein, at the average calibre
FORKS, TWIGS = 3, 2  # branches of each trunk, and of each branch
MACULAR = 6  # short fine vessels that cross the disc's edge by themselves
OPACITY = {True: 0.46, False: 0.60}
FIELD = 128.0  # side of the field, in pixels
WAVES, PERIODS = (0.20, 0.16), (46, 19)  # of the winding: radians, pixels


@dataclass(frozen=True, eq=False)
class Vessels:
    """Points of all vessels: x, y, radius [P] in pixels, opacity [P] in [0, 1], reflex [P] (bool:
    an artery's light line).
    """

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    opacity: np.ndarray
    reflex: np.ndarray

    def where(self, chosen: np.ndarray) -> Vessels:
        """The points of a mask [P]."""
        return Vessels(*(values[chosen] for values in vars(self).values()))


@dataclass(frozen=True, eq=False)
class _Paths:
    """K paths of S points: x, y, heading, radius [K, S]; artery [K]."""

    x: np.ndarray
    y: np.ndarray
    heading: np.ndarray
    radius: np.ndarray
    artery: np.ndarray


def grow_vessels(
    rng: np.random.Generator, hub: tuple[float, float], calibre: float, tortuosity: float
) -> Vessels:
    """Grow the tree of one eye.

    hub: where the trunks leave the disc; calibre and tortuosity: factors about 1.
    """
    middle = np.array(hub)[:, None]
    trunks = _trunks(rng, middle, tortuosity)
    forks = _forks(rng, trunks, FORKS, (16, 74), 62, 0.72, tortuosity)
    twigs = _forks(rng, forks, TWIGS, (8, 44), 38, 0.62, 1.3 * tortuosity)
    parts = [trunks, forks, twigs, _macular(rng, middle, tortuosity)]
    names = ("x", "y", "radius")
    x, y, radius = (np.concatenate([getattr(p, name).ravel() for p in parts]) for name in names)
    artery = np.concatenate([np.repeat(part.artery, part.x.shape[1]) for part in parts])
    radius, opacity = radius * calibre, np.where(artery, OPACITY[True], OPACITY[False])
    near = (np.abs(x) < 68) & (np.abs(y) < 68) & (radius > 0.2)
    return Vessels(x, y, radius, opacity, artery & (radius > 0.75)).where(near)


def coverage(vessels: Vessels, width: float, size: int, scale: float) -> np.ndarray:
    """How much of each pixel vessels cover times their opacity, float32 [size, size]; `width`
    scales the radii. scale: pixels of this image a pixel of 128.
    """
    canvas = np.zeros(size * size, np.float32)
    x, y = ((place + FIELD / 2) * scale - 0.5 for place in (vessels.x, vessels.y))
    radius = (vessels.radius * width * scale).astype(np.float32)
    points = (x, y, radius, vessels.opacity)
    thin, broadest = radius <= scale, radius.max(initial=0) / scale
    for chosen, largest in ((thin, 1.0), (~thin, broadest)):
        if chosen.any():
            reach = int(np.ceil(largest * scale + 0.5))
            _stamp(canvas, size, reach, [values[chosen] for values in points])
    return canvas.reshape(size, size)


def _stamp(canvas: np.ndarray, size: int, reach: int, points: list[np.ndarray]) -> None:
    """Write soft discs into the flat `canvas`, keeping the larger value where they overlap.

    points: x, y, radius, opacity, each [P].
    """
    x, y, radius, opacity = points
    offset, radius = np.arange(-reach, reach + 1), radius[:, None, None]
    columns = (np.rint(x).astype(np.int32)[:, None] + offset)[:, None, :]
    rows = (np.rint(y).astype(np.int32)[:, None] + offset)[:, :, None]
    away = np.hypot(columns - x[:, None, None], rows - y[:, None, None]).astype(np.float32)
    # A vessel thinner than a pixel covers part of it.
    share = np.clip(radius + 0.55 - away, 0, np.minimum(1, 1.2 * radius)) * opacity[:, None, None]
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size) & (share > 0)
    np.maximum.at(canvas, (rows * size + columns)[inside], share[inside])


def _trunks(rng: np.random.Generator, middle: np.ndarray, tortuosity: float) -> _Paths:
    angle, turn = np.radians(np.array(TRUNKS, float)).T
    heading = angle + rng.normal(0, 0.09, 8)
    radius = np.where(ARTERY, RADIUS[True], RADIUS[False]) * np.exp(rng.normal(0, 0.06, 8))
    start = middle + rng.normal(0, 0.6, (2, 8))
    # veins lie to the temporal side
    start += np.stack([np.where(ARTERY, 0.9, -0.9), np.where(heading > 0, -1.2, 1.2)])
    turn = turn / 100 * np.exp(rng.normal(0, 0.3, 8))
    return _walk(rng, (start, heading, turn, radius, ARTERY), 100, tortuosity)


def _forks(
    rng: np.random.Generator,
    parents: _Paths,
    each: int,
    where: tuple[int, int],
    length: int,
    thinner: float,
    tortuosity: float,
) -> _Paths:
    """`each` branches of every parent, alternately to either side, which turn back to run along
    with it.
    """
    count, steps = parents.x.shape
    shape, row = (count, each), np.arange(count)[:, None]
    bins = np.linspace(*where, each + 1)
    place = (bins[:-1] + rng.random(shape) * np.diff(bins)).astype(int).clip(0, steps - 1)
    side = np.where((np.arange(each) + rng.integers(0, 2, (count, 1))) % 2, 1.0, -1.0)
    heading = (parents.heading[row, place] + side * rng.uniform(0.45, 0.95, shape)).ravel()
    turn = (-side * rng.uniform(0.002, 0.012, shape)).ravel()
    radius = parents.radius[row, place] * thinner * np.exp(rng.normal(0, 0.08, shape))
    start = np.stack([parents.x[row, place].ravel(), parents.y[row, place].ravel()])
    artery = np.repeat(parents.artery, each)
    return _walk(rng, (start, heading, turn, radius.ravel(), artery), length, tortuosity)


def _macular(rng: np.random.Generator, middle: np.ndarray, tortuosity: float) -> _Paths:
    number = np.arange(MACULAR)
    spread = np.concatenate([np.linspace(-0.75, 0.75, MACULAR - 2), [-0.25, 0.3]])
    spread = spread + rng.normal(0, 0.12, MACULAR)
    # most to the macula, two to the nose
    heading = spread + np.where(number < MACULAR - 2, np.pi, 0)
    radius = rng.uniform(0.34, 0.62, MACULAR)
    start = middle + 11 * np.stack([np.cos(heading), -np.sin(heading)])
    artery = number % 2 == 0
    return _walk(rng, (start, heading, -0.010 * spread, radius, artery), 52, 1.2 * tortuosity)


def _walk(
    rng: np.random.Generator, beginnings: tuple[np.ndarray, ...], length: int, tortuosity: float
) -> _Paths:
    """Paths [K, length] whose heading turns steadily and winds in two waves, and whose radius
    shrinks by 45 %.

    beginnings: start (x, y) [2, K]; heading, turn a pixel, radius, artery, each [K].
    """
    start, heading, turn, radius, artery = beginnings
    s, shape = np.arange(length) * STEP, (2, len(heading), 1)
    phases, stretches = rng.uniform(0, 2 * np.pi, shape), rng.uniform(0.85, 1.15, shape)
    winding = sum(
        size * np.sin(2 * np.pi * s / (period * stretch) + phase) - size * np.sin(phase)
        for size, period, phase, stretch in zip(WAVES, PERIODS, phases, stretches, strict=True)
    )
    course = heading[:, None] + turn[:, None] * s + tortuosity * winding
    x = start[0][:, None] + np.cumsum(np.cos(course), axis=1) * STEP
    y = start[1][:, None] - np.cumsum(np.sin(course), axis=1) * STEP
    return _Paths(x, y, course, radius[:, None] * (1 - 0.45 * s / length), artery)
