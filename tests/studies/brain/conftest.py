"""A brain study in miniature: tiny untrained weights, few subjects, two optimiser steps."""

import pytest
import torch

from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.autoencoder import build_autoencoder
from studies.brain.data import BrainSettings
from studies.engine.stage import write_manifest

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
}
TUNING = {
    "steps": 2,
    "prompts_per_step": 2,
    "images_per_prompt": 2,
    "cache_size": 2,
    "sampling_steps": 2,
    "replay_steps": 1,
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings whose weights are there."""
    place = tmp_path_factory.mktemp("brain")
    torch.manual_seed(0)
    merges = cl.learn_merges(["axial t1 of the brain"], count=20)
    cl.write_vocabulary(place / "clip", merges)
    clip = cl.build_clip(place / "clip", CLIP)
    cl.save_clip(place / "clip", clip, merges, CLIP)
    pipeline = gen.assemble(
        cl.text_encoder_of(clip),
        cl.pipeline_tokenizer(place / "clip"),
        build_autoencoder((8, 8, 8, 8)),
        gen.build_denoiser((16, 32), 32),
    )
    gen.save_pipeline(place / "weights", pipeline)
    for folder in ("weights", "clip"):
        write_manifest(place / folder, {}, 0.0)
    return BrainSettings(
        weights=str(place / "weights"),
        clip=str(place / "clip"),
        subjects=0.3,
        classifier_steps=3,
        radiology=12,
        images=16,
        calibration=12,
        denoised=4,
        pairs=2,
        sampling_steps=2,
        batch_size=8,
        tuning=TUNING,
    )
