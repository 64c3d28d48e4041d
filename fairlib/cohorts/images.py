"""Image files of a release (JPEG, PNG) as float32 in [-1, 1], in a square of one size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fairlib.errors import DataError
from fairlib.io import to_bytes, to_images, write_bytes

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MAX_PIXELS = 1 << 26


def open_image(path: Path, mode: str = "L") -> Image.Image:
    """Open one file as a PIL image in `mode` ("L" grey, "RGB" colour).

    Raises `DataError` naming a file that cannot be decoded or is too large.
    """
    from PIL import Image

    bomb = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise DataError(f"{path}: {size} pixels; make it smaller")
            return image.convert(mode)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, *bomb) as error:
        raise DataError(
            f"{path}: cannot be decoded ({error}); fetch it again or delete it, then it is "
            "counted as missing"
        ) from error


def read_grey(path: Path, size: int) -> np.ndarray:
    """Read one image as grey float32 [size, size] in [-1, 1]: padded to a square with black, then
    resized.

    Raises `DataError` as `open_image`.
    """
    from PIL import Image

    grey = open_image(path)
    side = max(grey.size)
    square = Image.new("L", (side, side))
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    return _resized(square, size)


def read_colour(path: Path, size: int) -> np.ndarray:
    """Read one image as float32 [3, size, size] (red, green, blue) in [-1, 1]: the square in its
    middle, then resized.

    Raises `DataError` as `open_image`.
    """
    image = open_image(path, "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return _resized(square, size).transpose(2, 0, 1)


def _resized(square: Image.Image, size: int) -> np.ndarray:
    from PIL import Image

    small = square.resize((size, size), Image.Resampling.BILINEAR)
    return to_images(torch.from_numpy(np.array(small))).numpy()


def write_image(path: Path, image: Tensor) -> None:
    """Write an image, float [C, H, W] in [-1, 1] of one channel or three, as PNG."""
    from PIL import Image

    pixels = to_bytes(image).cpu().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    write_bytes(path, stream.getvalue())
