"""What the notebooks look at: tables and pictures put together from the stages of the study."""

from .arms import arm, arms_measures, arms_readings, base_generator, guidance_sweep, histories, judged_slices, judges_of
from .closer import denoising_path, disturbance_table, disturbed, prompt_grid, rim_share, saliency, solver_errors
from .display import table
from .people import cohort_images, examples, one_slice_each, phantom_truth
from .tables import (
    READERS,
    ablation_shares,
    accuracy_table,
    bounds_table,
    changed_images,
    cost_table,
    disagreement,
    logit_table,
    long_readings,
    many_images_table,
    own_exam,
    target_logits,
)

__all__ = ["READERS", "ablation_shares", "accuracy_table", "arm", "arms_measures", "arms_readings", "base_generator",
           "bounds_table", "changed_images", "cohort_images", "cost_table", "denoising_path", "disagreement",
           "disturbance_table", "disturbed", "examples", "guidance_sweep", "histories", "judged_slices", "judges_of",
           "logit_table", "long_readings", "many_images_table", "one_slice_each", "own_exam", "phantom_truth", "prompt_grid",
           "rim_share", "saliency", "solver_errors", "table", "target_logits"]
