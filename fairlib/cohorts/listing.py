"""List the files of a release, say what is not there, and read its JPEG and PNG images as squares
of one size: every reader looks for its files here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from fairlib.errors import DataError, FairlibError
from fairlib.io import to_images, what_it_is

T = TypeVar("T")
Excluded = tuple[str, str, str]  # item, reason, detail
FAULTY = "missing or broken files"  # why a subject is left out whom a reader else refuses
MAX_PIXELS = 1 << 26
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
WHITE = (255, 1023, 4095, 16383, 32767, 65535)  # of 8, 10, 12, 14, 15 and 16 bits
END_OF = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # an image's first bytes -> its last
NEAR, LOOKED_INTO = 0.75, 100  # how alike two names are; folders that are searched


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
                what = f"{root}: {path.name} lies in {found[path.name][0]} and {part}"
                raise DataError(f"{what}; a subject is in one part only, so remove one of them")
            found[path.name] = (part, path)
    return found


def first_of(paths: Iterable[Path], error: DataError) -> Path:
    """The first of `paths` that exists. Raises `error` when there is none."""
    for path in paths:
        if path.exists():
            return path
    raise error


def only(folder: Path, pattern: str, remedy: str, paths: Sequence[Path] | None = None) -> Path:
    """The one file in `folder` that matches `pattern`; or the one of `paths` below it that do.

    Raises `DataError` when there is none, or more than one.
    """
    paths = listed(folder, pattern) if paths is None else paths
    if len(paths) != 1:
        there = ", ".join(path.relative_to(folder).as_posix() for path in paths)
        names = f" ({there})" if there else ""
        what = f"{len(paths) or 'none'} of the files match {pattern}{names}, expected one"
        raise missing(folder, what, remedy, *[pattern] * (not paths))
    return paths[0]


def missing(where: str | Path, what: str, remedy: str, *names: str) -> DataError:
    """The error for what a release does not hold: where it was looked for, what, and what to do.

    names: what was looked for (a file, folder or pattern); the message says which names near to it
    there are. Where `where` itself is missing, it says that, and what is there instead.
    """
    folder = Path(where)
    if names and not folder.exists():
        while not folder.parent.is_dir() and folder != folder.parent:
            folder = folder.parent
        names, folder = (folder.name,), folder.parent
        what = f"{what}: there is no {names[0]} in {folder}"
    return DataError(f"{where}: {what}{nearest(folder, *names)}; {remedy}")


def nearest(folder: Path, *names: str) -> str:
    """Say which files and folders in `folder`, or one level down, are called nearly like `names`:
    the same name deeper, in another case, with another ending, or with a few other letters.

    names: of files or folders, or patterns. Returns " (there is ...)", or "" where there is none.
    """
    found: dict[str, float] = {}
    try:
        here = listed(folder)
        inner = islice(filter(Path.is_dir, here), LOOKED_INTO)
        for path in [*here, *(path for one in inner for path in listed(one))]:
            if likeness := max(_likeness(path.name.lower(), name.lower()) for name in names):
                found[path.relative_to(folder).as_posix() + "/" * path.is_dir()] = likeness
    except (OSError, ValueError):  # a folder that may not be read, or no names
        return ""
    least = min(2, max(found.values(), default=0))  # letters matter where nothing else is there
    best = sorted(label for label, likeness in found.items() if likeness >= least)[:3]
    return f" (there is {', '.join(best)})" if best else ""


def _likeness(name: str, wanted: str) -> float:
    """From 0 (another name) to 3 (the same one); `wanted` may be a pattern."""
    if fnmatchcase(name, wanted):
        return 3
    if _stem(wanted).strip("*") and fnmatchcase(_stem(name), _stem(wanted)):
        return 2
    if re.sub(r"\d", "", name) == re.sub(r"\d", "", wanted):  # another number
        return 0
    alike = difflib.SequenceMatcher(None, name, wanted.replace("*", ""))
    ratio = alike.ratio() if alike.quick_ratio() >= NEAR else 0
    return ratio if ratio >= NEAR else 0


def _stem(name: str) -> str:
    """A name without its ending; `.nii.gz` and the like are one."""
    start = name.rstrip("*").removesuffix(".gz")
    return start.rpartition(".")[0] or start


def require_some(
    kept: Sized, excluded: Sequence[Excluded], where: str | Path, what: str, remedy: str, *near: str
) -> None:
    """Raise `DataError` when every one of the `what` was excluded, with the first reason; `near`
    are names for `missing`.
    """
    if not len(kept):
        text = f"none of the {len(excluded)} {what} can be used, such as {excluded[:1]}"
        raise missing(where, text, remedy, *near)


def attempt(make: Callable[[], T], faults: dict[str, FairlibError], item: str) -> T | None:
    """What `make` returns; None when it raises, and then the error stands under `item` in
    `faults`.
    """
    try:
        return make()
    except FairlibError as error:
        faults[item] = error
        return None


def refuse_all(where: str | Path, faults: Mapping[str, FairlibError], remedy: str = "") -> None:
    """Raise the faults of all items as one error; nothing when there are none."""
    errors = list(faults.values())
    if len(errors) == 1:
        raise errors[0]
    if errors:
        head = f"{where}: {len(errors)} faults{remedy and f'; {remedy}'}:"
        raise DataError("\n  ".join(map(str, [head, *errors])))


def attempt_all(where: str | Path, makes: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """What each of `makes` returns; when some raise, one error names all their faults."""
    faults: dict[str, FairlibError] = {}
    made = {name: attempt(make, faults, name) for name, make in makes.items()}
    refuse_all(where, faults)
    return {name: value for name, value in made.items() if value is not None}


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
    try:
        with Image.open(path) as image:
            _require_readable(path, image)
            return (_as_8_bit(image) if image.mode.startswith("I") else image).convert(mode)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, *BOMB) as error:
        with path.open("rb") if path.is_file() else nullcontext() as file:
            kind = what_it_is(file.read(64)) if file else ""
        kind = kind and f"is {kind}"
        raise DataError(
            f"{path}: {kind or f'cannot be decoded ({error})'}; fetch it again or delete it, then "
            "it is counted as missing"
        ) from error


def broken_image(path: Path) -> str:
    """Why one image cannot be read, "" where nothing speaks against it.

    Its header is read, and the whole image only where the file does not end as it should: quick
    enough for every image of a release.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(max(0, path.stat().st_size - 64))
            whole = END_OF.get(start, b"\0no") in file.read()
        if whole:
            with Image.open(path) as image:
                _require_readable(path, image)
        else:
            open_image(path)
    except (DataError, OSError, ValueError, *BOMB) as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def faulty_images(paths: Mapping[str, Path]) -> list[Excluded]:
    """Which of the images `{item: path}` are left out, and why: not there, or broken."""
    excluded = []
    for item, path in paths.items():
        if not path.is_file():
            excluded.append((item, "image missing", str(path)))
        elif reason := broken_image(path):
            excluded.append((item, "image broken", f"{path}: {reason}"))
    return excluded


def _require_readable(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise DataError(f"{path}: {size} pixels; make it smaller")
    if image.mode == "F":
        remedy = "say which value is white: save it with 8 or 16 bits"
        raise DataError(f"{path}: its greys are fractions (mode F); {remedy}")


def _as_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 10 to 16 bits as 8: white is the largest value of the fewest bits that hold all."""
    grey = np.asarray(image).astype(np.int64)
    white = next((value for value in WHITE if grey.max() <= value), None)
    if white is None or grey.min() < 0:
        raise ValueError(f"greys from {grey.min()} to {grey.max()}; at most 16 bits are read")
    return Image.fromarray(np.round(grey * (255 / white)).astype(np.uint8))


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


def read_file(
    read: Callable[[Path, int], np.ndarray], file_of: Callable[[str], Path], size: int, key: str
) -> np.ndarray:
    """The image `key` of a cohort: the file that `file_of` names, by `read_grey` or
    `read_colour`.
    """
    return read(file_of(key), size)


def _resized(square: Image.Image, size: int) -> np.ndarray:
    small = square.resize((size, size), Image.Resampling.BILINEAR)
    return to_images(torch.from_numpy(np.array(small))).numpy()
