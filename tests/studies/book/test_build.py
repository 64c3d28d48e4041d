"""Publishing: failures are refused, traces of the machine are dropped, texts of figures arrive."""

import nbformat
import pytest
from nbformat import v4

from fairlib import DataError
from studies.book.build import WIDGETS, normal_widgets, publish, without_paths

PNG = {"image/png": "iVBORw0KGgo="}
ABOUT = {"alt": "Bars of equal height.", "caption": "They are **equal**.", "name": None}


def cell(*outputs, metadata=None, count=1):
    return v4.new_code_cell(
        "draw()", outputs=list(outputs), metadata=metadata or {}, execution_count=count
    )


def picture(about=None):
    return v4.new_output(
        "display_data", data=dict(PNG), metadata={"fairlib": dict(about)} if about else {}
    )


def published(tmp_path, *cells, metadata=None):
    made = v4.new_notebook(cells=list(cells), metadata=metadata or {})
    nbformat.write(made, tmp_path / "in.ipynb")
    return nbformat.read(publish(tmp_path / "in.ipynb", tmp_path / "out" / "in.ipynb"), 4)


def test_texts_become_what_the_book_builder_reads(tmp_path):
    [done] = published(tmp_path, cell(picture({**ABOUT, "name": "fig-bars"}))).cells
    assert done.metadata["mystnb"] == {
        "image": {"alt": "Bars of equal height."},
        "figure": {"caption": "They are **equal**.", "name": "fig-bars"},
    }
    assert "fairlib" not in done.outputs[0].metadata


def test_options_of_the_source_cell_are_kept(tmp_path):
    options = {"mystnb": {"image": {"width": "80%"}, "figure": {"align": "left"}}}
    [done] = published(tmp_path, cell(picture(ABOUT), metadata=options)).cells
    assert done.metadata["mystnb"]["image"] == {"width": "80%", "alt": ABOUT["alt"]}
    assert done.metadata["mystnb"]["figure"] == {"align": "left", "caption": ABOUT["caption"]}


def test_alt_in_the_source_cell_is_enough(tmp_path):
    published(tmp_path, cell(picture(), metadata={"mystnb": {"image": {"alt": "A line."}}}))


@pytest.mark.parametrize(
    "options", [{}, {"mystnb": {"image": {"alt": " "}}}, {"mystnb": {"figure": {"caption": "x"}}}]
)
def test_picture_without_alt_is_refused(tmp_path, options):
    with pytest.raises(DataError, match="without alt text"):
        published(tmp_path, cell(picture(), metadata=options))


def test_two_figures_in_a_cell_are_refused(tmp_path):
    with pytest.raises(DataError, match="2 figures"):
        published(tmp_path, cell(picture(ABOUT), picture(ABOUT)))


def test_progress_and_live_captions_are_dropped(tmp_path):
    caption = v4.new_output(
        "display_data", data={"text/markdown": "x"}, metadata={"fairlib": {"caption_only": True}}
    )
    texts = {"stderr": "3/4\n", "stdout": "kept\n"}
    lines = [v4.new_output("stream", name=name, text=text) for name, text in texts.items()]
    [done] = published(tmp_path, cell(*lines, caption)).cells
    assert [output.text for output in done.outputs] == ["kept\n"]


@pytest.mark.parametrize(
    "broken, metadata, message",
    [
        (cell(v4.new_output("error", ename="E", evalue="", traceback=[])), {}, "holds an error"),
        (cell(metadata={"tags": ["papermill-error-cell-tag"]}), {}, "banner"),
        (cell(count=None), {}, "never run"),
        (cell(), {"papermill": {"exception": True}}, "stopped at an error"),
    ],
)
def test_failed_run_is_refused(tmp_path, broken, metadata, message):
    with pytest.raises(DataError, match=message):
        published(tmp_path, broken, metadata=metadata)


def test_too_large_a_page_is_refused(tmp_path):
    with pytest.raises(DataError, match="MB, at most 4"):
        published(tmp_path, cell(v4.new_output("stream", name="stdout", text="x" * 4_100_000)))


def test_traces_of_the_machine_are_dropped(tmp_path):
    from pathlib import Path

    from studies.engine import repository

    text = f"{repository()}/runs/a.json and {Path.home()}/x"
    output = v4.new_output("stream", name="stdout", text=text)
    timed = cell(output, metadata={"papermill": {"duration": 3}, "tags": ["a"]})
    run = {
        "papermill": {"parameters": {"seed": 1}, "input_path": "/home/me/nb.ipynb", "duration": 9.0}
    }
    done = published(
        tmp_path,
        timed,
        v4.new_markdown_cell("x", metadata={"papermill": {"duration": 3}}),
        metadata=run,
    )
    assert done.metadata.papermill == {"parameters": {"seed": 1}}
    assert [c.metadata for c in done.cells] == [{"tags": ["a"]}, {}]
    assert done.cells[0].outputs[0].text == "runs/a.json and ~/x"


def test_two_runs_publish_the_same_bytes(tmp_path):
    pages = []
    for seconds in (1.0, 2.0):
        made = v4.new_notebook(cells=[cell(metadata={"papermill": {"duration": seconds}})])
        made.cells[0].id = "a"
        made.metadata = {"papermill": {"duration": seconds, "parameters": {}}}
        nbformat.write(made, tmp_path / "in.ipynb")
        pages.append(publish(tmp_path / "in.ipynb", tmp_path / f"{seconds}.ipynb").read_bytes())
    assert pages[0] == pages[1]


def test_parameters_show_the_values_of_the_run_and_the_comments_of_the_source(tmp_path):
    declared = v4.new_code_cell(
        'seed: int = 0  # of the noise\nname: str = "a"  # which\nrate: float = 2.0  # kept\n# end',
        metadata={"tags": ["parameters"]},
        execution_count=1,
    )
    injected = v4.new_code_cell(
        '# Parameters\nseed = 7\nname = "b = c  # d"\n',
        metadata={"tags": ["injected-parameters"]},
        execution_count=2,
    )
    first, last = published(tmp_path, declared, injected, cell()).cells
    assert (
        first.source
        == 'seed: int = 7  # of the noise\nname: str = "b = c  # d"  # which\nrate: float = 2.0  # kept\n# end'
    )
    assert last.source == "draw()"


def test_a_parameter_that_the_source_does_not_declare_stays_in_sight(tmp_path):
    declared = v4.new_code_cell(
        "seed: int = 0  # x", metadata={"tags": ["parameters"]}, execution_count=1
    )
    injected = v4.new_code_cell(
        "other = 7", metadata={"tags": ["injected-parameters"]}, execution_count=2
    )
    assert [done.source for done in published(tmp_path, declared, injected).cells] == [
        declared.source,
        injected.source,
    ]


def test_without_paths_leaves_other_text():
    assert without_paths("a/b and /usr/bin") == "a/b and /usr/bin"


MODEL = {"model_name": "IntSliderModel"}


@pytest.mark.parametrize(
    "saved, state",
    [
        ({WIDGETS: {"state": {"m": MODEL}, "version_major": 2}}, {"m": MODEL}),
        ({WIDGETS: {"m": MODEL}}, {"m": MODEL}),  # as hosted notebooks save it
    ],
)
def test_widget_state_is_put_in_order(saved, state):
    assert normal_widgets(saved) == {
        WIDGETS: {"version_major": 2, "version_minor": 0, "state": state}
    }


@pytest.mark.parametrize("saved", [{}, {WIDGETS: {}}, {WIDGETS: {"state": {}, "version_major": 2}}])
def test_empty_widget_state_is_left_out(saved):
    assert normal_widgets(saved) == {}
