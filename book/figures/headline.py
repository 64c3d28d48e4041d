"""Draw `headline.png` from the study's saved images: seed 2, ten noises evenly spaced over the
thousand, none chosen by eye.

    python -m studies study --arms robust --seeds 2 && python book/figures/headline.py
"""

from pathlib import Path

import numpy as np
import pandas as pd

from fairlib import figures
from fairlib.io import read_tensors, to_images
from studies.engine.places import stages_folder

SEED, COUNT = 2, 10


def saved(arm: str) -> tuple[pd.DataFrame, object]:
    """Readings and images of the newest saved stage of `arm` at `SEED` with a thousand images."""
    for path in sorted(
        stages_folder().glob("readings-*/readings.csv"),
        key=lambda p: p.stat().st_mtime,
        reverse=True,
    ):
        table = pd.read_csv(path)
        if len(table) == 1000 and (table.arm[0], table.seed[0]) == (arm, SEED):
            return table, read_tensors(path.with_name("images.safetensors"))["images"]
    raise SystemExit(f"no saved images of arm {arm}, seed {SEED}; run the study first")


def main() -> None:
    (before, was), (after, now) = saved("base"), saved("robust")
    pick = np.linspace(0, len(before) - 1, COUNT).astype(int)
    titles = [f"{before.auditor[i]:.2f} to {after.auditor[i]:.2f}" for i in pick]
    figures.house_style()
    figure = figures.before_after(to_images(was[pick]), to_images(now[pick]), titles, cell=1.15)
    figure.savefig(Path(__file__).with_name("headline.png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
