"""What tuning changes besides the share, and whether a distance is fair to both sexes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from studies.brain.quality import change_at_rim, distance_fairness, diversity


def test_a_space_that_sees_damage_in_one_sex_alone_is_unfair_and_one_that_sees_it_in_both_is_not():
    rng = np.random.default_rng(0)
    female = np.arange(400) % 2
    images = torch.from_numpy(rng.uniform(-0.5, 0.5, (400, 1, 16, 16)).astype(np.float32))
    sign = torch.from_numpy(female).float()

    def of_both(shown):
        return shown.flatten(1)[:, :20].numpy() + shown.var(dim=(1, 2, 3))[:, None].numpy() * 10

    def of_women(shown):
        return (
            of_both(images) * (1 - sign[:, None].numpy()) + of_both(shown) * sign[:, None].numpy()
        )

    spaces = {"fair": of_both, "blind to men": of_women}
    table = distance_fairness(spaces, images, female, {"noise": (0.3,)}, permutations=20)
    fair, blind = (table.set_index("space").loc[name] for name in ("fair", "blind to men"))
    assert fair.chance_low < fair.difference < fair.chance_high < 0.5
    assert blind.difference > 2 * blind.chance_high
    assert blind.distance_F > 10 * abs(blind.distance_M)


def test_a_feature_that_hardly_varies_does_not_decide():
    rng = np.random.default_rng(2)
    female = np.arange(200) % 2
    images = torch.from_numpy(rng.uniform(-0.5, 0.5, (200, 1, 16, 16)).astype(np.float32))
    of_women = torch.from_numpy(female).float()[:, None]

    def of_both(shown):
        return shown.flatten(1)[:, :20].numpy() + shown.var(dim=(1, 2, 3))[:, None].numpy() * 10

    def with_a_faint_one(shown):
        faint = 0.05 * of_women * (shown - images).abs().mean((1, 2, 3))[:, None]
        return np.hstack([of_both(shown), faint.numpy()])

    spaces = {"without": of_both, "with": with_a_faint_one}
    table = distance_fairness(spaces, images, female, {"noise": (0.3,)}, permutations=2)
    without, faintly = table.distance
    assert faintly == pytest.approx(without, rel=0.2)


def test_diversity_is_the_variance_within_prompt_and_sex_over_the_untuned_models():
    rng = np.random.default_rng(1)
    base, features = rng.normal(size=(2, 60, 3))
    prompts = np.repeat(["a", "b", "c"], 20)
    female = rng.random((2, 60)) < 0.4
    found = diversity(features, base, female, prompts)

    def by_hand(values, rows):
        away, cells = 0.0, [values[rows & (prompts == name)] / base.std(0) for name in "abc"]
        for cell in cells:
            away += ((cell - cell.mean(0)) ** 2).sum()
        return away / (rows.sum() - 3)

    assert found["diversity_F"] == pytest.approx(
        by_hand(features, female[0]) / by_hand(base, female[1])
    )
    assert found["diversity_M"] == pytest.approx(
        by_hand(features, ~female[0]) / by_hand(base, ~female[1])
    )
    alike = diversity(base.mean(0) + 0.5 * (base - base.mean(0)), base, female[[1, 1]], prompts)
    assert alike["diversity_F"] == pytest.approx(0.25), "half the spread, a quarter of the variance"


def test_one_image_a_prompt_has_no_diversity():
    found = diversity(np.eye(3), np.eye(3), np.ones((2, 3)), np.array(["a", "b", "c"]))
    assert np.isnan(found["diversity_F"]) and np.isnan(found["diversity_M"])


def slices(radius: int, count: int = 1) -> torch.Tensor:
    """Discs of `radius` pixels as bright as a brain."""
    row, column = np.mgrid[:128, :128]
    disc = np.where(np.hypot(row - 64, column - 64) < radius, 0.2, -1.0).astype(np.float32)
    return torch.from_numpy(disc)[None, None].repeat(count, 1, 1, 1)


def test_a_larger_brain_changes_the_rim_and_a_brighter_middle_does_not():
    base = slices(45, 2)
    middle = base.clone()
    middle[:, :, 50:70, 50:70] += 0.3
    assert change_at_rim(slices(48, 2), base) == pytest.approx(1.0)
    assert change_at_rim(middle, base) == 0
    assert change_at_rim(torch.full_like(base, -1), base) is np.nan
