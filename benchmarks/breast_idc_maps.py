"""Picture of patients of a test fold: their patches in place, the labels, and what the fold's student answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from breast_idc_figures import logistic
from breast_idc_folds import fold_scores
from breast_idc_patches import GLASS, SIDE, Float, Patch, Rows, patients_of, targets_of
from sklearn.metrics import roc_auc_score

PICTURED = 3  # patients: the best, the middle and the worst of a fold
FEWEST = 8  # patches of each label of a pictured patient: the AUROC of fewer is luck
MARGIN = 1  # patches of glass around the patches
COLOURS = {"benign": "#2c7bb6", "carcinoma": "#d7191c"}


def choose_patients(patches: Sequence[Patch], rows: Rows, logits: Float) -> list[tuple[str, float]]:
    """Return best, middle and worst patient of (N,) scored patches by the AUROC of their patches, with the AUROC."""
    patients, targets = patients_of(patches)[rows], targets_of(patches)[rows]
    aurocs = []
    for patient in np.unique(patients):
        own = patients == patient
        if min(targets[own].sum(), (~targets[own]).sum()) >= FEWEST:
            aurocs.append((float(roc_auc_score(targets[own], logits[own])), str(patient)))
    aurocs.sort(reverse=True)
    if len(aurocs) < PICTURED:
        raise SystemExit(f"{len(aurocs)} patients of the fold have {FEWEST} patches of each label; expected {PICTURED}")
    chosen = [aurocs[0], aurocs[len(aurocs) // 2], aurocs[-1]]
    return [(patient, auroc) for auroc, patient in chosen]


def draw_maps(patches: Sequence[Patch], result: Mapping[str, Any], out: Path) -> None:
    """Draw a row for each chosen patient: tissue with labels, and probabilities."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = fold_scores(result)
    chosen = choose_patients(patches, scores.rows, scores.logits)
    figure = Figure(figsize=(9.6, 3.4 * len(chosen)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(chosen), 2, squeeze=False)
    probability = dict(zip(scores.rows.tolist(), logistic(scores.logits), strict=True))
    image = None
    for (left, right), (patient, auroc) in zip(axes, chosen, strict=True):
        own = {row: p for row, p in probability.items() if patches[row].patient == patient}
        image = _draw_patient(left, right, [patches[row] for row in own], [*own.values()])
        left.set_title(f"patient {patient}: {len(own)} patches, red: carcinoma by label", fontsize=9)
        right.set_title(f"probability of carcinoma, AUROC {auroc:.2f}", fontsize=9)
    figure.colorbar(image, ax=axes[:, 1], shrink=0.5)
    figure.savefig(out)


def _draw_patient(left: Any, right: Any, patches: Sequence[Patch], probabilities: Sequence[float]) -> Any:
    places = np.array([(patch.x, patch.y) for patch in patches]) // SIDE
    first = places.min(axis=0) - MARGIN
    columns, rows = places.max(axis=0) - first + 1 + MARGIN
    canvas = np.full((rows * SIDE, columns * SIDE, 3), GLASS, np.uint8)
    answers = np.full((rows, columns), np.nan)
    for patch, (column, row), probability in zip(patches, places - first, probabilities, strict=True):
        pixels = patch.read()
        y, x = row * SIDE, column * SIDE
        canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        answers[row, column] = probability
        colour = COLOURS["carcinoma" if patch.is_carcinoma else "benign"]
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) * SIDE + (x, y)
        left.plot(*corners.T, color=colour, linewidth=1.2)
    left.imshow(canvas)
    for axis in (left, right):
        axis.set_xticks([])
        axis.set_yticks([])
    right.set_facecolor("#f3f3f3")
    return right.imshow(answers, vmin=0, vmax=1, cmap="coolwarm", interpolation="nearest")
