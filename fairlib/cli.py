"""The command `fairlib`: what is installed and where, a pipeline fine-tuned on captioned images,
images of a pipeline, its tuning towards a target, and its audit.

    fairlib doctor --data-dir BraTS2018 --cohort brats
    fairlib finetune sd15 --data-dir ROCO --cohort roco --lora 16 --precision fp16 --out fine
    fairlib sample weights/brain "Axial T2-weighted MRI of the brain." --count 8 --out images
    fairlib tune weights/brain prompts.txt --classifier mine:load --scores scores.csv --shares
    F=0.458 M=0.542 --out tuned
    fairlib audit tuned prompts.txt --classifier held-out=mine:other --shares F=0.458 M=0.542
    --calibration calibration.csv --out audit

The long runs of the book are `python -m studies`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from inspect import cleandoc
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fairlib.commands import audit, doctor, finetune, sample, tune
from fairlib.doctor import CAPTIONED, READERS
from fairlib.errors import FairlibError

Parser = argparse.ArgumentParser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 when something is not well, 2 on a user's
    mistake, 130 when it is interrupted.
    """
    return run_command(_parser, arguments, "fairlib")


def run_command(
    make: Callable[[list[str]], Parser], given: list[str] | None, program: str, after: str = ""
) -> int:
    """Run the command that `given` (by default the process's own arguments) names to the parser
    that `make` makes of them; returns its exit status, 2 on a user's mistake, 130 when it is
    interrupted (`after`: what to do then).
    """
    try:
        options = make(sys.argv[1:] if given is None else given).parse_args(given)
        return options.command(options) or 0
    except FairlibError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted{after}", file=sys.stderr)
        return 130


def _parser(arguments: Sequence[str] = ()) -> Parser:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="fairlib", description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(required=True, metavar="command")
    machine = add_command(commands, doctor)
    text = "a folder of weights, to check their hashes (default: weights)"
    machine.add_argument("--weights", default="weights", help=text)
    machine.add_argument("--data-dir", default="", help="a real cohort's folder, to ask its reader")
    machine.add_argument("--cohort", default="brats", choices=tuple(READERS))
    text = "read every byte of the data and name every broken file (default: tables, names, sizes, "
    machine.add_argument("--deep", action="store_true", help=f"{text}headers and masks)")
    draw, align, check = (add_command(commands, one) for one in (sample, tune, audit))
    learn = add_command(commands, finetune)
    _add_shared(draw, align, check, learn)
    _add_work(draw, align, check)
    _add_finetune(learn, "finetune" in arguments)
    return parser


def _add_shared(draw: Parser, align: Parser, check: Parser, learn: Parser) -> None:
    """What every command that loads a pipeline is asked for."""
    place = "a pipeline folder in diffusers' layout, or a hub name"
    texts = "prompts, or one file: text with a prompt a line, or a CSV with the column `prompt`"
    images = "a folder of PNG or JPEG images, with their prompts in images.csv"
    checked = f"{texts}; of a folder of images, those to audit (default: all)"
    for command in (draw, align):
        command.add_argument("pipeline", help=place)
        command.add_argument("prompts", nargs="+", help=texts)
    check.add_argument("pipeline", help=f"{place}, or {images}")
    check.add_argument("prompts", nargs="*", help=checked)
    learn.add_argument("pipeline", help=f"{place}, or a preset as sd15")
    learn.add_argument("--prompts", nargs="+", default=(), help=f"of panels: {texts}")
    for command in (draw, align, check, learn):
        _add(command, "--out", "the folder to write to", required=True)
        _add(command, "--device", "as cpu or cuda:1 (default: the first GPU, or the CPU)")
        command.add_argument("--download", action="store_true", help="fetch hub names")


