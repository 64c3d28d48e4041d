"""Read a NIfTI-1 file whole and checked, or refuse it with one `CorruptScan` that says why and what
to do.

nibabel alone decodes most single-bit flips of a gzip volume into wrong data without a word,
allocates what a forged header asks for, and loads NaN affines. Here the gzip stream is read to its
end, so that its CRC-32 counts. The size of a voxel stands in up to three places of a header, and
not always alike: the sform states directions and size, the qform directions, and pixdim the size
that goes with the qform. In the release of ACDC the sform holds directions only (its columns have
length 1), and the true size stands in pixdim.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from fairlib.errors import CorruptScan
from fairlib.io import what_it_is

MAX_VOXELS = 1 << 25  # a BraTS volume has 8.9 million
MAX_SERIES_VOXELS = 1 << 27  # 512 x 512 x 15 x 30 are 118 million
HEADER, DATA_START, DATA_LATEST, HEAD_PACKED = 348, 352, 1 << 20, 1 << 14
DEFLATE_LIMIT = 1032  # no deflate stream expands further (zlib's technical notes)
GZIP, PIECE = b"\x1f\x8b", 1 << 20
ROUNDED = 1.01  # a quaternion up to this length has been rounded, a longer one is broken
DTYPES = frozenset(map(np.dtype, ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")))
BRATS_LABELS = frozenset({0, 1, 2, 4})
VOXEL_MM = (0.01, 100.0)
SAME_SIZE = 0.01  # sizes further apart than this share are two sizes, not one that was rounded
SAVE_AGAIN = "save it again as single-file NIfTI-1 (.nii or .nii.gz)"
COPY_AGAIN = "copy or compress it again"
ORIENT_AGAIN = "set its orientation again (sform or qform, in mm)"
RESAMPLE = "resample to one grid"
Grid = tuple[tuple[int, ...], np.ndarray]
"""The shape of a scan, and its affine."""
Note = tuple[str, str]
"""What is unusual about an affine, in a few words, and the detail; empty texts if nothing is."""


def read_volume(path: str | Path, max_voxels: int = MAX_VOXELS) -> tuple[np.ndarray, np.ndarray]:
    """Read one 3-D image: (float32 [X, Y, Z], affine float64 [4, 4] from voxel to mm, RAS).

    `.nii` or `.nii.gz`, as the name says; the affine is that of `read_affine`. Raises `CorruptScan`
    on anything that cannot be trusted: broken gzip or checksum, impossible or oversized shape,
    length other than the header's, non-finite scale, affine or data, two sizes of a voxel.
    """
    values, affine = read_stored(path, max_voxels)
    return values.astype(np.float32, copy=False), affine


def read_stored(path: str | Path, max_voxels: int = MAX_VOXELS) -> tuple[np.ndarray, np.ndarray]:
    """Read one 3-D image as `read_volume` does, but leave integers of at most 16 bits that no scale
    changes as they are stored: to look at them costs a fraction of what floats do.
    """
    path = Path(path)
    data, header = _read(path, max_voxels)
    affine, _ = read_affine(path, header)
    kind = data.dtype
    if kind.kind in "iu" and kind.itemsize <= 2 and kind.isnative and _scale(header) == (1.0, 0.0):
        return data[..., 0], affine
    return _scaled(path, data[..., 0], header), affine


def read_frames(
    path: str | Path, frames: Sequence[int], max_voxels: int = MAX_SERIES_VOXELS
) -> tuple[np.ndarray, np.ndarray]:
    """Read some frames of a 4-D image: (float32 [X, Y, Z, len(frames)], affine), checked as
    `read_volume` does.

    `frames` count from 0; the whole file is checked, but only these frames are converted. A frame
    that the file does not have is a `CorruptScan` that says how many there are.
    """
    path = Path(path)
    data, header = _read(path, max_voxels, series=True)
    affine, _ = read_affine(path, header)
    require_frames(path, frames, data.shape[3])
    return _scaled(path, data[..., list(frames)], header), affine


def require_frames(path: str | Path, frames: Sequence[int], count: int) -> None:
    """Raise `CorruptScan` unless all `frames` are in a file that has `count` of them."""
    for frame in frames:
        if not 0 <= frame < count:
            what = f"has {count} frames, 0 to {count - 1}; frame {frame} is asked for"
            raise CorruptScan(path, f"{what}: correct the frame in the table (frames count from 0)")


def read_labels(
    path: str | Path, allowed: frozenset[int] = BRATS_LABELS, max_voxels: int = MAX_VOXELS
) -> tuple[np.ndarray, np.ndarray]:
    """Read one label map: (uint8 [X, Y, Z] with values in `allowed`, affine). Raises `CorruptScan`
    as `read_volume`.
    """
    values, affine = read_stored(path, max_voxels)
    return as_labels(path, values, allowed), affine


def as_labels(path: str | Path, values: np.ndarray, allowed: frozenset[int]) -> np.ndarray:
    """Convert values read from `path` to uint8 labels.

    Raises `CorruptScan` unless they are whole numbers in `allowed`.
    """
    if values.min() < 0 or values.max() > 255:
        limits = f"{values.min():g} to {values.max():g}"
        raise CorruptScan(path, f"labels reach from {limits}; expected {sorted(allowed)}")
    labels = values.astype(np.uint8)
    if values.dtype.kind == "f" and not np.array_equal(labels, values):
        raise CorruptScan(path, "labels are not whole numbers; resample by nearest neighbour")
    others = set(range(int(labels.max()) + 1)) - allowed
    if outside := [label for label in others if (labels == label).any()]:
        raise CorruptScan(
            path, f"labels {sorted(outside)} outside {sorted(allowed)}; map them to that set"
        )
    return labels


def read_grid(path: str | Path, max_voxels: int = MAX_VOXELS, series: bool = False) -> Grid:
    """Read shape ([X, Y, Z, T] of a `series`) and affine of an image from its header, and check
    name, header and length.

    The data are read only where the length does not settle that they are whole. Raises
    `CorruptScan` as `read_volume`, except for data that are damaged inside.
    """
    path = Path(path)
    header = _whole_header(path, max_voxels, series)
    if header is None:
        _, header = _read(path, max_voxels, series)
    shape = _shape(path, header, max_voxels, series)[: 4 if series else 3]
    return shape, read_affine(path, header)[0]


def _whole_header(path: Path, max_voxels: int, series: bool) -> Nifti1Header | None:
    """The header, where the file is as long as it promises; None where that is not certain."""
    head, end, size = _ends(path)
    packed = path.name.endswith(".gz")
    if (head[:2] == GZIP) != packed:
        return None
    try:
        head = _inflate(head, DATA_START)[0] if packed else head
        header, shape, dtype, start = _header(path, head, max_voxels, series)
    except (zlib.error, CorruptScan):
        return None
    promised = start + math.prod(shape) * dtype.itemsize
    length = int.from_bytes(end, "little") if packed else size
    # gzip states the length of its last part, modulo 2^32
    return header if length == promised % (1 << 32 if packed else promised + 1) else None


def _ends(path: Path) -> tuple[bytes, bytes, int]:
    """The first bytes of a file, the last four, and its length."""
    try:
        with path.open("rb") as file:
            head, size = file.read(HEAD_PACKED), path.stat().st_size
            file.seek(max(0, size - 4))
            return head, file.read(), size
    except OSError as error:
        raise CorruptScan(path, f"cannot be read ({error.strerror}); check the path") from error


def require_same_grid(
    path: str | Path, array: np.ndarray, affine: np.ndarray, shape: tuple, reference: np.ndarray
) -> None:
    """Raise `CorruptScan` unless this scan lies on the grid of `shape` and the affine `reference`
    (to 0.01 mm).
    """
    if fault := _grid_fault((array.shape, affine), (tuple(shape), reference)):
        raise CorruptScan(path, f"{fault}; {RESAMPLE}")


def require_one_grid(grids: Mapping[Path, Grid]) -> None:
    """Raise `CorruptScan` naming the scan that does not lie on the grid of most of the others."""
    faults = {path: [_grid_fault(one, other) for other in grids.values()]
              for path, one in grids.items()}  # fmt: skip
    reference = min(faults, key=lambda path: sum(map(bool, faults[path])))
    for path, grid in grids.items():
        if fault := _grid_fault(grid, grids[reference]):
            raise CorruptScan(path, f"{fault}; {RESAMPLE}")


def _grid_fault(grid: Grid, reference: Grid) -> str:
    if grid[0] != reference[0]:
        return f"shape {grid[0]}, the subject's other scans {reference[0]}"
    if not np.allclose(grid[1], reference[1], atol=1e-2, rtol=0):
        return "affine differs from the subject's other scans"
    return ""


def read_affine(path: str | Path, header: Nifti1Header) -> tuple[np.ndarray, Note]:
    """Read the map from voxel to mm (float64 [4, 4], RAS), and a note on where it comes from.

    As NIfTI-1 asks, a coded sform goes before a coded qform; one that is empty or broken gives way
    to the other. Where the sform's size of a voxel is not that of pixdim (by more than 1 %), pixdim
    counts: with the qform, which is built on it, if that has a code; else with the sform's
    directions, if all its columns have length 1, for then it states no size. Without any code left
    and right are a guess, which the note says. Raises `CorruptScan` when the sform states another
    size and no qform decides, and when the affine is singular, not finite, not in mm, or of voxels
    that are not a scan's.
    """
    if (units := int(header["xyzt_units"]) & 7) not in (0, 2):  # 0 unknown, 2 mm
        raise CorruptScan(path, f"units of space are code {units}, not millimetres; {ORIENT_AGAIN}")
    forms: dict[str, Callable[[], np.ndarray]] = {"sform": header.get_sform}
    forms["qform"] = partial(_qform, header)
    coded = {name: make for name, make in forms.items() if int(header[f"{name}_code"]) > 0}
    if not coded:
        why = "neither qform nor sform has a code: left and right are a guess"
        return _checked_affine(path, header.get_base_affine), ("orientation not stated", why)
    good: dict[str, np.ndarray] = {}
    broken: dict[str, CorruptScan] = {}
    for name, make in coded.items():
        try:
            good[name] = _checked_affine(path, make)
        except CorruptScan as error:
            broken[name] = error
    if not good:
        raise next(iter(broken.values()))
    if "sform" in broken:
        reason = broken["sform"].reason.partition(";")[0]
        return good["qform"], ("sform unusable", f"{reason}; taken from the qform")
    best, pixdim = next(iter(good.values())), np.abs(header["pixdim"][1:4].astype(np.float64))
    if _same_size(voxel_sizes(best), pixdim):
        return best, ("", "")
    unit = _same_size(voxel_sizes(best), np.ones(3))
    sizes = f"the sform says {_in_words(voxel_sizes(best))}, pixdim {_in_words(pixdim)}"
    if not (np.nan_to_num(pixdim).any() or unit):
        return best, ("pixdim empty", f"{sizes}; taken from the sform")
    if "qform" in coded:
        affine, part = _checked_affine(path, coded["qform"]), "with the qform"
    elif unit:
        affine = _checked_affine(path, lambda: best @ np.diag([*pixdim, 1.0]))
        part = "with the directions of the sform"
    else:
        what = f"states two sizes of a voxel ({sizes}) and has no qform that decides"
        remedy = "write the size that the scanner's protocol says into both"
        raise CorruptScan(path, f"{what}; {remedy}")
    return affine, ("voxel size from pixdim", f"{sizes}; taken from pixdim, {part}")


def _qform(header: Nifti1Header) -> np.ndarray:
    """The qform, its quaternion scaled to length 1 where rounding has made it longer."""
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = math.hypot(*(float(header[name]) for name in names))
    if 1 < length <= ROUNDED:
        header = header.copy()
        for name in names:
            header[name] = header[name] / length
    return header.get_qform()


def affine_note(paths: Iterable[str | Path]) -> Note:
    """The note of `read_affine` on the first of these scans that has one, with the file's name.

    Only headers are read, of files that `read_volume` or `read_frames` has accepted.
    """
    for path in map(Path, paths):
        head = _ends(path)[0]
        head = _inflate(head, HEADER)[0] if path.name.endswith(".gz") else head
        reason, detail = read_affine(path, Nifti1Header(head[:HEADER], check=False))[1]
        if reason:
            return reason, f"{path.name}: {detail}"
    return "", ""


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """The length in mm of a voxel along each of its three axes, float64 [3]."""
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def _same_size(sizes: np.ndarray, others: np.ndarray) -> bool:
    return np.allclose(sizes, others, rtol=SAME_SIZE, atol=0)


def _in_words(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes) + " mm"


def _checked_affine(path: str | Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The affine that `make` returns, once it is one of a scan."""
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(make(), dtype=np.float64)
            sizes, volume = voxel_sizes(affine), abs(np.linalg.det(affine[:3, :3]))
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise CorruptScan(path, f"no usable affine ({error}); {ORIENT_AGAIN}") from error
    if not (np.isfinite(affine).all() and np.isfinite(volume)):
        raise CorruptScan(path, f"affine holds NaN or infinity; {ORIENT_AGAIN}")
    if sizes.min() < VOXEL_MM[0] or sizes.max() > VOXEL_MM[1] or volume < 1e-3 * sizes.prod():
        what = f"affine is singular or its voxels of {sizes.round(4).tolist()} mm are not a scan's"
        raise CorruptScan(path, f"{what}; {ORIENT_AGAIN}")
    return affine


