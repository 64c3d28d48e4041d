"""Pictures kept once drawn, on disk (one safetensors file a subject) or in memory: no volume is
opened twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fairlib.cohorts.slices import CONTRASTS, SIDES, SliceSettings, SubjectSlices
from fairlib.errors import DataError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.settings import digest

FORMAT = 1  # raise it when slices.py draws otherwise


def cache_path(
    folder: str | Path, subject: str, files: Iterable[Path], settings: SliceSettings
) -> Path:
    """Where the pictures of a subject lie: the name changes with the settings and with any file's
    size or time.
    """
    marks = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return Path(folder) / f"{subject}.{digest([FORMAT, settings, marks])}.safetensors"


@dataclass
class SliceStore:
    """Holds the pictures of many subjects; called with an image key, it returns one float32 [size,
    size].
    """

    folder: Path | None
    settings: SliceSettings
    _source: dict[str, Path | np.ndarray] = field(default_factory=dict, repr=False)

    def add(
        self, subject: str, files: Iterable[Path], make: Callable[[], SubjectSlices]
    ) -> SubjectSlices:
        """The slices of `subject`, from the cache or, when it has none or a broken file, from
        `make()`.
        """
        if self.folder is None:
            slices = make()
            self._source[subject] = slices.images
            return slices
        path = cache_path(self.folder, subject, files, self.settings)
        self._source[subject] = path
        return _load(path) or _save(path, make())

    def __call__(self, key: str) -> np.ndarray:
        """`key` is "subject/contrast/number", number counting the chosen slices from 0."""
        subject, contrast, number = key.rsplit("/", 2)
        source, where = self._source[subject], (int(number), CONTRASTS.index(contrast))
        return source[where] if isinstance(source, np.ndarray) else _read_one(source, *where)


def image_key(subject: str, contrast: str, number: int) -> str:
    """The key of one picture in a `SliceStore`."""
    return f"{subject}/{contrast}/{number}"


def _read_one(path: Path, number: int, contrast: int) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_slice("images")[number : number + 1, contrast : contrast + 1][0, 0]
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path}: cached slices are gone or broken ({error}); read the cohort again"
        ) from error


def _save(path: Path, slices: SubjectSlices) -> SubjectSlices:
    import torch

    sides = [SIDES.index(side) for side in slices.side]
    write_tensors(
        path,
        {
            "images": torch.from_numpy(slices.images),
            "index": torch.tensor(slices.index),
            "side": torch.tensor(sides),
            "cropped": torch.tensor(slices.cropped),
        },
    )
    return slices


def _load(path: Path) -> SubjectSlices | None:
    if not path.exists():
        return None
    try:
        kept = read_tensors(path)
    except WeightsError:  # a broken cache is no cache
        return None
    sides = tuple(SIDES[code] for code in kept["side"].tolist())
    return SubjectSlices(
        kept["images"].numpy(), tuple(kept["index"].tolist()), sides, bool(kept["cropped"])
    )
