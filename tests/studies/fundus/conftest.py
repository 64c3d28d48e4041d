"""A fundus study in miniature."""

import pytest
import torch

from fairlib.models import clip as cl
from fairlib.models import generator as gen
from fairlib.models.autoencoder import build_autoencoder
from fairlib.settings import to_dict
from studies.engine.stage import write_manifest
from studies.fundus.data import FundusSettings
from studies.fundus.phantom import PhantomSettings

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 40, "width": 32, "heads": 2, "layers": 1},
}
TRAINED_ON = PhantomSettings(subjects=40, seed=109)


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """A study with an untrained generator, a handful of people, and a few optimiser steps."""
    place = tmp_path_factory.mktemp("fundus")
    cl.write_vocabulary(
        place / "words", cl.learn_merges(["SLO fundus image of a Black Female patient"], count=20)
    )
    torch.manual_seed(0)
    encoder = cl.text_encoder_of(cl.build_clip(place / "words", CONFIG))
    pipeline = gen.assemble(
        encoder,
        cl.pipeline_tokenizer(place / "words"),
        build_autoencoder((8, 8, 8, 8)),
        gen.build_denoiser(channels=(16, 32), text_width=32),
    )
    gen.save_pipeline(place / "weights", pipeline)
    write_manifest(place / "weights", {"fundi": to_dict(TRAINED_ON)}, 0.0)
    pipeline.unet.conv_out.weight.data += 0.1
    gen.save_pipeline(place / "everyone", pipeline)
    write_manifest(place / "everyone", {"fundi": to_dict(TRAINED_ON)}, 0.0)
    return FundusSettings(
        weights=str(place / "weights"),
        everyone=str(place / "everyone"),
        steps=6,
        batch_size=8,
        window=2,
        learning_rate=1e-3,
        probe_subjects=24,
        probe_per_group=2,
        probe_times=1,
        probe_every=1,
        images=24,
        reference_subjects=24,
        sampling_steps=1,
        guidance_scale=1.0,
        sample_batch=10,
        evaluator_subjects=24,
        evaluator_steps=3,
        semantic_steps=3,
        replicates=20,
        n_min=1,
    )
