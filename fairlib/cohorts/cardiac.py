"""What the cohorts of cardiac MRI share: from a segmented short-axis stack in two phases to a few
images (which slices, which way up, which millimetres), prompt, classes and balancing weights.

Source: Skorupko et al., arXiv 2403.19508, and its released code (crop around the segmentation,
channels ED, ES, ED, prompt template, body-mass-index classes at 18.5, 25 and 30, capped
inverse-frequency sampling).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from fairlib.cohorts.cohort import Cohort, report
from fairlib.cohorts.listing import (
    FAULTY,
    Excluded,
    missing,
    refuse_all,
    require_some,
    tracked,
)
from fairlib.cohorts.slices import Pixels, SliceStore, centred, stretched
from fairlib.cohorts.tables import SEX_WORDS, require_words, typed
from fairlib.errors import CorruptScan, DataError, FairlibError, SettingsError
from fairlib.nifti import (
    MAX_SERIES_VOXELS,
    MAX_VOXELS,
    affine_note,
    read_grid,
    require_frames,
    require_one_grid,
    voxel_sizes,
)
from fairlib.settings import Checked, Count, Positive

FORMAT = 2  # of the cached slices; raise it when they are read or drawn otherwise
SIZE, PIXEL_MM = 64, 2.0
LABELS = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
LV, MYO, RV = LABELS["LV"], LABELS["MYO"], LABELS["RV"]
BMI_EDGES = (18.5, 25.0, 30.0)
BMI_CLASSES = ("underweight", "normal", "overweight", "obese")
DIAGNOSES = ("healthy", "heart failure")
CLIP_PERCENTILES = (0.5, 99.5)
UNMAPPED, MAP_IT = "unknown pathology", "map it with diagnoses=, to None for neither diagnosis"
ENCLOSED = 0.8  # share of the cavity's border that must lie on the myocardium
# from the apex to the right, back and up (RAS), as hearts lie
TOWARD_BASE = np.array([1.0, -1.0, 1.0])
NEEDED = ("sex", "age", "bmi", "diagnosis")  # for a prompt
OF_SUBJECT = ("subject", "sex", "age", "height", "weight", "bmi", "diagnosis", "pathology")
OF_SLICE = ("centre", "vendor", "part", "slice", "decade", "bmi_class", "prompt", "image")


@dataclass(frozen=True)
class CardiacSettings(Checked):
    """size: pixels a side. pixel_mm: width of a pixel, the same for everybody, because size carries
    sex and disease.

    slices_per_subject: at most so many, next to the middle of those that show both ventricles and
    the myocardium.
    """

    size: Pixels = SIZE
    pixel_mm: Positive = PIXEL_MM
    slices_per_subject: Count = 1

    @property
    def field_of_view_mm(self) -> float:
        """The width of the image."""
        return self.size * self.pixel_mm


STANDARD = CardiacSettings()


@dataclass(frozen=True, eq=False)
class HeartSlices:
    """The slices of one subject, n of them.

    images: float32 [n, 2, size, size] (ED, ES) in [-1, 1]; masks: uint8 [n, 2, size, size], 0
    background, 1 LV, 2 MYO, 3 RV; index: number of each slice in the file; cropped: whether a
    segmentation exceeds its image; order: the labels that meant (LV, MYO, RV) in the file.
    """

    images: np.ndarray
    masks: np.ndarray
    index: tuple[int, ...]
    cropped: bool
    order: tuple[int, int, int]


def body_mass_index(height: float, weight: float) -> float:
    """kg/m2 from cm and kg.

    Raises `DataError` outside 100 to 230 cm and 20 to 300 kg: other units are not guessed.
    """
    if not (100 <= height <= 230 and 20 <= weight <= 300):
        values = f"height {height:g} and weight {weight:g}"
        raise DataError(f"{values}: expected 100 to 230 cm and 20 to 300 kg; convert the units")
    return weight / (height / 100) ** 2


def bmi_class(bmi: float) -> str:
    """ "underweight" (below 18.5), "normal" (below 25), "overweight" (below 30) or "obese".

    Raises `DataError` when the index is missing or not between 8 and 100 kg/m2.
    """
    if not 8 <= bmi <= 100:  # also NaN
        expected = "kg/m2 between 8 and 100; leave subjects without one out"
        raise DataError(f"body-mass index {bmi}: expected {expected}")
    return BMI_CLASSES[int(np.searchsorted(BMI_EDGES, bmi, side="right"))]


def decade(age: float) -> str:
    """The decade of an age in years: 57 -> "50s". Raises `DataError` when the age is missing or not
    10 to 109.
    """
    if not 10 <= age < 110:  # also NaN
        expected = "years between 10 and 109; leave subjects without an age out"
        raise DataError(f"age {age}: expected {expected}")
    return f"{int(age) // 10 * 10}s"


def prompt_of(row: Mapping) -> str:
    """The prompt of one row (mapping with sex, age, bmi, diagnosis), for example "Female, age in
    60s, overweight BMI, heart failure".

    Raises `DataError` on a value outside the template.
    """
    require_words(row, {"sex": tuple(SEX_WORDS), "diagnosis": DIAGNOSES})
    sex, age, bmi = SEX_WORDS[row["sex"]], decade(row["age"]), bmi_class(row["bmi"])
    return f"{sex}, age in {age}, {bmi} BMI, {row['diagnosis']}"


def stack(images: Tensor) -> Tensor:
    """ED and ES [N, 2, H, W] as three channels (ED, ES, ED) [N, 3, H, W]; the type is kept."""
    if images.ndim != 4 or images.shape[1] != 2:
        raise DataError(f"images of shape {tuple(images.shape)}; expected [N, 2, H, W] (ED, ES)")
    return images[:, [0, 1, 0]]


def control_image(masks: Tensor) -> Tensor:
    """Labels [N, 2, H, W] (0 to 3) as the control image float32 [N, 3, H, W]: label / 3, channels
    (ED, ES, ED).
    """
    if len(masks) and not 0 <= int(masks.min()) <= int(masks.max()) <= 3:
        raise DataError(f"labels from {int(masks.min())} to {int(masks.max())}; expected {LABELS}")
    return stack(masks).float() / 3


def normalise(images: np.ndarray) -> np.ndarray:
    """Brightness [..., H, W] linearly to float32 [-1, 1], between the 0.5 and 99.5 percentile of
    the whole array.

    ED and ES of a slice go in together, so that blood stays as bright. Raises `DataError` when all
    values are equal.
    """
    return (stretched(images, images, CLIP_PERCENTILES) * 2 - 1).astype(np.float32)


def label_order(labels: np.ndarray) -> tuple[int, int, int]:
    """Which of the labels 1, 2, 3 are (LV, MYO, RV), decided on the data: the myocardium encloses
    the left ventricle.

    labels: uint8 [X, Y, ...], any further axes. For each pair, the share of a label's in-plane
    border that lies on the other is measured; LV and MYO are the pair with the largest. Raises
    `DataError` when a label is absent or no label is enclosed by another (less than 80 % of its
    border).
    """
    if missing := {1, 2, 3} - set(np.unique(labels).tolist()):
        why = "the left ventricle can only be told with all three"
        raise DataError(f"labels {sorted(missing)} are absent; {why}")
    touching = np.zeros((4, 4))
    for axis in (0, 1):
        pairs = np.arange(labels.shape[axis] - 1)
        first, second = (np.take(labels, pairs + k, axis) for k in (0, 1))
        counts = np.bincount((4 * first.astype(int) + second).ravel(), minlength=16).reshape(4, 4)
        touching += counts + counts.T
    np.fill_diagonal(touching, 0)
    share = (touching / touching.sum(axis=1, keepdims=True))[1:, 1:]
    lv, myo = np.unravel_index(share.argmax(), share.shape)
    if share[lv, myo] < ENCLOSED:
        most = f"at most {share[lv, myo]:.0%} of a border"
        raise DataError(f"no label encloses another ({most}); is it a short-axis segmentation?")
    return int(lv) + 1, int(myo) + 1, 6 - int(lv) - int(myo) - 2


def extract(
    images: np.ndarray, labels: np.ndarray, affine: np.ndarray, settings: CardiacSettings = STANDARD
) -> HeartSlices:
    """Choose, turn, crop and normalise the slices of one subject: images and labels [X, Y, Z, 2]
    (ED, ES) on one grid.

    Raises `DataError` when no slice shows all three structures in both phases, or an image has a
    single value.
    """
    order = label_order(labels)
    labels = np.array([0, *(order.index(label) + 1 for label in (1, 2, 3))], np.uint8)[labels]
    index = choose(labels, settings.slices_per_subject)
    drawn = [_draw(images[:, :, z], labels[:, :, z], affine, settings) for z in index]
    images, masks = np.stack([one[0] for one in drawn]), np.stack([one[1] for one in drawn])
    return HeartSlices(images, masks, index, any(one[2] for one in drawn), order)


def choose(labels: np.ndarray, count: int) -> tuple[int, ...]:
    """Numbers of the `count` slices of labels [X, Y, Z, 2] nearest the middle of those with LV, MYO
    and RV in both phases.
    """
    shown = [(labels == label).any(axis=(0, 1)).all(axis=1) for label in (LV, MYO, RV)]
    whole = np.flatnonzero(np.all(shown, axis=0))
    if not len(whole):
        remedy = "check the frames, or leave the subject out"
        raise DataError(f"no slice shows LV, MYO and RV in both ED and ES; {remedy}")
    middle = whole[len(whole) // 2]
    return tuple(sorted(sorted(whole.tolist(), key=lambda z: (abs(z - middle), z))[:count]))


def _draw(
    images: np.ndarray, labels: np.ndarray, affine: np.ndarray, settings: CardiacSettings
) -> tuple[np.ndarray, np.ndarray, bool]:
    """One slice, images and labels [X, Y, 2]: images and masks [2, size, size], and whether the
    heart exceeds them.
    """
    sizes = voxel_sizes(affine)[:2]
    (across, along), _, cropped = centred(labels > 0, sizes, settings)
    grey = np.einsum("cx,xyp,ry->prc", across, images, along, optimize=True)
    inside = labels[..., None] == np.arange(4)
    parts = np.einsum("cx,xypk,ry->kprc", across, inside, along, optimize=True)
    parts[0] += 1 - parts.sum(axis=0)  # beyond the volume there is background
    grey, masks = upright(grey, parts.argmax(axis=0).astype(np.uint8), affine)
    return normalise(grey), masks, cropped


def upright(
    images: np.ndarray, masks: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror and turn by quarters until the heart is seen from the apex with the right ventricle on
    the left.

    images and masks [..., rows, columns], rows along the file's second axis and columns along its
    first. Whether it is mirrored follows from the affine (the view must run towards the base of the
    heart, which lies to the right, back and up of the apex), how it is turned from the masks:
    oblique stacks have no nearest axes to go by.
    """
    if np.cross(affine[:3, 0], affine[:3, 1]) @ TOWARD_BASE < 0:
        images, masks = images[..., ::-1], masks[..., ::-1]
    (down, across), (rows, columns) = _centre(masks == RV), _centre(masks == LV)
    down, across = down - rows, across - columns
    turns = int(np.round((np.pi - np.arctan2(-down, across)) / (np.pi / 2))) % 4  # anticlockwise
    images, masks = (np.rot90(values, turns, axes=(-2, -1)) for values in (images, masks))
    return np.ascontiguousarray(images), np.ascontiguousarray(masks)


