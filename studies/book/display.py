"""How a table looks on a page: words to the left, numbers to the right, shares in percent, columns
with readable names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from fairlib.settings import digest

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

ENDS = {"_low": "from", "_high": "to"}  # of an interval; the column before them says of what
NAMES = {
    "n": "images",
    "raw": "as read",
    "em": "EM estimate",
    "extent_mm": "diameter, mm",
    "cosine_kept": "CLIP cosine",
    "mmd": "MMD",
    "low": "from",
    "high": "to",
}
SHARES = frozenset({"share", "raw", "corrected", "em", "gap", "floor", "target", "disagree"})
NOTHING = "–"


def table(
    frame: pd.DataFrame,
    digits: int = 3,
    names: Mapping[str, str] | None = None,
    *,
    percent: Collection[str] = (),
    caption: str | None = None,
) -> Styler:
    """`frame` for a reader: no index, and the same frame always gives the same HTML.

    digits: decimals of a number; two fewer of a percentage. names: columns to be called otherwise
    than `NAMES`, or their own name without underscores. percent: columns of shares in [0, 1] beside
    those named in `SHARES`; the ends of their intervals, `<column>_low` and `<column>_high`, go
    with them. caption: a phrase above the table. Missing values show as a dash. Raises `ValueError`
    (pandas) where two columns have one name.
    """
    from pandas.io.formats.style import Styler  # needs jinja2, which only the book asks for

    frame = frame.reset_index(drop=True)  # an index with repeated labels cannot be styled
    heads = [escape(_head(str(column), names or {})) for column in frame]
    shares = SHARES | set(percent)
    forms = {column: _form(frame[column], digits, _stem(str(column)) in shares) for column in frame}
    styler = Styler(frame, cell_ids=False, uuid=digest([frame.to_json(), heads, caption]))
    styler = (
        styler.hide(axis="index")
        .relabel_index(heads, axis="columns")
        .set_table_attributes('class="dataframe"')
    )
    styler = styler.format(
        {column: form for column, form in forms.items() if form}, na_rep=NOTHING, escape="html"
    )
    styler = styler.set_table_styles(
        [_aligned(place, _is_number(frame[column])) for place, column in enumerate(frame)]
    )
    return styler if caption is None else styler.set_caption(escape(caption))


def _stem(column: str) -> str:
    for end in ENDS:
        column = column.removesuffix(end)
    return column


def _head(column: str, names: Mapping[str, str]) -> str:
    if column in names:
        return names[column]
    for end, word in ENDS.items():
        if column.endswith(end):
            return word
    return NAMES.get(column, column.replace("_", " "))


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _form(values: pd.Series, digits: int, is_share: bool):
    """What turns one value into text; None for words, which stay as they are."""
    if pd.api.types.is_bool_dtype(values):
        return lambda value: "yes" if value else "no"
    if not _is_number(values):
        return None
    if is_share:
        return f"{{:.{max(digits - 2, 0)}%}}"
    return "{:,d}" if pd.api.types.is_integer_dtype(values) else f"{{:,.{digits}f}}"


def _aligned(place: int, number: bool) -> dict[str, str]:
    return {"selector": f".col{place}", "props": f"text-align: {'right' if number else 'left'}"}
