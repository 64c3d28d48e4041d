"""The text-to-image model: a real StableDiffusionPipeline folder, small enough for two slow cores.

`DiffusionPipeline.from_pretrained("weights/brain")` works in anyone's code; `Generator` is the thin
view of it
that the methods here need: prompts to embeddings, latents to noise, latents to images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import SettingsError, WeightsError
from fairlib.io import read_json, read_tensors, sha256
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    batch_indices,
    device_of,
    generator_for,
)

TRAINING_STEPS = 1000
MEAN_LATENT = "mean_latent.safetensors"
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


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


def assemble(text_encoder: nn.Module, tokenizer, autoencoder: nn.Module, denoiser: nn.Module):
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
    root = torch.linspace(
        SCHEDULE["beta_start"] ** 0.5,
        SCHEDULE["beta_end"] ** 0.5,
        TRAINING_STEPS,
        dtype=torch.float64,
    )
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
        chance = generator_for(settings.seed, 3, step)
        noisy, time, noise = add_noise(latents[rows], chance)
        words = drop_words(embeds[caption_of[rows]], null, dropout, chance)
        return F.mse_loss(
            denoiser(noisy.to(device), time.to(device), words.to(device)).sample, noise.to(device)
        )

    yield from trainer.run(loss)


def add_noise(clean: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents [N, 4, h, w], their time steps [N] and the noise in them; time steps are
    stratified over the batch.
    """
    noise = torch.randn(clean.shape, generator=chance)
    # Stratified time steps: the same average as uniform ones with less variance. In single
    # precision the last can round up to one, which is a step too far.
    spread = (torch.arange(len(clean)) + torch.rand(len(clean), generator=chance)) / len(clean)
    time = (
        (spread * TRAINING_STEPS)
        .long()
        .clamp(max=TRAINING_STEPS - 1)[torch.randperm(len(clean), generator=chance)]
    )
    alpha = alphas_cumprod().float()[time].view(-1, 1, 1, 1)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, time, noise


def drop_words(embeds: Tensor, null: Tensor, dropout: float, chance: torch.Generator) -> Tensor:
    """Prompt embeddings [N, L, D], each replaced by those of the empty prompt [1, L, D] with
    probability `dropout`.
    """
    blank = torch.rand(len(embeds), generator=chance) < dropout
    return torch.where(blank.view(-1, 1, 1), null, embeds)


