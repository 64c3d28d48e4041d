"""Cardiac MRI: end-diastole above end-systole, with the outlines of masks."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, stack

from fairlib.cohorts.cardiac import LABELS
from fairlib.errors import DataError
from fairlib.figures.style import LOOKS

OUTLINES = {"LV": LOOKS[1].colour, "MYO": LOOKS[3].colour, "RV": LOOKS[4].colour}


def heart_grid(
    images: Tensor,
    masks: Tensor | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 6,
    cell: float = 1.5,
) -> Figure:
    """Draw hearts [N, 3, H, W] (ED, ES, ED) in [-1, 1] as columns, with outlines of `masks`.

    masks: uint8 [N, 2, H, W] (ED, ES). columns: at most so many hearts; cell: side in inches.
    Raises `DataError` on another shape, or without images.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise DataError(f"images of shape {tuple(images.shape)}; expected [N, 3, H, W]")
    count = min(columns, len(images))
    size = (count * cell + 0.3, 2 * cell + 0.35)
    figure, grid = plt.subplots(2, count, figsize=size, squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    both = stack([(images[:count, 0] + images[:count, 2]) / 2, images[:count, 1]], dim=1)
    for column, frames in enumerate(both):
        for frame, image in enumerate(frames):
            panel = grid[frame, column]
            panel.imshow(image, cmap="gray", vmin=-1, vmax=1)
            if masks is not None:
                _outline(panel, masks[column, frame])
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        if titles is not None:
            style = {"fontsize": 8, "fontweight": "normal", "loc": "center", "pad": 3}
            grid[0, column].set_title(titles[column], **style)
    for frame, label in enumerate(("end-diastole", "end-systole")):
        grid[frame, 0].set_ylabel(label, fontsize=9)
    return figure


def _outline(panel: Axes, mask: Tensor) -> None:
    for name, colour in OUTLINES.items():
        inside = (mask == LABELS[name]).numpy()
        if inside.any():
            panel.contour(inside, levels=[0.5], colors=colour, linewidths=1.1)
