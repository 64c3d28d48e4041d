"""What a notebook begins with, and what leaves it: `start` gives its parameters, `glue` keeps
numbers for the book's prose, `show` gives a figure its words, `table` shows a table for a reader.
"""

from __future__ import annotations

import contextlib
import os
from base64 import b64encode
from collections.abc import Collection, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from fairlib.doctor import device
from fairlib.errors import SettingsError
from fairlib.settings import digest
from fairlib.widgets import figure_png
from studies.engine import accelerator, repository
from studies.engine.profiles import load_parameters

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

GLUE_PREFIX = "application/papermill.record/"
ROLE = "fairlib"
WORDS_OF_ALT = (5, 120)
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


def start(notebook: str, namespace: dict[str, Any]) -> Any:
    """Begin a notebook: `parameters = start("05_alignment_tuning", globals())`.

    Changes to the folder of the project, so that weights/ and runs/ are found wherever the notebook
    was opened from; sets the style of figures; prints profile and device; returns the checked
    parameters (see `engine.profiles.load_parameters`, which raises `SettingsError`).
    """
    from fairlib.figures import house_style

    os.chdir(repository())
    parameters = load_parameters(notebook, namespace)
    house_style()
    print(f"profile {parameters.profile}, device: {device(accelerator())}")
    return parameters


def glue(name: str, value: Any) -> None:
    """Keep `value` under `name` in the executed notebook, for the book's prose.

    A page quotes it as `` {glue:text}`../notebooks/01_cohort.ipynb::name:.2f` ``; the format after
    the last colon may not be left out (`:s` for text), or the builder takes the name for the
    format. Writes the MIME bundle that MyST-NB reads, without needing MyST-NB. numpy and torch
    scalars become Python numbers: the repr of a numpy scalar cannot be formatted and would leave a
    hole in the sentence. Nothing is displayed. Raises `SettingsError` for anything but a finite
    number, a truth value or text.
    """
    from IPython.display import display

    plain = _plain(name, value)
    metadata = {"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}}
    display({GLUE_PREFIX + "text/plain": repr(plain)}, raw=True, metadata=metadata)


def show(figure, alt: str, caption: str, name: str | None = None, dpi: int = 100) -> None:
    """Display a matplotlib figure with a text alternative and a caption, and close it.

    `figure` is a Figure, or an Axes or seaborn grid that has one. `alt` says what is to be seen,
    for somebody who cannot see it; `caption` states the finding, in Markdown, with numbers put in
    by the notebook that computed them. In a live notebook the caption stands below the figure;
    publishing moves both into the metadata that the book builder reads, so the figure gets a number
    there, and can be referred to as `name`. One figure a cell. Raises `SettingsError` when one of
    the texts is missing or `alt` is not a sentence or a few.
    """
    from IPython.display import display

    _check_texts(alt, caption)
    about = {"alt": alt.strip(), "caption": " ".join(caption.split()), "name": name}
    png = b64encode(figure_png(figure, dpi, bbox_inches="tight")).decode()
    bundle = {"image/png": png, "text/plain": about["alt"]}
    display(bundle, raw=True, metadata={ROLE: about, "image/png": {"alt": about["alt"]}})
    below = dict.fromkeys(("text/markdown", "text/plain"), about["caption"])
    display(below, raw=True, metadata={ROLE: {"caption_only": True}})


def span(counts: Collection[float]) -> str:
    """The least and the greatest of `counts` in words, "1,000 to 8,000"; one number where they
    agree.
    """
    return " to ".join(f"{count:,.0f}" for count in sorted({min(counts), max(counts)}))


def _plain(name: str, value: Any) -> Any:
    if hasattr(value, "item"):
        with contextlib.suppress(ValueError, RuntimeError):  # more than one element
            value = value.item()
    if not isinstance(value, (bool, int, float, str)):
        kind = type(value).__name__
        raise SettingsError(f"glue {name!r}: cannot keep a {kind}; pass a number or text")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise SettingsError(f"glue {name!r}: the value is {value}; a sentence cannot quote it")
    return value


def _check_texts(alt: str, caption: str) -> None:
    low, high = WORDS_OF_ALT
    if not low <= len(alt.split()) <= high:
        raise SettingsError(f"alt text {alt!r}: describe the figure in {low} to {high} words")
    if not caption.strip():
        raise SettingsError("caption is empty: state what the figure shows")


# ---- tables: words to the left, numbers to the right, shares in percent ----


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
    styles = [_aligned(place, _is_number(frame[column])) for place, column in enumerate(frame)]
    styler = (
        Styler(frame, cell_ids=False, uuid=digest([frame.to_json(), heads, caption]))
        .hide(axis="index")
        .relabel_index(heads, axis="columns")
        .set_table_attributes('class="dataframe"')
        .format(forms, na_rep=NOTHING, escape="html")
        .set_table_styles(styles)
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
