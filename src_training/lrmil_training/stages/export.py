"""Bundle of a finished run: its networks and the card that describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrmil_training.data.cohort import Cohort
from lrmil_training.data.validation_patients import validation_notice
from lrmil_training.evaluation.evaluate import SlideResult, fit_method_temperature
from lrmil_training.evaluation.metrics import FEW_TEST_SLIDES, NO_LABELS, explain_no_spread
from lrmil_training.evaluation.patients import PATIENTS
from lrmil_training.runs.event_log import SELECTION
from lrmil_training.stages.embedding_statistics import measure_embeddings, measure_patient_embeddings
from lrmil_training.stages.outline_use import describe_outlines
from lrmil_training.stages.outputs import Evaluation, Student, TeacherOutputs
from lrmil_training.stages.run_context import RunContext
from napari_lrmil.core.encoders.absent import AbsentEncoder
from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import HeadOrigin
from napari_lrmil.core.models.cohort_distance import PATIENT_EMBEDDINGS, write_embedding_statistics
from napari_lrmil.core.models.limits import ModelLimits
from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork, write_bundle
from napari_lrmil.core.patching.color import FEWEST_SLIDES, CohortColour, cohort_colour, color_stats


def export_bundle(
    folder: Path, context: RunContext, teacher: TeacherOutputs, student: Student, evaluation: Evaluation
) -> Bundle:
    """Write the bundle of a run: its networks, their temperatures, and what they were trained and measured on."""
    config, cohort, results = context.config, context.cohort, evaluation.results
    card = {
        "name": config.name,
        "about": config.about,
        "intended_use": config.intended_use,
        "classes": cohort.classes,
        "distilled": teacher.mil is not None,
        **asdict(config.plan),  # without a teacher both resolutions are LR
        "student_input_px": config.student_input_px,
        "temperature": fit_method_temperature(cohort, results["student"]),
        "teacher_temperature": fit_method_temperature(cohort, results["teacher"]) if "teacher" in results else None,
        "cohort": _describe_cohort(cohort) | _outline_counts(context, teacher),
        "metrics": _describe_recipe(context.folder) | summary(evaluation.metrics),
        "colour": training_colour(results["student"]),
        "tissue": config.tissue,
        "stain": context.stain,
        "bag": config.bag,
    }
    networks = StudentNetwork(student.encoder, student.require_mil())
    of_methods = evaluation.limits
    limits = None  # without labels
    if of_methods:
        limits = ModelLimits(student=of_methods["student"], teacher=of_methods.get("teacher"), level=config.bag)
    head = context.head
    origin = None if head is None else HeadOrigin(layout=head.layout, file=head.file, sha256=head.sha256)
    # The teacher's encoder may still be on the GPU; bundles are written from the CPU.
    encoder = context.encoder.encoder.cpu()
    hr = None if teacher.mil is None else TeacherNetwork(encoder, teacher.mil)
    if isinstance(encoder, AbsentEncoder):  # nobody could run such a teacher; its terms apply to the student
        hr = None
        card["cohort"] |= {"teacher's encoder": _describe_absent(encoder)}
        card["licence"] = ", ".join(sorted({student.encoder.spec.licence, encoder.spec.licence}))
    bundle = write_bundle(folder, card, networks, hr, limits, origin)
    statistics = measure_embeddings(cohort, student.require_features())
    write_embedding_statistics(folder, statistics, bundle.sha256)
    by_patient = measure_patient_embeddings(cohort, student.require_features()) if config.bag == "patient" else None
    write_embedding_statistics(folder, by_patient, bundle.sha256, PATIENT_EMBEDDINGS)
    return bundle


def _describe_cohort(cohort: Cohort) -> dict[str, str]:
    """Return the classes of each split, and a sentence if validation has too few patients."""
    lines = {f"{split} slides": _class_counts(counts) for split, counts in cohort.summary().items()}
    notice = validation_notice([cohort])
    lines |= {} if cohort.is_labelled else {"labels": "none; the student learned from the teacher alone"}
    return lines | ({"note": notice} if notice else {})


def _describe_absent(encoder: AbsentEncoder) -> str:
    name = encoder.stated or "not named by their files"
    return f"{name}; its features were given, and it was not at hand, so the bundle has no teacher"


def _describe_recipe(folder: Path) -> dict[str, str]:
    """Return a line on the recipe that the inner cross-validation chose; nothing if there was none."""
    file = folder / SELECTION
    if not file.exists():
        return {}
    return {"teacher's recipe, by inner cross-validation": json.loads(file.read_text(encoding="utf-8"))["choice"]}


def training_colour(results: Sequence[SlideResult]) -> CohortColour | None:
    """Return the stain colour of the training slides, or None if too few of them can still be opened.

    Features have replaced the slides by now, so a disk that was unplugged since must not cost the run its bundle. The
    result says how many slides were measured; fewer than `FEWEST_SLIDES` have no meaningful spread.
    """
    colours = []
    for result in results:
        if result.row.split == "train":
            with suppress(SlideError), result.row.open() as slide:
                colours.append(color_stats(slide, result.grid))
    return cohort_colour(colours) if len(colours) >= FEWEST_SLIDES else None


def _outline_counts(context: RunContext, teacher: TeacherOutputs) -> dict[str, str]:
    """Return the entry on outlines that taught patches; none without the patch term."""
    counts = describe_outlines(context, {name: targets.grid for name, targets in teacher.slides.items()})[:1]
    return {f"outlines (lambda_patch {context.config.lambda_patch:g})": counts[0]} if counts else {}


def _class_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {label}".strip() for label, count in sorted(counts.items()))


def summary(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return one line per method and split: AUROC with interval and what the interval is over, or the agreement."""
    lines: dict[str, str] = {}
    for method, splits in metrics.items():
        for split, figures in splits.items():
            lines |= _auroc_line(f"{method}, {split}: AUROC", figures["auroc"], "n_slides", _slides(figures))
            if figures["auroc"].get("reason") == NO_LABELS and figures["agreement"]:
                lines |= _agreement_line(f"{method}, {split}", figures)
            if PATIENTS in figures:
                auroc = figures[PATIENTS]["auroc"]
                lines |= _auroc_line(f"{method}, {split}: AUROC by patient", auroc, "n_patients", "patients")
    return lines


def _agreement_line(name: str, figures: Mapping[str, Any]) -> dict[str, str]:
    rho, count = figures["agreement"]["spearman"], figures["auroc"]["n_slides"]
    if rho is None:
        return {}
    same = f"the teacher's class in {figures['same_class']:.0%}"
    return {f"{name}: agreement with the teacher": f"rank correlation of attention {rho:.3f}, {same} of {count} slides"}


def _slides(figures: Mapping[str, Any]) -> str:
    return f"slides of {format_count(figures['auroc']['n_patients'], 'patient')}"


def _auroc_line(name: str, auroc: Mapping[str, Any], count: str, unit: str) -> dict[str, str]:
    # An undefined figure, for example with a missing class, has no line.
    if auroc["value"] is None or auroc["low"] is None:
        return {}
    line = f"{auroc[count]} {unit}, interval over {auroc['interval']}"
    no_spread = explain_no_spread(auroc, count.removeprefix("n_").removesuffix("s"))
    if no_spread and auroc[count] < FEW_TEST_SLIDES:
        return {name: f"{auroc['value']:.3f} ({no_spread}), {auroc[count]} {unit}"}
    span = f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})"
    return {name: ", ".join(filter(None, (span, line, no_spread)))}
