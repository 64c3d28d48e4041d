"""The text-to-image model: any Stable-Diffusion-class pipeline of diffusers, or a pixel-space one
(DeepFloyd IF's stage 1).

`Generator` is the thin view of it that the methods need: prompts to embeddings, latents to noise,
latents to images. What it saves, `DiffusionPipeline.from_pretrained` reads in anyone's code.

In pixel space an image is its own latents. The denoiser's learned variance is left out, for the
solvers are deterministic, and so is IF's dynamic thresholding, which is not linear
(`methods.replay`): images are clipped to [-1, 1] once, when they are decoded.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import SettingsError
from fairlib.io import atomic_folder, read_tensors, write_tensors
from fairlib.models.autoencoder import encode
from fairlib.models.loading import read_pretrained, sampling_schedule, token_length, unsupported
from fairlib.models.solvers import Solver, dpm_solver_2m
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
)
from fairlib.rng import Stream, torch_rng

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline
    from transformers import PreTrainedTokenizerBase

TRAINING_STEPS = 1000
MEAN_LATENT = "mean_latent.safetensors"
PRECISIONS = {"fp32": "float", "bf16": "bfloat16", "fp16": "half"}  # names of a module's methods
# At least so many places of latents are decoded at once on a processor (16 images of 16 x 16) and
# fewer than twice as many: what larger batches make in between leaves the allocator's reserve, and
# the gradient takes half as long again; smaller ones differ in the last bit.
CELLS_TOGETHER = 4096
AT_ONCE = 4  # images that are encoded at once
# Attention (the last two: to a prompt, in pixel space) and convolutions.
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "add_k_proj", "add_v_proj"]
SCHEDULE: Any = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build_denoiser(channels: tuple[int, ...] = (64, 96, 128), text_width: int = 128) -> nn.Module:
    """An untrained UNet2DConditionModel on [N, 4, 16, 16]; words are attended to below the finest
    level alone.
    """
    from diffusers import UNet2DConditionModel

    down = ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(channels) - 1)
    up = ("CrossAttnUpBlock2D",) * (len(channels) - 1) + ("UpBlock2D",)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=text_width,
        norm_num_groups=16,
        attention_head_dim=4,  # in this class the NUMBER of heads
    )


def assemble(
    text_encoder: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    autoencoder: nn.Module,
    denoiser: nn.Module,
) -> StableDiffusionPipeline:
    """Put the parts into a StableDiffusionPipeline with a DDIM scheduler (epsilon prediction, no
    clipping).
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        num_train_timesteps=TRAINING_STEPS,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **SCHEDULE,
    )
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def alphas_cumprod() -> Tensor:
    """Cumulative product of alphas, float64 [1000], of Stable Diffusion's scaled-linear
    schedule.
    """
    first, last = SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5
    root = torch.linspace(first, last, TRAINING_STEPS, dtype=torch.float64)
    return torch.cumprod(1 - root**2, dim=0)


def fit_denoiser(
    denoiser: nn.Module,
    latents: Tensor,
    embeds: Tensor,
    caption_of: Tensor,
    null: Tensor,
    settings: FitSettings,
    dropout: float = 0.1,
    trainer: Trainer | None = None,
) -> Iterator[FitStep]:
    """Train the denoiser: E || noise - prediction ||^2 (Han et al., stage one, with a frozen text
    encoder).

    latents: scaled, [N, 4, h, w]; embeds: distinct caption embeddings [M, L, D]; caption_of: [N]
    rows of `embeds`;
    null: embedding [1, L, D] of the empty prompt, used with probability `dropout` (classifier-free
    guidance).
    """
    trainer, device = trainer or Trainer(denoiser, settings), device_of(denoiser)

    def loss(step: int) -> Tensor:
        rows = batch_indices(settings.seed, step, len(latents), settings.batch_size)
        rng = torch_rng(settings.seed, Stream.DENOISER, step)
        words = embeds[caption_of[rows]]
        *inputs, noise = denoising_task(latents[rows], words, null, dropout, rng, device=device)
        return F.mse_loss(denoiser(*inputs).sample, noise)

    yield from trainer.run(loss)


