"""List the files of a release, say what is not there, and read its JPEG and PNG images as squares
of one size: every reader looks for its files here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from fairlib.errors import DataError
from fairlib.io import to_images

T = TypeVar("T")
Excluded = tuple[str, str, str]  # item, reason, detail
MAX_PIXELS = 1 << 26


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """The files and folders in `folder` whose names match `pattern`, sorted; none where it is not
    a folder.

    Hidden ones are left out (macOS writes a `._x.jpg` beside each `x.jpg` on other disks), and so
    is `__MACOSX`, which it puts into archives.
    """
    paths = sorted(folder.glob(pattern)) if folder.is_dir() else []
    return [path for path in paths if not path.name.startswith(".") and path.name != "__MACOSX"]


def folders(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted, as `listed` lists them."""
    return [path for path in listed(folder) if path.is_dir()]


def by_name(root: Path, parts: Mapping[str, Sequence[Path]]) -> dict[str, tuple[str, Path]]:
    """Index the paths of every part by name: name -> (part, path).

    Raises `DataError` naming the first that lies in two parts.
    """
    found: dict[str, tuple[str, Path]] = {}
    for part, paths in parts.items():
        for path in paths:
            if path.name in found:
                raise DataError(
                    f"{root}: {path.name} lies in {found[path.name][0]} and {part}; a subject is "
                    "in one part only, so remove one of them"
                )
            found[path.name] = (part, path)
    return found


def first_of(paths: Iterable[Path], error: DataError) -> Path:
    """The first of `paths` that exists. Raises `error` when there is none."""
    for path in paths:
        if path.exists():
            return path
    raise error


def only(folder: Path, pattern: str, remedy: str) -> Path:
    """The one file in `folder` that matches `pattern`.

    Raises `DataError` when there is none, or more than one.
    """
    paths = listed(folder, pattern)
    if len(paths) != 1:
        names = f" ({', '.join(path.name for path in paths)})" if paths else ""
        what = f"{len(paths) or 'none'} of the files match {pattern}{names}, expected one"
        raise missing(folder, what, remedy)
    return paths[0]


def missing(where: str | Path, what: str, remedy: str) -> DataError:
    """The error for what a release does not hold: where it was looked for, what, and what to do."""
    return DataError(f"{where}: {what}; {remedy}")


def require_some(
    kept: Sized, excluded: Sequence[Excluded], where: str | Path, what: str, remedy: str
) -> None:
    """Raise `DataError` when every one of the `what` was excluded, with the first reason."""
    if not len(kept):
        raise missing(
            where, f"none of the {len(excluded)} {what} can be used, such as {excluded[:1]}", remedy
        )


def tracked(items: Iterable[T], progress: Callable[[int, int], None] | None) -> Iterator[T]:
    """Yield `items`, and call `progress(done, total)` after each."""
    items = list(items)
    for done, item in enumerate(items, 1):
        yield item
        if progress is not None:
            progress(done, len(items))


def open_image(path: Path, mode: str = "L") -> Image.Image:
    """Open one file as a PIL image in `mode` ("L" grey, "RGB" colour).

    Raises `DataError` naming a file that cannot be decoded or is too large.
    """
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
    small = square.resize((size, size), Image.Resampling.BILINEAR)
    return to_images(torch.from_numpy(np.array(small))).numpy()
