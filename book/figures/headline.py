"""Draw the figures of the preface from the stored long runs of the brain study: `headline.png`, the
same noises before and after tuning, of images that read male before, chosen by their place in the
list; and `forest.png`, the
share of every arm by every evaluator.

    python book/figures/headline.py

Each names the table that it was drawn from, so that a test can tell an old figure.
"""

from pathlib import Path

import numpy as np

from fairlib import figures
from fairlib.io import sha256, to_images
from studies.brain.data import BrainSettings
from studies.brain.report import DEFAULT, MAIN, TARGET, labelled
from studies.brain.study import STUDY
from studies.engine.study import results_of

COUNT = 8
PLACE = Path(__file__).parent


def main() -> None:
    tables, images, seed = results_of(STUDY, BrainSettings(), "stored", [DEFAULT], 0)
    about = {"Description": sha256(STUDY.results() / "criteria.csv"), "Software": None}
    figures.house_style()
    readings = tables["readings"][tables["readings"].seed == seed]
    first = readings[readings.arm == "untuned"].groupby("prompt", sort=False).head(3).image
    p_female = readings.pivot(index="image", columns="arm", values="heldout").loc[first]
    male = np.flatnonzero(p_female["untuned"] < 0.5)  # those that tuning should change
    pick = male[np.linspace(0, len(male) - 1, COUNT).astype(int)]
    pairs = p_female[["untuned", DEFAULT]].iloc[pick].itertuples(index=False)
    titles = [f"{was:.2f} to {now:.2f}" for was, now in pairs]
    shown = (to_images(images[arm][pick]) for arm in ("untuned", DEFAULT))
    figure = figures.before_after(*shown, titles, cell=1.3)
    figure.savefig(PLACE / "headline.png", dpi=110, bbox_inches="tight", metadata=about)
    main = tables["criteria"][tables["criteria"].arm.isin(MAIN)]
    shares = labelled(main, tables["readings"])
    shares = shares[shares.metric_id == "share"]
    label = "female images, corrected (95 % CI)"
    axes = figures.dot_plot(
        shares, "estimate", "arm", "evaluator", TARGET, share=True, label=label
    )
    axes.figure.savefig(PLACE / "forest.png", dpi=130, bbox_inches="tight", metadata=about)


if __name__ == "__main__":
    main()