def _add_work(draw: Parser, align: Parser, check: Parser) -> None:
    """The further options of `sample`, `tune` and `audit`."""
    for command in (draw, align, check):
        _add(command, "--seed", "default: 0", 0)
        text = "images at once; bounds memory, changes no result (default: 8)"
        _add(command, "--micro-batch", text, 8)
        text = "of weights and images (default: fp32)"
        _add(command, "--precision", text, "fp32", choices=("fp32", "bf16", "fp16"))
        _add(command, "--image-size", "pixels a side (default: as the pipeline says)", 0)
    for command, count in ((draw, 1), (check, 50)):
        _add(command, "--count", f"images of each prompt (default: {count})", count)
        _add(command, "--steps", "of the solver (default: 20)", 20)
        _add(command, "--guidance-scale", "default: 4", 4.0)
    place = "a classifier's folder, or package.module:function that returns one"
    _add(align, "--classifier", place, required=True)
    _add(draw, "--classifier", f"choose images by its scores: {place}")
    text = "images generated for each that --classifier chooses (default: 3)"
    _add(draw, "--draws-per-image", text, 3.0)
    text = f"one or several: {place}; as NAME=CLASSIFIER"
    _add(check, "--classifier", text, required=True, nargs="+")
    place = "biomedclip, openai, an open_clip name as ViT-B-32:openai, hf-hub:..., or a folder"
    _add(align, "--clip", f"keeps images consistent: {place}")
    _add(check, "--clip", f"feature space of distances: {place}")
    for command in (draw, align, check):
        text = "as F=0.458 M=0.542"
        if command is not check:
            text += "; or, for a CSV of prompts by `group`, one of `group` and shares of F, M, ..."
        command.add_argument("--shares", nargs="+", default=[], metavar="GROUP=SHARE", help=text)
    text = "a CSV: `group` (as in --shares), each classifier's logits in the column of its name"
    _add(check, "--calibration", f"{text}, and `subject` if there is one")
    _add(check, "--reference", "a folder of real images, for distances")
    text = "a CSV with the classifier's logits on real images; `label`, the recorded group of each "
    text += "(by default what the classifier decides: the aim is then the share as it reads it); "
    text += "`group` (of prompts) where shares differ; and `image`, a name, if there is one"
    for command in (draw, align):
        _add(command, "--scores", text, required=command is align)
    _add(align, "--steps", "optimiser steps (default: 90)", 90)
    _add(align, "--save-every", "steps from one saved state to the next (default: 10)", 10)
    _add(align, "--lora", "tune LoRA weights of this rank alone", 0)


def _add(command: Parser, flag: str, text: str, default: Any = "", **how: Any) -> None:
    """Add an option of the type of its `default`."""
    command.add_argument(flag, help=text, type=type(default), default=default, **how)


def _add_finetune(command: Parser, used: bool) -> None:
    """The further options of `finetune`; its settings where it is `used`, for they load torch."""
    readers = "captions: captions.csv with image and caption, or a text beside each image"
    _add(command, "--cohort", readers, required=True, choices=CAPTIONED)
    _add(command, "--data-dir", "the folder of the data", required=True)
    _add(command, "--revision", "of a hub name: a commit of 40 digits")
    if not used:
        return
    from fairlib.models.loading import PRESETS
    from fairlib.stage_one import StageOneSettings

    presets = (f"{name} ({each.source}: {each.note})" for name, each in PRESETS.items())
    command.epilog = f"presets: {', '.join(presets)}"
    hints, doc = get_type_hints(StageOneSettings), cleandoc(StageOneSettings.__doc__ or "")
    words = {
        name: " ".join(text.split())
        for names, text in re.findall(r"(?m)^([\w, ]+)\n((?: {4}.+\n)+)", doc)
        for name in names.split(", ")
    }
    for field in fields(StageOneSettings):
        default = "" if field.default is None else f" (default: {field.default})"
        add_setting(command, field.name, hints[field.name], words[field.name] + default)


def add_setting(command: Parser, name: str, hint: Any, text: str) -> None:
    """Add an option for one field of settings, where a command line can say it: numbers, words,
    choices and lists of them, and mappings as JSON. `hint`: the field's type.
    """
    flag = "--" + name.replace("_", "-")
    if get_origin(hint) in (UnionType, Union):
        [hint] = [part for part in get_args(hint) if part is not type(None)]
    origin, parts = get_origin(hint), get_args(hint)
    nargs = "*" if origin is tuple else None
    kind = parts[0] if origin is tuple else hint
    if origin is Literal:
        command.add_argument(flag, choices=parts, help=text)
    elif hint is bool:
        command.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif origin is dict:
        command.add_argument(flag, type=json.loads, metavar="JSON", help=text)
    elif kind in (int, float, str):
        metavar = kind.__name__.upper()
        command.add_argument(flag, type=kind, nargs=nargs, metavar=metavar, help=text)


def add_command(
    commands: Any, function: Callable, text: str = "", name: str = "", **options: Any
) -> Parser:
    """Add a command that calls `function` with its options; `text` and `name` are by default the
    function's own.
    """
    text, name = text or function.__doc__ or "", name or function.__name__
    command = commands.add_parser(name, help=text, description=text, **options)
    command.set_defaults(command=function)
    return command


if __name__ == "__main__":
    raise SystemExit(main())
