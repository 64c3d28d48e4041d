"""Retinal vessels of a synthetic fundus: arcades of arteries and veins that fork, taper and wind,
as points with radii.

Coordinates as in `fundus_scene`: pixels of a 128 x 128 picture, x to the right, y down, from the
picture's middle. All vessels of one generation are grown at once; the number of draws does not
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
    """The tree of one eye.

    hub: where the trunks leave the disc; calibre and tortuosity: factors about 1.
    """
    trunks = _trunks(rng, hub, tortuosity)
    forks = _forks(rng, trunks, FORKS, (16, 74), 62, 0.72, tortuosity)
    twigs = _forks(rng, forks, TWIGS, (8, 44), 38, 0.62, 1.3 * tortuosity)
    parts = [trunks, forks, twigs, _macular(rng, hub, tortuosity)]
    return _points(parts, calibre)


def coverage(
    vessels: Vessels, width: float, x: np.ndarray, y: np.ndarray, size: int, scale: float
) -> np.ndarray:
    """How much of each pixel vessels cover times their opacity, float32 [size, size]; `width`
    scales the radii.

    x, y [P]: where the points lie, in pixels of this picture; scale: pixels of this picture a pixel
    of 128.
    """
    canvas = np.zeros(size * size, np.float32)
    radius = (vessels.radius * width * scale).astype(np.float32)
    for thin, chosen in ((True, radius <= scale), (False, radius > scale)):
        if chosen.any():
            reach = int(np.ceil((1.0 if thin else radius.max() / scale) * scale + 0.5))
            _stamp(
                canvas, size, x[chosen], y[chosen], radius[chosen], vessels.opacity[chosen], reach
            )
    return canvas.reshape(size, size)


def _stamp(canvas: np.ndarray, size: int, x, y, radius, opacity, reach: int) -> None:
    """Write soft discs into the flat `canvas`, keeping the larger value where they overlap."""
    offset = np.arange(-reach, reach + 1)
    columns, rows = (
        np.rint(x).astype(np.int32)[:, None] + offset,
        np.rint(y).astype(np.int32)[:, None] + offset,
    )
    away = np.hypot((columns - x[:, None])[:, None, :], (rows - y[:, None])[:, :, None]).astype(
        np.float32
    )
    # A vessel thinner than a pixel covers part of it.
    most = np.minimum(1, 1.2 * radius)[:, None, None]
    share = np.clip(radius[:, None, None] + 0.55 - away, 0, most) * opacity[:, None, None]
    inside = (
        ((rows >= 0) & (rows < size))[:, :, None]
        & ((columns >= 0) & (columns < size))[:, None, :]
        & (share > 0)
    )
    np.maximum.at(canvas, (rows[:, :, None] * size + columns[:, None, :])[inside], share[inside])


def _trunks(rng, hub, tortuosity: float) -> _Paths:
    angle, turn = np.radians(np.array(TRUNKS, float)).T
    heading = angle + rng.normal(0, 0.09, 8)
    radius = np.where(ARTERY, RADIUS[True], RADIUS[False]) * np.exp(rng.normal(0, 0.06, 8))
    start = np.array(hub)[:, None] + rng.normal(0, 0.6, (2, 8))
    # veins lie to the temporal side
    start += np.stack([np.where(ARTERY, 0.9, -0.9), np.where(heading > 0, -1.2, 1.2)])
    return _walk(
        rng,
        start,
        heading,
        turn / 100 * np.exp(rng.normal(0, 0.3, 8)),
        radius,
        100,
        tortuosity,
        ARTERY,
    )


def _forks(
    rng,
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
    count = len(parents.artery)
    bins = np.linspace(*where, each + 1)
    place = (
        (bins[:-1] + rng.random((count, each)) * np.diff(bins))
        .astype(int)
        .clip(0, parents.x.shape[1] - 1)
    )
    side = np.where((np.arange(each) + rng.integers(0, 2, (count, 1))) % 2, 1.0, -1.0)
    row = np.arange(count)[:, None]
    heading = parents.heading[row, place] + side * rng.uniform(0.45, 0.95, (count, each))
    turn = -side * rng.uniform(0.002, 0.012, (count, each))
    radius = parents.radius[row, place] * thinner * np.exp(rng.normal(0, 0.08, (count, each)))
    start = np.stack([parents.x[row, place].ravel(), parents.y[row, place].ravel()])
    return _walk(
        rng,
        start,
        heading.ravel(),
        turn.ravel(),
        radius.ravel(),
        length,
        tortuosity,
        np.repeat(parents.artery, each),
    )


def _macular(rng, hub, tortuosity: float) -> _Paths:
    spread = np.concatenate([np.linspace(-0.75, 0.75, MACULAR - 2), [-0.25, 0.3]]) + rng.normal(
        0, 0.12, MACULAR
    )
    # most to the macula, two to the nose
    heading = spread + np.where(np.arange(MACULAR) < MACULAR - 2, np.pi, 0)
    turn = -0.010 * spread
    radius = rng.uniform(0.34, 0.62, MACULAR)
    start = np.array(hub)[:, None] + 11 * np.stack([np.cos(heading), -np.sin(heading)])
    return _walk(
        rng, start, heading, turn, radius, 52, 1.2 * tortuosity, np.arange(MACULAR) % 2 == 0
    )


def _walk(rng, start, heading, turn, radius, length: int, tortuosity: float, artery) -> _Paths:
    """Paths [K, length] whose heading turns steadily and winds in two waves, and whose radius
    shrinks by 45 %.
    """
    s = np.arange(length) * STEP
    waves = (
        rng.uniform(0, 2 * np.pi, (2, len(heading), 1)),
        rng.uniform(0.85, 1.15, (2, len(heading), 1)),
    )
    winding = sum(
        size * np.sin(2 * np.pi * s / (period * stretch) + phase) - size * np.sin(phase)
        for size, period, phase, stretch in zip((0.20, 0.16), (46, 19), *waves, strict=True)
    )
    course = heading[:, None] + turn[:, None] * s + tortuosity * winding
    x = start[0][:, None] + np.cumsum(np.cos(course), axis=1) * STEP
    y = start[1][:, None] - np.cumsum(np.sin(course), axis=1) * STEP
    return _Paths(x, y, course, radius[:, None] * (1 - 0.45 * s / length), artery)


def _points(parts: list[_Paths], calibre: float) -> Vessels:
    radius = np.concatenate([part.radius.ravel() for part in parts]) * calibre
    artery = np.concatenate([np.repeat(part.artery, part.x.shape[1]) for part in parts])
    x, y = (np.concatenate([getattr(part, name).ravel() for part in parts]) for name in ("x", "y"))
    near = (np.abs(x) < 68) & (np.abs(y) < 68) & (radius > 0.2)
    return Vessels(
        *(
            values[near]
            for values in (
                x,
                y,
                radius,
                np.where(artery, OPACITY[True], OPACITY[False]),
                artery & (radius > 0.75),
            )
        )
    )
