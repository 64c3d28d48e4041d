"""The NIfTI guard: whatever is done to a file, the reader gives the exact scan or one clear
error.
"""

import gzip
import struct
import zlib

import nibabel
import numpy as np
import pytest

from fairlib import CorruptScan, nifti
from fairlib.nifti import (
    affine_note,
    read_frames,
    read_grid,
    read_labels,
    read_stored,
    read_volume,
    require_one_grid,
    require_same_grid,
)

AFFINE = np.array([[-1.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 4, -30], [0, 0, 0, 1.0]])
RNG = np.random.default_rng(0)
DATA = RNG.integers(0, 3000, (6, 7, 5)).astype(np.int16)


@pytest.fixture
def raw():
    return nibabel.Nifti1Image(DATA, AFFINE).to_bytes()


def put(tmp_path, data: bytes, name="scan.nii"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def patched(raw: bytes, offset: int, form: str, *values) -> bytes:
    return raw[:offset] + struct.pack("<" + form, *values) + raw[offset + struct.calcsize(form) :]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "i8", "f4", "f8", ">i2"])
def test_reads_what_nibabel_reads(tmp_path, name, dtype):
    image = nibabel.Nifti1Image((DATA % 200).astype(dtype), AFFINE, dtype=dtype)
    nibabel.save(image, tmp_path / name)
    volume, affine = read_volume(tmp_path / name)
    expected = nibabel.load(tmp_path / name)
    assert volume.dtype == np.float32 and np.array_equal(
        volume, expected.get_fdata(dtype=np.float32)
    )
    assert np.array_equal(affine, expected.affine)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("slope", [1.0, 0.25])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "f4"])
def test_small_integers_are_left_as_they_are_stored(tmp_path, name, slope, dtype):
    """Where nothing is lost by it: no scale, at most 16 bits, this machine's byte order."""
    image = nibabel.Nifti1Image((DATA % 100).astype(dtype), AFFINE, dtype=dtype)
    image.header.set_slope_inter(slope, 0)
    nibabel.save(image, tmp_path / name)
    stored, affine = read_stored(tmp_path / name)
    small = dtype in ("u1", "i1", "i2", "u2") and slope == 1
    assert stored.dtype == np.dtype(dtype if small else np.float32)
    volume, expected = read_volume(tmp_path / name)
    assert np.array_equal(stored, volume) and np.array_equal(affine, expected)


