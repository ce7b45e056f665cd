"""A slide goes in, probabilities and attention come out. The window and the command line call the same function."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_lrmil import __version__
from napari_lrmil.core.bag import Features
from napari_lrmil.core.bundle import Bundle, StudentNetwork, TeacherNetwork
from napari_lrmil.core.compare import Agreement, measure_agreement
from napari_lrmil.core.embed import PatchSet, embed, to_numpy
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.events import Caution, Event, Finished, Progress, StageDone
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.grid import NestedGrid, grid_of, require_resolution
from napari_lrmil.core.mil import GatedAttentionMil
from napari_lrmil.core.slide import Slide

TEACHER_CHOICES = ("none", "all")


@dataclass(frozen=True)
class Reading:
    """What one network says of one slide.

    Attributes
    ----------
    coords
        (N, 2) level-0 corner of each patch, x then y.
    patch_level0
        Width and height of a patch in level-0 pixels.
    attention
        (N,) sums to 1.
    evidence
        (N, C) what each patch adds to each class's centred, uncalibrated logit.
    logits, probabilities
        Class -> value; probabilities are calibrated where the bundle has a temperature.
    target_mpp
        µm per pixel that the network saw.
    pixels_decoded
        Native pixels read from the file for it, the tissue mask included.
    seconds
        Step -> wall seconds; ``total`` is from opening the slide, loading the weights included, as if it had run alone.
    cpu_seconds
        What the process computed for it, over all threads, the tissue mask included.
    """

    coords: Int64
    patch_level0: tuple[int, int]
    attention: Features
    evidence: Features
    logits: dict[str, float]
    probabilities: dict[str, float]
    target_mpp: float
    pixels_decoded: int
    seconds: dict[str, float]
    cpu_seconds: float

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda c: self.probabilities[c])


@dataclass(frozen=True)
class Prediction:
    """Everything that was found out about a slide; `predict` makes it, `write` and the window show it."""

    slide: str
    path: Path
    slide_fingerprint: str
    bundle: str
    bundle_sha256: str
    classes: tuple[str, ...]
    calibrated: bool
    grid: NestedGrid
    level0_size: tuple[int, int]
    student: Reading
    teacher: Reading | None
    agreement: Agreement | None
    device: str
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``prediction.json``."""
        s = self.student
        found: dict[str, Any] = {
            "slide": self.slide,
            "slide_fingerprint": self.slide_fingerprint,
            "bundle": self.bundle,
            "bundle_sha256": self.bundle_sha256,
            "classes": list(self.classes),
            "probabilities": s.probabilities,
            "calibrated": self.calibrated,
            "logits": s.logits,
            "predicted": s.predicted,
            "lr_mpp": s.target_mpp,
            "patch_um": self.grid.lattice.lr_um,
            "n_patches": len(self.grid.lr_index),
            "n_hr_patches": len(self.grid.hr_index),
            "pixels_decoded": s.pixels_decoded,
            "device": self.device,
            "seconds": s.seconds,
            "warnings": list(self.warnings),
            "version": __version__,
        }
        if self.teacher is not None:
            t = self.teacher
            found["teacher"] = {
                "probabilities": t.probabilities,
                "logits": t.logits,
                "pixels_decoded": t.pixels_decoded,
                "seconds": t.seconds,
            }
        return found


def predict(
    slide: Slide, bundle: Bundle, *, device: torch.device, teacher: str = "none", seconds_open: float = 0.0
) -> Iterator[Event]:
    """Run the LR student on a whole slide, and the HR teacher beside it where asked.

    Yields `Progress`, `StageDone` and `Caution`, and last `Finished` with a `Prediction`. Closing the iterator cancels.
    Without a teacher no pixel finer than the student's level is read and no weight of the teacher is loaded.

    Parameters
    ----------
    slide
        An open slide.
    bundle
        The model.
    device
        Where to encode.
    teacher
        ``none`` or ``all``.
    seconds_open
        What opening the slide took, to be reported.

    Raises
    ------
    LrmilError
        Where the slide is too coarse, has no tissue, cannot be read, or the bundle is broken.
    """
    require_choice(teacher)
    if teacher == "all":
        bundle.require_teacher()
        require_resolution(slide, bundle.card.hr_mpp, "teacher (HR)")
    warnings = [*slide.warnings, *filter(None, [bundle.card.about])]  # what a model is not goes with its every answer
    yield from (Caution(text, slide.name) for text in warnings)
    yield Progress("tissue", 0, 1, "slide")
    began, cpu, decoded = time.perf_counter(), time.process_time(), slide.pixels_decoded
    grid = grid_of(slide, bundle.card.plan, bundle.card.tissue)
    seconds = {"open": seconds_open, "tissue": time.perf_counter() - began}
    before = Before(seconds, slide.pixels_decoded - decoded, time.process_time() - cpu)
    yield StageDone("tissue", before.seconds["tissue"])
    student = yield from _student(slide, bundle, grid, device, before)
    beside = (yield from _teacher(slide, bundle, grid, device, before)) if teacher == "all" else None
    yield Finished(_prediction(slide, bundle, grid, (student, beside), str(device), warnings))


