"""What the set-up cell of a notebook runs in Google Colab: `%run studies/book/colab.py [--drive]`.

It installs what is missing, replaces nothing that the runtime has loaded, chooses a folder for
results that outlives a restart, and says where networks run. A second run finds all of it done.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("figures", "models", "notebooks")
KEPT = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "requests")
DRIVE = "/content/drive"  # where Colab mounts it
HERE = "/content/fairlib-runs"  # outlives the kernel, not the machine
NO_GPU = (
    "no GPU (Runtime, Change runtime type, to get one): on two slow cores all eleven notebooks "
    'take about five minutes together with profile = "quick"; profile = "colab" is made for a GPU'
)


def set_up(drive: bool = False) -> None:
    """Prepare this session of Colab; with `drive`, results go to Google Drive, for which Colab asks
    permission. A folder named in `FAIRLIB_RUNS` is kept. Raises `RuntimeError` when a package
    cannot be installed.
    """
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    install(missing(requirements()))
    folder = keep_results(drive)
    print(f"results: {folder}; completed stages there are not computed again")
    if not folder.startswith(DRIVE):
        print("they are lost with this machine; add --drive to the %run line to use Google Drive")
    print(device())


def requirements() -> list[str]:
    """What `pyproject.toml` asks for where notebooks run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return project["dependencies"] + [text for name in EXTRAS for text in extras[name]]


def missing(texts: list[str]) -> list[str]:
    """Those of the requirements that no installed package meets."""
    return [text for text in texts if not _is_met(Requirement(text))]


def install(texts: list[str]) -> None:
    """Install the requirements, each as the newest version that leaves the packages `KEPT` as they
    are: the running kernel may have loaded those.
    """
    if not texts:
        return
    print(f"installing {', '.join(Requirement(text).name for text in texts)}: about a minute")
    with TemporaryDirectory() as folder:
        fixed = Path(folder, "constraints.txt")
        found = {name: _version(name) for name in KEPT}
        lines = [f"{name}=={version}\n" for name, version in found.items() if version]
        fixed.write_text("".join(lines))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(fixed), *texts]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"packages could not be installed; run this cell again\n{done.stderr}")
    importlib.invalidate_caches()


def keep_results(drive: bool) -> str:
    """Set and return `FAIRLIB_RUNS`, the folder of all that runs leave behind."""
    if drive:
        importlib.import_module("google.colab.drive").mount(DRIVE)  # a package only Colab has
    usual = f"{DRIVE}/MyDrive/fairlib-runs" if drive else HERE
    chosen = os.environ.get("FAIRLIB_RUNS", HERE)
    os.environ["FAIRLIB_RUNS"] = usual if chosen == HERE else chosen
    return os.environ["FAIRLIB_RUNS"]


def device() -> str:
    """The GPU's name, or how long notebooks take without one."""
    import torch

    return f"GPU: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else NO_GPU


def _is_met(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    """The version that is installed; None where none is."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drive", action="store_true", help="keep results in Google Drive")
    set_up(**vars(parser.parse_args()))
