"""The book as `make book` would build it, with stand-ins for the executed notebooks, so that no
model has to run.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
GLUE = re.compile(r"\{glue:text\}`[^`]*?(\w+)\.ipynb::([\w.-]+):([^`]*)`")  # notebook, key, format
PIXEL = base64.b64encode(
    base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    )
).decode()


def pages():
    """All source files of the table of contents, as it names them: "book/preface",
    "notebooks/01_cohort".
    """
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [
        toc["root"],
        *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"]),
    ]


def prose():
    """The Markdown files of the book."""
    return [ROOT / f"{page}.md" for page in pages() if page.startswith("book/")]


def glued():
    """What the prose quotes from notebooks: {"06_evaluation": {"key": "its format", ...}}."""
    wanted = {}
    for page in prose():
        for notebook, key, form in GLUE.findall(page.read_text(encoding="utf-8")):
            wanted.setdefault(notebook, {})[key] = form
    return wanted


def stand_in(name, keys):
    """An executed notebook with an image, the glued keys, and, in the first one, linked
    widgets.
    """
    image = new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    about = {
        "mystnb": {
            "image": {"alt": f"Stand-in image of {name}"},
            "figure": {"caption": "A stand-in.", "name": f"fig-{name}"},
        }
    }
    cells = [
        new_markdown_cell(f"# {name}\n\nWhere $x^2$ is set in type.\n\n## A section"),
        new_code_cell("draw()", metadata=about, outputs=[image]),
        new_code_cell(
            "record()",
            metadata={"tags": ["remove-cell"]},
            outputs=[_record(*pair) for pair in sorted(keys.items())],
        ),
    ]
    about = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    notebook = new_notebook(cells=cells, metadata=about)
    if name.startswith("01"):
        _add_widgets(notebook)
    return notebook


def _record(key, form):
    value = {"s": "words", "d": 3}.get(form[-1:], 0.458)
    return new_output(
        "display_data",
        {"application/papermill.record/text/plain": repr(value)},
        metadata={"scrapbook": {"mime_prefix": "application/papermill.record/", "name": key}},
    )


def _add_widgets(notebook):
    """A slider that turns the pages of a tab without a kernel."""
    import ipywidgets

    slider = ipywidgets.IntSlider(0, 0, 1, description="page")
    tab = ipywidgets.Tab([ipywidgets.HTML("first leaf"), ipywidgets.HTML("second leaf")])
    link = ipywidgets.jslink((slider, "value"), (tab, "selected_index"))
    shown = ipywidgets.VBox([slider, tab])
    view = {
        "application/vnd.jupyter.widget-view+json": {
            "model_id": shown.model_id,
            "version_major": 2,
            "version_minor": 0,
        },
        "text/plain": "VBox()",
    }
    notebook.cells.append(new_code_cell("slide()", outputs=[new_output("display_data", view)]))
    state = ipywidgets.Widget.get_manager_state()
    assert link.model_id in state["state"]
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}


def assemble(folder):
    """Lay out `folder` as the build command does: configuration, contents, prose, notebooks."""
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(BOOK, folder / "book")
    (folder / "notebooks").mkdir()
    keys = glued()
    for page in pages():
        if page.startswith("notebooks/"):
            name = page.split("/")[1]
            nbformat.write(stand_in(name, keys.get(name, {})), folder / f"{page}.ipynb")


def build(source, target):
    """Run Jupyter Book, warnings as errors; gives its exit code and its words."""
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        "build",
        str(source),
        "--path-output",
        str(target),
        "-W",
        "-n",
        "--keep-going",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # the API page imports this copy
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    return done.returncode, done.stdout + done.stderr
