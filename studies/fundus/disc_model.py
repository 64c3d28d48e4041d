"""The model behind `fundus`: brightness along rays from the disc's middle, background, rim and cup
with two soft edges.

Radii are in pixels of a 128 x 128 picture. `rays` [RAYS, K] is brightness over the picture's range;
`known` [RAYS, K] says how far each point counts (vessels do not).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# directions; pixels of 128 between points of a ray, and how far it goes
RAYS, STEP, REACH = 72, 0.6, 33.0
DISC_RADIUS = (11.0, 27.0)  # px of 128: of discs that are looked for
# px: half width of the disc's edge and of the cup's, which is softer, after the smoothing
SOFT = np.array([1.3, 1.8])
LEAST_STEP = 0.08  # of the picture's range: from background to rim
LEAST_CUP = 0.03  # from rim to cup
# of the typical error: what is further from the model hardly counts; vessels are darker
DARKER, BRIGHTER = 1.3, 2.5
HAZE = 2.0  # step from rim to cup over that from background to rim
ROUNDS, HARMONICS = 14, 5


def best_fit(
    rays: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float] | None:
    """Radii of disc and cup [RAYS], brightness (background, rim, cup) and misfit of the model; None
    where no pair of steps is.

    The fit starts from the best circles with a small cup and from the best with a large one, and
    the better end is taken. An end whose outer step is far lower than its inner one took the disc
    for a cup, and the haze around it for a rim: it is taken only if there is no other.
    """
    profile = _median(rays, known)
    fits = [_refine(rays, known, _levels(profile, start), start) for start in _circles(profile)]
    if not fits:
        return None
    values, misfit = min(fits, key=lambda found: (_hazy(found[0]), found[1]))
    disc, cup = (values[i : i + HARMONICS] @ _waves() for i in (0, HARMONICS))
    return disc, cup, values[2 * HARMONICS :][[0, 4, 7]], misfit


def _hazy(values: np.ndarray) -> bool:
    ground, rim, cup = values[2 * HARMONICS :][[0, 4, 7]]
    return bool(cup - rim > HAZE * (rim - ground))


def _refine(
    rays: np.ndarray, known: np.ndarray, levels: np.ndarray, start: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Weighted Gauss-Newton steps from circles of radius `start` (cup, disc): the parameters and
    their misfit.
    """
    edges = 2 * HARMONICS
    values = np.concatenate([np.zeros(edges), levels])
    values[0], values[HARMONICS] = start[1], start[0]
    share, clear = known.ravel(), known.ravel() > 0.5
    for turn in range(ROUNDS):
        model, slopes = _model(values)
        error = (rays - model).ravel()
        typical = max(1.4826 * np.median(np.abs(error[clear])), 0.004)
        reach = np.where(error < 0, DARKER, BRIGHTER) * typical
        # Geman and McClure: what is far off does not count
        weight = share / (1 + (error / reach) ** 2) ** 2
        normal, ridge = (slopes * weight) @ slopes.T, _prior() * typical**2
        pull = slopes @ (weight * error) - ridge * _free(values)
        step = np.linalg.solve(normal + np.diag(ridge + 1e-4 * np.diag(normal) + 1e-9), pull)
        step[:edges] = np.clip(step[:edges], -1.5, 1.5)
        values = values + step
        if turn > 4 and np.abs(step[:edges]).max() < 0.02:
            break
    return values, float((np.minimum(np.abs(error), 0.15) * share).sum() / share.sum())


