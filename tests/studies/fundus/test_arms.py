"""Fine-tuning arms: weights, rows, and bit-for-bit resume."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.errors import SettingsError
from fairlib.io import read_tensors
from studies.engine.study import Run
from studies.fundus import arms
from studies.fundus.arms import ARMS, TUNINGS, each_once, even_groups, generated, tuned
from studies.fundus.data import FUNDUS, subjects
from studies.fundus.study import STUDY, cost

RACES = FUNDUS.attributes["race"]
THREE = ("plain", "released", "repaired")


def test_every_arm_has_its_weights():
    codes = np.stack([np.arange(40) % size for size in FUNDUS.sizes], axis=1)
    found = {arm: way.weigh(codes, FUNDUS.sizes, 7, 3) for arm, way in TUNINGS.items()}
    first = {arm: one.weights(codes, 0) for arm, one in found.items()}
    assert torch.equal(first["released"], first["random"]) and torch.equal(
        first["repaired"], first["random-repaired"]
    )
    assert (
        (first["released"] < 0).any()
        and (first["repaired"] >= 0).all()
        and (first["plain"] == 1).all()
    )
    assert found["released"].settings.window == 7 and set(ARMS) > set(TUNINGS)


def test_batches_of_the_balanced_arm_are_a_third_of_each_race():
    groups = np.stack(
        [np.repeat([0, 1, 2], [4, 9, 40]), np.zeros(53, int), np.zeros(53, int)], axis=1
    )
    assert np.array_equal(each_once(groups, RACES, 1), np.arange(53))
    rows = even_groups(groups, RACES, 1)
    races = np.bincount(groups[rows, 0])
    assert len(rows) == 53 and races.max() - races.min() <= 1
    for race in range(3):
        counts = np.bincount(rows, minlength=53)[groups[:, 0] == race]
        assert counts.max() - counts.min() <= 1, "none of a race is drawn twice more than another"
    assert np.array_equal(rows, even_groups(groups, RACES, 1))
    assert not np.array_equal(rows, even_groups(groups, RACES, 2))
    with pytest.raises(SettingsError, match="no Black patient is among"):
        even_groups(groups[groups[:, 0] != 1], RACES, 1)


@pytest.mark.slow
def test_a_killed_tuning_goes_on_to_the_same_bits(settings, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(arms, "SAVE", 2)
    given, way = arms.shown(settings), TUNINGS["repaired"]
    latents = arms.encode_images(given.generator, given.train)
    what = (given, latents, way.weigh, way.rows, settings.finetune(1), settings.window, tmp_path)
    for state, _ in arms.tune(*what):
        if state.step == 5:  # saved at 4
            break
    *_, (state, rows) = arms.tune(*what)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    state.use_average()
    folder = tuned(settings, "repaired", 1).load()
    whole_run = read_tensors(folder / "denoiser.safetensors")
    assert all(
        torch.equal(value, whole_run[name]) for name, value in state.module.state_dict().items()
    )
    table = pd.read_csv(folder / "history.csv")
    pd.testing.assert_frame_equal(pd.DataFrame(rows), table, check_dtype=False)
    assert (
        table["probe_gap"].notna().all()
        and table["share_negative"].eq(0).all()
        and (table["sigma_F"] <= 1).all()
    )


@pytest.mark.slow
def test_arms_of_a_seed_start_from_one_noise_and_one_denoiser(settings, runs):
    tables = {arm: pd.read_csv(tuned(settings, arm, 1).load() / "history.csv") for arm in THREE}
    assert len({round(table["plain_loss"].iloc[0], 5) for table in tables.values()}) == 1, (
        "the same batch and noise"
    )
    assert tables["released"]["loss"].iloc[0] != pytest.approx(tables["plain"]["loss"].iloc[0])
    first = generated("base", settings, 1).load().stored
    other = generated("base", replace(settings, sample_batch=7), 1).load().stored
    assert (first.int() - other.int()).abs().max() <= 2, (
        "the same in any batch, but for sums in another order"
    )
    assert not torch.equal(first, generated("base", settings, 2).load().stored)
    assert not torch.equal(first, generated("plain", settings, 1).load().stored)


@pytest.mark.slow
def test_the_row_of_everyone_is_drawn_by_the_other_generator_from_the_same_noise(settings, runs):
    other = replace(settings, weights=settings.everyone)
    shown, start, same = (
        generated(arm, one, 1).load().stored
        for arm, one in (("everyone", settings), ("base", settings), ("base", other))
    )
    assert torch.equal(shown, same) and not torch.equal(shown, start)
    losses = [
        pd.read_csv(tuned(one, arm, 1).load() / "probe.csv").iloc[0].to_dict()
        for one, arm in ((settings, "everyone"), (other, "base"), (settings, "base"))
    ]
    assert losses[0] == losses[1] != losses[2]
    table = subjects(settings, "requested").load().table.head(2)
    seen = [generated(arm, settings, 1, table, noise=0).load() for arm in ("base", "everyone")]
    assert seen[0].images.shape == (2, 1, 128, 128)
    assert not torch.equal(seen[0].stored, seen[1].stored)


@pytest.mark.slow
def test_the_cost_of_an_arm_counts_what_its_denoiser_evaluates(settings, runs):
    given, counted = arms.shown(settings), []
    latents = arms.encode_images(given.generator, given.train)
    hook = given.generator.load().denoiser.register_forward_hook(
        lambda module, inputs, output: counted.append(len(inputs[0]))
    )
    way = TUNINGS["released"]
    what = (given, latents, way.weigh, way.rows, settings.finetune(1), settings.window)
    *_, (state, _) = arms.tune(*what)
    arms.probe_row(given, state.module, settings.batch_size)
    hook.remove()
    table = cost(Run(STUDY, settings, "released", 1)).set_index("kind")
    assert table.loc[["fine-tuning", "probe"], "forward"].sum() == sum(counted)
    assert table["backward"].to_list() == [0, settings.steps * settings.batch_size, 0]
