"""CLIP with open_clip: trained on the captions here, or any pretrained name where its weights can
be had.

Its text tower becomes the (frozen) text encoder of the generator, its image tower the eye of the
consistency term.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import WeightsError
from fairlib.io import read_json, read_tensors, write_json, write_tensors
from fairlib.models.tokenizer import (
    CONTEXT_LENGTH,
    clip_tokenizer,
    learn_merges,
    pipeline_tokenizer,
    vocabulary,
    write_vocabulary,
)
from fairlib.models.training import FitSettings, FitStep, Trainer, batch_indices, generator_for

SMALL = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 128,
        "patch_size": 16,
        "width": 128,
        "head_width": 32,
        "layers": 4,
        "mlp_ratio": 4.0,
    },
    "text_cfg": {"context_length": CONTEXT_LENGTH, "width": 128, "heads": 4, "layers": 3},
}


class Clip(nn.Module):
    """open_clip's model with its tokenizer.

    Images [N, 1, H, W] in [-1, 1]; embeddings have unit length.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable,
        channels: int,
        size: int,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        unit_range: bool = False,
    ):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.channels, self.size, self.unit_range = channels, size, unit_range
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit embeddings [N, D] on this model's device, differentiable in the images."""
        images = images.to(self.mean.device).expand(-1, self.channels, -1, -1)
        if images.shape[-1] != self.size:
            images = F.interpolate(
                images, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        if self.unit_range:
            images = (images + 1) / 2
        return F.normalize(self.model.encode_image((images - self.mean) / self.std).float(), dim=-1)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings [N, D] of captions."""
        return F.normalize(
            self.model.encode_text(self.tokenizer(texts).to(self.mean.device)).float(), dim=-1
        )


def build_clip(vocabulary_folder: str | Path, config: dict = SMALL) -> Clip:
    """An untrained small CLIP over the vocabulary in `vocabulary_folder`."""
    from open_clip.model import CLIP

    tokenizer = clip_tokenizer(vocabulary_folder, config["text_cfg"]["context_length"])
    vision = {**config["vision_cfg"]}
    text = {
        **config["text_cfg"],
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.vocab_size - 1,
    }
    model = CLIP(embed_dim=config["embed_dim"], vision_cfg=vision, text_cfg=text)
    return Clip(model, tokenizer, channels=3, size=vision["image_size"])


def pretrained_clip(name: str, weights: str) -> Clip:
    """Any open_clip model by name (for a machine that can fetch its weights), as teacher of
    consistency.
    """
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=weights)
    normalise = next(step for step in preprocess.transforms if type(step).__name__ == "Normalize")
    size = model.visual.image_size
    return Clip(
        model.eval(),
        open_clip.get_tokenizer(name),
        3,
        size[0] if isinstance(size, tuple) else size,
        tuple(normalise.mean),
        tuple(normalise.std),
        unit_range=True,
    )


def fit_clip(
    clip: Clip,
    images: Tensor,
    captions: list[str],
    settings: FitSettings,
    trainer: Trainer | None = None,
    mirrored: Callable[[str], str] | None = None,
) -> Iterator[FitStep]:
    """Contrastive training on `images` uint8 [N, 1, H, W] and their captions.

    Captions that say the same are no negatives of each other: the target spreads over equal
    captions of the batch. With `mirrored` (what a caption becomes when its image is flipped) half
    of a batch is the other half in the mirror, and the change of image and the change of text are
    made to point the same way (see `direction_loss`): side is in so few words and shows so little
    in a symmetric brain that a small CLIP does not learn it otherwise.
    """
    tokens = clip.tokenizer(captions)
    flipped = clip.tokenizer([mirrored(text) for text in captions]) if mirrored else None
    trainer = trainer or Trainer(clip, settings)

    def loss(step: int) -> Tensor:
        rows = batch_indices(
            settings.seed,
            step,
            len(images),
            settings.batch_size // 2 if mirrored else settings.batch_size,
        )
        chance = generator_for(settings.seed, 2, step)
        batch, words = images[rows].float() / 127.5 - 1, tokens[rows]
        if mirrored:
            batch, words = torch.cat([batch, batch.flip(-1)]), torch.cat([words, flipped[rows]])
        batch = torch.roll(
            batch,
            shifts=tuple(torch.randint(-4, 5, (2,), generator=chance).tolist()),
            dims=(-2, -1),
        )
        words = words.to(clip.mean.device)
        image, text = clip.embed_images(batch), F.normalize(clip.model.encode_text(words), dim=-1)
        contrast = contrastive_loss(clip, image, text, words)
        return contrast + direction_loss(image, text, words) if mirrored else contrast

    yield from trainer.run(loss)


def contrastive_loss(clip: Clip, image: Tensor, text: Tensor, words: Tensor) -> Tensor:
    """Symmetric cross-entropy of unit embeddings [N, D]; the target spreads over rows whose `words`
    [N, L] are equal.
    """
    logits = clip.model.logit_scale.exp().clamp(max=100) * image @ text.T
    same = (words[:, None] == words[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def direction_loss(image: Tensor, text: Tensor, words: Tensor) -> Tensor:
    """1 - cos(change of image, change of text), a mean over the pairs whose words differ.

    The second half of each batch [2N, D] is the first half in the mirror. After the directional
    loss of StyleGAN-NADA (Gal et al. 2022). A cosine has a gradient where both changes are still
    small, as a dot product has not.
    """
    (a, b), (u, v), (first, second) = image.chunk(2), text.chunk(2), words.chunk(2)
    differ = (first != second).any(-1)
    return (1 - F.cosine_similarity((a - b)[differ], (u - v)[differ])).sum() / differ.sum().clamp(
        min=1
    )


def save_clip(
    folder: str | Path, clip: Clip, merges: list[tuple[str, str]], config: dict = SMALL
) -> None:
    """Write vocabulary, configuration and fp16 weights."""
    folder = Path(folder)
    write_vocabulary(folder, merges)
    write_json(folder / "config.json", config)
    write_tensors(
        folder / "clip.safetensors",
        {k: v.half() for k, v in clip.model.state_dict().items() if k != "attn_mask"},
    )


def load_clip(folder: str | Path) -> Clip:
    """Read a folder written by `save_clip`, frozen, in fp32.

    Raises `WeightsError` when the folder lacks a file or the weights do not fit their
    configuration.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"{folder}: no CLIP here (config.json is missing); make it with `make base`"
        )
    clip = build_clip(folder, read_json(folder / "config.json"))
    found = clip.model.load_state_dict(
        {k: v.float() for k, v in read_tensors(folder / "clip.safetensors").items()}, strict=False
    )
    odd = [key for key in (*found.missing_keys, *found.unexpected_keys) if key != "attn_mask"]
    if odd:
        raise WeightsError(
            f"{folder}: clip.safetensors does not fit config.json (first odd key {odd[0]}); make "
            "it again"
        )
    return clip.eval().requires_grad_(False)


