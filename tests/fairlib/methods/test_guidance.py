"""Batch guidance and null offsets against autograd, on a toy generator and a tiny pipeline."""

import math

import pytest
import torch
from torch import nn

from fairlib.errors import SettingsError
from fairlib.methods import guidance as gd
from fairlib.methods.alignment import mean_probability_kl
from fairlib.methods.targets import Target, group_shares
from fairlib.models import clip
from fairlib.models.autoencoder import build_autoencoder
from fairlib.models.generator import Generator, assemble, build_denoiser
from fairlib.models.solvers import dpm_solver_2m

TARGET = Target.shares({"F": 0.458, "M": 0.542})
THREE = Target.shares({"a": 0.2, "b": 0.3, "c": 0.5})
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 1},
}
PROMPTS = ["axial brain", "brain of a patient"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny pipeline that has not been trained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    clip.write_vocabulary(folder, clip.learn_merges(PROMPTS, count=20))
    encoder = clip.text_encoder_of(clip.build_clip(folder, CONFIG))
    tokenizer = clip.pipeline_tokenizer(folder)
    coder, denoiser = build_autoencoder((8, 8, 8, 8)), build_denoiser((16, 32), 32)
    return Generator.from_pipeline(assemble(encoder, tokenizer, coder, denoiser))


def brightness(images):
    return 1000 * (images.flatten(1).mean(1) - 0.01)


@pytest.mark.parametrize("groups", [1, 3])
def test_guiding_is_a_gradient_step_on_the_features(groups):
    weight, bias = torch.randn(2, groups, 8), torch.randn(2, groups)
    head = gd.BottleneckHead(weight, bias, torch.tensor([0.7, 2.0]), {})
    features = torch.randn(6, 2, 2, 2).requires_grad_()
    logits = head.logits(1, features)
    target, shares = (TARGET, 0.458) if groups == 1 else (THREE, [0.2, 0.3, 0.5])
    distance = mean_probability_kl(logits, torch.as_tensor(shares))
    slope = torch.autograd.grad(distance, features)[0]
    guided = head.guide(1, features.detach(), target, 0.3)
    assert logits.shape == ((6,) if groups == 1 else (6, 3))
    assert torch.allclose(guided, features - 0.3 * 6 * 4.0 * slope, atol=1e-5)
    assert torch.equal(head.guide(1, features.detach(), target, 0.0), features)


class BottleneckGenerator(nn.Module):
    """The toy generator of conftest with a bottleneck: raising it raises the size."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.denoiser = inner, nn.Module()
        self.denoiser.mid_block = nn.Identity()

    def sample(self, prompts, *, noise, steps, guidance_scale, solver, micro_batch=None):
        scheme, images = solver(self.inner.alphas_cumprod, steps), []
        for rows in torch.arange(len(noise)).split(micro_batch or len(noise)):
            embeds = self.inner.encode_prompts([prompts[row] for row in rows])

            def predict(latents, time, embeds=embeds):
                h = self.denoiser.mid_block(latents)
                return self.inner.predict_noise(2 * latents - h, time, embeds, guidance_scale)

            with torch.no_grad():
                images.append(self.inner.decode(scheme.run(predict, noise[rows])))
        return torch.cat(images)


@pytest.fixture
def bottleneck(size_generator):
    return BottleneckGenerator(size_generator)


SAMPLING = {"steps": 6, "guidance_scale": 1, "penalty": 10.0}


def test_batch_guidance_brings_the_shares_to_the_target(bottleneck, size_readers):
    prompts, fresh = ["LGG"] * 300, bottleneck.inner.noise(9, range(300))
    noise = bottleneck.inner.noise(1, range(300))
    head = gd.fit_bottleneck_head(bottleneck, size_readers[0], prompts, noise, **SAMPLING)
    assert head.weight.shape == (6, 1, 1) and (head.weight > 0).all()

    def share(strength, target=TARGET):
        images = gd.sample_batch_guided(bottleneck, prompts, fresh, head, target, strength)
        return group_shares(size_readers[0](images), target.groups)["F"]

    high = Target.shares({"F": 0.8, "M": 0.2})
    plain = bottleneck.sample(prompts, noise=fresh, **head.sampling)
    base = group_shares(size_readers[0](plain), TARGET.groups)["F"]
    shares = [share(strength, high) for strength in (0.0, 0.1, 0.3, 1.0)]
    assert shares == sorted(shares) and shares[0] == base < 0.4
    assert shares[-1] == pytest.approx(0.8, abs=0.1)
    assert share(1.0) == pytest.approx(0.458, abs=0.05)


def test_heads_are_fitted_alike_in_micro_batches(bottleneck, size_readers):
    prompts, noise = ["LGG"] * 40, bottleneck.inner.noise(1, range(40))
    whole, parts = (
        gd.fit_bottleneck_head(
            bottleneck, size_readers[0], prompts, noise, micro_batch=size, **SAMPLING
        )
        for size in (None, 7)
    )
    assert torch.allclose(whole.weight, parts.weight, rtol=1e-3)
    assert not bottleneck.denoiser.mid_block._forward_hooks
    with pytest.raises(SettingsError, match="finds 1 of 2 groups among 40 images"):
        gd.fit_bottleneck_head(bottleneck, lambda x: torch.ones(len(x)), prompts, noise, **SAMPLING)


@pytest.mark.parametrize("scale", [1, 2.0])
def test_a_pipeline_is_guided_at_its_bottleneck(tiny, scale):
    prompts, noise = [PROMPTS[0]] * 8, tiny.noise(0, range(8))
    plain = tiny.sample(prompts, noise=noise, steps=2, guidance_scale=scale)
    middle = brightness(plain).median()
    head = gd.fit_bottleneck_head(
        tiny, lambda x: brightness(x) - middle, prompts, noise, steps=2, guidance_scale=scale
    )
    assert head.weight.shape == (2, 1, 32 * 8 * 8)
    before = tiny.evaluations.cost
    held = gd.sample_batch_guided(tiny, prompts, noise, head, TARGET, 0.0)
    assert torch.equal(held, plain)
    assert tiny.evaluations.cost - before == 8 * 2 * (1 if scale == 1 else 2)
    moved = gd.sample_batch_guided(tiny, prompts, noise, head, TARGET, 5.0)
    assert not torch.equal(moved, plain)


def test_a_null_offset_moves_the_null_prompt_alone(tiny):
    direction = torch.sub(*tiny.encode_prompts(PROMPTS))[None]
    view, latents = gd.null_offset(tiny, direction, 3.0), tiny.noise(1, [0, 1])
    embeds = tiny.encode_prompts(PROMPTS)
    assert torch.equal(view.encode_prompts(PROMPTS), embeds)
    with torch.no_grad():
        null = (tiny.encode_prompts([""]) + 3 * direction).expand(2, -1, -1)
        blank = tiny.predict_noise(latents, 500, null)
        plain = tiny.predict_noise(latents, 500, embeds)
        guided = view.predict_noise(latents, 500, embeds, 2.5)
        assert torch.allclose(guided, blank + 2.5 * (plain - blank), atol=1e-5)
        assert not torch.allclose(guided, tiny.predict_noise(latents, 500, embeds, 2.5))
        assert torch.equal(view.predict_noise(latents, 500, embeds), plain)
    assert view.denoiser is tiny.denoiser


def test_the_direction_of_a_classifier_is_the_detached_gradient(tiny):
    noise, embeds = tiny.noise(2, [0, 1]), tiny.encode_prompts(PROMPTS)
    given = {"steps": 3, "guidance_scale": 2.0}
    direction = gd.classifier_direction(tiny, brightness, PROMPTS, noise, **given)
    offset = torch.zeros_like(tiny.encode_prompts([""])).requires_grad_()
    view = gd.null_offset(tiny, offset, 1.0)
    clean = dpm_solver_2m(tiny.alphas_cumprod, 3).run(
        lambda x, t: view.predict_noise(x.detach(), t, embeds, 2.0), noise
    )
    slope = torch.autograd.grad(brightness(tiny.decode(clean)).mean(), offset)[0]
    assert torch.allclose(direction, slope / slope.norm() * math.sqrt(32), atol=1e-3)
    assert not any(p.requires_grad for p in tiny.denoiser.parameters())


def test_the_strength_at_a_share_is_bisected():
    calls = []

    def share_at(strength):
        calls.append(strength)
        return 1 / (1 + math.exp(strength))

    found = gd.strength_for_share(share_at, 0.458, -4, 4, halvings=8)
    assert found == pytest.approx(math.log(0.542 / 0.458), abs=8 / 2**8) and len(calls) <= 11
    with pytest.raises(SettingsError, match="0.458 is not between the shares at 1 and at 4"):
        gd.strength_for_share(share_at, 0.458, 1, 4)
