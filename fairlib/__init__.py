"""fairlib: fairness methods for generative medical imaging, small enough to read.

    generator = fairlib.Generator.load("weights/brain")
    target = fairlib.Target.shares({"F": 0.458, "M": 0.542}, scores, labels)
    for step in fairlib.tune(generator, classifier, prompts, target):
        print(step.step, step.shares)

`import fairlib` loads the errors alone; every other name loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fairlib.errors import CorruptScan as CorruptScan
from fairlib.errors import DataError as DataError
from fairlib.errors import FairlibError as FairlibError
from fairlib.errors import SettingsError as SettingsError
from fairlib.errors import WeightsError as WeightsError

if TYPE_CHECKING:
    from fairlib.auditing import Audit as Audit
    from fairlib.auditing import audit as audit
    from fairlib.cohorts.acdc import read_acdc as read_acdc
    from fairlib.cohorts.brats import read_brats as read_brats
    from fairlib.cohorts.captions import read_captions as read_captions
    from fairlib.cohorts.chexpert import read_chexpert as read_chexpert
    from fairlib.cohorts.cohort import Cohort as Cohort
    from fairlib.cohorts.cohort import split_subjects as split_subjects
    from fairlib.cohorts.fairgenmed import read_fairgenmed as read_fairgenmed
    from fairlib.cohorts.ham10000 import read_ham10000 as read_ham10000
    from fairlib.cohorts.mnms import read_mnms as read_mnms
    from fairlib.cohorts.roco import read_roco as read_roco
    from fairlib.cohorts.roco import read_rocov2 as read_rocov2
    from fairlib.measures.equity import equity_report as equity_report
    from fairlib.measures.equity import equity_table as equity_table
    from fairlib.measures.intervals import Interval as Interval
    from fairlib.measures.shares import Evaluator as Evaluator
    from fairlib.measures.shares import share_table as share_table
    from fairlib.methods.alignment import AlignmentSettings as AlignmentSettings
    from fairlib.methods.alignment import tune as tune
    from fairlib.methods.finetuning import FinetuneSettings as FinetuneSettings
    from fairlib.methods.finetuning import finetune as finetune
    from fairlib.methods.grpo import GRPOSettings as GRPOSettings
    from fairlib.methods.grpo import grpo as grpo
    from fairlib.methods.guidance import fit_bottleneck_head as fit_bottleneck_head
    from fairlib.methods.guidance import null_offset as null_offset
    from fairlib.methods.guidance import sample_batch_guided as sample_batch_guided
    from fairlib.methods.selection import choose_noises as choose_noises
    from fairlib.methods.selection import generate_and_keep as generate_and_keep
    from fairlib.methods.targets import Target as Target
    from fairlib.models.classifier import Classifier as Classifier
    from fairlib.models.classifier import fit_classifier as fit_classifier
    from fairlib.models.classifier import predict as predict
    from fairlib.models.controlnet import ControlledGenerator as ControlledGenerator
    from fairlib.models.generator import Generator as Generator

__version__ = "0.1.0"

# where each name is: the same as the imports above, which only type checkers see
_NAMES = {
    "auditing": ["Audit", "audit"],
    "cohorts.acdc": ["read_acdc"],
    "cohorts.brats": ["read_brats"],
    "cohorts.captions": ["read_captions"],
    "cohorts.chexpert": ["read_chexpert"],
    "cohorts.cohort": ["Cohort", "split_subjects"],
    "cohorts.fairgenmed": ["read_fairgenmed"],
    "cohorts.ham10000": ["read_ham10000"],
    "cohorts.mnms": ["read_mnms"],
    "cohorts.roco": ["read_roco", "read_rocov2"],
    "measures.equity": ["equity_report", "equity_table"],
    "measures.intervals": ["Interval"],
    "measures.shares": ["Evaluator", "share_table"],
    "methods.alignment": ["AlignmentSettings", "tune"],
    "methods.finetuning": ["FinetuneSettings", "finetune"],
    "methods.grpo": ["GRPOSettings", "grpo"],
    "methods.guidance": ["fit_bottleneck_head", "null_offset", "sample_batch_guided"],
    "methods.selection": ["choose_noises", "generate_and_keep"],
    "methods.targets": ["Target"],
    "models.classifier": ["Classifier", "fit_classifier", "predict"],
    "models.controlnet": ["ControlledGenerator"],
    "models.generator": ["Generator"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
_ERRORS = ["CorruptScan", "DataError", "FairlibError", "SettingsError", "WeightsError"]

__all__ = sorted(["__version__", *_ERRORS, *_MODULES])


def __getattr__(name: str) -> Any:
    """Load a name of the front door when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
