"""The command line of the experiments: `python -m studies brain | ablation | heart | fundus |
statistics | report | base | run | html`.

The options of a study are the fields of its settings, so that a new setting is an option at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from importlib import import_module
from typing import Any

from fairlib.errors import FairlibError

STUDIES = {
    "brain": (
        "studies.brain.study",
        "STUDY",
        "the brain study (Han et al.): arms tuned, sampled and read by every evaluator",
    ),
    "comparison": (
        "studies.brain.comparison",
        "STUDY",
        "the comparison of methods on one base: arms tuned, sampled and read by every evaluator",
    ),
    "sweep": (
        "studies.brain.comparison",
        "SWEEP",
        "rates and strengths of the compared methods, on a seed that no result uses",
    ),
    "transfer": (
        "studies.brain.comparison",
        "TRANSFER",
        "compared arms on other prompts, guidance scales and numbers of steps",
    ),
    "ablation": (
        "studies.brain.study",
        "ABLATION",
        "the default of the brain study, one part at a time taken away",
    ),
    "heart": (
        "studies.heart.study",
        "STUDY",
        "the cardiac study (Skorupko et al.): images, measures, classifiers",
    ),
    "fundus": (
        "studies.fundus.study",
        "STUDY",
        "the retinal study (Luo et al.): fine-tuning in several ways, measured by group",
    ),
    "statistics": (
        "studies.statistics",
        "STUDY",
        "simulations of what published tests do where there is nothing to find",
    ),
}
BASES = ("brain", "heart", "fundus")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 when a criterion is not met, 2 on a user's
    mistake.
    """
    options = _parser(sys.argv[1:] if arguments is None else arguments).parse_args(arguments)
    try:
        return options.command(options) or 0
    except FairlibError as error:
        print(f"studies: {error}", file=sys.stderr)
        return 2


def study_of(name: str) -> Any:
    """The study of that name."""
    module, attribute, _ = STUDIES[name]
    return getattr(import_module(module), attribute)


def run_one(options: argparse.Namespace) -> None:
    """Run a study over arms and seeds and write its tables (hours on slow cores; it resumes)."""
    from studies.engine.study import run_study

    study = study_of(options.study)
    known = {field.name for field in dataclasses.fields(study.settings)}
    given = {
        name: value for name, value in vars(options).items() if name in known and value is not None
    }
    print(
        run_study(
            study,
            study.settings(**given),
            options.arms,
            options.seeds,
            options.out or None,
            options.only,
        )
    )


def report(options: argparse.Namespace) -> int:
    """Print figures, intervals and criteria of every study whose results are there."""
    from studies.engine.criteria import formatted
    from studies.engine.study import reports

    tables = reports([study_of(name) for name in STUDIES])
    for folder, table in tables.items():
        print(f"{folder}\n{formatted(table).to_string(index=False)}\n")
    return 0 if not any(table["met"].isin([False]).any() for table in tables.values()) else 1


def base(options: argparse.Namespace) -> None:
    """Train the base weights of one study's generator."""
    print(import_module(f"studies.{options.model}.base").main())


def run(options: argparse.Namespace) -> None:
    """Execute the notebooks of a profile that are not up to date."""
    from studies.book.notebooks import run_profile

    for path in run_profile(options.profile, options.only, options.force, options.jobs):
        print(path)


def html(options: argparse.Namespace) -> None:
    """Build the book from the executed notebooks of a profile."""
    from studies.book.build import build_book

    print(build_book(options.profile, strict=not options.lenient))


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="studies", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, (_, _, words) in STUDIES.items():
        command = _command(commands, name, run_one, words)
        command.set_defaults(study=name)
        if arguments[:1] == [name]:  # a study is imported, with torch, only when it is asked for
            _add_study(command, study_of(name))
    _command(commands, "report", report)
    trained = _command(commands, "base", base)
    trained.add_argument(
        "model", nargs="?", default="brain", choices=BASES, help="which (default: brain)"
    )
    for name in ("run", "resume"):
        command = _command(commands, name, run)
        command.add_argument(
            "--only", nargs="+", metavar="NOTEBOOK", help="these notebooks only, as 03_classifier"
        )
        command.add_argument(
            "--force", action="store_true", help="run notebooks that are up to date, too"
        )
        command.add_argument(
            "--jobs",
            type=int,
            metavar="N",
            help="notebooks to run at the same time (default: two, but one on "
            "a single core or a GPU)",
        )
        command.add_argument(
            "--profile", default="quick", help="the name of a file in profiles/ (default: quick)"
        )
    book = _command(commands, "html", html)
    book.add_argument("--lenient", action="store_true", help="let warnings pass")
    book.add_argument(
        "--profile", default="quick", help="the name of a file in profiles/ (default: quick)"
    )
    return parser


def _command(commands: Any, name: str, function: Any, words: str = "") -> argparse.ArgumentParser:
    words = words or function.__doc__
    command = commands.add_parser(name, help=words, description=words)
    command.set_defaults(command=function)
    return command


def _add_study(command: argparse.ArgumentParser, study: Any) -> None:
    """Arms, seeds, tables, folder, and an option for every setting."""
    defaults = study.default_arms(study.settings())
    seeds = " ".join(map(str, study.seeds))
    command.add_argument(
        "--arms",
        nargs="*",
        metavar="ARM",
        help=f"default: {' '.join(defaults)}; known: {' '.join(study.arms)}",
    )
    command.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help=f"default: {seeds}")
    command.add_argument(
        "--only",
        nargs="+",
        metavar="TABLE",
        help=f"tables to make (default: all): {' '.join(study.tables)}",
    )
    command.add_argument(
        "--out",
        default="",
        help=f"where the tables go (default: results/{study.results().name}, or beside it "
        "where a setting asks for it)",
    )
    hints = typing.get_type_hints(study.settings)
    for field in dataclasses.fields(study.settings):
        add_setting(command, field, hints[field.name])


def add_setting(command: argparse.ArgumentParser, field: dataclasses.Field, hint: Any) -> None:
    """An option for one field of settings, where a command line can say it: numbers, words, choices
    and lists of them.
    """
    flag, origin = "--" + field.name.replace("_", "-"), typing.get_origin(hint)
    words = f"default: {field.default!r}"
    if origin in (types.UnionType, typing.Union):
        [hint] = [part for part in typing.get_args(hint) if part is not type(None)]
        origin = typing.get_origin(hint)
    if origin is typing.Literal:
        command.add_argument(flag, choices=typing.get_args(hint), help=words)
    elif hint is bool:
        command.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=words)
    elif hint in (int, float, str):
        command.add_argument(flag, type=hint, metavar=hint.__name__.upper(), help=words)
    elif origin is tuple and (inner := typing.get_args(hint)[0]) in (int, float, str):
        command.add_argument(
            flag, type=inner, nargs="*", metavar=inner.__name__.upper(), help=words
        )
