"""CLIP with open_clip, small enough to train here, and the text encoder made of it.

A byte-pair vocabulary is learnt from captions and written in CLIP's own two formats (open_clip
reads a gzipped list of merges, transformers a `vocab.json` with `merges.txt`; both give the same
ids). The text tower of a trained `Clip` becomes the frozen text encoder of the generator, its image
tower the embedding of the consistency term. `TextTower` trains a text encoder whose hidden states
keep every attribute of a prompt apart.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.cohorts.listing import listed
from fairlib.errors import DataError, WeightsError
from fairlib.io import read_json, read_tensors, to_images, write_json, write_tensors
from fairlib.models.loading import border, check_part, hub_folder
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
    load_weights,
    read_description,
)
from fairlib.rng import Stream, torch_rng

if TYPE_CHECKING:
    from open_clip import CLIP, SimpleTokenizer
    from transformers import CLIPTokenizer

CONTEXT_LENGTH = 32
OPEN_CLIP_CONFIG, HUB = "open_clip_config.json", "hf-hub:"
PRESETS = {
    "biomedclip": "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    "openai": "ViT-B-32:openai",
}
ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu"}  # open_clip's, and transformers' words
VISION = {"image_size": 128, "patch_size": 16, "width": 128, "head_width": 32, "layers": 4}
SMALL = {
    "embed_dim": 128,
    "vision_cfg": VISION,
    "text_cfg": {"context_length": CONTEXT_LENGTH, "width": 128, "heads": 4, "layers": 3},
}
# of the reading of attributes: directions of unit length, so that only hidden states can move
SHARPNESS = 10.0


def learn_merges(captions: list[str], count: int = 400) -> list[tuple[str, str]]:
    """The `count` most useful merges, most frequent pair first (ties: alphabetical), on CLIP's word
    pieces.
    """
    import regex

    pieces = regex.compile(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    words = Counter(piece for text in captions for piece in pieces.findall(text.lower()))
    split = {word: " ".join((*word[:-1], word[-1] + "</w>")) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts.split()):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        here = regex.compile(rf"(?<!\S){regex.escape(' '.join(best))}(?!\S)")
        merged = "".join(best).replace("\\", r"\\")
        split = {word: here.sub(merged, parts) for word, parts in split.items()}
    return merges


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """CLIP's order: 256 bytes, the same at a word's end, the merges, start and end of text."""
    from open_clip.tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    last, merged = [symbol + "</w>" for symbol in symbols], ["".join(pair) for pair in merges]
    tokens = [*symbols, *last, *merged, "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


def write_vocabulary(folder: str | Path, merges: list[tuple[str, str]]) -> None:
    """Write `vocab.json`, `merges.txt` (transformers) and `bpe.txt.gz` (open_clip) into
    `folder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)])
    (folder / "merges.txt").write_text(lines + "\n")
    (folder / "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False))
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


def pipeline_tokenizer(folder: str | Path, length: int = CONTEXT_LENGTH) -> CLIPTokenizer:
    """transformers' CLIPTokenizer of a folder written by `write_vocabulary`; longer texts are cut
    at `length` tokens.

    Padding is id 0, as in open_clip; that id is the exclamation mark, so one in a prompt reads as
    padding.
    """
    from transformers import CLIPTokenizer

    words, merges = (str(Path(folder) / name) for name in ("vocab.json", "merges.txt"))
    return CLIPTokenizer(words, merges, pad_token="!", model_max_length=length)


def clip_tokenizer(folder: str | Path, length: int = CONTEXT_LENGTH) -> SimpleTokenizer:
    """open_clip's SimpleTokenizer on the same vocabulary: list of texts -> ids [N, length]."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(bpe_path=str(Path(folder) / "bpe.txt.gz"), context_length=length)


class Clip(nn.Module):
    """open_clip's model with its tokenizer.

    Images [N, 1, H, W] in [-1, 1]; embeddings have unit length. The model sees images from which
    `mean` was taken, over `std`, each one number a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: CLIP,
        tokenizer: SimpleTokenizer,
        channels: int,
        size: int,
        mean: ArrayLike = (0.0,),
        std: ArrayLike = (1.0,),
    ):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.channels, self.size = channels, size
        for name, values in {"mean": mean, "std": std}.items():
            value = torch.tensor(np.asarray(values), dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit embeddings [N, D] on this model's device, differentiable in the images."""
        images = images.to(device_of(self)).expand(-1, self.channels, -1, -1)
        if images.shape[-1] != self.size:
            size = (self.size, self.size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        images = (images - self.mean) / self.std
        return F.normalize(self.model.encode_image(images).float(), dim=-1)


def build_clip(vocabulary_folder: str | Path, config: dict = SMALL) -> Clip:
    """An untrained small CLIP over the vocabulary in `vocabulary_folder`."""
    from open_clip.model import CLIP

    tokenizer = clip_tokenizer(vocabulary_folder, config["text_cfg"]["context_length"])
    vision, size = {**config["vision_cfg"]}, tokenizer.vocab_size
    text = {**config["text_cfg"], "vocab_size": size, "eos_id": size - 1}
    model = CLIP(embed_dim=config["embed_dim"], vision_cfg=vision, text_cfg=text)
    return Clip(model, tokenizer, channels=3, size=vision["image_size"])


def fit_clip(
    model: Clip | TextTower,
    images: Tensor,
    captions: list[str],
    settings: FitSettings,
    trainer: Trainer | None = None,
    mirrored: Callable[[str], str] | None = None,
    reading_weight: float = 1.0,
) -> Iterator[FitStep]:
    """Contrastive training on `images` uint8 [N, C, H, W] and their captions.

    The loss of a `TextTower` is that plus `reading_weight` times the `reading_loss` of as many
    prompts.

    Captions that say the same are no negatives of each other: the target spreads over equal
    captions of the batch. With `mirrored` (what a caption becomes when its image is flipped) half
    of a batch is the other half in the mirror, and the change of image and the change of text are
    made to point the same way (see `direction_loss`): side is in so few words and shows so little
    in a symmetric brain that a small CLIP does not learn it otherwise.
    """
    tower = model if isinstance(model, TextTower) else None
    clip = model.clip if isinstance(model, TextTower) else model
    stream, shift = (Stream.TEXT_TOWER, 2) if tower else (Stream.CLIP, 4)
    tokens, device = clip.tokenizer(captions), device_of(model)
    flipped = clip.tokenizer([mirrored(text) for text in captions]) if mirrored else None
    size = settings.batch_size // 2 if mirrored else settings.batch_size
    trainer = trainer or Trainer(model, settings)

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(images), size)
        rng = torch_rng(settings.seed, stream, step)
        batch, words = to_images(images[rows]), tokens[rows]
        if flipped is not None:
            batch, words = torch.cat([batch, batch.flip(-1)]), torch.cat([words, flipped[rows]])
        moved = torch.randint(-shift, shift + 1, (2,), generator=rng).tolist()
        batch, words = batch.roll(moved, dims=(-2, -1)), words.to(device)
        image, text = clip.embed_images(batch), F.normalize(clip.model.encode_text(words), dim=-1)
        value = contrastive_loss(clip, image, text, words)
        if mirrored:
            value = value + direction_loss(image, text, words)
        if tower:
            prompts = torch.randint(len(tower.prompts), (settings.batch_size,), generator=rng)
            value = value + reading_weight * tower.reading_loss(prompts)
        return value

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

    book/diffusion.md, Eq. (eq-direction).
    """
    (a, b), (u, v), (first, second) = image.chunk(2), text.chunk(2), words.chunk(2)
    differ = (first != second).any(-1)
    apart = 1 - F.cosine_similarity((a - b)[differ], (u - v)[differ])
    return apart.sum() / differ.sum().clamp(min=1)


def save_clip(
    folder: str | Path, clip: Clip, merges: list[tuple[str, str]], config: dict = SMALL
) -> None:
    """Write vocabulary, configuration and fp16 weights."""
    folder = Path(folder).expanduser()
    write_vocabulary(folder, merges)
    write_json(folder / "config.json", config)
    weights = {name: value.half() for name, value in clip.model.state_dict().items()}
    write_tensors(folder / "clip.safetensors", weights)


def load_clip(folder: str | Path, local_files_only: bool = True) -> Clip:
    """Read a CLIP, frozen, in float32: a folder written by `save_clip`, one of open_clip (with
    `open_clip_config.json` and safetensors), "hf-hub:owner/name", a name and tag of open_clip as
    "ViT-B-32:openai", or one of `PRESETS`. Where the text tower is another model of the hub, as in
    BiomedCLIP, the image tower alone is read: the consistency term needs no other.

    local_files_only: look hub names up in the hub's cache alone.

    Raises `WeightsError` when the folder lacks a file or the weights do not fit their
    configuration, and for a name that is not there.
    """
    name = _address(PRESETS.get(str(folder), str(folder)).removeprefix("local-dir:"))
    hub = name.startswith(HUB)
    place = hub_folder(name.removeprefix(HUB), local_files_only) if hub else Path(name).expanduser()
    if (place / OPEN_CLIP_CONFIG).is_file():
        return _from_open_clip(place)
    hint = f"make it with `make base`, or give a folder with {OPEN_CLIP_CONFIG} or {HUB}owner/name"
    with border(f"{place}: no CLIP of this library", hint):
        clip = build_clip(place, read_description(place / "config.json", "CLIP", hint))
    load_weights(clip.model, place / "clip.safetensors")
    return clip.eval().requires_grad_(False)


def _address(name: str) -> str:
    """The hub's address of weights that open_clip knows as "name:tag", else `name`."""
    if name.count(":") != 1 or name.startswith(HUB):
        return name
    from open_clip import get_pretrained_cfg

    place = get_pretrained_cfg(*name.split(":")).get("hf_hub", "").strip("/")
    return HUB + place if place else name


def _from_open_clip(folder: Path) -> Clip:
    import open_clip

    source, files = f"local-dir:{folder}", listed(folder, "*.safetensors")
    if not files:
        raise WeightsError(
            f"{folder}: holds no safetensors; complete the folder (open_clip_pytorch_model.bin is "
            "a pickle; if you trust it, write what torch.load(..., weights_only=True) reads of it "
            "with safetensors.torch.save_file as open_clip_model.safetensors)"
        )
    check_part(folder)
    with border(folder, "complete the folder; nothing is fetched for it"):
        config, tokenizer = read_json(folder / OPEN_CLIP_CONFIG), None
        if "hf_model_name" in config["model_cfg"]["text_cfg"]:
            model, given = _image_tower(files[-1], config["model_cfg"]), config["preprocess_cfg"]
        else:
            model = open_clip.create_model(source, require_pretrained=True)
            given, tokenizer = model.visual.preprocess_cfg, open_clip.get_tokenizer(source)
        sizes = set(np.atleast_1d(cast(Any, model.visual).image_size).tolist())
    if len(sizes) != 1:
        raise WeightsError(f"{folder}: reads images of {sizes} pixels a side; expected squares")
    # theirs is of images in [0, 1], ours of images in [-1, 1]
    mean, std = 2 * np.array(given["mean"]) - 1, 2 * np.array(given["std"])
    return Clip(model, tokenizer, 3, sizes.pop(), mean, std).eval().requires_grad_(False)


def _image_tower(path: Path, config: dict) -> nn.Module:
    """open_clip's model with the image tower of `path`; its text tower is a stump."""
    import open_clip

    stump = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 2, "context_length": 1}
    model = open_clip.CustomTextCLIP(config["embed_dim"], config["vision_cfg"], stump)
    tower = {name: value for name, value in read_tensors(path).items() if "visual." in name}
    weights = {name.removeprefix("visual."): value for name, value in tower.items()}
    model.visual.load_state_dict(weights)
    return model


def attributes_of(prompt: str) -> tuple[str, ...]:
    """The attributes of a prompt, in order."""
    return tuple(part.strip() for part in prompt.split(","))


class TextTower(nn.Module):
    """A `Clip` with one reading head an attribute.

    `prompts` are all that it must keep apart, those that no image has included; `values` lists what
    each attribute can be; `split` gives the attributes of a prompt (by default what stands between
    commas), always as many and in one order.
    """

    def __init__(
        self,
        clip: Clip,
        prompts: Sequence[str],
        split: Callable[[str], tuple[str, ...]] = attributes_of,
    ):
        super().__init__()
        self.split = split
        rows = sorted({split(prompt) for prompt in prompts})
        if len({len(row) for row in rows}) != 1:
            what = "prompts name different numbers of attributes"
            raise DataError(f"{what}; write each as 'sex, age, BMI, diagnosis'")
        self.clip, self.prompts = clip, list(prompts)
        self.values = [sorted(set(column)) for column in zip(*rows, strict=True)]
        width = clip.model.ln_final.weight.shape[0]
        self.heads = nn.ParameterList([torch.randn(len(values), width) for values in self.values])
        self.tokens, self.truth = clip.tokenizer(self.prompts), self.codes(self.prompts)

    def codes(self, prompts: Sequence[str]) -> Tensor:
        """Which value each attribute has, int64 [N, attributes]."""
        rows = [zip(self.values, self.split(prompt), strict=True) for prompt in prompts]
        return torch.tensor([[values.index(part) for values, part in row] for row in rows])

    def hidden(self, tokens: Tensor) -> Tensor:
        """Hidden states [N, L, D] after the last layer norm: what the denoiser attends to."""
        model = self.clip.model
        states = model.token_embedding(tokens) + model.positional_embedding
        return model.ln_final(model.transformer(states, attn_mask=model.attn_mask))

    def reading_loss(self, rows: Tensor) -> Tensor:
        """Cross-entropy of telling each attribute of the prompts `rows` [N] from the mean hidden
        state, by the nearest of fixed-length directions.

        The heads have unit length and the layer norm fixes the states' scale, so only their
        directions can give way.
        """
        device, width = device_of(self), self.heads[0].shape[1]
        states = self.hidden(self.tokens[rows].to(device))
        mean = F.layer_norm(states, (width,)).mean(1) / width**0.5
        losses = [
            F.cross_entropy(SHARPNESS * mean @ F.normalize(head, dim=1).T, truth)
            for head, truth in zip(self.heads, self.truth[rows].T.to(device), strict=True)
        ]
        return cast(Tensor, sum(losses) / len(losses))


@torch.no_grad()
def attribute_distances(
    embeds: Tensor, prompts: Sequence[str], split: Callable[[str], tuple[str, ...]] = attributes_of
) -> dict[tuple[str, str], float]:
    """How far apart hidden states are when one attribute alone differs, {(value, other value):
    distance}.

    `embeds` [N, L, D] of the distinct `prompts`. The distance is the norm of the difference, a mean
    over all pairs of prompts that differ in these two values and agree in the rest, over the
    root-mean-square distance of a state from the mean of all; 1.41 would be two unrelated prompts,
    0 two values that no reader can tell apart.
    """
    flat = embeds.flatten(1)
    scale = float((flat - flat.mean(0)).square().sum(1).mean().sqrt())
    rows = {split(prompt): state for prompt, state in zip(prompts, flat, strict=True)}
    found: dict[tuple[str, str], list[float]] = {}
    for one, state in rows.items():
        for other, partner in rows.items():
            differ = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
            if len(differ) == 1 and differ[0][0] < differ[0][1]:
                found.setdefault(differ[0], []).append(float((state - partner).norm()) / scale)
    return {pair: sum(values) / len(values) for pair, values in sorted(found.items())}


def text_encoder_of(clip: Clip) -> nn.Module:
    """The text tower as transformers' CLIPTextModel, for a StableDiffusionPipeline.

    Same numbers, other names. Raises `WeightsError` for a text tower that it cannot express.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    model = clip.model
    weights = _text_weights(model)
    activation = _activation(model, sum(value.numel() for value in weights.values()))
    width, layers = model.ln_final.weight.shape[0], len(model.transformer.resblocks)
    heads = model.transformer.resblocks[0].attn.num_heads
    size = len(model.token_embedding.weight)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=len(model.positional_embedding),
            hidden_act=activation,
            projection_dim=128,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=0,
        )
    )
    prefix = "text_model." if hasattr(encoder, "text_model") else ""
    found = {prefix + name: value for name, value in weights.items()}
    missing = encoder.load_state_dict(found, strict=False).missing_keys
    if any("position_ids" not in name for name in missing):
        raise WeightsError(f"text tower cannot be exported: this transformers also wants {missing}")
    return encoder.eval().requires_grad_(False)


def _activation(model: CLIP, exported: int) -> str:
    """transformers' word for the activation of the text tower, of which `exported` weights are
    copied. Raises `WeightsError` for a tower that CLIPTextModel cannot express.
    """
    activation = type(model.transformer.resblocks[0].mlp.gelu).__name__
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise WeightsError(f"text tower cannot be exported: {activation} is none of {known}")
    tower = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.")
    held = [p.numel() for name, p in model.named_parameters() if name.startswith(tower)]
    if model.attn_mask is None or sum(held) != exported:
        raise WeightsError("text tower cannot be exported: it is not causal, or scales its layers")
    return ACTIVATIONS[activation]


def _text_weights(model: CLIP) -> dict[str, Tensor]:
    if not hasattr(model, "transformer"):
        raise WeightsError("text tower cannot be exported: it is not open_clip's own transformer")
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
