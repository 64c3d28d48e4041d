"""Figures: a DataFrame (or images) in, Axes (or a Figure) out, `ax=` as in seaborn. Call
`house_style()` once.
"""

from fairlib.figures.charts import (
    arrow_plot,
    cohort_bars,
    dot_plot,
    group_bars,
    line_panels,
    line_plot,
    logit_distributions,
    reliability,
    reliability_diagram,
    roc_curves,
    scatter,
    strip_plot,
    training_curves,
    training_panels,
)
from fairlib.figures.images import before_after, heart_grid, image_grid, maps, outlines
from fairlib.figures.style import LOOKS, NAMED, house_style, looks

__all__ = [
    "LOOKS",
    "NAMED",
    "arrow_plot",
    "before_after",
    "cohort_bars",
    "dot_plot",
    "group_bars",
    "heart_grid",
    "house_style",
    "image_grid",
    "line_panels",
    "line_plot",
    "logit_distributions",
    "looks",
    "maps",
    "outlines",
    "reliability",
    "reliability_diagram",
    "roc_curves",
    "scatter",
    "strip_plot",
    "training_curves",
    "training_panels",
]
