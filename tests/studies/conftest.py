"""A miniature repository: two notebooks, one profile, a few pages."""

from importlib import import_module

import pytest

PARAMETERS = """profile: str = "quick"  # which
seed: int = 0  # chance
rate: float = 0.5  # step
sizes: list[int] = [1]  # n"""
BODY = """
from studies.book.glue import glue, show
from studies.engine.stage import Progress
for _ in Progress(every=0).track(range(2)):
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
    made.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
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


CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny_heart_study(tmp_path_factory):
    """A heart study with an untrained generator, a handful of people, and a few optimiser steps."""
    import torch

    from fairlib.models import clip as cl
    from fairlib.models import controlnet as co
    from fairlib.models import generator as gen
    from fairlib.models.autoencoder import build_autoencoder
    from fairlib.settings import to_dict
    from studies.engine.stage import write_manifest
    from studies.heart.data import HeartSettings
    from studies.heart.phantom import PhantomSettings

    place = tmp_path_factory.mktemp("heart")
    cl.write_vocabulary(
        place / "words", cl.learn_merges(["Female, age in 60s, obese BMI, healthy"], count=20)
    )
    torch.manual_seed(0)
    encoder = cl.text_encoder_of(cl.build_clip(place / "words", CLIP))
    denoiser = gen.build_denoiser(channels=(16, 32), text_width=32)
    vae = build_autoencoder((8, 8, 8), image_channels=3, size=64)
    base = gen.assemble(encoder, cl.pipeline_tokenizer(place / "words"), vae, denoiser)
    pipeline = co.attach(base, co.build_controlnet(denoiser))
    gen.save_pipeline(place / "weights", pipeline)
    write_manifest(
        place / "weights", {"hearts": to_dict(PhantomSettings(subjects=48, seed=101))}, 0.0
    )
    return HeartSettings(
        weights=str(place / "weights"),
        segmenter_steps=2,
        evaluator_steps=2,
        classifier_steps=2,
        evaluator_subjects=60,
        heldout_subjects=20,
        validation_subjects=60,
        choice_subjects=16,
        test_subjects=40,
        images=16,
        synthetic=12,
        flips=6,
        sampling_steps=2,
        batch_size=8,
        replicates=20,
        n_min=1,
    )


@pytest.fixture
def house(tmp_path, monkeypatch):
    """The root of the miniature repository; everything in studies takes it for the real one."""
    import nbformat

    # a module that is imported while another is patched would keep the patch for good
    for module in ("book.address", "book.build", "book.glue", "book.notebooks", "engine.study"):
        import_module(f"studies.{module}")
    for folder in ("notebooks", "profiles", "book", "weights"):
        (tmp_path / folder).mkdir()
    for stem in ("01_first", "02_second"):
        cells = [BODY, FIGURE.replace("NAME", stem[:2])]
        nbformat.write(notebook(stem, cells), tmp_path / "notebooks" / f"{stem}.ipynb")
    (tmp_path / "profiles" / "tiny.yml").write_text(
        "common: {profile: tiny, seed: 0}\n02_second: {seed: 4, rate: 1}\n"
    )
    for module in (
        "engine",
        "engine.profiles",
        "engine.stage",
        "book.notebooks",
        "book.build",
    ):
        monkeypatch.setattr(f"studies.{module}.repository", lambda: tmp_path)
    # the real one is tested elsewhere; here, somebody may be editing the package while its tests
    # run
    monkeypatch.setattr("studies.book.notebooks.script_digest", lambda text: "code")
    monkeypatch.setenv("FAIRLIB_RUNS", str(tmp_path / "runs"))
    return tmp_path
