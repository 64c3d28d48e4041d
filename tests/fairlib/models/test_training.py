import numpy as np
import pytest
import torch
from torch import nn

from fairlib.errors import WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.models.training import FitSettings, Trainer, batch_indices, generator_for


def small_fit(steps=6, trainer=None, stop=None):
    """A linear regression; returns the trainer after `stop` steps (all of them when None)."""
    if trainer is None:
        torch.manual_seed(0)
        trainer = Trainer(
            nn.Linear(4, 1), FitSettings(steps, 8, 1e-2, warmup=2, ema_decay=0.9, seed=5)
        )

    def loss(step):
        rows = batch_indices(5, step, 20, 8)
        x = torch.randn(20, 4, generator=generator_for(1))[rows]
        return (trainer.module(x) - x.sum(1, keepdim=True)).square().mean()

    for state in trainer.run(loss):
        if state.step == stop:
            break
    return trainer


def test_a_resumed_fit_ends_with_the_same_bits(tmp_path):
    whole = small_fit().to_tensors()
    write_tensors(tmp_path / "state.safetensors", small_fit(stop=3).to_tensors())
    torch.manual_seed(99)  # a resumed process starts from other random numbers
    again = Trainer(nn.Linear(4, 1), FitSettings(6, 8, 1e-2, warmup=2, ema_decay=0.9, seed=5))
    again.from_tensors(read_tensors(tmp_path / "state.safetensors"))
    resumed = small_fit(trainer=again).to_tensors()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_every_row_is_seen_once_an_epoch():
    rows = torch.cat([batch_indices(3, step, 20, 8) for step in range(5)]).numpy()
    assert (np.sort(rows[:20]) == np.arange(20)).all() and (
        np.sort(rows[20:]) == np.arange(20)
    ).all()
    assert not (rows[:20] == rows[20:]).all()


def test_streams_differ_by_key_and_repeat():
    draws = [
        torch.randn(3, generator=generator_for(*key)) for key in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])


def test_learning_rate_warms_up_and_anneals_to_zero():
    trainer = Trainer(nn.Linear(1, 1), FitSettings(100, 1, 1.0, warmup=10))
    rates = [trainer.learning_rate(step) for step in range(101)]
    assert (
        rates[0] == pytest.approx(0.1)
        and max(rates) == pytest.approx(1.0)
        and rates[100] == pytest.approx(0, abs=1e-9)
    )


def test_the_state_of_another_network_is_refused():
    trainer = Trainer(nn.Linear(2, 1), FitSettings(1, 1, 1e-3))
    with pytest.raises(WeightsError, match="does not fit this network"):
        trainer.from_tensors({"step": torch.tensor(1), "weight/other": torch.zeros(1)})


# No machine of CI has a CUDA device, and nothing can stand in for one; saving and going on is
# tested above on the processor.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_fit_saved_on_one_device_goes_on_on_another(tmp_path):
    settings = FitSettings(steps=6, batch_size=4, learning_rate=1e-2, ema_decay=0.9)
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    trainer = Trainer(layer, settings)
    steps = trainer.run(lambda step: layer(torch.full((4, 3), float(step))).square().mean())
    for _ in range(3):
        next(steps)
    other = torch.nn.Linear(3, 1).cuda()
    again = Trainer(other, settings)
    again.from_tensors(trainer.to_tensors())
    for _ in steps:
        pass
    for _ in again.run(
        lambda step: other(torch.full((4, 3), float(step), device="cuda")).square().mean()
    ):
        pass
    torch.testing.assert_close(other.weight.cpu(), layer.weight, atol=1e-5, rtol=1e-4)
