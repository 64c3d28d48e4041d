"""What leaves a notebook: numbers MyST-NB can format, and figures that carry their texts."""

import ast
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch

from fairlib import SettingsError
from studies.book.glue import glue, show, start
from studies.engine.places import repository
from studies.engine.profiles import notebook_parameters, notebooks

ALT = "A line that rises from one to two."


@pytest.fixture
def shown(monkeypatch):
    """What was displayed: pairs of (data, metadata)."""
    found = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, raw, metadata: found.append((data, metadata))
    )
    return found


@pytest.fixture
def figure():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([1, 2])
    yield figure
    plt.close("all")


def mystnb_text(shown, spec):
    """What MyST-NB itself makes of the last glued value."""
    from myst_nb.core.variables import format_plain_text

    data, metadata = shown[-1]
    prefix = metadata["scrapbook"]["mime_prefix"]
    return format_plain_text(data[prefix + "text/plain"], spec)


@pytest.mark.parametrize(
    "value, spec, text",
    [
        (0.4578, ".3f", "0.458"),
        (np.float64(0.4578), ".1%", "45.8%"),
        (np.float32(0.5), ".2f", "0.50"),
        (torch.tensor(0.25), ".2f", "0.25"),
        (np.array([3]), "d", "3"),
        (166, "d", "166"),
        ("many", "s", "many"),
        (np.bool_(True), "s", "True"),
    ],
)
def test_mystnb_formats_what_was_glued(shown, value, spec, text):
    glue("x", value)
    assert mystnb_text(shown, spec) == text


@pytest.mark.parametrize(
    "value", [float("nan"), np.inf, [1, 2], np.zeros(3), torch.zeros(2), None, {"a": 1}]
)
def test_what_a_sentence_cannot_quote_is_refused(shown, value):
    with pytest.raises(SettingsError, match="glue 'x'"):
        glue("x", value)
    assert not shown


def test_figure_carries_alt_and_caption(shown, figure):
    import matplotlib.pyplot as plt

    show(figure.axes[0], ALT, "It\n  **rises**.", name="fig-rise")
    (data, metadata), (below, mark) = shown
    assert b64decode(data["image/png"]).startswith(b"\x89PNG") and data["text/plain"] == ALT
    assert metadata["fairlib"] == {"alt": ALT, "caption": "It **rises**.", "name": "fig-rise"}
    assert below["text/markdown"] == "It **rises**." and mark["fairlib"]["caption_only"]
    assert not plt.get_fignums(), "the figure is closed, or the notebook would show it twice"


def test_same_figure_same_bytes(shown, figure):
    show(figure, ALT, "It rises.")
    show(figure, ALT, "It rises.")
    assert shown[0][0] == shown[2][0]


@pytest.mark.parametrize(
    "alt, caption", [("", "It rises."), ("plot", "It rises."), (ALT, "  "), ("word " * 200, "x")]
)
def test_figure_without_texts_is_refused(shown, figure, alt, caption):
    with pytest.raises(SettingsError, match="alt text|caption"):
        show(figure, alt, caption)


def test_a_notebook_starts_in_the_project_with_checked_parameters(tmp_path, monkeypatch, capsys):
    import matplotlib

    declared = notebook_parameters(notebooks()["10_equity_and_statistics"])
    namespace = {name: ast.literal_eval(each.default) for name, each in declared.items()}
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context():
        parameters = start("10_equity_and_statistics", namespace)
        with pytest.raises(SettingsError, match="size_repeats"):
            start("10_equity_and_statistics", {**namespace, "size_repeats": "many"})
    assert Path.cwd() == repository() and parameters.profile == "quick"
    assert capsys.readouterr().out.startswith("profile quick, device: ")
