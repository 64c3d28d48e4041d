"""Draw `headline.png` from the study's saved images: seed 2, ten noises evenly spaced over the
thousand, none chosen by eye.

    python -m studies brain --arms transport-robust --seeds 2 && python book/figures/headline.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from fairlib import figures
from fairlib.io import to_images
from studies.brain.arms import ARMS
from studies.brain.data import BrainSettings
from studies.brain.study import image_readings

SEED, COUNT = 2, 10


def saved(arm: str) -> tuple[pd.DataFrame, Tensor]:
    """Readings and images of `arm` at `SEED`, found in `runs/` or made."""
    settings = BrainSettings()
    images = ARMS[arm].run(settings, SEED)
    return image_readings(settings, SEED, images), images.load()


def main() -> None:
    (before, was), (after, now) = saved("untuned"), saved("transport-robust")
    pick = np.linspace(0, len(before) - 1, COUNT).astype(int)
    titles = [f"{before.heldout[i]:.2f} to {after.heldout[i]:.2f}" for i in pick]
    figures.house_style()
    figure = figures.before_after(to_images(was[pick]), to_images(now[pick]), titles, cell=1.15)
    figure.savefig(Path(__file__).with_name("headline.png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
