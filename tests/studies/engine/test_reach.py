"""The code behind a key: what a function can reach counts, to the letter of its meaning, and nothing
else does.
"""

import importlib
import sys
import textwrap

import pytest

from studies.engine import reach

MODULES = {
    "__init__": "",
    "a": '''
        """Words about a."""
        from toy import b as other
        from toy.b import helper, Base, Stream
        from toy.inner import exported
        import numpy as np

        LIMIT = 3
        REGISTRY = {"x": helper}
        REGISTRY["y"] = Base

        def top(x):
            """What it does."""
            return helper(x) + np.abs(LIMIT)

        def through_module(x):
            return other.by_module(x)

        def through_package(x):
            return exported(x)

        def typed(x: Base):
            return x.method()

        def inside(x):
            from toy.b import late

            return late(x)

        def from_registry(name):
            return REGISTRY[name](1)

        class Child(Base):
            def mine(self):
                return 1

        def streamed(x):
            return x + Stream.NOISE

        def any_stream(x):
            return Stream(x)
    ''',
    "b": """
        from enum import IntEnum

        UNUSED = 1

        class Stream(IntEnum):
            NOISE = 11  # the generator
            ORDER = 7

        def helper(x):
            return deeper(x)

        def deeper(x):
            # a comment
            return x * 2

        def by_module(x):
            return x

        def late(x):
            return x

        class Base:
            def method(self):
                return deeper(1)
    """,
    "inner/__init__": "from .c import exported",
    "inner/c": "def exported(x):\n    return x",
}


def forget():
    """Have sources read again, which a test has just changed."""
    for cached in (reach._digest, reach._reach, reach.module_of, reach.file_of):
        cached.cache_clear()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package of three modules; returns a function that rewrites one of them."""
    root = tmp_path / "toy"

    def write(module, text):
        path = root / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        forget()

    for module, text in MODULES.items():
        write(module, text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reach, "PROJECT", ("toy",))
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    yield write
    forget()
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


def digests():
    module = importlib.import_module("toy.a")
    names = (
        "top",
        "through_module",
        "through_package",
        "typed",
        "inside",
        "from_registry",
        "Child",
        "streamed",
        "any_stream",
    )
    return {name: reach.code_digest(getattr(module, name)) for name in names}


def changed(toy, module, old, new):
    before = digests()
    text = textwrap.dedent(MODULES[module])
    assert old in text
    toy(module, text.replace(old, new))
    after = digests()
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("module", "old", "new", "moved"),
    [
        ("a", "What it does.", "Something else.", set()),
        ("a", "Words about a.", "Other words.", set()),
        ("b", "# a comment", "# another\n    # and one more", set()),
        ("b", "UNUSED = 1", "UNUSED = 2", set()),
        ("b", "x * 2", "x * 3", {"top", "typed", "from_registry", "Child"}),
        ("a", "LIMIT = 3", "LIMIT = 4", {"top"}),
        (
            "b",
            "def by_module(x):\n    return x",
            "def by_module(x):\n    return 0",
            {"through_module"},
        ),
        ("b", "def late(x):\n    return x", "def late(x):\n    return 0", {"inside"}),
        ("b", "NOISE = 11", "NOISE = 12", {"streamed", "any_stream"}),
        ("b", "ORDER = 7", "ORDER = 7\n    LATE = 8", {"any_stream"}),
        ("inner/c", "return x", "return 0", {"through_package"}),
        ("a", 'REGISTRY["y"] = Base', 'REGISTRY["y"] = helper', {"from_registry"}),
        ("a", "def mine(self):\n        return 1", "def mine(self):\n        return 2", {"Child"}),
    ],
)
def test_a_change_moves_the_keys_of_what_reaches_it_and_no_other(toy, module, old, new, moved):
    assert changed(toy, module, old, new) == moved


def test_packages_count_by_version(toy, monkeypatch):
    before = digests()
    monkeypatch.setattr(reach, "_version", lambda package: "99")
    reach._digest.cache_clear()
    assert {name for name, value in digests().items() if value != before[name]} == {
        "top",
        "any_stream",
    }


def test_inner_functions_stand_for_the_outermost_one():
    def outer():
        return lambda: 1

    name = "test_inner_functions_stand_for_the_outermost_one"
    assert reach.reachable(outer()) >= {(__name__, name)}


def test_a_lambda_is_known_by_what_it_does_and_not_by_its_line(toy):
    def held(text):
        toy("a", text)
        sys.modules.pop("toy.a", None)
        return reach.code_digest(importlib.import_module("toy.a").HELD[0])

    first = held("HELD = [lambda x: x + 1]")
    assert held("# words\n\nHELD = [lambda x: x + 1]  # and more") == first
    assert held("HELD = [lambda x: x + 2]  # so that the file has another size") != first


def test_a_name_that_cannot_be_followed_is_refused(toy):
    toy("a", "from toy.b import nothing\ndef top():\n    return nothing()")
    module = importlib.import_module("toy.b")
    monkey = type("F", (), {"__module__": "toy.a", "__qualname__": "top"})
    assert module and monkey
    with pytest.raises(NameError, match="toy.b does not define 'nothing'"):
        reach.code_digest(monkey)


def test_a_star_import_is_refused(toy):
    toy("a", "from toy.b import *\ndef top():\n    return helper(1)")
    with pytest.raises(NameError, match="imports everything from toy.b"):
        reach.code_digest(type("F", (), {"__module__": "toy.a", "__qualname__": "top"}))


def test_the_whole_project_is_known_without_its_words(toy):
    before = reach.project_digest()
    toy("b", textwrap.dedent(MODULES["b"]).replace("# a comment", "# b"))
    assert reach.project_digest() == before
    toy("b", textwrap.dedent(MODULES["b"]).replace("UNUSED = 1", "UNUSED = 2"))
    assert reach.project_digest() != before


SCRIPTS = {
    "helper": "from toy.b import helper\nhelper(1)",
    "attribute": "import toy.b as b\nb.late(1)",
    "front door": "import toy\ntoy.lazy(1)",
    "imported only": "from toy.b import helper",
    "unknown": "import toy.b as b\nb.nothing",
}


@pytest.mark.parametrize(
    "module, old, new, moved",
    [
        ("b", "x * 2", "x * 3", {"helper", "unknown"}),
        ("b", "UNUSED = 1", "UNUSED = 2", {"unknown"}),
        ("b", "# a comment", "# another", set()),
        ("inner/c", "return x", "return -x", {"front door", "unknown"}),
    ],
)
def test_a_script_is_keyed_by_the_code_that_it_can_reach(toy, module, old, new, moved):
    """Through a front door that opens on demand, too; a name that is nowhere stands for it all."""
    toy("__init__", FRONT_DOOR)
    before = {name: reach.script_digest(text) for name, text in SCRIPTS.items()}
    text = textwrap.dedent(MODULES[module])
    assert old in text
    toy(module, text.replace(old, new))
    assert {n for n, text in SCRIPTS.items() if reach.script_digest(text) != before[n]} == moved


FRONT_DOOR = """
def __getattr__(name):
    from toy.inner.c import exported

    if name == "lazy":
        return exported
    raise AttributeError(name)
"""


def test_what_carries_results_about_is_in_no_key():
    """A change in how stages are found recomputes nothing."""
    from studies.engine import recipe

    reached = reach.reachable(recipe.denoiser.function)
    assert ("fairlib.models.generator", "build_denoiser") in reached
    assert not {module for module, _ in reached} & set(reach.PLUMBING)
