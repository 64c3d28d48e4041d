"""Do generated hearts look like hearts of their subgroup, and are they new? Distances, their floor,
and memorisation.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from fairlib.errors import DataError
from fairlib.measures.distances import frechet_by_n, subgroup_distances
from fairlib.measures.memorisation import blurred, memorisation
from studies.heart.cohorts import hearts
from studies.heart.generation import heart_generator, made
from studies.heart.judges import features, fit_heart_judges
from studies.heart.settings import HeartStudy

PAIRS = {
    "sex": ("F", "M"),
    "bmi_class": ("normal", "obese"),
    "decade": ("50s", "70s"),
    "diagnosis": ("healthy", "heart failure"),
}
"""The subgroups between which the paper's code compares distances."""
# of the sets between which a Frechet distance is taken; above the 64 features
SIZES = (80, 125, 250, 500, 1000, 2000)


def standardised(study: HeartStudy, *sets: Tensor) -> list[np.ndarray]:
    """The reader's features [N, 64] of each set of images, in standard deviations of the reference
    people's.
    """
    judges = fit_heart_judges(study)
    reference = features(judges, hearts(study, "reference").images)
    centre, spread = reference.mean(0), reference.std(0).clip(1e-3)
    return [(features(judges, images) - centre) / spread for images in sets]


def distances_of(
    study: HeartStudy, rng: np.random.Generator, replicates: int = 200, n_min: int = 50
) -> tuple[pd.DataFrame, dict[str, str]]:
    """MMD between every real and every generated subgroup at equal numbers, with the floor of real
    against other real people.

    Generated: way "unseen", so that their masks and prompts are those of real people and the mix of
    people is the same;
    real: the part "reference", none of whose masks was ever asked for. Columns of
    `measures.distances.subgroup_distances` and `attribute`; and a reason for each attribute that
    has too few people to be compared.
    """
    real, generated = hearts(study, "reference"), made(study, "unseen")
    x, y = standardised(study, real.images, generated.images)
    tables, left_out = [], {}
    for attribute, pair in PAIRS.items():
        mine, theirs = (given.table[attribute].isin(pair).to_numpy() for given in (real, generated))
        one, other = real.table[mine].astype(str), generated.table[theirs].astype(str)
        try:
            table = subgroup_distances(
                x[mine],
                y[theirs],
                one[attribute].to_numpy(),
                other[attribute].to_numpy(),
                rng,
                one["subject"].to_numpy(),
                other["subject"].to_numpy(),
                replicates=replicates,
                n_min=n_min,
            )
        except DataError as error:
            left_out[attribute] = str(error)
        else:
            tables.append(table.assign(attribute=attribute))
    columns = [
        "attribute",
        "real_group",
        "synthetic_group",
        "distance",
        "low",
        "high",
        "floor",
        "floor_low",
        "floor_high",
        "between",
        "n",
    ]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(
        columns=columns
    ), left_out


def frechet_floor(
    study: HeartStudy, rng: np.random.Generator, ns: tuple[int, ...] = SIZES
) -> pd.DataFrame:
    """The Frechet distance of two sets of n real test people, whose true distance is zero: why one
    from few images cannot be compared with another at a different n. Columns of
    `measures.distances.frechet_by_n`.

    Fewer people than two sets of the least of `ns` are halved, and halved again: the distance then
    says no more than that.
    """
    (found,) = standardised(study, hearts(study, "test").images)
    half = len(found) // 2
    possible = [n for n in ns if n <= half] or [n for n in (half // 2, half) if n > 1]
    if not possible:
        raise DataError(f"{len(found)} test people do not give two sets of two; draw more")
    return frechet_by_n(found, possible, rng)


def too_few(
    left_out: dict[str, str], frechet: pd.DataFrame, ns: tuple[int, ...] = SIZES
) -> pd.DataFrame:
    """What the tables of `distances_of` (its second answer) and `frechet_floor` lack for want of
    people: table, item, reason.
    """
    rows = [("distances", attribute, reason) for attribute, reason in left_out.items()]
    if frechet["n"].max() < min(ns):
        rows.append(
            (
                "frechet",
                "n",
                f"the test people do not give two sets of {min(ns)}; instead of {list(ns)} the "
                "sets have "
                f"{frechet['n'].tolist()}, where covariances lack rank",
            )
        )
    return pd.DataFrame(rows, columns=["table", "item", "reason"])


def memorisation_of(
    study: HeartStudy, rng: np.random.Generator, replicates: int = 500
) -> tuple[pd.DataFrame, dict]:
    """Are generated hearts nearer to the training hearts than real unseen people are?

    Compared in pairs: an image made under the mask and prompt of a person the generator never saw
    ("unseen"), with that very person's own picture; as it is, and as the generator's autoencoder
    gives it back, because smoother images lie nearer to everything. Copies are compared as well,
    their own mask's person left out of the training hearts. One row a way, reading ("as taken" or
    "through the autoencoder") and quantile: share of generated images nearer to a training heart
    than that quantile of the real ones, low, high, median_ratio with its ends, n. Also the closest
    pairs of way "unseen" (`made`, `training`: images; `distance`).
    """
    train, hold, unseen = hearts(study, "train"), hearts(study, "hold"), made(study, "unseen")
    people = hold.take(range(len(unseen)))
    real = {"as taken": people.images, "through the autoencoder": restored(study, people.images)}
    quantiles = (0.01, 0.05) if len(people) >= 100 else (0.1,)
    known, copied = coarse(train.images), made(study, "copies")
    copied = copied.take(range(min(study.images, len(copied))))
    rows, closest = [], {}
    for way, given in (("unseen", unseen), ("copies", copied)):
        own = (
            {
                "synthetic_subjects": given.table["subject"].to_numpy(str),
                "training_subjects": train.table["subject"].to_numpy(str),
            }
            if way == "copies"
            else {}
        )
        for reading, images in real.items():
            found = memorisation(
                coarse(given.images),
                coarse(images),
                known,
                rng,
                quantiles,
                replicates=replicates,
                **own,
            )
            ratio = found.median_ratio
            for row in found.shares.to_dict("records"):
                rows.append(
                    {
                        "way": way,
                        "reading": reading,
                        **row,
                        "median_ratio": ratio.estimate,
                        "ratio_low": ratio.low,
                        "ratio_high": ratio.high,
                        "n": len(given),
                    }
                )
            if way == "unseen":
                pairs = found.closest(4).to_dict("list")
                closest = {
                    "made": given.images[pairs["synthetic"]],
                    "training": train.images[pairs["training"]],
                    "distance": np.array(pairs["distance"]),
                }
    return pd.DataFrame(rows), closest


def coarse(images: Tensor) -> np.ndarray:
    """ED and ES of images [N, 3, H, W], slightly blurred, at half the grid: [N, 2, H/2, W/2], for
    distances between pictures.
    """
    return F.avg_pool2d(torch.from_numpy(blurred(images[:, :2])), 2).numpy()


@torch.no_grad()
def restored(study: HeartStudy, images: Tensor, batch_size: int = 50) -> Tensor:
    """Images [N, 3, H, W] as the generator's autoencoder gives them back."""
    vae, device = heart_generator(study).pipeline.vae, heart_generator(study).device
    parts = [
        vae.decode(vae.encode(part.to(device)).latent_dist.mean).sample
        for part in images.split(batch_size)
    ]
    return torch.cat(parts).clamp(-1, 1).cpu()


__all__ = [
    "PAIRS",
    "coarse",
    "distances_of",
    "frechet_floor",
    "memorisation_of",
    "restored",
    "standardised",
    "too_few",
]
