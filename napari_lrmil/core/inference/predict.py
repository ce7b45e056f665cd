"""A slide goes in, probabilities and attention come out. The window and the command line call the same function."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from napari_lrmil.core.events import Event, Finished, Notice, Progress, StageDone
from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.features.embedding_cache import CacheKey, EmbeddingCache
from napari_lrmil.core.features.extraction import Embeddings, PatchSet, extract_features
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.quality_checks import quality_warnings
from napari_lrmil.core.inference.teacher_patches import TeacherPatches, select_teacher_patches
from napari_lrmil.core.metrics.agreement import measure_agreement
from napari_lrmil.core.models.bundle import Bundle, Card, StudentNetwork, TeacherNetwork
from napari_lrmil.core.models.mil import pool_bag
from napari_lrmil.core.patching.grid import NestedGrid, TissueGrid, find_tissue_grid, require_resolution
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.runtimes.select import (
    Runtime,
    RuntimeRequest,
    evenly_spaced_rows,
    prepare_runtime,
    require_runtime,
)
from napari_lrmil.core.slides.slide import Slide

logger = logging.getLogger(__name__)


def predict(
    slide: Slide,
    bundle: Bundle,
    *,
    device: torch.device,
    teacher: TeacherPatches = TeacherPatches.NONE,
    seconds_open: float = 0.0,
    scope: RegionOfInterest = WHOLE_SLIDE,
    tissue_grid: TissueGrid | None = None,
    cache: EmbeddingCache | None = None,
    runtime: str = "torch",
) -> Iterator[Event]:
    """Run the LR student on a slide or a part of it, and the HR teacher beside it where asked.

    Yields `Progress`, `StageDone` and `Notice`, and last `Finished` with a `Prediction`. Closing the iterator cancels.
    Without a teacher no pixel finer than the student's level is read and no weight of the teacher is loaded.
    Calibration was fitted on whole slides: what is said of a part is a region score, not calibrated.

    Parameters
    ----------
    slide
        An open slide.
    bundle
        The model.
    device
        Where to encode.
    teacher
        LR patches that the teacher reads.
    seconds_open
        What opening the slide took, to be reported.
    scope
        Which part is asked about.
    tissue_grid
        The slide's tissue and grids, where they are known already or were edited.
    cache
        Where embeddings are taken from, and left for the next question.
    runtime
        ``torch`` in float32, the reference; ``openvino``; or ``auto``: the fastest that agrees with the reference.

    Raises
    ------
    LrmilError
        Where the slide is too coarse, has no tissue, cannot be read, or the bundle is broken.
    """
    require_runtime(runtime, device)
    if teacher != TeacherPatches.NONE:
        yield from _teacher_terms(slide, bundle)
    about = [f"about the model {bundle.name}: {bundle.card.about}"] if bundle.card.about else []
    yield from (Notice(text, slide.name) for text in slide.warnings)
    yield from map(Notice, about)
    yield Progress("tissue", 0, 1, "slide")
    began, cpu, decoded = time.perf_counter(), time.process_time(), slide.pixels_decoded
    tissue_grid = tissue_grid or find_tissue_grid(slide, bundle.card.plan, bundle.card.tissue)
    scope = replace(scope, edited=tissue_grid.edited)
    asked = _Asked(slide, bundle, scope.of(tissue_grid.grid, slide.path), scope, device, cache, runtime, scope.whole)
    doubts = quality_warnings(slide, asked.grid, bundle.card) if scope.kind == "slide" else ()
    yield from (Notice(text, slide.name) for text in doubts)
    seconds = {"open": seconds_open, "tissue": time.perf_counter() - began}
    before = SharedCosts(seconds, slide.pixels_decoded - decoded, time.process_time() - cpu)
    yield StageDone("tissue", before.seconds["tissue"])
    logger.info("%s: %d LR patches, %d HR patches", slide.name, len(asked.grid.lr_index), len(asked.grid.hr_index))
    warnings = [*slide.warnings, *about, *doubts]  # what a model is not goes with its every answer
    yield Finished((yield from _answered(asked, before, warnings, teacher)))


def _teacher_terms(slide: Slide, bundle: Bundle) -> Iterator[Event]:
    """Refuse what has no teacher, and tell the terms of one that has to be fetched, before it is."""
    bundle.require_teacher()
    require_resolution(slide, bundle.card.hr_mpp, "teacher (HR)")
    yield from (Notice(terms) for terms in filter(None, [bundle.teacher_notice]))


def _answered(
    asked: _Asked, before: SharedCosts, warnings: list[str], teacher: TeacherPatches
) -> Generator[Event, None, Prediction]:
    """Return what the student says, and the teacher beside it where asked."""
    found = _prediction(asked, (yield from _student(asked, before)), warnings)
    if teacher != TeacherPatches.NONE:
        found = yield from _asked_beside(asked, found, before, teacher)
    return replace(found, reader=asked.slide.reader)


def _asked_beside(
    asked: _Asked, found: Prediction, before: SharedCosts, teacher: TeacherPatches
) -> Generator[Event, None, Prediction]:
    """Return a student's prediction with what the teacher says of the patches that were chosen for it."""
    rows = select_teacher_patches(teacher, found.student.attention)
    part = asked if rows.all() else replace(asked, grid=asked.grid.only(rows), whole=False)
    beside = yield from _teacher(part, before)
    return _beside(found, beside, rows)


