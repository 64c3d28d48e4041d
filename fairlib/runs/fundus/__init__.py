"""The fundus study (Luo et al.) as stages: people, fine-tuning, pictures, instruments, distances, semantics, report."""

from .asked import asked_cdr, asked_ratios
from .cohorts import Fundi, fundi, trained_on
from .comparison import differences_table, values_table
from .distances import race_distances
from .finetuning import final_probe, fundus_generator, history, latents, tuned, tuned_generator, tuning, weights_of
from .generation import made, swatches
from .judges import features, fundus_reader, readings
from .report import fundus_report, in_words, interval_of, race_difference
from .semantics import answers
from .settings import ARMS, BASE, EVERYONE, REAL, FundusStudy
from .statistics import figures_of
from .study import figures_from, fundus_results_folder, load_fundus_results, measured, people_table, raw_tables, run_fundus_study

__all__ = ["ARMS", "BASE", "EVERYONE", "REAL", "Fundi", "FundusStudy", "answers", "asked_cdr", "asked_ratios",
           "differences_table", "features", "figures_from", "figures_of", "final_probe", "fundi", "fundus_generator",
           "fundus_reader", "fundus_report", "fundus_results_folder", "history", "in_words", "interval_of", "latents",
           "load_fundus_results", "made", "measured", "people_table", "race_difference", "race_distances", "raw_tables",
           "readings", "run_fundus_study", "swatches", "trained_on", "tuned", "tuned_generator", "tuning",
           "values_table", "weights_of"]
