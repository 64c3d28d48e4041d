"""A reader of several attributes, on pictures that show them plainly."""

import pandas as pd
import pytest
import torch

from fairlib.errors import DataError, WeightsError
from fairlib.models.fundus_reader import (
    SLIM,
    build_reader,
    changed,
    fit_reader,
    load_reader,
    read_fundi,
    save_reader,
    truth_of,
)
from fairlib.models.training import FitSettings, generator_for

HEADS = {"side": ("left", "right"), "level": ("dark", "grey", "bright")}
SETTINGS = FitSettings(50, 24, 3e-3, warmup=5, ema_decay=0.8)


def plain_pictures(count=96):
    """Side is which half is brighter, level how bright the picture is."""
    chance = torch.Generator().manual_seed(0)
    side, level = (
        torch.randint(0, 2, (count,), generator=chance),
        torch.randint(0, 3, (count,), generator=chance),
    )
    images = ((level - 1) * 0.5).view(-1, 1, 1, 1) + (side * 2 - 1).view(
        -1, 1, 1, 1
    ) * 0.3 * torch.linspace(-1, 1, 64).sign()
    images = images.expand(count, 1, 64, 64)
    return ((images + 1) * 127.5).to(torch.uint8), torch.stack([side, level], dim=1)


@pytest.fixture(scope="module")
def fitted():
    images, truth = plain_pictures()
    reader = build_reader(HEADS, SLIM, pool=2, seed=1)
    list(fit_reader(reader, images, truth, SETTINGS))
    return reader


def test_it_reads_what_is_there(fitted):
    images, truth = plain_pictures()
    found, features = read_fundi(fitted, images, batch_size=40)
    for place, name in enumerate(HEADS):
        assert (found[name].argmax(1) == truth[:, place].numpy()).mean() > 0.95
        assert found[name].sum(1) == pytest.approx(1)
    assert features.shape == (96, 64)


def test_bytes_and_floats_are_one_picture(fitted):
    images, _ = plain_pictures(8)
    both = [read_fundi(fitted, given)[0]["level"] for given in (images, images.float() / 127.5 - 1)]
    assert both[0] == pytest.approx(both[1])


def test_first_weights_are_a_function_of_the_seed_alone():
    before = torch.get_rng_state()
    one, other, third = (build_reader(HEADS, SLIM, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["body.0.weight"], third["body.0.weight"])


def test_a_change_moves_and_lights_a_picture_but_turns_nothing_round():
    ramp = torch.linspace(-1, 1, 64).expand(20, 1, 64, 64)
    found = changed(ramp, generator_for(0, 1))
    assert (found[..., 40:].mean((1, 2, 3)) > found[..., :24].mean((1, 2, 3))).all(), (
        "never mirrored"
    )
    assert (found - ramp).abs().mean() < 0.15 and not torch.equal(found[0], found[1])


def test_saved_and_loaded_it_reads_the_same(fitted, tmp_path):
    save_reader(tmp_path, fitted)
    images, found = plain_pictures(8)[0], load_reader(tmp_path)
    assert found.values == HEADS and list(found.values) == list(HEADS)
    for name, values in read_fundi(found, images)[0].items():
        assert values == pytest.approx(read_fundi(fitted, images)[0][name], abs=1e-9)
    with pytest.raises(WeightsError, match="no reader of fundi"):
        load_reader(tmp_path / "nowhere")


def test_mistakes_are_named():
    images, truth = plain_pictures(8)
    reader = build_reader(HEADS, SLIM)
    with pytest.raises(DataError, match="all 8 pictures have one value of side"):
        list(fit_reader(reader, images, truth * torch.tensor([0, 1]), SETTINGS))
    with pytest.raises(DataError, match="one row a picture"):
        list(fit_reader(reader, images[:4], truth, SETTINGS))
    table = pd.DataFrame({"side": ["left", "top"], "level": ["dark", "grey"]})
    with pytest.raises(DataError, match="side is 'top' in 1 of 2 rows"):
        truth_of(table, HEADS)
    with pytest.raises(DataError, match="did you mean 'sides'"):
        truth_of(table.rename(columns={"side": "sides"}), HEADS)
