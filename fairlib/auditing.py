"""Audit of a text-to-image model: the shares of groups in its images by each classifier, raw and
corrected for its errors, by prompt and against a target, ambiguous images, distances to reference
images, and what was assumed.

    found = fairlib.audit(images, prompts, {"held-out": classifier}, {"F": 0.458, "M": 0.542},
                          rng=numpy.random.default_rng(0), calibration=table)
    found.save("audit")  # audit.html, a page that needs nothing beside it, and audit.json
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairlib.cohorts.listing import listed, missing, open_image
from fairlib.cohorts.tables import read_table
from fairlib.errors import DataError, SettingsError
from fairlib.io import png_bytes, to_images, write_bytes, write_json
from fairlib.measures.distances import subgroup_distances
from fairlib.measures.intervals import Interval, Rng, wilson
from fairlib.measures.shares import (
    BAND,
    CalibrationSet,
    ambiguous,
    class_accuracies,
    corrected_share,
    rogan_gladen,
    sigmoid,
)
from fairlib.methods.targets import check_shares, class_logits
from fairlib.models.training import device_of
from fairlib.settings import need

Table: TypeAlias = pd.DataFrame
ImageFunction: TypeAlias = Callable[[Tensor], Tensor]
ALL, CALIBRATION, NO_PROMPT = "all prompts", "the calibration set", "(no prompt)"
DRAWS = 500  # of the bootstrap
SHOWN, SIDE = 48, 192  # images on the page, and the largest side of each in pixels
BEYOND = " The raw share is beyond what the errors on the calibration set allow: they differ here."
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Audit of images</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:auto;padding:1rem}
table{border-collapse:collapse;width:100%}figure{margin:0}img{max-width:100%;height:auto}
th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ccc}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(8rem,1fr));gap:.8rem}
.grid img{width:100%}figcaption{font-size:.8rem;line-height:1.3}@media(max-width:44rem){th{display:
none}tr,td{display:block;border:0;padding:0}tr{border-bottom:1px solid #ccc;padding:.5rem 0}
td::before{content:attr(data-label) ": ";color:#555}}</style></head><body><main>
<h1>Audit of generated images</h1>
BODY
</main></body></html>"""


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` measured; `save` writes it.

    Parameters
    ----------
    target
        The target share of each group.
    shares
        One row an evaluator, group (of two groups the first, the other being the rest) and prompt
        ("all prompts" first): `evaluator, group, prompt, n, unreadable, target`, and each with
        `_low` and `_high`: `raw`; `corrected`, with a calibration set; `difference` to the target,
        of the corrected share or else the raw one; `ambiguous`, the share of images whose
        probability of the group lies in (0.2, 0.8).
    distances
        One row a feature space: `features, distance, low, high, floor, floor_low, floor_high, n`;
        see `measures.distances.subgroup_distances`. Empty without reference images.
    readings
        One row an image: `prompt`, and the logits, in the columns of a calibration set.
    images
        `[N, C, H, W]` in [-1, 1].
    assumed
        What the numbers rest on, by topic.
    """

    target: dict[str, float]
    shares: Table
    distances: Table
    readings: Table
    images: Tensor
    assumed: dict[str, str]

    def page(self) -> str:
        """One HTML page without scripts that loads nothing; names and prompts are escaped."""
        return PAGE.replace("BODY", "\n".join(_body(self)))

    def save(self, folder: str | Path) -> None:
        """Write `audit.html`, `audit.json` (the same numbers) and `readings.csv` into `folder`."""
        numbers = {"target": self.target, "assumed": self.assumed}
        for name, table in {"shares": self.shares, "distances": self.distances}.items():
            numbers[name] = json.loads(table.to_json(orient="records", double_precision=15))
        write_json(Path(folder) / "audit.json", numbers)
        write_bytes(Path(folder) / "audit.html", self.page().encode())
        write_bytes(Path(folder) / "readings.csv", self.readings.to_csv(index=False).encode())


def audit(
    images: Tensor,
    prompts: Sequence[str],
    classifiers: Mapping[str, ImageFunction],
    shares: Mapping[str, float],
    *,
    rng: Rng,
    calibration: Table | None = None,
    reference: Tensor | None = None,
    embeds: Mapping[str, ImageFunction] | None = None,
    assumed: Mapping[str, str] | None = None,
) -> Audit:
    """Measure the shares of groups in generated images, and what may be wrong with them.

    Parameters
    ----------
    images, prompts
        `[N, C, H, W]` in [-1, 1], and the prompt of each.
    classifiers
        `{name: classifier}`: images to logits `[N]` (positive for the first of two groups) or
        `[N, K]`. Images whose logits are NaN count as unreadable.
    shares
        Target share of each group, in the order of the classifiers' outputs.
    rng
        Of the bootstrap, and of the choice of reference images.
    calibration
        One row an image of known `group`, with the logits of every classifier in the column of its
        name (of more than two groups in columns `name.group`), and `subject` where one has several
        images. With it, shares are corrected for the classifiers' errors.
    reference, embeds
        Images `[M, C, H, W]` to measure distances to, at least 100, and `{name: function}` from
        images to features `[N, D]`; by default those of the classifiers of this library.
    assumed
        What else the page shall state, by topic, as how the images were sampled.

    Raises
    ------
    SettingsError
        Target shares that do not sum to one, or logits of another shape.
    DataError
        Images without prompts, a calibration set that lacks a column or a group, a classifier no
        better than chance there, and images that cannot be compared.
    """
    check_shares(list(shares.values()), "audit")
    if not len(images) or len(images) != len(prompts):
        raise DataError(f"{len(prompts)} prompts for {len(images)} images; give one an image")
    readings, rows, groups = Table({"prompt": list(prompts)}), [], list(shares)
    for name, classifier in classifiers.items():
        logits = class_logits(_each(name, classifier, images), len(groups), f"classifier {name!r}")
        readings[_columns(name, groups)] = logits.reshape(len(images), -1).numpy()
        for group, values in _margins(readings, name, groups).items():
            known = None if calibration is None else _known(calibration, name, groups, group)
            for prompt, part in [(ALL, values), *values.groupby(readings["prompt"], sort=False)]:
                cells = {"evaluator": name, "group": group, "prompt": prompt}
                rows.append(cells | _row(part, known, shares[group], rng))
    own = {k: partial(_features, one) for k, one in classifiers.items() if hasattr(one, "read")}
    distances = Table() if reference is None else _distances(images, reference, embeds or own, rng)
    basis = dict(assumed or {}) | _basis(readings, groups, calibration)
    return Audit(dict(shares), Table(rows), distances, readings, images.cpu(), basis)


def read_folder(folder: str | Path, only: Sequence[str] = ()) -> tuple[Tensor, list[str]]:
    """Images float32 [N, C, H, W] of the PNG and JPEG files in `folder`, grey where all are, and
    the prompt of each from `images.csv` (columns `image, prompt`), "(no prompt)" without; of the
    prompts `only`, where some are given.

    Raises `DataError` when it holds no such images, one cannot be read, or their sizes differ.
    """
    place = Path(folder).expanduser()
    paths = [path for path in listed(place) if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    table = Table({"image": [path.name for path in paths], "prompt": NO_PROMPT})
    if (place / "images.csv").is_file():
        table = read_table(place / "images.csv")
        need(table, "image", "prompt", name=str(place / "images.csv"))
    table = table[table["prompt"].isin(only)] if only else table
    pixels = [np.asarray(open_image(place / name, "RGB")) for name in table["image"]]
    if len(sizes := {one.shape[:2] for one in pixels}) != 1:
        what = f"images of {sorted(sizes)} pixels" if sizes else "no PNG or JPEG of these prompts"
        raise missing(place, what, "give images of one size", place.name)
    colours = to_images(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())
    grey = bool((colours == colours[:, :1]).all())
    return colours[:, :1] if grey else colours, list(table["prompt"])


# --- measurement ---------------------------------------------------------------------------------


def _each(name: str, function: ImageFunction, images: Tensor) -> Tensor:
    """What `function` returns for the images, batch by batch, where it lies; on the CPU."""
    device = device_of(function) if isinstance(function, nn.Module) else images.device
    with torch.no_grad():
        parts = [function(part.to(device)) for part in images.split(64)]
    if not all(isinstance(part, Tensor) for part in parts):
        kind = type(parts[0]).__name__
        raise SettingsError(f"{name!r} returned a {kind}; give one that returns logits of one head")
    return torch.cat(parts).double().cpu()


def _columns(name: str, groups: list[str]) -> list[str]:
    return [name] if len(groups) == 2 else [f"{name}.{group}" for group in groups]


def _margins(table: Table, name: str, groups: list[str], where: str = "readings") -> dict:
    """{group: logit less the largest of the others [N]}, of two groups of the first alone; NaN
    where classifier `name` could not read the image.
    """
    columns = _columns(name, groups)
    need(table, *columns, name=where)
    logits = table[columns].apply(pd.to_numeric, errors="coerce")
    logits = logits.where(np.isfinite(logits))
    if len(logits) > 19 and ((logits >= 0) & (logits <= 1)).all(axis=None):
        what = f"{where}: {name!r} lies in [0, 1] for all {len(logits)} images, as probabilities do"
        raise SettingsError(f"{what}; give logits, log(p / (1 - p))")
    if len(groups) == 2:
        return {groups[0]: logits[name]}
    rest = {one: logits.drop(columns=one).max(axis=1, skipna=False) for one in columns}
    return {group: logits[one] - rest[one] for group, one in zip(groups, columns, strict=True)}


def _known(table: Table, name: str, groups: list[str], group: str) -> CalibrationSet:
    """What a classifier says of images that are known to be of `group`, or not."""
    need(table, "group", name=CALIBRATION)
    table = table.reset_index(drop=True)
    truth = table["group"].astype(str)
    if set(truth) != set(groups):
        what = f"{CALIBRATION} holds the groups {', '.join(sorted(set(truth)))}"
        raise DataError(f"{what}; expected {', '.join(groups)}, as in the target shares")
    values = _margins(table, name, groups, CALIBRATION)[group].dropna()
    subjects = table.get("subject", table.index.to_series())[values.index].to_numpy(str)
    return CalibrationSet(sigmoid(values), (truth == group)[values.index].to_numpy(int), subjects)


def _row(values: pd.Series, known: CalibrationSet | None, target: float, rng: Rng) -> dict:
    """The cells of one group in one part of the images, from its margins there."""
    p = sigmoid(values.dropna())
    if not len(p):
        raise DataError(f"{values.name!r} could read none of {len(values)} images; look at them")
    shares = {"raw": _proportion(p > 0.5), "ambiguous": _proportion(ambiguous(p))}
    best = shares["raw"]
    if known is not None:
        best = shares["corrected"] = _corrected(p, known, best, rng)
    shares["difference"] = Interval(*(end - target for end in (best.estimate, best.low, best.high)))
    cells = {"n": len(p), "unreadable": len(values) - len(p), "target": target}
    return cells | {k: v for name, one in shares.items() for k, v in one.columns(name).items()}


def _corrected(p: np.ndarray, known: CalibrationSet, raw: Interval, rng: Rng) -> Interval:
    """`corrected_share`, its interval at least as wide as the corrected ends of `raw`: where all
    images are read alike, draws of them do not differ.
    """
    found = corrected_share(p, known, rng, DRAWS)
    (a_f,), (a_m,) = class_accuracies(known.p_female > 0.5, known.truth)
    low, high = (float(rogan_gladen(end, a_f, a_m)) for end in (raw.low, raw.high))
    return Interval(found.estimate, min(found.low, low), max(found.high, high))


def _proportion(hits: np.ndarray) -> Interval:
    low, high = wilson(hits.sum(), len(hits))
    return Interval(float(hits.mean()), float(low), float(high))


def _features(classifier: Any, images: Tensor) -> Tensor:
    return cast(Tensor, classifier.read(images)[1])


def _distances(images: Tensor, reference: Tensor, embeds: Mapping, rng: Rng) -> Table:
    """One row a feature space."""
    shapes = [tuple(part.shape[1:]) for part in (reference, images)]
    if shapes[0] != shapes[1] or not embeds:
        what = f"reference images of shape {shapes[0]}, generated ones of {shapes[1]}"
        raise DataError(f"{what}, {len(embeds)} feature spaces; give one shape, and a CLIP")
    rows = []
    for name, embed in embeds.items():
        real, made = (_each(name, embed, part).numpy() for part in (reference, images))
        all_real, all_made = np.full(len(real), "all"), np.full(len(made), "all")
        row = subgroup_distances(real, made, all_real, all_made, rng).iloc[0]
        rows.append({"features": name} | row.to_dict())
    return Table(rows).drop(columns=["real_group", "synthetic_group", "between"])


def _basis(readings: Table, groups: list[str], calibration: Table | None) -> dict[str, str]:
    """What every audit rests on, by topic."""
    read = f"{groups[0]} where the logit is above 0" if len(groups) == 2 else "the largest logit"
    basis = {
        "Images": f"{len(readings)}, of {readings['prompt'].nunique()} prompts, which are fixed",
        "Classification": f"as {read}; ambiguous: probability strictly within {BAND}",
        "Calibration set": "none: shares contain the errors of the classifiers",
        "Intervals": "95 %: Wilson's; of corrected shares, a bootstrap of images and subjects, at "
        "least as wide as Wilson's at the errors of the calibration set",
        "Classifier errors": "may differ between generated images and a calibration set; corrected "
        "shares (Rogan and Gladen) assume that they do not",
    }
    if calibration is not None:
        sizes = calibration["group"].value_counts().items()
        basis["Calibration set"] = ", ".join(f"{count} images of {group}" for group, count in sizes)
    return basis


# --- the page ------------------------------------------------------------------------------------


def _body(audit: Audit) -> Iterator[str]:
    """The page, part by part."""
    texts = enumerate(dict.fromkeys(audit.readings["prompt"]), 1)
    labels = {ALL: ALL} | {text: f"{number}. {text}" for number, text in texts}
    shares = audit.shares.assign(prompt=audit.shares["prompt"].map(labels))
    rows, kind = shares.to_dict("records"), "corrected" if "corrected" in shares else "raw"
    for row in [row for row in rows if row["prompt"] == ALL]:
        word = "includes" if row["difference_low"] <= 0 <= row["difference_high"] else "excludes"
        share = _percent(row, kind, "{:.1f} % (95 % CI {:.1f} to {:.1f} %)")
        text = f"{row['evaluator']}: the {kind} share of {row['group']} is {share}, n = {row['n']}."
        goal = f"The interval {word} the target of {100 * row['target']:.1f} %."
        beyond = BEYOND if row.get("corrected_low", 0) == row.get("corrected_high", 1) else ""
        yield f"<p>{escape(text)} {goal}{beyond}</p>"
    chart = _chart(shares, kind) if find_spec("seaborn") else ""  # the table has the numbers
    yield f"<h2>Shares</h2>{chart}{_table([_texts(row) for row in rows])}"
    if len(audit.distances):
        cells = audit.distances.map(lambda cell: cell if isinstance(cell, str) else f"{cell:.4g}")
        yield "<h2>Distances to the reference images</h2><p>Squared MMD with 95 % CI; the floor is "
        yield f"that of two sets of reference images.</p>{_table(cells.to_dict('records'))}"
    yield f'<h2>Images</h2><div class="grid">{"".join(_tiles(audit, labels))}</div>'
    assumed = [{"topic": topic, "assumed": text} for topic, text in audit.assumed.items()]
    yield f"<h2>What was assumed</h2>{_table(assumed)}"


def _percent(row: Mapping, name: str, form: str = "{:.1f} % ({:.1f} to {:.1f} %)") -> str:
    return form.format(*(100 * row[key] for key in (name, f"{name}_low", f"{name}_high")))


def _texts(row: Mapping) -> dict[str, str]:
    """One row of shares as it stands on the page."""
    missing = f" ({row['unreadable']} unreadable)" if row["unreadable"] else ""
    cells = {"classifier": row["evaluator"], "prompt": row["prompt"], "group": row["group"]}
    cells |= {"n": f"{row['n']}{missing}", "target": f"{100 * row['target']:.1f} %"}
    names = [name for name in ("raw", "corrected", "ambiguous") if name in row]
    cells |= {name: _percent(row, name) for name in names}
    points = _percent(row, "difference", "{:+.1f} points ({:+.1f} to {:+.1f})")
    return cells | {"difference": points}


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """A table; on a narrow screen each row becomes a list, with the names of its columns."""
    body = "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0])
    for row in rows:
        cells = [f'<td data-label="{escape(k)}">{escape(text)}</td>' for k, text in row.items()]
        body += f"</tr><tr>{''.join(cells)}"
    return f"<table><tr>{body}</tr></table>"


def _chart(shares: Table, kind: str) -> str:
    """The shares with their intervals and targets; the table says the same in numbers."""
    import matplotlib.pyplot as plt

    from fairlib.figures import dot_plot, house_style

    lanes = shares["prompt"].str.replace(r"^(\d+)\..*", r"prompt \1", regex=True, flags=re.DOTALL)
    lanes = lanes + (", " + shares["group"] if shares["group"].nunique() > 1 else "")
    table = shares.assign(lane=lanes).replace(r"\$", r"\$", regex=True)  # no formulas
    stream = BytesIO()
    with plt.rc_context({"svg.hashsalt": "audit"}):
        house_style()
        size = (4.8, 1.2 + 0.5 * table["lane"].nunique())
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        dot_plot(table, kind, "lane", "evaluator", "target", "target", True, f"{kind} share", ax=ax)
        figure.savefig(stream, format="svg", metadata={"Date": None})
        plt.close(figure)
    alt = f"{kind} shares with 95 % intervals, and targets; the table has the numbers"
    return _image(stream.getvalue(), alt, "svg+xml")


def _tiles(audit: Audit, labels: Mapping[str, str]) -> Iterator[str]:
    """Some of the images, and what each classifier says of them."""
    said = pd.Series("", audit.readings.index)
    for name in dict.fromkeys(audit.shares["evaluator"]):
        margins = Table(_margins(audit.readings, name, list(audit.target)))
        p = pd.Series(sigmoid(margins.max(axis=1))).map(" {:.2f}".format)
        said += f", {name}: " + margins.fillna(-np.inf).idxmax(axis=1) + p
    scale = min(1.0, SIDE / max(audit.images.shape[-2:]))
    for place in np.unique(np.linspace(0, len(audit.images) - 1, SHOWN).astype(int)):
        image = F.interpolate(audit.images[[place]], scale_factor=scale, mode="area")[0]
        label = labels[audit.readings["prompt"][place]]
        tile = _image(png_bytes(image), f"generated image, prompt {label}{said[place]}")
        text = f"prompt {label.split('.')[0]}{said[place]}"
        yield f"<figure>{tile}<figcaption>{escape(text)}</figcaption></figure>"


def _image(data: bytes, alt: str, kind: str = "png") -> str:
    source = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return f'<img alt="{escape(alt)}" src="{source}">'
