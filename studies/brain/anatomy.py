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
# the area adds nothing to width and length (same AUC), the ventricles tell age
AXES, AREA = ("width_mm", "length_mm"), ("extent_mm",)
SMALLEST_MM2 = 3000.0  # a smaller outline is not a brain slice
MEASURES = ("area_mm2", "width_mm", "length_mm", "extent_mm", "ventricle_mm2")


@dataclass(frozen=True)
class Outline:
    """The brain's edge: `centre` (row, column) and `radii` [RAYS] in pixels, anticlockwise from the
    right.
    """

    centre: tuple[float, float]
    radii: np.ndarray


def measure(
    images: np.ndarray, contrasts: Sequence[str] | None = None, pixel_mm: float = PIXEL_MM
) -> pd.DataFrame:
    """Anatomy of slices [N, 1, H, H] in [-1, 1] with background -1: one row an image.

    area_mm2 within the outer edge; width_mm and length_mm, the axes of the ellipse of the same
    second moments (width is the shorter); extent_mm, the diameter of the circle of the same area;
    ventricle_mm2, deep fluid in the middle, which needs `contrasts` [N] (fluid is bright on t2) and
    is rough beside a tumour. An image without a brain gives NaN. Raises `DataError` on another
    shape.
    """
    images = np.asarray(images, dtype=np.float32)
    size = images.shape[-1]
    if images.ndim != 4 or images.shape[1:] != (1, size, size) or size < 64:
        raise DataError(
            f"images of shape {images.shape}; anatomy is measured on [N, 1, H, H] with H of at "
            "least 64"
        )
    contrasts = [None] * len(images) if contrasts is None else list(contrasts)
    if len(contrasts) != len(images):
        raise DataError(f"{len(contrasts)} contrasts for {len(images)} images; give one for each")
    pairs = zip(images, contrasts, strict=True)
    rows = [_measure(image[0], contrast, pixel_mm) for image, contrast in pairs]
    return pd.DataFrame(rows, columns=list(MEASURES))


def _measure(image: np.ndarray, contrast: str | None, pixel_mm: float) -> tuple[float, ...]:
    found = outline(image)
    if found is None:
        return (np.nan,) * len(MEASURES)
    area, width, length = polygon_shape(found.radii)
    if area * pixel_mm**2 < SMALLEST_MM2:
        return (np.nan,) * len(MEASURES)
    ventricle = np.nan if contrast is None else ventricle_area(image, found, contrast == "t2")
    lengths = pixel_mm * np.array([width, length, 2 * np.sqrt(area / np.pi)])
    return (area * pixel_mm**2, *lengths, ventricle * pixel_mm**2)


def outline(image: np.ndarray) -> Outline | None:
    """The outer edge of the brain in one slice [H, H] in [-1, 1]; None where there is no brain to
    be found.
    """
    scale = len(image) / 128
    bright = (np.asarray(image, dtype=np.float32) + 1) / 2
    mask = _coarse(bright, scale)
    if mask is None:
        return None
    centre = tuple(2 * np.array(ndimage.center_of_mass(mask)))
    smooth = ndimage.gaussian_filter(bright, SMOOTH * scale)
    around = _coarse_radii(mask, centre)
    return Outline(centre, _steady(_edges(smooth, centre, around, scale), scale))


def _coarse(bright: np.ndarray, scale: float) -> np.ndarray | None:
    """The brain at half the resolution, filled: the largest part that stands out from the image's
    frame.
    """
    small = ndimage.gaussian_filter(bright, 2 * scale)[::2, ::2]
    frame = _frame(small)
    background, spread = np.median(frame), 1.4826 * np.median(np.abs(frame - np.median(frame)))
    contrast = np.percentile(small, 98) - background
    level = background + max(0.12 * contrast, min(5 * spread, 0.2 * contrast))
    parts = ndimage.binary_opening(small > level)
    labels, count = ndimage.label(parts)
    if count == 0 or contrast < 0.05:
        return None
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    reach = round(4 * scale)
    inner = slice(reach + 1, -reach - 1)
    closed = ndimage.binary_closing(np.pad(largest, reach + 1), iterations=reach)[inner, inner]
    return ndimage.binary_fill_holes(closed | largest)


def _frame(image: np.ndarray, width: int = 3) -> np.ndarray:
    sides = image[:width], image[-width:], image[:, :width], image[:, -width:]
    return np.concatenate([side.ravel() for side in sides])


def _directions() -> tuple[np.ndarray, np.ndarray]:
    """(row, column) steps of the rays, each [RAYS, 1]."""
    angle = np.arange(RAYS)[:, None] * 2 * np.pi / RAYS
    return -np.sin(angle), np.cos(angle)


