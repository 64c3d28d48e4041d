"""The heart study (Skorupko et al.) as stages: people, instruments, generation, control, realism,
downstream test, report.
"""

from studies.heart.cohorts import Hearts, age_class, hearts, trained_on
from studies.heart.control import (
    dice_of,
    geometry_of,
    lowest_dice,
    prompt_or_mask,
    readings,
    recovered,
    subgroups,
)
from studies.heart.downstream import (
    BY,
    PREVALENCES,
    best_synthetic,
    excluded,
    people_of,
    ppv,
    predictions_of,
    subsampled,
    tables_of,
)
from studies.heart.generation import heart_generator, made, made_flipped, requests, swatches
from studies.heart.judges import HeartJudges, fit_heart_judges
from studies.heart.realism import distances_of, frechet_floor, memorisation_of
from studies.heart.report import (
    heart_report,
    in_words,
    load_guidance_results,
    load_heart_results,
    load_shared_results,
    worst_difference,
)
from studies.heart.settings import (
    ARMS,
    PAPER_GUIDANCE,
    SYNTHETIC_ARMS,
    WAYS,
    HeartStudy,
    part_settings,
)
from studies.heart.study import measured, run_heart_study

__all__ = [
    "ARMS",
    "BY",
    "PAPER_GUIDANCE",
    "PREVALENCES",
    "SYNTHETIC_ARMS",
    "WAYS",
    "HeartJudges",
    "HeartStudy",
    "Hearts",
    "age_class",
    "best_synthetic",
    "dice_of",
    "distances_of",
    "excluded",
    "fit_heart_judges",
    "frechet_floor",
    "geometry_of",
    "heart_generator",
    "heart_report",
    "hearts",
    "in_words",
    "load_guidance_results",
    "load_heart_results",
    "load_shared_results",
    "lowest_dice",
    "made",
    "made_flipped",
    "measured",
    "memorisation_of",
    "part_settings",
    "people_of",
    "ppv",
    "predictions_of",
    "prompt_or_mask",
    "readings",
    "recovered",
    "requests",
    "run_heart_study",
    "subgroups",
    "subsampled",
    "swatches",
    "tables_of",
    "trained_on",
    "worst_difference",
]
