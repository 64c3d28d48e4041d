"""The brain study (Han et al.) as stages: cohort, judges, samples, tuning, readings, report."""

from studies.brain.ablation import load_ablation, run_ablation
from studies.brain.cohorts import brain_cohort, splits, target_share, training_cohort
from studies.brain.judges import Judges, fit_judges, judges_digest
from studies.brain.readings import arm_readings, generate, prompts_of, read_images
from studies.brain.report import (
    exam_table,
    headline,
    judge_columns,
    load_results,
    many_images_folder,
    report,
)
from studies.brain.settings import ABLATIONS, ARMS, Study, arm_settings
from studies.brain.study import attributes, consistency, fidelity, run_study, slice_readings
from studies.brain.tuning import base_digest, history, targets_of, tune_arm, tuned_generator

__all__ = [
    "ABLATIONS",
    "ARMS",
    "Judges",
    "Study",
    "arm_readings",
    "arm_settings",
    "attributes",
    "base_digest",
    "brain_cohort",
    "consistency",
    "exam_table",
    "fidelity",
    "fit_judges",
    "generate",
    "headline",
    "history",
    "judge_columns",
    "judges_digest",
    "load_ablation",
    "load_results",
    "many_images_folder",
    "prompts_of",
    "read_images",
    "report",
    "run_ablation",
    "run_study",
    "slice_readings",
    "splits",
    "target_share",
    "targets_of",
    "training_cohort",
    "tune_arm",
    "tuned_generator",
]
