"""The anatomical measurement: the size of the brain in a slice by geometry alone, and sex from its
width and length. No learned image feature, nothing a gradient has touched.

Thresholds of raw pixels are fooled by background noise. So rays run from the middle of the brain
outward; each finds its edge where the smoothed brightness falls half way from the tissue beneath it
to the background; neighbouring rays then overrule a stray one. Sub-pixel, and unmoved by noise,
texture, bias field and salt (tested).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from fairlib.errors import DataError
from fairlib.io import read_json, write_json
from fairlib.measures.shares import sigmoid

PIXEL_MM = 1.6
RAYS = 180
# px at 128 x 128; texture is averaged away and an edge stays where it was (a median filter moves
# thin rims)
SMOOTH = 1.6
# px: each ray looks this far to either side of the coarse edge, in such steps
INSIDE, OUTSIDE, STEP = 9.0, 4.0, 0.5
# the area adds nothing to width and length (same AUC)
AXES, AREA = ("width_mm", "length_mm"), ("extent_mm",)
TOGETHER = 8  # images measured at once: few, so that they stay in the processor's cache
CROSS = ndimage.generate_binary_structure(2, 1)[None]  # neighbours within each image of a batch
SMALLEST_MM2 = 3000.0  # a smaller outline is not a brain slice
MEASURES = ("area_mm2", "width_mm", "length_mm", "extent_mm")


@dataclass(frozen=True)
class Outline:
    """The brain's edge: `centre` (row, column) and `radii` [RAYS] in pixels, anticlockwise from the
    right.
    """

    centre: tuple[float, float]
    radii: np.ndarray


def measure(images: np.ndarray, pixel_mm: float = PIXEL_MM) -> pd.DataFrame:
    """Anatomy of slices [N, 1, H, H] in [-1, 1] with background -1: one row an image.

    area_mm2 within the outer edge; width_mm and length_mm, the axes of the ellipse of the same
    second moments (width is the shorter); extent_mm, the diameter of the circle of the same area.
    An image without a brain gives NaN. Raises `DataError` on another shape.
    """
    images = np.asarray(images, dtype=np.float32)
    size = images.shape[-1]
    if images.ndim != 4 or images.shape[1:] != (1, size, size) or size < 64:
        raise DataError(
            f"images of shape {images.shape}; anatomy is measured on [N, 1, H, H] with H of at "
            "least 64"
        )
    table = np.full((len(images), len(MEASURES)), np.nan)
    for start in range(0, len(images), TOGETHER):
        rows = slice(start, start + TOGETHER)
        table[rows] = _measure(images[rows, 0], pixel_mm)
    return pd.DataFrame(table, columns=list(MEASURES))


def _measure(images: np.ndarray, pixel_mm: float) -> np.ndarray:
    """The measures [N, 4] of `images` [N, H, H]; NaN where there is no brain."""
    table = np.full((len(images), len(MEASURES)), np.nan)
    kept, _, radii = _outlines(images)
    area, width, length = polygon_shape(radii)
    lengths = pixel_mm * np.stack([width, length, 2 * np.sqrt(area / np.pi)], axis=1)
    table[kept] = np.concatenate([area[:, None] * pixel_mm**2, lengths], axis=1)
    table[kept[area * pixel_mm**2 < SMALLEST_MM2]] = np.nan
    return table


def outline(image: np.ndarray) -> Outline | None:
    """The outer edge of the brain in one slice [H, H] in [-1, 1]; None where there is no brain to
    be found.
    """
    kept, centres, radii = _outlines(np.asarray(image, dtype=np.float32)[None])
    return Outline(tuple(centres[0]), radii[0]) if len(kept) else None


def rim_share(values: np.ndarray, *shapes: list[Outline], width: float = 5.0) -> float:
    """Share of the power of maps [N, 1, H, W] that lies within `width` pixels of each slice's
    outline, or of one of its outlines, in [0, 1].
    """
    size = values.shape[-1]
    row, column = np.mgrid[:size, :size]
    away = np.array([[np.abs(_beyond(one, row, column)) for one in each] for each in shapes])
    power = values[:, 0] ** 2
    return float(power[away.min(0) <= width].sum() / power.sum())


def _beyond(shape: Outline, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """How far pixels lie outside an `Outline` along their own ray, in pixels; negative inside."""
    up, right, rays = shape.centre[0] - row, column - shape.centre[1], len(shape.radii)
    ray = np.round(np.arctan2(up, right) / (2 * np.pi) * rays).astype(int) % rays
    return np.hypot(up, right) - shape.radii[ray]


def _outlines(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of slices [N, H, H]: which M of them show a brain [M], its centre [M, 2] and radii
    [M, RAYS].
    """
    scale = images.shape[-1] / 128
    bright = (images + 1) / 2
    kept, masks = _coarse(bright, scale)
    if not len(kept):
        return kept, np.empty((0, 2)), np.empty((0, RAYS))
    numbers = np.arange(1, len(kept) + 1)
    marked = masks * numbers[:, None, None]
    centres = 2 * np.array(ndimage.center_of_mass(masks, marked, numbers)).reshape(-1, 3)[:, 1:]
    smooth = ndimage.gaussian_filter(bright[kept], (0, SMOOTH * scale, SMOOTH * scale))
    around = _coarse_radii(masks, centres)
    return kept, centres, _steady(_edges(smooth, centres, around, scale))


