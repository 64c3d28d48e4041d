"""Sheets of images show every image they were given, on one scale, and the change between pairs."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fairlib import figures
from fairlib.errors import DataError

RNG = np.random.default_rng


@pytest.fixture(autouse=True)
def clean():
    with matplotlib.rc_context():
        figures.house_style()
        yield
    plt.close("all")


def draw(figure):
    """Rendered once, so that a figure that cannot be drawn fails here."""
    figure.canvas.draw()
    return figure


class TestImages:
    IMAGES = RNG(0).uniform(-1, 1, (5, 1, 8, 8)).astype(np.float32)

    def shown(self, figure):
        return [ax.images[0] for ax in figure.axes if ax.images and ax.get_visible()]

    def test_grid_shows_every_image_on_one_scale(self):
        figure = draw(
            figures.image_grid(self.IMAGES, 3, titles=list("abcde"), row_labels=["first", "second"])
        )
        shown = self.shown(figure)
        assert len(shown) == 5
        for drawn, image in zip(shown, self.IMAGES, strict=True):
            assert np.array_equal(drawn.get_array(), image[0]) and drawn.get_clim() == (-1, 1)
        assert [ax.get_title(loc="center") for ax in figure.axes[:5]] == list("abcde")
        assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["first", "second"]

    def test_pairs_show_what_changed(self):
        after = np.clip(self.IMAGES + 0.1, -1, 1)
        figure = draw(figures.before_after(self.IMAGES, after, titles=list("abcde")))
        shown = self.shown(figure)
        assert len(shown) == 15
        for index in range(5):
            change = np.asarray(shown[5 + index].get_array()) - np.asarray(shown[index].get_array())
            assert np.allclose(shown[10 + index].get_array(), change)
        low, high = shown[10].get_clim()
        assert low == -high

    def test_equal_pairs_can_be_drawn(self):
        draw(figures.before_after(self.IMAGES, self.IMAGES))

    def test_hearts_show_both_frames_with_the_outlines_of_their_masks(self):
        hearts, masks = RNG(1).uniform(-1, 1, (3, 3, 8, 8)), np.zeros((3, 2, 8, 8), int)
        masks[0, 0, 2:5, 2:5] = 1
        figure = draw(figures.heart_grid(hearts, masks, list("abc"), columns=2))
        shown = self.shown(figure)
        assert len(shown) == 4 and np.allclose(shown[0].get_array(), hearts[0, [0, 2]].mean(0))
        assert np.allclose(shown[3].get_array(), hearts[1, 1])
        assert [len(panel.collections) for panel in figure.axes] == [1, 0, 0, 0]
        with pytest.raises(DataError, match="give .N, 3, H, W."):
            figures.heart_grid(hearts[:, :2])

    def test_bad_images_are_refused(self):
        with pytest.raises(DataError, match=r"give \[N, 1, H, W\]"):
            figures.image_grid(self.IMAGES[:, 0])
        with pytest.raises(DataError, match="no pairs"):
            figures.before_after(self.IMAGES, self.IMAGES[:4])
