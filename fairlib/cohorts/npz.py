"""Arrays out of npz files from elsewhere, never through pickle: type and size are read before any
data are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from fairlib.errors import DataError

MAX_BYTES = 1 << 27  # of one array
BROKEN = (
    OSError,
    BadZipFile,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    zlib.error,
)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(
    path: str | Path, needed: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The arrays `needed` (all must be there) and `optional` (those that are there); no other one
    is opened.

    Raises one `DataError` that names the file: missing, no npz, broken, an array missing, too
    large, or of pickled objects.
    """
    try:
        with ZipFile(path) as archive:
            there = {name.removesuffix(".npy") for name in archive.namelist()}
            missing = [name for name in needed if name not in there]
            if missing:
                raise DataError(
                    f"{path}: has no array {missing[0]!r}, only {sorted(there)}; take it from its "
                    "release again"
                )
            return {
                name: _read(path, archive, name)
                for name in [*needed, *(name for name in optional if name in there)]
            }
    except BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: cannot be read as npz ({error}); take the file from its release again"
        ) from error


def _read(path: str | Path, archive: ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise DataError(
                f"{path}: array {name!r} has npy version {version}; save it again with numpy.savez"
            )
        shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise DataError(
            f"{path}: array {name!r} holds pickled objects, and unpickling runs whatever code the "
            "file carries; "
            "it is not opened: save it again as numbers or plain text"
        )
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise DataError(
            f"{path}: array {name!r} of shape {shape} is larger than {MAX_BYTES >> 20} MiB; check "
            "the file"
        )
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