def _centre(inside: np.ndarray) -> np.ndarray:
    return np.array([where.mean() for where in np.nonzero(inside)[-2:]])


def subject_row(subject: Mapping, diagnoses: Mapping[str, str | None], where: str) -> dict:
    """The attributes of one subject, completed: bmi, diagnosis, decade, bmi_class, prompt; missing
    stays missing.

    subject: with sex, age, height, weight, pathology. A pathology code that `diagnoses` does not
    know counts as neither healthy nor heart failure, as None there does; `unmapped` says so. Raises
    `DataError` on values that no subject has.
    """
    code, sizes = subject["pathology"], (subject["height"], subject["weight"])
    row = {**subject, "diagnosis": None if code is None else diagnoses.get(code)}
    row["unmapped"] = None if code in (None, *diagnoses) else code
    try:
        row["bmi"] = np.nan if any(map(pd.isna, sizes)) else body_mass_index(*sizes)
        row["decade"] = None if pd.isna(row["age"]) else decade(row["age"])
        row["bmi_class"] = None if pd.isna(row["bmi"]) else bmi_class(row["bmi"])
        known = not any(pd.isna(row[name]) for name in NEEDED)
        return {**row, "prompt": prompt_of(row) if known else None}
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def frame_numbers(where: str, ed: float, es: float, first: int, last: float = np.inf) -> dict:
    """The frames of end-diastole and end-systole as whole numbers: {"ed": ..., "es": ...}.

    Raises `DataError` unless they are two different ones from `first` to `last`.
    """
    if ed == es or not all(first <= one <= last and one == int(one) for one in (ed, es)):
        stated = f"ED {ed:g} and ES {es:g}" + (f" of {last:g} frames" if last < np.inf else "")
        raise DataError(f"{where}: {stated}; expected two different frames, counted from {first}")
    return {"ed": int(ed), "es": int(es)}


