"""Stage one of Han et al.: a pipeline fine-tuned on images with captions, its text encoder and its
autoencoder frozen; as a run in a folder, which goes on where it was killed.

    for done in stage_one("sd15", "ROCO", "roco", "tuned", StageOneSettings(lora=16)):
        print(done.step, done.loss)

The folder then holds `pipeline/` in diffusers' layout; with LoRA weights, these in diffusers' own
format (`pipe.load_lora_weights("tuned")`); `panels/`, images of the same noise as the model learns;
and the model card `README.md`. A killed run goes on from `latents.safetensors` and
`state.safetensors`; both may be deleted at the end. What it needs of a GPU's memory:
`benchmarks/finetune_memory.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairlib.cohorts.cohort import Cohort
from fairlib.cohorts.listing import listed
from fairlib.doctor import CAPTIONED, READERS, versions
from fairlib.errors import SettingsError
from fairlib.io import read_json, read_tensors, write_bytes, write_image, write_json, write_tensors
from fairlib.methods.alignment import fingerprint
from fairlib.methods.finetuning import FinetuneSettings, FinetuneState, FinetuneStep, finetune
from fairlib.methods.group_weights import Uniform
from fairlib.models.generator import AT_ONCE, Generator
from fairlib.models.loading import pipeline_folder
from fairlib.models.training import FP16_LOSS_SCALE
from fairlib.settings import BelowOne, Checked, Count, Natural, Positive, digest, to_dict

RUN, LATENTS, STATE = "run.json", "latents.safetensors", "state.safetensors"
LORA = "pytorch_lora_weights.safetensors"
FREE = ("steps", "save_every", "panel_every")  # settings that may change when a run goes on
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PARTS = ("unet", "vae", "text_encoder")
CARD = """---
base_model: {repository}
library_name: diffusers
---
# {base}, fine-tuned on {data}
{trained} trained on captioned images; every other part is that of the base. The
method is stage one of Han et al. (doi 10.1117/12.3046450); no figure of theirs is claimed.
Load it with `DiffusionPipeline.from_pretrained("pipeline")`{lora}.

| | |
|---|---|
{rows}

It may not be used for
* diagnosis or treatment: its images are of no patient;
* statements on how frequent a sex, an age or a disease is: images carry over the imbalance of the
  training data and may amplify it (measure it first; `fairlib tune` can lower it);