def _coarse(bright: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The brain at half the resolution, filled: the largest part that stands out from the image's
    frame; which M images have one [M], and their masks [M, H / 2, H / 2].
    """
    halved = ndimage.gaussian_filter1d(bright, 2 * scale, axis=1)[:, ::2]
    small = ndimage.gaussian_filter1d(halved, 2 * scale, axis=2)[:, :, ::2]
    frame = _frame(small)
    background = np.median(frame, axis=1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(frame - background), axis=1, keepdims=True)
    contrast = np.percentile(small, 98, axis=(1, 2))[:, None] - background
    above = np.maximum(0.12 * contrast, np.minimum(5 * spread, 0.2 * contrast))
    parts = ndimage.binary_opening(small > (background + above)[:, :, None], CROSS)
    kept = np.flatnonzero(parts.any((1, 2)) & (contrast[:, 0] >= 0.05))
    if not len(kept):
        return kept, parts[kept]
    largest = np.stack([_largest(part) for part in parts[kept]])
    reach = round(4 * scale)
    inner = slice(reach + 1, -reach - 1)
    around = ((0, 0), (reach + 1, reach + 1), (reach + 1, reach + 1))
    closed = ndimage.binary_closing(np.pad(largest, around), CROSS, reach)[:, inner, inner]
    return kept, ndimage.binary_fill_holes(closed | largest, CROSS)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of one mask [H, W]."""
    labels, _ = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _frame(images: np.ndarray, width: int = 3) -> np.ndarray:
    """The outermost `width` pixels of each of [N, H, W], [N, P]."""
    sides = images[:, :width], images[:, -width:], images[..., :width], images[..., -width:]
    return np.concatenate([side.reshape(len(images), -1) for side in sides], axis=1)


def _directions() -> tuple[np.ndarray, np.ndarray]:
    """(row, column) steps of the rays, each [RAYS, 1]."""
    angle = np.arange(RAYS)[:, None] * 2 * np.pi / RAYS
    return -np.sin(angle), np.cos(angle)


def _coarse_radii(masks: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """How far each coarse mask reaches along each ray, [M, RAYS] in full-resolution pixels."""
    side = masks.shape[-1]
    which, *places = masks.nonzero()
    furthest = np.linalg.norm(2 * np.stack(places, axis=1) - centres[which], axis=1).max()
    steps = np.arange(0, furthest + 4, STEP)  # no pixel of a mask is further
    rows, columns = (
        np.rint((centre[:, None, None] + steps * direction) / 2).astype(int)
        for centre, direction in zip(centres.T, _directions(), strict=True)
    )
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    which = np.arange(len(masks))[:, None, None]
    hit = inside & masks[which, np.clip(rows, 0, side - 1), np.clip(columns, 0, side - 1)]
    return np.where(hit, steps, 0).max(-1)


def _edges(smooth: np.ndarray, centres: np.ndarray, around: np.ndarray, scale: float) -> np.ndarray:
    """The radius [M, RAYS] at which each ray leaves the brain: half way between tissue and
    background.
    """
    offsets = np.arange(-INSIDE, OUTSIDE + STEP, STEP) * scale
    radii = np.maximum(around[..., None] + offsets, 0)
    profile = _along(smooth, centres, radii)
    background = np.median(_frame(smooth, 6), axis=1)[:, None]
    tissue = profile[..., (offsets >= -6 * scale) & (offsets <= 0)].max(-1)
    half = (background + ndimage.gaussian_filter1d(tissue, 4, mode="wrap"))[..., None] / 2
    beyond = profile.shape[-1] - 2
    last = beyond + 1 - (profile[..., ::-1] > half).argmax(-1)
    last = np.clip(last, 0, beyond)[..., None]
    at, after = (np.take_along_axis(profile, place, -1) for place in (last, last + 1))
    part = np.clip((at - half) / np.maximum(at - after, 1e-6), 0, 1)
    return (np.take_along_axis(radii, last, -1) + part * STEP * scale)[..., 0]


def _along(images: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Brightness along the rays of each image at `radii` [M, RAYS, K]; black outside it."""
    rows, columns = (
        centre[:, None, None] + radii * direction
        for centre, direction in zip(centres.T, _directions(), strict=True)
    )
    which = np.broadcast_to(np.arange(len(images))[:, None, None], radii.shape)
    return ndimage.map_coordinates(images, [which, rows, columns], order=1, mode="constant")


def _steady(radii: np.ndarray) -> np.ndarray:
    """Radii [M, RAYS] with stray rays (a notch, a speck) overruled by their neighbours."""
    return ndimage.gaussian_filter1d(
        ndimage.median_filter(radii, (1, 9), mode="wrap"), 2, mode="wrap"
    )


def polygon_shape(radii: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(area, short axis, long axis) of star-shaped polygons with these `radii` [..., K] at equal
    angles; each [...].

    The axes are those of the ellipse with the polygon's second moments.
    """
    angle = np.arange(radii.shape[-1]) * 2 * np.pi / radii.shape[-1]
    x, y = radii * np.cos(angle), radii * np.sin(angle)
    u, v = np.roll(x, -1, -1), np.roll(y, -1, -1)
    cross = x * v - u * y  # twice the area of each triangle with the centre
    area = cross.sum(-1) / 2
    mean = np.stack([((x + u) * cross).sum(-1), ((y + v) * cross).sum(-1)], -1)
    mean = mean / (6 * area)[..., None]
    xx, yy = (((x * x + x * u + u * u) * cross).sum(-1), ((y * y + y * v + v * v) * cross).sum(-1))
    xy = ((x * v + 2 * x * y + 2 * u * v + u * y) * cross).sum(-1) / 2
    moments = np.stack([xx, xy, xy, yy], -1) / (12 * area)[..., None]
    moments = moments.reshape(*area.shape, 2, 2) - mean[..., :, None] * mean[..., None, :]
    axes = 4 * np.sqrt(np.linalg.eigvalsh(moments))
    return area, axes[..., 0], axes[..., 1]


@dataclass(frozen=True)
class AnatomicalMeasurement:
    """Logistic regression of sex on the logarithms of `features` of the outline (width and length,
    or the extent alone, which is the area), each taken about the mean of its contrast.

    Fluid around the brain shows on t2 and not on t1, so one brain measures 6 % more area on t2:
    contrasts have their own mean. `means`: {contrast: (*features, extent)}, logarithms, the average
    of both sexes' means; `spread`: standard deviations within sex of the features; `weights`: of
    the features, and the intercept.
    """

    means: dict[str, tuple[float, ...]]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    pixel_mm: float = PIXEL_MM
    features: tuple[str, ...] = AXES

    def read(self, images: np.ndarray, contrasts: Sequence[str]) -> pd.DataFrame:
        """Measure images [N, 1, H, H] in [-1, 1] of these contrasts [N]: a row an image.

        The columns of `measure`, of which `extent_mm` is freed of the contrast (as the brain would
        measure on the average one), and `p_female` in [0, 1]. An image without a brain reads NaN.
        Raises `DataError` on a contrast never fitted, and unless there is one for each image.
        """
        if len(contrasts) != len(images):
            raise DataError(
                f"{len(contrasts)} contrasts for {len(images)} images; give one for each"
            )
        unknown = sorted(set(contrasts) - set(self.means))
        if unknown:
            raise DataError(
                f"the anatomical measurement was never fitted on contrast {unknown[0]!r}; it knows "
                f"{', '.join(self.means)}"
            )
        table = measure(images, self.pixel_mm)
        means = np.array([self.means[contrast] for contrast in contrasts])
        centred = _logs(table, self.features) - means
        p_female = sigmoid(centred[:, :-1] / self.spread @ self.weights[:-1] + self.weights[-1])
        typical = np.mean([mean[-1] for mean in self.means.values()])
        return table.assign(p_female=p_female, extent_mm=np.exp(centred[:, -1] + typical))

    def save(self, path: str | Path) -> Path:
        """Write the measurement as JSON."""
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> AnatomicalMeasurement:
        """Read what `save` wrote."""
        found = read_json(path)
        means = {contrast: tuple(values) for contrast, values in found["means"].items()}
        parts = (tuple(found[name]) for name in ("spread", "weights"))
        features = tuple(found.get("features", AXES))
        return cls(means, *parts, found["pixel_mm"], features)


def fit_anatomy(
    images: np.ndarray,
    female: np.ndarray,
    contrasts: Sequence[str],
    pixel_mm: float = PIXEL_MM,
    features: tuple[str, ...] = AXES,
) -> AnatomicalMeasurement:
    """Fit the anatomical measurement on real slices [N, 1, H, H] with `female` [N] (1 or 0) and
    `contrasts` [N].

    Classes are weighted equally, so 0.5 lies half way between the sexes whatever their shares.
    Slices without a readable brain are left out; `DataError` when more than 5 % are, or a contrast
    lacks a sex.
    """
    female, contrasts = np.asarray(female), np.asarray(contrasts)
    measures = measure(images, pixel_mm)
    good = measures.extent_mm.notna().to_numpy()
    if not len(good) == len(female) == len(contrasts) or good.mean() < 0.95:
        raise DataError(
            f"{int((~good).sum())} of {len(good)} slices show no brain that can be outlined; "
            "give slices in [-1, 1] with background -1, one sex and one contrast for each"
        )
    return _fit(measures[good], female[good], contrasts[good], pixel_mm, features)


def _fit(
    measures: pd.DataFrame,
    female: np.ndarray,
    contrasts: np.ndarray,
    pixel_mm: float,
    features: tuple[str, ...],
) -> AnatomicalMeasurement:
    from sklearn.linear_model import LogisticRegression

    logs = _logs(measures, features)
    means = {
        str(name): _middle(logs[contrasts == name], female[contrasts == name], name)
        for name in np.unique(contrasts)
    }
    centred = logs - np.array([means[str(name)] for name in contrasts])
    by_sex = [centred[female == sex] for sex in (0, 1)]
    within = np.concatenate([part - part.mean(0) for part in by_sex])
    spread = within.std(0)[:-1]
    model = LogisticRegression(C=10.0, class_weight="balanced")
    model.fit(centred[:, :-1] / spread, female)
    weights = _floats([*model.coef_[0], model.intercept_[0]])
    return AnatomicalMeasurement(means, _floats(spread), weights, pixel_mm, features)


def _middle(logs: np.ndarray, female: np.ndarray, contrast: str) -> tuple[float, ...]:
    """Half way between the means of the two sexes in one contrast."""
    if set(np.unique(female)) != {0, 1}:
        raise DataError(
            f"contrast {contrast!r} lacks slices of one sex; both are needed, as 1 (female) and "
            "0 (male)"
        )
    return _floats((logs[female == 0].mean(0) + logs[female == 1].mean(0)) / 2)


def _logs(measures: pd.DataFrame, features: tuple[str, ...]) -> np.ndarray:
    return np.log(measures[[*features, "extent_mm"]].to_numpy(float))


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, values))
