"""The commands of `fairlib`: each takes the options that its parser (`fairlib.cli`) makes, and
imports what it needs itself, so that help is quick.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlib.doctor import examine
from fairlib.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

FEW: dict[str, Any] = {}  # settings of `tune` beside those of the command line, for tests


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
    from fairlib.inputs import accelerator, aim_in_words, aim_of, load_embedding, load_generator
    from fairlib.io import read_tensors, write_tensors
    from fairlib.methods.alignment import AlignmentSettings
    from fairlib.methods.alignment import tune as steps
    from fairlib.methods.processes import start
    from fairlib.models.classifier import find_classifier

    if options.save_every < 1:
        raise SettingsError(f"--save-every {options.save_every}: give a whole number from 1")
    is_first = start() == 0  # of those that `accelerate launch` or `torchrun` started
    generator = load_generator(options)
    prompts, target = aim_of(options)
    if is_first:
        print(aim_in_words(options.scores), flush=True)
    embed = load_embedding(options).embed_images if options.clip else None
    settings = AlignmentSettings(
        prompts_per_step=min(4, len(prompts)),
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
    from fairlib.inputs import accelerator, prompts_of
    from fairlib.settings import from_dict
    from fairlib.stage_one import StageOneSettings, stage_one

    names = {field.name for field in fields(StageOneSettings)}
    given = {k: v for k, v in vars(options).items() if k in names and v is not None}
    settings = from_dict(StageOneSettings, given)
    places = (options.pipeline, options.data_dir, options.cohort, options.out)
    prompts = prompts_of(options.prompts) if options.prompts else ()
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
    from fairlib.inputs import accelerator, classifiers_of, load_embedding, prompts_of, shares_of
    from fairlib.rng import Stream, numpy_rng

    folder, device = Path(options.pipeline).expanduser(), accelerator(options.device)
    rng, classifiers = numpy_rng(options.seed, Stream.AUDIT), classifiers_of(options)
    shares, assumed = shares_of(options.shares), {"Source": options.pipeline}
    more: dict[str, Any] = {"rng": rng, "assumed": assumed}
    if options.calibration:
        more["calibration"] = read_table(options.calibration)
    if options.reference:
        more["reference"] = read_folder(options.reference)[0].to(device)
    if options.clip:
        more["embeds"] = {f"CLIP ({options.clip})": load_embedding(options).embed_images}
    if (folder / "model_index.json").is_file() or not any(folder.glob("*.[pPjJ]*[gG]")):
        images, prompts = _sampled(options)
        solver = f"{options.steps} solver steps, guidance scale {options.guidance_scale:g}"
        assumed["Sampling"] = f"seed {options.seed}, {solver}, {options.precision}"
    else:
        only = prompts_of(options.prompts) if options.prompts else ()
        images, prompts = read_folder(folder, only)
    measure(images.to(device), prompts, classifiers, shares, **more).save(options.out)
    print(Path(options.out) / "audit.html")


def _sampled(options: argparse.Namespace) -> tuple[Tensor, list[str]]:
    """Images of every prompt, and the prompt of each."""
    from fairlib.inputs import load_generator, prompts_of

    prompts = [prompt for prompt in prompts_of(options.prompts) for _ in range(options.count)]
    how = _sampling(options)
    return load_generator(options).sample(prompts, rng=options.seed, **how), prompts


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """What the sampler is told of each image."""
    if options.count < 1:
        raise SettingsError(f"--count {options.count}: give a whole number from 1")
    return {name: getattr(options, name) for name in ("steps", "guidance_scale", "micro_batch")}


def _chosen(options: argparse.Namespace) -> tuple[Tensor, list[str]]:
    """Images whose noises are chosen by the scores of a classifier, and the prompt of each."""
    import torch

    from fairlib.inputs import accelerator, aim_in_words, aim_of, load_generator
    from fairlib.methods.selection import generate_and_keep
    from fairlib.models.classifier import find_classifier

    if not (options.classifier and options.scores and options.shares):
        raise SettingsError(
            "to choose images, give all three of --classifier, --scores and --shares; else none"
        )
    how = _sampling(options) | {"draws_per_image": options.draws_per_image, "seed": options.seed}
    classifier = find_classifier(options.classifier, accelerator(options.device))
    prompts, target = aim_of(options)
    texts = list(prompts)
    if len(set(texts)) < len(texts):
        raise SettingsError("a prompt stands twice; give each once, and more images by --count")
    print(aim_in_words(options.scores), flush=True)
    what = (load_generator(options), classifier, prompts, target, options.count)
    kept = generate_and_keep(*what, rule="transport", **how)
    images, places = zip(*((each.image, each.prompt) for each in kept), strict=True)
    return torch.stack(images), [texts[place] for place in places]
