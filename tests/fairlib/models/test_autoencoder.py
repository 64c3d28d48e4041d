import torch

from fairlib.models.autoencoder import (
    build_autoencoder,
    encode,
    fit_autoencoder,
    reconstruction_loss,
    standardise_latents,
)
from fairlib.models.training import FitSettings


def random_images(n=8, size=32):
    return torch.randint(
        0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def tiny():
    torch.manual_seed(0)
    return build_autoencoder(channels=(8, 8))


def test_latents_are_an_eighth_of_the_grid_by_default():
    assert encode(build_autoencoder(), random_images(1, 64)).shape == (1, 4, 8, 8)


def test_the_loss_is_zero_for_equal_pictures_and_sees_edges():
    flat, step = torch.zeros(1, 1, 4, 4), torch.tensor([0.0, 0, 1, 1]).expand(1, 1, 4, 4)
    assert reconstruction_loss(step, step) == 0
    # |difference| is 1 in half of the pixels; one of the three horizontal differences is 1, no
    # vertical one
    assert torch.isclose(reconstruction_loss(step, flat), torch.tensor(0.5 + 1 / 3))


def test_standardised_latents_leave_the_pictures_as_they_were():
    autoencoder, images = tiny(), random_images()
    before = autoencoder.decode(encode(autoencoder, images)).sample
    spread = autoencoder.encode(images.float() / 127.5 - 1).latent_dist
    ratio = spread.std / spread.mean.std((0, 2, 3), keepdim=True)
    standardise_latents(autoencoder, images)
    latents = encode(autoencoder, images)
    after = autoencoder.encode(images.float() / 127.5 - 1).latent_dist
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    assert torch.allclose(autoencoder.decode(latents).sample, before, atol=1e-4)
    assert torch.allclose(after.std, ratio, rtol=1e-3)


def test_the_decoder_phase_leaves_the_latents_alone():
    autoencoder, images = tiny(), random_images()
    before = encode(autoencoder, images)
    weights = autoencoder.decoder.conv_out.weight.detach().clone()
    autoencoder.encoder.requires_grad_(False)
    autoencoder.quant_conv.requires_grad_(False)
    for _ in fit_autoencoder(autoencoder, images, FitSettings(2, 2, 1e-2, warmup=1), crop=16):
        pass
    assert torch.equal(encode(autoencoder, images), before)
    assert not torch.equal(autoencoder.decoder.conv_out.weight, weights)
