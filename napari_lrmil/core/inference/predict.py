"""Prediction of one slide: read patches, encode them, pool them with MIL, and return probabilities and attention.

The window, the command line and the Python API all call `predict`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil.core.events import Event, Finished, Notice, Progress, StageDone
from napari_lrmil.core.features.embedding_cache import EmbeddingCache
from napari_lrmil.core.features.extraction import Embeddings
from napari_lrmil.core.formatting import ABOUT_MODEL
from napari_lrmil.core.geometry import Lattice
from napari_lrmil.core.inference.encoding import Compute, encode_patches
from napari_lrmil.core.inference.network_input import (
    NetworkInput,
    mil_weights,
    runtime_request,
    student_input,
    teacher_input,
)
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.quality_checks import artefact_shares, quality_warnings, small_region_warnings
from napari_lrmil.core.inference.slide_limits import slide_limits
from napari_lrmil.core.inference.teacher_patches import TeacherPatches, select_teacher_patches
from napari_lrmil.core.metrics.agreement import measure_agreement
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import Card
from napari_lrmil.core.models.patch_scores import patch_class_logits
from napari_lrmil.core.models.patient_bag import attention_mass
from napari_lrmil.core.models.pooling import pool_instances
from napari_lrmil.core.patching.artefacts import ArtefactShares
from napari_lrmil.core.patching.grid import (
    NestedGrid,
    TissueGrid,
    find_tissue_grid,
    nested_grid_from_tissue,
    require_resolution,
)
from napari_lrmil.core.patching.mask_filters import Mask
from napari_lrmil.core.patching.missing_tissue import MissingTilesCheck, PatchSize
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.patching.stain import StainTransform
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.runtimes.select import (
    prepare_runtime,
    require_runtime,
)
from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)


def predict(
    slide: Slide,
    bundle: Bundle,
    *,
    device: str | torch.device,
    teacher: TeacherPatches = TeacherPatches.NONE,
    seconds_open: float = 0.0,
    scope: RegionOfInterest = WHOLE_SLIDE,
    tissue_grid: TissueGrid | None = None,
    cache: EmbeddingCache | None = None,
    runtime: str = "torch",
    allow_missing: bool = False,
    stain: StainTransform | None = None,
    student: NetworkPrediction | None = None,
    exclude_artefacts: bool = False,
) -> Iterator[Event]:
    """Run the LR student on a slide or a region, then the HR teacher on the patches in `teacher`.

    Yields `Progress`, `StageDone` and `Notice`, and last `Finished` with a `Prediction`. Closing the iterator cancels.

    Parameters
    ----------
    device, runtime
        Where the encoder runs, and how: ``torch`` (float32, the reference), ``openvino`` or ``auto``.
    teacher
        LR patches that the teacher reads. Without any, no teacher weight is loaded and no HR pixel is read.
    seconds_open
        Seconds that opening the slide took; they are part of the reported total.
    scope, tissue_grid
        Part of the slide; tissue and grids if they are known or were edited.
    cache
        Embeddings of earlier calls. New ones are added.
    allow_missing
        Predict a slide even if more than a third of its tissue is not stored or damaged.
    stain
        The slide's transform to the colour of the model, if it is known. Otherwise it is measured on `tissue_grid`.
    student
        The student's prediction of an earlier call on the same patches. It is taken over, and only the teacher runs.
    exclude_artefacts
        Leave pen, air bubbles and blur out of the tissue, even if the model was trained with them. A given
        `tissue_grid` is taken as it is.

    Raises
    ------
    LrmilError
        If the slide is too coarse, has no tissue or too little of it left, or cannot be read, or the bundle is broken.
    """
    require_runtime(runtime, device)  # refused before a pixel is read
    if teacher != TeacherPatches.NONE:
        yield from _teacher_notices(slide, bundle)
    slide.count_damaged_tiles()
    compute = Compute(device, cache, runtime)
    options = _Options(teacher, allow_missing, stain, exclude_artefacts)
    request = yield from _prepare(slide, bundle, compute, scope, tissue_grid, seconds_open, options)
    yield Finished((yield from _run_networks(request, teacher, student)))


@dataclass(frozen=True)
class _Options:
    """LR patches of the teacher, whether much tissue may be missing, known transform, and whether artefacts go."""

    teacher: TeacherPatches
    allow_missing: bool
    stain: StainTransform | None
    exclude_artefacts: bool

    def tissue(self, card: Card) -> TissueConfig:
        """Return the settings of the tissue mask."""
        return replace(card.tissue, exclude_artefacts=True) if self.exclude_artefacts else card.tissue

    def patch_sizes(self, card: Card, lattice: Lattice) -> list[PatchSize]:
        """Return the patches that the networks read."""
        student, teacher = (lattice.lr_cell, card.lr_patch_px), (lattice.cell, card.hr_patch_px)
        return [student] if self.teacher == TeacherPatches.NONE else [student, teacher]


@dataclass(frozen=True)
class SharedCosts:
    """Costs before either network runs.

    Attributes
    ----------
    seconds
        Wall seconds of the steps ``open`` and ``tissue``.
    pixels
        Native pixels decoded for the tissue mask.
    cpu_seconds
        CPU seconds of the tissue mask, over all threads.
    """

    seconds: dict[str, float]
    pixels: int
    cpu_seconds: float


@dataclass(frozen=True)
class _Request:
    """One call of `predict` after its tissue is known: slide, model, patches, and what goes into every result."""

    slide: Slide
    bundle: Bundle
    compute: Compute
    grid: NestedGrid
    scope: RegionOfInterest
    costs: SharedCosts
    warnings: tuple[str, ...]
    missing: MissingTilesCheck
    stain: StainTransform | None
    is_calibrated: bool  # the temperature was fitted on whole slides, so it does not hold for a part
    artefacts: ArtefactShares | None


def _teacher_notices(slide: Slide, bundle: Bundle) -> Iterator[Event]:
    """Refuse slides and bundles without HR, and yield the teacher's terms of use before its weights are fetched."""
    bundle.require_teacher()
    require_resolution(slide, bundle.card.hr_mpp, "teacher (HR)")
    yield from (Notice(terms) for terms in filter(None, [bundle.teacher_notice]))


