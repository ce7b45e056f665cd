"""HR features of the candidates for the layers of the teacher's embedding: columns of one stored array."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from lrmil_training.data.feature_store import ColumnRows
from lrmil_training.data.teacher_targets import EMBEDDING
from lrmil_training.stages.outputs import HrFeatures
from lrmil_training.stages.run_context import RunContext
from lrmil_training.stages.teacher import complete_features
from napari_lrmil.core.encoders import NetworkEncoder, pool_layers
from napari_lrmil.core.events import Event
from napari_lrmil.core.geometry import Int64


def candidate_features(
    context: RunContext, hr: HrFeatures, layers: Sequence[str]
) -> Generator[Event, None, HrFeatures]:
    """Return the HR features of one candidate; without candidates the features as they are.

    Parameters
    ----------
    context
        The run before the choice: a reduction is stored under what the run depends on.
    hr
        Features that hold the layers of all candidates.
    layers
        Joined layers of the candidate.
    """
    if not context.config.selection.layers:
        return hr
    columns = layer_columns(hr.encoder.encoder, layers)
    arrays = {
        slide: {**by_name, EMBEDDING: ColumnRows.of_columns(by_name[EMBEDDING], columns)}
        for slide, by_name in hr.arrays.items()
    }
    encoder = pool_layers(hr.encoder, layers)
    return (yield from complete_features(replace(context, cohort=hr.cohort, encoder=encoder), arrays))


def layer_columns(encoder: NetworkEncoder, layers: Sequence[str]) -> Int64:
    """Return the (k,) columns of some layers in the embedding of an encoder that joins these and others."""
    pooled = encoder.spec.pooled
    widths = [encoder.poolable[name] for name in pooled]
    starts = dict(zip(pooled, np.cumsum([0, *widths]).tolist(), strict=False))
    parts = [np.arange(starts[name], starts[name] + encoder.poolable[name]) for name in layers]
    return np.concatenate(parts)
