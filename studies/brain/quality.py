"""What becomes of the images besides their shares: prompt fidelity, consistency with the same-noise
original, and distance to the target cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fairlib.cohorts.cohort import Cohort
from fairlib.io import read_json, to_bytes, to_images, write_json
from fairlib.measures.distances import mmd, mmd_interval
from fairlib.models.classifier import (
    WIDE_MAX,
    Classifier,
    ClassifierSettings,
    predict,
    save_classifier,
    truth_of,
)
from fairlib.models.clip import Clip
from fairlib.rng import numpy_rng
from studies.brain.anatomy import outline, rim_share
from studies.brain.arms import Plan
from studies.brain.data import BrainSettings, split, training_cohort
from studies.brain.evaluators import combined
from studies.engine import StudyStream, accelerator
from studies.engine.images import fit_heads, read_classifier
from studies.engine.stage import Artifact, Progress, stage

ATTRIBUTES = {
    "contrast": ("t1", "t1ce", "t2", "flair"),
    "grade": ("none", "LGG", "HGG"),
    "side": ("none", "left", "right"),
}
TRAINING_SEED = 31  # slices other than the generator's


@stage(load=read_classifier)
def attribute_classifier(
    out: Path, progress: Progress, settings: ClassifierSettings, training: Artifact[Cohort]
) -> None:
    """Fit the classifier of contrast, grade and side."""
    images, truth = to_bytes(training.load().load()), truth_of(training.load().table, ATTRIBUTES)
    save_classifier(out, fit_heads(progress, ATTRIBUTES, images, truth, settings, "attributes"))


def attributes(settings: BrainSettings) -> Artifact[Classifier]:
    """The classifier of contrast, grade and side, fitted on synthetic radiology slices other than
    the generator's.
    """
    steps = settings.classifier_steps
    fit = ClassifierSettings(steps, seed=21, architecture=WIDE_MAX, augmentation="shift", stream=6)
    return attribute_classifier(fit, training_cohort(settings, TRAINING_SEED))


def read_values(folder: Path) -> dict[str, float]:
    """Read one row of measures, in its order."""
    return dict(read_json(folder / "values.json"))


@stage(load=read_values)
def prompt_fidelity(
    out: Path,
    progress: Progress,
    classifier: Artifact[Classifier],
    images: Artifact[Tensor],
    plan: Plan,
) -> None:
    """Count the images that show the contrast, tumour, side and grade that their prompt
    requested.
    """
    read = predict(classifier.load(), to_images(images.load()))
    shown = pd.DataFrame({name: read.classes(name) for name in ATTRIBUTES})
    prompts = plan.prompt_of_each()
    requested = pd.DataFrame({name: [getattr(p, name) for p in prompts] for name in ATTRIBUTES})
    ill = requested.grade != "none"
    found = {
        "contrast": (shown.contrast == requested.contrast).mean(),
        "tumour": ((shown.grade != "none") == ill).mean(),
        "side": (shown.side == requested.side)[ill].mean(),
        "grade": (shown.grade == requested.grade)[ill].mean(),
    }
    write_json(out / "values.json", [(name, float(value)) for name, value in found.items()])


@stage(load=read_values)
def comparison(
    out: Path,
    progress: Progress,
    images: Artifact[Tensor],
    base: Artifact[Tensor],
    classifier: list[Artifact],
    clip: Artifact[Clip],
    features: Artifact[Classifier],
    everyone: Artifact[Cohort],
    split_seed: int,
    seed: int,
) -> None:
    """Compare an arm's images with the same-noise images of the base model, and both with the test
    slices.
    """
    test = split(everyone.load(), split_seed)["test"]
    one, other, real = (
        predict(features.load(), each).features.numpy()
        for each in (to_images(images.load()), to_images(base.load()), test.load())
    )
    target = real, test.table.subject.to_numpy(str)
    found = consistency(clip.load(), combined(classifier), images.load(), base.load())
    found |= quality(one, other, target, seed)
    write_json(out / "values.json", list(found.items()))


@torch.no_grad()
def consistency(
    clip: Clip, classifier: nn.Module, images: Tensor, base: Tensor
) -> dict[str, float]:
    """Mean CLIP cosine to the same-noise original, over all images and over those whose class
    stays. Images are uint8 [N, 1, H, W].
    """
    cosine, kept = [], []
    for one, other in zip(images.split(50), base.split(50), strict=True):
        after, before = (to_images(part.to(accelerator())) for part in (one, other))
        cosine.append((clip.embed_images(after) * clip.embed_images(before)).sum(-1))
        kept.append((classifier(after) > 0) == (classifier(before) > 0))
    similar, stays = torch.cat(cosine), torch.cat(kept)
    return {
        "cosine": float(similar.mean()),
        "cosine_kept": float(similar[stays].mean()),
        "kept": float(stays.float().mean()),
    }


def quality(
    features: np.ndarray, base: np.ndarray, target: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, float]:
    """Unbiased MMD to an equal number of target slices, and its difference to the base's, with
    intervals.

    Features are in standard deviations of the target's, so that none of them rules for its scale
    alone.
    """
    rng = numpy_rng(StudyStream.REAL_ROWS, seed)
    slices, subjects = target
    centre, spread = slices.mean(0), slices.std(0).clip(1e-3)
    features, base, slices = ((values - centre) / spread for values in (features, base, slices))
    chosen = rng.choice(len(slices), min(len(features), len(slices)), replace=False)
    real, clusters = slices[chosen], subjects[chosen]
    distance = mmd_interval(features, real, rng, y_clusters=clusters, replicates=200)
    change = mmd_interval(features, real, rng, y_clusters=clusters, replicates=200, base=base)
    return distance.columns("mmd") | change.columns("mmd_change")


def diversity(
    features: np.ndarray, base: np.ndarray, female: Sequence[ArrayLike], prompts: ArrayLike
) -> dict[str, float]:
    """Variance of features within a prompt and sex, over that of the untuned model's images: below
    one, an arm's images of this sex are more alike.

    features, base: [N, D]; female: two of [N], what a classifier reads in either; prompts: [N],
    those of both.
    """
    spread, prompts = base.std(0).clip(1e-3), np.asarray(prompts)
    classes, found = np.asarray(female, dtype=bool), {}
    for name, sex in (("F", True), ("M", False)):
        mine, theirs = (
            _variance_within(values[read == sex] / spread, prompts[read == sex])
            for values, read in zip((features, base), classes, strict=True)
        )
        found[f"diversity_{name}"] = mine / theirs
    return found


def _variance_within(features: np.ndarray, cells: np.ndarray) -> float:
    """Total variance within cells, unbiased; NaN where no cell has two rows."""
    table, freedom = pd.DataFrame(features), len(cells) - len(np.unique(cells))
    away = (table - table.groupby(cells).transform("mean")).to_numpy()
    return float((away**2).sum() / freedom) if freedom else np.nan


def change_at_rim(images: Tensor, base: Tensor) -> float:
    """Which part of the squared difference between images and base's [N, 1, H, W] lies at the rim
    of the brain in either; images without a brain are left out, NaN where there is no other.
    """
    shapes = [[outline(image) for image in each[:, 0].numpy()] for each in (images, base)]
    seen = [place for place, both in enumerate(zip(*shapes, strict=True)) if None not in both]
    if not seen:
        return np.nan
    return rim_share((images - base)[seen].numpy(), *([each[i] for i in seen] for each in shapes))


# ---- is the distance itself fair to the sexes?


def disturbed(images: Tensor, kind: str, level: float, seed: int = 0) -> Tensor:
    """`images` with white noise of standard deviation `level`, or blurred by a Gaussian of `level`
    pixels; no size changes.
    """
    if kind == "noise":
        rng = torch.Generator().manual_seed(seed)
        return (images + level * torch.randn(images.shape, generator=rng)).clamp(-1, 1)
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, level, level)))


def distance_fairness(
    features: Mapping[str, Callable[[Tensor], np.ndarray]],
    images: Tensor,
    female: np.ndarray,
    levels: Mapping[str, Iterable[float]],
    splits: int = 5,
    permutations: int = 40,
) -> pd.DataFrame:
    """Distance (MMD) of degraded images to intact ones, of each sex apart, by feature space: space,
    kind, level, distance_F, distance_M, distance, difference, chance_low, chance_high, n.

    images [N, 1, H, W] in [-1, 1] of both sexes (`female` [N]), degraded alike: blurred or with
    noise, as `disturbed` does. difference: (distance_F - distance_M) / distance, whose size is the
    DQA; distances are means over `splits` into degraded and intact halves, of features divided by
    their root mean square deviation over intact images: one scale for all, or features that hardly
    vary would decide. chance: 95 % of what `permutations` of the sexes give; a distance that
    is fair to the sexes stays within.
    """
    rows, rng = [], numpy_rng(StudyStream.EVEN_ROWS, 0)
    for name, embed in features.items():
        intact = embed(images)
        centre, spread = intact.mean(0), np.sqrt(intact.var(0).mean())
        for kind, level in [(kind, level) for kind, several in levels.items() for level in several]:
            pair = [
                (each - centre) / spread for each in (embed(disturbed(images, kind, level)), intact)
            ]
            sexes = [female, *(rng.permutation(female) for _ in range(permutations))]
            found = np.array(
                [[_apart(*pair, each, rng) for _ in range(splits)] for each in sexes]
            ).mean(1)
            difference = (found[:, 0] - found[:, 1]) / found[:, 2]
            chance = np.quantile(difference[1:], [0.025, 0.975])
            rows.append((name, kind, level, *found[0], difference[0], *chance, len(images)))
    columns = ["space", "kind", "level", "distance_F", "distance_M", "distance", "difference"]
    return pd.DataFrame(rows, columns=[*columns, "chance_low", "chance_high", "n"])


def _apart(
    degraded: np.ndarray, intact: np.ndarray, female: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """MMD of a degraded half to the intact other half: of women, of men, of both."""
    half = min(int(female.sum()), int((1 - female).sum())) // 2
    orders = [rng.permutation(np.flatnonzero(female == sex))[: 2 * half] for sex in (1, 0)]
    parts = [(order[:half], order[half:]) for order in orders]
    pairs = [*parts, tuple(np.concatenate(sides) for sides in zip(*parts, strict=True))]
    of_f, of_m, whole = (mmd(degraded[one], intact[other]) for one, other in pairs)
    return of_f, of_m, whole
