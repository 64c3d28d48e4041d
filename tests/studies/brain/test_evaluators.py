"""What evaluators make of one subject drawn as female and as male."""

from __future__ import annotations

import pandas as pd
import pytest

from studies.brain.evaluators import pair_table


def test_pairs_are_ordered_or_even_told_apart():
    """Three subjects: told apart, ordered on one side of the threshold, the wrong way round."""
    readings = {"a": (0.9, 0.1), "b": (0.8, 0.6), "c": (0.2, 0.7)}
    rows = [
        {"set": "pairs", "seed": seed, "subject": name, "sex": sex, "heldout": p, "anatomy": p}
        for seed in (1, 2)
        for name, pair in readings.items()
        for sex, p in zip("FM", pair, strict=True)
    ]
    other = {"set": "test", "seed": 1, "subject": "a", "sex": "F", "heldout": 0.0, "anatomy": 0.0}
    table = pair_table(pd.DataFrame([*rows, other])).set_index("evaluator")
    assert list(table.index) == ["held-out classifier", "anatomical measurement"]
    assert (table.n == 3).all()
    assert table.ordered.to_list() == pytest.approx([2 / 3] * 2)
    assert table.told_apart.to_list() == pytest.approx([1 / 3] * 2)