def text_encoder_of(clip: Clip) -> nn.Module:
    """The text tower as transformers' CLIPTextModel, for a StableDiffusionPipeline.

    Same numbers, other names.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    model = clip.model
    width, layers = model.ln_final.weight.shape[0], len(model.transformer.resblocks)
    heads, size = (
        model.transformer.resblocks[0].attn.num_heads,
        model.token_embedding.weight.shape[0],
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=len(model.positional_embedding),
            hidden_act="gelu",
            projection_dim=128,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=0,
        )
    )
    wanted = encoder.state_dict()
    prefix = "text_model." if any(key.startswith("text_model.") for key in wanted) else ""
    found = {prefix + name: value for name, value in _text_weights(model).items()}
    missing = [key for key in wanted if key not in found and "position_ids" not in key]
    if missing:
        raise WeightsError(
            f"text tower cannot be exported: this transformers version also wants {missing[0]}"
        )
    encoder.load_state_dict(found, strict=False)
    return encoder.eval().requires_grad_(False)


def _text_weights(model: nn.Module) -> dict[str, Tensor]:
    found = {
        "embeddings.token_embedding.weight": model.token_embedding.weight,
        "embeddings.position_embedding.weight": model.positional_embedding,
        "final_layer_norm.weight": model.ln_final.weight,
        "final_layer_norm.bias": model.ln_final.bias,
    }
    for i, block in enumerate(model.transformer.resblocks):
        here = f"encoder.layers.{i}."
        for kind in ("weight", "bias"):
            for part, name in zip(
                getattr(block.attn, f"in_proj_{kind}").chunk(3), ("q", "k", "v"), strict=True
            ):
                found[f"{here}self_attn.{name}_proj.{kind}"] = part
            for ours, theirs in (
                (block.attn.out_proj, "self_attn.out_proj"),
                (block.ln_1, "layer_norm1"),
                (block.ln_2, "layer_norm2"),
                (block.mlp.c_fc, "mlp.fc1"),
                (block.mlp.c_proj, "mlp.fc2"),
            ):
                found[f"{here}{theirs}.{kind}"] = getattr(ours, kind)
    return {name: value.detach().clone() for name, value in found.items()}


__all__ = [
    "Clip",
    "build_clip",
    "fit_clip",
    "learn_merges",
    "load_clip",
    "pipeline_tokenizer",
    "pretrained_clip",
    "save_clip",
    "text_encoder_of",
    "vocabulary",
]
