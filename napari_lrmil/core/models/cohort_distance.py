"""Distance of a slide from the training slides of a model, and the file of a bundle with the statistics for it.

A slide is described by the mean embedding of its LR patches. The training slides are a mean, a variance in each of
their leading directions, and a remainder. The distance has two parts, as in published detectors of data outside a
training set: the Mahalanobis distance in the leading directions, and the length of what they leave out.

The file lies beside the card and not in it: it changes what is said of a probability, never the probability, and a
program that does not know it can use the bundle all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.models.bundle_part import damaged_part, read_part

EMBEDDINGS = "embeddings.safetensors"
PATIENT_EMBEDDINGS = "patient_embeddings.safetensors"  # of training patients, if each was one bag
FEW_SLIDES = 100  # below these a share has steps of more than a per cent, and its text says how many slides it is of
OUTSIDE = 0.99  # share of held-out slides of the training kind; a slide farther away than these gets a warning

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class CohortDistance:
    """Distance of one slide from the training slides.

    Attributes
    ----------
    distance
        1 is usual for slides of the training kind that the model has not seen.
    quantile
        Share of such slides that lie nearer, 0 to 1.
    slides
        Number of slides that this was measured on.
    """

    distance: float
    quantile: float
    slides: int

    @property
    def is_outside(self) -> bool:
        """Whether the slide is farther away than nearly all slides of the training kind."""
        return self.quantile > OUTSIDE

    @property
    def text(self) -> str:
        """The distance in words."""
        return f"farther from the training slides than {self.share} of {self._kind}"

    @property
    def share(self) -> str:
        """The quantile in per cent; the table of quantiles ends at 99.9 %."""
        return "99.9 %" if self.quantile >= 1 else f"{100 * self.quantile:.{1 if self.is_outside else 0}f} %"

    @property
    def _kind(self) -> str:
        return (
            f"{format_count(self.slides, 'slide')} of their kind"
            if self.slides < FEW_SLIDES
            else "slides of their kind"
        )

    @property
    def warning(self) -> str | None:
        """Sentence on a slide outside the training slides; None for others."""
        if not self.is_outside:
            return None
        return (
            f"This slide lies outside the training slides: it is farther from them than {self.share} of {self._kind} "
            f"({self.distance:.1f} times the usual distance); check stain, scanner and tissue before you "
            "rely on the probabilities"
        )


@dataclass(frozen=True)
class EmbeddingStatistics:
    """Statistics of the mean embeddings of the training slides, with D dimensions and k leading directions.

    Attributes
    ----------
    mean
        (D,) mean over the slides.
    directions
        (k, D) leading directions, orthonormal.
    variances
        (k,) variance along each direction.
    scales
        (2,) usual squared distance of held-out slides: in the leading directions, and of the remainder.
    levels, distances
        (Q,) shares of held-out slides, ascending, and the distance below which they lie.
    counts
        (2,) number of training slides, and of held-out slides.
    """

    mean: Vector
    directions: Vector
    variances: Vector
    scales: Vector
    levels: Vector
    distances: Vector
    counts: NDArray[np.int64]

    def squared_parts(self, embeddings: Vector) -> Vector:
        """Return (N, 2) squared distances of (N, D) embeddings: in the leading directions, and of the remainder."""
        centred = np.asarray(embeddings, np.float64) - self.mean
        scores = centred @ self.directions.T
        remainder = centred - scores @ self.directions
        return np.stack([(scores**2 / self.variances).sum(axis=1), (remainder**2).sum(axis=1)], axis=1)

    def distance_of(self, embeddings: Vector) -> Vector:
        """Return (N,) distances of (N, D) embeddings: the root mean square of both parts, each by its usual size."""
        return np.asarray(np.sqrt((self.squared_parts(embeddings) / self.scales).mean(axis=1)), np.float64)

    def measure(self, embedding: Vector) -> CohortDistance:
        """Return the distance of a slide with the (D,) mean embedding `embedding`."""
        distance = float(self.distance_of(embedding[None])[0])
        quantile = float(np.interp(distance, self.distances, self.levels, right=1.0))
        return CohortDistance(distance, quantile, int(self.counts[1]))


def write_embedding_statistics(
    folder: Path, statistics: EmbeddingStatistics | None, bundle_sha256: str, name: str = EMBEDDINGS
) -> None:
    """Write the statistics into the bundle in `folder`; None deletes those of an earlier export.

    Directions are stored as float16, which takes 46 kB at 1,280 dimensions.
    """
    from safetensors.numpy import save_file

    if statistics is None:
        (folder / name).unlink(missing_ok=True)
        return
    tensors: dict[str, NDArray[Any]] = {
        "mean": statistics.mean.astype(np.float32),
        "directions": statistics.directions.astype(np.float16),
        "variances": statistics.variances,
        "scales": statistics.scales,
        "levels": statistics.levels,
        "distances": statistics.distances,
        "counts": statistics.counts.astype(np.int64),
    }
    with atomic_write(folder / name) as partial:
        save_file(tensors, partial, metadata={"bundle_sha256": bundle_sha256})


def read_embedding_statistics(
    folder: Path, bundle_sha256: str, dim: int, name: str = EMBEDDINGS
) -> EmbeddingStatistics | None:
    """Return the statistics of the bundle in `folder`; None if it has none.

    Raises
    ------
    BundleError
        If the file is damaged, or of another model.
    """

    def read(path: Path) -> tuple[EmbeddingStatistics, bool]:
        statistics, model = _read_statistics(path)
        return statistics, model == bundle_sha256

    statistics = read_part(folder, name, read)
    if statistics is not None and (reason := _problem(statistics, dim)):
        raise damaged_part(folder, name, reason)
    return statistics


def _read_statistics(path: Path) -> tuple[EmbeddingStatistics, str | None]:
    """Return the statistics of a file, and the hash of the model that they are of."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            model = (file.metadata() or {}).get("bundle_sha256")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    counts = tensors.pop("counts")
    return EmbeddingStatistics(**{k: v.astype(np.float64) for k, v in tensors.items()}, counts=counts), model


def _problem(statistics: EmbeddingStatistics, dim: int) -> str:
    """Return what is impossible in statistics of embeddings of `dim` dimensions; empty if nothing is."""
    s = statistics
    k, q = s.variances.size, s.levels.size
    expected = {
        "mean": (dim,),
        "directions": (k, dim),
        "variances": (k,),
        "scales": (2,),
        "levels": (q,),
        "distances": (q,),
        "counts": (2,),
    }
    for name, shape in expected.items():
        values = getattr(s, name)
        if values.shape != shape or 0 in shape:
            return f"{name} has shape {values.shape}, expected {shape}"
        if not np.isfinite(values).all():
            return f"{name} has values that are not finite"
    if min(s.variances.min(), s.scales.min()) <= 0:
        return "a variance is 0 or below"
    if (np.diff(s.levels) <= 0).any() or (np.diff(s.distances) < 0).any():
        return "the quantiles do not rise"
    return ""
