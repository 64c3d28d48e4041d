"""Does a tuned share carry over? Other prompts, guidance scales and numbers of steps than those of
tuning, the same arms.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd

from fairlib.cohorts.brats import caption
from studies.brain.arms import Plan, generated, images_of
from studies.brain.data import (
    EVALUATION_PROMPTS,
    FIDELITY_PROMPTS,
    SIDES,
    BrainSettings,
    Prompt,
    sampling,
)
from studies.brain.evaluators import read_by
from studies.engine.images import Sampling
from studies.engine.study import Run

TRANSFER_NOISE = 7700
COLUMNS = ("heldout", "anatomy", "area")


def _reworded(template: int) -> tuple[Prompt, ...]:
    return tuple(
        replace(each, text=caption(each.contrast, each.grade, each.side, template))
        for each in EVALUATION_PROMPTS
    )


def _other_side() -> tuple[Prompt, ...]:
    sides = [SIDES[1 - SIDES.index(each.side)] for each in EVALUATION_PROMPTS]
    return tuple(
        replace(each, side=side, text=caption(each.contrast, each.grade, side))
        for each, side in zip(EVALUATION_PROMPTS, sides, strict=True)
    )


PROMPTS: dict[str, tuple[Prompt, ...]] = {
    "prompts of tuning": EVALUATION_PROMPTS,
    "other side": _other_side(),
    "paraphrase": _reworded(2),
    "paraphrase with synonyms": _reworded(5),
    "no tumour": FIDELITY_PROMPTS[len(EVALUATION_PROMPTS) :],
}
GUIDANCE = (1.0, 4.0, 6.0)
STEPS = (12, 25, 50)


def conditions(settings: BrainSettings, seed: int) -> dict[str, tuple[Plan, Sampling]]:
    """Images and sampling of each condition; all of one seed share their noises."""
    usual = sampling(settings)

    def plan(prompts: tuple[Prompt, ...]) -> Plan:
        return Plan(prompts, settings.transfer, TRANSFER_NOISE + seed)

    found = {name: (plan(prompts), usual) for name, prompts in PROMPTS.items()}
    tuned_on = plan(EVALUATION_PROMPTS)
    for scale in GUIDANCE:
        found[f"guidance {scale:g}"] = tuned_on, replace(usual, guidance_scale=scale)
    for count in STEPS:
        found[f"{count} steps"] = tuned_on, replace(usual, steps=count)
    return found


def transfer(run: Run) -> pd.DataFrame:
    """What evaluators read in the images of one arm and seed under every condition: a row an
    image.
    """
    parts = []
    for name, (plan, how) in conditions(run.settings, run.seed).items():
        images = images_of(run.arm, run.settings, run.seed, plan, how)
        source, columns = partial(generated, images, plan), (run.arm.evaluator, *COLUMNS)
        read = read_by(run.settings, run.seed, columns, source)
        parts.append(pd.concat([plan.table(), *read], axis="columns").assign(condition=name))
    return pd.concat(parts, ignore_index=True)
