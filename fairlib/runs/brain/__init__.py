"""The brain study (Han et al.) as stages: cohort, judges, samples, tuning, readings, report."""

from .cohorts import brain_cohort, splits, target_share, training_cohort
from .judges import Judges, fit_judges
from .settings import ARMS, Study, arm_settings
from .tuning import history, tune_arm, tuned_generator
from .readings import arm_readings, generate, read_images

__all__ = ["ARMS", "Judges", "Study", "arm_readings", "arm_settings", "brain_cohort", "fit_judges", "generate",
           "history", "read_images", "splits", "target_share", "training_cohort", "tune_arm", "tuned_generator"]
