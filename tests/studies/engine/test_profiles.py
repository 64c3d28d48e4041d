"""Profiles: every mistake a hand can make in a YAML file is refused before anything runs."""

import asyncio
import dataclasses
from types import SimpleNamespace

import nbformat
import pytest

from fairlib import SettingsError
from studies.book.notebooks import execute
from studies.engine.profiles import (
    chapters,
    known_profiles,
    lanes,
    load_parameters,
    load_profile,
    notebook_parameters,
    notebooks,
    settings_from,
    typed,
)
from tests.studies.options import declared_defaults


def test_own_section_goes_over_common(house):
    profile = load_profile("tiny")
    assert profile.parameters("01_first") == {"profile": "tiny", "seed": 0}
    assert profile.parameters("02_second") == {"profile": "tiny", "seed": 4, "rate": 1}


def test_parameters_cell_is_read_with_types(house):
    found = notebook_parameters(notebooks()["01_first"])
    assert found == {"profile": "str", "seed": "int", "rate": "float", "sizes": "list[int]"}


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
    declared = declared_defaults(notebooks()[stem])
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
    "value, kind, becomes",
    [
        (1, "float", 1.0),
        (True, "bool", True),
        ([0.1, 2], "list[float]", [0.1, 2.0]),
        ([], "list[ str ]", []),
        ([1, "a"], "list", [1, "a"]),
        ({"a": 1}, "dict", {"a": 1}),
    ],
)
def test_annotations_stand_for_types(value, kind, becomes):
    assert typed(value, kind, "x") == becomes


@pytest.mark.parametrize(
    "text, value",
    [("1e-4", 1e-4), ("5E3", 5e3), ("-1.5e+2", -150.0), (".5e1", 5.0), ("'1e-4'", 1e-4), ("2", 2)],
)
def test_numbers_need_no_dot(house, text, value):
    (house / "profiles" / "tiny.yml").write_text(f"01_first: {{rate: {text}}}")
    assert load_profile("tiny").parameters("01_first") == {"rate": value}


@pytest.mark.parametrize("text", ["'1'", "1e", "e5", "1e-4x"])
def test_text_stays_text(house, text):
    (house / "profiles" / "tiny.yml").write_text(f"01_first: {{rate: {text}}}")
    with pytest.raises(SettingsError, match="01_first.rate is '.*expected float"):
        load_profile("tiny")


DECLARED = {"profile": "quick", "seed": 0, "rate": 0.5, "sizes": [1]}
BIG = "common: {profile: big, seed: 7}\n01_first: {rate: 2, sizes: [3, 4]}\n"


@pytest.fixture
def two_profiles(house):
    """`quick`, as the notebooks declare it, and `big`."""
    (house / "profiles" / "tiny.yml").unlink()
    (house / "profiles" / "big.yml").write_text(BIG)
    (house / "profiles" / "quick.yml").write_text(
        "common: {profile: quick, seed: 0}\n01_first: {rate: 0.5, sizes: [1]}\n"
    )


def merged(stem="01_first", injected="", **changed):
    cells = ["import os", *([f"# Parameters\n{injected}"] if injected else [])]
    namespace = {**DECLARED, **changed, "In": cells, "os": None}
    exec(injected, namespace)
    return dataclasses.astuple(load_parameters(stem, namespace))


def test_a_profile_is_loaded_by_its_name(two_profiles):
    assert merged() == ("quick", 0, 0.5, [1])
    assert merged(profile="big") == ("big", 7, 2.0, [3, 4])
    assert merged("02_second", profile="big") == ("big", 7, 0.5, [1])


def test_what_was_changed_goes_over_the_profile(two_profiles):
    assert merged(profile="big", sizes=[9]) == ("big", 7, 2.0, [9])
    assert merged(injected="profile = 'big'\nrate = 3") == ("big", 7, 3.0, [3, 4])
    assert merged(injected="rate = '1e-4'")[2] == 1e-4, "as papermill reads a YAML file"
    assert merged(profile="big", injected="seed = 0") == ("big", 0, 2.0, [3, 4]), (
        "papermill may ask for what the notebook declares"
    )