* the release of images before a search for copies of training images;
* anything that the terms of the base model or of the training data exclude.
"""


@dataclass(frozen=True)
class StageOneSettings(Checked):
    """Settings of `stage_one`.

    Parameters
    ----------
    lora
        Rank of LoRA weights in the denoiser (0: the whole denoiser is trained).
    precision
        In which the denoiser computes. What is trained stays in float32, as do its moments; beside
        LoRA weights, the frozen rest of the denoiser is kept in half precision.
    image_size
        Pixels a side (0: those of the pipeline).
    steps
        Of the optimiser, AdamW.
    batch_size
        Images a step.
    learning_rate
        By default 1e-4 for LoRA weights, and 1e-5 (Luo et al.) for the whole denoiser.
    warmup
        Steps in which the rate rises; it then stays.
    ema_decay
        Of the moving average of the weights, which is what is saved and drawn from (0: none).
    prompt_dropout
        Share of captions that are emptied (classifier-free guidance).
    checkpointing
        Compute activations again in the backward pass instead of keeping them.
    save_every
        Steps from one saved state to the next.
    panel_every
        Steps from one panel to the next.
    seed
        Of rows, time steps, noise, emptied captions, LoRA weights and panels.

    Raises
    ------
    SettingsError
        A word or a number that means nothing.
    """

    lora: Natural = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    image_size: Natural = 0
    steps: Count = 1000
    batch_size: Count = 4
    learning_rate: Positive | None = None
    warmup: Natural = 50
    ema_decay: BelowOne = 0.999
    prompt_dropout: BelowOne = 0.1
    checkpointing: bool = False
    save_every: Count = 100
    panel_every: Count = 100
    seed: Natural = 0

    @property
    def finetune(self) -> FinetuneSettings:
        """The same as settings of the loop."""
        same = ("steps", "batch_size", "warmup", "ema_decay", "prompt_dropout", "seed")
        rate = self.learning_rate or (1e-4 if self.lora else 1e-5)
        return FinetuneSettings(learning_rate=rate, **{name: getattr(self, name) for name in same})


def stage_one(
    pipeline: str | Path,
    data_dir: str | Path,
    cohort: str,
    out: str | Path,
    settings: StageOneSettings | None = None,
    *,
    revision: str = "",
    prompts: Sequence[str] = (),
    device: str = "cpu",
    local_files_only: bool = True,
) -> Iterator[FinetuneStep]:
    """Fine-tune a pipeline on the training images of a cohort, yielding after each step; when it is
    exhausted, the results are in `out`.

    Parameters
    ----------
    pipeline
        A folder in diffusers' layout, a name in `models.loading.PRESETS`, or a hub name.
    data_dir
        The folder of the data.
    cohort
        "roco", "rocov2", or "captions": any folder of images with captions.
    out
        The folder of the run. Where it holds a run of the same pipeline, data and settings, that
        goes on from its last saved state and ends with the same bits as one that was never killed
        (on a GPU as far as its kernels are deterministic).
    settings
        See `StageOneSettings`.
    revision
        The commit of a hub name.
    prompts
        Of the panels (by default the first four captions).
    device
        Where the denoiser is trained.
    local_files_only
        Look hub names up in the hub's cache alone.

    Raises
    ------
    DataError
        Data that its reader refuses, or a loss that is not finite.
    SettingsError
        A size that the pipeline cannot have, or another run in `out`.
    WeightsError
        No such pipeline.
    """
    s, out = settings or StageOneSettings(), Path(out).expanduser()
    folder, base = pipeline_folder(str(pipeline), revision, local_files_only)
    generator = _load(folder, s.image_size, device)
    data = _read(data_dir, cohort, generator)
    facts = {"base": base} | _facts(generator, data)
    _claim(out, facts | {name: value for name, value in to_dict(s).items() if name not in FREE})
    latents = _latents(generator, data, out / LATENTS)
    if generator.mean_latent is not None or generator.vae is None:
        generator.mean_latent = latents.float().mean(0)
    texts, codes = data.table["caption"].tolist(), [[0]] * len(data)
    network = _Computing(generator, s)
    state = FinetuneState(network, Uniform((1,)), s.finetune)
    _resume(state, s, out / STATE)
    panel = partial(_draw, generator, state, s, list(prompts) or [*dict.fromkeys(texts)][:4], out)
    if state.step == 0:
        panel()
    embeds, null = _Captions(generator, texts), generator.encode_prompts([""])
    scheduler, given = generator.pipeline.scheduler, (latents, embeds, range(len(data)), codes)
    options: dict[str, Any] = {"null": null, "scheduler": scheduler, "state": state}
    for done in finetune(network, *given, state.weights, s.finetune, **options):
        if done.step % s.panel_every == 0 or done.step == s.steps:
            panel()
        if done.step % s.save_every == 0 or done.step == s.steps:
            write_tensors(out / STATE, state.to_tensors())
        yield done
    state.use_average()
    _save(generator, s, folder, out)
    write_bytes(out / "README.md", _card(s, facts).encode())


class _Captions:
    """Embeddings `[B, L, D]` of captions, float32 on the CPU, made when rows are needed: those of
    all captions of a release would fill more memory than its latents.

    A batch is encoded as one each time, so that a resumed run meets the same bits.
    """

    def __init__(self, generator: Generator, texts: Sequence[str]):
        self.generator, self.texts = generator, texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.generator.hidden_states([self.texts[row] for row in rows.tolist()]).cpu()


class _Computing(nn.Module):
    """The denoiser as it is trained: what takes gradients in float32, the frozen rest in the
    precision in which it computes.
    """

    def __init__(self, generator: Generator, settings: StageOneSettings):
        super().__init__()
        if settings.lora:
            generator.add_lora(settings.lora, settings.seed)
        generator.trainable_parameters()
        self.denoiser, self.context = generator.denoiser, _autocast(generator, settings)
        if settings.checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        for parameter in self.denoiser.parameters():
            if not parameter.requires_grad and settings.precision in HALF:
                parameter.data = parameter.data.to(HALF[settings.precision])

    def forward(self, *inputs: Tensor) -> Any:
        """The denoiser's own output."""
        with self.context:
            return self.denoiser(*inputs)


def _autocast(generator: Generator, settings: StageOneSettings) -> torch.autocast:
    kind = HALF.get(settings.precision)
    return torch.autocast(generator.device.type, kind, enabled=kind is not None)


def _load(folder: Path, size: int, device: str) -> Generator:
    """The pipeline in float32, made to draw `size` pixels a side (0: as many as it does)."""
    generator = Generator.load(folder, device)
    generator.resize(size)
    return generator


