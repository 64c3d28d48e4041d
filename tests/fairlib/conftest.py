"""A tiny pipeline, and the start of a command that tunes it."""

import sys

import pandas as pd
import pytest
import torch

from fairlib.models import clip
from fairlib.models.autoencoder import build_autoencoder
from fairlib.models.generator import Generator, assemble, build_denoiser
from tests.fairlib import strangers
from tests.fairlib.strangers import CONFIG


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """The folder of a tiny random pipeline."""
    place = tmp_path_factory.mktemp("cli")
    clip.write_vocabulary(place / "words", clip.learn_merges(["axial brain"], count=20))
    torch.manual_seed(0)
    encoder = clip.text_encoder_of(clip.build_clip(place / "words", CONFIG))
    parts = (encoder, clip.pipeline_tokenizer(place / "words"), build_autoencoder((8, 8, 8, 8)))
    generator = Generator(assemble(*parts, build_denoiser((16, 32), 32)))
    generator.save(place / "pipeline")
    return place / "pipeline"


@pytest.fixture
def tuning(pipeline, tmp_path, monkeypatch):
    """The start of a command that tunes the tiny pipeline, but for --steps and --out."""
    monkeypatch.setitem(sys.modules, "strangers_classifier", strangers)
    monkeypatch.setattr("fairlib.commands.FEW", strangers.FEW)
    pd.DataFrame({"logit": [-2.0, -1.0, 1.0, 2.0]}).to_csv(tmp_path / "scores.csv", index=False)
    (tmp_path / "prompts.txt").write_text("axial brain\n\nbrain\n")
    command = ["tune", str(pipeline), str(tmp_path / "prompts.txt"), "--scores"]
    command += [str(tmp_path / "scores.csv"), "--classifier", "strangers_classifier:bright"]
    return [*command, "--shares", "F=0.458", "M=0.542"]
