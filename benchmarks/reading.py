"""What reading BraTS costs: the first pass against bare nibabel, the second pass, memory, doctor.

Subjects are of real size (240 x 240 x 155 voxels of int16, five files) and invented: noise in an
ellipsoid, which packs about as scans do. A few are written, as .nii.gz and as .nii; the others of
the whole release of 285 are hard links to them. Bare means `nibabel.load(path).get_fdata()` of the
same five files, which checks nothing; both are timed in turns in one run. The second pass finds the
slices of all subjects in the cache. Memory is the highest resident size over the one after imports,
in a process of its own.

    python benchmarks/reading.py [--folder FOLDER] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from counting import seconds  # noqa: E402

from fairlib.cohorts import brats  # noqa: E402
from fairlib.cohorts.slices import STANDARD, SliceStore, SubjectSlices  # noqa: E402
from fairlib.doctor import check_data  # noqa: E402
from fairlib.io import write_json  # noqa: E402

SHAPE, SEMI_AXES = (240, 240, 155), (68, 86, 66)  # voxels of 1 mm
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], float)
MEANS = {"t1": 420, "t1ce": 510, "t2": 380, "flair": 300}
SUBJECTS, WRITTEN, ENDINGS = 285, 2, (".nii.gz", ".nii")
BOUNDS = {
    "first_pass_ratio.nii.gz": 2.0,
    "first_pass_ratio.nii": 2.0,
    "second_pass_seconds": 5.0,
    "memory_mib": 300.0,
    "doctor_seconds": 60.0,
}


def volumes(seed: int) -> dict[str, np.ndarray]:
    """The five volumes of one invented subject: int16 [X, Y, Z], 0 outside of the brain."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(0, size) for size in SHAPE)]
    places = [(axis - size / 2) / semi for axis, size, semi in
              zip(axes, SHAPE, SEMI_AXES, strict=True)]  # fmt: skip
    brain = sum(place**2 for place in places) < 1
    tumour = sum((place - 0.3) ** 2 for place in places)
    made = {}
    for name, mean in MEANS.items():
        tissue = ndimage.gaussian_filter(rng.standard_normal(SHAPE, np.float32), 2)
        noise = rng.normal(0, 12, SHAPE).astype(np.float32)
        made[name] = (brain * np.clip(mean * (1 + 4 * tissue) + noise, 1, 4000)).astype(np.int16)
    parts = [(tumour < 0.08, 2), (tumour < 0.04, 1), (tumour < 0.02, 4)]
    labels = np.zeros(SHAPE, np.int16)
    for inside, label in parts:
        labels[inside & brain] = label
    return made | {"seg": labels}


def write_release(root: Path, ending: str, subjects: int) -> list[Path]:
    """Write a release of BraTS 2018 with its tables; its folders, those of real files first."""
    made = []
    for index in range(subjects):
        name, grade = f"Brats18_TCIA01_{index:03d}_1", "HGG" if index % 4 else "LGG"
        folder = root / grade / name
        folder.mkdir(parents=True)
        if index < WRITTEN:
            for scan, volume in volumes(index).items():
                image = nibabel.Nifti1Image(volume, AFFINE)
                image.set_sform(AFFINE, 1)
                image.set_qform(AFFINE, 1)
                nibabel.save(image, folder / f"{name}_{scan}{ending}")
        else:
            first = made[index % WRITTEN]
            for path in first.iterdir():
                os.link(path, folder / path.name.replace(first.name, name))
        made.append(folder)
    write_tables(root, [folder.name for folder in made])
    return made


def write_tables(root: Path, ids: list[str]) -> None:
    """The name mapping and the two clinical tables of `ids`."""
    header = "Grade,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID\n"
    grades = ["HGG" if index % 4 else "LGG" for index in range(len(ids))]
    rows = [f"{grade},{name},TCGA-00-{index:04d},NA\n"
            for index, (name, grade) in enumerate(zip(ids, grades, strict=True))]  # fmt: skip
    (root / brats.NAME_MAPPING).write_text(header + "".join(rows))
    names = f"bcr_patient_barcode\tgender\t{brats.AGE}\n"
    for study, grade in (("gbm", "HGG"), ("lgg", "LGG")):
        people = [f"TCGA-00-{index:04d}\t{('MALE', 'FEMALE')[index % 2]}\t{40 + index % 40}\n"
                  for index, one in enumerate(grades) if one == grade]  # fmt: skip
        text = names + names + "CDE_ID:1\tCDE_ID:2\tCDE_ID:3\n" + "".join(people)
        (root / f"nationwidechildrens.org_clinical_patient_{study}.txt").write_text(text)


