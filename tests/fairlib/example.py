"""The README's example on a tiny random pipeline, with nothing but the library."""

import tempfile

import torch

import fairlib
from fairlib.models import clip as clips
from fairlib.models.autoencoder import build_autoencoder
from fairlib.models.clip import load_clip
from fairlib.models.generator import assemble, build_denoiser

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
}


folder, merges = tempfile.mkdtemp(), clips.learn_merges(["axial brain"], count=20)
clips.write_vocabulary(folder, merges)
clips.save_clip(folder, clips.build_clip(folder, CONFIG), merges, CONFIG)


def tiny_pipeline(dtype: torch.dtype):
    """A Stable-Diffusion-class pipeline of diffusers that nobody has trained."""
    torch.manual_seed(0)
    encoder = clips.text_encoder_of(load_clip(folder))
    tokenizer = clips.pipeline_tokenizer(folder)
    coder, denoiser = build_autoencoder((8, 8, 8, 8)), build_denoiser((16, 32), 32)
    return assemble(encoder, tokenizer, coder, denoiser).to(dtype=dtype)


def classifier(images):
    """Logits [N]: bright images are of the first group."""
    return 20 * images.flatten(1).mean(1)


real_images = 2 * torch.rand(12, 1, 128, 128, generator=torch.Generator().manual_seed(1)) - 1
labels = ["F", "M"] * 6  # as recorded, whatever the classifier says
prompts = ["axial brain", "brain of a patient"]
for dtype in (torch.float32, torch.bfloat16):
    pipe = tiny_pipeline(dtype)
    generator = fairlib.Generator.from_pipeline(pipe)
    scores = classifier(real_images)
    target = fairlib.Target.shares({"F": 0.458, "M": 0.542}, scores, labels)
    embed = load_clip(folder).embed_images
    few = fairlib.AlignmentSettings(
        steps=2,
        prompts_per_step=2,
        images_per_prompt=2,
        cache_size=2,
        cache_block=2,
        sampling_steps=2,
        replay_steps=1,
    )
    for step in fairlib.tune(generator, classifier, prompts, target, embed=embed, settings=few):
        print(step.step, step.shares)
    out = tempfile.mkdtemp() + "/tuned"
    generator.save(out)
    fairlib.Generator.load(out)
print(fairlib.__file__)
