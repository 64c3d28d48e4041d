"""Sheets of images: grids with labels, same-noise pairs with what changed between them, and cardiac
MRI with the outlines of masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fairlib.errors import DataError
from fairlib.figures.style import GREY, LOOKS, NAMED
from fairlib.measures.dice import STRUCTURES

PAGE_WIDTH = 6.4  # inches
OUTLINES = dict(zip(STRUCTURES, (LOOKS[1].colour, LOOKS[3].colour, LOOKS[4].colour), strict=True))


class Outline(Protocol):
    """A closed curve: `radii` [K] about `centre` (row, column), K angles from the right."""

    centre: tuple[float, float]
    radii: np.ndarray


def image_grid(
    images: ArrayLike,
    columns: int = 8,
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    cell: float = 1.15,
) -> Figure:
    """Images [N, 1, H, W] in [-1, 1], row by row, grey.

    titles: one above each image; row_labels and column_labels: one a row and a column; cell: inches
    an image.
    """
    images = _checked(images)
    rows = -(-len(images) // columns)
    space = 0.0 if titles is None else 0.2
    figure, grid = _sheet(rows, columns, cell, space, row_labels, column_labels)
    for index, panel in enumerate(grid.flat):
        if index >= len(images):
            panel.set_visible(False)
            continue
        panel.imshow(images[index, 0], cmap="gray", vmin=-1, vmax=1)
        if titles is not None:
            _title(panel, titles[index])
    return figure


def before_after(
    before: ArrayLike, after: ArrayLike, titles: Sequence[str] | None = None, cell: float = 1.15
) -> Figure:
    """Pairs from the same noise: the images before, after and after - before with its scale.

    before, after: [N, 1, H, W] in [-1, 1]; titles: one above each pair. Brighter after is orange,
    darker is purple.
    """
    before, after = _checked(before), _checked(after)
    if before.shape != after.shape:
        raise DataError(f"{before.shape} and {after.shape} are no pairs; give the same noise twice")
    labels = ["before", "after", "change"]
    figure, grid = _sheet(len(labels), len(before), cell, 0, labels, titles)
    for row, images in enumerate((before, after)):
        for panel, image in zip(grid[row], images, strict=True):
            panel.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
    change = after[:, 0] - before[:, 0]
    limit = max(float(np.quantile(np.abs(change), 0.999)), 0.05)
    for panel, image in zip(grid[2], change, strict=True):
        shown = panel.imshow(image, cmap="PuOr_r", vmin=-limit, vmax=limit)
    bar = figure.colorbar(shown, ax=grid[2].tolist(), pad=0.01, aspect=10, fraction=0.04)
    bar.ax.tick_params(labelsize=8)
    return figure


def maps(images: ArrayLike, layers: dict[str, np.ndarray], cell: float = 1.25) -> Figure:
    """Slices [N, 1, H, W] in the first row, and below each the signed maps [N, 1, H, W] of every
    layer over its outline.

    Each row has its own scale, symmetric about zero: orange where positive, purple where negative
    (as `before_after`).
    """
    images = _checked(images)
    layers = {name: _checked(values)[:, 0] for name, values in layers.items()}
    figure, grid = _sheet(1 + len(layers), len(images), cell, 0, ["slice", *layers], None)
    for panel, image in zip(grid[0], images[:, 0], strict=True):
        panel.imshow(image, cmap="gray", vmin=-1, vmax=1)
    for row, values in zip(grid[1:], layers.values(), strict=True):
        limit = max(float(np.quantile(np.abs(values), 0.995)), 1e-12)
        for panel, value, image in zip(row, values, images[:, 0], strict=True):
            panel.imshow(value, cmap="PuOr_r", vmin=-limit, vmax=limit)
            panel.contour(image > -0.98, levels=[0.5], colors=GREY, linewidths=0.5)
    return figure


def heart_grid(
    images: ArrayLike,
    masks: ArrayLike | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 6,
) -> Figure:
    """Draw hearts [N, 3, H, W] (ED, ES, ED) in [-1, 1] as columns, with outlines of `masks`.

    masks: uint8 [N, 2, H, W] (ED, ES). columns: at most so many hearts. Raises `DataError` on
    another shape, or without images.
    """
    images = _checked(images, 3)
    rows = ("end-diastole", "end-systole")
    figure, grid = _sheet(2, min(columns, len(images)), 1.5, 0, rows, titles)
    frames = np.stack([(images[:, 0] + images[:, 2]) / 2, images[:, 1]], axis=1)
    for (frame, heart), panel in np.ndenumerate(grid):
        panel.imshow(frames[heart, frame], cmap="gray", vmin=-1, vmax=1)
        for label, colour in enumerate(OUTLINES.values(), 1):
            inside = masks is not None and np.asarray(masks)[heart, frame] == label
            if np.any(inside):
                panel.contour(inside, levels=[0.5], colors=colour, linewidths=1.1)
    return figure


def outlines(
    images: ArrayLike,
    shapes: Sequence[Outline | None],
    titles: Sequence[str] | None = None,
    cell: float = 1.5,
) -> Figure:
    """Slices [N, 1, H, W] with the outline that was measured drawn on each; None: no outline."""
    images = _checked(images)
    figure, grid = _sheet(1, len(images), cell, 0.2, None, titles)
    for panel, image, shape in zip(grid[0], images[:, 0], shapes, strict=True):
        panel.imshow(image, cmap="gray", vmin=-1, vmax=1)
        if shape is not None:
            panel.plot(*closed_curve(shape), color=NAMED["anatomy"].colour, linewidth=1.6)
    return figure


def closed_curve(shape: Outline) -> tuple[np.ndarray, np.ndarray]:
    """(column, row) of an outline's points, the first repeated at the end."""
    angle = np.arange(len(shape.radii) + 1) * 2 * np.pi / len(shape.radii)
    radii = np.append(shape.radii, shape.radii[0])
    return shape.centre[1] + radii * np.cos(angle), shape.centre[0] - radii * np.sin(angle)


def _checked(images: ArrayLike, channels: int = 1) -> np.ndarray:
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or images.shape[1] != channels or len(images) == 0:
        raise DataError(f"images of shape {images.shape}; give [N, {channels}, H, W] in [-1, 1]")
    return images


def _sheet(
    rows: int,
    columns: int,
    cell: float,
    extra: float,
    row_labels: Sequence[str] | None,
    column_labels: Sequence[str] | None,
) -> tuple[Figure, np.ndarray]:
    """A figure of bare panels [rows, columns], with names along its left and upper edges."""
    size = (columns * cell + 0.3, rows * (cell + extra) + 0.3 * (column_labels is not None))
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for panel in grid.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        panel.grid(False)
    for panel, label in zip(grid[:, 0], () if row_labels is None else row_labels, strict=False):
        panel.set_ylabel(label, fontsize=9 * _enlarged(figure))
    for panel, label in zip(grid[0], () if column_labels is None else column_labels, strict=False):
        _title(panel, label)
    return figure, grid


def _title(panel: Axes, text: str) -> None:
    size = 8 * _enlarged(cast(Figure, panel.figure))
    panel.set_title(text, fontsize=size, fontweight="normal", loc="center", pad=3)


def _enlarged(figure: Figure) -> float:
    """How much larger the letters of a wide sheet are, since a page shows it made smaller: at most
    1.6 times.
    """
    return float(np.clip(figure.get_figwidth() / PAGE_WIDTH, 1, 1.6))