def _coarse_radii(mask: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """How far the coarse mask reaches along each ray, [RAYS] in full-resolution pixels."""
    steps = np.arange(0, 1.5 * len(mask), STEP)
    down, right = _directions()
    rows, columns = (
        np.rint((c + steps * d) / 2).astype(int) for c, d in zip(centre, (down, right), strict=True)
    )
    inside = (rows >= 0) & (rows < len(mask)) & (columns >= 0) & (columns < len(mask))
    hit = inside & mask[np.clip(rows, 0, len(mask) - 1), np.clip(columns, 0, len(mask) - 1)]
    return np.where(hit, steps, 0).max(1)


def _edges(
    smooth: np.ndarray, centre: tuple[float, float], around: np.ndarray, scale: float
) -> np.ndarray:
    """The radius [RAYS] at which each ray leaves the brain: half way between tissue and
    background.
    """
    offsets = np.arange(-INSIDE, OUTSIDE + STEP, STEP) * scale
    radii = np.maximum(around[:, None] + offsets, 0)
    profile = _along(smooth, centre, radii)
    background = np.median(_frame(smooth, 6))
    tissue = profile[:, (offsets >= -6 * scale) & (offsets <= 0)].max(1)
    half = (background + ndimage.gaussian_filter1d(tissue, 4, mode="wrap"))[:, None] / 2
    last = profile.shape[1] - 1 - (profile[:, ::-1] > half).argmax(1)
    last = np.clip(last, 0, profile.shape[1] - 2)[:, None]
    at, after = np.take_along_axis(profile, last, 1), np.take_along_axis(profile, last + 1, 1)
    part = np.clip((at - half) / np.maximum(at - after, 1e-6), 0, 1)
    return (np.take_along_axis(radii, last, 1) + part * STEP * scale)[:, 0]


def _along(image: np.ndarray, centre: tuple[float, float], radii: np.ndarray) -> np.ndarray:
    """Brightness along the rays at `radii` [RAYS, K]; black outside the image."""
    down, right = _directions()
    return ndimage.map_coordinates(
        image, [centre[0] + radii * down, centre[1] + radii * right], order=1, mode="constant"
    )


def _steady(radii: np.ndarray, scale: float) -> np.ndarray:
    """Radii with stray rays (a notch, a speck) overruled by their neighbours."""
    return ndimage.gaussian_filter1d(ndimage.median_filter(radii, 9, mode="wrap"), 2, mode="wrap")


def polygon_shape(radii: np.ndarray) -> tuple[float, float, float]:
    """(area, short axis, long axis) of the star-shaped polygon with these `radii` [K] at equal
    angles.

    The axes are those of the ellipse with the polygon's second moments.
    """
    angle = np.arange(len(radii)) * 2 * np.pi / len(radii)
    x, y = radii * np.cos(angle), radii * np.sin(angle)
    u, v = np.roll(x, -1), np.roll(y, -1)
    cross = x * v - u * y  # twice the area of each triangle with the centre
    area = cross.sum() / 2
    mean = np.array([((x + u) * cross).sum(), ((y + v) * cross).sum()]) / (6 * area)
    xx, yy = ((x * x + x * u + u * u) * cross).sum(), ((y * y + y * v + v * v) * cross).sum()
    xy = ((x * v + 2 * x * y + 2 * u * v + u * y) * cross).sum() / 2
    moments = np.array([[xx, xy], [xy, yy]]) / (12 * area) - np.outer(mean, mean)
    short, long = 4 * np.sqrt(np.linalg.eigvalsh(moments))
    return float(area), float(short), float(long)


def ventricle_area(image: np.ndarray, found: Outline, fluid_is_bright: bool) -> float:
    """Fluid in the middle of the brain, in square pixels: pixels nearer to fluid than to the tissue
    around them.

    Rough: a necrotic core near the middle counts too. No sex is read from it.
    """
    bright = ndimage.gaussian_filter((np.asarray(image, np.float32) + 1) / 2, 0.7)
    rows, columns = np.mgrid[: len(image), : len(image)]
    mean = float(found.radii.mean())
    down, right = rows - found.centre[0], columns - found.centre[1]
    middle = (right / (0.30 * mean)) ** 2 + (down / (0.60 * mean)) ** 2 < 1
    tissue = np.median(bright[down**2 + right**2 < (0.8 * mean) ** 2])
    fluid = np.percentile(bright, 99.5) if fluid_is_bright else np.median(_frame(bright, 6))
    share = (bright[middle] - tissue) / (fluid - tissue if abs(fluid - tissue) > 1e-3 else np.inf)
    return float(np.clip(2 * share - 0.5, 0, 1).sum())


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
        Raises `DataError` on a contrast never fitted.
        """
        unknown = sorted(set(contrasts) - set(self.means))
        if unknown:
            raise DataError(
                f"the anatomical measurement was never fitted on contrast {unknown[0]!r}; it knows "
                f"{', '.join(self.means)}"
            )
        table = measure(images, contrasts, self.pixel_mm)
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
    measures = measure(images, None, pixel_mm)
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
