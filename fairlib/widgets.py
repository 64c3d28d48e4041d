"""Things to move that live on in a static page: every picture is computed beforehand, no kernel is
asked for another.

`scrub` is one slider over pictures: plain HTML with the browser's own range input, so it works from
the keyboard, on a phone and with a screen reader. `dials` is several of them, one picture for each
combination. `leaves` is a slider linked to tabs of text, made of ipywidgets, whose saved state the
book's pages turn into the same thing. `explore` draws a function at chosen values for `scrub`; in a
live notebook it can be asked to draw at any value instead. Nothing here loads anything from another
host.
"""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from itertools import product
from math import prod
from typing import Any

import numpy as np
from PIL import Image

from fairlib.errors import SettingsError

# Runs in the page that holds the widget: show the chosen picture, hide the others, say which it is.
_MOVE = (
    "const w=this.closest('.fairlib-scrub'),v=+this.value;"
    "w.querySelectorAll('img').forEach((p,i)=>{p.style.display=i===v?'block':'none'});"
    "const t=w.querySelectorAll('img')[v].dataset.label;"
    "w.querySelector('output').textContent=t;this.setAttribute('aria-valuetext',t)"
)


# The same for several sliders: their values, each times its stride, are the number of the picture.
_TURN = (
    "const w=this.closest('.fairlib-scrub'),s=[...w.querySelectorAll('input')],"
    "v=s.reduce((n,i)=>n+i.value*i.dataset.stride,0);"
    "w.querySelectorAll('img').forEach((p,i)=>{p.style.display=i===v?'block':'none'});"
    "const t=JSON.parse(this.dataset.words)[+this.value];"
    "this.parentNode.querySelector('output').textContent=t;this.setAttribute('aria-valuetext',t)"
)


def scrub(
    pictures: Sequence[bytes],
    labels: Sequence[str],
    name: str,
    alt: str,
    start: int = 0,
    width: int = 720,
):
    """A slider called `name` over PNG `pictures`, one of them visible at a time; `labels` say where
    the slider stands.

    alt: what all pictures have in common; each picture's text alternative is its label and `alt`.
    start: the picture that is visible first, and the only one where no script runs. width: at most
    so many CSS pixels. Returns an IPython HTML object. Raises `SettingsError` unless there is one
    label for each of two or more pictures.
    """
    from IPython.display import HTML

    if len(pictures) != len(labels) or len(pictures) < 2:
        raise SettingsError(
            f"{len(pictures)} pictures and {len(labels)} labels; give two or more, and one label "
            "each"
        )
    if not 0 <= start < len(pictures):
        raise SettingsError(f"start is {start}; the pictures are numbered 0 to {len(pictures) - 1}")
    shown = "".join(
        _picture(data, label, alt, index == start, width)
        for index, (data, label) in enumerate(zip(pictures, labels, strict=True))
    )
    return HTML(
        f'<div class="fairlib-scrub" role="group" aria-label="{escape(name)}">{shown}'
        f"{_slider(name, len(pictures), start, labels[start], width)}</div>"
    )


def _picture(data: bytes, label: str, alt: str, visible: bool, width: int) -> str:
    display = "block" if visible else "none"
    return (
        f'<img alt="{escape(f"{label}: {alt}")}" data-label="{escape(label)}" '
        f'style="display:{display};width:100%;max-width:{width}px;height:auto;background:#fff" '
        f'src="data:image/png;base64,{b64encode(data).decode()}">'
    )


def _slider(name: str, count: int, start: int, label: str, width: int) -> str:
    return (
        f'<label style="display:flex;flex-wrap:wrap;gap:.6em;align-items:center;max-width:{width}px;padding:.5em 0">'
        f"<span>{escape(name)}</span>"
        f'<input type="range" min="0" max="{count - 1}" step="1" value="{start}" style="flex:1;min-width:9em" '
        f'aria-label="{escape(name)}" aria-valuetext="{escape(label)}" oninput="{escape(_MOVE)}">'
        f'<output style="min-width:7em">{escape(label)}</output></label>'
    )