def bare(folders: list[Path]) -> None:
    """Load every file of these subjects with nibabel alone."""
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        nibabel.load(path).get_fdata()


def first_pass(root: Path, folders: list[Path], repeats: int) -> dict:
    """Seconds a subject of both, and their ratio."""
    entries = [entry for entry in brats.find_subjects(root)
               if entry.scan in {folder.name for folder in folders}]  # fmt: skip
    works = {
        "nibabel": partial(bare, folders),
        "reader": lambda: [brats.read_subject(entry, STANDARD) for entry in entries],
    }
    spent = {name: value / len(folders) for name, value in seconds(works, repeats).items()}
    size = sum(path.stat().st_size for path in folders[0].iterdir()) / 2**20
    return spent | {"ratio": spent["reader"] / spent["nibabel"], "mib_a_subject": size}


def second_pass(root: Path, cache: Path) -> float:
    """Seconds of a pass over a release whose slices are all in the cache.

    A linked subject has the slices of the subject that it is linked to.
    """
    store, slices = SliceStore(SubjectSlices, cache), {}
    for entry in brats.find_subjects(root):
        which = entry.files["t1"].stat().st_ino
        if which not in slices:
            slices[which] = brats.read_subject(entry, STANDARD)
        store.add(entry.scan, entry.files.values(), partial(slices.get, which), STANDARD)
    started = time.perf_counter()
    cohort = brats.read_brats(root, cache_dir=cache)
    spent = time.perf_counter() - started
    assert cohort.table["subject"].nunique() == len(brats.find_subjects(root))
    return spent


def doctor(root: Path) -> float:
    """Seconds of a quick look at the whole release."""
    started = time.perf_counter()
    lines, well = check_data(root, "brats")
    assert well, lines
    return time.perf_counter() - started


def resident(field: str) -> float:
    """A line of /proc/self/status in MiB: VmRSS (now) or VmHWM (the highest so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def memory(root: Path) -> float:
    """MiB over the imports that a first pass over `root` takes at most, in its own process."""
    command = [sys.executable, __file__, "--memory-of", str(root)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(folder: Path, subjects: int, repeats: int) -> dict:
    """All figures; the releases are written below `folder`."""
    result: dict = {"subjects": subjects, "shape": SHAPE, "processor": processor()}
    for ending in ENDINGS:
        root = folder / f"few{ending}"
        folders = write_release(root, ending, WRITTEN)
        timed = first_pass(root, folders, repeats)
        result |= {f"first_pass_{name}{ending}": value for name, value in timed.items()}
        result[f"memory_mib{ending}"] = memory(root)
    result["memory_mib"] = max(result[f"memory_mib{ending}"] for ending in ENDINGS)
    whole = folder / "whole"
    write_release(whole, ".nii.gz", subjects)
    result["second_pass_seconds"] = second_pass(whole, folder / "cache")
    result["doctor_seconds"] = doctor(whole)
    return result


def processor() -> str:
    """The model of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where files are written; by default a temporary folder")
    parser.add_argument("--subjects", type=int, default=SUBJECTS)
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--write", action="store_true", help="write results/reading.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.memory_of:
        before = resident("VmRSS")
        brats.read_brats(chosen.memory_of, cache_dir=Path(chosen.memory_of) / "cache")
        print(resident("VmHWM") - before)
        return {}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        result = compare(Path(folder), chosen.subjects, chosen.repeats)
    print(json.dumps(result, indent=2))
    for name, bound in BOUNDS.items():
        met = "met" if result[name] <= bound else "NOT MET"
        print(f"{name:26} {result[name]:8.2f}  at most {bound:.0f}  {met}")
    if chosen.write:
        print("wrote", write_json(ROOT / "results" / "reading.json", result).relative_to(ROOT))
    return result


if __name__ == "__main__":
    main()
