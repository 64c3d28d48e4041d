"""Running and building, on a miniature repository: real kernels, real papermill, the real book
builder.
"""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
import torch

from fairlib import SettingsError
from fairlib.io import write_json
from studies.book import notebooks as runner
from studies.book.build import BookError, assemble, build_book
from studies.book.execute import Lines
from studies.book.notebooks import (
    NotebookError,
    code_of,
    execute,
    executed_path,
    jobs_for,
    run_key,
    run_profile,
)
from studies.engine.profiles import load_profile, notebooks

LONG = 60  # seconds: nothing here waits that long unless it is broken
CONFIG = """
title: Tiny
only_build_toc_files: true
execute: {execute_notebooks: "off"}
repository: {url: "https://github.com/owner/name", branch: main}
launch_buttons: {colab_url: "https://colab.research.google.com"}
"""
TOC = "format: jb-book\nroot: book/preface\nchapters:\n- file: notebooks/01_first\n- file: notebooks/02_second\n"
PREFACE = """# Preface

The share is {glue:text}`../notebooks/02_second.ipynb::share:.2f`; see {numref}`fig-02`.
"""


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def write_cell(house, stem, code):
    """Let `code` be all that the notebook does."""
    path = house / "notebooks" / f"{stem}.ipynb"
    made = nbformat.read(path, 4)
    made.cells = [*made.cells[:2], nbformat.v4.new_code_cell(code, id="only")]
    nbformat.write(made, path)


def in_two_parts(house, first="01_first", second="02_second"):
    parts = [
        f"  - caption: {stem}\n    chapters:\n      - file: notebooks/{stem}\n"
        for stem in (first, second)
    ]
    (house / "_toc.yml").write_text(
        "".join(["format: jb-book\nroot: book/preface\nparts:\n", *parts])
    )


def pretend_run(house):
    """The traces of a finished run, without the seconds that a kernel takes."""
    from fairlib.io import sha256, write_json

    for stem, source in notebooks().items():
        made = nbformat.read(source, 4)
        for cell in made.cells:
            if cell.cell_type == "code":
                cell.execution_count = 1
        executed_path("tiny", stem).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(made, executed_path("tiny", stem))
        write_json(
            executed_path("tiny", stem).with_suffix(".json"),
            {"key": "x", "source_sha256": sha256(source)},
        )


@pytest.mark.slow
def test_a_profile_from_source_to_page(house, capfd):
    """Run, run again, change one notebook, run again, build: the figures and numbers of the run are
    in the pages.
    """
    paths = run_profile("tiny")
    said = capfd.readouterr().err
    assert "[1/2] 01_first: running" in said and "2/2, 00:00 so far" in said, (
        "progress inside a cell must come through"
    )
    assert "KeyboardInterrupt" not in said, "the kernel ends without an error of its own"
    record = json.loads(paths[1].with_suffix(".json").read_text())
    assert record["parameters"] == {"profile": "tiny", "seed": 4, "rate": 1}
    assert record["packages"] and record["seconds"] > 0
    assert "seed 4" in paths[1].read_text()

    run_profile("tiny")
    assert capfd.readouterr().err.count("up to date") == 2
    edit(house / "notebooks" / "02_second.ipynb", "It rises", "It goes up")
    with pytest.raises(SettingsError, match="02_second.ipynb has changed since it was run"):
        assemble("tiny")
    run_profile("tiny")
    said = capfd.readouterr().err
    assert "01_first: up to date" in said and "02_second: running" in said

    (house / "_config.yml").write_text(CONFIG)
    (house / "_toc.yml").write_text(TOC)
    (house / "book" / "preface.md").write_text(PREFACE)
    index = build_book("tiny")
    assert index == house / "_build" / "html" / "index.html" and index.is_file()
    preface = (index.parent / "book" / "preface.html").read_text()
    assert '<span class="pasted-text">4.25</span>' in preface
    assert re.search(r'notebooks/02_second.html#fig-02"><span[^>]*>Fig. 2', preface)
    page = (index.parent / "notebooks" / "02_second.html").read_text()
    assert 'alt="A line that rises from one to two."' in page
    assert "It goes up; the seed is <strong>4</strong>." in page
    assert (
        "https://colab.research.google.com/github/owner/name/blob/main/notebooks/02_second.ipynb"
        in page
    )
    assert str(house) not in page and "so far" not in page

    edit(house / "book" / "preface.md", "::share", "::shore")
    with pytest.raises(BookError, match="did not build"):
        build_book("tiny")
    assert "shore" in capfd.readouterr().err


def test_failing_cell_is_named_with_its_traceback(house):
    edit(house / "notebooks" / "01_first.ipynb", "seed {seed}", "seed {1 / seed}")
    with pytest.raises(
        NotebookError, match=r"(?s)01_first.ipynb, cell \d+: ZeroDivisionError.*1 / seed"
    ) as caught:
        run_profile("tiny")
    assert "\x1b" not in str(caught.value)
    assert not executed_path("tiny", "01_first").with_suffix(".json").exists(), (
        "a failed run must not look up to date"
    )