def test_scale_and_qform_are_applied(tmp_path):
    image = nibabel.Nifti1Image(DATA, None)
    image.header.set_slope_inter(0.25, -3)
    image.set_qform(AFFINE, code=1)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    volume, affine = read_volume(tmp_path / "scaled.nii.gz")
    expected = nibabel.load(tmp_path / "scaled.nii.gz")
    assert np.allclose(volume, expected.get_fdata()) and np.allclose(affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("code", [0, 1])
def test_pixdim_tells_the_size_that_the_sform_does_not(tmp_path, raw, code, name):
    """As ACDC is released: an sform of unit columns with a code; whether the qform has one or
    not.
    """
    turned = np.array([[0, -1.0, 0, 3], [-1, 0, 0, 4], [0, 0, 1, 5]])
    path = put(
        tmp_path, patched(patched(raw, 252, "2h", code, 2), 280, "12f", *turned.ravel()), name
    )
    expected = nibabel.load(path).get_qform() if code else turned @ np.diag([1.5, 1.5, 4, 1])
    assert np.allclose(read_volume(path)[1][:3], expected[:3], atol=1e-6)
    reason, detail = affine_note([path])
    assert reason == "voxel size from pixdim" and detail.startswith(
        f"{name}: the sform says 1 x 1 x 1 mm, pixdim 1.5 x 1.5 x 4 mm"
    )


def test_a_scaled_sform_gives_way_to_a_coded_qform_only(tmp_path, raw):
    stretched = patched(raw, 280, "12f", *(AFFINE[:3] * [[1.2, 1, 1, 1]]).ravel())
    with pytest.raises(
        CorruptScan, match=r"1\.8 x 1\.5 x 4 mm, pixdim 1\.5 x 1\.5 x 4 mm.* no qform"
    ):
        read_volume(put(tmp_path, patched(stretched, 252, "h", 0)))
    path = put(tmp_path, patched(stretched, 252, "h", 1))
    assert (
        np.allclose(read_volume(path)[1][:3, :3], AFFINE[:3, :3], atol=1e-6)
        and "with the qform" in affine_note([path])[1]
    )


def test_sizes_that_agree_but_for_rounding_leave_the_sform(tmp_path, raw):
    path = put(tmp_path, patched(raw, 80, "3f", 1.49, -1.5, 4.0))
    assert np.array_equal(read_volume(path)[1], AFFINE) and affine_note([path]) == ("", "")


@pytest.mark.parametrize("size", [0.0, float("nan"), 1e9])
def test_a_size_that_is_none_is_refused(tmp_path, raw, size):
    flat = patched(patched(raw, 280, "12f", *np.eye(4)[:3].ravel()), 80, "f", size)
    for code in (0, 1):
        with pytest.raises(CorruptScan, match="affine"):
            read_volume(put(tmp_path, patched(flat, 252, "h", code)))


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("slope", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("offset", [0.0, 7.0, float("nan")])
def test_a_slope_that_is_not_set_means_not_scaled(tmp_path, raw, slope, offset, name):
    """As nibabel, FSL and ITK read it; the offset then means nothing."""
    path = put(tmp_path, patched(raw, 112, "2f", slope, offset), name)
    assert np.array_equal(read_volume(path)[0], DATA)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize(
    "rows",
    [np.zeros(12), np.full(12, np.nan), np.ravel([[1, 0, 0, 0], [2, 0, 0, 0], [0, 0, 4, 0]])],
)
def test_an_unusable_sform_gives_way_to_a_coded_qform(tmp_path, raw, rows, name):
    change = patched(patched(raw, 280, "12f", *rows), 252, "2h", 1, 1)
    path = put(tmp_path, change, name)
    assert np.allclose(read_volume(path)[1], nibabel.Nifti1Image.from_bytes(raw).get_qform())
    reason, detail = affine_note([path])
    assert reason == "sform unusable" and detail.endswith("; taken from the qform")


def test_an_empty_pixdim_gives_way_to_the_sform(tmp_path, raw):
    path = put(tmp_path, patched(patched(raw, 80, "3f", 0, 0, 0), 252, "2h", 1, 1))
    assert np.array_equal(read_volume(path)[1], AFFINE)
    assert affine_note([path])[0] == "pixdim empty"


def test_a_rounded_quaternion_is_one_of_length_one(tmp_path, raw):
    """Half turns: b, c and d alone have length 1, and rounding makes it a little more."""
    b, c = np.float32(0.6), np.float32(0.8001)
    path = put(tmp_path, patched(raw, 252, "2h3f", 1, 0, b, c, 0.0))
    expected = np.array([[2 * 0.36 - 1, 0.96, 0], [0.96, 2 * 0.64 - 1, 0], [0, 0, -1]])
    directions = read_volume(path)[1][:3, :3] / [1.5, 1.5, 4]
    assert np.allclose(np.abs(directions), np.abs(expected), atol=1e-3)


def test_without_a_code_left_and_right_are_a_guess(tmp_path, raw):
    path = put(tmp_path, patched(raw, 252, "2h", 0, 0))
    assert np.allclose(read_volume(path)[1], nibabel.load(path).affine)
    assert affine_note([path])[0] == "orientation not stated"


@pytest.mark.parametrize("cut", [10, 348, 352, 400])
def test_gzip_data_in_several_parts_are_one_scan(tmp_path, raw, cut):
    """As bgzip, pigz and writers of header and data in turn leave them; zeros may follow."""
    path = tmp_path / "parts.nii.gz"
    parts = gzip.compress(raw[:cut]) + gzip.compress(b"") + gzip.compress(raw[cut:])
    for end in (b"", bytes(512)):
        path.write_bytes(parts + end)
        volume, affine = read_volume(path)
        assert np.array_equal(volume, DATA) and np.array_equal(affine, AFFINE)
        assert read_grid(path)[0] == DATA.shape
    path.write_bytes(parts[:-3])
    for read in (read_volume, read_grid):
        with pytest.raises(CorruptScan, match="checksum is missing"):
            read(path)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_the_header_alone_tells_a_whole_scan_from_a_cut_one(tmp_path, raw, name, monkeypatch):
    path = put(tmp_path, raw, name)
    with monkeypatch.context() as patch:
        patch.setattr(nifti, "_read", None)  # the data are not read
        shape, affine = read_grid(path)
    assert shape == DATA.shape and np.array_equal(affine, AFFINE)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptScan, match="header promises|checksum is missing"):
        read_grid(path)


@pytest.mark.parametrize("data", [b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_what_lies_there_instead_of_a_scan_is_named(tmp_path, data, name):
    path = tmp_path / name
    path.write_bytes(data.ljust(400))
    for read in (read_volume, read_grid):
        with pytest.raises(CorruptScan, match="web page|pointer of Git LFS"):
            read(path)


@pytest.mark.parametrize("which", range(3))
def test_of_several_grids_the_odd_one_is_named(which):
    grids = dict.fromkeys(("a.nii", "b.nii", "c.nii"), (DATA.shape, AFFINE))
    require_one_grid(grids)
    odd = list(grids)[which]
    for grid in (((6, 7, 4), AFFINE), (DATA.shape, AFFINE + 0.5)):
        with pytest.raises(CorruptScan, match="shape|affine") as caught:
            require_one_grid(grids | {odd: grid})
        assert caught.value.path == odd


HEADER_FAULTS = {
    "size of header": ((0, "i", 540), "header size"),
    "magic of a pair": ((344, "4s", b"ni1\0"), "not a NIfTI-1"),
    "negative side": ((40, "8h", 3, -6, 7, 5, 1, 1, 1, 1), "at least 1"),
    "empty side": ((40, "8h", 3, 0, 7, 5, 1, 1, 1, 1), "at least 1"),
    "huge sides": ((40, "8h", 3, 30000, 30000, 30000, 1, 1, 1, 1), "at most"),
    "two dimensions": ((40, "8h", 2, 6, 35, 1, 1, 1, 1, 1), "3-D"),
    "time series": ((40, "8h", 4, 6, 7, 1, 5, 1, 1, 1), "3-D"),
    "too many dimensions": ((40, "8h", 9, 6, 7, 5, 1, 1, 1, 1), "header size"),
    "other shape": ((40, "8h", 3, 6, 7, 6, 1, 1, 1, 1), "header promises"),
    "complex": ((70, "2h", 32, 64), "data type"),
    "unknown type": ((70, "2h", 999, 16), "data type"),
    "bits": ((70, "2h", 4, 8), "bits"),
    "NaN start": ((108, "f", float("nan")), "data start"),
    "start in header": ((108, "f", 8.0), "data start"),
    "NaN offset": ((116, "f", float("nan")), "not finite"),
    "metres": ((123, "B", 1), "millimetres"),
    "NaN affine": ((280, "f", float("nan")), "NaN"),
    "infinite affine": ((292, "f", float("inf")), "NaN"),
    "singular affine": ((280, "12f", *[1.0, 0, 0, 0, 2.0, 0, 0, 0, 0, 0, 4.0, 0]), "singular"),
    "flat voxels": ((280, "12f", *[1.0, 1, 0, 0, 1, 1.0001, 0, 0, 0, 0, 4.0, 0]), "singular"),
    "huge voxels": (
        (280, "12f", *[900.0, 0, 0, 0, 0, 900, 0, 0, 0, 0, 900, 0]),
        "singular|not a scan",
    ),
    "broken quaternion": ((252, "2h3f", 1, 0, 9.0, 9.0, 9.0), "affine"),
}


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_impossible_headers_are_refused(tmp_path, raw, fault, name):
    change, message = HEADER_FAULTS[fault]
    path = put(tmp_path, patched(raw, *change), name)
    with pytest.raises(CorruptScan, match=message) as caught:
        read_volume(path)
    assert caught.value.path == str(path) and str(path) in str(caught.value)


def test_nan_in_the_data_is_refused(tmp_path):
    data = DATA.astype(np.float32)
    data[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), tmp_path / "nan.nii")
    with pytest.raises(CorruptScan, match="NaN or infinity"):
        read_volume(tmp_path / "nan.nii")
    nibabel.save(nibabel.Nifti1Image(np.full((3, 3, 3), 1e300), AFFINE), tmp_path / "large.nii")
    with pytest.raises(CorruptScan, match="NaN or infinity"):
        read_volume(tmp_path / "large.nii")


def test_files_too_short_too_long_misnamed_or_missing(tmp_path, raw):
    cases = {
        "short.nii": (raw[:-2], "header promises"),
        "long.nii": (raw + b"\0\0", "header promises"),
        "empty.nii": (b"", "not a NIfTI-1 file but empty"),
        "text.nii": (b"x" * 1000, "not a NIfTI-1"),
        "two.nii": (nibabel.Nifti2Image(DATA, AFFINE).to_bytes(), "but a NIfTI-2"),
        "dicom.nii": (bytes(128) + b"DICM" + b"x" * 1000, "but a DICOM"),
        "twice.nii.gz": (gzip.compress(raw + bytes(range(256)) * 9), "but gzip data"),
        "packed.nii": (gzip.compress(raw), "rename"),
    }
    for name, (data, message) in cases.items():
        with pytest.raises(CorruptScan, match=message):
            read_volume(put(tmp_path, data, name))
    for path in (tmp_path / "nowhere.nii", tmp_path):
        with pytest.raises(CorruptScan, match="cannot be read"):
            read_volume(path)


def test_broken_gzip_streams_are_refused(tmp_path, raw):
    packed = gzip.compress(raw, mtime=0)
    crc = packed[:-8] + struct.pack("<I", zlib.crc32(raw) ^ 1) + packed[-4:]
    cases = [
        (crc, "broken gzip"),
        (packed[:-8], "checksum is missing"),
        (packed[:-1], "checksum is missing"),
        (packed[: len(packed) // 2], "checksum is missing"),
        (packed + b"\0" * 8 + b"x", "after the end"),
        (packed + packed, "more than"),
        (raw, "not gzip data but a plain NIfTI-1 file; rename it to .nii"),
        (gzip.compress(raw[:-2]), "header promises"),
        (gzip.compress(raw + b"\0" * 9), "more than"),
    ]
    for number, (data, message) in enumerate(cases):
        path = tmp_path / f"{number}.nii.gz"
        path.write_bytes(data)
        with pytest.raises(CorruptScan, match=message):
            read_volume(path)


def test_a_bomb_is_refused_before_it_unpacks(tmp_path, raw, monkeypatch):
    """A small stream under a header that promises gigabytes, and a large stream under a small
    header.
    """
    header = patched(raw, 40, "8h", 3, 320, 320, 320, 1, 1, 1, 1)
    path = put(tmp_path, header, "promise.nii.gz")
    with pytest.raises(CorruptScan, match="can hold"):
        read_volume(path)
    path = put(tmp_path, raw + bytes(30_000_000), "bomb.nii.gz")
    seen = []
    original = zlib.decompressobj

    class Watched:
        def __init__(self, **options):
            self.inner = original(**options)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def decompress(self, data, limit):
            seen.append(len(part := self.inner.decompress(data, limit)))
            return part

    monkeypatch.setattr(nifti.zlib, "decompressobj", Watched)
    with pytest.raises(CorruptScan, match="more than"):
        read_volume(path)
    assert seen and max(seen) <= len(raw) + 1
    with pytest.raises(CorruptScan, match="at most 200 voxels"):
        read_volume(put(tmp_path, raw), max_voxels=200)


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """One random injury: flipped bits, a changed, lost, doubled or inserted stretch, a cut end."""
    kind, at = rng.integers(6), int(rng.integers(len(data)))
    stretch = int(rng.integers(1, 9))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + rng.bytes(stretch) + data[at + stretch :]
    if kind == 2:
        return data[:at] + data[at + stretch :]
    if kind == 3:
        return data[:at] + data[at : at + stretch] + data[at:]
    if kind == 4:
        return data[:at] + rng.bytes(stretch) + data[at:]
    return data[:at]


def test_500_injured_gzip_files_give_the_exact_scan_or_one_error(tmp_path, raw):
    packed, rng = gzip.compress(raw, mtime=0), np.random.default_rng(7)
    path, refused = tmp_path / "injured.nii.gz", 0
    for _ in range(500):
        path.write_bytes(mutate(rng, packed))
        try:
            volume, affine = read_volume(path)
        except CorruptScan as error:
            refused += len(error.reason) > 10
            continue
        assert np.array_equal(volume, DATA) and np.allclose(affine, AFFINE)
    assert 400 < refused < 500  # a few injuries (the time stamp of gzip) harm nothing


def test_500_injured_headers_give_a_sane_scan_or_one_error(tmp_path, raw):
    """Without a checksum a changed header cannot be known; what comes back must still be what
    nibabel reads.
    """
    rng, refused = np.random.default_rng(8), 0
    for number in range(500):
        path = put(
            tmp_path,
            mutate(rng, raw[:352])[:352].ljust(352, b"\0") + raw[352:],
            f"{number % 2}.nii",
        )
        try:
            volume, affine = read_volume(path)
        except CorruptScan:
            refused += 1
            continue
        assert (
            volume.size == DATA.size
            and np.isfinite(volume).all()
            and abs(np.linalg.det(affine)) > 0
        )
        assert np.allclose(volume, nibabel.load(path).get_fdata(), rtol=1e-6)
    assert refused > 100


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([0, 3], "u1", r"\[3\] outside"),
        ([-1, 0], "i2", "reach from -1"),
        ([0, 1.5], "f4", "whole"),
        ([0, 900], "i2", "900"),
        ([3, 255], "u2", r"\[3, 255\] outside"),
    ],
)
def test_labels_outside_the_set_are_refused(tmp_path, values, dtype, message):
    data = np.zeros((4, 4, 4), dtype)
    data[0, 0, :2] = values
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), tmp_path / "seg.nii.gz")
    with pytest.raises(CorruptScan, match=message):
        read_labels(tmp_path / "seg.nii.gz")


