"""Result files of slides as `predict` leaves them, without a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from napari_lrmil.core.results.schema import PredictionFile, PredictionSetResult

SHA = "ab" * 32


def write_result(
    results: Path,
    slide: str,
    probabilities: Mapping[str, float],
    *,
    sha256: str = SHA,
    classes: tuple[str, ...] = (),
    scope: str = "whole slide",
) -> Path:
    """Write ``prediction.json`` of a slide, and return its folder; `classes` are the set of classes if any."""
    folder = results / slide
    folder.mkdir(parents=True, exist_ok=True)
    PredictionFile(
        slide=slide,
        path=f"slides/{slide}.tif",
        slide_fingerprint="f" * 16,
        bundle="demo",
        bundle_sha256=sha256,
        classes=tuple(probabilities),
        probabilities=dict(probabilities),
        calibrated=False,
        logits=dict.fromkeys(probabilities, 0.0),
        predicted=max(probabilities, key=lambda name: probabilities[name]),
        mpp=0.5,
        lr_mpp=2.0,
        patch_um=256.0,
        n_patches=4,
        n_hr_patches=64,
        pixels_decoded=1,
        scope=scope,
        device="cpu",
        seconds={"total": 1.0},
        warnings=(),
        prediction_set=PredictionSetResult(coverage=0.9, classes=classes) if classes else None,
        version="0.1.0",
    ).write(folder)
    return folder
