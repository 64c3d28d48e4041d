"""What a bug report needs, and what is most often missing: versions, device, memory, weights,
layout of the data.
"""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from fairlib.errors import FairlibError
from fairlib.io import MANIFEST, read_manifest

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "peft",
)

# Of each cohort, what its reader looks for and where: a pattern, or several of which one is enough.
LAYOUTS: dict[str, dict[str, str | tuple[str, ...]]] = {
    "brats": {
        "subjects of high grade (HGG/*/)": "HGG/*/",
        "subjects of low grade (LGG/*/)": "LGG/*/",
        "scans (*.nii, *.nii.gz)": "?GG/*/*.nii*",
        "segmentations (*_seg.nii*)": "?GG/*/*_seg.nii*",
        "name_mapping.csv": "name_mapping.csv",
        "clinical table of HGG (*clinical_patient_gbm.txt)": "*clinical_patient_gbm.txt",
        "clinical table of LGG (*clinical_patient_lgg.txt)": "*clinical_patient_lgg.txt",
    },
    "roco": {
        "captions.txt": ("data/*/radiology/captions.txt", "*/radiology/captions.txt"),
        "images (*.jpg)": ("data/*/radiology/images/*.jpg", "*/radiology/images/*.jpg"),
    },
    "rocov2": {
        "captions (*_captions.csv)": "*_captions.csv",
        "images (*_images/*.jpg)": "*_images/*.jpg",
    },
    "mnms": {
        "the table (*Dataset_information*.csv)": "**/*Dataset_information*.csv",
        "hearts (*_sa.nii.gz)": "**/*_sa.nii*",
        "segmentations (*_sa_gt.nii.gz)": "**/*_sa_gt.nii*",
    },
    "acdc": {
        "patients (Info.cfg)": "**/patient*/Info.cfg",
        "segmentations (*_gt.nii.gz)": "**/patient*/*_gt.nii*",
    },
    "fairgenmed": {
        "data_summary.csv": "data_summary.csv",
        "training subjects (Training/*.npz)": "Training/*.npz",
        "validation subjects (Validation/*.npz)": "Validation/*.npz",
        "test subjects (Test/*.npz)": "Test/*.npz",
    },
    "ham10000": {
        "HAM10000_metadata": "HAM10000_metadata*",
        "images (*_images_part_*/*.jpg)": "*_[iI]mages_[pP]art_*/*.jpg",
    },
    "chexpert": {
        "train.csv": "**/train.csv",
        "radiographs (view*_*.jpg)": "**/patient*/study*/view*.jpg",
        "the demographic sheet (*DEMO*)": "**/*DEMO*",
    },
}

# patterns of which readers refuse a second match
ONE = {"*clinical_patient_gbm.txt", "*clinical_patient_lgg.txt"}


def examine(
    weights: str | Path = "weights", data_dir: str = "", cohort: str = "brats"
) -> tuple[list[str], bool]:
    """Lines about this machine, the folder `weights` and, if given, the data in `data_dir`; and
    whether all of it is well.
    """
    facts = {"device": device(), "cores": os.cpu_count(), "memory": memory(), "disk": disk()}
    facts = {**versions(), **facts, "platform": platform.platform(terse=True)}
    machine = [f"{name}: {value}" for name, value in facts.items()]
    lines, weights_well = check_weights(Path(weights).expanduser())
    data, data_well = check_layout(data_dir, cohort) if data_dir else ([], True)
    return machine + lines + data, weights_well and data_well


def check_weights(folder: Path) -> tuple[list[str], bool]:
    """One line for each folder of weights, its hashes recomputed."""
    manifests = sorted(folder.rglob(MANIFEST))
    if not manifests:
        return [f"weights: none in {folder}; `make base` trains them"], False
    lines, well = [], True
    for place in (path.parent for path in manifests):
        try:
            files = read_manifest(place)["files"]
            lines.append(f"weights: {place.name}: {len(files)} files, hashes match")
        except FairlibError as error:
            lines, well = [*lines, f"weights: {error}"], False
    return lines, well


def check_layout(data_dir: str, cohort: str) -> tuple[list[str], bool]:
    """How much of the layout that the readers expect is found below `data_dir`, and whether it is
    all there.
    """
    root = Path(data_dir).expanduser()
    found = {what: _found(root, pattern) for what, pattern in LAYOUTS[cohort].items()}
    return [f"data ({cohort}): {what}: {text}" for what, (text, _) in found.items()], all(
        well for _, well in found.values()
    )


def _found(root: Path, pattern: str | tuple[str, ...]) -> tuple[str, bool]:
    """How many files there are, in words, and whether that is well."""
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    count = sum(1 for one in patterns for _ in root.glob(one))
    if not count:
        return f"none, expected in {root}", False
    if count > 1 and pattern in ONE:
        return f"{count}, expected one", False
    return str(count), True


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """The accelerator's name, or the machine type of the processor."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "Apple GPU"
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def memory() -> str:
    """The memory of the machine, where the system tells."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{size / 2**30:.1f} GiB"


def disk() -> str:
    """The free space of the current folder."""
    place = Path.cwd()
    return f"{shutil.disk_usage(place).free / 2**30:.1f} GiB free at {place}"
