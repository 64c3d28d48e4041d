"""From a segmented short-axis stack in two phases to a few pictures: which slices, which way up,
which millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairlib.cohorts.cardiac import LABELS, PIXEL_MM, SIZE, normalise
from fairlib.cohorts.slices import resampling
from fairlib.errors import DataError, SettingsError

LV, MYO, RV = LABELS["LV"], LABELS["MYO"], LABELS["RV"]
ENCLOSED = 0.8  # share of the cavity's border that must lie on the myocardium
# from the apex to the right, back and up (RAS), as hearts lie
TOWARD_BASE = np.array([1.0, -1.0, 1.0])


@dataclass(frozen=True)
class CardiacSettings:
    """size: pixels a side. pixel_mm: width of a pixel, the same for everybody, because size carries
    sex and disease.

    slices_per_subject: at most so many, next to the middle of those that show both ventricles and
    the myocardium.
    """

    size: int = SIZE
    pixel_mm: float = PIXEL_MM
    slices_per_subject: int = 1

    def __post_init__(self):
        if self.size < 8 or self.pixel_mm <= 0 or self.slices_per_subject < 1:
            raise SettingsError(
                f"{self}: size must be at least 8, pixel_mm positive, slices_per_subject at least 1"
            )

    @property
    def field_of_view_mm(self) -> float:
        return self.size * self.pixel_mm


STANDARD = CardiacSettings()


@dataclass(frozen=True, eq=False)
class HeartSlices:
    """The pictures of one subject, n of them.

    images: float32 [n, 2, size, size] (ED, ES) in [-1, 1]; masks: uint8 [n, 2, size, size], 0
    background, 1 LV, 2 MYO, 3 RV; index: number of each slice in the file; cropped: whether a
    segmentation exceeds its picture; order: the labels that meant (LV, MYO, RV) in the file.
    """

    images: np.ndarray
    masks: np.ndarray
    index: tuple[int, ...]
    cropped: bool
    order: tuple[int, int, int]


def label_order(labels: np.ndarray) -> tuple[int, int, int]:
    """Which of the labels 1, 2, 3 are (LV, MYO, RV), decided on the data: the myocardium encloses
    the left ventricle.

    labels: uint8 [X, Y, ...], any further axes. For each pair, the share of a label's in-plane
    border that lies on the other is measured; LV and MYO are the pair with the largest. Raises
    `DataError` when a label is absent or no label is enclosed by another (less than 80 % of its
    border).
    """
    if missing := {1, 2, 3} - set(np.unique(labels).tolist()):
        raise DataError(
            f"labels {sorted(missing)} are absent; the left ventricle can only be told with all "
            "three"
        )
    touching = np.zeros((4, 4))
    for axis in (0, 1):
        first, second = (
            np.take(labels, np.arange(k, labels.shape[axis] - 1 + k), axis) for k in (0, 1)
        )
        counts = np.bincount((4 * first.astype(int) + second).ravel(), minlength=16).reshape(4, 4)
        touching += counts + counts.T
    np.fill_diagonal(touching, 0)
    share = (touching / touching.sum(axis=1, keepdims=True))[1:, 1:]
    lv, myo = np.unravel_index(share.argmax(), share.shape)
    if share[lv, myo] < ENCLOSED:
        raise DataError(
            f"no label encloses another (at most {share[lv, myo]:.0%} of a border); is it a "
            "short-axis segmentation?"
        )
    return int(lv) + 1, int(myo) + 1, 6 - int(lv) - int(myo) - 2


def extract(
    images: np.ndarray, labels: np.ndarray, affine: np.ndarray, settings: CardiacSettings = STANDARD
) -> HeartSlices:
    """Choose, turn, crop and normalise the slices of one subject: images and labels [X, Y, Z, 2]
    (ED, ES) on one grid.

    Raises `DataError` when no slice shows all three structures in both phases, or a picture has a
    single value.
    """
    order = label_order(labels)
    labels = np.array([0, *(order.index(label) + 1 for label in (1, 2, 3))], np.uint8)[labels]
    index = choose(labels, settings.slices_per_subject)
    found = [_picture(images[:, :, z], labels[:, :, z], affine, settings) for z in index]
    pictures, masks, cropped = zip(*found, strict=True)
    return HeartSlices(np.stack(pictures), np.stack(masks), index, any(cropped), order)


def choose(labels: np.ndarray, count: int) -> tuple[int, ...]:
    """Numbers of the `count` slices of labels [X, Y, Z, 2] nearest the middle of those with LV, MYO
    and RV in both phases.
    """
    present = np.stack(
        [(labels == label).any(axis=(0, 1)).all(axis=1) for label in (LV, MYO, RV)]
    ).all(axis=0)
    whole = np.flatnonzero(present)
    if not len(whole):
        raise DataError(
            "no slice shows LV, MYO and RV in both ED and ES; check the frames, or leave the "
            "subject out"
        )
    middle = whole[len(whole) // 2]
    return tuple(sorted(sorted(whole.tolist(), key=lambda z: (abs(z - middle), z))[:count]))


def _picture(
    images, labels, affine, settings: CardiacSettings
) -> tuple[np.ndarray, np.ndarray, bool]:
    """One slice, images and labels [X, Y, 2]: pictures and masks [2, size, size], and whether the
    heart exceeds them.
    """
    sizes = np.sqrt((affine[:3, :2] ** 2).sum(axis=0))
    boxes = [np.flatnonzero((labels > 0).any(axis=(1 - axis, 2))) for axis in (0, 1)]
    drawers = [
        resampling(labels.shape[axis], sizes[axis], (box[0] + box[-1]) / 2, settings)
        for axis, box in enumerate(boxes)
    ]
    grey = np.einsum("cx,xyp,ry->prc", drawers[0], images, drawers[1], optimize=True)
    parts = np.einsum(
        "cx,xypk,ry->kprc", drawers[0], labels[..., None] == np.arange(4), drawers[1], optimize=True
    )
    parts[0] += 1 - parts.sum(axis=0)  # beyond the volume there is background
    grey, masks = upright(grey, parts.argmax(axis=0).astype(np.uint8), affine)
    widths = [(box[-1] - box[0] + 1) * size for box, size in zip(boxes, sizes, strict=True)]
    return normalise(grey), masks, max(widths) > settings.field_of_view_mm


def upright(
    pictures: np.ndarray, masks: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror and turn by quarters until the heart is seen from the apex with the right ventricle on
    the left.

    pictures and masks [..., rows, columns], rows along the file's second axis and columns along its
    first. Whether it is mirrored follows from the affine (the view must run towards the base of the
    heart, which lies to the right, back and up of the apex), how it is turned from the masks:
    oblique stacks have no nearest axes to go by.
    """
    if np.cross(affine[:3, 0], affine[:3, 1]) @ TOWARD_BASE < 0:
        pictures, masks = pictures[..., ::-1], masks[..., ::-1]
    (down, across), (rows, columns) = _centre(masks == RV), _centre(masks == LV)
    down, across = down - rows, across - columns
    turns = int(np.round((np.pi - np.arctan2(-down, across)) / (np.pi / 2))) % 4  # anticlockwise
    return tuple(
        np.ascontiguousarray(np.rot90(values, turns, axes=(-2, -1))) for values in (pictures, masks)
    )


def _centre(inside: np.ndarray) -> np.ndarray:
    return np.array([where.mean() for where in np.nonzero(inside)[-2:]])
