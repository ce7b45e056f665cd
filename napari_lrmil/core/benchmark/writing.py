"""Step "write" of the benchmark: the files that `predict` writes for a slide, from the output of one measured pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from napari_lrmil.core.inference.network_input import NetworkInput
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.pooling import BagOutput
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.results.writer import write_prediction
from napari_lrmil.core.slides.slide import Slide


def prediction_to_write(
    slide: Slide, bundle: Bundle, grid: NestedGrid, network_input: NetworkInput, pooled: BagOutput
) -> Prediction:
    """Return a prediction of the size that `predict` would write for the whole slide.

    Parameters
    ----------
    grid
        Grid of the slide.
    network_input
        All patches of the setup, LR or HR.
    pooled
        Output for these patches or for a sample of them, which is then repeated.
    """
    count, classes = len(network_input.patches), bundle.card.classes
    rows = np.resize(np.arange(len(pooled.attention)), count)
    attention = pooled.attention[rows] / pooled.attention[rows].sum()
    network = NetworkPrediction(
        coords=network_input.patches.corners,
        patch_level0=network_input.patches.size_level0,
        attention=attention,
        evidence=pooled.evidence[rows],
        logits=dict(zip(classes, pooled.logits.tolist(), strict=True)),
        probabilities=dict.fromkeys(classes, 1 / len(classes)),  # only written
        target_mpp=network_input.target_mpp,
        pixels_decoded=slide.pixels_decoded,
        seconds={"total": 0.0},
        cpu_seconds=0.0,
        patches_encoded=count,
    )
    return Prediction(
        slide=slide.name,
        path=slide.path,
        slide_fingerprint=slide.fingerprint,
        bundle=bundle.name,
        bundle_sha256=bundle.sha256,
        classes=classes,
        calibrated=False,
        # The exports list the patches of the student: those of the setup.
        grid=replace(grid, lr_index=network_input.index),
        level0_size=(slide.width, slide.height),
        student=network,
        device="cpu",
        warnings=(),
    )


def write_and_remove(slide: Slide, prediction: Prediction) -> None:
    """Write all files of a prediction, overlay included, into a temporary folder."""
    with TemporaryDirectory(prefix="lrmil-bench-") as folder:
        write_prediction(Path(folder), slide, prediction)
