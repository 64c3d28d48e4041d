"""The neutral prompts that the study samples from: radiology captions that say nothing of sex.

ROCO captions hardly ever name sex (about one in twenty), so a prompt that says nothing of sex is
the right test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fairlib.cohorts.brats import GRADES, caption
from fairlib.cohorts.slices import CONTRASTS

SIDES = ("left", "right")


@dataclass(frozen=True)
class Prompt:
    """A prompt and what it asks for. `group` is the prompt group of the conditional target."""

    text: str
    contrast: str
    grade: str
    side: str

    @property
    def group(self) -> str:
        """The grade."""
        return self.grade


def mirrored(text: str) -> str:
    """The caption of the same slice seen in a mirror: "left" and "right" change places, all else
    stays.
    """
    return re.sub(r"\b(left|right)\b", lambda word: SIDES[1 - SIDES.index(word[0])], text)


def _prompt(contrast: str, grade: str, side: str) -> Prompt:
    return Prompt(caption(contrast, grade, side), contrast, grade, side)


# Every contrast with every grade; the side alternates, so that each occurs four times.
EVALUATION_PROMPTS = tuple(
    _prompt(contrast, grade, SIDES[(i + j) % 2])
    for i, contrast in enumerate(CONTRASTS)
    for j, grade in enumerate(GRADES)
)
# The same and one prompt a contrast without a tumour: "tumour" can only be checked where some ask
# for none.
FIDELITY_PROMPTS = EVALUATION_PROMPTS + tuple(
    _prompt(contrast, "none", "none") for contrast in CONTRASTS
)
