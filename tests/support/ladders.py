"""Bundles of several resolutions with one untrained teacher, and limits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.limits import LIMITS, ConformalScores, ModelLimits, NetworkLimits
from support.networks import untrained_bundle

OPEN, CLOSED = 1.0, 0.0  # conformal scores: sets of all classes, or of the most probable one


def ladder_bundles(folder: Path, *resolutions: float, score: float | None = OPEN) -> list[Bundle]:
    """Write a bundle for each µm per pixel, in ``folder/<mpp>/bundle`` as training runs do, and return them."""
    bundles = []
    for mpp in resolutions:
        path = folder / f"{mpp:g}" / "bundle"
        bundle = untrained_bundle(path, lr_mpp=mpp, name=f"at-{mpp:g}")
        if score is not None:
            write_sets(bundle, score)
        bundles.append(bundle)
    return bundles


def write_sets(bundle: Bundle, score: float, level: Literal["slide", "patient"] = "slide") -> None:
    """Give both networks of a bundle the scores of 20 calibration patients, all the same."""
    network = NetworkLimits(conformal=ConformalScores(scores=(score,) * 20, patients=tuple(range(20))))
    limits = ModelLimits(bundle_sha256=bundle.sha256, student=network, teacher=network, level=level)
    (bundle.path / LIMITS).write_text(limits.model_dump_json())
    vars(bundle).pop("limits", None)  # read again