def _prepare(
    slide: Slide,
    bundle: Bundle,
    compute: Compute,
    scope: RegionOfInterest,
    tissue_grid: TissueGrid | None,
    seconds_open: float,
    options: _Options,
) -> Generator[Event, None, _Request]:
    """Find tissue and patches if they are not given, and check their quality."""
    model_notices = [f"{ABOUT_MODEL}{bundle.name}: {bundle.card.about}"] if bundle.card.about else []
    yield from (Notice(text, slide.name) for text in slide.warnings)
    yield from map(Notice, model_notices)
    yield Progress("tissue", 0, 1, "slide")
    slide.forget_finest_read()
    began, cpu, decoded = time.perf_counter(), time.process_time(), slide.pixels_decoded
    tissue_grid = tissue_grid or find_tissue_grid(slide, bundle.card.plan, options.tissue(bundle.card))
    scope = replace(scope, edited=tissue_grid.edited)
    grid, about_regions = scope.of(tissue_grid, slide.path)
    about_regions = (*scope.warnings, *about_regions)
    # The thresholds were measured on whole slides.
    is_slide = scope.kind == "slide"
    quality = quality_warnings(slide, grid, bundle.card) if is_slide else small_region_warnings(grid, scope.kind)
    artefacts = artefact_shares(tissue_grid, options.tissue(bundle.card), is_slide=is_slide)
    quality = (*quality, *filter(None, [artefacts.warning if artefacts is not None else ""]))
    yield from (Notice(text, slide.name) for text in (*about_regions, *quality))
    sizes = options.patch_sizes(bundle.card, grid.lattice)
    select = None if scope.is_whole_slide else partial(_select_part, slide, bundle, tissue_grid, scope)
    missing = MissingTilesCheck(slide, tissue_grid.tissue, sizes, allow=options.allow_missing, select=select)
    yield from missing.notices()
    seconds = {"open": seconds_open, "tissue": time.perf_counter() - began}
    stain_began, target = time.perf_counter(), bundle.card.stain
    # By the whole slide's tissue, so that a region gets the colours that it has in the whole.
    stain = None if target is None else options.stain or target.transform(slide, tissue_grid.grid)
    about_stain = (stain.warning,) if stain is not None and stain.warning else ()
    if stain is not None:
        seconds["stain"] = time.perf_counter() - stain_began
    yield from (Notice(text, slide.name) for text in about_stain)
    costs = SharedCosts(seconds, slide.pixels_decoded - decoded, time.process_time() - cpu)
    yield StageDone("tissue", costs.seconds["tissue"])
    logger.info("%s: %d LR patches, %d HR patches", slide.name, len(grid.lr_index), len(grid.hr_index))
    # The model's own notice is stored with every result: a reader of the file has not seen the model card.
    warnings = (*slide.warnings, *model_notices, *about_regions, *quality, *about_stain)
    is_calibrated = scope.is_whole_slide
    return _Request(slide, bundle, compute, grid, scope, costs, warnings, missing, stain, is_calibrated, artefacts)


