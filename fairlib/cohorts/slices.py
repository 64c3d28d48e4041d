"""From the volumes of a brain to a few slices: which ones, which grey values, which millimetres;
and the store of slices of any organ, on disk or in memory: no volume is opened twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import nibabel
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from scipy.sparse import csr_array

from fairlib.errors import DataError, WeightsError
from fairlib.io import read_tensors, write_tensors
from fairlib.nifti import voxel_sizes
from fairlib.settings import Bound, Checked, Count, Positive, Weight, digest

FORMAT = 1  # of the store's files; raise it when slices are chosen or drawn otherwise
CONTRASTS = ("t1", "t1ce", "t2", "flair")
SIDES = ("none", "left", "right")


def _growing(limits: tuple[float, ...]) -> bool:
    return len(limits) == 2 and 0 <= limits[0] < limits[1] <= 100


Pixels = Annotated[int, Bound(lambda value: value >= 8, "at least 8")]
Part = Annotated[float, Bound(lambda value: 0 < value <= 1, "in (0, 1]")]
Limits = Annotated[tuple[float, ...], Bound(_growing, "two growing numbers from 0 to 100")]


@dataclass(frozen=True)
class SliceSettings(Checked):
    """How slices are chosen and drawn.

    size: pixels a side. field_of_view_mm: width of the image; a pixel is field_of_view_mm / size
    for everybody, because the size of a brain carries sex and may not be scaled away.
    slices_per_subject: at most so many.
    minimum_area: share of the subject's largest brain area a slice must show. minimum_gap_mm: least
    distance between chosen slices. minimum_tumour_mm2: below it a slice counts as one without
    tumour. clip_percentiles: grey limits, of the brain of the whole volume.
    """

    size: Pixels = 128
    field_of_view_mm: Positive = 204.8
    slices_per_subject: Count = 4
    minimum_area: Part = 0.85
    minimum_gap_mm: Weight = 5.0
    minimum_tumour_mm2: Weight = 50.0
    clip_percentiles: Limits = (0.5, 99.5)


STANDARD = SliceSettings()


@dataclass(frozen=True, eq=False)
class SubjectSlices:
    """The slices of one subject.

    images: float32 [n, contrasts, size, size] in [-1, 1]; index: axial index of each slice, from
    the feet up; side: position in `SIDES` of each (the patient's side with the tumour); cropped:
    whether the brain exceeds the image.
    """

    images: np.ndarray
    index: tuple[int, ...]
    side: tuple[int, ...]
    cropped: bool

    @property
    def sides(self) -> tuple[str, ...]:
        """ "left", "right" (the patient's) or "none" for each slice."""
        return tuple(SIDES[code] for code in self.side)


@dataclass
class SliceStore:
    """Slices of many subjects: on disk (one safetensors file a subject) or, when `folder` is None,
    in memory.

    kind: the dataclass of one subject's slices, whose fields are arrays, tuples of int, and bool.
    """

    kind: type
    folder: str | Path | None
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def add(self, subject: str, files: Iterable[Path], make: Callable[[], Any], key: Any) -> Any:
        """The slices of `subject` as `kind`: from the cache or, where it has none or a broken file,
        from `make()`. The file's name follows from `key` (settings) and from the size and time of
        each of `files`.
        """
        if self.folder is None:
            self._kept[subject] = slices = make()
            return slices
        marks = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        name = f"{subject}.{digest([FORMAT, key, marks])}.safetensors"
        path = Path(self.folder).expanduser() / name
        self._kept[subject] = path
        slices = self._cached(path)
        if slices is None:
            slices = make()
            tensors = {name: torch.as_tensor(value) for name, value in vars(slices).items()}
            write_tensors(path, tensors)
        return slices

    def read(self, subject: str, name: str, number: int) -> np.ndarray:
        """Slice `number` (from 0) of the array `name` of a subject."""
        kept = self._kept[subject]
        if not isinstance(kept, Path):
            if not getattr(kept, name).size:
                raise DataError(f"{subject}: only listed, not read; read the cohort with images")
            return getattr(kept, name)[number]
        try:
            with safe_open(kept, framework="numpy") as file:
                return file.get_slice(name)[number : number + 1][0]
        except (OSError, SafetensorError) as error:
            what = f"{kept}: cached slices are gone or broken ({error})"
            raise DataError(f"{what}; read the cohort again") from error

    def _cached(self, path: Path) -> Any:
        if not path.exists():
            return None
        try:
            tensors = read_tensors(path).items()
            return self.kind(**{name: _untensored(value) for name, value in tensors})
        except (WeightsError, TypeError):  # a broken cache is no cache
            return None


def _untensored(value: torch.Tensor) -> np.ndarray | tuple | bool | float:
    if value.ndim > 1:
        return value.numpy()
    return tuple(value.tolist()) if value.ndim else value.item()


def extract(
    volumes: dict[str, np.ndarray], labels: np.ndarray, affine: np.ndarray, settings: SliceSettings
) -> SubjectSlices:
    """Choose, normalise and draw the slices of one subject from skull-stripped `volumes` (0 =
    background) on one grid.

    The image is centred on the bounding box of the whole brain. Raises `DataError` when a volume
    shows nothing.
    """
    brain, inside = np.zeros_like(labels, bool), {}
    for name, volume in volumes.items():
        shown = volume != 0
        if not shown.any():
            raise DataError(f"the {name} volume shows no brain: every voxel is 0; export it again")
        corners = volume[np.ix_(*[(0, -1)] * 3)]
        if corners.all():
            raise DataError(
                f"the background of the {name} volume is not 0 (its corners are from "
                f"{corners.min():.4g} to {corners.max():.4g}); strip the skull, or set it to 0"
            )
        brain |= shown
        inside[name] = volume.T[shown.T]  # in the order of files, which is six times as fast
    brain, sizes = to_canonical(brain, affine)
    tumour, _ = to_canonical(labels > 0, affine)
    (across, along), middles, cropped = centred(brain, sizes, settings)
    index = choose_slices(_areas(brain, sizes), _areas(tumour, sizes), sizes[2], settings)
    grey = [
        normalise(to_canonical(volume, affine)[0], index, settings.clip_percentiles, inside[name])
        for name, volume in volumes.items()
    ]
    across = csr_array(across)  # a pixel is made of a few voxels
    drawn = [[draw(volume[..., k], across, along) for volume in grey] for k in range(len(index))]
    least = settings.minimum_tumour_mm2
    sides = [SIDES.index(side_of(tumour[..., z], middles[0], sizes, least)) for z in index]
    return SubjectSlices(np.stack(drawn), tuple(index), tuple(sides), cropped)


def to_canonical(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn and flip the axes (no interpolation) until they run to Right, Anterior, Superior; also
    voxel sizes in mm.

    An oblique affine is taken at its nearest axes.
    """
    turn = nibabel.io_orientation(affine)
    sizes = np.zeros(3)
    sizes[turn[:, 0].astype(int)] = voxel_sizes(affine)
    return nibabel.apply_orientation(volume, turn), sizes


def choose_slices(
    brain: np.ndarray, tumour: np.ndarray, spacing: float, settings: SliceSettings
) -> list[int]:
    """Indices of the informative slices, growing, given each slice's brain and tumour area in mm^2.

    Among slices with at least `minimum_area` of the largest brain area, take greedily the one with
    most tumour (ties: more brain, then lower index) that lies at least `minimum_gap_mm` from those
    taken, until there are enough. Without a tumour that means most brain. Fewer come back when the
    gap leaves no more.
    """
    candidates = np.flatnonzero(brain >= settings.minimum_area * brain.max())
    order = sorted(candidates.tolist(), key=lambda z: (-tumour[z], -brain[z], z))
    chosen: list[int] = []
    for z in order:
        far = all(abs(z - other) * spacing >= settings.minimum_gap_mm - 1e-6 for other in chosen)
        if far and len(chosen) < settings.slices_per_subject:
            chosen.append(z)
    return sorted(chosen)


def normalise(
    volume: np.ndarray,
    index: list[int],
    percentiles: tuple[float, ...] = (0.5, 99.5),
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """The slices `index` of `volume` as grey in [0, 1], background 0: [X, Y, len(index)].

    Linear between two percentiles of the brain (its non-zero voxels, `inside`, in any order) of the
    whole volume, clipped outside them. Raises `DataError` when the brain has but one value.
    """
    inside = volume[volume != 0] if inside is None else inside
    chosen = volume[..., index].astype(np.float64)
    return np.where(chosen != 0, stretched(chosen, inside, percentiles), 0)


def stretched(
    values: np.ndarray, reference: np.ndarray, percentiles: tuple[float, ...]
) -> np.ndarray:
    """`values` linearly to [0, 1] between two percentiles of `reference`, clipped outside them.

    Raises `DataError` when the two are equal.
    """
    low, high = (_percentile(reference.ravel("K"), percent) for percent in percentiles)
    if not high > low:
        raise DataError(f"shows no contrast, only the single value {low:g}; export it again")
    return np.clip((values - low) / (high - low), 0, 1)


def _percentile(values: np.ndarray, percent: float) -> float:
    """`np.percentile` of values [N], bit for bit; one partition at a time is far quicker."""
    place = percent / 100 * (len(values) - 1)
    below = int(place)
    values = np.partition(values, below)
    last = values[below + 1 :].min() if below + 1 < len(values) else values[below]
    # differences of small integers overflow
    ends = np.array([values[below], last], np.result_type(values, np.float32))
    low, high, gap = float(ends[0]), float(ends[1]), float(ends[1] - ends[0])
    share = place - below
    return low + gap * share if share < 0.5 else high - gap * (1 - share)


class Raster(Protocol):
    """The pixels that images are drawn on."""

    @property
    def size(self) -> int:
        """Pixels a side."""

    @property
    def field_of_view_mm(self) -> float:
        """The width of the image."""


def resampling(n: int, spacing: float, centre: float, settings: Raster) -> np.ndarray:
    """The [size, n] matrix that takes one axis of `n` voxels to pixels: bilinear, averaging over
    area when it shrinks.

    The image starts on the edge of the voxel that best puts `centre` (in voxels) into its middle,
    so that a grid which is already right is copied, not blurred. Beyond the volume there is
    background.
    """
    step = settings.field_of_view_mm / settings.size / spacing  # voxels a pixel
    start = np.floor(centre + 1 - settings.size * step / 2)
    place = start - 0.5 + (np.arange(settings.size) + 0.5) * step
    reach = max(step, 1.0)
    near = int(np.ceil(reach))
    voxel = np.floor(place)[:, None].astype(int) + np.arange(-near, near + 2)
    weight = np.clip(1 - np.abs(voxel - place[:, None]) / reach, 0, None)
    weight /= weight.sum(axis=1, keepdims=True)
    matrix, inside = np.zeros((settings.size, n)), (voxel >= 0) & (voxel < n)
    pixel = np.broadcast_to(np.arange(settings.size)[:, None], voxel.shape)
    matrix[pixel[inside], voxel[inside]] = weight[inside]
    return matrix


def centred(
    mask: np.ndarray, sizes: np.ndarray, raster: Raster
) -> tuple[list[np.ndarray], list[float], bool]:
    """Centre an image on the bounding box of `mask` [X, Y, Z] along its first two axes.

    sizes: of a voxel, in mm. Returns the matrices of `resampling` for X and for Y, the middle of
    the box along each (in voxels), and whether the box is wider than the image.
    """
    shown = [np.flatnonzero(mask.any(axis=(1 - axis, 2))) for axis in (0, 1)]
    middles = [(int(one[0]) + int(one[-1])) / 2 for one in shown]
    widths = [(one[-1] - one[0] + 1) * sizes[axis] for axis, one in enumerate(shown)]
    matrices = [resampling(mask.shape[k], sizes[k], middles[k], raster) for k in (0, 1)]
    return matrices, middles, bool(max(widths) > raster.field_of_view_mm)


def draw(grey: np.ndarray, across: np.ndarray | csr_array, along: np.ndarray) -> np.ndarray:
    """One RAS slice [X, Y] of grey in [0, 1] as an image float32 [size, size] in [-1, 1].

    Radiological display: row 0 is anterior, column 0 the patient's right.
    """
    image = (across @ grey @ along.T)[::-1, ::-1].T
    return np.clip(2 * image - 1, -1, 1).astype(np.float32)


def side_of(tumour: np.ndarray, midline: float, sizes: np.ndarray, minimum_mm2: float) -> str:
    """The patient's side that holds most of the tumour of a RAS slice; "none" below `minimum_mm2`
    or without any.
    """
    count = tumour.sum(axis=1)
    if not count.any() or count.sum() * sizes[0] * sizes[1] < minimum_mm2:
        return "none"
    x = np.arange(len(count))  # grows to the patient's right
    return "left" if count[x < midline].sum() >= count[x > midline].sum() else "right"


def _areas(mask: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    counts = [np.count_nonzero(mask[..., z]) for z in range(mask.shape[2])]
    return np.array(counts) * sizes[0] * sizes[1]