def test_kernel_is_this_interpreter(house, tmp_path, monkeypatch):
    """Whatever kernel the user has registered as `python3`, the one that runs is ours."""
    place = tmp_path / "jupyter" / "kernels" / "python3"
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(
        '{"argv": ["false"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = house / "notebooks" / "01_first.ipynb"
    edit(
        path,
        'print(f\\"seed {seed}\\")',
        "import os, sys; print('KERNEL', sys.executable, os.getcwd())",
    )
    made = nbformat.read(path, 4)
    made.cells = made.cells[:3]  # without the figure: quicker
    nbformat.write(made, path)
    asyncio.run(execute(path, tmp_path / "out.ipynb", {"seed": 1}))
    assert f"KERNEL {sys.executable} {house}" in (tmp_path / "out.ipynb").read_text()


MEETING = """
import os, sys, time
from pathlib import Path
Path("MINE.here").touch()
end = time.monotonic() + 100
while not Path("OTHER.here").exists():
    assert time.monotonic() < end, "the other notebook did not come"
    time.sleep(0.01)
for number in range(200):
    sys.stderr.write(f"line {number}")
    sys.stderr.flush()
    sys.stderr.write(" of MINE\\n")
print("THREADS", os.environ["OMP_NUM_THREADS"], os.getcwd())
"""


def test_parts_of_the_book_run_at_the_same_time(house, capfd, monkeypatch):
    """Two notebooks that wait for each other; their progress arrives in whole lines that say whose
    they are.
    """
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("studies.engine.cores", lambda: 6)
    write_cell(house, "01_first", MEETING.replace("MINE", "a").replace("OTHER", "b"))
    write_cell(house, "02_second", MEETING.replace("MINE", "b").replace("OTHER", "a"))
    in_two_parts(house)
    folder = os.getcwd()
    assert [path.stem for path in run_profile("tiny", jobs=2)] == ["01_first", "02_second"]
    said = capfd.readouterr().err.splitlines()
    for label, name in (("01 | ", "a"), ("02 | ", "b")):
        assert [line for line in said if line.startswith(label)] == [
            f"{label}line {n} of {name}" for n in range(200)
        ]
    heads = [re.sub(r"in \d+ s", "in", line) for line in said if "|" not in line]
    assert sorted(heads) == [
        "[1/2] 01_first: done in",
        "[1/2] 01_first: running (profile tiny)",
        "[2/2] 02_second: done in",
        "[2/2] 02_second: running (profile tiny)",
    ]
    assert f"THREADS 3 {house}" in executed_path("tiny", "02_second").read_text()
    assert os.getcwd() == folder and "IPKernelApp" not in "".join(said)
    run_profile("tiny", jobs=2)
    assert capfd.readouterr().err.count("up to date") == 2


def test_a_failure_ends_the_notebooks_beside_it(house, capfd):
    write_cell(
        house,
        "01_first",
        """
import os, time
from pathlib import Path
Path("pid").write_text(str(os.getpid()))
Path("started").touch()
time.sleep(300)
""",
    )
    write_cell(
        house,
        "02_second",
        """
import time
from pathlib import Path
while not Path("started").exists():
    time.sleep(0.01)
1 / 0
""",
    )
    in_two_parts(house)
    start = time.monotonic()
    with pytest.raises(
        NotebookError, match=r"(?s)02_second.ipynb, cell \d+: ZeroDivisionError.*1 / 0"
    ):
        run_profile("tiny", jobs=2)
    assert time.monotonic() - start < 200
    assert not alive(int((house / "pid").read_text()))
    said = capfd.readouterr().err
    assert (
        "[1/2] 01_first: stopped" in said
        and "[2/2] 02_second: failed" in said
        and "done" not in said
    )
    assert not list((house / "runs" / "tiny").glob("*.json")), "neither may look up to date"


def test_a_kernel_that_dies_is_a_clear_error(house):
    write_cell(house, "01_first", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(
        NotebookError, match=r"01_first.ipynb, cell \d: the kernel died .*memory ran out .*--jobs 1"
    ):
        run_profile("tiny", only=["01_first"])


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path, sign):
    """Ctrl-C ends the kernel and what it started at once, and so does the death of whoever started
    it.
    """
    cell = """
import os, subprocess, time
from pathlib import Path
child = subprocess.Popen(["sleep", "300"])
Path("PIDS.part").write_text(f"{os.getpid()} {os.getppid()} {child.pid}")
Path("PIDS.part").rename("PIDS")
time.sleep(300)
""".replace("PIDS", str(tmp_path / "pids"))
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "x", "language": "python"}
    nbformat.write(made, tmp_path / "a.ipynb")
    script = f"""
import asyncio, signal
from pathlib import Path
from studies.book.notebooks import execute
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored
asyncio.run(execute(Path({str(tmp_path / "a.ipynb")!r}), Path({str(tmp_path / "b.ipynb")!r}), {{}}))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    waited(lambda: (tmp_path / "pids").is_file())
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    process.send_signal(sign)
    said = process.communicate(timeout=LONG)[1]
    assert process.returncode and said.strip().endswith(
        "KeyboardInterrupt" if sign == signal.SIGINT else ""
    )
    waited(lambda: not any(alive(pid) for pid in pids))


def waited(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid):
    """A process that is not a mere entry in the system's table: nobody may collect an orphan."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_lines_arrive_whole_and_labelled(monkeypatch):
    target = io.StringIO()
    monkeypatch.setattr(sys, "stderr", target)
    one, two = Lines("1 | "), Lines("")
    print("half a", end="", file=one, flush=True)
    print("two\nlines", file=two)
    print(" line\nand the rest", file=one)
    assert target.getvalue() == "two\nlines\n1 | half a line\n1 | and the rest\n"