def require_choice(teacher: str) -> None:
    """Raise `ConfigError` where `teacher` is no known choice."""
    if teacher not in TEACHER_CHOICES:
        raise ConfigError(f"unknown choice --teacher {teacher}; expected {' or '.join(TEACHER_CHOICES)}")


@dataclass(frozen=True)
class Before:
    """What either network needs before it begins: seconds of opening and tissue, pixels and CPU for the latter."""

    seconds: dict[str, float]
    pixels: int
    cpu_seconds: float


def _student(
    slide: Slide, bundle: Bundle, grid: NestedGrid, device: torch.device, before: Before
) -> Generator[Event, None, Reading]:
    card = bundle.card
    patches = PatchSet(grid.lr_corners, grid.lattice.lr_cell, card.lr_patch_px, card.student_input_px)
    look = _Look("student (LR)", patches, card.temperature, card.classes, card.lr_mpp)
    return (yield from _read(slide, lambda: bundle.student.to(device), look, device, before))


def _teacher(
    slide: Slide, bundle: Bundle, grid: NestedGrid, device: torch.device, before: Before
) -> Generator[Event, None, Reading]:
    card = bundle.card
    patches = PatchSet(grid.hr_corners, grid.lattice.cell, card.hr_patch_px)
    look = _Look("teacher (HR)", patches, card.teacher_temperature, card.classes, card.hr_mpp)
    return (yield from _read(slide, lambda: bundle.teacher.to(device), look, device, before))


@dataclass(frozen=True)
class _Look:
    """Which patches a network reads, and how its logits are to be told."""

    stage: str
    patches: PatchSet
    temperature: float | None
    classes: tuple[str, ...]
    target_mpp: float


def _read(
    slide: Slide,
    load: Callable[[], StudentNetwork | TeacherNetwork],
    look: _Look,
    device: torch.device,
    before: Before,
) -> Generator[Event, None, Reading]:
    began, cpu, decoded = time.perf_counter(), time.process_time(), slide.pixels_decoded
    network = load()
    embedded = yield from embed(slide, look.patches, network.encoder, device=device, stage=look.stage)
    at_mil = time.perf_counter()
    pooled = pool(network.mil, embedded.features, device)
    logits = dict(zip(look.classes, pooled.logits.tolist(), strict=True))
    end = time.perf_counter()
    seconds = before.seconds | {
        "read": embedded.seconds_read,
        "encode": embedded.seconds_encode,
        "mil": end - at_mil,
        "total": sum(before.seconds.values()) + end - began,
    }
    yield StageDone(look.stage, end - began)
    return Reading(
        coords=look.patches.corners,
        patch_level0=look.patches.size_level0,
        attention=pooled.attention,
        evidence=pooled.evidence,
        logits=logits,
        probabilities=probabilities(logits, look.temperature),
        target_mpp=look.target_mpp,
        pixels_decoded=before.pixels + slide.pixels_decoded - decoded,
        seconds=seconds,
        cpu_seconds=before.cpu_seconds + time.process_time() - cpu,
    )


@dataclass(frozen=True)
class Pooled:
    """One bag after its MIL: (C,) logits, (N,) attention and scores, (N, C) evidence."""

    logits: NDArray[np.float32]
    attention: Features
    scores: Features
    evidence: Features


def pool(mil: GatedAttentionMil, features: Features, device: torch.device) -> Pooled:
    """Run a MIL over (N, D) features without gradients."""
    with torch.inference_mode():
        instances = torch.from_numpy(features).to(device)
        out = mil(instances)
        evidence = mil.evidence(instances, out.attention)
    return Pooled(to_numpy(out.logits), to_numpy(out.attention), to_numpy(out.scores), to_numpy(evidence))


def probabilities(logits: dict[str, float], temperature: float | None) -> dict[str, float]:
    """Return softmax of the logits, divided by the calibration temperature where there is one."""
    values = np.array(list(logits.values()), dtype=np.float64) / (temperature or 1.0)
    shares = np.exp(values - values.max())
    return dict(zip(logits, (shares / shares.sum()).tolist(), strict=True))


def _prediction(
    slide: Slide,
    bundle: Bundle,
    grid: NestedGrid,
    readings: tuple[Reading, Reading | None],
    device: str,
    warnings: list[str],
) -> Prediction:
    student, teacher = readings
    agreement = measure_agreement(grid, student.attention, teacher.attention) if teacher else None
    return Prediction(
        slide=slide.name,
        path=slide.path,
        slide_fingerprint=slide.fingerprint,
        bundle=bundle.name,
        bundle_sha256=bundle.sha256,
        classes=bundle.card.classes,
        calibrated=bundle.card.temperature is not None,
        grid=grid,
        level0_size=(slide.width, slide.height),
        student=student,
        teacher=teacher,
        agreement=agreement,
        device=device,
        warnings=tuple(warnings),
    )
