"""Figures: a DataFrame (or images) in, Axes (or a Figure) out, `ax=` as in seaborn. Call
`house_style()` once.
"""

from fairlib.figures.charts import arrow_plot as arrow_plot
from fairlib.figures.charts import cohort_bars as cohort_bars
from fairlib.figures.charts import dot_plot as dot_plot
from fairlib.figures.charts import group_bars as group_bars
from fairlib.figures.charts import line_panels as line_panels
from fairlib.figures.charts import line_plot as line_plot
from fairlib.figures.charts import logit_distributions as logit_distributions
from fairlib.figures.charts import reliability as reliability
from fairlib.figures.charts import reliability_diagram as reliability_diagram
from fairlib.figures.charts import roc_curves as roc_curves
from fairlib.figures.charts import scatter as scatter
from fairlib.figures.charts import strip_plot as strip_plot
from fairlib.figures.charts import training_curves as training_curves
from fairlib.figures.charts import training_panels as training_panels
from fairlib.figures.images import before_after as before_after
from fairlib.figures.images import heart_grid as heart_grid
from fairlib.figures.images import image_grid as image_grid
from fairlib.figures.images import maps as maps
from fairlib.figures.images import outlines as outlines
from fairlib.figures.style import LOOKS as LOOKS
from fairlib.figures.style import NAMED as NAMED
from fairlib.figures.style import house_style as house_style
from fairlib.figures.style import looks as looks