def check_diagnoses(diagnoses: Mapping[str, str | None]) -> None:
    """Raise `SettingsError` unless every code is mapped to a diagnosis of a prompt, or to None."""
    for code, word in diagnoses.items():
        if word not in (None, *DIAGNOSES):
            known = f"{', '.join(map(repr, DIAGNOSES))}, or None for neither"
            raise SettingsError(f"diagnoses[{code!r}] is {word!r}; expected {known}")


def scan_file(folder: Path, name: str) -> Path:
    """`name`.nii.gz in `folder`, or `name`.nii where that is there instead."""
    packed, plain = folder / f"{name}.nii.gz", folder / f"{name}.nii"
    return plain if plain.is_file() and not packed.is_file() else packed


Read = Callable[[Sequence[Path], Sequence[int], CardiacSettings], HeartSlices]


@dataclass(frozen=True)
class Reading:
    """How a release of hearts is read: the arguments of `read_mnms` and `read_acdc` of these
    names. Slices are kept in `cache_dir`, or in memory.
    """

    settings: CardiacSettings
    cache_dir: str | Path | None
    progress: Callable[[int, int], None] | None
    skip_faulty: bool
    headers_only: bool


class Unsegmented(DataError):
    """Masks that are absent, or empty in ED and ES, as those of the folder "Unlabeled" of M&Ms."""


