"""From a finished run to a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lrmil_training.config import TrainConfig
from lrmil_training.data.cohort import Cohort
from lrmil_training.evaluation.evaluate import Results, SlideResult, temperature_of
from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.models.bundle import Bundle, StudentNetwork, TeacherNetwork, write_bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.patching.color import FEWEST_SLIDES, CohortColour, cohort_colour, color_stats


def export_bundle(
    folder: Path,
    config: TrainConfig,
    cohort: Cohort,
    encoders: Mapping[str, Any],
    mils: Mapping[str, GatedAttentionMIL],
    results: Results,
    metrics: Mapping[str, Any],
) -> Bundle:
    """Write the bundle of a run: both networks, their temperatures, and what they were trained and measured on."""
    card = {
        "name": config.name,
        "about": config.about,
        "classes": cohort.classes,
        "hr_mpp": config.hr_mpp,
        "lr_mpp": config.lr_mpp,
        "hr_patch_px": config.hr_patch_px,
        "lr_patch_px": config.lr_patch_px,
        "student_input_px": config.student_input_px,
        "temperature": temperature_of(cohort, results["student"]),
        "teacher_temperature": temperature_of(cohort, results["teacher"]),
        "cohort": {f"{split} slides": _counts(counts) for split, counts in cohort.summary().items()},
        "metrics": summary(metrics),
        "colour": training_colour(results["student"]),
    }
    student = StudentNetwork(encoders["student"], mils["student"])
    teacher = TeacherNetwork(encoders["teacher"].cpu(), mils["teacher"])
    return write_bundle(folder, card, student, teacher)


def training_colour(results: Sequence[SlideResult]) -> CohortColour | None:
    """Return the colour of the training slides, or None where too few of them are (still) there to tell a spread.

    By now features stand for the slides, and a disk that is unplugged since must not cost the run its bundle; how many
    slides were measured is part of what is returned.
    """
    found = []
    for result in results:
        if result.row.split == "train":
            with suppress(SlideError), result.row.open() as slide:
                found.append(color_stats(slide, result.grid))
    return cohort_colour(found) if len(found) >= FEWEST_SLIDES else None


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {label}" for label, count in sorted(counts.items()))


def summary(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return one line per method and split: AUROC with interval and what the interval is over."""
    lines = {}
    for method, splits in metrics.items():
        for split, figures in splits.items():
            auroc = figures["auroc"]
            if auroc["value"] is not None and auroc["low"] is not None:
                span = f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})"
                lines[f"{method}, {split}: AUROC"] = (
                    f"{span}, {auroc['n_slides']} slides, interval over {auroc['interval']}"
                )
    return lines
