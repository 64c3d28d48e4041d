"""The book: prose and executed notebooks put together in `_build/source`, and built from there.

The executed copies take the place of the sources there, at the same path. So a page of the book
shows results, while its launch button, made from that path, opens the clean notebook of the
repository. A page shows no failures, no timings and no paths of the machine; figures have words.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fairlib.errors import DataError, FairlibError, SettingsError
from fairlib.io import read_json, sha256
from studies.book.address import PLACEHOLDER, address
from studies.book.glue import ROLE
from studies.book.notebooks import executed_path
from studies.engine import repository
from studies.engine.profiles import chapters, load_profile
from studies.engine.stage import Progress, duration

FILES = ("_config.yml", "_toc.yml", "README.md", "LICENSE", "LICENSE-CONTENT", "CITATION.cff")
WIDGETS = "application/vnd.jupyter.widget-state+json"
TEXTS = ("text/plain", "text/html", "text/markdown")
PARAMETER = re.compile(r"^(?P<name>\w+)(?P<type>: [^=#]+)? = (?P<value>.*?)(?P<comment>  # .*)?$")
LARGEST = 4_000_000  # bytes of one published notebook; above it a page loads slowly on a phone


class BookError(FairlibError):
    """The book did not build without warnings."""


def build_book(profile: str, strict: bool = True) -> Path:
    """Build the book from the executed notebooks of `profile`; returns the path of its
    `index.html`.

    With `strict` every warning is an error. Raises `SettingsError` for a notebook that was not run
    or has changed since, `DataError` for one that cannot be published, `BookError` when the build
    fails.
    """
    start = time.monotonic()
    source = assemble(profile)
    index = repository() / "_build" / "html" / "index.html"
    shutil.rmtree(index.parent, ignore_errors=True)  # or pages that left the book would stay
    flags = ["-W", "-n", "--keep-going"] if strict else []
    builder = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    options = ["--all", "--path-output", str(repository()), "--quiet", *flags]
    result = subprocess.run([*builder, str(source), *options], cwd=repository())
    if result.returncode != 0 or not index.is_file():
        what = f"the book did not build (exit {result.returncode})"
        raise BookError(f"{what}; warnings above name page and line")
    Progress().say(f"book built in {duration(time.monotonic() - start)}: {index}")
    if address() == PLACEHOLDER:
        Progress().say("launch buttons lead nowhere before `python -m studies address URL`")
    return index


def assemble(profile: str) -> Path:
    """Fill `_build/source` anew with prose, configuration and the published notebooks of
    `profile`.
    """
    root = repository()
    _check_runs(profile)
    source = root / "_build" / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in FILES:
        if (root / name).is_file():
            shutil.copy2(root / name, source / name)
    if not (source / "_toc.yml").is_file():
        raise DataError(f"{root}/_toc.yml: missing; the book has no order of chapters")
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    shutil.copytree(root / "book", source / "book", ignore=ignore)
    for stem in chapters():
        publish(executed_path(profile, stem), source / "notebooks" / f"{stem}.ipynb")
    return source


def _check_runs(profile: str) -> None:
    load_profile(profile)
    remedy = f"run `python -m studies run --profile {profile}`"
    for stem, path in chapters().items():
        executed = executed_path(profile, stem)
        record = executed.with_suffix(".json")
        if not executed.is_file() or not record.is_file():
            raise SettingsError(f"{executed}: not there or not finished; {remedy}")
        if read_json(record)["source_sha256"] != sha256(path):
            raise SettingsError(f"{executed}: {path.name} has changed since it was run; {remedy}")


# ---- from an executed notebook to a page ----


def publish(executed: Path, page: Path) -> Path:
    """Write the executed notebook at `executed` to `page` as the book shows it.

    Raises `DataError` when a cell failed or never ran, a picture has no alt text, or the page would
    be too large.
    """
    import nbformat

    notebook = nbformat.read(executed, 4)
    _refuse_failures(notebook, executed)
    _settle_parameters(notebook)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            _publish_cell(cell, executed)
    _publish_metadata(notebook.metadata)
    text = nbformat.writes(notebook) + "\n"
    if len(text) > LARGEST:
        size = f"{len(text) / 1e6:.1f} MB, at most {LARGEST / 1e6:.0f}"
        raise DataError(f"{executed}: {size}; save figures at a lower dpi")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    return page


def _refuse_failures(notebook, path: Path) -> None:
    if notebook.metadata.get("papermill", {}).get("exception"):
        raise DataError(f"{path}: the run stopped at an error; mend the notebook and run it again")
    for index, cell in enumerate(notebook.cells):
        place, is_code = f"{path}, cell {index}", cell.cell_type == "code"
        if "papermill-error-cell-tag" in cell.metadata.get("tags", []):
            raise DataError(f"{place}: banner of a failed run; run the notebook again")
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            raise DataError(f"{place}: holds an error; mend the notebook and run it again")
        if is_code and cell.source.strip() and cell.execution_count is None:
            raise DataError(f"{place}: was never run; run the notebook again")


def _settle_parameters(notebook) -> None:
    """One cell of parameters with the values of the run and the comments of the source, in place of
    papermill's two.
    """
    declared, injected = (
        next((cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])), None)
        for tag in ("parameters", "injected-parameters")
    )
    if declared is None or injected is None:
        return
    values = dict(line.split(" = ", 1) for line in injected.source.splitlines() if " = " in line)
    declared.source = "\n".join(_settled(line, values) for line in declared.source.splitlines())
    if not values:  # every one of them has found its line
        notebook.cells.remove(injected)


def _settled(line: str, values: dict[str, str]) -> str:
    """`line` with the value that the run had; it leaves `values`."""
    found = PARAMETER.match(line)
    if not found or found["name"] not in values:
        return line
    value = values.pop(found["name"])
    return f"{found['name']}{found['type'] or ''} = {value}{found['comment'] or ''}"


def _publish_cell(cell, path: Path) -> None:
    cell.metadata.pop("execution", None)
    cell.outputs = [output for output in cell.outputs if _stays(output)]
    figures = [
        output
        for output in cell.outputs
        if any(kind.startswith("image/") for kind in output.get("data", {}))
    ]
    for output in figures:
        _take_texts(cell, output, path, len(figures))
    for output in cell.outputs:
        _hide_paths(output)


def _stays(output) -> bool:
    """Progress lines, and captions shown below a live figure, are for the one who runs the
    notebook.
    """
    is_progress = output.output_type == "stream" and output.name == "stderr"
    return not is_progress and not output.get("metadata", {}).get(ROLE, {}).get("caption_only")


def _take_texts(cell, output, path: Path, pictures: int) -> None:
    about, begin = output.metadata.pop(ROLE, None), repr(cell.source[:60])
    if about and pictures > 1:
        what = f"{path}: a cell shows {pictures} figures, the book takes one"
        raise DataError(f"{what}; split {begin}")
    options = cell.metadata.setdefault("mystnb", {})
    if about:
        options["image"] = {**options.get("image", {}), "alt": about["alt"]}
        kept = {key: about[key] for key in ("caption", "name") if about.get(key)}
        options["figure"] = {**options.get("figure", {}), **kept}
    if not options.get("image", {}).get("alt", "").strip():
        raise DataError(f"{path}: image without alt text; use studies.book.glue.show in {begin}")


def _hide_paths(output) -> None:
    if output.output_type == "stream":
        output.text = without_paths(output.text)
    for kind in TEXTS:
        if kind in output.get("data", {}):
            output.data[kind] = without_paths(output.data[kind])


def without_paths(text: str) -> str:
    """`text` with paths made relative to the repository, and the rest of the owner's home shown as
    `~`.
    """
    return text.replace(f"{repository()}/", "").replace(f"{Path.home()}/", "~/")


def _publish_metadata(metadata: dict[str, Any]) -> None:
    run = metadata.pop("papermill", {})
    metadata["papermill"] = {"parameters": run.get("parameters", {})}
    widgets = normal_widgets(metadata.pop("widgets", {}))
    if widgets:
        metadata["widgets"] = widgets


def normal_widgets(widgets: dict[str, Any]) -> dict[str, Any]:
    """Widget state as the notebook format wants it; hosted notebooks save the models without the
    `state` level.
    """
    saved = widgets.get(WIDGETS, {})
    models = {name: model for name, model in saved.items() if isinstance(model, dict)}
    state = saved.get("state", models)
    return {WIDGETS: {"version_major": 2, "version_minor": 0, "state": state}} if state else {}
