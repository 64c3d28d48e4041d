"""The brain study (Han et al.): cohort, evaluators, arms, tuning, measures, criteria.

Start at `study.STUDY`, which is the whole of it as data.
"""
