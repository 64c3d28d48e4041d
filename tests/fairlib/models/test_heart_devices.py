"""The heart's networks work where their weights lie, whatever they are given on the CPU.

Device "meta" has shapes and no numbers, and refuses a tensor of another device as a GPU does: it
tells on the processor alone what was left behind. What a network finds has to come back to the CPU,
which from "meta" is an error of its own.
"""

import pytest
import torch
from torch import nn

from fairlib.models import clip as cl
from fairlib.models.classifier import (
    CARDIAC,
    CARDIAC_SMALL,
    ClassifierSettings,
    augment,
    build_classifier,
    fit_classifier,
    predict,
    set_threshold,
)
from fairlib.models.segmenter import Segmenter, SegmenterSettings, fit_segmenter, segment
from fairlib.models.training import FitSettings
from fairlib.rng import Stream, torch_rng

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
}
PROMPTS = ["Female, healthy", "Male, healthy", "Female, heart failure", "Male, heart failure"]
IMAGES = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS, MASKS = torch.arange(8) % 2, torch.arange(4, dtype=torch.uint8).repeat(8, 2, 64, 16)
HEADS = {"female": "binary", "age": "number", "grade": ("low", "high")}
TRUTH = {"female": LABELS, "age": torch.linspace(40, 80, 8), "grade": LABELS}


class OneStep:
    """In place of a `Trainer`: the loss and its gradient once, and where they are."""

    ema = None

    def run(self, loss):
        self.loss = loss(0)
        self.loss.backward()
        yield self.loss

    def use_average(self):
        pass


def fit_tower(tower, trainer):
    return cl.fit_clip(
        tower,
        torch.zeros(8, 3, 64, 64, dtype=torch.uint8),
        PROMPTS * 2,
        FitSettings(1, 4, 1e-3),
        trainer=trainer,
    )


FITS = {
    "words": fit_tower,
    "diagnosis": lambda network, trainer: fit_classifier(
        network,
        IMAGES,
        LABELS,
        ClassifierSettings(1, 4, radius=0.5, balance=True),
        weights=torch.ones(8),
        probabilities=torch.ones(8),
        trainer=trainer,
    ),
    "segmenter": lambda network, trainer: fit_segmenter(
        network, IMAGES, MASKS, SegmenterSettings(1, 4), trainer
    ),
    "reader": lambda network, trainer: fit_classifier(
        network, IMAGES, TRUTH, ClassifierSettings(1, 4), trainer=trainer
    ),
}


def network_of(name: str, folder) -> nn.Module:
    if name == "words":
        cl.write_vocabulary(folder, cl.learn_merges(PROMPTS, count=20))
        return cl.TextTower(cl.build_clip(folder, CONFIG), PROMPTS)
    return {
        "diagnosis": lambda: build_classifier({"ill": "binary"}, CARDIAC_SMALL),
        "segmenter": lambda: Segmenter((8, 16)),
        "reader": lambda: build_classifier(HEADS, CARDIAC),
    }[name]()


@pytest.mark.parametrize("name", FITS)
def test_a_fit_takes_its_batches_to_the_network(name, tmp_path):
    trainer, network = OneStep(), network_of(name, tmp_path).to("meta")
    for _ in FITS[name](network, trainer):
        pass
    assert trainer.loss.device.type == "meta" and all(
        p.grad is not None for p in network.parameters() if p.requires_grad
    )


@pytest.mark.parametrize("name", ["segmenter", "reader"])
def test_what_a_network_finds_comes_back_to_the_processor(name, tmp_path):
    network = network_of(name, tmp_path).to("meta")
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        segment(network, IMAGES) if name == "segmenter" else predict(network, IMAGES)


# No machine of CI has a CUDA device; what "meta" cannot show, the numbers, is looked at where there
# is one.
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", FITS)
def test_on_a_gpu_they_fit_and_read(name, tmp_path):
    network = network_of(name, tmp_path).cuda()
    assert [step.step for step in FITS[name](network, None)] == [1]
    if name == "diagnosis":
        set_threshold(network, IMAGES, LABELS)
        found = predict(network, IMAGES)
        assert found.logit.device.type == found.features.device.type == "cpu"
        assert torch.equal(found.positive(), found.logit > network.threshold.cpu())
    elif name == "segmenter":
        assert (
            segment(network, IMAGES).shape == MASKS.shape
            and segment(network, IMAGES).device.type == "cpu"
        )
    elif name == "reader":
        found = predict(network, IMAGES)
        assert all(bool(one.isfinite().all()) for one in (*found.logits.values(), found.features))


# Of segmenter and classifier the augmentation too is done where the network lies.
@pytest.mark.parametrize("kind", ["mirror", "shift", "light", "none"])
def test_images_are_augmented_where_they_lie(kind):
    given = IMAGES[:, :1]
    on_cpu = augment(given, torch_rng(0, Stream.CLASSIFIER, 3), kind)
    there = augment(given.to("meta"), torch_rng(0, Stream.CLASSIFIER, 3), kind)
    assert there.device.type == "meta" and there.shape == on_cpu.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_noise_drawn_on_a_gpu_is_a_function_of_the_generator():
    images = torch.full((4, 1, 256, 256), 0.5, device="cuda")
    one, same, other = (augment(images, torch_rng(seed, 0), "light") for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    # 0.05 times a uniform number times a normal one
    assert one.std((1, 2, 3)).max() < 0.06 and one.std((1, 2, 3)).min() > 1e-4
