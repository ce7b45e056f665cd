"""Shipped model breast-idc: a student of all patients, its card, and its stored answers to a synthetic slide."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from breast_idc_figures import Interval
from breast_idc_folds import MPP, STUDENT, Work, train_student, write_table
from breast_idc_patches import SIDE, Patch, Uint8, patients_of, split_patients, targets_of

from lrmil_training.runs.event_log import BUNDLE
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.models.bundle import SHIPPED, Bundle
from napari_lrmil.core.models.cohort_distance import write_embedding_statistics
from napari_lrmil.core.models.networks import load_student, write_bundle
from napari_lrmil.core.slides.slide import Slide

NAME = "breast-idc"
VALIDATION_FOLDS = 7  # one of them validates: the more patients teach, the better
LICENCE = "Apache-2.0"  # of the ImageNet weights that the encoder started from
ABOUT = (
    "Breast H&E and invasive ductal carcinoma only: not for DCIS, lymph nodes or other organs. Not distilled: it "
    "learned from labels of patches. Research use only. Data: {count:,} patches of {patients} patients, a part of the "
    "public set IDC_regular_ps50_idx5 (CC0-1.0 by its cards), taken as 8 µm per pixel, which the files do not state. "
    "First weights: ImageNet MobileNetV2 (Apache-2.0)."
)
PROBE, ANSWERS = "probe.tif", "answers.json"
PROBE_SIZE = (4 * SIDE, 3 * SIDE)  # px, width and height


def train_final(work: Work) -> Path:
    """Train a student on all patients but those that validate, and return the folder of its bundle."""
    _, val = next(iter(split_patients(work.patches, seed=2, folds=VALIDATION_FOLDS)))
    validating = {work.patches[row].patient for row in val}
    sides = {patient: "val" if patient in validating else "train" for patient in patients_of(work.patches).tolist()}
    run = work.runs / "final"
    train_student(work, write_table(work.slides, run.with_suffix(".csv"), sides), run)
    return run / BUNDLE


def refuse_unless_better(figures: Mapping[str, Any]) -> None:
    """Raise `SystemExit` unless the interval of the paired difference to colour alone lies above 0."""
    difference = figures["patches"][STUDENT]["less_baseline"]["auroc"]
    if difference[1] <= 0:
        raise SystemExit(f"AUROC less that of colour alone is {span(difference, '+')}: not above 0, so nothing ships")


def ship(trained: Path, patches: Sequence[Patch], figures: Mapping[str, Any], shipped: Path = SHIPPED) -> Bundle:
    """Write the shipped bundle: the networks of a trained one, with the figures of the folds in its card."""
    source = Bundle(trained)
    student = load_student(source)
    # The weights' own file does not state its licence.
    student.encoder.encoder.spec = replace(student.encoder.spec, name="mobilenet_v2", licence=LICENCE)
    own = {"schema_version", "version", "hashes", "student", "teacher"}
    card: dict[str, Any] = {name: value for name, value in source.card if name not in own}
    patients = len(set(patients_of(patches).tolist()))
    card["name"], card["about"] = NAME, ABOUT.format(count=len(patches), patients=patients)
    card["licence"], card["intended_use"] = LICENCE, "breast H&E: invasive carcinoma"
    carcinoma = int(targets_of(patches).sum())
    counts = f"{len(patches):,} of {patients} patients, {carcinoma:,} carcinoma"
    card["cohort"] = {"patches": counts, **source.card.cohort}
    card["metrics"] = dict(card_figures(figures))
    bundle = write_bundle(shipped / NAME, card, student, None, source.limits)
    write_embedding_statistics(bundle.path, source.embedding_statistics, bundle.sha256)
    return bundle


def card_figures(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the lines of the card: figures of five folds, not of the shipped networks, which saw all patients."""
    tests = "five folds by patient, interval over patients"
    own, slides = figures["patches"][STUDENT], figures["slides"]["methods"][STUDENT]
    return {
        "patches: AUROC": f"{span(own['figures']['auroc'])}, {tests}",
        "patches: less colour alone": span(own["less_baseline"]["auroc"], sign="+"),
        "patches: balanced accuracy": span(own["figures"]["balanced_accuracy"]),
        "patches: sensitivity": span(own["figures"]["sensitivity"]),
        "patches: specificity": span(own["figures"]["specificity"]),
        "patches: calibration error": span(own["figures"]["ece"]),
        "slides: AUROC": f"{span(slides['figures']['auroc'])}, whole slides against their own benign parts, "
        "an easy question",
    }


def span(interval: Interval, sign: str = "") -> str:
    """Return a figure with its interval as text."""
    value, low, high = (f"{number:{sign}.3f}" for number in interval)
    return f"{value} ({low} to {high})"


# ---------------------------------------------------------------- answers to a synthetic slide


def paint_probe() -> Uint8:
    """Return (h, w, 3) pixels like stained tissue: pink fibres and dark nuclei, denser from left to right."""
    rng, (width, height) = np.random.default_rng(0), PROBE_SIZE
    pixels = np.array([222.0, 165.0, 200.0]) + rng.normal(0, 8, (height, width, 1))
    for x, y in rng.integers(0, PROBE_SIZE, (900, 2)):
        if rng.random() < (x + SIDE) / width:
            pixels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = (110, 70, 150)
    return pixels.clip(0, 255).astype(np.uint8)


def write_probe(folder: Path) -> None:
    """Write the synthetic slide, and the shipped model's answers to it as the program gives them in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    resolution = (1e4 / MPP, 1e4 / MPP)
    tifffile.imwrite(
        folder / PROBE, paint_probe(), photometric="rgb", compression="deflate", tile=(256, 256),
        resolution=resolution, resolutionunit="CENTIMETER",
    )  # fmt: skip
    with Slide(folder / PROBE) as slide:
        *_, finished = predict(slide, Bundle(NAME), device="cpu")
    student = finished.result.student  # type: ignore[attr-defined]  # the last event is `Finished`
    answers = {
        "probabilities": {name: float(p) for name, p in student.probabilities.items()},
        "attention": [round(float(a), 6) for a in student.attention],
    }
    write_json(folder / ANSWERS, answers)


def read_figures(file: Path) -> dict[str, Any]:
    """Return the figures that the command ``figures`` wrote."""
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return figures
