"""Classes, prompts, weights and channels of the heart cohorts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairlib import DataError
from fairlib.cohorts.cardiac import (
    BMI_CLASSES,
    DIAGNOSES,
    bmi_class,
    body_mass_index,
    control_image,
    decade,
    normalise,
    prompt_of,
    stack,
)

ROW = {"sex": "F", "age": 64.0, "bmi": 27.3, "diagnosis": "heart failure"}


def test_the_prompt_is_that_of_the_paper():
    assert prompt_of(ROW) == "Female, age in 60s, overweight BMI, heart failure"
    assert prompt_of({**ROW, "sex": "M", "age": 70, "bmi": 18.4, "diagnosis": "healthy"}) == (
        "Male, age in 70s, underweight BMI, healthy"
    )


def test_classes_change_at_their_edges():
    edges = {
        17.0: "underweight",
        18.49: "underweight",
        18.5: "normal",
        24.99: "normal",
        25.0: "overweight",
        29.99: "overweight",
        30.0: "obese",
        60.0: "obese",
    }
    assert {bmi: bmi_class(bmi) for bmi in edges} == edges
    assert [decade(age) for age in (49.9, 50, 59, 60.0, 101)] == [
        "40s",
        "50s",
        "50s",
        "60s",
        "100s",
    ]
    assert body_mass_index(200, 100) == pytest.approx(25.0)


ROWS = st.builds(
    lambda *values: dict(zip(ROW, values, strict=True)),
    st.sampled_from("FM"),
    st.sampled_from([31, 38, 64, 69]),
    st.sampled_from([17, 22, 24, 33]),
    st.sampled_from(DIAGNOSES),
)


@given(ROWS, ROWS)
def test_prompts_agree_where_all_that_they_state_agrees(one, other):
    stated = [
        (row["sex"], decade(row["age"]), bmi_class(row["bmi"]), row["diagnosis"])
        for row in (one, other)
    ]
    assert (prompt_of(one) == prompt_of(other)) == (stated[0] == stated[1])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bmi": float("nan")}, "body-mass index nan"),
        ({"age": float("nan")}, "age nan"),
        ({"sex": None}, "sex None"),
        ({"diagnosis": "ill"}, "'ill'"),
        ({"bmi": 250}, "250"),
        ({"age": 7}, "age 7"),
    ],
)
def test_a_row_without_an_attribute_has_no_prompt(change, match):
    with pytest.raises(DataError, match=match):
        prompt_of({**ROW, **change})


def test_metres_are_not_taken_for_centimetres():
    with pytest.raises(DataError, match="convert the units"):
        body_mass_index(1.84, 95)


def test_channels_are_ed_es_ed():
    images = torch.arange(2 * 2 * 3 * 3, dtype=torch.float32).reshape(2, 2, 3, 3)
    three = stack(images)
    assert (
        three.shape == (2, 3, 3, 3)
        and torch.equal(three[:, 0], images[:, 0])
        and torch.equal(three[:, 2], images[:, 0])
    )
    assert torch.equal(three[:, 1], images[:, 1])
    with pytest.raises(DataError, match="ED, ES"):
        stack(three)


def test_the_control_image_is_label_over_three():
    masks = torch.randint(0, 4, (2, 2, 5, 5), dtype=torch.uint8)
    control = control_image(masks)
    assert control.dtype == torch.float32 and torch.equal(
        (control[:, :2] * 3).round().to(torch.uint8), masks
    )
    assert control.min() >= 0 and control.max() <= 1
    with pytest.raises(DataError, match="labels"):
        control_image(masks + 2)


def test_both_phases_are_normalised_together():
    ramp = np.linspace(0, 1, 2000).reshape(2, 20, 50)
    found, brighter = normalise(ramp), normalise(ramp * 700 + 40)
    assert (
        found.dtype == np.float32
        and found.min() == -1
        and found.max() == 1
        and np.allclose(found, brighter, atol=1e-5)
    )
    assert found[0].max() < found[1].min() + 0.01  # the dark phase stays the dark one
    with pytest.raises(DataError, match="single value"):
        normalise(np.ones((2, 4, 4)))


def test_every_class_has_a_prompt():
    assert len({prompt_of({**ROW, "bmi": bmi}) for bmi in (17, 22, 27, 33)}) == len(BMI_CLASSES)