def dials(
    pictures: Sequence[bytes],
    axes: dict[str, Sequence[str]],
    name: str,
    alt: str,
    start: Sequence[int] | None = None,
    width: int = 480,
):
    """Several sliders over PNG `pictures`, one visible at a time: one slider for each entry of
    `axes` {its name: its values}.

    pictures: one for each combination of values, the last slider's values next to each other. alt:
    what all pictures have in common; each picture's text alternative is its combination and `alt`.
    start: where each slider stands first. Returns an IPython HTML object. Raises `SettingsError`
    unless every slider has two or more values and every combination one picture.
    """
    from IPython.display import HTML

    sizes = [len(values) for values in axes.values()]
    start = [0] * len(sizes) if start is None else list(start)
    if not sizes or min(sizes) < 2 or len(pictures) != prod(sizes):
        raise SettingsError(
            f"{len(pictures)} pictures for sliders of {sizes} values; give each slider two or more "
            "values, and "
            "each combination one picture"
        )
    if len(start) != len(sizes) or any(
        not 0 <= value < size for value, size in zip(start, sizes, strict=True)
    ):
        raise SettingsError(f"start is {start}; the sliders have {sizes} values, counted from 0")
    strides = [prod(sizes[place + 1 :]) for place in range(len(sizes))]
    first = sum(value * stride for value, stride in zip(start, strides, strict=True))
    labels = [", ".join(words) for words in product(*axes.values())]
    shown = "".join(
        _picture(data, label, alt, index == first, width)
        for index, (data, label) in enumerate(zip(pictures, labels, strict=True))
    )
    sliders = "".join(
        _dial(axis, values, value, stride, width)
        for (axis, values), value, stride in zip(axes.items(), start, strides, strict=True)
    )
    return HTML(
        f'<div class="fairlib-scrub" role="group" aria-label="{escape(name)}">{shown}{sliders}</div>'
    )


def _dial(name: str, values: Sequence[str], start: int, stride: int, width: int) -> str:
    return (
        f'<label style="display:flex;flex-wrap:wrap;gap:.6em;align-items:center;max-width:{width}px;padding:.3em 0">'
        f'<span style="min-width:6em">{escape(name)}</span>'
        f'<input type="range" min="0" max="{len(values) - 1}" step="1" value="{start}" style="flex:1;min-width:8em" '
        f'data-stride="{stride}" data-words="{escape(json.dumps(list(values)))}" '
        f'aria-label="{escape(name)}" aria-valuetext="{escape(values[start])}" oninput="{escape(_TURN)}">'
        f'<output style="min-width:8em">{escape(values[start])}</output></label>'
    )


def leaves(texts: Sequence[str], labels: Sequence[str], name: str):
    """A slider called `name` linked (in the page, without a kernel) to tabs, one for each of the
    HTML `texts`.

    Returns an ipywidgets VBox. Raises `SettingsError` unless there is one label for each of two or
    more texts.
    """
    import ipywidgets

    if len(texts) != len(labels) or len(texts) < 2:
        raise SettingsError(
            f"{len(texts)} texts and {len(labels)} labels; give two or more, and one label each"
        )
    slider = ipywidgets.IntSlider(
        0,
        0,
        len(texts) - 1,
        description=name,
        readout=False,
        style={"description_width": "initial"},
        layout={"max_width": "100%"},
    )
    tab = ipywidgets.Tab([ipywidgets.HTML(text) for text in texts])
    for index, label in enumerate(labels):
        tab.set_title(index, label)
    tab.selected_index = 0
    ipywidgets.jslink((slider, "value"), (tab, "selected_index"))
    return ipywidgets.VBox([slider, tab])


def explore(
    draw: Callable[[Any], Any],
    values: Sequence[Any],
    name: str,
    alt: str,
    label: Callable[[Any], str] = str,
    live: bool = False,
    start: int = 0,
    dpi: int = 80,
):
    """`draw(value)` -> matplotlib Figure or Axes, for each of `values`, under a slider called
    `name`.

    With `live` (a kernel must stay) the slider calls `draw` anew whenever it moves; else all
    figures are drawn now.
    """
    if live:
        import ipywidgets

        slider = ipywidgets.SelectionSlider(
            options=[(label(value), value) for value in values],
            value=values[start],
            description=name,
        )
        return ipywidgets.interact(draw, value=slider)
    return scrub(
        [figure_png(draw(value), dpi) for value in values],
        [label(value) for value in values],
        name,
        alt,
        start,
    )


def strip(images, columns: int | None = None, gap: int = 3, enlarge: int = 1) -> bytes:
    """Images [N, 1, H, W] in [-1, 1], side by side in rows of `columns` (all in one row when None),
    as a PNG.

    Greys are kept to 64 levels, which no eye tells from 256, and the file is a third smaller.
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or images.shape[1] != 1 or not len(images):
        raise SettingsError(
            f"images of shape {images.shape}; a strip is made of one or more [1, H, W]"
        )
    grey = ((images[:, 0].clip(-1, 1) + 1) * 31.5).round() * (255 / 63)
    columns = columns or len(grey)
    rows, (height, width) = -(-len(grey) // columns), grey.shape[1:]
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=np.float32
    )
    for index, image in enumerate(grey):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.round().astype(np.uint8))
    if enlarge > 1:
        picture = picture.resize(
            (picture.width * enlarge, picture.height * enlarge), Image.Resampling.BICUBIC
        )
    return _png(picture)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def figure_png(figure, dpi: int = 80) -> bytes:
    """A matplotlib Figure (or an Axes of one) as PNG bytes, and the figure closed; the same figure
    gives the same bytes.

    The margins are not cropped, so that the frames of a slider do not jump.
    """
    import matplotlib.pyplot as plt

    figure = getattr(figure, "figure", figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
