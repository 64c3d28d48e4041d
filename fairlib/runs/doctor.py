"""What a bug report needs, and what is most often missing: versions, device, memory, weights, layout of the data."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from ..errors import FairlibError
from .manifest import device, read_manifest, versions
from .places import repository, runs_folder
from .progress import Progress

LAYOUTS = {
    "brats": {
        "subjects of high grade (HGG/*/)": "HGG/*/",
        "subjects of low grade (LGG/*/)": "LGG/*/",
        "scans (*.nii, *.nii.gz)": "?GG/*/*.nii*",
        "segmentations (*_seg.nii*)": "?GG/*/*_seg.nii*",
        "name_mapping.csv": "*name_mapping*.csv",
    },
    "roco": {
        "captions.txt": "*/radiology/captions.txt",
        "images": "*/radiology/images/*",
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
        "pictures (*_images_part_*/*.jpg)": "*_[iI]mages_[pP]art_*/*.jpg",
    },
    "chexpert": {
        "train.csv": "**/train.csv",
        "radiographs (view*_*.jpg)": "**/patient*/study*/view*.jpg",
        "the demographic sheet (*DEMO*)": "**/*DEMO*",
    },
}


def examine(data_dir: str = "", cohort: str = "brats") -> tuple[list[str], bool]:
    """Lines about this machine, the weights and, if given, the data in `data_dir`; and whether all of it is well."""
    machine = [f"{name}: {version}" for name, version in versions().items()]
    machine += [f"device: {device()}", f"cores: {os.cpu_count()}", f"memory: {memory()}", f"disk: {disk()}"]
    machine.append(f"platform: {platform.platform(terse=True)}")
    weights, weights_well = check_weights(repository() / "weights")
    data, data_well = check_layout(data_dir, cohort) if data_dir else ([], True)
    return machine + weights + data, weights_well and data_well


def check_weights(folder: Path) -> tuple[list[str], bool]:
    """One line for each folder of weights, its hashes recomputed."""
    manifests = sorted(folder.rglob("manifest.json"))
    if not manifests:
        return [f"weights: none in {folder}; `make base` trains them"], False
    lines, well = [], True
    for place in Progress().track([path.parent for path in manifests], label="checking weights"):
        try:
            files = read_manifest(place)["files"]
            lines.append(f"weights: {place.name}: {len(files)} files, hashes match")
        except FairlibError as error:
            lines, well = [*lines, f"weights: {error}"], False
    return lines, well


def check_layout(data_dir: str, cohort: str) -> tuple[list[str], bool]:
    """How much of the layout that the readers expect is found below `data_dir`."""
    root = Path(data_dir).expanduser()
    counts = {what: sum(1 for _ in root.glob(pattern)) for what, pattern in LAYOUTS[cohort].items()}
    lines = [f"data ({cohort}): {what}: {count or 'none, expected in ' + str(root)}" for what, count in counts.items()]
    return lines, all(counts.values())


def memory() -> str:
    """The memory of the machine, where the system tells."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{size / 2**30:.1f} GiB"


def disk() -> str:
    """The free space where runs are written."""
    place = runs_folder()
    while not place.exists():
        place = place.parent
    return f"{shutil.disk_usage(place).free / 2**30:.1f} GiB free at {place}"