def check_headers(
    files: Sequence[Path], frames: Sequence[int], settings: CardiacSettings, series: bool = False
) -> HeartSlices:
    """Check lengths, headers and that all `files` lie on one grid; returns no images, and slice 0.

    In the place of a `read`, for a survey. series: whether a file holds all frames. Raises
    `CorruptScan`, or `Unsegmented`.
    """
    if len(files) == 1:
        raise Unsegmented("no mask file")
    most = MAX_SERIES_VOXELS if series else MAX_VOXELS
    grids = {path: read_grid(path, most, series) for path in files}
    require_one_grid({path: (shape[:3], affine) for path, (shape, affine) in grids.items()})
    for path, (shape, _) in grids.items():
        require_frames(path, frames if series else (), shape[-1])
    return HeartSlices(np.empty(0), np.empty(0), (0,), False, (LV, MYO, RV))


def read_hearts(
    name: str,
    root: Path,
    subjects: Mapping[str, Mapping],
    scans: Mapping[str, Sequence[Path]],
    read: Read,
    how: Reading,
    excluded: Sequence[Excluded] = (),
    strata: tuple[str, ...] = ("sex", "diagnosis"),
    not_stated: Mapping[str, str] | None = None,
) -> Cohort:
    """Read the subjects that have `scans`: one row is one slice position of one subject, in
    end-diastole and end-systole.

    subjects: attributes (see `subject_row`) with part and the frames ed and es. scans: the files
    from which `read(files, (ed, es), settings)` makes the slices of a subject. Subjects without a
    usable slice or segmentation, or with another order of the labels than most, join `excluded`.

    Columns: subject, sex, age (years), height (cm), weight (kg), bmi, diagnosis ("healthy", "heart
    failure" or missing), pathology (the raw code), centre, vendor, part, slice, decade, bmi_class,
    prompt (missing where one of sex, age, bmi, diagnosis is), image. Images float32 [3, H, W] (ED,
    ES, ED), masks uint8 [2, H, W] (ED, ES). `notes` lists the subjects whose segmentation is wider
    than the image, those whose scans do not state their affine plainly (see
    `fairlib.nifti.read_affine`), and pathology codes that no diagnosis is known for. The columns
    that `not_stated` names are not in the table. Raises one error on all subjects whose scans are
    missing or cannot be trusted (with `skip_faulty` they join `excluded` instead), and `DataError`
    when no subject is left.
    """
    store = SliceStore(HeartSlices, None if how.headers_only else how.cache_dir)
    each = tracked(scans.items(), how.progress)
    slices, left_out, faults = _read_slices(subjects, each, read, how.settings, store)
    if not how.skip_faulty:
        refuse_all(root, faults, "skip_faulty=True leaves those subjects out and lists them")
    excluded = [*excluded, *left_out, *((one, FAULTY, str(why)) for one, why in faults.items())]
    require_some(slices, excluded, root, "subjects", "check their images and masks")
    rows = [
        {**subjects[subject], "slice": index, "image": f"{subject}/{number}"}
        for subject, one in slices.items()
        for number, index in enumerate(one.index)
    ]
    table = typed(rows, ("age", "height", "weight", "bmi"), ("slice",))[[*OF_SUBJECT, *OF_SLICE]]
    width = f"wider than {how.settings.field_of_view_mm:g} mm"
    affines = {subject: affine_note(scans[subject]) for subject in slices}
    notes = [(subject, "heart cropped", width) for subject, one in slices.items() if one.cropped]
    notes += [(one, *note) for one, note in affines.items() if note[0]]
    unmapped = {subject: subjects[subject]["unmapped"] for subject in slices}
    notes += [(one, UNMAPPED, f"{code}: {MAP_IT}") for one, code in unmapped.items() if code]
    return Cohort(
        name,
        table.drop(columns=list(not_stated or ())),
        partial(_read_image, store),
        report(excluded),
        report(notes),
        partial(_read, store, "masks"),
        _why_no_prompt,
        strata,
        not_stated or {},
    )


