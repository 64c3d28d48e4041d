"""Readers and measurements on scans of real people, where a package ships some; a test is skipped
with the package's name where it is not installed.
"""

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fairlib.cohorts.listing import read_grey
from fairlib.cohorts.slices import SliceSettings, extract, to_canonical
from fairlib.nifti import read_stored, read_volume
from studies.brain.anatomy import measure


def shipped(package, name):
    """A file of a Python package, which need not be there."""
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent / name if found else Path(package)


MNI = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
HEADS = {
    "nilearn (an average of 152 people)": shipped("nilearn", MNI),
    "mricron-data of Debian (one man)": Path("/usr/share/mricron/templates/ch2bet.nii.gz"),
}
RADIOGRAPH = shipped("data_store", "data/RG1_UNCR.dcm")


@pytest.fixture(params=HEADS)
def head(request):
    """A skull-stripped T1-weighted scan: the file, values and affine."""
    path = HEADS[request.param]
    if not path.is_file():
        pytest.skip(f"no real head: {request.param} is not installed")
    return path, *read_volume(path)


def test_a_real_head_is_read_as_nibabel_reads_it(head):
    path, volume, affine = head
    expected = nibabel.load(path)
    assert np.array_equal(volume, expected.get_fdata(dtype=np.float32))
    assert np.allclose(affine, expected.affine)
    assert np.array_equal(read_stored(path)[0], volume)


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.1])
def test_the_area_of_a_real_brain_is_measured(head, scale):
    """Within 3 % of the filled outline on the scan's own voxels, at three sizes of one head."""
    _, volume, affine = head
    affine = affine @ np.diag([scale, scale, scale, 1])
    slices = extract({"t1": volume}, np.zeros(volume.shape, np.uint8), affine, SliceSettings())
    found = measure(slices.images)["area_mm2"].to_numpy()
    turned, sizes = to_canonical(volume, affine)
    true = [
        ndimage.binary_fill_holes(turned[..., z]).sum() * sizes[0] * sizes[1] for z in slices.index
    ]
    assert len(found) == 4 and np.abs(found / true - 1).max() < 0.03
    assert slices.sides == ("none",) * 4 and not slices.cropped


def test_a_real_radiograph_of_more_than_8_bits_keeps_its_greys(tmp_path):
    """Of a chest; the file stores white as 0 (MONOCHROME1)."""
    pydicom = pytest.importorskip("pydicom", reason="no real radiograph: pydicom is not installed")
    if not RADIOGRAPH.is_file():
        pytest.skip("no real radiograph: pydicom-data is not installed")
    scan = pydicom.dcmread(RADIOGRAPH)
    assert scan.PhotometricInterpretation == "MONOCHROME1" and scan.BitsStored > 8
    white = (1 << scan.BitsStored) - 1
    grey = (white - scan.pixel_array).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "chest.png")
    image = read_grey(tmp_path / "chest.png", 128)
    side = max(grey.shape)
    square = np.zeros((side, side), np.float32)
    top, left = ((side - length) // 2 for length in grey.shape)
    square[top : top + grey.shape[0], left : left + grey.shape[1]] = grey
    small = Image.fromarray(square).resize((128, 128), Image.Resampling.BILINEAR)
    expected = np.asarray(small) / white * 2 - 1
    assert np.abs(image - expected).max() < 0.03 and len(np.unique(image)) > 100