def _model(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness [RAYS, K] and its derivatives [P, RAYS * K]. Parameters: five harmonics of each
    edge; background (mean, two

    waves, slope along the ray), rim (mean, two waves), cup.
    """
    basis, radii = _waves(), radii_of_rays()
    levels = values[2 * HARMONICS :]
    disc, cup = (
        _soft((values[i : i + HARMONICS] @ basis)[:, None] - radii, width)
        for i, width in zip((0, HARMONICS), SOFT, strict=True)
    )
    ground = (levels[:3] @ basis[:3])[:, None] + levels[3] * (radii - 20) / 20
    rim = (levels[4:7] @ basis[:3])[:, None]
    model = ground + (rim - ground) * disc + (levels[7] - rim) * cup * disc
    steep_disc, steep_cup = (
        2 / width * part * (1 - part) for part, width in zip((disc, cup), SOFT, strict=True)
    )
    by_disc = (rim - ground + (levels[7] - rim) * cup) * steep_disc
    by_cup = (levels[7] - rim) * disc * steep_cup
    outside, middle = 1 - disc, disc * (1 - cup)
    waves = basis[:, :, None]
    slopes = [
        waves * by_disc,
        waves * by_cup,
        waves[:3] * outside,
        (outside * (radii - 20) / 20)[None],
        waves[:3] * middle,
        (disc * cup)[None],
    ]
    return model, np.concatenate(slopes).reshape(len(values), -1)


def _circles(profile: np.ndarray) -> list[tuple[float, float]]:
    """Radii (cup, disc) whose two steps fit the median ray best, all pairs tried: one with a small
    cup, one with a large.

    Both steps must lead down; a kind that has no such pair is left out.
    """
    pairs, design, inverse = _trials()
    found = inverse @ (design @ profile)[:, :, None]
    error = ((profile - (found * design).sum(1)) ** 2).sum(1)
    error[(found[:, 1, 0] < 0.5 * LEAST_CUP) | (found[:, 2, 0] < 0.5 * LEAST_STEP)] = np.inf
    small = pairs[:, 0] < 0.5 * pairs[:, 1]
    best = [int(np.argmin(np.where(kind, error, np.inf))) for kind in (small, ~small)]
    return [tuple(pairs[row]) for row in best if np.isfinite(error[row])]


@lru_cache(maxsize=1)
def _trials() -> tuple[np.ndarray, ...]:
    """Pairs (cup, disc) [P, 2], and for each the regressors [P, 4, K] and their inverse normal
    matrix.
    """
    radii = radii_of_rays()[0]
    pairs = np.array(
        [
            (share * disc, disc)
            for disc in np.arange(*DISC_RADIUS, 0.5)
            for share in np.arange(0.14, 0.97, 0.04)
        ]
    )
    steps = _soft(pairs[:, :, None] - radii, SOFT[::-1, None])
    design = np.concatenate(
        [np.ones((len(pairs), 1, len(radii))), steps, (1 - steps[:, 1:]) * (radii - 20) / 20],
        axis=1,
    )
    return pairs, design, np.linalg.inv(design @ design.transpose(0, 2, 1) + 1e-6 * np.eye(4))


def _median(rays: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The median over rays [K] of what is not vessel."""
    return np.nanmedian(np.where((known > 0.5) | (known.max(axis=0) <= 0.5), rays, np.nan), axis=0)


def _levels(profile: np.ndarray, start: tuple[float, float]) -> np.ndarray:
    radii = radii_of_rays()[0]
    ground, rim, cup = (
        np.median(profile[where]) if where.any() else np.median(profile)
        for where in (
            radii > start[1] + 2,
            (radii > start[0]) & (radii < start[1]),
            radii < start[0],
        )
    )
    return np.array([ground, 0, 0, 0, rim, 0, 0, cup])


def _free(values: np.ndarray) -> np.ndarray:
    """What the prior pulls to zero: the cup's deviation from the disc's shape, and waves of
    brightness.
    """
    found = values.copy()
    ratio = values[HARMONICS] / max(values[0], 1.0)
    found[HARMONICS + 3 : 2 * HARMONICS] -= ratio * values[3:HARMONICS]
    return found


@lru_cache(maxsize=1)
def _prior() -> np.ndarray:
    """Inverse variances: the cup's middle within some 1.5 px of the disc's, its shape within 0.3 px
    of

    the disc's, the rim's brightness even within 0.02.
    """
    weights = np.zeros(2 * HARMONICS + 8)
    weights[HARMONICS + 1 : HARMONICS + 3] = 1 / 1.5**2
    weights[HARMONICS + 3 : 2 * HARMONICS] = 1 / 0.3**2
    weights[3:HARMONICS] = 1 / 3.0**2
    weights[2 * HARMONICS + 5 : 2 * HARMONICS + 7] = 1 / 0.02**2
    return 20 * weights  # neighbouring points of the rays are not independent


@lru_cache(maxsize=1)
def radii_of_rays() -> np.ndarray:
    return np.arange(2.0, REACH, STEP)[None, :]


@lru_cache(maxsize=1)
def _waves() -> np.ndarray:
    """1, cos, sin, cos 2, sin 2 of the rays' angles, [5, RAYS]: what an ellipse off the middle
    needs.
    """
    angle = np.arange(RAYS) * 2 * np.pi / RAYS
    return np.stack(
        [np.ones(RAYS), np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)]
    )


def _soft(depth: np.ndarray, width) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(depth / width)
