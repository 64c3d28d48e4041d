"""What one optimiser step of aligned tuning costs: the published order of work against replay.

Published order (Shen et al. 2024, released code): generate the batch without gradient, generate it
again with the frozen model, generate it a third time along the detached chain with checkpointing,
and go backward through that.
Replay: generate once, one gradient at x_0, then a few of the steps; the frozen model's readings are
cached. Same denoiser, images, losses, solver, steps and precision in both. One evaluation is one
image through the denoiser: forward 1, recomputed forward 1, backward 2 (guidance, where on, doubles
all of them in both).

    python benchmarks/alignment_cost.py [--generator weights/brain] [--write]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from counting import Counter, peak_saved_bytes, seconds  # noqa: E402
from stand_ins import RandomGenerator, bright_extent, pooled_pixels  # noqa: E402

from fairlib.io import write_json  # noqa: E402
from fairlib.methods import alignment as al  # noqa: E402
from fairlib.methods import replay as rp  # noqa: E402
from fairlib.methods.targets import quantile_targets, weighted  # noqa: E402
from fairlib.models.solvers import Solver, dpm_solver_2m  # noqa: E402

BOUNDS = {"evaluations_ratio": 1 / 3, "gradient_cosine": 0.99, "memory_ratio": 1.1}


@dataclass(frozen=True)
class Study:
    """One batch, its models and losses; `counter` sees every denoiser call."""

    generator: object
    classifier: object
    embed: object
    solver: Solver
    noise: Tensor
    prompt_embeds: Tensor
    guidance_scale: float
    counter: Counter

    def predict_noise(
        self, latents: Tensor, timestep: int | Tensor, prompt_embeds: Tensor
    ) -> Tensor:
        kind = "recompute" if self.counter.recomputing else "forward"
        setattr(self.counter, kind, getattr(self.counter, kind) + len(latents))
        prediction = self.generator.predict_noise(
            latents, timestep, prompt_embeds, self.guidance_scale
        )
        if prediction.requires_grad and not self.counter.recomputing:
            prediction.register_hook(self._count_backward)
        return prediction

    def _count_backward(self, gradient: Tensor) -> None:
        self.counter.backward += len(gradient)

    def targets(self, logits: Tensor) -> Tensor:
        """Two sexes, 45.8 % female, as quantile targets of the tuning classifier's `logits`."""
        values = np.concatenate([np.linspace(1, 3, 458), np.linspace(-3, -1, 542)])
        return quantile_targets(logits.detach(), weighted(values))

    def loss(self, sample: Tensor, targets: Tensor | None, reference: Tensor) -> Tensor:
        """Of images that are decoded once; without `targets` they are those of their own logits."""
        images = self.generator.decode(sample)
        logits = self.classifier(images)
        targets = self.targets(logits) if targets is None else targets
        return al.transport_alignment(logits, targets) + al.consistency(
            self.embed(images), reference
        )

    @torch.no_grad()
    def frozen_embeds(self) -> Tensor:
        """Embeddings of the frozen model's images; before the first update it is the model
        itself.
        """
        return self.embed(self.generator.decode(self.solver.run(self._predict, self.noise)))

    def _predict(self, latents: Tensor, timestep: int) -> Tensor:
        return self.predict_noise(latents, timestep, self.prompt_embeds)

    def published_order(self) -> None:
        """Leave in `.grad` the gradient, by three generations."""
        with torch.no_grad():
            first = self.generator.decode(self.solver.run(self._predict, self.noise))
            targets = self.targets(self.classifier(first))
        reference = self.frozen_embeds()

        def step(latents: Tensor, timestep: int) -> Tensor:
            return checkpoint(
                self._predict,
                latents.detach(),
                timestep,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), self.counter.during_recompute()),
            )

        self.loss(self.solver.run(step, self.noise), targets, reference).backward()

    def replayed(self, reference: Tensor, importance: np.ndarray, coefficients: np.ndarray) -> None:
        """Leave in `.grad` the gradient by replay; `reference` are the cached frozen embeddings."""
        run = rp.record(self.solver, self.predict_noise, self.noise, self.prompt_embeds)
        rp.replay(
            self.predict_noise, run, self.cotangent(run.sample, reference), coefficients, importance
        )

    def cotangent(self, sample: Tensor, reference: Tensor) -> Tensor:
        leaf = sample.detach().requires_grad_()
        return torch.autograd.grad(self.loss(leaf, None, reference), leaf)[0]

    def gradient(self) -> Tensor:
        """The gradient left in `.grad`, flat, and none left after."""
        parameters = self.generator.trainable_parameters().values()
        flat = torch.cat(
            [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
        )
        for parameter in parameters:
            parameter.grad = None
        return flat

    def count(self, work) -> Counter:
        """What `work` costs."""
        self.counter.__init__()
        work()
        self.gradient()
        return replace(self.counter)


def make_study(
    folder: str | None,
    steps: int,
    prompts: int,
    images: int,
    guidance_scale: float = 1.0,
    classifier=None,
    embed=None,
) -> Study:
    """`prompts` x `images` a batch on the pipeline in `folder`, or on an untrained one when
    `folder` is None.
    """
    from studies.brain.data import EVALUATION_PROMPTS

    if folder is None:
        generator = RandomGenerator()
    else:
        from fairlib.models.generator import Generator

        generator = Generator.load(folder)
    texts = [prompt.text for prompt in EVALUATION_PROMPTS[:prompts] for _ in range(images)]
    generator.trainable_parameters()
    return Study(
        generator,
        classifier or bright_extent,
        embed or pooled_pixels,
        dpm_solver_2m(generator.alphas_cumprod, steps),
        generator.noise(0, list(range(len(texts)))),
        generator.encode_prompts(texts).detach(),
        guidance_scale,
        Counter(),
    )


def load_readers(classifier: str | None, clip: str) -> dict:
    """The trained tuning classifier and image embedding where their folders are there."""
    readers = {}
    if classifier:
        from fairlib.models.classifier import load_classifier

        readers["classifier"] = load_classifier(classifier).eval().requires_grad_(False)
    if Path(clip).is_dir():
        from fairlib.models.clip import load_clip

        readers["embed"] = load_clip(clip).eval().requires_grad_(False).embed_images
    return readers


def cosines(
    study: Study, reference: Tensor, count: int, draws: int, kinds: list[tuple[str, str]]
) -> dict:
    """For each (weights, scheme): cosines `[draws]` of the gradient from `count` steps to that from
    all of them.
    """
    run = rp.record(study.solver, study.predict_noise, study.noise, study.prompt_embeds)
    cotangent, natural = (
        study.cotangent(run.sample, reference),
        study.solver.chain_coefficients()[1],
    )

    def gradient(coefficients: np.ndarray, used: int, scheme: str, seed: int) -> Tensor:
        chance = torch.Generator().manual_seed(seed)
        importance = rp.choose_steps(
            len(natural), used, scheme, coefficients, chance, len(cotangent)
        )
        rp.replay(study.predict_noise, run, cotangent, coefficients, importance)
        return study.gradient().double()

    whole, found = {}, {}
    for weights, scheme in kinds:
        coefficients = rp.effective_coefficients(natural, weights)
        if weights not in whole:
            whole[weights] = gradient(coefficients, len(natural), "all", 0)
        estimates = (gradient(coefficients, count, scheme, seed) for seed in range(draws))
        found[f"{weights}/{scheme}"] = [
            float(torch.cosine_similarity(each, whole[weights], dim=0)) for each in estimates
        ]
    return found


def replay_memory(study: Study, steps: int, reference: Tensor) -> int:
    """Peak saved bytes of one replayed optimiser step of `steps` solver steps, all replayed, on a
    few images.
    """
    few = slice(0, 4)
    longer = replace(
        study,
        solver=dpm_solver_2m(study.generator.alphas_cumprod, steps),
        noise=study.noise[few],
        prompt_embeds=study.prompt_embeds[few],
    )
    coefficients = longer.solver.chain_coefficients()[1]
    every = np.ones((steps, len(longer.noise)))
    peak = peak_saved_bytes(lambda: longer.replayed(reference[few], every, coefficients))
    longer.gradient()
    return peak


def compare(
    study: Study,
    count: int,
    scheme: str = "importance",
    weights: str = "natural",
    repeats: int = 3,
    draws: int = 8,
    others: bool = False,
    memory_steps: tuple[int, int] = (5, 50),
) -> dict:
    """The figures: counters, cosines over `draws`, memory, seconds."""
    reference, natural = study.frozen_embeds(), study.solver.chain_coefficients()[1]
    coefficients = rp.effective_coefficients(natural, weights)
    importance = rp.choose_steps(
        len(natural),
        count,
        scheme,
        coefficients,
        torch.Generator().manual_seed(0),
        len(study.noise),
    )
    every = np.ones_like(importance)

    def ours():
        study.replayed(reference, importance, coefficients)

    evaluations = {
        "published": study.count(study.published_order).cost,
        "replay": study.count(ours).cost,
    }
    study.published_order()
    published = study.gradient()
    study.replayed(reference, every, natural)
    exact = float(torch.cosine_similarity(study.gradient().double(), published.double(), dim=0))
    kinds = [(kind, how) for kind in rp.WEIGHTS for how in ("uniform", "stratified", "importance")]
    found = cosines(study, reference, count, draws, kinds if others else [(weights, scheme)])
    spent = (
        seconds({"published": study.published_order, "replay": ours}, repeats) if repeats else {}
    )
    study.gradient()
    saved = {steps: replay_memory(study, steps, reference) for steps in memory_steps}
    default = found[f"{weights}/{scheme}"]
    return {
        "steps": len(natural),
        "replay_steps": count,
        "scheme": scheme,
        "weights": weights,
        "images": len(study.noise),
        "guidance_scale": study.guidance_scale,
        "evaluations": evaluations,
        "evaluations_ratio": evaluations["replay"] / evaluations["published"],
        "gradient_cosine": statistics.mean(default),
        "gradient_cosine_lowest": min(default),
        "draws": draws,
        "cosine_of_all_steps_to_published": exact,
        "cosines": found,
        "saved_bytes": {str(steps): size for steps, size in saved.items()},
        "memory_ratio": saved[memory_steps[1]] / saved[memory_steps[0]],
        "seconds": spent,
    }


def show(result: dict) -> None:
    """Print the figures, and whether the bounds hold."""
    print(json.dumps({key: value for key, value in result.items() if key != "cosines"}, indent=2))
    print(f"{'weights/scheme':22} {'mean cosine':>12} {'lowest':>12}")
    for name, each in result["cosines"].items():
        print(f"{name:22} {statistics.mean(each):12.4f} {min(each):12.4f}")
    for name, bound in BOUNDS.items():
        holds = result[name] >= bound if name == "gradient_cosine" else result[name] <= bound
        print(
            f"{name:22} {result[name]:12.4f} bound {bound:.4f} "
            f"{'holds' if holds else 'DOES NOT HOLD'}"
        )


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--generator", default=str(ROOT / "weights" / "brain"), help="pipeline folder"
    )
    parser.add_argument(
        "--classifier", help="folder of a saved sex classifier; default: a bright-extent stand-in"
    )
    parser.add_argument(
        "--clip", default=str(ROOT / "weights" / "clip"), help="folder of the image embedding"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--replay-steps", type=int, default=2)
    parser.add_argument(
        "--scheme", choices=("uniform", "stratified", "importance"), default="importance"
    )
    parser.add_argument("--weights", choices=rp.WEIGHTS, default="natural")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument(
        "--draws", type=int, default=8, help="random choices of steps behind the mean cosine"
    )
    parser.add_argument(
        "--others", action="store_true", help="cosines of every scheme and weighting too"
    )
    parser.add_argument("--write", action="store_true", help="write results/cost.json")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = chosen.generator if Path(chosen.generator).is_dir() else None
    readers = load_readers(chosen.classifier, chosen.clip) if folder else {}
    study = make_study(
        folder, chosen.steps, chosen.prompts, chosen.images, chosen.guidance_scale, **readers
    )
    result = compare(
        study,
        chosen.replay_steps,
        chosen.scheme,
        chosen.weights,
        chosen.repeats,
        chosen.draws,
        chosen.others,
    )
    result["generator"] = Path(folder).name if folder else "untrained"
    result["tuning_classifier"] = "classifier" if chosen.classifier and folder else "bright extent"
    show(result)
    if chosen.write:
        print("wrote", write_json(ROOT / "results" / "cost.json", result).relative_to(ROOT))
    return result


if __name__ == "__main__":
    main()
