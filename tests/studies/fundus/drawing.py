"""Many subjects of the fundus phantom at once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from studies.fundus.phantom import PhantomSettings, draw_fundus


def draw_fundi(
    settings: PhantomSettings, indices: Iterable[int] | None = None
) -> tuple[Tensor, pd.DataFrame]:
    """Draw many subjects (`indices` None: the first `settings.subjects`): images float32
    [N, 1, H, H] in [-1, 1], and a table, one row each: attributes, prompt, truth.
    """
    chosen = range(settings.subjects) if indices is None else indices
    subjects = [draw_fundus(settings, int(index)) for index in chosen]
    images = torch.from_numpy(np.stack([subject.image for subject in subjects]))
    return images, pd.DataFrame([subject.row for subject in subjects])
