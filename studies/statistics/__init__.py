"""The statistics chapter: what tests and intervals do where the truth is known."""

from studies.statistics.study import STUDY, StatisticsSettings

__all__ = ["STUDY", "StatisticsSettings"]
