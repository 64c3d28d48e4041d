"""How large a voxel is and which way it lies: what a NIfTI-1 header says in three places, and not
always alike.

The sform states directions and size, the qform directions, and pixdim the size that goes with the
qform. In the release of ACDC the sform holds directions only (its columns have length 1), and the
true size stands in pixdim.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from fairlib.errors import CorruptScan

VOXEL_MM = (0.01, 100.0)
SAME_SIZE = 0.01  # sizes further apart than this share are two sizes, not one that was rounded
HEADER_BYTES, HEAD_PACKED = 348, 1 << 14
REMEDY = "set its orientation again (sform or qform, in mm)"


def read_affine(path: str | Path, header: Nifti1Header) -> tuple[np.ndarray, str]:
    """From voxel to mm (float64 [4, 4], RAS), and a note, empty unless the size of a voxel is not
    the sform's.

    As NIfTI-1 asks, a coded sform goes before a coded qform. Where the sform's size is not that of
    pixdim (by more than 1 %), pixdim counts: with the qform, which is built on it, if that has a
    code; else with the sform's directions, if all its columns have length 1, for then it states no
    size. Raises `CorruptScan` when the sform states another size and no qform decides, and when the
    affine is singular, not finite, not in mm, or of voxels that are not a scan's.
    """
    if (units := int(header["xyzt_units"]) & 7) not in (0, 2):  # 0 unknown, 2 mm
        raise CorruptScan(path, f"units of space are code {units}, not millimetres; {REMEDY}")
    best = _checked(path, header.get_best_affine)
    stated = np.abs(header["pixdim"][1:4].astype(np.float64))
    if _same(voxel_sizes(best), stated):
        return best, ""
    found = f"the sform says {_words(voxel_sizes(best))}, pixdim {_words(stated)}"
    if int(header["qform_code"]) > 0:
        return _checked(path, header.get_qform), f"{found}; taken from pixdim, with the qform"
    if _same(voxel_sizes(best), np.ones(3)):
        affine = _checked(path, lambda: best @ np.diag([*stated, 1.0]))
        return affine, f"{found}; taken from pixdim, with the directions of the sform"
    raise CorruptScan(
        path,
        f"states two sizes of a voxel ({found}) and has no qform that decides; "
        "write the size that the scanner's protocol says into both",
    )


def scale_note(paths: Iterable[str | Path]) -> str:
    """The first of these scans whose voxel size is not its sform's, and both sizes; "" if there is
    none.

    Only headers are read, of files that `read_volume` or `read_frames` has accepted.
    """
    for path in map(Path, paths):
        if note := read_affine(path, Nifti1Header(_head(path), check=False))[1]:
            return f"{path.name}: {note}"
    return ""


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """The length in mm of a voxel along each of its three axes, float64 [3]."""
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(HEAD_PACKED)
    return (
        zlib.decompressobj(wbits=31).decompress(head, HEADER_BYTES)
        if path.name.endswith(".gz")
        else head[:HEADER_BYTES]
    )


def _same(sizes: np.ndarray, others: np.ndarray) -> bool:
    return np.allclose(sizes, others, rtol=SAME_SIZE, atol=0)


def _words(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes) + " mm"


def _checked(path: str | Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The affine that `make` returns, once it is one of a scan."""
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(make(), dtype=np.float64)
            sizes, volume = voxel_sizes(affine), abs(np.linalg.det(affine[:3, :3]))
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise CorruptScan(path, f"no usable affine ({error}); {REMEDY}") from error
    if not (np.isfinite(affine).all() and np.isfinite(volume)):
        raise CorruptScan(path, f"affine holds NaN or infinity; {REMEDY}")
    if sizes.min() < VOXEL_MM[0] or sizes.max() > VOXEL_MM[1] or volume < 1e-3 * sizes.prod():
        raise CorruptScan(
            path,
            f"affine is singular or its voxels of {sizes.round(4).tolist()} mm are not a scan's; "
            f"{REMEDY}",
        )
    return affine