class Runs:
    """Stands in for the runs of notebooks: who ran when, beside how many others."""

    def __init__(self, monkeypatch, outcome=None):
        self.started, self.ended, self.most, self.now = [], [], 0, 0
        self.outcome = outcome or (lambda stem: None)
        monkeypatch.setattr("studies.book.notebooks.run_notebook", self.run)

    async def run(self, profile, stem, key, jobs):
        self.started.append(stem)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(LONG if self.outcome(stem) == "waits" else 0.02)
            if self.outcome(stem) == "fails":
                raise NotebookError("the error")
            self.ended.append(stem)
        finally:
            self.now -= 1
        return 0


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_parts_in_their_order_and_no_more_than_jobs(house, monkeypatch, jobs):
    runs = Runs(monkeypatch)
    copies(house)
    part = ["03_c", "04_d", "05_e"]
    monkeypatch.setattr("studies.book.notebooks.lanes", lambda: [["01_a"], part])
    paths = run_profile("tiny", only=[*part[::-1], "02_b", "01_a"], jobs=jobs)
    book = ["01_a", "02_b", *part]
    assert [path.stem for path in paths] == book and sorted(runs.started) == book
    assert [stem for stem in runs.started if stem in part] == part and runs.most == jobs
    if jobs == 1:  # the order of the book, whatever its parts
        assert runs.started == book
    else:  # the longest part first, the one that the book does not list last
        assert runs.started[0] == "03_c" and runs.started.index("01_a") < runs.started.index("02_b")


def test_the_first_error_stops_every_part(house, monkeypatch, capfd):
    outcome = {"02_b": "fails", "03_c": "waits"}
    runs = Runs(monkeypatch, outcome.get)
    copies(house)
    monkeypatch.setattr(
        "studies.book.notebooks.lanes", lambda: [["01_a", "02_b"], ["03_c", "04_d"]]
    )
    start = time.monotonic()
    with pytest.raises(NotebookError, match="the error"):
        run_profile("tiny", jobs=2)
    assert runs.ended == ["01_a"] and runs.now == 0 and time.monotonic() - start < LONG / 2
    said = capfd.readouterr().err
    assert "[2/5] 02_b: failed" in said and "[3/5] 03_c: stopped" in said


def copies(house):
    """Five notebooks in place of the two."""
    text = (house / "notebooks" / "01_first.ipynb").read_text()
    (house / "profiles" / "tiny.yml").write_text("common: {profile: tiny}")
    for stem in ("01_a", "02_b", "03_c", "04_d", "05_e"):
        (house / "notebooks" / f"{stem}.ipynb").write_text(text)
    for stem in ("01_first", "02_second"):
        (house / "notebooks" / f"{stem}.ipynb").unlink()


@pytest.mark.parametrize(
    "jobs, parts, cores, device, expected",
    [
        (None, 3, 2, "cpu", 2),
        (None, 3, 64, "cpu", 2),
        (None, 1, 64, "cpu", 1),
        (None, 3, 1, "cpu", 1),
        (None, 3, 64, "cuda", 1),
        (1, 3, 64, "cpu", 1),
        (3, 3, 1, "cuda", 3),
        (9, 3, 2, "cpu", 3),
        (2, 0, 2, "cpu", 1),
    ],
)
def test_as_many_jobs_as_make_sense(monkeypatch, jobs, parts, cores, device, expected):
    monkeypatch.setattr("studies.book.notebooks.cores", lambda: cores)
    monkeypatch.setattr("studies.book.notebooks.accelerator", lambda: torch.device(device))
    assert jobs_for(jobs, parts) == expected


