"""Sheets of images: grids with labels, and same-noise pairs with what changed between them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from fairlib.errors import DataError

PAGE_WIDTH = 6.4  # inches


def image_grid(
    images, columns: int = 8, titles=None, row_labels=None, column_labels=None, cell: float = 1.15
) -> Figure:
    """Images [N, 1, H, W] in [-1, 1], row by row, grey.

    titles: one above each image; row_labels and column_labels: one a row and a column; cell: inches
    a picture.
    """
    images = _checked(images)
    rows = -(-len(images) // columns)
    figure, grid = _sheet(
        rows, columns, cell, 0.2 * (titles is not None), row_labels, column_labels
    )
    for index, panel in enumerate(grid.flat):
        if index >= len(images):
            panel.set_visible(False)
            continue
        panel.imshow(images[index, 0], cmap="gray", vmin=-1, vmax=1)
        if titles is not None:
            _title(panel, titles[index])
    return figure


def before_after(before, after, titles=None, difference: bool = True, cell: float = 1.15) -> Figure:
    """Pairs from the same noise: the images before, after and, with `difference`, after - before
    with its scale.

    before, after: [N, 1, H, W] in [-1, 1]; titles: one above each pair. Brighter after is orange,
    darker is purple.
    """
    before, after = _checked(before), _checked(after)
    if before.shape != after.shape:
        raise DataError(
            f"{before.shape} before and {after.shape} after are no pairs; give the same noise twice"
        )
    labels = ["before", "after", "change"][: 2 + difference]
    figure, grid = _sheet(len(labels), len(before), cell, 0, labels, titles)
    for row, images in enumerate((before, after)):
        for panel, image in zip(grid[row], images, strict=True):
            panel.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
    if difference:
        change = after[:, 0] - before[:, 0]
        limit = max(float(np.quantile(np.abs(change), 0.999)), 0.05)
        for panel, image in zip(grid[2], change, strict=True):
            shown = panel.imshow(image, cmap="PuOr_r", vmin=-limit, vmax=limit)
        bar = figure.colorbar(shown, ax=grid[2].tolist(), pad=0.01, aspect=10, fraction=0.04)
        bar.ax.tick_params(labelsize=8)
    return figure


def _checked(images) -> np.ndarray:
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or images.shape[1] != 1 or len(images) == 0:
        raise DataError(
            f"images of shape {images.shape} cannot be laid out; give [N, 1, H, W] in [-1, 1]"
        )
    return images


def _sheet(rows: int, columns: int, cell: float, extra: float, row_labels, column_labels):
    """A figure of bare panels [rows, columns], with names along its left and upper edges."""
    height = rows * (cell + extra) + 0.3 * (column_labels is not None)
    figure, grid = plt.subplots(
        rows, columns, figsize=(columns * cell + 0.3, height), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for panel in grid.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        panel.grid(False)
    for panel, label in zip(grid[:, 0], row_labels if row_labels is not None else [], strict=False):
        panel.set_ylabel(label, fontsize=9 * _enlarged(figure))
    for panel, label in zip(
        grid[0], column_labels if column_labels is not None else [], strict=False
    ):
        _title(panel, label)
    return figure, grid


def _title(panel, text: str) -> None:
    panel.set_title(
        text, fontsize=8 * _enlarged(panel.figure), fontweight="normal", loc="center", pad=3
    )


def _enlarged(figure: Figure) -> float:
    """How much larger the letters of a wide sheet are, since a page shows it made smaller: at most
    1.6 times.
    """
    return float(np.clip(figure.get_figwidth() / PAGE_WIDTH, 1, 1.6))
