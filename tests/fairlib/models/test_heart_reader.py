"""A reader of sex, age and body-mass index, on pictures that show them plainly."""

import pandas as pd
import pytest
import torch

from fairlib.errors import DataError, WeightsError
from fairlib.models.heart_reader import (
    HeartReader,
    fit_reader,
    load_reader,
    read_people,
    save_reader,
    truth_of,
)
from fairlib.models.training import FitSettings

SETTINGS = FitSettings(60, 32, 3e-3, warmup=5, ema_decay=0.8)


def plain_people(count=96):
    """Sex is which half is bright, age how bright ED is, body-mass index how bright ES is."""
    chance = torch.Generator().manual_seed(0)
    female, level = (
        torch.randint(0, 2, (count,), generator=chance),
        torch.rand(2, count, generator=chance),
    )
    images = torch.zeros(count, 3, 64, 64)
    images[:, [0, 2]] += (level[0] - 0.5).view(-1, 1, 1, 1)
    images[:, 1] += (level[1] - 0.5).view(-1, 1, 1)
    side = torch.linspace(-1, 1, 64).sign() * 0.5
    images += (female * 2 - 1).view(-1, 1, 1, 1) * side
    return images.clamp(-1, 1), torch.stack(
        [female.float(), 30 + 50 * level[0], 18 + 20 * level[1]], dim=1
    )


@pytest.fixture(scope="module")
def fitted():
    images, truth = plain_people()
    torch.manual_seed(0)
    reader = HeartReader()
    list(fit_reader(reader, images, truth, SETTINGS))
    return reader


def test_it_reads_what_is_there(fitted):
    images, truth = plain_people()
    found, features = read_people(fitted, images)
    assert ((found[:, 0] > 0) == truth[:, 0].numpy().astype(bool)).mean() > 0.9
    assert features.shape == (96, 64)
    for column in (1, 2):
        assert (
            torch.corrcoef(torch.stack([torch.from_numpy(found[:, column]), truth[:, column]]))[
                0, 1
            ]
            > 0.6
        )


def test_the_two_pictures_of_end_diastole_count_once(fitted):
    """Their difference is not there in a real image, and would tell a generated one."""
    images = plain_people(8)[0]
    apart = images.clone()
    apart[:, 0] += 0.1
    apart[:, 2] -= 0.1
    torch.testing.assert_close(fitted(apart), fitted(images), rtol=1e-4, atol=1e-3)


def test_saved_and_loaded_it_reads_the_same(fitted, tmp_path):
    save_reader(tmp_path, fitted)
    images = plain_people(8)[0]
    assert torch.equal(load_reader(tmp_path)(images), fitted(images))
    with pytest.raises(WeightsError, match="no reader"):
        load_reader(tmp_path / "nowhere")


def test_mistakes_are_named():
    images, truth = plain_people(8)
    with pytest.raises(DataError, match="both sexes"):
        list(fit_reader(HeartReader(), images, truth * torch.tensor([0.0, 1, 1]), SETTINGS))
    with pytest.raises(DataError, match="1 rows have no age"):
        truth_of(pd.DataFrame({"sex": ["F", "M"], "age": [50, None], "bmi": [22.0, 23.0]}))