def _read_slices(
    subjects: Mapping[str, Mapping],
    scans: Iterable[tuple[str, Sequence[Path]]],
    read: Read,
    settings: CardiacSettings,
    store: SliceStore,
) -> tuple[dict[str, HeartSlices], list[Excluded], dict[str, FairlibError]]:
    """The slices of the subjects that have some, why others have none, and the faults of files."""
    slices: dict[str, HeartSlices] = {}
    excluded: list[Excluded] = []
    faults: dict[str, FairlibError] = {}
    for subject, files in scans:
        part, *frames = (subjects[subject][name] for name in ("part", "ed", "es"))
        make = partial(read, files, frames, settings)
        if gone := [path for path in files if not path.is_file()]:
            remedy = "copy it from the release"
            faults[subject] = missing(gone[0], "is missing", remedy, gone[0].name)
            continue
        try:
            slices[subject] = store.add(subject, files, make, (FORMAT, settings, frames))
        except CorruptScan as why:
            faults[subject] = why
        except Unsegmented as why:
            excluded.append((subject, "no segmentation", f"{why}, {part}"))
        except DataError as why:
            excluded.append((subject, "no usable slice", str(why)))
    unusual = _unusual_orders(slices)
    excluded += [(one, "another label order", detail) for one, detail in unusual.items()]
    return {one: had for one, had in slices.items() if one not in unusual}, excluded, faults


def _unusual_orders(slices: Mapping[str, HeartSlices]) -> dict[str, str]:
    """Subject -> detail, where the order of the labels is another one than in most subjects."""
    orders = [one.order for one in slices.values()]
    usual = max(sorted(set(orders)), key=orders.count, default=None)
    unusual = {subject: one.order for subject, one in slices.items() if one.order != usual}
    detail = "(LV, MYO, RV) are {}, in most subjects {}"
    return {subject: detail.format(order, usual) for subject, order in unusual.items()}


def _read(store: SliceStore, name: str, key: str) -> np.ndarray:
    """`key` is "subject/number", number counting the chosen slices from 0."""
    subject, number = key.rsplit("/", 1)
    return store.read(subject, name, int(number))


def _read_image(store: SliceStore, key: str) -> np.ndarray:
    return _read(store, "images", key)[[0, 1, 0]]


def _why_no_prompt(row: Mapping) -> Excluded:
    if pd.isna(row["bmi"]):
        unknown = [name for name in ("height", "weight") if pd.isna(row[name])]
        return row["subject"], "body-mass index unknown", f"{' and '.join(unknown)} missing"
    for name in ("sex", "age"):
        if pd.isna(row[name]):
            return row["subject"], f"{name} unknown", ""
    code = "" if pd.isna(row["pathology"]) else f"pathology {row['pathology']}"
    return row["subject"], "neither healthy nor heart failure", code
