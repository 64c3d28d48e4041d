"""Profiles: every mistake a hand can make in a YAML file is refused before anything runs."""

import ast

import pytest

from fairlib import SettingsError
from studies.engine.profiles import (
    chapters,
    fits,
    known_profiles,
    lanes,
    load_profile,
    notebook_parameters,
    notebooks,
)


def test_own_section_goes_over_common(house):
    profile = load_profile("tiny")
    assert profile.parameters("01_first") == {"profile": "tiny", "seed": 0}
    assert profile.parameters("02_second") == {"profile": "tiny", "seed": 4, "rate": 1}


def test_parameters_cell_is_read_with_types_and_comments(house):
    found = notebook_parameters(notebooks()["01_first"])
    assert [(p.name, p.type, p.help) for p in found.values()] == [
        ("profile", "str", "which"),
        ("seed", "int", "chance"),
        ("rate", "float", "step"),
        ("sizes", "list[int]", "n"),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("common: {sead: 0}", "unknown key 'sead' .*did you mean 'seed'"),
        ("01_frst: {seed: 0}", "unknown key '01_frst' .*did you mean '01_first'"),
        ("01_first: {seed: two}", "01_first.seed is 'two' .*expected int"),
        ("01_first: {seed: 1.5}", "01_first.seed is 1.5 .*expected int"),
        ("01_first: {seed: true}", "01_first.seed is True .*expected int"),
        ("01_first: {rate: fast}", "01_first.rate is 'fast' .*expected float"),
        ("01_first: {profile: 3}", "01_first.profile is 3 .*expected str"),
        ("01_first: {sizes: 3}", "01_first.sizes is 3 .*expected list"),
        ("01_first: {sizes: [1, x]}", "01_first.sizes is .*expected list"),
        ("01_first: 3", "section '01_first' is 3"),
        ("[1, 2]", "expected sections"),
        ("common: {seed: 0", "not valid YAML"),
        ("1: {seed: 0}", "unknown key '1'"),
    ],
)
def test_mistakes_are_named(house, text, message):
    (house / "profiles" / "tiny.yml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_profile("tiny")


@pytest.mark.parametrize("name", ["quik", "../tiny", ""])
def test_unknown_profile_lists_the_known_ones(house, name):
    with pytest.raises(SettingsError, match="known profiles: tiny"):
        load_profile(name)


@pytest.mark.parametrize("stem", notebooks())
def test_a_notebook_opened_by_itself_has_the_values_of_the_quick_profile(stem):
    """Its first parameter says so, and a hosted notebook runs with what stands there."""
    declared = {
        name: ast.literal_eval(found.default)
        for name, found in notebook_parameters(notebooks()[stem]).items()
    }
    given = load_profile("quick").parameters(stem)
    assert {name: declared[name] for name in given} == given


def test_parameter_without_a_type_is_refused(house):
    path = house / "notebooks" / "01_first.ipynb"
    path.write_text(path.read_text().replace("seed: int = 0", "seed = 0"))
    with pytest.raises(SettingsError, match="'seed' has type None; annotate it"):
        load_profile("tiny")


def test_notebook_without_parameters_is_refused(house):
    path = house / "notebooks" / "01_first.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    with pytest.raises(SettingsError, match="no cell tagged 'parameters'"):
        load_profile("tiny")


@pytest.mark.parametrize(
    "value, kind, answer",
    [
        (1, "float", True),
        (1.0, "int", False),
        (True, "bool", True),
        (1, "bool", False),
        (False, "float", False),
        ([0.1, 2], "list[float]", True),
        (["a"], "list[float]", False),
        ([], "list[str]", True),
        ({}, "dict", True),
    ],
)
def test_fits(value, kind, answer):
    assert fits(value, kind) is answer


@pytest.mark.parametrize(
    "contents, expected",
    [
        (None, [["01_first", "02_second"]]),
        (
            "chapters:\n- file: notebooks/01_first\n- file: notebooks/02_second\n",
            [["01_first", "02_second"]],
        ),
        (
            "parts:\n  - caption: Words\n    chapters:\n      - file: book/a\n  - caption: One\n   "
            " chapters:\n"
            "      - file: notebooks/02_second\n  - caption: Two\n    chapters:\n      - file: "
            "notebooks/01_first\n",
            [["02_second"], ["01_first"]],
        ),
        (
            "parts:\n  - caption: One\n    chapters:\n      - file: notebooks/02_second\n      - "
            "file: notebooks/01_first\n",
            [["01_first", "02_second"]],
        ),
    ],
)
def test_lanes_are_the_parts_of_the_contents(house, contents, expected):
    if contents:
        (house / "_toc.yml").write_text(contents)
    assert lanes() == expected


def test_the_book_has_a_lane_for_each_paper():
    assert [[stem[:2] for stem in lane] for lane in lanes()] == [
        ["01", "02", "03", "04", "05", "06"],
        ["07", "08"],
        ["09", "10"],
    ]
    assert [stem for lane in lanes() for stem in lane] == list(chapters())


def test_the_four_profiles_exist_and_are_valid():
    assert {"smoke", "quick", "colab", "full"} <= set(known_profiles())
    for name in known_profiles():
        profile = load_profile(name)
        assert profile.common["profile"] == name
