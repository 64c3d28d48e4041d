"""Settings: frozen, typed, helpful."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlib import DataError, FairlibError, SettingsError
from fairlib.settings import (
    Checked,
    Count,
    checked,
    digest,
    from_dict,
    require_known,
    to_dict,
    unknown_key,
)


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()


@dataclass(frozen=True)
class Toy:
    steps: int = 10
    rate: float = 0.1
    name: str = "a"
    robust: bool = False
    limit: float | None = None
    widths: tuple[int, ...] = (1, 2)
    solver: Literal["ddim", "dpm"] = "ddim"
    extra: dict = dataclasses.field(default_factory=dict)


GOOD = {
    "steps": 3,
    "rate": 0.5,
    "name": "b",
    "robust": True,
    "limit": 2.0,
    "widths": (4, 5),
    "solver": "dpm",
    "extra": {"k": 1},
}


def test_every_type_comes_through_and_back():
    toy = from_dict(Toy, GOOD)
    assert (
        to_dict(toy) == GOOD and from_dict(Toy, to_dict(toy)) == toy and from_dict(Toy, {}) == Toy()
    )


def test_whole_numbers_become_floats_and_lists_tuples():
    toy = from_dict(Toy, {"rate": 1, "widths": [7, 8], "limit": None})
    assert isinstance(toy.rate, float) and toy.widths == (7, 8) and toy.limit is None


def test_settings_within_settings():
    assert from_dict(Outer, to_dict(Outer(Inner(3)))) == Outer(Inner(3))
    assert from_dict(Outer, {"inner": Inner(4)}).inner == Inner(4)
    with pytest.raises(SettingsError, match="unknown key 'dept' in Inner; did you mean 'depth'"):
        from_dict(Outer, {"inner": {"dept": 1}})
    with pytest.raises(SettingsError, match=r"Inner.depth is 'x' \(str\); expected int"):
        from_dict(Outer, {"inner": {"depth": "x"}})


def test_numbers_need_not_be_finite_and_what_json_cannot_hold_is_refused():
    assert from_dict(Toy, {"rate": float("inf")}).rate == float("inf")
    with pytest.raises(SettingsError, match=r"Toy.extra is \{'a': <object"):
        from_dict(Toy, {"extra": {"a": object()}})


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_dict(Toy, GOOD).steps = 4


@pytest.mark.parametrize(
    ("key", "near"), [("step", "steps"), ("sover", "solver"), ("Rate", "rate"), ("width", "widths")]
)
def test_an_unknown_key_names_the_nearest_known_one(key, near):
    with pytest.raises(SettingsError, match=f"unknown key {key!r} in Toy; did you mean {near!r}"):
        from_dict(Toy, {key: 1})


def test_only_an_unknown_name_is_refused_whatever_holds_the_known_ones():
    for known in (["red", "green"], {"red": 1, "green": 2}, iter(["red", "green"])):
        require_known("green", known, "the colours")
    require_known(None, (None, "red"), "the colours")
    with pytest.raises(SettingsError, match="unknown key '3' in the rows; known keys: 1, 2"):
        require_known(3, (1, 2), "the rows")
    with pytest.raises(DataError, match="'grean' in the colours; did you mean 'green'"):
        require_known("grean", iter(["red", "green"]), "the colours", DataError)


def test_settings_check_their_bounds_when_they_are_made():
    @dataclass(frozen=True)
    class Bounded(Checked):
        steps: Count = 1

    assert Bounded(2).steps == 2
    with pytest.raises(SettingsError, match="Bounded.steps is 0; expected at least 1"):
        dataclasses.replace(Bounded(), steps=0)


def test_an_unknown_key_like_no_other_lists_them_all():
    message = unknown_key("zzz", ["steps", "rate"], "Toy")
    assert "did you mean" not in message and "steps, rate" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 1.5),
        ("steps", True),
        ("steps", "3"),
        ("rate", "fast"),
        ("rate", True),
        ("name", 3),
        ("robust", 1),
        ("limit", "x"),
        ("widths", [1, 2.5]),
        ("widths", 3),
        ("solver", "euler"),
        ("extra", [1]),
    ],
)
def test_a_wrong_type_names_key_and_value(key, value):
    with pytest.raises(SettingsError, match=rf"Toy\.{key} is") as caught:
        from_dict(Toy, {key: value})
    assert repr(value) in str(caught.value) and isinstance(caught.value, FairlibError)


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.integers(), st.text(max_size=5), st.booleans()),
        max_size=5,
    )
)
def test_a_digest_ignores_order_and_sees_every_change(mapping):
    shuffled = dict(reversed(list(mapping.items())))
    assert digest(mapping) == digest(shuffled) and len(digest(mapping, 20)) == 20
    assert digest({**mapping, "new-key": 0}) != digest(mapping)
    for key in mapping:
        assert digest({**mapping, key: [mapping[key]]}) != digest(mapping)


def test_a_digest_takes_settings_and_refuses_nan():
    assert (
        digest({"toy": Toy()}) == digest({"toy": to_dict(Toy())}) != digest({"toy": Toy(steps=11)})
    )
    assert digest(Inner()) == digest({"depth": 1})
    with pytest.raises(ValueError, match="JSON"):
        digest({"rate": float("nan")})


@pytest.mark.parametrize("text", ["1e-4", "5E3", " 12", "-.5"])
@pytest.mark.parametrize("kind", [int, float, float | None])
def test_a_number_in_quotes_gets_a_hint(text, kind):
    with pytest.raises(SettingsError, match=r"rate is .*write a number without quotes.*1\.0e-4"):
        checked(text, kind, "rate")


def test_a_word_gets_no_hint_of_numbers():
    with pytest.raises(SettingsError) as error:
        checked("fast", float, "rate")
    assert "quotes" not in str(error.value)
