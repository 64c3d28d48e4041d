"""What the heart study is made of (Skorupko et al., arXiv 2403.19508): sizes, seeds, and which
subjects each part draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from fairlib.errors import SettingsError
from fairlib.settings import Count, Natural, Positive, check_bounds
from studies.engine.profiles import settings_from
from studies.heart.rules import PhantomSettings

PAPER_GUIDANCE = 4.0  # of copies; the paper's code draws new combinations at 9


@dataclass(frozen=True)
class HeartSettings:
    """Everything that the stages of the heart study depend on.

    cohort: "phantom", or "mnms" (the real layout under `data_dir`). weights: the pipeline folder;
    the phantom's training subjects are read from its manifest, so that they are exactly those the
    generator was trained on. controlnet: folder or hub name of a ControlNet for a plain Stable
    Diffusion given as `weights`.
    train_people: 0, all of them; fewer only to see that everything runs, because synthetic images
    would then know subjects that real-only training does not.
    classifier_people: real subjects that the downstream classifiers train on: 0, the generator's
    own training subjects, so that nobody else enters through the synthetic images. More: only so
    many of them, as in a small hospital that uses a generator and masks shared by a large one;
    synthetic images then carry subjects that real-only training never saw. segmenter_steps,
    judge_steps, classifier_steps: optimiser steps of the re-segmenter, of the other evaluators, and
    of the downstream classifier in all its phases. *_people: synthetic subjects drawn for a part
    (see `part_settings`); of a real cohort each part is a share (`data.FRACTIONS`).
    images: generated in each way and measured; synthetic: copies that the downstream classifiers
    train on; flips: images drawn again with one word of the prompt changed. guidance_scale: the
    paper's for copies; at another one the hearts are measured, and no classifier trains on them.
    replicates: bootstrap draws of an interval. n_min: ill and healthy subjects that a subgroup of
    the downstream tables must have.
    """

    cohort: Literal["phantom", "mnms"] = "phantom"
    data_dir: str = ""
    weights: str = "weights/heart"
    controlnet: str = ""
    split_seed: Natural = 0
    train_people: Natural = 0
    classifier_people: Natural = 0
    segmenter_steps: Count = 800
    judge_steps: Count = 800
    classifier_steps: Count = 400
    judge_people: Count = 3000
    hold_people: Count = 800
    validation_people: Count = 2000
    choice_people: Count = 2000
    test_people: Count = 4000
    images: Count = 800
    synthetic: Count = 2000
    flips: Count = 100
    sampling_steps: Count = 8
    guidance_scale: Positive = PAPER_GUIDANCE
    batch_size: Count = 50
    replicates: Count = 1000
    n_min: Count = 10

    def __post_init__(self):
        check_bounds(self)
        if not (self.draws_hearts or self.trains_classifiers):
            raise SettingsError(
                f"HeartSettings: classifier_people {self.classifier_people} and guidance_scale "
                f"{self.guidance_scale:g}: change one of them at a time"
            )

    @classmethod
    def from_parameters(cls, parameters: Any) -> HeartSettings:
        """The study at the size that the parameters of a notebook ask for: `test_people`,
        `evaluator_steps` and `images` set the others in the ratios of the long runs.
        """
        people, images = parameters.test_people, parameters.images
        steps = parameters.evaluator_steps
        return settings_from(
            cls,
            parameters,
            judge_people=people * 3 // 4,
            hold_people=people // 5,
            validation_people=people // 2,
            choice_people=people // 2,
            segmenter_steps=steps,
            judge_steps=steps,
            classifier_steps=steps // 2,
            synthetic=images * 5 // 2,
            flips=images // 8,
            replicates=min(cls.replicates, images * 2),
            n_min=min(cls.n_min, max(1, people // 120)),
        )

    @property
    def name(self) -> str:
        """ "heart", or what the study is beside the main one, "heart-shared" or "heart-guidance2":
        its folder in `results/`.

        Real patients never lie among synthetic ones: "heart-mnms", "heart-mnms-shared" ...
        """
        name = "heart" if self.cohort == "phantom" else f"heart-{self.cohort}"
        if not self.draws_hearts:
            return f"{name}-shared"
        return name if self.trains_classifiers else f"{name}-guidance{self.guidance_scale:g}"

    @property
    def draws_hearts(self) -> bool:
        """Whether the tables on generated hearts are this study's own; with `classifier_people`
        they are the main study's.
        """
        return not self.classifier_people

    @property
    def trains_classifiers(self) -> bool:
        """Whether downstream classifiers belong to it; at another guidance scale than the paper's
        none is trained.
        """
        return self.guidance_scale == PAPER_GUIDANCE


# Evaluators are fitted and tried on subjects drawn evenly, so that they err alike in every
# subgroup. Ages keep their natural spread among the tested, because age tertiles are those of the
# training subjects.
EVEN = dict.fromkeys(("heart_failure", "female_healthy", "female_heart_failure"), 0.5)
EVEN |= dict.fromkeys(("normal_bmi_healthy", "normal_bmi_heart_failure"), 0.4)
YOUNG = {"young_healthy": 0.25, "young_heart_failure": 0.25}


def part_settings(
    settings: HeartSettings, trained_on: PhantomSettings
) -> dict[str, PhantomSettings]:
    """Which subjects each part of the phantom cohort draws. Every part has a seed of its own; no
    subject is in two.

    train: the generator's own training subjects, and the real training set of every classifier.
    judges: those the evaluators are fitted on. hold, reference: two halves of unseen subjects; the
    first lend their masks and prompts, the second are those generated images are compared with.
    validation: natural shares at the paper's prevalence 0.10. choice: where the best synthetic arm
    is chosen; test: where it is evaluated. extra: more subjects like `train`, for the upper bound.
    Raises `SettingsError` when a part would draw the training subjects again.
    """

    def drawn(seed: int, people: int, **shares: float) -> PhantomSettings:
        return PhantomSettings(subjects=people, seed=seed, **shares)

    parts = {
        "judges": drawn(211, settings.judge_people, **EVEN, **YOUNG),
        "hold": drawn(212, settings.hold_people, **EVEN),
        "reference": drawn(213, settings.hold_people, **EVEN),
        "validation": drawn(214, settings.validation_people, heart_failure=0.10),
        "choice": drawn(215, settings.choice_people, **EVEN),
        "test": drawn(216, settings.test_people, **EVEN),
        "extra": replace(trained_on, seed=217, subjects=settings.synthetic),
    }
    for name, part in parts.items():
        if part.seed == trained_on.seed:
            raise SettingsError(
                f"the generator was trained on subjects of seed {part.seed}, which part {name!r} "
                "draws too; train it with another seed"
            )
    if settings.train_people > trained_on.subjects:
        raise SettingsError(
            f"train_people {settings.train_people}: the generator was trained on "
            f"{trained_on.subjects}; 0 takes all"
        )
    return {"train": replace(trained_on, subjects=settings.train_people or trained_on.subjects)} | (
        parts
    )
