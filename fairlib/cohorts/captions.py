"""What a caption says: short radiology captions, and the neutral prompts that the study samples
from.

ROCO captions hardly ever name sex (about one in twenty), so a prompt that says nothing of sex is
the right test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

CONTRASTS = ("t1", "t1ce", "t2", "flair")
GRADES = ("HGG", "LGG")
SIDES = ("left", "right")

_CONTRAST = {
    "t1": ("T1-weighted", "T1 weighted"),
    "t1ce": ("contrast-enhanced T1-weighted", "post-contrast T1"),
    "t2": ("T2-weighted", "T2 weighted"),
    "flair": ("FLAIR", "fluid attenuated inversion recovery"),
}
_GRADE = {
    "HGG": ("high-grade glioma", "glioblastoma"),
    "LGG": ("low-grade glioma", "diffuse low-grade glioma"),
}
_TEMPLATES = (
    "Axial {contrast} MRI of the brain showing a {grade} in the {side} hemisphere.",
    "{contrast} axial MR image of the brain with a {grade} on the {side} side.",
    "Brain MRI, axial {contrast} sequence: {side} hemispheric {grade}.",
    "Axial {contrast} magnetic resonance imaging demonstrates a {grade} of the {side} hemisphere.",
)
_NORMAL = (
    "Axial {contrast} MRI of the brain without a mass.",
    "{contrast} axial MR image of the brain, no focal lesion.",
    "Brain MRI, axial {contrast} sequence: no mass.",
    "Axial {contrast} magnetic resonance imaging demonstrates a normal brain.",
)


@dataclass(frozen=True)
class Prompt:
    """A prompt and what it asks for. `group` is the prompt group of the conditional target."""

    text: str
    contrast: str
    grade: str
    side: str

    @property
    def group(self) -> str:
        return self.grade


def caption(
    contrast: str, grade: str = "none", side: str = "none", template: int = 0, person: str = ""
) -> str:
    """The caption of one slice.

    `template` picks one of four wordings (synonyms change with it); `person`, such as "54-year-old
    woman", is put in front as "A 54-year-old woman." and left out when empty.
    """
    synonym = template // len(_TEMPLATES) % 2
    form = (_NORMAL if grade == "none" else _TEMPLATES)[template % len(_TEMPLATES)]
    words = {
        "contrast": _CONTRAST[contrast][synonym],
        "grade": _GRADE.get(grade, ("", ""))[synonym],
        "side": side,
    }
    text = form.format(**words)
    return f"{text} {person[:1].upper()}{person[1:]}." if person else text


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
