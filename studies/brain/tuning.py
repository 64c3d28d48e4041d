"""Tune an arm: from the frozen base and a guide to a denoiser whose readings match the target
cohort.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd

from fairlib.io import read_tensors, write_bytes, write_tensors
from fairlib.methods.alignment import tune
from fairlib.methods.base_cache import BaseCache, cache_base
from fairlib.methods.settings import AlignmentSettings
from fairlib.methods.targets import Target
from fairlib.models.classifier import predict
from fairlib.models.clip import load_clip
from fairlib.models.generator import Generator
from fairlib.settings import to_dict
from studies.brain.cohorts import splits, target_share
from studies.brain.judges import Judges
from studies.brain.prompts import EVALUATION_PROMPTS
from studies.brain.settings import Study, arm_settings
from studies.engine.manifest import content_digest
from studies.engine.places import accelerator
from studies.engine.stage import run_stage


def targets_of(study: Study, guide, target: str = "marginal") -> list[Target]:
    """The target of each evaluation prompt: the guide's logits on slices it was not fitted on, of
    the same contrast.

    Images of one contrast and grade are ranked together; the female share is that of the study's
    target.
    """
    part = splits(study)["auditor"]
    logits = predict(guide, part.load()).logit.numpy()
    table = part.table.assign(logit=logits)
    shares = target_share(study, target)
    return [_target(table, prompt, shares[prompt.group]) for prompt in EVALUATION_PROMPTS]


def _target(table: pd.DataFrame, prompt, share: float) -> Target:
    rows = table[(table.contrast == prompt.contrast) & (table.grade == prompt.grade)]
    shares, name = {"F": share, "M": 1 - share}, f"{prompt.contrast}-{prompt.grade}"
    return Target.shares(shares, rows.logit.to_numpy(), rows.sex.tolist(), name=name)


def tune_arm(
    study: Study,
    judges: Judges,
    judges_key: list[str],
    arm: str,
    seed: int,
    every: int = 10,
    **changes,
) -> Path:
    """The stage folder of a tuned denoiser (`denoiser.safetensors`, EMA weights) and its
    `history.csv`.
    """
    chosen, settings = arm_settings(study, arm, seed, **changes)

    def build(out: Path, progress) -> None:
        generator = Generator.load(study.weights, accelerator())
        clip = load_clip(study.clip).to(accelerator())
        checkpoint = out / "working" / "state.safetensors"
        state = read_tensors(checkpoint) if checkpoint.is_file() else None
        log = out / "working" / "history.csv"
        rows = pd.read_csv(log).to_dict("records") if state is not None else []
        rows = rows[: int(state["step"])] if state is not None else rows
        guide, prompts = judges.guides[chosen.guide], [p.text for p in EVALUATION_PROMPTS]
        bank = read_bank(
            study, generator, guide, chosen.guide, judges_key, clip.embed_images, settings
        )
        steps = tune(
            generator,
            guide,
            prompts,
            targets_of(study, guide, chosen.target),
            embed=clip.embed_images,
            settings=settings,
            state=state,
            base_cache=bank,
        )
        for step in progress.track(
            steps, settings.steps, f"tuning {arm}, seed {seed}", done=len(rows)
        ):
            rows.append(_row(step))
            if (step.step + 1) % every == 0:
                write_bytes(log, pd.DataFrame(rows).to_csv(index=False).encode())
                write_tensors(checkpoint, step.state.to_tensors())
        write_tensors(
            out / "denoiser.safetensors",
            {n: p.half() for n, p in generator.trainable_parameters().items()},
        )
        write_bytes(out / "history.csv", pd.DataFrame(rows).to_csv(index=False).encode())

    wanted = {
        "settings": to_dict(settings),
        "guide": chosen.guide,
        "target": chosen.target,
        "shares": target_share(study, chosen.target),
    }
    inputs = [*judges_key, base_digest(study), content_digest(study.clip)]
    return run_stage(None, f"tuned-{arm}", wanted, inputs, build)


def read_bank(
    study: Study,
    generator: Generator,
    guide,
    guide_name: str,
    judges_key: list[str],
    embed,
    settings: AlignmentSettings,
) -> BaseCache:
    """The frozen model's images of every prompt, drawn once for all arms and seeds and read once
    for every guide.
    """
    prompts = [p.text for p in EVALUATION_PROMPTS]
    bank = cache_base(generator.frozen_copy(), guide, prompts, embed=embed, settings=settings)
    latents = run_stage(None, "bank", bank.describe, [base_digest(study)], _drawn(bank))
    bank.load(read_tensors(latents / "latents.safetensors"))

    def build(out: Path, progress) -> None:
        for _ in progress.track(
            (done for done, _ in bank.fill()),
            _blocks(bank),
            f"reading the bank, {guide_name} guide",
        ):
            pass
        write_tensors(out / "readings.safetensors", bank.to_tensors(readings=True))

    inputs = [content_digest(latents), content_digest(study.clip), *judges_key]
    readings = run_stage(None, "bank-readings", {"guide": guide_name}, inputs, build)
    return bank.load(read_tensors(readings / "readings.safetensors"))


def _blocks(bank: BaseCache) -> int:
    return len(bank.prompts) * (bank.size // bank.block)


def _drawn(bank: BaseCache):
    def build(out: Path, progress) -> None:
        saved = out / "working" / "latents.safetensors"
        if saved.is_file():
            bank.load(read_tensors(saved))
        for done in progress.track(
            (done for done, _ in bank.draw()), _blocks(bank), "images of the frozen model"
        ):
            if done % 12 == 0:
                write_tensors(saved, bank.to_tensors())
        write_tensors(out / "latents.safetensors", bank.to_tensors())

    return build


def _row(step) -> dict:
    keep = ~step.changes
    return {
        "step": step.step,
        "alignment": step.alignment,
        "consistency": step.consistency,
        "lr": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "cosine_kept": float(step.cosine[keep].mean()) if keep.any() else np.nan,
        "share": float((step.logits > 0).float().mean()),
        "seconds": step.seconds,
        "forward": step.forward,
        "backward": step.backward,
        "frozen": step.base,
    }


def history(folder: Path) -> pd.DataFrame:
    """What each step of a tuned arm saw."""
    return pd.read_csv(folder / "history.csv")


def tuned_generator(base: Generator, folder: Path) -> Generator:
    """A copy of `base` whose denoiser has the tuned weights of `folder`, LoRA weights where those
    were tuned.
    """
    generator = base.frozen_copy()
    found = {
        name: value.float() for name, value in read_tensors(folder / "denoiser.safetensors").items()
    }
    ranks = {len(value) for name, value in found.items() if "lora_A" in name}
    if ranks:
        generator.add_lora(ranks.pop())
        generator.denoiser.requires_grad_(False).eval()
    generator.denoiser.load_state_dict(copy.copy(generator.denoiser.state_dict()) | found)
    return generator


def base_digest(study: Study) -> str:
    """What the base model is: the hashes in its manifest."""
    return content_digest(study.weights)
