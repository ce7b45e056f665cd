"""Warnings if slides of an evaluation were used to train the model, which makes its figures too good."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from lrmil_training.data.cohort import SPLITS, Cohort
from lrmil_training.runs.event_log import BUNDLE, RUNS_FOLDER, SLIDES
from napari_lrmil.core.models.card import CARD


def warn_of_training_slides(cohort: Cohort, bundle: Path) -> list[str]:
    """Return warnings on slides that the model has seen, and on a table without splits.

    Parameters
    ----------
    cohort
        The slides of the evaluation.
    bundle
        Folder of the model. If it lies in the folder of its run or series of runs, the run's list of slides is compared
        by name and patient. A bundle that was copied elsewhere does not know its slides.
    """
    used = _slides_used_by_run(_run_of(bundle))
    splits = Counter(used[key] for s in cohort.slides if (key := (s.name, s.patient)) in used)
    warnings = []
    if splits:
        parts = ", ".join(f"{count:,} in {split}" for split, count in sorted(splits.items()))
        warnings.append(
            f"{splits.total():,} of {len(cohort.slides):,} slides were used to train this model or to choose its "
            f"settings ({parts}), by their names and patients: the figures are too good; evaluate other patients"
        )
    if not cohort.fixed and any(s.split in SPLITS for s in cohort.slides):
        warnings.append(
            "the table has no column split, so its patients were divided here, not as in a training: slides may be "
            "among those that the model was trained on; fill in the column split, or evaluate another table"
        )
    return warnings


def _run_of(bundle: Path) -> Path:
    """Return the folder of the run that wrote a bundle; a series copies the bundle of its best run."""
    copies = bundle.parent.glob(f"{RUNS_FOLDER}/*/{BUNDLE}/{CARD}")
    same = (card.parents[1] for card in copies if card.read_bytes() == (bundle / CARD).read_bytes())
    return next(same, bundle.parent)


def _slides_used_by_run(run: Path) -> dict[tuple[str, str], str]:
    """Return (slide, patient) -> split of all slides of a run but its test slides; empty if there is no list."""
    try:
        rows = json.loads((run / SLIDES).read_text(encoding="utf-8"))["slides"]
        return {(row["slide"], row["patient"]): row["split"] for row in rows if row["split"] != "test"}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # the bundle lies elsewhere, or beside a file of another program
