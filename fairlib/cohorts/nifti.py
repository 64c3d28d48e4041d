"""Read a NIfTI-1 file whole and checked, or refuse it with one `CorruptScan` that says why and what
to do.

nibabel alone decodes most single-bit flips of a gzip volume into wrong data without a word,
allocates what a forged header asks for, and loads NaN affines. Here the gzip stream is read to its
end, so that its CRC-32 counts.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from fairlib.cohorts.nifti_affine import read_affine
from fairlib.errors import CorruptScan

MAX_VOXELS = 1 << 25  # a BraTS volume has 8.9 million
MAX_SERIES_VOXELS = 1 << 27  # 512 x 512 x 15 x 30 are 118 million
HEADER, DATA_START, DATA_LATEST = 348, 352, 1 << 20
DEFLATE_LIMIT = 1032  # no deflate stream expands further (zlib's technical notes)
DTYPES = frozenset(np.dtype(name) for name in ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"))
BRATS_LABELS = frozenset({0, 1, 2, 4})


def read_volume(path: str | Path, max_voxels: int = MAX_VOXELS) -> tuple[np.ndarray, np.ndarray]:
    """Read one 3-D image: (float32 [X, Y, Z], affine float64 [4, 4] from voxel to mm, RAS).

    `.nii` or `.nii.gz`, as the name says; the affine is that of `nifti_affine.read_affine`. Raises
    `CorruptScan` on
    anything that cannot be trusted: broken gzip or checksum, impossible or oversized shape, length
    other than the header's, non-finite scale, affine or data, two sizes of a voxel.
    """
    path = Path(path)
    data, slope, intercept, affine = _read(path, max_voxels)
    return _scaled(path, data[..., 0], slope, intercept), affine


def read_frames(
    path: str | Path, frames: Sequence[int], max_voxels: int = MAX_SERIES_VOXELS
) -> tuple[np.ndarray, np.ndarray]:
    """Read some frames of a 4-D image: (float32 [X, Y, Z, len(frames)], affine), checked as
    `read_volume` does.

    `frames` count from 0; the whole file is checked, but only these frames are converted. A frame
    that the file does not have is a `CorruptScan` that says how many there are.
    """
    path = Path(path)
    data, slope, intercept, affine = _read(path, max_voxels, series=True)
    for frame in frames:
        if not 0 <= frame < data.shape[3]:
            raise CorruptScan(
                path,
                f"has {data.shape[3]} frames, 0 to {data.shape[3] - 1}; frame {frame} is asked "
                "for: "
                "correct the frame in the table (frames count from 0)",
            )
    return _scaled(path, data[..., list(frames)], slope, intercept), affine


def read_labels(
    path: str | Path, allowed: frozenset[int] = BRATS_LABELS, max_voxels: int = MAX_VOXELS
) -> tuple[np.ndarray, np.ndarray]:
    """Read one label map: (uint8 [X, Y, Z] with values in `allowed`, affine). Raises `CorruptScan`
    as `read_volume`.
    """
    values, affine = read_volume(path, max_voxels)
    return as_labels(path, values, allowed), affine


def as_labels(path: str | Path, values: np.ndarray, allowed: frozenset[int]) -> np.ndarray:
    """Values read from `path` as uint8 labels; `CorruptScan` unless they are whole numbers in
    `allowed`.
    """
    if values.min() < 0 or values.max() > 255:
        raise CorruptScan(
            path,
            f"labels reach from {values.min():g} to {values.max():g}; expected {sorted(allowed)}",
        )
    labels = values.astype(np.uint8)
    if not np.array_equal(labels, values):
        raise CorruptScan(
            path, "labels are not whole numbers; was the map resampled? use nearest neighbour"
        )
    found = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
    if not found <= set(allowed):
        raise CorruptScan(
            path,
            f"labels {sorted(found - set(allowed))} outside {sorted(allowed)}; map them to that "
            "set",
        )
    return labels


def require_same_grid(
    path: str | Path, array: np.ndarray, affine: np.ndarray, shape: tuple, reference: np.ndarray
) -> None:
    """Raise `CorruptScan` unless this scan lies on the grid of `shape` and the affine `reference`
    (to 0.01 mm).
    """
    if array.shape != tuple(shape):
        raise CorruptScan(
            path,
            f"shape {array.shape}, the subject's other scans {tuple(shape)}; resample to one grid",
        )
    if not np.allclose(affine, reference, atol=1e-2, rtol=0):
        raise CorruptScan(
            path, "affine differs from the subject's other scans; resample to one grid"
        )


def _scaled(path: Path, data: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        if slope not in (0.0, 1.0) or intercept != 0.0:  # NIfTI: slope 0 means "not scaled"
            data = data.astype(np.float64) * slope + intercept if slope else data
        volume = data.astype(np.float32)
    if not np.isfinite(volume).all():
        raise CorruptScan(path, "holds NaN or infinity; export the scan again")
    return volume


def _read(
    path: Path, max_voxels: int, series: bool = False
) -> tuple[np.ndarray, float, float, np.ndarray]:
    """Raw data [X, Y, Z, T] (T is 1 unless `series`), slope, intercept and affine."""
    raw = _contents(path, max_voxels, series)
    header, shape, dtype, start = _header(path, raw, max_voxels, series)
    count = int(np.prod(shape))
    if len(raw) != start + count * dtype.itemsize:
        raise CorruptScan(
            path,
            f"{len(raw)} bytes, its header promises {start + count * dtype.itemsize}; copy it "
            "again",
        )
    data = np.frombuffer(raw, dtype, count, start).reshape(shape, order="F")
    return (
        data,
        float(header["scl_slope"]),
        float(header["scl_inter"]),
        read_affine(path, header)[0],
    )


def _contents(path: Path, max_voxels: int, series: bool) -> bytes:
    limit = DATA_LATEST + 8 * max_voxels
    try:
        if path.stat().st_size > limit:
            raise CorruptScan(
                path, f"larger than {limit} bytes; not a scan of at most {max_voxels} voxels"
            )
        data = path.read_bytes()
    except OSError as error:
        raise CorruptScan(path, f"cannot be read ({error.strerror}); check the path") from error
    if path.name.endswith(".gz"):
        return _gunzip(path, data, max_voxels, series)
    if data[:2] == b"\x1f\x8b":
        raise CorruptScan(path, "is gzip data under a .nii name; rename it to .nii.gz")
    return data


def _gunzip(path: Path, packed: bytes, max_voxels: int, series: bool) -> bytes:
    """Unpack to the end of the stream, where CRC-32 and length are compared, never more than the
    header promises.
    """
    again = "copy or compress it again"
    try:
        head = zlib.decompressobj(wbits=31).decompress(packed, DATA_START)
        _, shape, dtype, start = _header(path, head, max_voxels, series)
        promised = start + int(np.prod(shape)) * dtype.itemsize
        if promised > DEFLATE_LIMIT * len(packed):
            raise CorruptScan(
                path,
                f"header promises {promised} bytes, more than {len(packed)} packed ones can hold; "
                f"{again}",
            )
        stream = zlib.decompressobj(wbits=31)
        data = stream.decompress(packed, promised + 1)
    except zlib.error as error:
        raise CorruptScan(path, f"broken gzip data ({error}); {again}") from error
    if len(data) > promised:
        raise CorruptScan(
            path, f"unpacks to more than the {promised} bytes its header promises; {again}"
        )
    if not stream.eof:
        raise CorruptScan(path, f"gzip data end too soon, the checksum is missing; {again}")
    if stream.unused_data:
        raise CorruptScan(
            path, f"{len(stream.unused_data)} bytes after the end of the gzip data; {again}"
        )
    return data


def _header(
    path: Path, raw: bytes, max_voxels: int, series: bool
) -> tuple[Nifti1Header, tuple[int, ...], np.dtype, int]:
    remedy = "save it again as single-file NIfTI-1 (.nii or .nii.gz)"
    if len(raw) < DATA_START or raw[344:348] != b"n+1\x00":
        raise CorruptScan(path, f"not a NIfTI-1 file; {remedy}")
    header = Nifti1Header(raw[:HEADER], check=False)
    if int(header["sizeof_hdr"]) != HEADER:
        raise CorruptScan(path, f"header size {int(header['sizeof_hdr'])}, not {HEADER}; {remedy}")
    shape, dtype, start = (
        _shape(path, header, max_voxels, series),
        _dtype(path, header),
        float(header["vox_offset"]),
    )
    if not (np.isfinite(start) and DATA_START <= start <= DATA_LATEST and start == int(start)):
        raise CorruptScan(path, f"data start at byte {start:g}; {remedy}")
    if not (np.isfinite(header["scl_slope"]) and np.isfinite(header["scl_inter"])):
        raise CorruptScan(
            path,
            f"scale {header['scl_slope']} and offset {header['scl_inter']} are not finite; "
            f"{remedy}",
        )
    return header, shape, dtype, int(start)


def _shape(path: Path, header: Nifti1Header, max_voxels: int, series: bool) -> tuple[int, ...]:
    rank, *dims = (int(size) for size in header["dim"])
    axes = 4 if series and rank > 3 else 3
    shape, rest = (*dims[:axes], 1)[:4], dims[axes:rank] if 3 <= rank <= 7 else [0]
    if any(size != 1 for size in rest):
        wanted = "one series of 3-D volumes" if series else "one 3-D volume; give one volume a file"
        raise CorruptScan(path, f"dimensions {[rank, *dims]} are not those of {wanted}")
    if min(shape) < 1 or math.prod(shape) > max_voxels:
        raise CorruptScan(
            path,
            f"shape {shape[:axes]}; each side must be at least 1 and at most {max_voxels} voxels "
            "in all",
        )
    return shape


def _dtype(path: Path, header: Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):  # nibabel lets the code of an unknown type fall through
        dtype = None
    if (
        dtype is None
        or dtype.newbyteorder("=") not in DTYPES
        or int(header["bitpix"]) != 8 * dtype.itemsize
    ):
        raise CorruptScan(
            path,
            f"data type code {int(header['datatype'])} at {int(header['bitpix'])} bits; save as "
            "int16 or float32",
        )
    return dtype