def _read(data_dir: str | Path, cohort: str, generator: Generator) -> Cohort:
    if cohort not in CAPTIONED:
        raise SettingsError(f"cohort {cohort!r} has no captions; give {', '.join(CAPTIONED)}")
    side = generator.latent_shape[-1] * generator.scale
    return READERS[cohort].function()(data_dir, size=side)


def _facts(generator: Generator, data: Cohort) -> dict[str, Any]:
    """What base and data are: hashes of weights, of names and captions, and counts."""
    parts = {name: getattr(generator.pipeline, name, nn.Module()) for name in PARTS}
    weights = {f"{name}.{k}": p for name, part in parts.items() for k, p in part.named_parameters()}
    pairs = data.table[["image", "caption"]].to_numpy().tolist()
    counts = data.excluded["reason"].value_counts().items()
    return {
        "base_sha256": fingerprint(weights),
        "data": data.name,
        "images": len(data),
        "subjects": int(data.table["subject"].nunique()),
        "left_out": ", ".join(f"{reason}: {count}" for reason, count in counts) or "none",
        "data_sha256": digest(pairs, 64),  # of names and captions
    }


def _claim(out: Path, facts: dict[str, Any]) -> None:
    """Write down what the run in `out` is made of, or compare it with what is there."""
    if not (out / RUN).is_file():
        if listed(out):  # hidden files may be what a killed run left
            raise SettingsError(f"{out} holds something that is no run; choose another folder")
        write_json(out / RUN, facts)
    held = read_json(out / RUN)
    if differing := [name for name in facts if held.get(name) != facts[name]]:
        name = differing[0]
        what = f"{out} holds another run: its {name} is {held.get(name)!r}, here {facts[name]!r}"
        raise SettingsError(f"{what}; repeat its command to go on, or choose another folder")
    for path in out.glob(".*.safetensors.*"):  # half written when the run was killed
        path.unlink()


def _latents(generator: Generator, data: Cohort, path: Path) -> Tensor:
    """Scaled latents of all images, float16 `[N, C, h, w]`: computed once, then kept in `path`."""
    if not path.is_file():
        rows = torch.arange(len(data)).split(AT_ONCE)
        parts = [generator.encode(data.load(part.tolist())).half() for part in rows]
        write_tensors(path, {"latents": torch.cat(parts)})
    return read_tensors(path)["latents"]


def _resume(state: FinetuneState, settings: StageOneSettings, path: Path) -> None:
    """Take up the state in `path`, if there is one."""
    if settings.precision == "fp16":  # the trained weights do not show it: they are float32
        state.loss_scale = FP16_LOSS_SCALE
    if path.is_file():
        state.from_tensors(read_tensors(path))
    if state.step > settings.steps:
        what = f"{path.parent} holds a run of {state.step} steps, and steps is {settings.steps}"
        raise SettingsError(f"{what}; give at least as many, or choose another folder")


def _draw(
    generator: Generator, state: FinetuneState, s: StageOneSettings, prompts: list[str], out: Path
) -> None:
    """Write the panel of this step: an image of each prompt by the averaged weights, side by
    side.
    """
    with state.averaged(), _autocast(generator, s):
        images = generator.sample(prompts, rng=s.seed, micro_batch=1)
    write_image(out / "panels" / f"{state.step:06d}.png", images.permute(1, 2, 0, 3).flatten(2))


def _save(generator: Generator, settings: StageOneSettings, folder: Path, out: Path) -> None:
    """Write LoRA weights in diffusers' format, and a pipeline: with LoRA weights, the base in full
    precision into which diffusers has merged them.
    """
    if settings.lora:
        from peft import get_peft_model_state_dict

        layers = get_peft_model_state_dict(generator.denoiser)
        write_tensors(out / LORA, {f"unet.{name}": value for name, value in layers.items()})
        mean, generator = generator.mean_latent, _load(folder, settings.image_size, "cpu")
        generator.mean_latent = mean
        generator.denoiser.load_lora_adapter(str(out), prefix="unet", weight_name=LORA)
    generator.save(out / "pipeline", half=settings.precision in HALF)


def _card(settings: StageOneSettings, facts: dict[str, Any]) -> str:
    rate = {"learning_rate": settings.finetune.learning_rate}
    rows = facts | to_dict(settings) | rate | versions()
    return CARD.format(
        **facts,
        repository=facts["base"].partition("@")[0],
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        trained=f"LoRA weights of rank {settings.lora}" if settings.lora else "The whole denoiser",
        lora=', or the LoRA weights with `load_lora_weights(".")`' if settings.lora else "",
    )