class Generator:
    """What the methods see of a pipeline. Latents [N, 4, h, w] fp32; images [N, 1, H, W] in [-1,
    1].

    `prediction_type`: what the denoiser predicts, in the words of the pipeline's scheduler; the
    solvers want to know it.
    """

    def __init__(
        self, pipeline, device: str | torch.device = "cpu", mean_latent: Tensor | None = None
    ):
        self.mean_latent = mean_latent
        self.pipeline, self.device = pipeline.to(device), torch.device(device)
        self.denoiser = pipeline.unet
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            part.requires_grad_(False).eval()
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod.double()
        self.prediction_type = pipeline.scheduler.config.prediction_type
        size = pipeline.unet.config.sample_size
        self.latent_shape = (pipeline.unet.config.in_channels, size, size)
        self._known: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device = "cpu", check: bool = True
    ) -> Generator:
        """Read a pipeline folder in fp32. With a `manifest.json` the hashes of its weights are
        checked first.

        Raises `WeightsError` when the folder is not there or a hash differs.
        """
        from diffusers import StableDiffusionPipeline

        quiet_loading()
        folder = Path(folder)
        if not (folder / "model_index.json").is_file():
            raise WeightsError(
                f"{folder}: no pipeline here (model_index.json is missing); make it with `make "
                "base`"
            )
        if check and (folder / "manifest.json").is_file():
            check_hashes(folder)
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, safety_checker=None
        )
        pipeline.text_encoder.float()
        for part in (pipeline.vae, pipeline.unet):
            # convolutions here are a third faster that way
            part.float().to(memory_format=torch.channels_last)
        pipeline.set_progress_bar_config(disable=True)
        mean = (
            read_tensors(folder / MEAN_LATENT)["mean"] if (folder / MEAN_LATENT).is_file() else None
        )
        return cls(pipeline, device, mean)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Hidden states [N, L, D] of the frozen text encoder.

        Every distinct prompt is encoded once.
        """
        new = [text for text in dict.fromkeys(prompts) if text not in self._known]
        if new:
            tokens = self.pipeline.tokenizer(
                new,
                padding="max_length",
                truncation=True,
                return_tensors="pt",
                max_length=self.pipeline.tokenizer.model_max_length,
            )
            hidden = self.pipeline.text_encoder(tokens.input_ids.to(self.device))[0]
            self._known.update(zip(new, hidden, strict=True))
        return torch.stack([self._known[text] for text in prompts])

    def predict_noise(
        self, latents: Tensor, timestep: int, prompt_embeds: Tensor, guidance_scale: float = 1.0
    ) -> Tensor:
        """Noise [N, 4, h, w], or the velocity where the denoiser predicts that (`prediction_type`),
        with classifier-free guidance (a scale of 1 is one plain evaluation).
        """
        time = torch.full((len(latents),), int(timestep), device=latents.device)
        if guidance_scale == 1.0:
            return self.denoiser(latents, time, prompt_embeds).sample
        null = self.encode_prompts([""]).expand(len(latents), -1, -1)
        both = self.denoiser(
            torch.cat([latents, latents]), torch.cat([time, time]), torch.cat([null, prompt_embeds])
        ).sample
        without, with_prompt = both.chunk(2)
        return without + guidance_scale * (with_prompt - without)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [N, 1, H, W] of scaled latents; differentiable. Grey images are the mean of what
        the decoder gives.
        """
        image = self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor).sample
        return image.mean(dim=1, keepdim=True) if image.shape[1] > 1 else image

    def noise(self, seed: int, indices: list[int]) -> Tensor:
        """Starting latents [N, 4, h, w]: number `index` of the bank `seed`, the same in any order
        and any batch.

        With a `mean_latent` they are sqrt(a_T) mean + sqrt(1 - a_T) z instead of z alone. Stable
        Diffusion's schedule leaves a trace of the image at its last step (a_T = 0.0047; Lin et al.
        2024), so a start of pure noise tells the denoiser that the mean image is not there, and
        brains come out too small.
        """
        drawn = [
            torch.randn(self.latent_shape, generator=generator_for(seed, 11, index))
            for index in indices
        ]
        noise = torch.stack(drawn).to(self.device)
        if self.mean_latent is None:
            return noise
        last = float(self.alphas_cumprod[-1])
        return last**0.5 * self.mean_latent.to(self.device) + (1 - last) ** 0.5 * noise

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
                raise SettingsError(
                    f"this generator has LoRA weights of rank {held.r}; a run of rank {rank} needs "
                    "a fresh one"
                )
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.denoiser.add_adapter(
                LoraConfig(
                    r=rank,
                    lora_alpha=rank,
                    init_lora_weights="gaussian",
                    target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"],
                )
            )

    def frozen_copy(self) -> Generator:
        """The same model with a denoiser of its own, which no optimiser knows; the other parts are
        shared.
        """
        twin = copy.copy(self)
        twin.denoiser = copy.deepcopy(self.denoiser).requires_grad_(False).eval()
        return twin


def quiet_loading() -> None:
    """No progress bars while loading: in a notebook each would leave a widget behind, for a
    fraction of a second's work.
    """
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def check_hashes(folder: str | Path) -> None:
    """Compare the weights in `folder` with its manifest.

    Raises `WeightsError` naming the file that differs.
    """
    folder = Path(folder)
    for name, wanted in read_json(folder / "manifest.json")["files"].items():
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder / name}: named in manifest.json but not there; fetch the folder again or "
                "`make base`"
            )
        if sha256(folder / name) != wanted:
            raise WeightsError(
                f"{folder / name}: its hash is not that of manifest.json; fetch it again or `make "
                "base`"
            )


def save_pipeline(folder: str | Path, pipeline) -> None:
    """Write the pipeline's own folder layout with fp16 safetensors; the pipeline itself stays as it
    is.
    """
    twin = copy.deepcopy(pipeline)
    for part in twin.components.values():
        if isinstance(part, nn.Module):
            part.half()
    twin.save_pretrained(folder, safe_serialization=True)
