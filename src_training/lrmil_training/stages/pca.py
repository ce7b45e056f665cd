"""Reduction of the teacher's embedding by principal component analysis of the training slides' HR features."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrmil_training.data.feature_store import StoredRows
from lrmil_training.data.teacher_targets import MIN_DEVIATION
from lrmil_training.stages.run_context import RunContext, stage_seed
from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.encoders import LoadedEncoder
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Event, Notice

MOST_PATCHES = 8000  # of all training slides together: more change the leading directions little, and fill the memory

ReductionState = Mapping[str, Tensor]  # state of the encoder's `Reduction`
Rows = NDArray[np.float64]


def require_reducible(encoder: LoadedEncoder, pca: int | None) -> None:
    """Raise `ConfigError` if an embedding cannot be reduced to `pca` dimensions."""
    if pca is None:
        return
    if encoder.spec.pca is not None:
        raise ConfigError(
            f"encoder.pca={pca}: the embedding of {encoder.spec.full_name} is reduced already; leave encoder.pca out"
        )
    if pca > encoder.encoder.dim:
        raise ConfigError(
            f"encoder.pca={pca}: the teacher's embedding has {encoder.encoder.dim} dimensions; "
            "expected as many or fewer, or null"
        )


def find_reduction(context: RunContext, train: Sequence[StoredRows]) -> Generator[Event, None, ReductionState]:
    """Return the reduction of a run, fitted to the HR features of its training slides, or stored by an earlier attempt.

    Other digits would be another encoder to every later stage, so a run that goes on reads what it wrote.

    Raises
    ------
    ConfigError
        If the training slides have fewer patches than dimensions are asked for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    dim, file = context.config.encoder.pca, context.pca_file
    assert dim is not None  # the caller reduces only if the configuration says so
    if file.is_file():
        try:
            return load_file(file)
        except SafetensorError:
            yield Notice(f"{file.name} cannot be read, so the reduction is fitted again")
    rows = draw_patches_evenly(train, stage_seed(context.config.seed, "pca"))
    if len(rows) < dim:
        raise ConfigError(
            f"encoder.pca={dim} needs {dim} patches of training slides or more, and there are {len(rows)}; lower it"
        )
    reduction, share = fit_pca(rows, dim)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        save_file(dict(reduction), partial)
    yield Notice(
        f"the teacher's embedding is reduced from {rows.shape[1]} to {dim} dimensions, with {share:.1%} of the variance"
    )
    return reduction


def draw_patches_evenly(arrays: Sequence[StoredRows], seed: int) -> Rows:
    """Return (N, D) rows of all slides, as many of each as it has, up to an even share of `MOST_PATCHES`."""
    share = max(1, MOST_PATCHES // len(arrays))
    drawn = []
    for number, array in enumerate(arrays):
        count = array.shape[0]
        rng = np.random.default_rng([seed, number])
        rows = np.sort(rng.choice(count, share, replace=False)) if count > share else np.arange(count)
        drawn.append(array(rows))
    return np.concatenate(drawn).astype(np.float64)


def fit_pca(rows: Rows, dim: int) -> tuple[ReductionState, float]:
    """Return the leading directions of (N, D) rows and their share of the variance.

    Dimensions are standardised first, because joined layers differ in scale and one would decide alone. Values are
    rounded to half precision, so that a bundle holds what was trained with.
    """
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation[deviation < MIN_DEVIATION] = 1.0
    standard = (rows - mean) / deviation
    values, directions = _leading_directions(standard, dim)
    strongest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    directions = directions * np.where(
        strongest < 0, -1, 1
    )  # the sign is arbitrary; this one does not depend on chance
    total = float(np.square(standard).sum()) / len(rows)
    tensors = {"mean": torch.tensor(mean), "components": torch.tensor(directions / deviation)}
    reduction = {name: tensor.half().float().contiguous() for name, tensor in tensors.items()}
    return reduction, float(values.sum()) / total if total else 1.0


def _leading_directions(rows: Rows, dim: int) -> tuple[Rows, Rows]:
    """Return the (k,) variances and (k, D) unit directions of centred (N, D) rows, largest first."""
    if rows.shape[1] <= len(rows):
        values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
        return values[::-1][:dim], vectors[:, ::-1][:, :dim].T
    # Fewer rows than dimensions: the smaller matrix of products between rows has the same variances.
    values, vectors = np.linalg.eigh(rows @ rows.T / len(rows))
    directions = rows.T @ vectors[:, ::-1][:, :dim]
    lengths = np.linalg.norm(directions, axis=0)
    return values[::-1][:dim], (directions / np.where(lengths > 0, lengths, 1)).T
