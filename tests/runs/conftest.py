"""A miniature repository: two notebooks, one profile, a few pages."""

import pytest

PARAMETERS = """profile: str = "quick"  # which
seed: int = 0  # chance
rate: float = 0.5  # step
sizes: list[int] = [1]  # n"""
BODY = """
from fairlib.runs.glue import glue, show
from fairlib.runs.progress import progress
for _ in progress(range(2), every=0):
    pass
glue("share", 0.25 + seed)
print(f"seed {seed}")
"""
FIGURE = """
import matplotlib.pyplot as plt
figure, axes = plt.subplots()
axes.plot([1, 2])
show(figure, alt="A line that rises from one to two.", caption=f"It rises; the seed is **{seed}**.", name="fig-NAME")
"""


def notebook(stem, cells):
    """A clean notebook with a parameters cell and the code cells `cells`."""
    from nbformat import v4

    title = v4.new_markdown_cell(f"# {stem}")
    parameters = v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    made = v4.new_notebook(cells=[title, parameters, *map(v4.new_code_cell, cells)])
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for number, cell in enumerate(made.cells):
        cell.id = f"{stem[:2]}-{number}"
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Stages of the tests of one file lie in a folder of their own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FAIRLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
    yield
    patch.undo()


@pytest.fixture
def house(tmp_path, monkeypatch):
    """The root of the miniature repository; everything in fairlib.runs takes it for the real one."""
    import nbformat

    for folder in ("notebooks", "profiles", "book", "weights"):
        (tmp_path / folder).mkdir()
    for stem in ("01_first", "02_second"):
        cells = [BODY, FIGURE.replace("NAME", stem[:2])]
        nbformat.write(notebook(stem, cells), tmp_path / "notebooks" / f"{stem}.ipynb")
    (tmp_path / "profiles" / "tiny.yml").write_text("common: {profile: tiny, seed: 0}\n02_second: {seed: 4, rate: 1}\n")
    for module in ("places", "profiles", "notebooks", "publish", "book", "doctor", "manifest"):
        monkeypatch.setattr(f"fairlib.runs.{module}.repository", lambda: tmp_path)
    # the real one is tested elsewhere; here, somebody may be editing the package while its tests run
    monkeypatch.setattr("fairlib.runs.notebooks.code_digest", lambda: "code")
    monkeypatch.setenv("FAIRLIB_RUNS", str(tmp_path / "runs"))
    return tmp_path
