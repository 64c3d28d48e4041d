"""Widgets without a kernel: the images are all there, one is seen, the slider names them, nothing
is fetched.
"""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from fairlib import widgets
from fairlib.errors import SettingsError


def squares(count):
    return [
        widgets.contact_sheet(torch.full((1, 1, 8, 8), -1 + 2 * i / max(1, count - 1)))
        for i in range(count)
    ]


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_slider_shows_one_picture_and_names_all():
    page = Elements(
        widgets.slider(squares(4), {"step": ["a", "b", "c", "d"]}, "a grey square", start=2).data
    )
    images, [slider] = page.of("img"), page.of("input")
    assert [image["alt"] for image in images] == [f"{label}: a grey square" for label in "abcd"]
    assert ["display:block" in image["style"] for image in images] == [False, False, True, False]
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == (
        "range",
        "0",
        "3",
        "2",
    )
    assert slider["aria-label"] == "step" and slider["aria-valuetext"] == "c"


def test_slider_holds_the_pictures_themselves_and_asks_no_host():
    given = squares(2)
    text = widgets.slider(given, {"n": ["x", "y"]}, "square").data
    held = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", text)]
    assert held == given
    assert "://" not in text and "<script" not in text


def test_words_cannot_break_out_of_the_markup():
    text = widgets.slider(squares(2), {"a & b": ['<b>"x"', "y"]}, 'say "hello" <i>').data
    page = Elements(text)
    assert not page.of("b") and not page.of("i")
    assert page.of("img")[0]["alt"] == '<b>"x": say "hello" <i>'


@pytest.mark.parametrize(
    ("count", "labels", "start"), [(1, ["a"], 0), (2, ["a"], 0), (2, ["a", "b"], 2)]
)
def test_slider_refuses(count, labels, start):
    with pytest.raises(SettingsError):
        widgets.slider(squares(count), {"n": labels}, "square", start=start)


def test_sliders_show_the_picture_of_their_combination():
    axes = {"sex": ["woman", "man"], "age": ["50s", "60s", "70s"]}
    given = squares(6)
    page = Elements(widgets.slider(given, axes, "a grey square", "person", start=[1, 2]).data)
    images, sliders = page.of("img"), page.of("input")
    assert [image["data-label"] for image in images] == [
        f"{sex}, {age}" for sex in axes["sex"] for age in axes["age"]
    ]
    assert [int(slider["data-stride"]) for slider in sliders] == [3, 1] and [
        slider["value"] for slider in sliders
    ] == ["1", "2"]
    shown = ["display:block" in image["style"] for image in images].index(True)
    assert (
        shown == sum(int(slider["value"]) * int(slider["data-stride"]) for slider in sliders) == 5
    )
    assert (
        json.loads(sliders[1]["data-words"]) == axes["age"]
        and sliders[0]["aria-valuetext"] == "man"
    )
    assert [base64.b64decode(image["src"].partition(",")[2]) for image in images] == given


@pytest.mark.parametrize(
    ("count", "axes", "start"),
    [
        (5, {"a": ["x", "y"], "b": ["1", "2", "3"]}, 0),
        (1, {"a": ["x"]}, 0),
        (2, {"a": ["x", "y"]}, [2]),
        (1, {}, 0),
        (2, {"a": ["x", "y"]}, [0, 0]),
    ],
)
def test_sliders_refuse(count, axes, start):
    with pytest.raises(SettingsError):
        widgets.slider(squares(count), axes, "square", "n", start)


def test_tabs_are_linked_in_the_page():
    """The link is a model of its own in the saved state, from the slider's value to the tab that is
    seen.
    """
    import ipywidgets

    box = widgets.tabs(["<p>one</p>", "<p>two</p>"], ["1", "2"], "leaf")
    slider, tab = box.children
    links = [
        model
        for model in ipywidgets.Widget.get_manager_state()["state"].values()
        if model["model_name"] == "LinkModel"
    ]
    ends = [
        {
            (end[0].removeprefix("IPY_MODEL_"), end[1])
            for end in (m["state"]["source"], m["state"]["target"])
        }
        for m in links
    ]
    assert {(slider.model_id, "value"), (tab.model_id, "selected_index")} in ends
    assert (slider.min, slider.max) == (0, 1) and [child.value for child in tab.children] == [
        "<p>one</p>",
        "<p>two</p>",
    ]
    with pytest.raises(SettingsError):
        widgets.tabs(["one"], ["1"], "leaf")


def test_contact_sheet_lays_images_out_side_by_side():
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    images = levels.view(5, 1, 1, 1).expand(5, 1, 6, 4)
    sheet = Image.open(io.BytesIO(widgets.contact_sheet(images)))
    assert sheet.mode == "L" and sheet.size == (5 * 4 + 4 * widgets.GAP, 6)
    pixels = np.asarray(sheet)
    middles = [pixels[3, (4 + widgets.GAP) * i + 2] for i in range(5)]
    assert np.abs(np.array(middles) - (levels.numpy() + 1) * 127.5).max() <= 255 / 63 / 2 + 0.5
    assert pixels[:, 4 : 4 + widgets.GAP].min() == 255  # the gap is paper
    large = Image.open(io.BytesIO(widgets.contact_sheet(images, enlarge=2)))
    assert large.size == (2 * sheet.width, 2 * sheet.height)


def test_contact_sheet_refuses_what_is_no_picture():
    with pytest.raises(SettingsError, match="give one or more"):
        widgets.contact_sheet(torch.zeros(3, 8, 8))


def test_explore_draws_every_value_once_and_the_same_each_time():
    import matplotlib.pyplot as plt

    drawn = []

    def draw(value):
        drawn.append(value)
        figure, axes = plt.subplots(figsize=(1, 1))
        axes.plot([0, value])
        return axes

    first, again = (
        widgets.explore(draw, [1, 2, 3], "n", "a line", label="n = {}".format).data
        for _ in range(2)
    )
    assert drawn == [1, 2, 3, 1, 2, 3] and first == again
    assert [image["data-label"] for image in Elements(first).of("img")] == [
        "n = 1",
        "n = 2",
        "n = 3",
    ]
    assert not plt.get_fignums()
