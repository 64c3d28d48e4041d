"""The command line of the experiments: `python -m studies brain | heart | fundus |
statistics | grid | report | base | run | html | address`.

The options of a study are the fields of its settings, so that a new setting is an option at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import typing
from pkgutil import resolve_name
from typing import Any

from fairlib.cli import add_command, add_setting, run_command
from fairlib.errors import SettingsError
from fairlib.settings import from_dict, require_known

STUDIES = {  # where it is defined, and what it is
    "brain": ("studies.brain.study:STUDY", "brain MRI (Han et al.): methods compared on one base"),
    "sweep": ("studies.brain.study:SWEEP", "rates and strengths of the brain study's methods"),
    "transfer": ("studies.brain.study:TRANSFER", "arms under other prompts and sampling"),
    "heart": ("studies.heart.study:STUDY", "cardiac MRI (Skorupko et al.): images, classifiers"),
    "fundus": ("studies.fundus.study:STUDY", "fundus images (Luo et al.): fine-tuning, by group"),
    "statistics": ("studies.statistics:STUDY", "what published tests do where there is no effect"),
}
BASES = ("brain", "brain-second", "brain-realistic", "brain-balanced", "heart", "fundus")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 when a criterion is not met, 2 on a user's
    mistake, 130 when it is interrupted.
    """
    return run_command(_parser, arguments, "studies", "; run the same command again to resume")


def study_of(name: str) -> Any:
    """The study of that name. Raises `SettingsError` when there is none."""
    require_known(name, STUDIES, "the studies")
    return resolve_name(STUDIES[name][0])


def run_one(options: argparse.Namespace) -> None:
    """Run a study over arms and seeds and write its tables (hours on slow cores; it resumes)."""
    from studies.engine.profiles import at_home
    from studies.engine.running import run_study

    study = study_of(options.study)
    names = {field.name for field in dataclasses.fields(study.settings)}
    given = {n: at_home(v) for n, v in vars(options).items() if n in names and v is not None}
    out = at_home(options.out) or None
    settings = from_dict(study.settings, given)
    print(run_study(study, settings, options.arms, options.seeds, out, options.only))


def grid(options: argparse.Namespace) -> int:
    """Run arms and seeds of several studies: done ones are skipped, failed ones named last."""
    from fairlib.io import write_bytes
    from studies.engine.grid import missing, run_grid, workflow
    from studies.engine.profiles import at_home

    chosen_settings = {name: at_home(value) for name, value in options.settings.items()}
    if options.jobs < 1:
        raise SettingsError(f"jobs is {options.jobs}; give a whole number from 1")
    if options.device:
        os.environ["FAIRLIB_DEVICE"] = options.device
    cells, places = {}, {}  # without what is named twice
    for name, _, chosen in (text.partition(":") for text in options.cells):
        study, places[name] = study_of(name), STUDIES[name][0]
        left = missing(study, from_dict(study.settings, chosen_settings), chosen)
        cells |= dict.fromkeys((name, arm, seed) for arm, seed in left)
    if options.list:
        for cell in cells:
            print(*cell, sep=":")
        return 0
    if options.snakemake:
        print(write_bytes(options.snakemake, workflow(chosen_settings, list(cells)).encode()))
        return 0
    failed = run_grid(places, chosen_settings, list(cells), options.jobs)
    for label in failed:
        print(f"failed: {label}", file=sys.stderr)
    return 1 if failed else 0


def report(options: argparse.Namespace) -> int:
    """Print figures, intervals and criteria of every study whose results are there."""
    from studies.engine.criteria import formatted, reports

    tables = reports([study_of(name) for name in STUDIES])
    for folder, table in tables.items():
        shown = "no criteria" if table.empty else formatted(table).to_string(index=False)
        print(f"{folder}\n{shown}\n")
        if old := table.attrs.get("outdated"):
            cells = "; ".join(f"{arm}, seeds {' '.join(map(str, old[arm]))}" for arm in old)
            print(f"Rows of {folder} that other code made than its latest rows: {cells}\n")
    return 0 if not any(table["met"].isin([False]).any() for table in tables.values()) else 1