@dataclass(frozen=True)
class SharedCosts:
    """What either network needs before it begins: seconds of opening and tissue, pixels and CPU for the latter."""

    seconds: dict[str, float]
    pixels: int
    cpu_seconds: float


@dataclass(frozen=True)
class _Asked:
    """A question: the slide and the model, the patches that are meant, and where to compute."""

    slide: Slide
    bundle: Bundle
    grid: NestedGrid
    scope: RegionOfInterest
    device: torch.device
    cache: EmbeddingCache | None
    runtime: str
    whole: bool  # whether the calibration holds, which was fitted on whole slides


@dataclass(frozen=True)
class NetworkInput:
    """Which patches a network reads, where they lie on their grid, and how its logits are to be told."""

    stage: str
    network: str
    patches: PatchSet
    index: Int64
    temperature: float | None
    target_mpp: float


def student_input(card: Card, grid: NestedGrid) -> NetworkInput:
    """Return what the student reads."""
    patches = PatchSet(grid.lr_corners, grid.lattice.lr_cell, card.lr_patch_px, card.student_input_px)
    return NetworkInput("student (LR)", "student", patches, grid.lr_index, card.temperature, card.lr_mpp)


def teacher_input(card: Card, grid: NestedGrid) -> NetworkInput:
    """Return what the teacher reads."""
    patches = PatchSet(grid.hr_corners, grid.lattice.cell, card.hr_patch_px)
    return NetworkInput("teacher (HR)", "teacher", patches, grid.hr_index, card.teacher_temperature, card.hr_mpp)


def _student(asked: _Asked, before: SharedCosts) -> Generator[Event, None, NetworkPrediction]:
    look = student_input(asked.bundle.card, asked.grid)
    return (yield from _read(asked, lambda: asked.bundle.student.to(asked.device), look, before))


def _teacher(asked: _Asked, before: SharedCosts) -> Generator[Event, None, NetworkPrediction]:
    look = teacher_input(asked.bundle.card, asked.grid)
    return (yield from _read(asked, lambda: asked.bundle.teacher.to(asked.device), look, before))


def _read(
    asked: _Asked, load: Callable[[], StudentNetwork | TeacherNetwork], look: NetworkInput, before: SharedCosts
) -> Generator[Event, None, NetworkPrediction]:
    began, cpu = time.perf_counter(), time.process_time()
    network = load()
    runtime = prepare_runtime(asked.runtime, runtime_request(asked.slide, asked.bundle, network, look), asked.device)
    choice = runtime.choice
    logger.info("%s: runtime %s, %s (%s)", look.stage, choice.name, choice.precision, choice.reason)
    at_read = time.perf_counter()
    decoded = asked.slide.pixels_decoded  # patches that runtimes were compared on are read again
    embedded = yield from _embedded(asked, runtime, look)
    at_mil = time.perf_counter()
    pooled = pool_bag(network.mil, embedded.features, asked.device)
    logits = dict(zip(asked.bundle.card.classes, pooled.logits.tolist(), strict=True))
    end = time.perf_counter()
    seconds = before.seconds | {
        "prepare": at_read - began,
        "read": embedded.seconds_read,
        "encode": embedded.seconds_encode,
        "mil": end - at_mil,
        "total": sum(before.seconds.values()) + end - began,
    }
    yield StageDone(look.stage, end - began)
    return NetworkPrediction(
        coords=look.patches.corners,
        patch_level0=look.patches.size_level0,
        attention=pooled.attention,
        evidence=pooled.evidence,
        logits=logits,
        probabilities=softmax_probabilities(logits, look.temperature if asked.whole else None),
        target_mpp=look.target_mpp,
        pixels_decoded=before.pixels + asked.slide.pixels_decoded - decoded,
        seconds=seconds,
        cpu_seconds=before.cpu_seconds + time.process_time() - cpu,
        patches_encoded=embedded.encoded,
        runtime=runtime.choice,
    )


