"""The tables behind figures and sentences of the notebooks, against counts by hand."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.methods.targets import Target
from fairlib.models.generator import alphas_cumprod
from studies.brain import Study, generate, views
from studies.brain.anatomy import Outline
from studies.brain.prompts import EVALUATION_PROMPTS
from studies.brain.views import tables
from studies.brain.views.closer import prompt_grid


def slices():
    """Ten slices of five people: the guides say 0.9 to every woman but one slice, the oracle misses
    one slice.
    """
    rng = np.random.default_rng(0)
    sex = np.repeat(["F", "F", "M", "M", "M"], 2)
    right = np.where(sex == "F", 0.9, 0.1)
    guide = right.copy()
    guide[0] = 0.2
    oracle = right.copy()
    oracle[9] = np.nan
    return pd.DataFrame(
        {
            "subject": np.repeat(list("abcde"), 2),
            "sex": sex,
            "guide_plain": guide,
            "guide_robust": right,
            "auditor": rng.random(10),
            "oracle": oracle,
        }
    )


def test_accuracies_are_counts_by_sex():
    found = views.accuracy_table(slices(), seed=0, replicates=50).set_index(["judge", "what"])
    assert (
        found.value["plain guide", "sensitivity"] == 0.75
        and found.value["plain guide", "specificity"] == 1.0
    )
    assert found.n["oracle", "specificity"] == 5, "a slice without a reading is not counted"
    assert (found.value_low <= found.value).all() and (found.value <= found.value_high).all()
    assert found.value_low["plain guide", "sensitivity"] == 0.5, (
        "the interval draws people, so it reaches woman a alone"
    )


def test_long_readings_have_one_row_a_slice_and_judge_that_was_read():
    long = views.long_readings(slices())
    assert len(long) == 39 and set(long.evaluator) == set(views.READERS.values())
    assert long[long.evaluator == "robust guide"].truth.sum() == 4


def test_logits_are_those_of_the_probabilities():
    found = views.logit_table({"base": pd.DataFrame({"auditor": [0.5, 0.9, np.nan]})}, "auditor")
    assert np.allclose(found.logit, [0, np.log(9)]) and found.arm.tolist() == ["base", "base"]


def test_target_logits_have_the_target_share():
    rng = np.random.default_rng(1)
    scores = [np.concatenate([rng.normal(4, 1, 60), rng.normal(-4, 1, 60)]) for _ in range(2)]
    targets = [
        Target.shares({"F": share, "M": 1 - share}, scores.pop(0), name=name)
        for name, share in (("a", 0.25), ("b", 0.75))
    ]
    wanted = views.target_logits(targets, 400)
    assert len(wanted) == 400 and (np.diff(wanted) >= 0).all()
    assert (wanted > 0).mean() == pytest.approx(0.5, abs=0.01)


def test_changed_images_run_from_the_most_moved_to_the_least():
    readings = pd.DataFrame(
        {
            "arm": ["base"] * 4 + ["tuned"] * 4,
            "guide_robust": [0.1, 0.1, 0.1, 0.9, 0.2, 0.9, 0.1, 0.2],
        }
    )
    assert views.changed_images(readings, "tuned", 4).tolist() == [1, 0, 2, 3]


def test_cost_counts_calls_an_image():
    """Two steps of 32 images, 8 sampling steps, 2 of them replayed; the frozen model sampled in the
    first step alone.
    """
    steps = pd.DataFrame(
        {"arm": "robust", "forward": [32 * 10] * 2, "backward": [32 * 2] * 2, "frozen": [32 * 8, 0]}
    )
    [row] = views.cost_table(steps, 8).itertuples()
    assert (row.sampling, row.replay, row.frozen, row.calls, row.published) == (8, 6, 4, 18, 48)
    assert row.ratio == pytest.approx(18 / 48)


def test_disagreement_is_the_share_that_the_own_guide_and_the_oracle_place_on_different_sides():
    readings = pd.DataFrame(
        {
            "arm": ["base"] * 2 + ["plain"] * 3,
            "guide_plain": [0.9, 0.9, 0.9, 0.1, 0.9],
            "guide_robust": [0.1, 0.9, 0.1, 0.1, 0.1],
            "oracle": [0.2, 0.2, 0.2, 0.1, np.nan],
        }
    )
    base, plain = views.disagreement(readings).itertuples()
    assert (base.arm, base.n, base.disagree) == ("base", 2, 0.5)
    assert (plain.arm, plain.n, plain.disagree) == ("plain", 2, 0.5)


def rows_of(styler):
    """The texts of a table, heads first."""
    rows = re.findall(r"<tr>(.*?)</tr>", styler.to_html(), re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]


def test_a_table_is_written_for_a_reader():
    """An index with a label twice, words that are markup, a missing value, an interval of a share
    and one of a number.
    """
    frame = pd.DataFrame(
        {
            "judge": ["guide <b>", None],
            "n": [1234, 7],
            "raw": [0.12345, np.nan],
            "raw_low": 0.1,
            "raw_high": [0.2, 1],
            "size": [1.5, -2],
            "size_low": [0, np.inf],
            "holds": [True, False],
        },
        index=[7, 7],
    )
    heads, first, second = rows_of(views.table(frame, digits=2, names={"judge": "read by"}))
    assert heads == ["read by", "images", "as read", "from", "to", "size", "from", "holds"]
    assert first == ["guide &lt;b&gt;", "1,234", "12%", "10%", "20%", "1.50", "0.00", "yes"]
    assert second == ["–", "7", "–", "10%", "100%", "-2.00", "inf", "no"]
    assert rows_of(views.table(frame[["size"]], percent=["size"]))[1:] == [["150.0%"], ["-200.0%"]]


def test_words_stand_to_the_left_and_numbers_to_the_right():
    html = views.table(
        pd.DataFrame({"arm": ["base"], "share": [0.5], "holds": [True]}), caption="A & B"
    ).to_html()
    assert re.findall(r"col(\d) {\s*text-align: (\w+)", html) == [
        ("0", "left"),
        ("1", "right"),
        ("2", "left"),
    ]
    assert "<caption>A &amp; B</caption>" in html


def test_the_same_frame_gives_the_same_page():
    frame = pd.DataFrame({"arm": ["base"], "share": [0.5]})
    assert views.table(frame).to_html() == views.table(frame.copy()).to_html()
    made = [views.table(frame), views.table(frame, names={"arm": "x"}), views.table(frame * 2)]
    ids = {re.search(r'<table id="(\w+)"', styler.to_html())[1] for styler in made}
    assert len(ids) == 3, "two tables of one page must not share their style"


def test_a_figure_with_its_interval_breaks_before_the_bracket_only():
    found = pd.DataFrame(
        {
            "figure": ["mean gap", "gap beyond chance", "below target, points"],
            "value": [0.05, 0.0321, 32.261],
            "low": [0.0123, np.nan, 27.645],
            "high": [0.095, np.nan, 38.19],
        }
    )
    assert tables._with_interval(found) == [
        "0.050 (0.012\u00a0to\u00a00.095)",
        "0.032",
        "32.3 (27.6\u00a0to\u00a038.2)",
    ]


def test_no_bounds_without_long_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "report", lambda: tables_report(tmp_path))
    assert views.bounds_table() is None


def tables_report(folder):
    from studies.brain import report

    return report(folder)


def test_power_on_the_rim_counts_as_such_and_power_elsewhere_does_not():
    row, column = np.mgrid[:128, :128]
    radius = np.hypot(row - 60, column - 70)
    shape = Outline((60.0, 70.0), np.full(180, 40.0))
    rim, inside = (
        torch.from_numpy(np.abs(radius - middle) < 3).float()[None, None] for middle in (40, 20)
    )
    assert (
        views.rim_share(rim, [shape]) == pytest.approx(1) and views.rim_share(inside, [shape]) == 0
    )
    assert views.rim_share(torch.ones(1, 1, 128, 128), [shape]) == pytest.approx(
        2 * np.pi * 40 * 10 / 128**2, rel=0.05
    )


def test_the_rim_follows_an_outline_that_is_no_circle():
    """An ellipse twice as long as wide, upright: its rim is above the middle and at its side, not
    on the circle between.
    """
    angle = np.arange(180) * 2 * np.pi / 180
    shape = Outline((64.0, 64.0), 1 / np.hypot(np.cos(angle) / 20, np.sin(angle) / 40))
    spots = torch.zeros(3, 1, 128, 128)
    spots[0, 0, 64 - 40, 64] = spots[1, 0, 64, 64 + 20] = spots[2, 0, 64, 64 + 30] = 1
    assert [views.rim_share(spot[None], [shape]) for spot in spots] == [1, 1, 0]


class Sure:
    """A model that takes everything for one image, 0.5 all over, and says so as noise or as
    velocity.
    """

    def __init__(self, prediction_type):
        self.prediction_type, self.alphas_cumprod = prediction_type, alphas_cumprod()

    def encode_prompts(self, texts):
        return torch.zeros(len(texts), 1, 1)

    def noise(self, seed, indices):
        return torch.stack(
            [
                torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(seed + i))
                for i in indices
            ]
        )

    def predict_noise(self, latents, timestep, embeds, scale):
        signal = float(self.alphas_cumprod[timestep])
        noise = (latents - signal**0.5 * 0.5) / (1 - signal) ** 0.5
        return (
            noise
            if self.prediction_type == "epsilon"
            else signal**0.5 * noise - (1 - signal) ** 0.5 * 0.5
        )

    def decode(self, latents):
        return latents


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_sampling_asks_what_the_model_predicts(kind):
    model, study = Sure(kind), Study(sampling_steps=4, batch_size=3)
    assert torch.equal(
        generate(model, study, 0, 5), torch.full((5, 1, 4, 4), 191, dtype=torch.uint8)
    )
    noise = model.noise(0, [0])
    for _, image in views.denoising_path(model, study, noise, ["one"]):
        torch.testing.assert_close(image, torch.full_like(image, 0.5), atol=1e-3, rtol=0)
    assert (
        views.solver_errors(model, study, noise, ["one"], [2, 4], reference=6).distance.max() < 1e-3
    )
    grid = prompt_grid(model, study, 0)
    torch.testing.assert_close(
        grid, torch.full((len(EVALUATION_PROMPTS), 1, 4, 4), 0.5), atol=1e-3, rtol=0
    )


def test_saliency_is_the_gradient_and_leaves_nothing_behind():
    weights = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.zeros(3, 1, 8, 8)
    found = views.saliency(
        lambda x: (x * weights).sum((1, 2, 3)) ** 2 / 2 + (x * weights).sum((1, 2, 3)), images
    )
    assert torch.allclose(found, weights.expand_as(found)) and not images.requires_grad


def test_disturbing_is_repeatable_stays_in_range_and_keeps_the_mean():
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.6
    noisy = views.disturbed(images, "noise", 0.1)
    assert torch.equal(noisy, views.disturbed(images, "noise", 0.1)) and noisy.abs().max() <= 1
    assert float((noisy - images).std()) == pytest.approx(0.1, rel=0.1)
    blurred = views.disturbed(images, "blur", 1.5)
    assert blurred.std() < 0.5 * images.std() and float(blurred.mean()) == pytest.approx(
        float(images.mean()), abs=0.01
    )