def base(options: argparse.Namespace) -> None:
    """Train the base weights of one study's generator."""
    print(resolve_name("studies.bases:RECIPES")[options.model]())


def run(options: argparse.Namespace) -> None:
    """Execute the notebooks of a profile that are not up to date."""
    from studies.book.notebooks import run_profile

    for path in run_profile(options.profile, options.only, options.force, options.jobs):
        print(path)


def html(options: argparse.Namespace) -> None:
    """Build the book from the executed notebooks of a profile."""
    from studies.book.build import build_book

    print(build_book(options.profile, strict=not options.lenient))


def address(options: argparse.Namespace) -> None:
    """Print the repository's address; or write URL into badges, launch buttons, citation and
    set-up cells, and name the files that changed.
    """
    from studies.book import address as places

    print(*(places.set_address(options.url) if options.url else [places.address()]), sep="\n")


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="studies", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, (_, words) in STUDIES.items():
        command = add_command(commands, run_one, words, name)
        command.set_defaults(study=name)
        if arguments[:1] == [name]:  # a study is imported, with torch, only when it is asked for
            _add_study(command, study_of(name))
    many = add_command(commands, grid, fromfile_prefix_chars="@")
    words = "as brain, brain:plain,robust:1,2 or heart::3; @FILE has one a line"
    many.add_argument("cells", nargs="+", metavar="STUDY[:ARMS[:SEEDS]]", help=words)
    many.add_argument("--list", action="store_true", help="print what is left, and run nothing")
    words = "write what is left as a workflow of Snakemake, and run nothing"
    many.add_argument("--snakemake", metavar="FILE", help=words)
    many.add_argument("--jobs", type=int, default=1, metavar="N", help="at a time (default: 1)")
    many.add_argument("--device", help="where networks run, as cuda:1 (default: a GPU, or the CPU)")
    words = "of every study named, as '{\"images\": 400}' (default: those of a long run)"
    many.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help=words)
    add_command(commands, report)
    trained = add_command(commands, base)
    trained.add_argument("model", nargs="?", default="brain", choices=BASES, help="default: brain")
    profile, words = argparse.ArgumentParser(add_help=False), "a file in profiles/ (default: quick)"
    profile.add_argument("--profile", default="quick", help=words)
    notebooks = add_command(commands, run, parents=[profile], aliases=["resume"])
    notebooks.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="these, as 03_classifier")
    notebooks.add_argument("--force", action="store_true", help="run what is up to date, too")
    jobs = "at the same time (default: two, but one on a single core or a GPU)"
    notebooks.add_argument("--jobs", type=int, metavar="N", help=jobs)
    book = add_command(commands, html, parents=[profile])
    book.add_argument("--lenient", action="store_true", help="let warnings pass")
    published = add_command(commands, address)
    published.add_argument("url", nargs="?", metavar="URL", help="as https://github.com/OWNER/NAME")
    return parser


def _add_study(command: argparse.ArgumentParser, study: Any) -> None:
    """Arms, seeds, tables, folder, and an option for every setting."""
    usual = " ".join(study.default_arms(study.settings()))
    arms = f"default: {usual}; known: {' '.join(study.arms)}"
    seeds = f"default: {' '.join(map(str, study.seeds))}"
    tables = f"tables to make (default: all): {' '.join(study.tables)}"
    place = f"default: results/{study.results().name}, or beside it where a setting asks for it"
    command.add_argument("--arms", nargs="*", metavar="ARM", help=arms)
    command.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help=seeds)
    command.add_argument("--only", nargs="+", metavar="TABLE", help=tables)
    command.add_argument("--out", default="", help=f"where the tables go ({place})")
    hints = typing.get_type_hints(study.settings)
    for name, default in vars(study.settings()).items():
        add_setting(command, name, hints[name], f"default: {default!r}")
