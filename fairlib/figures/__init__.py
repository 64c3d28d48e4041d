"""Pictures: a DataFrame (or images) in, Axes (or a Figure) out, `ax=` as in seaborn. Call
`house_style()` once.
"""

from fairlib.figures.distributions import (
    extent_by_sex,
    logit_distributions,
    reliability,
    reliability_diagram,
    roc_curves,
)
from fairlib.figures.images import before_after, image_grid
from fairlib.figures.shares import cohort_bars, guidance_sweep, per_prompt_shares, share_by_judge
from fairlib.figures.style import LOOKS, NAMED, house_style, looks
from fairlib.figures.training import training_curves

__all__ = [
    "LOOKS",
    "NAMED",
    "before_after",
    "cohort_bars",
    "extent_by_sex",
    "guidance_sweep",
    "house_style",
    "image_grid",
    "logit_distributions",
    "looks",
    "per_prompt_shares",
    "reliability",
    "reliability_diagram",
    "roc_curves",
    "share_by_judge",
    "training_curves",
]
