"""Class probabilities of patches in the CSV layout of WSInfer: ``model-outputs-csv/<slide>.csv`` for each network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from napari_lrmil.core.csv_files import write_csv
from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.results.reader import StoredPatches, StoredPrediction

CSV_FOLDER = "model-outputs-csv"


def write_patch_probabilities(out: Path, stored: StoredPrediction) -> tuple[Path, ...]:
    """Write the patch probabilities of student and teacher below ``out/student`` and ``out/teacher``.

    Both folders are laid out as WSInfer's results: boxes in level-0 pixels from the corner of level 0, and a column
    for each class.
    Probabilities are the softmax of each patch's own class scores, not calibrated.

    Returns
    -------
    tuple of Path
        The files that were written.

    Raises
    ------
    StoredError
        If the results have no class scores of patches; nothing is written then.
    """
    networks = {"student": stored.student} | ({"teacher": stored.teacher} if stored.teacher is not None else {})
    tables = {name: list(_rows(stored, name, patches)) for name, patches in networks.items()}
    paths = []
    for name, rows in tables.items():
        paths.append(out / name / CSV_FOLDER / f"{stored.folder.resolve().name}.csv")
        write_csv(paths[-1], rows)
    return tuple(paths)


def _rows(stored: StoredPrediction, network: str, patches: StoredPatches) -> Iterator[tuple[object, ...]]:
    """Yield the head and the row of each patch."""
    if patches.patch_logits is None:
        raise StoredError(
            stored.folder,
            f"these results hold no class scores of the {network}'s patches: an earlier version wrote them, or its "
            "aggregator is TransMIL, which has none; run predict or compare again, with --no-resume",
        )
    width, height = (int(side) for side in patches.attributes["patch_level0_xy"])
    yield ("minx", "miny", "width", "height", *(f"prob_{name}" for name in stored.summary.classes))
    probabilities = patch_probabilities(patches.patch_logits)
    for (x, y), values in zip(patches.coords.tolist(), probabilities, strict=True):
        yield (x, y, width, height, *map(str, values))


def patch_probabilities(logits: Features) -> Features:
    """Return (N, C) probabilities of (N, C) class scores of patches."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float32)
