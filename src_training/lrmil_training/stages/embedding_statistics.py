"""Statistics of the training slides' embeddings, by which a prediction tells whether a slide is of their kind.

Distances of the slides that the statistics are fitted to are too small. The quantiles are therefore those of held-out
slides: training slides whose patients were left out of the fit, and the validation slides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lrmil_training.data.cohort import Cohort
from lrmil_training.data.feature_store import StoredRows
from lrmil_training.data.patient_bags import group_by_bag
from lrmil_training.data.patient_groups import patient_clusters
from napari_lrmil.core.models.cohort_distance import EmbeddingStatistics, Vector

MAX_DIRECTIONS = 16
MAX_FOLDS = 10  # of patients that are left out in turn
MIN_SLIDES, MIN_PATIENTS = 10, 5  # for training; with fewer, distances say more of the sample than of the slides
LEVELS = np.array([*(i / 100 for i in range(100)), 0.995, 0.999])
LEAST = 1e-12  # share of the whole variance; lower bound of variances and scales


def measure_embeddings(cohort: Cohort, features: Mapping[str, StoredRows]) -> EmbeddingStatistics | None:
    """Return the statistics of a cohort's training slides; None if there are too few slides or patients.

    Parameters
    ----------
    cohort
        Slides, patients and splits.
    features
        Slide -> (N, D) LR embeddings by the student.
    """
    train, val = cohort.of("train"), cohort.of("val")
    means = {s.name: features[s.name]().mean(axis=0, dtype=np.float64) for s in (*train, *val)}
    patients = patient_clusters([s.patient for s in train])
    held_out = np.array([means[s.name] for s in val]).reshape(len(val), -1)
    return fit_embedding_statistics(np.array([means[s.name] for s in train]), patients, held_out)


def measure_patient_embeddings(cohort: Cohort, features: Mapping[str, StoredRows]) -> EmbeddingStatistics | None:
    """Return the statistics of a cohort's training patients, each by the mean over all patches of all its slides.

    None if there are too few patients. See `measure_embeddings`.
    """
    means: dict[str, list[Vector]] = {"train": [], "val": []}
    patients = []
    for split, of_split in means.items():
        for slides in group_by_bag(cohort.of(split), "patient"):
            rows = [features[s.name]() for s in slides]
            total = np.sum([r.sum(axis=0, dtype=np.float64) for r in rows], axis=0)
            of_split.append(total / sum(len(r) for r in rows))
            patients += [slides[0].patient] if split == "train" else []
    held_out = np.array(means["val"]).reshape(len(means["val"]), -1)
    return fit_embedding_statistics(np.array(means["train"]), patient_clusters(patients), held_out)


def fit_embedding_statistics(train: Vector, patients: Sequence[str], val: Vector) -> EmbeddingStatistics | None:
    """Return the statistics of training slides, with quantiles of held-out slides.

    Parameters
    ----------
    train, val
        (N, D) and (M, D) mean embedding of each slide.
    patients
        (N,) patient of each training slide.
    """
    names = list(dict.fromkeys(patients))
    if len(train) < MIN_SLIDES or len(names) < MIN_PATIENTS or not np.ptp(train, axis=0).any():
        return None
    k = min(MAX_DIRECTIONS, len(train) // 2)
    fitted = _fit(train, k)
    fold = np.array([names.index(patient) % MAX_FOLDS for patient in patients])
    parts = [_fit(train[fold != i], k).squared_parts(train[fold == i]) for i in np.unique(fold)]
    squares = np.concatenate([*parts, fitted.squared_parts(val)] if len(val) else parts)
    # By the median, so that one odd slide does not shrink the distances of all others.
    scales = np.maximum(np.median(squares, axis=0), LEAST)
    distances = np.sqrt((squares / scales).mean(axis=1))
    counts = np.array([len(train), len(distances)])
    return replace(fitted, scales=scales, distances=distance_quantiles(distances), counts=counts)


def _fit(means: Vector, k: int) -> EmbeddingStatistics:
    """Return mean, directions and shrunken variances of (N, D) embeddings, without quantiles."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = means.mean(axis=0)
    values, rows = np.linalg.svd(means - mean, full_matrices=False)[1:]
    variances = values**2 / (len(means) - 1)
    floor = LEAST * variances.sum()
    k = max(1, min(k, int((variances > floor).sum())))
    # Rounded as in the file, so that held-out slides are measured as later ones are.
    directions = rows[:k].astype(np.float16).astype(np.float64)
    # With few slides the leading variances are too large and the last too small: shrunken towards their mean.
    share = ledoit_wolf_shrinkage((means - mean) @ directions.T) if k > 1 else 0.0
    shrunken = (1 - share) * variances[:k] + share * variances[:k].mean()
    nothing: NDArray[np.float64] = np.ones(2)
    return EmbeddingStatistics(
        mean.astype(np.float32).astype(np.float64),
        directions,
        np.maximum(shrunken, floor),
        scales=nothing,
        levels=LEVELS,
        distances=np.zeros(len(LEVELS)),
        counts=np.array([len(means), 0]),
    )


def distance_quantiles(distances: Vector) -> Vector:
    """Return the distance below which the next slide lies with each probability of `LEVELS`.

    With n distances in order, the next one lies below the i-th with probability i / (n + 1). Beyond the largest, the
    logarithm of distances is taken as normal with unknown mean and variance.

    Parameters
    ----------
    distances
        (N,) distances of held-out slides, two or more.
    """
    from scipy.stats import t

    n, ordered = len(distances), np.sort(distances)
    ranks = LEVELS * (n + 1)
    table = np.interp(ranks, np.arange(n + 1), [0, *ordered])
    logs = np.log(np.maximum(distances, LEAST))
    tail = np.exp(logs.mean() + t.ppf(LEVELS, n - 1) * logs.std(ddof=1) * np.sqrt(1 + 1 / n))
    beyond = ranks > n
    table[beyond] = np.maximum(tail[beyond], ordered[-1])
    return np.asarray(np.maximum.accumulate(table), np.float64)
