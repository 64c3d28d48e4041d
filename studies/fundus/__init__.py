"""The fundus study (Luo et al.) as stages: people, fine-tuning, pictures, instruments, distances,
semantics, report.
"""

from studies.fundus.asked import asked_cdr, asked_ratios
from studies.fundus.cohorts import Fundi, fundi, trained_on
from studies.fundus.comparison import differences_table, values_table
from studies.fundus.distances import race_distances
from studies.fundus.finetuning import (
    final_probe,
    fundus_generator,
    history,
    latents,
    tuned,
    tuned_generator,
    tuning,
    weights_of,
)
from studies.fundus.generation import made, swatches
from studies.fundus.judges import features, fundus_reader, readings
from studies.fundus.report import fundus_report, in_words, interval_of, race_difference
from studies.fundus.semantics import answers
from studies.fundus.settings import ARMS, BASE, EVERYONE, REAL, FundusStudy
from studies.fundus.statistics import figures_of
from studies.fundus.study import (
    figures_from,
    fundus_results_folder,
    load_fundus_results,
    measured,
    people_table,
    raw_tables,
    run_fundus_study,
)

__all__ = [
    "ARMS",
    "BASE",
    "EVERYONE",
    "REAL",
    "Fundi",
    "FundusStudy",
    "answers",
    "asked_cdr",
    "asked_ratios",
    "differences_table",
    "features",
    "figures_from",
    "figures_of",
    "final_probe",
    "fundi",
    "fundus_generator",
    "fundus_reader",
    "fundus_report",
    "fundus_results_folder",
    "history",
    "in_words",
    "interval_of",
    "latents",
    "load_fundus_results",
    "made",
    "measured",
    "people_table",
    "race_difference",
    "race_distances",
    "raw_tables",
    "readings",
    "run_fundus_study",
    "swatches",
    "trained_on",
    "tuned",
    "tuned_generator",
    "tuning",
    "values_table",
    "weights_of",
]