def test_labels_come_back_as_they_were(tmp_path):
    data = RNG.choice([0, 1, 2, 4], (4, 5, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), tmp_path / "seg.nii.gz")
    labels, _ = read_labels(tmp_path / "seg.nii.gz")
    assert labels.dtype == np.uint8 and np.array_equal(labels, data)
    with pytest.raises(CorruptScan, match=r"\[4\] outside \[0, 1, 2\]"):
        read_labels(tmp_path / "seg.nii.gz", allowed=frozenset({0, 1, 2}))


def test_another_grid_is_refused():
    require_same_grid("a.nii", DATA, AFFINE, DATA.shape, AFFINE + 1e-4)
    with pytest.raises(CorruptScan, match="shape"):
        require_same_grid("a.nii", DATA, AFFINE, (6, 7, 4), AFFINE)
    with pytest.raises(CorruptScan, match="affine"):
        require_same_grid("a.nii", DATA, AFFINE, DATA.shape, AFFINE + 0.5)


@pytest.mark.parametrize("name", ["series.nii", "series.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_frames_are_those_that_nibabel_reads(tmp_path, name, dtype):
    series = RNG.integers(0, 200, (6, 7, 5, 4)).astype(dtype)
    image = nibabel.Nifti1Image(series, AFFINE)
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / name)
    frames, affine = read_frames(tmp_path / name, (2, 0))
    expected = nibabel.load(tmp_path / name).get_fdata()[..., [2, 0]]
    assert (
        frames.dtype == np.float32
        and np.allclose(frames, expected)
        and np.array_equal(affine, AFFINE)
    )
    for frame in (4, -1):
        with pytest.raises(CorruptScan, match=f"has 4 frames, 0 to 3; frame {frame}"):
            read_frames(tmp_path / name, (0, frame))
    with pytest.raises(CorruptScan, match="one volume a file"):
        read_volume(tmp_path / name)


def test_a_volume_is_a_series_of_one_frame(tmp_path, raw):
    frames, _ = read_frames(put(tmp_path, raw), (0,))
    assert frames.shape == (6, 7, 5, 1) and np.array_equal(frames[..., 0], DATA)


def test_a_series_of_vectors_or_too_many_voxels_is_refused(tmp_path):
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((3, 3, 3, 2, 2), np.uint8), AFFINE), tmp_path / "vectors.nii"
    )
    with pytest.raises(CorruptScan, match="series of 3-D volumes"):
        read_frames(tmp_path / "vectors.nii", (0,))
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((3, 3, 3, 2), np.uint8), AFFINE), tmp_path / "large.nii"
    )
    with pytest.raises(CorruptScan, match="at most 53 voxels"):
        read_frames(tmp_path / "large.nii", (0,), max_voxels=53)
