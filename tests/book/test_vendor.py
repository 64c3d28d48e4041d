"""The scripts of others that travel with the book are the ones on record."""

import hashlib
import re

import book_build
import yaml

VENDOR = book_build.BOOK / "vendor"


def test_every_vendored_file_has_the_sum_on_record():
    rows = re.findall(
        r"^\| `([0-9a-f]{64})` \| `([^`]+)` \|$", (VENDOR / "README.md").read_text(), re.M
    )
    record = {name: digest for digest, name in rows}
    files = {
        str(path.relative_to(VENDOR)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert files == record


def test_the_configuration_loads_scripts_from_the_vendored_folder_only():
    sphinx = yaml.safe_load((book_build.ROOT / "_config.yml").read_text())["sphinx"]["config"]
    for script in (sphinx["mathjax_path"], *sphinx["nb_ipywidgets_js"]):
        assert (VENDOR / script).is_file()


def test_each_vendored_folder_has_its_licence():
    for folder in (path for path in VENDOR.iterdir() if path.is_dir()):
        assert "copyright" in (folder / "LICENSE.txt").read_text().lower()
