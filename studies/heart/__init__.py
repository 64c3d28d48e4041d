"""The heart study (Skorupko et al., arXiv 2403.19508): can a generator of cardiac MRI make a
classifier fairer?

`study.STUDY` holds it as data; `settings`, `data`, `generation`, `evaluators`, `measures` and
`arms` are its steps, `rules`, `phantom` and `geometry` its phantom, `report` its criteria.
"""

from studies.heart.settings import HeartSettings
from studies.heart.study import STUDY

__all__ = ["STUDY", "HeartSettings"]
