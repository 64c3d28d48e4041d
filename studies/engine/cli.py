"""The command line: `python -m studies doctor | run | resume | html | report | study | ablation |
heart | fundus | statistics | base`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairlib.errors import FairlibError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 when something is found wanting, 2 on a user's
    mistake.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except FairlibError as error:
        print(f"fairlib: {error}", file=sys.stderr)
        return 2


def doctor(options) -> int:
    """Print versions, device, memory, and whether weights and data are whole."""
    from studies.doctor import examine

    lines, well = examine(options.data_dir, options.cohort)
    print("\n".join(lines))
    return 0 if well else 1


def run(options) -> None:
    """Execute the notebooks of a profile that are not up to date."""
    from studies.book.notebooks import run_profile

    for path in run_profile(options.profile, options.only, options.force, options.jobs):
        print(path)


def html(options) -> None:
    """Build the book from the executed notebooks of a profile."""
    from studies.book.build import build_book

    print(build_book(options.profile, strict=not options.lenient))


def report(options) -> int:
    """Print the figures, intervals and bounds of every study whose results are there."""
    from studies.brain.report import many_images_folder
    from studies.brain.study import STUDY as BRAIN
    from studies.engine.study import criteria_of
    from studies.fundus.report import fundus_report
    from studies.fundus.study import fundus_results_folder
    from studies.heart.report import heart_report, heart_results_folder
    from studies.statistics import statistics_folder, statistics_report

    tables = [criteria_of(BRAIN)]
    if folder := many_images_folder():
        tables.append(criteria_of(BRAIN, folder))
    if (heart_results_folder() / "study.json").is_file():
        tables.append(heart_report())
    if (statistics_folder() / "study.json").is_file():
        tables.append(statistics_report())
    if (fundus_results_folder() / "study.json").is_file():
        tables.append(fundus_report())
    print(
        "\n\n".join(
            table.to_string(index=False, float_format="{:.3f}".format, na_rep="-")
            for table in tables
        )
    )
    met = (table["met" if "met" in table else "holds"].ne(False).all() for table in tables)
    return 0 if all(met) else 1


def study(options) -> None:
    """Run the brain study over arms and seeds and write results/brain (hours on two slow cores; it
    resumes).
    """
    from studies.brain.settings import BrainSettings
    from studies.brain.study import STUDY
    from studies.engine.study import run_study

    settings = BrainSettings(images=options.images)
    only = ("readings", "slices", "history", "cost") if options.readings_only else None
    references = not options.readings_only
    print(run_study(STUDY, settings, options.arms, options.seeds, options.out, only, references))


def ablation(options) -> None:
    """Tune the default again with one part at a time taken away, and write results/ablation (it
    resumes).
    """
    from studies.brain.settings import BrainSettings
    from studies.brain.study import ABLATION
    from studies.engine.study import run_study

    settings = BrainSettings(images=options.images)
    print(run_study(ABLATION, settings, options.arms or None, options.seeds, options.out))


def heart(options) -> None:
    """Run the heart study, or a half of it with --people or --guidance; write results/heart (hours
    on slow cores; it resumes).
    """
    from studies.heart import HeartStudy, run_heart_study

    study = HeartStudy(
        cohort=options.cohort,
        data_dir=options.data_dir,
        weights=options.weights,
        images=options.images,
        synthetic=options.synthetic,
        classifier_people=options.people,
        guidance_scale=options.guidance,
    )
    print(
        run_heart_study(
            study,
            options.arms,
            options.seeds,
            options.out and Path(options.out),
            n_min=options.n_min,
        )
    )


def fundus(options) -> None:
    """Run the fundus study over arms and seeds and write results/fundus (hours on two slow cores;
    it resumes).
    """
    from studies.fundus import FundusStudy, run_fundus_study

    study = FundusStudy(
        cohort=options.cohort,
        data_dir=options.data_dir,
        weights=options.weights,
        everyone=options.everyone,
        images=options.images,
        reference_people=max(options.images, FundusStudy.reference_people),
        steps=options.steps,
        learning_rate=options.learning_rate,
    )
    print(run_fundus_study(study, options.arms, options.seeds, options.out and Path(options.out)))


def statistics(options) -> None:
    """Simulate what published statistics do where nothing is to be found, and write
    results/statistics (minutes).
    """
    from studies.statistics import load_statistics, run_statistics, statistics_report

    folder = run_statistics(out=options.out or None)
    print(
        statistics_report(load_statistics(folder)).to_string(
            index=False, float_format="{:.3f}".format
        )
    )


def base(options) -> int:
    """Train the base weights of one chapter's model."""
    if options.model == "heart":
        from studies.heart.base import main as train
    elif options.model == "fundus":
        from studies.fundus.base import main as train
    else:
        from studies.brain.base import main as train
    train()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fairlib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, function in {"run": run, "resume": run}.items():
        command = _command(commands, name, function)
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
            help="parts of the book to run at the same time (default: "
            "two, but one on a single core or a GPU)",
        )
        _add_profile(command)
    book = _command(commands, "html", html)
    book.add_argument("--lenient", action="store_true", help="let warnings pass")
    _add_profile(book)
    examine = _command(commands, "doctor", doctor)
    examine.add_argument(
        "--data-dir", default="", help="the folder of a real cohort, to check its layout"
    )
    examine.add_argument(
        "--cohort",
        default="brats",
        choices=["brats", "roco", "rocov2", "mnms", "acdc", "fairgenmed", "ham10000", "chexpert"],
    )
    _command(commands, "report", report)
    model = _command(commands, "base", base)
    model.add_argument(
        "model",
        nargs="?",
        default="brain",
        choices=["brain", "heart", "fundus"],
        help="which (default: brain)",
    )
    whole = _command(commands, "study", study)
    whole.add_argument(
        "--arms", nargs="*", default=["plain", "robust", "conditional"], metavar="ARM"
    )
    whole.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="SEED")
    whole.add_argument(
        "--out",
        default="",
        help="where the tables go (default: results/brain, or beside it with "
        "--images, as results/brain-4000)",
    )
    whole.add_argument(
        "--images", type=int, default=1000, help="images of each arm and seed (default: 1000)"
    )
    whole.add_argument(
        "--readings-only",
        action="store_true",
        help="only what the judges read in these arms; neither the "
        "untuned model beside them nor fidelity, likeness and quality",
    )
    parts = _command(commands, "ablation", ablation)
    parts.add_argument("--arms", nargs="*", default=[], metavar="ARM", help="default: all")
    parts.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="SEED")
    parts.add_argument("--out", default="", help="where the table goes (default: results/ablation)")
    parts.add_argument(
        "--images", type=int, default=500, help="images of each variant and seed (default: 500)"
    )
    _add_heart(commands)
    _add_fundus(commands)
    chapter = _command(commands, "statistics", statistics)
    chapter.add_argument(
        "--out", default="", help="where the tables go (default: results/statistics)"
    )
    return parser


