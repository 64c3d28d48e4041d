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
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from fairlib.doctor import CAPTIONED, READERS, examine
from fairlib.errors import DataError, FairlibError, SettingsError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from fairlib.methods.targets import Target
    from fairlib.models.clip import Clip
    from fairlib.models.generator import Generator

Parser = argparse.ArgumentParser
PRECISIONS = ("fp32", "bf16", "fp16")
REAL = ("image", "group", "label")  # texts in the table of real images; its numbers are logits
FEW: dict[str, Any] = {}  # settings of `tune` beside those of the command line, for tests


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


def doctor(options: argparse.Namespace) -> int:
    """Print versions, device, memory, and whether weights and data are whole."""
    lines, well = examine(options.weights, options.data_dir, options.cohort, options.deep)
    print("\n".join(lines))
    return 0 if well else 1


def sample(options: argparse.Namespace) -> None:
    """Generate images of prompts and write them as PNG files, with their prompts in `images.csv`;
    with --classifier, those of a pool whose scores follow the scores on real images.
    """
    import pandas as pd

    from fairlib.io import write_bytes, write_image

    chosen = options.classifier or options.scores or options.shares
    images, prompts = _chosen(options) if chosen else _sampled(options)
    out = Path(options.out)
    names = [f"{number:05d}.png" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        write_image(out / name, image)
    table = pd.DataFrame({"image": names, "prompt": prompts})
    write_bytes(out / "images.csv", table.to_csv(index=False).encode())
    print(out)


def tune(options: argparse.Namespace) -> None:
    """Tune a pipeline until a classifier's scores on its images follow those on real images, in the
    shares asked for; the same command again goes on where a run was killed.
    """
    from dataclasses import replace

    from fairlib.io import read_tensors, write_tensors
    from fairlib.methods.alignment import AlignmentSettings
    from fairlib.methods.alignment import tune as steps
    from fairlib.methods.processes import start
    from fairlib.models.classifier import find_classifier

    if options.save_every < 1:
        raise SettingsError(f"--save-every {options.save_every}: give a whole number from 1")
    is_first = start() == 0  # of those that `accelerate launch` or `torchrun` started
    generator = _generator(options)
    prompts, target = _aim(options)
    if is_first:
        print(_aim_in_words(options.scores), flush=True)
    embed = _clip(options).embed_images if options.clip else None
    settings = replace(
        AlignmentSettings(prompts_per_step=min(4, len(prompts))),
        seed=options.seed,
        steps=options.steps,
        micro_batch=options.micro_batch,
        trainable="lora" if options.lora else "full",
        lora_rank=options.lora or 8,
        **FEW,
    )
    classifier = find_classifier(options.classifier, accelerator(options.device))
    path = _state_of(options, settings, prompts, target)
    state = read_tensors(path) if path.is_file() else None
    more: Any = {"embed": embed, "settings": settings, "state": state}
    for step in steps(generator, classifier, prompts, target, **more):
        if not is_first:
            continue
        if (step.step + 1) % options.save_every == 0:
            write_tensors(path, step.state.to_tensors())
        text = ", ".join(f"{name} {share:.3f}" for name, share in step.shares.items())
        print(f"step {step.step + 1} of {settings.steps}: {text}", flush=True)
    if is_first:
        generator.save(options.out)
        path.unlink(missing_ok=True)
        print(options.out)


def _state_of(options: argparse.Namespace, *given: Any) -> Path:
    """Where this run of `tune` keeps its state until its results are there: beside them, in a file
    whose name another model or anything else `given` would change. What a kill left of one half
    written is removed.
    """
    from fairlib.settings import digest

    models = [options.pipeline, options.classifier, options.clip]
    form = [options.precision, options.image_size]
    out = Path(options.out).expanduser().absolute()
    path = out.with_name(f"{out.name}-{digest([models, form, given])}.safetensors")
    for half in out.parent.glob(f".{path.name}.*"):
        half.unlink()
    return path


def finetune(options: argparse.Namespace) -> None:
    """Fine-tune a pipeline on images with captions (stage one of Han et al.), its text encoder
    frozen; the same command again goes on where a run was killed.
    """
    from fairlib.settings import from_dict
    from fairlib.stage_one import StageOneSettings, stage_one

    names = {field.name for field in fields(StageOneSettings)}
    given = {k: v for k, v in vars(options).items() if k in names and v is not None}
    settings = from_dict(StageOneSettings, given)
    places = (options.pipeline, options.data_dir, options.cohort, options.out)
    prompts = _prompts(options.prompts) if options.prompts else ()
    device, local = accelerator(options.device), not options.download
    more: Any = {"revision": options.revision, "prompts": prompts, "local_files_only": local}
    for done in stage_one(*places, settings, device=device, **more):
        print(f"step {done.step} of {settings.steps}: loss {done.loss:.4f}", flush=True)
    print(options.out)


def audit(options: argparse.Namespace) -> None:
    """Write what classifiers say of a pipeline's images, or of a folder of images: shares with
    intervals, ambiguous images, distances and what was assumed, as one page and as JSON.
    """
    from fairlib.auditing import audit as measure
    from fairlib.auditing import read_folder
    from fairlib.cohorts.tables import read_table
    from fairlib.rng import Stream, numpy_rng

    folder, device = Path(options.pipeline).expanduser(), accelerator(options.device)
    rng, classifiers = numpy_rng(options.seed, Stream.AUDIT), _classifiers(options)
    shares, assumed = _shares(options.shares), {"Source": options.pipeline}
    more: dict[str, Any] = {"rng": rng, "assumed": assumed}
    if options.calibration:
        more["calibration"] = read_table(options.calibration)
    if options.reference:
        more["reference"] = read_folder(options.reference)[0].to(device)
    if options.clip:
        more["embeds"] = {f"CLIP ({options.clip})": _clip(options).embed_images}
    if (folder / "model_index.json").is_file() or not any(folder.glob("*.[pPjJ]*[gG]")):
        images, prompts = _sampled(options)
        solver = f"{options.steps} solver steps, guidance scale {options.guidance_scale:g}"
        assumed["Sampling"] = f"seed {options.seed}, {solver}, {options.precision}"
    else:
        images, prompts = read_folder(folder, _prompts(options.prompts) if options.prompts else ())
    measure(images.to(device), prompts, classifiers, shares, **more).save(options.out)
    print(Path(options.out) / "audit.html")


def accelerator(name: str = "") -> str:
    """`name`, or "cuda" where there is one, or "cpu"."""
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def _generator(options: argparse.Namespace) -> Generator:
    """The pipeline on the device, in the precision and for the image size that are asked for."""
    from fairlib.models.generator import Generator

    device, local = accelerator(options.device), not options.download
    generator = Generator.load(options.pipeline, device, local_files_only=local)
    generator.adapt(options.precision, options.image_size)
    return generator


def _sampled(options: argparse.Namespace) -> tuple[Tensor, list[str]]:
    """Images of every prompt, and the prompt of each."""
    prompts = [prompt for prompt in _prompts(options.prompts) for _ in range(options.count)]
    how = _sampling(options)
    return _generator(options).sample(prompts, rng=options.seed, **how), prompts


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """What the sampler is told of each image."""
    if options.count < 1:
        raise SettingsError(f"--count {options.count}: give a whole number from 1")
    return {name: getattr(options, name) for name in ("steps", "guidance_scale", "micro_batch")}


def _chosen(options: argparse.Namespace) -> tuple[Tensor, list[str]]:
    """Images whose noises are chosen by the scores of a classifier, and the prompt of each."""
    import torch

    from fairlib.methods.selection import generate_and_keep
    from fairlib.models.classifier import find_classifier

    if not (options.classifier and options.scores and options.shares):
        raise SettingsError(
            "to choose images, give all three of --classifier, --scores and --shares; else none"
        )
    how = _sampling(options) | {"draws_per_image": options.draws_per_image, "seed": options.seed}
    classifier = find_classifier(options.classifier, accelerator(options.device))
    prompts, target = _aim(options)
    texts = list(prompts)
    if len(set(texts)) < len(texts):
        raise SettingsError("a prompt stands twice; give each once, and more images by --count")
    print(_aim_in_words(options.scores), flush=True)
    what = (_generator(options), classifier, prompts, target, options.count)
    kept = generate_and_keep(*what, rule="transport", **how)
    images, places = zip(*((each.image, each.prompt) for each in kept), strict=True)
    return torch.stack(images), [texts[place] for place in places]


def _clip(options: argparse.Namespace) -> Clip:
    from fairlib.models.clip import load_clip

    return load_clip(options.clip, not options.download).to(accelerator(options.device))


def _prompts(given: list[str]) -> list[str]:
    """Prompts as they are given, or those of a file."""
    prompts = _listed(given)["prompt"].tolist()
    if not prompts:
        raise SettingsError("no prompts; give at least one")
    return prompts


def _listed(given: list[str]) -> pd.DataFrame:
    """Prompts, and what a file states of each."""
    import pandas as pd

    from fairlib.cohorts.tables import read_prompts

    is_file = len(given) == 1 and given[0].endswith((".txt", ".csv"))
    return read_prompts(given[0]) if is_file else pd.DataFrame({"prompt": given})


def _aim(options: argparse.Namespace) -> tuple[Any, Any]:
    """Prompts and target of `tune` and of a choice of images: one target for all; or, where
    --shares is a table with a row a group, {prompt: group} and {group: target}.
    """
    from fairlib.cohorts.tables import refuse_twice
    from fairlib.methods.targets import Target
    from fairlib.settings import need

    place, prompts = "".join(options.shares), _listed(options.prompts)
    if not place.endswith(".csv"):
        return _prompts(options.prompts), _target(_shares(options.shares), options.scores)
    need(prompts, "group", name="the table of prompts")
    table = _numbers(place, "the share of each class in each group", ("group",))
    need(table, "group", name=place)
    refuse_twice(place, table["group"])
    targets = {
        group: _target(shares, options.scores, group)
        for group, shares in table.set_index("group").to_dict("index").items()
    }
    return dict(zip(prompts["prompt"], prompts["group"], strict=True)), Target.by_group(targets)


def _shares(given: list[str]) -> dict[str, float]:
    """{"F": 0.458, ...} from F=0.458 ..."""
    try:
        return {name: float(value) for name, value in (part.split("=") for part in given)}
    except ValueError:
        raise SettingsError(
            f"--shares {' '.join(given)}: give name=share for every group, as F=0.458 M=0.542"
        ) from None


def _target(shares: dict[str, float], path: str, group: str = "") -> Target:
    """The target of all prompts, or of those of a `group`, from a table of real images: the logits
    of the classifier in one column, or in one a class, and where there is a column `label` the
    recorded group of each image; where it has a column `group`, from the rows of that group.
    """
    from fairlib.cohorts.tables import refuse_twice
    from fairlib.methods.targets import Target

    what = "the classifier's logits on real images; text stands in image, group and label alone"
    table, where, labels = _numbers(path, what, REAL), path, None
    if group and "group" in table:
        table, where = table[table["group"] == group], f"{path} (group {group!r})"
    elif "group" in table and set(table["group"]) <= set(shares):
        raise DataError(
            f"{path}: its column `group` holds the groups of --shares, not groups of prompts; call "
            "the column with the recorded group of each image `label`"
        )
    if "image" in table:
        refuse_twice(where, table["image"])
    if "label" in table:
        labels = _labels(where, table["label"], shares)
    columns = [name for name in table if name not in REAL]
    if len(columns) > 1 and columns != list(shares):
        raise DataError(
            f"{path}: the columns {', '.join(columns)} would all be logits; give one, or those of "
            f"--shares in the order of the classifier's outputs ({', '.join(shares)})"
        )
    logits = table[columns].to_numpy()
    logits = logits[:, 0] if len(columns) == 1 else logits
    return Target.shares(shares, logits, labels, name=group or "all")


def _aim_in_words(path: str) -> str:
    """Whether labels or the classifier decide of which group a real image is."""
    from fairlib.cohorts.tables import read_table

    if "label" in read_table(path):
        return f"aim: shares by the recorded groups (column `label` of {path})"
    return f"aim: shares as the classifier reads them; {path} has no column `label`"


def _labels(where: str, labels: pd.Series, shares: dict[str, float]) -> list[str]:
    """The recorded group of each real image.

    Raises `DataError` for a label without a share, and for a share without an image.
    """
    groups, wrong = ", ".join(shares), labels[~labels.isin(list(shares))]
    if len(wrong):
        raise DataError(
            f"{where}: row {wrong.index[0] + 2} has the label {wrong.iloc[0]!r} ({len(wrong)} such "
            f"rows of {len(labels)}); the groups of --shares are {groups}: correct the label, or "
            "leave out images whose group is not recorded"
        )
    lacking = [name for name, share in shares.items() if share and name not in set(labels)]
    if lacking:
        raise DataError(
            f"{where}: none of {len(labels)} images has the label {lacking[0]!r}, which has a "
            f"share of {shares[lacking[0]]:g}; add real images of that group"
        )
    return labels.tolist()


def _numbers(path: str, what: str, texts: Sequence[str]) -> pd.DataFrame:
    """A table of numbers, but for its columns of `texts`."""
    from fairlib.cohorts.tables import read_table
    from fairlib.settings import need

    table = read_table(path)
    need(table, name=path)
    try:
        return table.astype({name: float for name in table if name not in texts})
    except ValueError as error:
        raise DataError(f"{path}: {error}; give {what}") from None


def _classifiers(options: argparse.Namespace) -> dict[str, Callable]:
    """{name: classifier} from NAME=CLASSIFIER; a CLASSIFIER alone is called "classifier"."""
    from fairlib.models.classifier import find_classifier

    given = [f"classifier={part}" if "=" not in part else part for part in options.classifier]
    named = dict(part.split("=", 1) for part in given)
    if len(named) < len(given):
        raise SettingsError(f"--classifier {' '.join(given)}: give each a name of its own")
    device = accelerator(options.device)
    return {name: find_classifier(place, device) for name, place in named.items()}


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
        command.add_argument("--out", required=True, help="the folder to write to")
        text = "as cpu or cuda:1 (default: the first GPU, or the CPU)"
        command.add_argument("--device", default="", help=text)
        command.add_argument("--download", action="store_true", help="fetch hub names")


def _add_work(draw: Parser, align: Parser, check: Parser) -> None:
    """The further options of `sample`, `tune` and `audit`."""
    for command in (draw, align, check):
        command.add_argument("--seed", type=int, default=0, help="default: 0")
        text = "images at once; bounds memory, changes no result (default: 8)"
        command.add_argument("--micro-batch", type=int, default=8, help=text)
        text = "of weights and images (default: fp32)"
        command.add_argument("--precision", default="fp32", choices=PRECISIONS, help=text)
        text = "pixels a side (default: as the pipeline says)"
        command.add_argument("--image-size", type=int, default=0, help=text)
    for command, count in ((draw, 1), (check, 50)):
        text = f"images of each prompt (default: {count})"
        command.add_argument("--count", type=int, default=count, help=text)
        command.add_argument("--steps", type=int, default=20, help="of the solver (default: 20)")
        command.add_argument("--guidance-scale", type=float, default=4.0, help="default: 4")
    place = "a classifier's folder, or package.module:function that returns one"
    align.add_argument("--classifier", required=True, help=place)
    draw.add_argument("--classifier", default="", help=f"choose images by its scores: {place}")
    text = "images generated for each that --classifier chooses (default: 3)"
    draw.add_argument("--draws-per-image", type=float, default=3.0, help=text)
    text = f"one or several: {place}; as NAME=CLASSIFIER"
    check.add_argument("--classifier", required=True, nargs="+", help=text)
    place = "biomedclip, openai, an open_clip name as ViT-B-32:openai, hf-hub:..., or a folder"
    for command, use in ((align, "keeps images consistent"), (check, "feature space of distances")):
        command.add_argument("--clip", default="", help=f"{use}: {place}")
    for command in (draw, align, check):
        text = "as F=0.458 M=0.542"
        if command is not check:
            text += "; or, for a CSV of prompts by `group`, one of `group` and shares of F, M, ..."
        command.add_argument("--shares", nargs="+", default=[], metavar="GROUP=SHARE", help=text)
    text = "a CSV: `group` (as in --shares), each classifier's logits in the column of its name"
    check.add_argument("--calibration", default="", help=f"{text}, and `subject` if there is one")
    check.add_argument("--reference", default="", help="a folder of real images, for distances")
    text = "a CSV with the classifier's logits on real images; `label`, the recorded group of each "
    text += "(by default what the classifier decides: the aim is then the share as it reads it); "
    text += "`group` (of prompts) where shares differ; and `image`, a name, if there is one"
    for command in (draw, align):
        command.add_argument("--scores", required=command is align, default="", help=text)
    align.add_argument("--steps", type=int, default=90, help="optimiser steps (default: 90)")
    text = "steps from one saved state to the next (default: 10)"
    align.add_argument("--save-every", type=int, default=10, help=text)
    align.add_argument("--lora", type=int, default=0, help="tune LoRA weights of this rank alone")


def _add_finetune(command: Parser, used: bool) -> None:
    """The further options of `finetune`; its settings where it is `used`, for they load torch."""
    readers = "captions: captions.csv with image and caption, or a text beside each image"
    command.add_argument("--cohort", required=True, choices=CAPTIONED, help=readers)
    command.add_argument("--data-dir", required=True, help="the folder of the data")
    command.add_argument("--revision", default="", help="of a hub name: a commit of 40 digits")
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