def test_parameters_are_frozen_and_typed(two_profiles):
    found = load_parameters("01_first", {**DECLARED, "rate": 1})
    assert isinstance(found.rate, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rate = 2


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"profile": "bik"}, "unknown profile 'bik'; known profiles: big, quick"),
        ({"profile": 3}, r"01_first.profile is 3 \(int\); expected str"),
        ({"seed": 1.5}, r"01_first.seed is 1.5 \(float\); expected int"),
        ({"rate": "fast"}, r"01_first.rate is 'fast' \(str\); expected float"),
        ({"sizes": ["x"]}, r"01_first.sizes is \['x'\] \(list\); expected list\[int\]"),
        ({"injected": "sead = 1"}, "unknown key 'sead' in the parameters of 01_first; .*'seed'"),
    ],
)
def test_mistakes_in_a_notebook_are_named(two_profiles, changed, message):
    with pytest.raises(SettingsError, match=message):
        merged(**changed)


def test_an_unknown_notebook_is_named(two_profiles):
    with pytest.raises(SettingsError, match="unknown key '01_frist' .*did you mean '01_first'"):
        merged("01_frist")


def test_a_parameters_cell_that_did_not_run(two_profiles):
    with pytest.raises(SettingsError, match="01_first.seed is not set; run the parameters cell"):
        load_parameters("01_first", {"profile": "quick"})


def test_a_folder_may_lie_in_the_home_folder(two_profiles, house, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    path = house / "notebooks" / "01_first.ipynb"
    path.write_text(
        path.read_text().replace("seed: int = 0", "seed: int = 0  # x\\ndata_dir: str = ''")
    )
    namespace = {**DECLARED, "data_dir": "~/brats"}
    assert load_parameters("01_first", namespace).data_dir == "/somewhere/brats"


def test_a_profile_in_a_kernel(two_profiles, house):
    """What papermill puts in is found by the text of its cell."""
    cell = "from studies.engine.profiles import load_parameters\n" + (
        "import studies.engine.profiles as p; p.repository = lambda: HOUSE\n"
        "print('MERGED', load_parameters('01_first', globals()))"
    ).replace("HOUSE", f"__import__('pathlib').Path({str(house)!r})")
    made = nbformat.read(house / "notebooks" / "01_first.ipynb", 4)
    made.cells = [*made.cells[:2], nbformat.v4.new_code_cell(cell, id="only")]
    nbformat.write(made, house / "notebooks" / "03_third.ipynb")
    output = house / "out.ipynb"
    asyncio.run(
        execute(house / "notebooks" / "03_third.ipynb", output, {"profile": "big", "seed": 0})
    )
    assert "MERGED Parameters(profile='big', seed=0, rate=2.0, sizes=[3, 4])" in output.read_text()


@pytest.mark.parametrize("stem", notebooks())
def test_the_usual_profile_holds_what_any_other_one_sets(stem):
    """Or nobody could say whether a reader has changed it."""
    usual = load_profile("quick").parameters(stem)
    for name in known_profiles():
        assert set(load_profile(name).parameters(stem)) <= set(usual), name


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
        ["11"],
    ]
    assert [stem for lane in lanes() for stem in lane] == list(chapters())


def test_the_four_profiles_exist_and_are_valid():
    assert {"smoke", "quick", "colab", "full"} <= set(known_profiles())
    for name in known_profiles():
        profile = load_profile(name)
        assert all(profile.parameters(stem)["profile"] == name for stem in notebooks())


def test_settings_are_made_of_the_parameters_that_they_share():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        seed: int = 3
        sizes: tuple[int, ...] = (1,)
        rate: float = 0.1

    parameters = SimpleNamespace(seed=5, sizes=[2, 3], unrelated="x")
    assert settings_from(Settings, parameters, rate=1.0) == Settings(5, (2, 3), 1.0)
    with pytest.raises(SettingsError, match="seed"):
        settings_from(Settings, SimpleNamespace(seed="many"))