def runtime_request(
    slide: Slide, bundle: Bundle, network: StudentNetwork | TeacherNetwork, look: NetworkInput
) -> RuntimeRequest:
    """Return what a runtime is chosen for: a network, and the patches on which it is compared."""
    patches = look.patches
    some = replace(patches, corners=patches.corners[evenly_spaced_rows(len(patches), patches.side)])
    return RuntimeRequest(
        network,
        f"{bundle.sha256} {look.network}",
        patches.side,
        look.temperature,
        len(patches),
        lambda: some.read(slide, slice(None)),
        bundle.prepared,
    )


def _embedded(asked: _Asked, runtime: Runtime, look: NetworkInput) -> Generator[Event, None, Embeddings]:
    """Embed what the cache does not have, the middle first, for that is what people look at; the rest is there."""
    embedder = runtime.embedder
    encode = partial(
        extract_features, device=asked.device, stage=look.stage, batch=default_batch_size(look.patches.side)
    )
    if asked.cache is None:
        return (yield from encode(asked.slide, look.patches, embedder))
    cache, key = asked.cache, cache_key(asked.slide, asked.bundle, asked.grid, look.network, runtime.choice.numbers)
    found = cache.get(key, look.index)
    missing = center_first_order(look.patches.corners, np.flatnonzero(~found.rows))
    if len(missing) == 0:
        return Embeddings(found.features, encoded=0)
    some = replace(look.patches, corners=look.patches.corners[missing])
    keep = partial(_keep, cache, key, look.index[missing])
    made = yield from encode(asked.slide, some, embedder, keep=keep)
    features = np.empty((len(look.index), made.features.shape[1]), np.float32)
    features[missing] = made.features
    if found.rows.any():
        features[found.rows] = found.features
    return replace(made, features=features)


def _keep(cache: EmbeddingCache, key: CacheKey, index: Int64, rows: slice, features: Features) -> None:
    cache.put(key, index[rows], features)


def cache_key(slide: Slide, bundle: Bundle, grid: NestedGrid, network: str, precision: str = "float32") -> CacheKey:
    """Return the key under which a slide's embeddings by one of the bundle's networks are kept.

    Parameters
    ----------
    slide, bundle, grid
        What is asked about.
    network
        ``student`` or ``teacher``.
    precision
        What tells a runtime's numbers from another's; see `RuntimeChoice.numbers`.
    """
    card, lattice = bundle.card, grid.lattice
    lr = network == "student"
    return CacheKey(
        slide_fingerprint=slide.fingerprint,
        origin_level0=lattice.origin,
        cell_level0=lattice.lr_cell if lr else lattice.cell,
        target_mpp=card.lr_mpp if lr else card.hr_mpp,
        patch_px=card.lr_patch_px if lr else card.hr_patch_px,
        input_px=card.student_input_px if lr else None,
        network=f"{bundle.sha256} {network}",
        precision=precision,
    )


def center_first_order(corners: Int64, rows: Int64) -> Int64:
    """Return `rows` of (N, 2) corners, those nearest to the middle of them all first."""
    if len(rows) == 0:
        return rows
    middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
    distance = ((corners[rows] - middle) ** 2).sum(axis=1)
    return rows[np.argsort(distance, kind="stable")]


def softmax_probabilities(logits: dict[str, float], temperature: float | None) -> dict[str, float]:
    """Return softmax of the logits, divided by the calibration temperature where there is one."""
    values = np.array(list(logits.values()), dtype=np.float64) / (temperature or 1.0)
    shares = np.exp(values - values.max())
    return dict(zip(logits, (shares / shares.sum()).tolist(), strict=True))


def _beside(prediction: Prediction, teacher: NetworkPrediction, rows: NDArray[np.bool_]) -> Prediction:
    """Return a prediction with what the teacher says of the (N,) LR patches that `rows` marks."""
    grid = prediction.grid if rows.all() else prediction.grid.only(rows)
    agreement = measure_agreement(grid, prediction.student.attention[rows], teacher.attention)
    return replace(prediction, teacher=teacher, compared=rows, agreement=agreement)


def _prediction(asked: _Asked, student: NetworkPrediction, warnings: list[str]) -> Prediction:
    slide, bundle = asked.slide, asked.bundle
    return Prediction(
        slide=slide.name,
        path=slide.path,
        slide_fingerprint=slide.fingerprint,
        bundle=bundle.name,
        bundle_sha256=bundle.sha256,
        classes=bundle.card.classes,
        calibrated=bundle.card.temperature is not None and asked.scope.whole,
        grid=asked.grid,
        level0_size=(slide.width, slide.height),
        student=student,
        device=str(asked.device),
        warnings=tuple(warnings),
        scope=asked.scope,
    )