def _scaled(path: Path, data: np.ndarray, header: Nifti1Header) -> np.ndarray:
    slope, intercept = _scale(header)
    with np.errstate(all="ignore"):
        if (slope, intercept) != (1.0, 0.0):
            data = data.astype(np.float64) * slope + intercept
        volume = data.astype(np.float32)
    if not np.isfinite(volume).all():
        raise CorruptScan(path, "holds NaN or infinity; export the scan again")
    return volume


def _scale(header: Nifti1Header) -> tuple[float, float]:
    """Slope and intercept of the data; 1 and 0 where they are not set."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    return (slope, intercept) if _is_scaled(slope) else (1.0, 0.0)


def _is_scaled(slope: float) -> bool:
    """Whether a slope is set: NIfTI writes 0 where it is not, and several programs write NaN."""
    return slope != 0 and math.isfinite(slope)


def _read(path: Path, max_voxels: int, series: bool = False) -> tuple[np.ndarray, Nifti1Header]:
    """Raw data [X, Y, Z, T] (T is 1 unless `series`) and the header."""
    raw = _contents(path, max_voxels, series)
    header, shape, dtype, start = _header(path, raw, max_voxels, series)
    promised = start + math.prod(shape) * dtype.itemsize
    if len(raw) != promised:
        raise CorruptScan(path, f"{len(raw)} bytes, its header promises {promised}; copy it again")
    data = np.frombuffer(raw, dtype, math.prod(shape), start).reshape(shape, order="F")
    return data, header


def _contents(path: Path, max_voxels: int, series: bool) -> bytes | memoryview:
    limit = DATA_LATEST + 8 * max_voxels
    try:
        if path.stat().st_size > limit:
            raise CorruptScan(path, f"over {limit} bytes: no scan of at most {max_voxels} voxels")
        data = np.fromfile(path, np.uint8).data  # into large pages: half the time of read_bytes
    except OSError as error:
        raise CorruptScan(path, f"cannot be read ({error.strerror}); check the path") from error
    if path.name.endswith(".gz"):
        if data[:2] != GZIP:
            kind = what_it_is(bytes(data[:HEAD_PACKED]))
            remedy = "rename it to .nii" if "NIfTI-1" in kind else COPY_AGAIN
            raise CorruptScan(path, f"is not gzip data but {kind or 'something else'}; {remedy}")
        return _gunzip(path, bytes(data), max_voxels, series)
    if data[:2] == GZIP:
        raise CorruptScan(path, "is gzip data under a .nii name; rename it to .nii.gz")
    return data


def _gunzip(path: Path, packed: bytes, max_voxels: int, series: bool) -> bytes:
    """Unpack to the end of the stream, where CRC-32 and length are compared, never more than the
    header promises.
    """
    try:
        head, _ = _inflate(packed, DATA_START)
        _, shape, dtype, start = _header(path, head, max_voxels, series)
        promised = start + math.prod(shape) * dtype.itemsize
        if promised > DEFLATE_LIMIT * len(packed):
            what = f"header promises {promised} bytes, more than {len(packed)} packed ones can hold"
            raise CorruptScan(path, f"{what}; {COPY_AGAIN}")
        data, problem = _inflate(packed, promised + 1)
    except zlib.error as error:
        raise CorruptScan(path, f"broken gzip data ({error}); {COPY_AGAIN}") from error
    if len(data) > promised:
        problem = f"unpacks to more than the {promised} bytes its header promises"
    if problem:
        raise CorruptScan(path, f"{problem}; {COPY_AGAIN}")
    return data


def _inflate(packed: bytes, limit: int) -> tuple[bytes, str]:
    """At most `limit` bytes of all the parts of a gzip file (zeros may follow the last), and what
    is wrong with its end, if anything.
    """
    parts, size, at, stream = [], 0, 0, zlib.decompressobj(wbits=31)
    while at < len(packed) and size < limit:
        piece = packed[at : at + PIECE]
        parts.append(stream.decompress(piece, limit - size))
        size += len(parts[-1])
        at += len(piece) - len(stream.unused_data)
        if not stream.eof or at == len(packed):
            continue
        if packed[at : at + 2] == GZIP:
            stream = zlib.decompressobj(wbits=31)
        elif packed.count(0, at) == len(packed) - at:
            break
        else:
            return b"".join(parts), f"{len(packed) - at} bytes after the end of the gzip data"
    return b"".join(parts), "" if stream.eof else "gzip data end too soon, the checksum is missing"


def _header(
    path: Path, raw: bytes | memoryview, max_voxels: int, series: bool
) -> tuple[Nifti1Header, tuple[int, ...], np.dtype, int]:
    raw = bytes(raw[:HEAD_PACKED])
    if len(raw) < DATA_START or raw[344:348] != b"n+1\x00":
        kind = what_it_is(raw)
        raise CorruptScan(path, f"not a NIfTI-1 file{kind and f' but {kind}'}; {SAVE_AGAIN}")
    header = Nifti1Header(raw[:HEADER], check=False)
    if int(header["sizeof_hdr"]) != HEADER:
        size = int(header["sizeof_hdr"])
        raise CorruptScan(path, f"header size {size}, not {HEADER}; {SAVE_AGAIN}")
    shape, dtype = _shape(path, header, max_voxels, series), _dtype(path, header)
    start, slope, offset = (float(header[k]) for k in ("vox_offset", "scl_slope", "scl_inter"))
    if not (np.isfinite(start) and DATA_START <= start <= DATA_LATEST and start == int(start)):
        raise CorruptScan(path, f"data start at byte {start:g}; {SAVE_AGAIN}")
    if _is_scaled(slope) and not math.isfinite(offset):
        raise CorruptScan(path, f"offset {offset} beside scale {slope} is not finite; {SAVE_AGAIN}")
    return header, shape, dtype, int(start)


def _shape(path: Path, header: Nifti1Header, max_voxels: int, series: bool) -> tuple[int, ...]:
    rank, *dims = (int(size) for size in header["dim"])
    axes = 4 if series and rank > 3 else 3
    shape, rest = (*dims[:axes], 1)[:4], dims[axes:rank] if 3 <= rank <= 7 else [0]
    if any(size != 1 for size in rest):
        kind = "one series of 3-D volumes" if series else "one 3-D volume; give one volume a file"
        raise CorruptScan(path, f"dimensions {[rank, *dims]} are not those of {kind}")
    if min(shape) < 1 or math.prod(shape) > max_voxels:
        what = f"shape {shape[:axes]}"
        remedy = f"each side must be at least 1 and at most {max_voxels} voxels in all"
        raise CorruptScan(path, f"{what}; {remedy}")
    return shape


def _dtype(path: Path, header: Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):  # nibabel lets the code of an unknown type fall through
        dtype = None
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if dtype is None or dtype.newbyteorder("=") not in DTYPES or bits != 8 * dtype.itemsize:
        raise CorruptScan(path, f"data type code {code} at {bits} bits; save as int16 or float32")
    return dtype
