import numpy as np
import pandas as pd
import pytest
import torch

from fairlib.cohorts.cardiac import control_image, parse_prompt, prompt_of
from fairlib.errors import DataError, SettingsError
from fairlib.methods.control import copies, new_combinations
from fairlib.methods.group_weights import balancing_weights


@pytest.fixture(scope="module")
def cohort():
    """Ninety of one kind and ten of another; every mask is constant and names its row."""
    sick = np.arange(100) >= 90
    table = pd.DataFrame(
        {
            "subject": [f"s{i}" for i in range(100)],
            "sex": np.where(sick, "F", "M"),
            "age": np.where(sick, 55, 67),
            "bmi": np.where(sick, 22.0, 31.0),
            "diagnosis": np.where(sick, "heart failure", "healthy"),
        }
    )
    masks = torch.zeros(100, 2, 4, 4, dtype=torch.uint8)
    digits = np.arange(100)
    for cell in range(4):  # the row number in base 4
        masks[:, :, 0, cell] = torch.tensor(digits // 4**cell % 4)[:, None]
    return table, masks


def row_of(control):
    digits = (control[:, 0, 0] * 3).round().long()
    return (digits * 4 ** torch.arange(4)).sum(1)


def test_copies_repeat_real_pairs_by_capped_inverse_frequency(cohort):
    table, masks = cohort
    # of either kind; caps
    for clip, weights in ((0.5, (1 / 90, 1 / 10)), (2, (1 / 90, 1 / 18)), (5, (1 / 90, 1 / 45))):
        requests, control = copies(table, masks, 3000, seed=1, clip=clip)
        real = table.iloc[requests["source"]].reset_index(drop=True)
        assert requests["prompt"].tolist() == [prompt_of(row) for row in real.to_dict("records")]
        assert (requests["subject"] == real["subject"]).all()
        assert torch.equal(row_of(control), torch.tensor(requests["source"].tolist()))
        wanted = 10 * weights[1] / (90 * weights[0] + 10 * weights[1])
        assert abs((requests["diagnosis"] == "heart failure").mean() - wanted) < 0.04


def test_new_combinations_are_even_and_keep_the_diagnosis_of_the_mask(cohort):
    table, masks = cohort
    requests, control = new_combinations(table, masks, 2000, seed=2)
    real = table.iloc[requests["source"]].reset_index(drop=True)
    assert (requests["diagnosis"] == real["diagnosis"]).all() and (
        requests["sex"] != real["sex"]
    ).mean() > 0.4
    assert torch.equal(control, control_image(masks[torch.tensor(requests["source"].tolist())]))
    kinds = {"sex": 2, "decade": 5, "bmi_class": 3, "diagnosis": 2}
    for column, count in kinds.items():
        shares = requests[column].value_counts(normalize=True)
        assert len(shares) == count and (shares - 1 / count).abs().max() < 0.05
    assert requests["prompt"].nunique() == 2 * 5 * 3 * 2
    for row in requests.head(50).to_dict("records"):
        assert parse_prompt(row["prompt"]) == {
            name: row[name] for name in ("sex", "decade", "bmi_class", "diagnosis")
        }


def test_decades_can_be_those_of_the_table(cohort):
    requests, _ = new_combinations(*cohort, 200, seed=3, present_only=True)
    assert set(requests["decade"]) == {"50s", "60s"}
    with pytest.raises(SettingsError, match="none of them is in the table"):
        new_combinations(*cohort, 5, seed=3, decades=("80s",), present_only=True)
    with pytest.raises(SettingsError, match="'sixties' is none"):
        new_combinations(*cohort, 5, seed=3, decades=("sixties",))


@pytest.mark.parametrize("ask", [copies, new_combinations])
def test_requests_are_a_function_of_the_seed(cohort, ask):
    (one, _), (again, _), (other, _) = (ask(*cohort, 40, seed=seed) for seed in (4, 4, 5))
    pd.testing.assert_frame_equal(one, again)
    assert not one.equals(other)


def test_a_diagnosis_without_masks_and_a_missing_mask_are_refused(cohort):
    table, masks = cohort
    with pytest.raises(DataError, match="no mask of diagnosis 'heart failure'"):
        new_combinations(table[:90], masks[:90], 5, seed=0)
    with pytest.raises(DataError, match="'masks': 99"):
        copies(table, masks[:99], 5, seed=0)


def test_the_cap_is_that_of_the_cohort(cohort):
    """The sampler behind `copies` and training is the cohort's own weights, not another."""
    prompts = [prompt_of(row) for row in cohort[0].to_dict("records")]
    assert balancing_weights(prompts, 5)[[0, 99]] == pytest.approx([1 / 90, 1 / 45])