def _add_heart(commands) -> None:
    command = _command(commands, "heart", heart)
    command.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help="default: real reweighted resampled mixed pretrained, and "
        "extra_real where the cohort is synthetic",
    )
    command.add_argument("--seeds", nargs="+", type=int, default=list(range(1, 9)), metavar="SEED")
    command.add_argument(
        "--n-min",
        type=int,
        default=10,
        metavar="N",
        help="ill and healthy people that a subgroup of the downstream tables must have (default: "
        "10)",
    )
    command.add_argument("--cohort", default="phantom", choices=["phantom", "mnms"])
    command.add_argument(
        "--data-dir", default="", help="the folder that holds OpenDataset, for mnms"
    )
    command.add_argument(
        "--weights", default="weights/heart", help="the generator's folder (default: weights/heart)"
    )
    command.add_argument(
        "--images",
        type=int,
        default=800,
        help="images of each way that are measured (default: 800)",
    )
    command.add_argument(
        "--synthetic",
        type=int,
        default=2000,
        help="images that classifiers train on (default: 2000)",
    )
    command.add_argument(
        "--people",
        type=int,
        default=0,
        help="real people that classifiers train on, and the downstream tables alone (default: all "
        "whom the "
        "generator saw)",
    )
    command.add_argument(
        "--guidance",
        type=float,
        default=4.0,
        metavar="SCALE",
        help="another guidance scale than the paper's 4, and the tables on the hearts alone, no "
        "classifiers",
    )
    command.add_argument(
        "--out",
        default="",
        help="where the tables go (default: results/heart, of real people results/heart-mnms; with "
        "-shared "
        "behind it with --people, -guidanceSCALE with --guidance)",
    )


def _add_fundus(commands) -> None:
    command = _command(commands, "fundus", fundus)
    arms = [
        "plain",
        "released",
        "repaired",
        "random",
        "random-repaired",
        "inverse",
        "dro",
        "balanced",
    ]
    command.add_argument("--arms", nargs="*", default=arms, metavar="ARM")
    command.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], metavar="SEED")
    command.add_argument("--cohort", default="phantom", choices=["phantom", "fairgenmed"])
    command.add_argument(
        "--data-dir", default="", help="the folder that holds data_summary.csv, for fairgenmed"
    )
    command.add_argument(
        "--weights",
        default="weights/fundus-white",
        help="the generator that fine-tuning starts from (default: weights/fundus-white)",
    )
    command.add_argument(
        "--everyone",
        default="weights/fundus",
        help="a generator trained on everybody, shown beside the arms; '' for none (default: "
        "weights/fundus)",
    )
    command.add_argument(
        "--images", type=int, default=600, help="pictures of each arm and seed (default: 600)"
    )
    command.add_argument(
        "--steps", type=int, default=180, help="optimiser steps of each fine-tuning (default: 180)"
    )
    command.add_argument(
        "--learning-rate", type=float, default=3e-4, help="of every arm (default: 3e-4)"
    )
    command.add_argument("--out", default="", help="where the tables go (default: results/fundus)")


def _command(commands, name: str, function) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
    command.set_defaults(command=function)
    return command


def _add_profile(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--profile", default="quick", help="the name of a file in profiles/ (default: quick)"
    )
