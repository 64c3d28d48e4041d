"""ControlNet on the small base: a real StableDiffusionControlNetPipeline whose hearts follow a
mask.

`DiffusionPipeline.from_pretrained("weights/heart")` works in anyone's code; `ControlledGenerator`
is the thin view of it. ControlNet: Zhang et al. 2023, section 3; its use on cardiac MR: Skorupko et
al., section on the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import DataError, SettingsError, WeightsError
from fairlib.io import read_json, read_tensors, write_tensors
from fairlib.models.generator import (
    MEAN_LATENT,
    Generator,
    assemble,
    check_hashes,
    quiet_loading,
    save_pipeline,
)
from fairlib.models.solvers import Solver, dpm_solver_2m

# each after the first halves the grid: 64 x 64 masks meet 16 x 16 latents
CONDITION_CHANNELS = (16, 32, 64)


def build_controlnet(
    denoiser: nn.Module, channels: tuple[int, ...] = CONDITION_CHANNELS
) -> nn.Module:
    """A ControlNetModel that starts as a copy of the denoiser's encoder and adds nothing to its
    prediction.

    The convolutions that lead back into the denoiser are zero at the start. `channels` are those of
    the small network that reads the three-channel control image; each after the first halves its
    grid.
    """
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(
        denoiser, conditioning_embedding_out_channels=channels, conditioning_channels=3
    )


def assemble_control(
    text_encoder: nn.Module,
    tokenizer,
    autoencoder: nn.Module,
    denoiser: nn.Module,
    controlnet: nn.Module,
):
    """Put the parts into a StableDiffusionControlNetPipeline with the scheduler of
    `models.generator.assemble`.
    """
    return attach(assemble(text_encoder, tokenizer, autoencoder, denoiser), controlnet)


def attach(pipeline, controlnet: nn.Module):
    """The StableDiffusionControlNetPipeline of a StableDiffusionPipeline's parts and a
    ControlNet.
    """
    from diffusers import StableDiffusionControlNetPipeline

    return StableDiffusionControlNetPipeline(
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        unet=pipeline.unet,
        controlnet=controlnet,
        scheduler=pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_control_pipeline(folder: str | Path, pipeline, mean_latent: Tensor | None = None) -> None:
    """Write the pipeline's own folder layout with fp16 safetensors, and the mean latent [4, h, w]
    beside it.

    The pipeline itself stays as it is.
    """
    save_pipeline(folder, pipeline)
    if mean_latent is not None:
        write_tensors(Path(folder) / MEAN_LATENT, {"mean": mean_latent})


def controlled_noise(
    denoiser: nn.Module,
    controlnet: nn.Module,
    latents: Tensor,
    time: Tensor,
    prompt_embeds: Tensor,
    control: Tensor,
    strength: float = 1.0,
) -> Tensor:
    """The denoiser's noise [N, 4, h, w] with the ControlNet's residuals, times `strength`, added to
    its skips.
    """
    down, middle = controlnet(
        latents, time, prompt_embeds, control, conditioning_scale=strength, return_dict=False
    )
    return denoiser(
        latents,
        time,
        prompt_embeds,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample


class ControlledGenerator(Generator):
    """What the methods see of a pipeline with a ControlNet.

    Latents [N, 4, h, w] fp32; images [N, 3, H, W] in [-1, 1], the channels ED, ES, ED; control
    images [N, 3, H, W] in [0, 1], label / 3 stacked in the same way. `noise` and `encode_prompts`
    are those of `Generator`.
    """

    def __init__(
        self, pipeline, device: str | torch.device = "cpu", mean_latent: Tensor | None = None
    ):
        super().__init__(pipeline, device, mean_latent)
        self.controlnet = pipeline.controlnet.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        check: bool = True,
        controlnet: str | Path | None = None,
        local_files_only: bool = True,
    ) -> ControlledGenerator:
        """Read a pipeline in fp32; a folder with a `manifest.json` has the hashes of its weights
        checked first.

        `folder`: a StableDiffusionControlNetPipeline folder such as `weights/heart`; or, together
        with `controlnet`, a plain Stable Diffusion folder or hub name, to which the ControlNet of
        that second folder or hub name is attached: `load("stabilityai/stable-diffusion-2-1-base",
        "cuda", controlnet="me/my-heart-controlnet")`. Hub names are looked up in diffusers' cache
        alone unless `local_files_only` is False. Safetensors only.

        Raises `WeightsError` when there is no such pipeline, it has no ControlNet, or a hash
        differs.
        """
        quiet_loading()
        folder = _local(folder, "model_index.json", check)
        pipeline = _read(
            folder, controlnet and _local(controlnet, "config.json", check), local_files_only
        )
        pipeline.text_encoder.float()
        for part in (pipeline.vae, pipeline.unet, pipeline.controlnet):
            part.float().to(memory_format=torch.channels_last)
        pipeline.set_progress_bar_config(disable=True)
        path = Path(folder) / MEAN_LATENT
        return cls(pipeline, device, read_tensors(path)["mean"] if path.is_file() else None)

    def predict_noise(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: Tensor,
        guidance_scale: float = 1.0,
        control: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Noise [N, 4, h, w] with classifier-free guidance; both of its halves see the control
        image, as in the paper.

        Without `control`, or at strength 0, this is the base denoiser's prediction, and costs no
        more than that.
        """
        if control is None or strength == 0:
            return super().predict_noise(latents, timestep, prompt_embeds, guidance_scale)
        control = self.fit_control(control, len(latents))
        time = torch.full((len(latents),), int(timestep), device=latents.device)
        if guidance_scale == 1.0:
            return controlled_noise(
                self.denoiser, self.controlnet, latents, time, prompt_embeds, control, strength
            )
        null = self.encode_prompts([""]).expand(len(latents), -1, -1)
        both = controlled_noise(
            self.denoiser,
            self.controlnet,
            torch.cat([latents, latents]),
            torch.cat([time, time]),
            torch.cat([null, prompt_embeds]),
            torch.cat([control, control]),
            strength,
        )
        without, with_prompt = both.chunk(2)
        return without + guidance_scale * (with_prompt - without)

    def fit_control(self, control: Tensor, count: int) -> Tensor:
        """Control images on this device and on the pipeline's own grid (nearest neighbour: labels
        do not mix).

        Raises `DataError` when they are not `count` images of three channels in [0, 1].
        """
        if control.ndim != 4 or control.shape[:2] != (count, 3):
            raise DataError(
                f"control images have the shape {tuple(control.shape)}; expected [{count}, 3, H, W]"
            )
        low, high = float(control.min()), float(control.max())
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"control images reach from {low:g} to {high:g}; expected label / 3, from 0 to 1"
            )
        size = self.latent_shape[-1] * self.pipeline.vae_scale_factor
        control = control.to(self.device, torch.float32)
        return (
            control
            if control.shape[-2:] == (size, size)
            else F.interpolate(control, (size, size), mode="nearest")
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Images [N, 3, H, W] of scaled latents, channels kept as they are; differentiable."""
        return self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor).sample

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        control: Tensor | None,
        noise: Tensor,
        steps: int = 20,
        guidance_scale: float = 4.0,
        strength: float = 1.0,
        solver: Callable[..., Solver] = dpm_solver_2m,
    ) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1] of `prompts` under `control` [N, 3, H, W], from `noise`
        [N, 4, h, w].

        They lie on the grid of the control images: where the pipeline draws larger ones they are
        averaged down, as in the paper. The defaults of steps and guidance are the paper's for
        copies (it guides new combinations with 9).
        """
        if not len(prompts) == len(noise) == (len(prompts) if control is None else len(control)):
            raise SettingsError(
                f"{len(prompts)} prompts, {len(noise)} noises, "
                f"{'no' if control is None else len(control)} control images; give one of each an "
                "image"
            )
        kind = self.pipeline.scheduler.config.prediction_type
        recipe, embeds = (
            solver(self.alphas_cumprod, steps, prediction_type=kind),
            self.encode_prompts(prompts),
        )
        latents = recipe.run(
            lambda x, t: self.predict_noise(x, t, embeds, guidance_scale, control, strength), noise
        )
        images = self.decode(latents).clamp(-1, 1)
        same = control is None or images.shape[-2:] == control.shape[-2:]
        return images if same else F.interpolate(images, control.shape[-2:], mode="area")


def _local(name: str | Path, needed: str, check: bool) -> str:
    """The name as it is, once a local folder has been seen to hold the file `needed` and the hashes
    of its manifest.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / needed).is_file():
            raise WeightsError(
                f"{folder}: no pipeline here ({needed} is missing); make it with `python -m "
                "fairlib base heart`"
            )
        if check and (folder / "manifest.json").is_file():
            check_hashes(folder)
    return str(name)


def _read(folder: str, controlnet: str | None, local: bool):
    """The pipeline with its ControlNet, through diffusers' own loading."""
    from diffusers import (
        ControlNetModel,
        StableDiffusionControlNetPipeline,
        StableDiffusionPipeline,
    )

    options = {"local_files_only": local, "use_safetensors": True}
    path = Path(folder) / "model_index.json"
    if controlnet is None and path.is_file() and "controlnet" not in read_json(path):
        raise WeightsError(f"{folder}: this pipeline has no ControlNet; name one with controlnet=")
    try:
        if controlnet is None:
            return StableDiffusionControlNetPipeline.from_pretrained(
                folder, safety_checker=None, **options
            )
        base = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **options)
        return attach(base, ControlNetModel.from_pretrained(controlnet, **options))
    except (OSError, ValueError) as error:
        place = "the local cache" if local else "the hub"
        raise WeightsError(
            f"{controlnet or folder}: no pipeline folder here and none that loads from {place} "
            f"({error}); make "
            "weights/heart with `python -m studies base heart`, or allow the hub with "
            "local_files_only=False"
        ) from error
