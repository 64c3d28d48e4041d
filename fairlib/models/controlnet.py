"""ControlNet on the small base: a real StableDiffusionControlNetPipeline whose hearts follow a
mask.

`DiffusionPipeline.from_pretrained("weights/heart")` works in anyone's code; `ControlledGenerator`
is the thin view of it. ControlNet: Zhang et al. 2023, section 3; its use on cardiac MR: Skorupko et
al., section on the generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import DataError, WeightsError
from fairlib.models.generator import (
    Generator,
    denoising_task,
    training_schedule,
)
from fairlib.models.loading import read_pretrained, unsupported
from fairlib.models.training import (
    FitSettings,
    FitStep,
    Trainer,
    device_of,
    rows_of_step,
    same_length,
)
from fairlib.rng import Stream, torch_rng

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionControlNetPipeline

# each after the first halves the grid: 64 x 64 masks meet 16 x 16 latents
CONDITION_CHANNELS = (16, 32, 64)


def build_controlnet(denoiser: nn.Module) -> nn.Module:
    """A ControlNetModel that starts as a copy of the denoiser's encoder and adds nothing to its
    prediction.

    The convolutions that lead back into the denoiser are zero at the start. The small network that
    reads the three-channel control image has `CONDITION_CHANNELS`.
    """
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(
        denoiser, conditioning_embedding_out_channels=CONDITION_CHANNELS, conditioning_channels=3
    )


def attach(pipeline: DiffusionPipeline, controlnet: nn.Module) -> StableDiffusionControlNetPipeline:
    """The StableDiffusionControlNetPipeline of a StableDiffusionPipeline's parts and a
    ControlNet.
    """
    from diffusers import StableDiffusionControlNetPipeline

    return StableDiffusionControlNetPipeline(
        **pipeline.components, controlnet=controlnet, requires_safety_checker=False
    )


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
    added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return denoiser(latents, time, prompt_embeds, **added).sample


def fit_controlnet(
    denoiser: nn.Module,
    controlnet: nn.Module,
    latents: Tensor,
    control: Tensor,
    embeds: Tensor,
    caption_of: Tensor,
    null: Tensor,
    settings: FitSettings,
    weights: ArrayLike | None = None,
    dropout: float = 0.1,
    trainer: Trainer | None = None,
    scheduler: Any = None,
) -> Iterator[FitStep]:
    """Train the ControlNet in place; the denoiser is locked and stays as it is.

    Minimises E || noise - prediction(noisy latents, time, prompt, control image) ||^2; where the
    denoiser predicts velocity, that stands in for the noise.

    latents: scaled, [N, 4, h, w]; control: [N, 3, H, W] in [0, 1], one a row of `latents`; embeds:
    distinct prompt embeddings [M, L, D]; caption_of: [N] rows of `embeds`; null: embedding [1, L,
    D] of the empty prompt, used with probability `dropout`. `weights` [N] (see
    `methods.group_weights.balancing_weights`) draws rows in proportion, with replacement; else
    every row comes once an epoch. scheduler: of the denoiser's pipeline, for its noise and
    prediction type, as in `generator.training_schedule`. Raises `DataError` when the lengths
    differ.
    """
    chances = latents if weights is None else np.asarray(weights)
    same_length(latents=latents, control=control, caption_of=caption_of, weights=chances)
    prediction, alphas = training_schedule(scheduler)
    denoiser.requires_grad_(False)
    trainer, device = trainer or Trainer(controlnet, settings), device_of(controlnet)

    def loss(step: int) -> Tensor:
        rows = rows_of_step(settings, step, len(latents), weights)
        rng = torch_rng(settings.seed, Stream.CONTROLNET, step)
        words = embeds[caption_of[rows]]
        noisy, time, words, target = denoising_task(
            latents[rows], words, null, dropout, rng, prediction, device, alphas
        )
        image = control[rows].to(device)
        predicted = controlled_noise(denoiser, controlnet, noisy, time, words, image)
        return F.mse_loss(predicted, target)

    yield from trainer.run(loss)


class ControlledGenerator(Generator):
    """A `Generator` whose pipeline has a ControlNet.

    Control images: float32 [N, 3, H, W] in [0, 1], label / 3 stacked as the images are (cardiac:
    ED, ES, ED).
    """

    @property
    def controlnet(self) -> nn.Module:
        """The pipeline's ControlNet."""
        return self.pipeline.controlnet

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        local_files_only: bool = True,
        controlnet: str | Path | None = None,
    ) -> Self:
        """Read a pipeline with its ControlNet, as `Generator.load` does.

        Parameters
        ----------
        folder
            A StableDiffusionControlNetPipeline folder such as `weights/heart`; or, together with
            `controlnet`, a plain Stable Diffusion folder or hub name.
        device, local_files_only
            As in `Generator.load`.
        controlnet
            Folder or hub name of the ControlNet to attach:
            `load("stabilityai/stable-diffusion-2-1-base", controlnet="me/my-heart-controlnet")`.

        Raises
        ------
        WeightsError
            No such pipeline, no ControlNet in it, or a hash that differs.
        """
        from diffusers import ControlNetModel, DiffusionPipeline

        pipeline = read_pretrained(DiffusionPipeline, folder, local_files_only)
        if controlnet and not hasattr(pipeline, "vae"):
            raise WeightsError(f"{folder}: draws pixels; a ControlNet needs Stable Diffusion")
        if controlnet:
            second = read_pretrained(ControlNetModel, controlnet, local_files_only)
            pipeline = attach(pipeline, second)
        if not hasattr(pipeline, "controlnet"):
            raise WeightsError(f"{folder}: it has no ControlNet; name one with controlnet=")
        if reason := unsupported(pipeline):
            raise WeightsError(f"{controlnet or folder}: {reason}")
        return cls._prepared(pipeline, device, folder)

    def predict_noise(
        self,
        latents: Tensor,
        timestep: int | Tensor,
        prompt_embeds: Tensor,
        guidance_scale: float = 1.0,
        control: Tensor | None = None,
        strength: float = 1.0,
        **conditions: Any,
    ) -> Tensor:
        """Noise [N, C, h, w] with classifier-free guidance; both of its halves see the control
        image, as in the paper.

        Without `control`, or at strength 0, this is the base denoiser's prediction, and costs no
        more than that.
        """
        if control is not None and strength != 0:
            conditions |= {"control": self.fit_control(control, len(latents)), "strength": strength}
        return super().predict_noise(latents, timestep, prompt_embeds, guidance_scale, **conditions)

    def _evaluate(self, latents: Tensor, time: Tensor, embeds: Tensor, **given: Any) -> Tensor:
        if not given:
            return super()._evaluate(latents, time, embeds)
        return controlled_noise(self.denoiser, self.controlnet, latents, time, embeds, **given)

    def fit_control(self, control: Tensor, count: int) -> Tensor:
        """Control images on this device and on the pipeline's own grid (nearest neighbour: labels
        do not mix).

        Raises `DataError` when they are not `count` images of three channels in [0, 1].
        """
        if control.ndim != 4 or control.shape[:2] != (count, 3):
            raise DataError(f"control of shape {tuple(control.shape)}; expected [{count}, 3, H, W]")
        low, high = float(control.min()), float(control.max())
        if not 0 <= low <= high <= 1:
            raise DataError(f"control images from {low:g} to {high:g}; expected label / 3, 0 to 1")
        size = tuple(side * self.scale for side in self.latent_shape[-2:])
        control = control.to(self.device, torch.float32)
        return F.interpolate(control, size, mode="nearest")

    def sample(
        self,
        prompts: Sequence[str],
        rng: int | torch.Generator | None = None,
        *,
        control: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """Images [N, C, H, W] of `prompts` under `control` [N, 3, H, W]; the rest, and `strength`,
        as in `Generator.sample` and `predict_noise`.

        They lie on the grid of the control images: where the pipeline draws larger ones they are
        averaged down, as in the paper. The defaults of steps and guidance are the paper's for
        copies (it guides new combinations with 9).
        """
        images = super().sample(prompts, rng, control=control, **settings)
        if control is None or images.shape[-2:] == control.shape[-2:]:
            return images
        return F.interpolate(images, control.shape[-2:], mode="area")
