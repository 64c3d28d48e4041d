import numpy as np
import pytest
import torch
from torch import nn

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.models.training import (
    FitSettings,
    Trainer,
    batch_indices,
    draw_rows,
    rows_of_step,
)
from fairlib.rng import torch_rng


def small_fit(steps=6, trainer=None, stop=None):
    """A linear regression; returns the trainer after `stop` steps (all of them when None)."""
    if trainer is None:
        torch.manual_seed(0)
        trainer = Trainer(
            nn.Linear(4, 1), FitSettings(steps, 8, 1e-2, warmup=2, ema_decay=0.9, seed=5)
        )

    def loss(step):
        rows = batch_indices(5, step, 20, 8)
        x = torch.randn(20, 4, generator=torch_rng(1, 0))[rows]
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
    draws = [torch.randn(3, generator=torch_rng(*key)) for key in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])


def test_learning_rate_warms_up_and_anneals_to_zero():
    trainer = Trainer(nn.Linear(1, 1), FitSettings(100, 1, 1.0, warmup=10))
    rates = [trainer.settings.learning_rate_at(step) for step in range(101)]
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


def test_a_constant_rate_stays_after_the_warm_up():
    settings = FitSettings(10, 1, 1.0, warmup=2, anneal="none")
    assert [settings.learning_rate_at(step) for step in (0, 1, 9)] == [0.5, 1.0, 1.0]


def test_the_state_of_another_shape_changes_nothing():
    trainer = Trainer(nn.Linear(2, 1), FitSettings(1, 1, 1e-3))
    other = Trainer(nn.Linear(3, 1), FitSettings(1, 1, 1e-3))
    before = trainer.to_tensors()
    with pytest.raises(WeightsError, match=r"'weight/weight' is \(1, 3\) in the file"):
        trainer.from_tensors(other.to_tensors())
    assert all(torch.equal(value, before[name]) for name, value in trainer.to_tensors().items())


def test_a_module_without_gradients_is_refused():
    with pytest.raises(SettingsError, match="no parameter takes gradients"):
        Trainer(nn.Linear(2, 1).requires_grad_(False), FitSettings(1, 1, 1e-3))


def test_the_update_is_torchs_adamw_with_a_moving_average():
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=rng)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = FitSettings(9, 1, 0.01, 0, 0.1, 1e9, 0.5, anneal="none", betas=(0.9, 0.999))
    optimiser = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    trainer, average = Trainer({"w": mine}, settings), start.clone()
    for n in range(1, 8):
        mine.grad = torch.randn(5, 3, generator=rng)
        theirs.grad = mine.grad.clone()
        norm = trainer.update()
        optimiser.step()
        keep = min(0.5, n / (9 + n))
        average = keep * average + (1 - keep) * theirs.detach()
        assert torch.equal(mine, theirs) and mine.grad is None
        assert norm == pytest.approx(float(theirs.grad.norm()))
    torch.testing.assert_close(trainer.ema["w"], average)


def test_averaged_gives_the_last_weights_back():
    parameter = nn.Parameter(torch.zeros(3))
    trainer = Trainer({"w": parameter}, FitSettings(1, 1, 1e-3, ema_decay=0.9))
    parameter.data += 2
    with pytest.raises(RuntimeError), trainer.averaged():
        assert parameter.tolist() == [0, 0, 0]
        raise RuntimeError
    assert parameter.tolist() == [2, 2, 2]


def test_a_gradient_that_is_not_finite_changes_only_the_count():
    parameter = nn.Parameter(torch.ones(2))
    trainer = Trainer({"w": parameter}, FitSettings(50, 1, 0.1, ema_decay=0.9))
    parameter.grad = torch.tensor([1.0, float("nan")])
    assert not np.isfinite(trainer.update())
    assert parameter.tolist() == [1, 1] and (trainer.step, trainer.updates) == (1, 0)
    with pytest.raises(SettingsError, match="gradient that is not finite"):
        list(trainer.run(lambda step: (parameter * float("inf")).sum()))


def test_extra_tensors_travel_with_the_state():
    trainer = Trainer(nn.Linear(2, 1), FitSettings(1, 1, 1e-3))
    trainer.extra["pools/women"] = torch.arange(3.0)
    again = Trainer(nn.Linear(2, 1), FitSettings(1, 1, 1e-3))
    again.from_tensors(trainer.to_tensors())
    assert again.extra["pools/women"].tolist() == [0, 1, 2]


def half_fit(dtype, stop=None, state=None, steps=200):
    torch.manual_seed(0)
    layer = nn.Linear(4, 1).to(dtype)
    settings = FitSettings(steps, 8, 1e-4, warmup=0, anneal="none", ema_decay=0.9)
    trainer = Trainer(layer, settings)
    if state is not None:
        trainer.from_tensors(state)
    x = torch.randn(8, 4, generator=torch_rng(1, 0)).to(dtype)
    for done in trainer.run(lambda step: (layer(x) - 3).square().float().mean()):
        if done.step == stop:
            break
    return trainer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_by_float32_master_weights(dtype):
    whole, single = half_fit(dtype), half_fit(torch.float32)
    # steps of 1e-4 are less than half a unit in the last place of bf16 weights near 0.5
    start = half_fit(dtype, steps=1).to_tensors()["weight/weight"]
    moved = (whole.masters["weight"] - start).abs()
    assert moved.min() > 1e-2
    torch.testing.assert_close(
        whole.masters["weight"], single.masters["weight"], atol=2e-3, rtol=0.05
    )
    assert whole.module.weight.dtype == dtype
    assert torch.equal(whole.module.weight, whole.masters["weight"].to(dtype))
    resumed = half_fit(dtype, state=half_fit(dtype, stop=7).to_tensors()).to_tensors()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.to_tensors().items())


def test_an_overflow_in_half_precision_lowers_the_loss_scale():
    trainer = Trainer(nn.Linear(2, 1).half(), FitSettings(5, 1, 1e-3))
    before = trainer.loss_scale
    trainer.named["bias"].grad = torch.tensor([float("inf")], dtype=torch.float16)
    trainer.update()
    assert trainer.loss_scale == before / 2 and bool(trainer.named["bias"].isfinite().all())


def test_rows_are_drawn_in_proportion_and_are_a_function_of_seed_and_step():
    weights = np.array([1.0, 0.0, 3.0])
    rows = torch.cat(
        [rows_of_step(FitSettings(1, 500, 0.1, seed=1), step, 3, weights) for step in range(8)]
    )
    shares = torch.bincount(rows, minlength=3) / len(rows)
    assert shares[1] == 0 and abs(float(shares[2]) - 0.75) < 0.03  # four standard deviations
    assert torch.equal(
        rows[500:1000], rows_of_step(FitSettings(1, 500, 0.1, seed=1), 1, 3, weights)
    )
    assert not torch.equal(rows[:500], rows[500:1000])


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0], []])
def test_weights_that_cannot_be_drawn_from_are_refused(weights):
    with pytest.raises(DataError, match="sampling weights"):
        draw_rows(weights, 4, 0, 0)
