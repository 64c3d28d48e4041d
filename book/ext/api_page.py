"""The directive `{api}`: entries made of the docstrings of a module, or of all modules of a package.

With `:full:` every name of the module's `__all__` with its whole docstring; without, every public
definition with the first paragraph of its docstring. `{py:obj}` links to each. Docstrings are shown
as they are written (NumPy sections, code, indented formulas), so none of them can stop the build.
"""

import importlib
import inspect
import pkgutil
import re
from functools import partial
from itertools import cycle

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective


def inline(text, kind=nodes.paragraph):
    """A node of this kind in which `code` is code and **strong** strong."""
    parts = re.split(r"`+([^`]+)`+|\*\*([\w ]+)\*\*", " ".join(text.split()))
    makers = cycle((nodes.Text, partial(nodes.literal, ""), partial(nodes.strong, "")))
    return kind("", "", *(make(part) for make, part in zip(makers, parts, strict=False) if part))


def prose(text):
    """Paragraphs and NumPy sections; what is indented or follows a prompt is shown as code."""
    text = re.sub(r"^([A-Z][\w ]+)\n-{3,}$", r"\n**\1**\n", text, flags=re.M)
    text = re.sub(r"\n(?=\w.*\n {4})", "\n\n", text)
    shown = []
    for part in filter(str.strip, re.split(r"\n(?:[ ]*\n)+", text.strip("\n"))):
        name, _, body = part.partition("\n")
        if part.startswith((" ", ">>>")):
            shown.append(nodes.literal_block(part, part, language="none"))
        elif body.startswith("    "):
            item = [inline(f"`{name}`", nodes.term), nodes.definition("", inline(body))]
            shown.append(nodes.definition_list("", nodes.definition_list_item("", *item)))
        else:
            shown.append(inline(part))
    return shown


def parameters(value, full):
    """The parameters of a function or class as texts: names, and with `full` types and defaults."""
    if inspect.isclass(value) and (issubclass(value, Exception) or "__init__" not in vars(value)):
        return []
    shown = {} if full else {"annotation": inspect._empty, "default": inspect._empty}
    ones = [one.replace(**shown) for one in inspect.signature(value).parameters.values()]
    texts = [str(one).replace(repr(one.annotation), str(one.annotation)) for one in ones]
    return [
        re.sub(r"<function (\w+).*?>", r"\1", one) for one in texts if one not in {"self", "cls"}
    ]


def members(owner):
    """(name, value) of what a module or class itself defines, documents and does not hide."""
    module = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    for name, value in vars(owner).items():
        value = getattr(value, "__func__", getattr(value, "fget", value))
        own = (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module
        if own and value.__doc__ and not name.startswith("_"):
            yield name, value


class Api(SphinxDirective):
    """Entries of one module or package."""

    required_arguments = 1
    option_spec = {"full": directives.flag}

    def run(self):
        module, full = importlib.import_module(self.arguments[0]), "full" in self.options
        if full:
            names = [name for name in module.__all__ if not name.startswith("__")]
            return [self.entry(f"{module.__name__}.{n}", getattr(module, n), True) for n in names]
        inner = pkgutil.iter_modules(getattr(module, "__path__", []), f"{module.__name__}.")
        names = [info.name for info in inner] or [module.__name__]
        return [self.entry(name, importlib.import_module(name), False) for name in names]

    def entry(self, path, value, full):
        """One module, class or function, and what is inside."""
        kind = next(k for k in ("module", "class", "function") if getattr(inspect, f"is{k}")(value))
        owner, _, name = path.rpartition(".")
        listed = name * (full and owner == "fairlib")  # beside the page
        sign = addnodes.desc_signature(path, "", ids=[path], _toc_name=listed)
        sign += [addnodes.desc_addname(owner, f"{owner}."), addnodes.desc_name(name, name)]
        if kind != "module" and (texts := parameters(value, full)):
            sign += addnodes.desc_parameterlist(multi_line_parameter_list=len(str(texts)) > 70)
            sign[-1] += [addnodes.desc_parameter(text, text) for text in texts]
        text = inspect.cleandoc(value.__doc__ or "")
        content = addnodes.desc_content("", *prose(text if full else text.split("\n\n")[0]))
        if kind != "function":
            content += [self.entry(f"{path}.{n}", one, full) for n, one in members(value)]
        self.env.get_domain("py").note_object(path, kind, path, location=sign)
        return addnodes.desc("", sign, content, domain="py", objtype=kind, classes=["py", kind])
