"""The fundus study (Luo et al.): patients, fine-tuning, images, evaluators, measures, report."""

from studies.fundus.settings import FundusSettings
from studies.fundus.study import STUDY

__all__ = ["STUDY", "FundusSettings"]