def _select_part(slide: Slide, bundle: Bundle, tissue_grid: TissueGrid, scope: RegionOfInterest, mask: Mask) -> Mask:
    """Return the part of a mask of tissue that lies in LR patches of the region of interest."""
    tissue = replace(tissue_grid.tissue, mask=mask)
    grid = nested_grid_from_tissue(slide.path, tissue, bundle.card.tissue)
    cells = grid.lr_index[scope.select(TissueGrid(tissue, grid)).is_selected]
    lattice = grid.lattice
    is_selected = np.zeros((lattice.rows // lattice.n, lattice.columns // lattice.n), np.bool_)
    is_selected[cells[:, 1], cells[:, 0]] = True
    side = mask.shape[0] // is_selected.shape[0]  # of an LR cell in mask pixels
    return mask & is_selected.repeat(side, axis=0).repeat(side, axis=1)


def _run_networks(
    request: _Request, teacher: TeacherPatches, student: NetworkPrediction | None
) -> Generator[Event, None, Prediction]:
    """Return the student's prediction, unless it is known, with the teacher's if it reads any patch."""
    if student is None:
        read = student_input(request.bundle.card, request.grid, request.stain)
        student = yield from _run_network(request, read)
    prediction = _student_prediction(request, student)
    if prediction.cohort_distance is not None and prediction.cohort_distance.warning:
        yield Notice(prediction.cohort_distance.warning, request.slide.name)
        prediction = replace(prediction, warnings=(*prediction.warnings, prediction.cohort_distance.warning))
    if teacher != TeacherPatches.NONE:
        prediction = yield from _add_teacher(request, prediction, teacher)
    # Last: only pixels that were read show which tiles are damaged, and which reader decoded them.
    yield from request.missing.notices()
    missing = request.missing.tiles
    warnings = (*prediction.warnings, *missing.warnings)
    return replace(prediction, reader=request.slide.reader, missing_tiles=missing, warnings=warnings)


def _add_teacher(
    request: _Request, prediction: Prediction, patches: TeacherPatches
) -> Generator[Event, None, Prediction]:
    """Run the teacher on the selected patches and return the prediction with both networks and their agreement."""
    rows = select_teacher_patches(patches, prediction.student.attention)
    # Over some patches only, the softmax is not that of a whole slide, and its temperature does not hold.
    part = request if rows.all() else replace(request, grid=request.grid.select(rows), is_calibrated=False)
    read = teacher_input(request.bundle.card, part.grid, request.stain)
    teacher = yield from _run_network(part, read)
    agreement = measure_agreement(part.grid, prediction.student.attention[rows], teacher.attention)
    if agreement.caution:
        yield Notice(agreement.caution, request.slide.name)
    warnings = (*prediction.warnings, *filter(None, [agreement.caution]))
    return replace(prediction, teacher=teacher, compared=rows, agreement=agreement, warnings=warnings)


def _run_network(request: _Request, read: NetworkInput) -> Generator[Event, None, NetworkPrediction]:
    """Encode the patches of one network and pool them; costs are counted as if this network had run alone."""
    began, cpu = time.perf_counter(), time.process_time()
    compute, costs = request.compute, request.costs
    runtime = prepare_runtime(compute.runtime, runtime_request(request.slide, request.bundle, read, compute.device))
    choice = runtime.choice
    logger.info("%s: runtime %s, %s (%s)", read.stage, choice.name, choice.precision, choice.reason)
    read_began = time.perf_counter()
    decoded = request.slide.pixels_decoded  # from here: comparing runtimes reads patches that are read again
    embeddings = yield from encode_patches(request.slide, request.bundle, request.grid, read, compute, runtime)
    mil_began = time.perf_counter()
    mil = mil_weights(request.bundle, read.network)
    pooled = pool_instances(mil, embeddings.features)
    patch_logits = patch_class_logits(mil, embeddings.features)
    logits = dict(zip(request.bundle.card.classes, pooled.logits.tolist(), strict=True))
    end = time.perf_counter()
    yield StageDone(read.stage, end - began)
    return NetworkPrediction(
        coords=read.patches.corners,
        patch_level0=read.patches.size_level0,
        attention=pooled.attention,
        evidence=pooled.evidence,
        logits=logits,
        probabilities=softmax_probabilities(logits, read.temperature if request.is_calibrated else None),
        target_mpp=read.target_mpp,
        pixels_decoded=costs.pixels + request.slide.pixels_decoded - decoded,
        seconds=_seconds(costs, embeddings, prepare=read_began - began, mil=end - mil_began, total=end - began),
        cpu_seconds=costs.cpu_seconds + time.process_time() - cpu,
        patches_encoded=embeddings.encoded,
        runtime=choice,
        embedding=embeddings.features.mean(axis=0, dtype=np.float64) if read.network == "student" else None,
        attention_mass=attention_mass(pooled.scores) if request.bundle.card.bag == "patient" else None,
        patch_logits=patch_logits,
    )


def _seconds(
    costs: SharedCosts, embeddings: Embeddings, *, prepare: float, mil: float, total: float
) -> dict[str, float]:
    """Return step -> wall seconds. Patches are read ahead in threads, so the steps need not sum to ``total``."""
    return costs.seconds | {
        "prepare": prepare,
        "read": embeddings.seconds_read,
        "encode": embeddings.seconds_encode,
        "mil": mil,
        "total": sum(costs.seconds.values()) + total,
    }


def softmax_probabilities(logits: dict[str, float], temperature: float | None) -> dict[str, float]:
    """Return the softmax of class -> logit, after division by the calibration temperature if there is one."""
    values = np.array(list(logits.values()), dtype=np.float64) / (temperature or 1.0)
    shares = np.exp(values - values.max())  # the maximum is subtracted so that exp cannot overflow
    return dict(zip(logits, (shares / shares.sum()).tolist(), strict=True))


def _student_prediction(request: _Request, student: NetworkPrediction) -> Prediction:
    """Return the prediction of the student alone."""
    slide, bundle = request.slide, request.bundle
    # Of a region the embedding differs from a whole slide's by intent.
    statistics = bundle.embedding_statistics if request.scope.kind == "slide" else None
    embedding = student.embedding
    return Prediction(
        slide=slide.name,
        path=slide.path,
        slide_fingerprint=slide.fingerprint,
        bundle=bundle.name,
        bundle_sha256=bundle.sha256,
        classes=bundle.card.classes,
        calibrated=bundle.card.temperature is not None and request.scope.is_whole_slide,
        grid=request.grid,
        level0_size=(slide.width, slide.height),
        student=student,
        device=str(request.compute.device),
        warnings=request.warnings,
        scope=request.scope,
        artefacts=request.artefacts,
        finest_read=slide.finest_read(student.target_mpp),
        limits=slide_limits(bundle, student.probabilities, is_whole_slide=request.is_calibrated),
        cohort_distance=None if statistics is None or embedding is None else statistics.measure(embedding),
    )