@pytest.mark.parametrize("jobs", [0, -1, 1.5, "two", True])
def test_a_number_of_jobs_that_is_none(jobs):
    with pytest.raises(SettingsError, match=f"jobs is {jobs!r}; .*whole number from 1"):
        jobs_for(jobs, 3)


def test_unknown_notebook_is_refused(house):
    with pytest.raises(SettingsError, match="did you mean '01_first'"):
        run_profile("tiny", only=["01_frist"])


def test_changed_weights_make_a_run_stale(house):
    profile = load_profile("tiny")
    before = run_key(profile, "01_first")
    (house / "weights" / "w.bin").write_bytes(b"1")
    between = run_key(profile, "01_first")
    (house / "weights" / "w.bin").write_bytes(b"2")
    assert len({before, between, run_key(profile, "01_first"), run_key(profile, "02_second")}) == 4


def test_changed_code_makes_a_run_stale(house, monkeypatch):
    before = run_key(load_profile("tiny"), "01_first")
    monkeypatch.setattr("studies.book.notebooks.script_digest", lambda text: "other code")
    assert run_key(load_profile("tiny"), "01_first") != before


def test_the_code_of_a_notebook_is_python(house):
    write_cell(house, "01_first", "if True:\n    %pip install x\n!ls\nprint(1)")
    text = code_of(house / "notebooks" / "01_first.ipynb")
    assert text.endswith("if True:\n    pass\npass\nprint(1)")
    compile(text, "", "exec")


def test_book_wants_every_notebook_run(house):
    with pytest.raises(
        SettingsError, match="01_first.ipynb: not there or not finished; run `python -m studies run"
    ):
        assemble("tiny")


def test_a_notebook_outside_of_the_contents_waits_until_it_is_asked_for(house, monkeypatch):
    pretend_run(house)
    (house / "_toc.yml").write_text(TOC.replace("- file: notebooks/02_second\n", ""))
    (house / "book" / "preface.md").write_text("# Preface\n")
    executed_path("tiny", "02_second").unlink()
    source = assemble("tiny")  # nobody misses the one that is not listed
    assert [path.name for path in (source / "notebooks").iterdir()] == ["01_first.ipynb"]
    monkeypatch.setattr("studies.book.notebooks.is_current", lambda output, key: True)
    assert [path.stem for path in run_profile("tiny")] == ["01_first"]
    assert [path.stem for path in run_profile("tiny", only=["02_second"])] == ["02_second"]


def test_a_common_parameter_goes_to_the_notebooks_that_have_it(house):
    path = house / "notebooks" / "02_second.ipynb"
    path.write_text(path.read_text().replace("rate: float = 0.5", "pace: float = 0.5"))
    (house / "profiles" / "tiny.yml").write_text("common: {seed: 1, rate: 2, pace: 3}")
    profile = load_profile("tiny")
    assert profile.parameters("01_first") == {"seed": 1, "rate": 2}
    assert profile.parameters("02_second") == {"seed": 1, "pace": 3}


def test_assembled_book_holds_prose_and_runs_only(house):
    pretend_run(house)
    (house / "_toc.yml").write_text(TOC)
    (house / "book" / "preface.md").write_text(PREFACE)
    (house / "_build" / "source").mkdir(parents=True)
    (house / "_build" / "source" / "gone.md").write_text("of an earlier build")
    source = assemble("tiny")
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert found == {
        "_toc.yml",
        "book/preface.md",
        "notebooks/01_first.ipynb",
        "notebooks/02_second.ipynb",
    }


def test_a_summary_of_every_notebook(house, monkeypatch, tmp_path):
    def run_profile(profile, only, force):
        if only == ["02_second"]:
            raise NotebookError("02_second.ipynb, cell 3: KeyError: 'x'\nTraceback")
        write_json(tmp_path / "a.json", {"seconds": 2.5})
        return [tmp_path / "a.ipynb"]

    monkeypatch.setattr(runner, "repository", lambda: house)
    monkeypatch.setattr(runner, "run_profile", run_profile)
    (tmp_path / "list.txt").write_text("# a list\nnumpy==0.1+cu1\nnot_installed==1\n")
    assert runner.rehearse(str(tmp_path / "list.txt")) == 1
    made = json.loads((house / "results" / "colab" / "summary.json").read_text())
    assert (
        list(made["other_versions"]) == ["numpy"]
        and made["other_versions"]["numpy"][0] == "0.1+cu1"
    )
    assert made["notebooks"] == {
        "01_first": {"seconds": 2.5},
        "02_second": {"error": "02_second.ipynb, cell 3: KeyError: 'x'"},
    }


def test_the_local_part_of_a_version_is_no_difference(tmp_path):
    import numpy

    (tmp_path / "list.txt").write_text(f"numpy=={numpy.__version__}+cu128\n")
    assert runner.differing(tmp_path / "list.txt") == {}
