"""Every equation of the book that is computed names its function, and the function its equation."""

import importlib
import inspect
import re

import book_build
import pytest

LABEL = re.compile(r"^\$\$ \((eq-[\w-]+)\)\n(?:\n:::\{margin\}\nIn code: (.+)\n:::\n)?", re.M)
NAME = re.compile(r"`([\w.]+)`")
MENTION = re.compile(r"book/(\w+)\.md, Eq\. \((eq-[\w-]+)\)(?: and \((eq-[\w-]+)\))?")
EQUATIONS = {
    (page.stem, label): NAME.findall(names)
    for page in book_build.prose()
    for label, names in LABEL.findall(page.read_text(encoding="utf-8"))
}
# explained, but computed in another way: by exact or Wilson intervals, solved for the true share, and
# by bootstrap
NOT_COMPUTED = {("fairness", name) for name in ("eq-se", "eq-read", "eq-delta")}
USES = [(*place, name) for place, names in EQUATIONS.items() for name in names]


def resolve(name):
    """The object of a dotted name, by import."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


def mentions(text):
    """(page, label) of each equation that a text names."""
    found = MENTION.findall(" ".join(text.split()))
    return {(page, label) for page, *labels in found for label in labels if label}


def test_every_equation_with_a_label_says_where_it_is_computed():
    assert {place for place, names in EQUATIONS.items() if not names} == NOT_COMPUTED


@pytest.mark.parametrize(("page", "label", "name"), USES)
def test_the_function_of_an_equation_exists_and_names_the_equation(page, label, name):
    assert (page, label) in mentions(inspect.getdoc(resolve(name)) or "")


def test_every_equation_that_the_code_names_is_in_the_book_and_names_the_code_in_turn():
    told = {}
    for path in [
        *book_build.ROOT.glob("fairlib/**/*.py"),
        *book_build.ROOT.glob("studies/**/*.py"),
    ]:
        module = ".".join(path.relative_to(book_build.ROOT).with_suffix("").parts)
        for place in mentions(path.read_text(encoding="utf-8")):
            told.setdefault(place, set()).add(module)
    for place, modules in told.items():
        named = EQUATIONS.get(place, [])
        assert all(any(name.startswith(f"{one}.") for name in named) for one in modules), place
