"""fairlib: fairness methods for generative medical imaging, small enough to read.

    generator = fairlib.Generator.load("weights/brain")
    target = fairlib.Target.shares({"F": 0.458, "M": 0.542}, scores)
    for step in fairlib.tune(generator, classifier, prompts, target):
        print(step.step, step.shares)

`import fairlib` loads the errors alone; every other name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fairlib.errors import CorruptScan, DataError, FairlibError, SettingsError, WeightsError

if TYPE_CHECKING:
    from fairlib.cohorts.acdc import read_acdc
    from fairlib.cohorts.brats import read_brats
    from fairlib.cohorts.chexpert import read_chexpert
    from fairlib.cohorts.cohort import Cohort, split_subjects
    from fairlib.cohorts.fairgenmed import read_fairgenmed
    from fairlib.cohorts.ham10000 import read_ham10000
    from fairlib.cohorts.mnms import read_mnms
    from fairlib.cohorts.roco import read_roco, read_rocov2
    from fairlib.measures.equity import equity_report, equity_table
    from fairlib.measures.intervals import Interval
    from fairlib.measures.shares import Evaluator, share_table
    from fairlib.methods.alignment import tune
    from fairlib.methods.finetuning import FinetuneSettings, finetune
    from fairlib.methods.grpo import GRPOSettings, grpo
    from fairlib.methods.guidance import fit_bottleneck_head, null_offset, sample_batch_guided
    from fairlib.methods.selection import choose_noises, generate_and_keep
    from fairlib.methods.settings import AlignmentSettings
    from fairlib.methods.targets import Target
    from fairlib.models.classifier import Classifier, fit_classifier, predict
    from fairlib.models.controlnet import ControlledGenerator
    from fairlib.models.generator import Generator

__version__ = "0.1.0"

# where each name is; the same as the imports above, which only type checkers see
_MODULES = {
    "AlignmentSettings": "methods.settings",
    "Classifier": "models.classifier",
    "Cohort": "cohorts.cohort",
    "ControlledGenerator": "models.controlnet",
    "Evaluator": "measures.shares",
    "FinetuneSettings": "methods.finetuning",
    "GRPOSettings": "methods.grpo",
    "Generator": "models.generator",
    "Interval": "measures.intervals",
    "Target": "methods.targets",
    "choose_noises": "methods.selection",
    "equity_report": "measures.equity",
    "equity_table": "measures.equity",
    "finetune": "methods.finetuning",
    "fit_bottleneck_head": "methods.guidance",
    "fit_classifier": "models.classifier",
    "generate_and_keep": "methods.selection",
    "grpo": "methods.grpo",
    "null_offset": "methods.guidance",
    "predict": "models.classifier",
    "read_acdc": "cohorts.acdc",
    "read_brats": "cohorts.brats",
    "read_chexpert": "cohorts.chexpert",
    "read_fairgenmed": "cohorts.fairgenmed",
    "read_ham10000": "cohorts.ham10000",
    "read_mnms": "cohorts.mnms",
    "read_roco": "cohorts.roco",
    "read_rocov2": "cohorts.roco",
    "sample_batch_guided": "methods.guidance",
    "share_table": "measures.shares",
    "split_subjects": "cohorts.cohort",
    "tune": "methods.alignment",
}

__all__ = [
    "AlignmentSettings",
    "Classifier",
    "Cohort",
    "ControlledGenerator",
    "CorruptScan",
    "DataError",
    "Evaluator",
    "FairlibError",
    "FinetuneSettings",
    "GRPOSettings",
    "Generator",
    "Interval",
    "SettingsError",
    "Target",
    "WeightsError",
    "__version__",
    "choose_noises",
    "equity_report",
    "equity_table",
    "finetune",
    "fit_bottleneck_head",
    "fit_classifier",
    "generate_and_keep",
    "grpo",
    "null_offset",
    "predict",
    "read_acdc",
    "read_brats",
    "read_chexpert",
    "read_fairgenmed",
    "read_ham10000",
    "read_mnms",
    "read_roco",
    "read_rocov2",
    "sample_batch_guided",
    "share_table",
    "split_subjects",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Load a name of the front door when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
