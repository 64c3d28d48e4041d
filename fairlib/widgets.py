"""Interactive elements that work in a static page: every figure is computed beforehand, and no
kernel is needed.

`slider` is one or several sliders over images: plain HTML with the browser's range input, so it
works from the keyboard, on a phone and with a screen reader. `tabs` is a slider linked to tabs of
text, made of ipywidgets, whose saved state the book's pages turn into the same thing. `explore`
draws a function at chosen values for `slider`. Nothing here loads anything from another host.
"""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from fairlib.errors import SettingsError

GAP = 3  # pixels between the images of a contact sheet

# Runs in the page that holds the widget: the sliders' values, each times its stride, are the number
# of the image to show; hide the others, and say where the slider stands.
_MOVE = (
    "const w=this.closest('.fairlib-slider'),s=[...w.querySelectorAll('input')],"
    "v=s.reduce((n,i)=>n+i.value*i.dataset.stride,0);"
    "w.querySelectorAll('img').forEach((p,i)=>{p.style.display=i===v?'block':'none'});"
    "const t=JSON.parse(this.dataset.words)[+this.value];"
    "this.parentNode.querySelector('output').textContent=t;this.setAttribute('aria-valuetext',t)"
)


def slider(
    images: Sequence[bytes],
    values: Mapping[str, Sequence[str]],
    alt: str,
    name: str = "",
    start: int | Sequence[int] = 0,
    width: int = 720,
) -> Any:
    """Sliders over PNG `images`, one of them visible at a time: one slider for each entry of
    `values` {its name: where it can stand}.

    images: one for each combination of values, the last slider's values next to each other. alt:
    what all images have in common; each image's text alternative is its combination and `alt`.
    name: of the whole, for screen readers; by default that of the sliders. start: where each slider
    stands first, which is the only image where no script runs. width: at most so many CSS pixels.
    Returns an IPython HTML object. Raises `SettingsError` unless every slider has two or more
    values and every combination one image.
    """
    from IPython.display import HTML

    sizes = [len(words) for words in values.values()]
    if not sizes or min(sizes) < 2 or len(images) != prod(sizes):
        raise SettingsError(
            f"{len(images)} images for sliders of {sizes} values; give each slider two or more "
            "values, and each combination one image"
        )
    first = [start] * len(sizes) if isinstance(start, int) else list(start)
    inside = [0 <= at < size for at, size in zip(first, sizes, strict=False)]
    if len(first) != len(sizes) or not all(inside):
        raise SettingsError(f"start is {start}; the sliders have {sizes} values, counted from 0")
    strides = [prod(sizes[place + 1 :]) for place in range(len(sizes))]
    visible = sum(at * stride for at, stride in zip(first, strides, strict=True))
    labels = [", ".join(words) for words in product(*values.values())]
    shown = "".join(
        _image(data, label, alt, index == visible, width)
        for index, (data, label) in enumerate(zip(images, labels, strict=True))
    )
    inputs = "".join(
        _input(axis, words, at, stride, width)
        for (axis, words), at, stride in zip(values.items(), first, strides, strict=True)
    )
    about = f'role="group" aria-label="{escape(name or ", ".join(values))}"'
    return HTML(f'<div class="fairlib-slider" {about}>{shown}{inputs}</div>')


def _image(data: bytes, label: str, alt: str, visible: bool, width: int) -> str:
    display = "block" if visible else "none"
    return (
        f'<img alt="{escape(f"{label}: {alt}")}" data-label="{escape(label)}" '
        f'style="display:{display};width:100%;max-width:{width}px;height:auto;background:#fff" '
        f'src="data:image/png;base64,{b64encode(data).decode()}">'
    )


def _input(name: str, words: Sequence[str], start: int, stride: int, width: int) -> str:
    return (
        f'<label style="display:flex;flex-wrap:wrap;gap:.6em;align-items:center;max-width:{width}px;padding:.3em 0">'
        f'<span style="min-width:6em">{escape(name)}</span>'
        f'<input type="range" min="0" max="{len(words) - 1}" step="1" value="{start}" style="flex:1;min-width:8em" '
        f'data-stride="{stride}" data-words="{escape(json.dumps(list(words)))}" '
        f'aria-label="{escape(name)}" aria-valuetext="{escape(words[start])}" oninput="{escape(_MOVE)}">'
        f'<output style="min-width:8em">{escape(words[start])}</output></label>'
    )


def tabs(texts: Sequence[str], labels: Sequence[str], name: str) -> Any:
    """A slider called `name` linked (in the page, without a kernel) to tabs, one for each of the
    HTML `texts`.

    Returns an ipywidgets VBox. Raises `SettingsError` unless there is one label for each of two or
    more texts.
    """
    import ipywidgets

    if len(texts) != len(labels) or len(texts) < 2:
        raise SettingsError(f"{len(texts)} texts, {len(labels)} labels; give as many, at least two")
    style = {"style": {"description_width": "initial"}, "layout": {"max_width": "100%"}}
    chooser = ipywidgets.IntSlider(0, 0, len(texts) - 1, description=name, readout=False, **style)
    tab = ipywidgets.Tab([ipywidgets.HTML(text) for text in texts])
    for index, label in enumerate(labels):
        tab.set_title(index, label)
    tab.selected_index = 0
    ipywidgets.jslink((chooser, "value"), (tab, "selected_index"))
    return ipywidgets.VBox([chooser, tab])


def explore(
    draw: Callable[[Any], Any],
    values: Sequence[Any],
    name: str,
    alt: str,
    label: Callable[[Any], str] = str,
    start: int = 0,
) -> Any:
    """`draw(value)` -> matplotlib Figure or Axes, for each of `values`, under a slider called
    `name`; all figures are drawn now.
    """
    images = [figure_png(draw(value)) for value in values]
    return slider(images, {name: [label(value) for value in values]}, alt, start=start)


def contact_sheet(images: ArrayLike, enlarge: int = 1) -> bytes:
    """Images [N, 1, H, W] in [-1, 1], side by side with `GAP` white pixels between them, as a PNG,
    `enlarge` times as large.

    Greys are kept to 64 levels, which no eye distinguishes from 256, and the file is a third
    smaller.
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or images.shape[1] != 1 or not len(images):
        raise SettingsError(f"images of shape {images.shape}; give one or more [1, H, W]")
    grey = ((images[:, 0].clip(-1, 1) + 1) * 31.5).round() * (255 / 63)
    spaced = np.pad(grey, ((0, 0), (0, 0), (0, GAP)), constant_values=255)
    sheet = np.concatenate(list(spaced), axis=1)[:, :-GAP]
    png = Image.fromarray(sheet.round().astype(np.uint8))
    if enlarge > 1:
        png = png.resize((png.width * enlarge, png.height * enlarge), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    png.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def figure_png(figure: Any, dpi: int = 80, **options: Any) -> bytes:
    """A matplotlib Figure (or an Axes of one) as PNG bytes, and the figure closed; the same figure
    gives the same bytes, since they do not say which software wrote them.

    The margins are not cropped, so that the frames of a slider do not jump. `options`: others of
    `savefig`.
    """
    import matplotlib.pyplot as plt

    figure = getattr(figure, "figure", figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, **options)
    plt.close(figure)
    return buffer.getvalue()
