"""Bags of all slides of a patient: rows and items of several slides, joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lrmil_training.data.bags import BagItem, StoredBag
from lrmil_training.data.cohort import Cohort, CohortSlide
from lrmil_training.data.feature_store import JoinedRows
from lrmil_training.data.patient_groups import bags_by_patient
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.text_escapes import printable

MAX_NAMED = 5  # patients that a message names


def group_by_bag(slides: Sequence[CohortSlide], bag: str) -> list[tuple[CohortSlide, ...]]:
    """Return the slides of each training sample: each slide alone, or all of a patient (`TrainConfig.bag`)."""
    if bag == "slide":
        return [(slide,) for slide in slides]
    return [tuple(slides[row] for row in rows) for rows in bags_by_patient([s.patient for s in slides]).values()]


def require_one_label(cohort: Cohort) -> None:
    """Raise `CohortError` if a patient has slides of several labels, so that its bag would have no true class."""
    groups = group_by_bag(cohort.slides, "patient")
    mixed = [slides[0].patient for slides in groups if len({s.label for s in slides}) > 1]
    if mixed:
        more = f" and {len(mixed) - MAX_NAMED} more" if len(mixed) > MAX_NAMED else ""
        raise CohortError(
            cohort.path,
            f"bag: patient needs one label for each patient, and {len(mixed)} have slides of several: "
            f"{', '.join(map(printable, mixed[:MAX_NAMED]))}{more}; correct the labels, or train with bag: slide",
        )


def join_stored(bags: Sequence[StoredBag]) -> StoredBag:
    """Return the bag of all slides of a patient; the bag itself if there is one slide."""
    if len(bags) == 1:
        return bags[0]
    rows = [part for bag in bags for part in (bag.rows.parts if isinstance(bag.rows, JoinedRows) else (bag.rows,))]
    return StoredBag(JoinedRows(tuple(rows)), join_items([bag.item for bag in bags], [part.shape[0] for part in rows]))


def join_items(items: Sequence[BagItem], counts: Sequence[int]) -> BagItem:
    """Return one item for the instances of several slides with one label, without the instances.

    Parameters
    ----------
    items
        Items of the slides. Their teacher's logits are those of the patient.
    counts
        Instances of each slide. Those of a slide without outlines get class shares of 0, which have no loss.
    """
    first = items[0]
    scores = torch.cat([item.teacher_scores for item in items])
    widths = [item.patch_targets.shape[1] for item in items if len(item.patch_targets)]
    if not widths:
        return replace(first, teacher_scores=scores)
    shares = [
        item.patch_targets if len(item.patch_targets) else torch.zeros(count, widths[0])
        for item, count in zip(items, counts, strict=True)
    ]
    return replace(first, teacher_scores=scores, patch_targets=torch.cat(shares))