def denoising_task(
    clean: Tensor,
    words: Tensor,
    null: Tensor,
    dropout: float,
    rng: torch.Generator,
    prediction: str = "epsilon",
    device: torch.device | str = "cpu",
    alphas: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, time steps, prompt embeddings and what to predict (`prediction_target`) of
    `clean` latents [N, 4, h, w] with prompt embeddings `words` [N, L, D], on `device`; `alphas` as
    in `diffuse`.
    """
    noisy, time, noise = add_noise(clean, rng, alphas)
    words = drop_words(words, null, dropout, rng)
    target = prediction_target(prediction, clean, noise, time, alphas)
    return noisy.to(device), time.to(device), words.to(device), target.to(device)


def diffuse(clean: Tensor, noise: Tensor, time: Tensor, alphas: Tensor | None = None) -> Tensor:
    """sqrt(a) clean + sqrt(1 - a) noise, both [N, 4, h, w], a at the time steps [N] of `alphas`
    [T], by default `alphas_cumprod()`.
    """
    alphas = alphas_cumprod() if alphas is None else alphas
    alpha = alphas.float()[time].view(-1, 1, 1, 1)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def add_noise(
    clean: Tensor, rng: torch.Generator, alphas: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents [N, 4, h, w], their time steps [N] and the noise in them; time steps are
    stratified over the batch; `alphas` as in `diffuse`.

    book/diffusion.md, Eq. (eq-forward).
    """
    steps = TRAINING_STEPS if alphas is None else len(alphas)
    noise = torch.randn(clean.shape, generator=rng)
    # Stratified time steps: the same average as uniform ones with less variance. In single
    # precision the last can round up to one, which is a step too far.
    spread = (torch.arange(len(clean)) + torch.rand(len(clean), generator=rng)) / len(clean)
    time = (spread * steps).long().clamp(max=steps - 1)
    time = time[torch.randperm(len(clean), generator=rng)]
    return diffuse(clean, noise, time, alphas), time, noise


def prediction_target(
    prediction: str, clean: Tensor, noise: Tensor, time: Tensor, alphas: Tensor | None = None
) -> Tensor:
    """What the denoiser is to predict, [N, 4, h, w]: the noise ("epsilon"), the velocity sqrt(a)
    noise - sqrt(1 - a) clean ("v_prediction", Salimans & Ho 2022), or the clean latents ("sample").
    `alphas` as in `diffuse`. Raises `SettingsError` on another word.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return clean
    if prediction == "v_prediction":
        return diffuse(noise, -clean, time, alphas)
    what = f"prediction type {prediction!r}"
    raise SettingsError(f"{what}; expected 'epsilon', 'v_prediction' or 'sample'")


def training_schedule(scheduler: Any) -> tuple[str, Tensor]:
    """What a denoiser of this diffusers scheduler predicts ("epsilon", "v_prediction" or "sample"),
    and the cumulative product of alphas float64 [T] that it is noised by; for None, "epsilon" and
    `alphas_cumprod()`.
    """
    ours = alphas_cumprod()
    if scheduler is None:
        return "epsilon", ours
    theirs = torch.as_tensor(scheduler.alphas_cumprod).double().cpu()
    # Stable Diffusion's own, which a scheduler holds in single precision, keeps its double one.
    same = theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-3, atol=1e-5)
    return scheduler.config.prediction_type, ours if same else theirs


def drop_words(embeds: Tensor, null: Tensor, dropout: float, rng: torch.Generator) -> Tensor:
    """Prompt embeddings [N, L, D], each replaced by those of the empty prompt [1, L, D] with
    probability `dropout`.
    """
    blank = torch.rand(len(embeds), generator=rng) < dropout
    return torch.where(blank.view(-1, 1, 1), null, embeds)


class Evaluations(Counter[tuple[str, str]]):
    """Denoiser evaluations in images, by (purpose, "forward" or "backward"); with guidance an image
    counts twice.
    """

    @property
    def cost(self) -> int:
        """In units of one forward pass of one image; a backward pass counts as two."""
        return sum(n if kind == "forward" else 2 * n for (_, kind), n in self.items())

    def record(self) -> dict[str, int]:
        """For JSON and tables: {"<purpose>_<kind>": images}."""
        return {f"{purpose}_{kind}": n for (purpose, kind), n in sorted(self.items())}


class Generator:
    """What the methods see of a pipeline.

    Latents are float32 [N, C, h, w], images [N, C, H, W] in [-1, 1] with the channels of the
    pipeline's autoencoder (one with `grey`: their mean); in pixel space, where `vae` is None, the
    two are one. The pipeline keeps its device (unless
    `device` is given) and its precision; none of its parameters takes gradients any more until
    `trainable_parameters` is called. In half precision, tune through `models.training.Trainer`,
    which keeps float32 master weights.

    Attributes: `denoiser`; `alphas_cumprod`: float64 [T], of `models.loading.sampling_schedule`;
    `prediction_type`: what the denoiser predicts, in the words of the pipeline's scheduler;
    `latent_shape`: (C, h, w); `scale`: pixels a side of a latent; `evaluations`:
    what the denoiser, and those of frozen copies, have computed so far, under the name in
    `purpose`.

    Raises `SettingsError` for a pipeline of another kind.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        device: str | torch.device | None = None,
        mean_latent: Tensor | None = None,
        grey: bool = False,
    ):
        if reason := unsupported(pipeline):
            raise SettingsError(reason)
        self.alphas_cumprod = sampling_schedule(pipeline.scheduler)
        self.device = torch.device(device or pipeline.device)
        self.pipeline = pipeline.to(self.device)
        self.mean_latent, self.grey = mean_latent, grey
        self.denoiser = pipeline.unet
        self.scale = pipeline.vae_scale_factor if self.vae else 1
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.prediction_type = pipeline.scheduler.config.get("prediction_type", "epsilon")
        size = pipeline.unet.config.sample_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        self.latent_shape = (pipeline.unet.config.in_channels, *size)
        self.evaluations, self.purpose = Evaluations(), "sampling"
        self._known: dict[str, Tensor] = {}

    @property
    def vae(self) -> Any:
        """The pipeline's autoencoder; None in pixel space."""
        return getattr(self.pipeline, "vae", None)

    @classmethod
    def from_pipeline(
        cls,
        pipeline: DiffusionPipeline,
        device: str | torch.device | None = None,
        grey: bool = False,
    ) -> Self:
        """The generator of a loaded pipeline; `grey` averages its colours into one channel."""
        return cls(pipeline, device, grey=grey)

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device = "cpu", local_files_only: bool = True
    ) -> Self:
        """Read a pipeline folder, or a hub name, in float32; safetensors only. The hashes of the
        weights are compared with the folder's `manifest.json`, if it has one.

        Parameters
        ----------
        folder
            Folder or hub name.
        device
            Where it shall run.
        local_files_only
            Look hub names up in diffusers' cache alone.

        Raises
        ------
        WeightsError
            No such pipeline, or a hash that differs.
        """
        from diffusers import DiffusionPipeline

        pipeline = read_pretrained(DiffusionPipeline, folder, local_files_only)
        return cls._prepared(pipeline, device, folder)

    @classmethod
    def _prepared(
        cls, pipeline: DiffusionPipeline, device: str | torch.device, folder: str | Path
    ) -> Self:
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                part.float()
                if name != "text_encoder":  # convolutions are a third faster that way on a CPU
                    part.to(memory_format=torch.channels_last)
        pipeline.set_progress_bar_config(disable=True)
        path = Path(folder).expanduser() / MEAN_LATENT
        return cls(pipeline, device, read_tensors(path)["mean"] if path.is_file() else None)

    def adapt(self, precision: Literal["fp32", "bf16", "fp16"] = "fp32", size: int = 0) -> None:
        """Compute in this precision from now on, and draw square images of `size` pixels a side (0:
        as many as before).

        Raises `SettingsError` as `resize`, and on any size of a pipeline with a mean latent.
        """
        if size and self.mean_latent is not None:
            raise SettingsError(f"image size {size}: a pipeline with a mean latent is of one size")
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                getattr(part, PRECISIONS[precision])()
        if size:
            self.resize(size)

    def resize(self, size: int) -> None:
        """Draw square images of `size` pixels a side from now on (0: as many as before).

        Raises `SettingsError` unless the denoiser can halve their latents as often as it does.
        """
        scale, levels = self.scale, self.denoiser.config.block_out_channels
        least = scale * 2 ** (len(levels) - 1)
        high, wide = (scale * side for side in self.latent_shape[1:])
        size = size or (high if high == wide else -1)
        if size % least or size < 0:
            what = f"image size {size}, and the pipeline draws {high} x {wide}"
            raise SettingsError(f"{what}; give a multiple of {least}: images are square")
        if (size, size) != (high, wide):
            self.denoiser.register_to_config(sample_size=size // scale)
            self.latent_shape = (self.latent_shape[0], size // scale, size // scale)

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write diffusers' own layout; LoRA weights are merged into the denoiser's.

        The scheduler of a learned variance is written with a fixed one: nothing here trains the
        variance, and a tuned denoiser gives another.

        half: in float16, for a smaller file. Raises `SettingsError` when `folder` holds something
        else.
        """
        denoiser = self.denoiser
        if getattr(denoiser, "peft_config", None):
            denoiser = copy.deepcopy(denoiser)
            denoiser.fuse_lora()
            denoiser.unload_lora()
        pipeline = copy.copy(self.pipeline)
        pipeline.register_modules(unet=denoiser)
        scheduler = pipeline.scheduler
        if str(scheduler.config.get("variance_type")).startswith("learned"):
            fixed = type(scheduler).from_config(scheduler.config, variance_type="fixed_small")
            pipeline.register_modules(scheduler=fixed)
        save_pipeline(folder, pipeline, self.mean_latent, half)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states float32 [N, L, D] of the frozen text encoder.

        Every distinct prompt is encoded once.
        """
        new = [text for text in dict.fromkeys(prompts) if text not in self._known]
        if new:
            self._known.update(zip(new, self.hidden_states(new), strict=True))
        return torch.stack([self._known[text] for text in prompts])

    @torch.no_grad()
    def hidden_states(self, texts: list[str]) -> Tensor:
        """Hidden states float32 [N, L, D] of the frozen text encoder, computed each time."""
        length = {"max_length": token_length(self.pipeline), "padding": "max_length"}
        if self.vae is None:  # as IFPipeline reads them
            texts = [text.lower().strip() for text in texts]
        tokens = self.pipeline.tokenizer(texts, truncation=True, return_tensors="pt", **length)
        words = ["input_ids"] if self.vae else ["input_ids", "attention_mask"]
        given = {name: tokens[name].to(self.device) for name in words}
        return self.pipeline.text_encoder(**given)[0].float()

    def predict_noise(
        self,
        latents: Tensor,
        timestep: int | Tensor,
        prompt_embeds: Tensor,
        guidance_scale: float = 1.0,
        **conditions: Any,
    ) -> Tensor:
        """Noise [N, C, h, w], or the velocity where the denoiser predicts that (`prediction_type`),
        with classifier-free guidance (a scale of 1 is one plain evaluation), at one timestep or at
        one an image `[N]`.

        book/diffusion.md, Eq. (eq-cfg).
        """
        inputs = {"latents": latents, "embeds": prompt_embeds, **conditions}
        time = torch.as_tensor(timestep, device=latents.device).expand(len(latents))
        if guidance_scale != 1.0:
            inputs = {k: torch.cat([v, v]) if _is_tensor(v) else v for k, v in inputs.items()}
            null = self.encode_prompts([""]).expand(len(latents), -1, -1)
            inputs["embeds"] = torch.cat([null, prompt_embeds])
        inputs = {k: v.to(self.denoiser.dtype) if _is_tensor(v) else v for k, v in inputs.items()}
        time = time.repeat(len(inputs["latents"]) // len(latents))
        found = self._counted(self._evaluate(time=time, **inputs)).to(latents.dtype)
        if guidance_scale == 1.0:
            return found
        without, with_prompt = found.chunk(2)
        return without + guidance_scale * (with_prompt - without)

    def _evaluate(self, latents: Tensor, time: Tensor, embeds: Tensor) -> Tensor:
        return self.denoiser(latents, time, embeds).sample[:, : latents.shape[1]]

    def _counted(self, prediction: Tensor) -> Tensor:
        count, purpose, evaluations = len(prediction), self.purpose, self.evaluations
        evaluations[purpose, "forward"] += count
        if prediction.requires_grad:
            spent = {(purpose, "backward"): count}
            prediction.register_hook(lambda gradient: evaluations.update(spent))
        return prediction

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents float32 [N, C, h, w], on the CPU, of `images` [N, C, H, W] in [-1, 1], of
        which grey ones are made coloured, or coloured ones grey, as the pipeline is.
        """
        channels = (self.vae or self.denoiser).config.in_channels
        images = images.mean(1, keepdim=True) if channels == 1 else images
        images = images.expand(-1, channels, -1, -1)
        if self.vae is None:
            return images.float().cpu()
        return encode(self.vae, images, AT_ONCE) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Images float32 [N, C, H, W] of scaled latents; differentiable, not clipped (in pixel
        space: clipped to [-1, 1]).
        """
        image = latents.float().clamp(-1, 1) if self.vae is None else self._decoded(latents)
        return image.mean(dim=1, keepdim=True) if self.grey else image

    def _decoded(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        together = CELLS_TOGETHER if latents.device.type == "cpu" else latents.numel() or 1
        parts = scaled.tensor_split(max(1, min(latents[:, 0].numel() // together, len(scaled))))
        return torch.cat([self.vae.decode(part).sample for part in parts]).float()

    def noise(self, seed: int, indices: Sequence[int]) -> Tensor:
        """Starting latents [N, C, h, w]: number `index` of the series `seed`, the same in any order
        and any batch.

        With a `mean_latent` they are sqrt(a_T) mean + sqrt(1 - a_T) z instead of z alone. Stable
        Diffusion's schedule leaves a trace of the image at its last step (a_T = 0.0047; Lin et al.
        2024), so a start of pure noise tells the denoiser that the mean image is not there, and
        brains come out too small.
        """
        rngs = [torch_rng(seed, Stream.NOISE, index) for index in indices]
        drawn = [torch.randn(self.latent_shape, generator=rng) for rng in rngs]
        return self._start(torch.stack(drawn))

    def _start(self, noise: Tensor) -> Tensor:
        noise = noise.to(self.device)
        if self.mean_latent is None:
            return noise
        last = float(self.alphas_cumprod[-1])
        return last**0.5 * self.mean_latent.to(self.device) + (1 - last) ** 0.5 * noise

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        rng: int | torch.Generator | None = None,
        *,
        noise: Tensor | None = None,
        steps: int = 20,
        guidance_scale: float = 4.0,
        micro_batch: int | None = None,
        solver: Callable[..., Solver] = dpm_solver_2m,
        **conditions: Any,
    ) -> Tensor:
        """Images float32 [N, C, H, W] in [-1, 1], one for each of `prompts`.

        Parameters
        ----------
        prompts
            One an image.
        rng
            A seed (the images are then those of `noise(seed, range(N))`) or a random number
            generator.
        noise
            In place of `rng`: starting latents `[N, C, h, w]`.
        steps
            Of the solver.
        guidance_scale
            Of classifier-free guidance (1: none).
        micro_batch
            At most so many images at once; results do not depend on it.
        solver
            `models.solvers.dpm_solver_2m` or `ddim`.
        conditions
            For `predict_noise`; tensors have one row an image.

        Raises
        ------
        SettingsError
            Both or neither of `rng` and `noise`, or other lengths.
        """
        count = len(prompts)
        if (rng is None) == (noise is None):
            raise SettingsError("give either `rng`, a seed or generator, or `noise`")
        if isinstance(rng, torch.Generator):
            shape = (count, *self.latent_shape)
            noise = self._start(torch.randn(shape, generator=rng, device=rng.device))
        elif rng is not None:
            noise = self.noise(rng, range(count))
        rowwise = {k: v for k, v in {"noise": noise, **conditions}.items() if _is_tensor(v)}
        rowwise = {name: value.to(self.device) for name, value in rowwise.items()}
        lengths = {name: len(value) for name, value in rowwise.items()}
        if not count or set(lengths.values()) != {count}:
            raise SettingsError(f"{count} prompts, but rows of {lengths}; give one an image")
        scheme = solver(self.alphas_cumprod, steps, prediction_type=self.prediction_type)
        images = []
        for rows in torch.arange(count, device=self.device).split(micro_batch or count):
            embeds = self.encode_prompts([prompts[row] for row in rows])
            given = conditions | {name: value[rows] for name, value in rowwise.items()}
            start = given.pop("noise")
            given |= {"prompt_embeds": embeds, "guidance_scale": guidance_scale}
            predict = partial(self.predict_noise, **given)
            images.append(self.decode(scheme.run(predict, start)).clamp(-1, 1))
        return torch.cat(images)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The denoiser's parameters to tune, made to take gradients: its LoRA weights when it has
        some, else all.
        """
        named = dict(self.denoiser.named_parameters())
        chosen = {name: p for name, p in named.items() if "lora_" in name} or named
        return {name: p.requires_grad_(True) for name, p in chosen.items()}

    def add_lora(self, rank: int, seed: int = 0) -> None:
        """Give the denoiser's attention and convolutions LoRA weights (peft) that change nothing at
        the start.

        Of the two factors one is zero and the other drawn from `seed`. A denoiser that has LoRA
        weights of this rank keeps them as they are; `SettingsError` when theirs is another.
        """
        from peft import LoraConfig

        held = getattr(self.denoiser, "peft_config", {}).get("default")
        if held is not None:
            if held.r != rank:
                what = f"this generator has LoRA weights of rank {held.r}"
                raise SettingsError(f"{what}; a run of rank {rank} needs a fresh one")
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.denoiser.add_adapter(
                LoraConfig(
                    r=rank,
                    lora_alpha=rank,
                    init_lora_weights="gaussian",
                    target_modules=LORA_LAYERS,
                )
            )

    def frozen_copy(self) -> Generator:
        """The same model with a denoiser of its own, which no optimiser knows.

        The other parts are shared, and `evaluations`, where it counts as "frozen".
        """
        twin = copy.copy(self)
        twin.denoiser = copy.deepcopy(self.denoiser).requires_grad_(False).eval()
        twin.purpose = "frozen"
        return twin


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def save_pipeline(
    folder: str | Path,
    pipeline: DiffusionPipeline,
    mean_latent: Tensor | None = None,
    half: bool = True,
) -> None:
    """Write the pipeline's own folder layout with safetensors, and the mean latent [C, h, w] beside
    it, whole or not at all; the pipeline itself stays as it is.

    half: in float16. A pipeline that is in `folder` is replaced, with everything beside it. Raises
    `SettingsError` when `folder` holds something else.
    """
    folder = Path(folder).expanduser()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise SettingsError(f"{folder} holds something that is no pipeline; choose another folder")
    if half:
        pipeline = copy.deepcopy(pipeline)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.half()
    with atomic_folder(folder) as place:
        pipeline.save_pretrained(place, safe_serialization=True)
        if mean_latent is not None:
            write_tensors(place / MEAN_LATENT, {"mean": mean_latent})
