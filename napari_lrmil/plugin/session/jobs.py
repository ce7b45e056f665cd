"""Background jobs of the window as streams of events: find tissue, analyse, follow the view. No Qt, no napari."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Finished, Notice, Partial, Progress
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice

if TYPE_CHECKING:
    from napari_lrmil.core.features.embedding_cache import EmbeddingCache
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle

PARTIAL_INTERVAL_S = 0.4  # between two partial results of the live view


@dataclass(frozen=True)
class FindTissueJob:
    """Tissue search of a slide, from which the dock counts patches before a run; it also warms up the model."""

    slide: SlideChoice
    bundle: Bundle
    open_slides: OpenSlides

    def events(self) -> Iterator[Event]:
        """Yield `Progress`, then `Finished` with the slide's `TissueGrid`."""
        yield Progress("tissue", 0, 1, "slide")
        reserve_core_for_window()
        yield Finished(self.open_slides.get_tissue_grid(self.slide, self.bundle))
        # After the result: the dock can show the number of patches while the model is loaded.
        warm_up_model(self.bundle)


@dataclass(frozen=True)
class PredictJob:
    """One analysis with all its choices, which are fixed when it is created.

    Attributes
    ----------
    slide, bundle, device
        The slide, the model, and the device that computes.
    open_slides, cache
        Open slides with their tissue, and embeddings of earlier runs.
    scope
        Part of the slide.
    teacher
        LR patches that the teacher reads in addition to the student.
    out
        Folder of the result files; None writes none.
    allow_missing
        Whether the slide is analysed even if more than a third of its tissue is missing.
    exclude_artefacts
        Whether artefacts are left out although the model was trained with them, see `OpenSlides.exclude_artefacts`.
    """

    slide: SlideChoice
    bundle: Bundle
    device: str
    open_slides: OpenSlides
    cache: EmbeddingCache
    scope: RegionOfInterest = WHOLE_SLIDE
    teacher: TeacherPatches = TeacherPatches.NONE
    out: Path | None = None
    allow_missing: bool = False
    exclude_artefacts: bool = False

    def events(self) -> Iterator[Event]:
        """Analyse the slide, write the result files if there is a folder, and yield the events of `predict`."""
        from napari_lrmil.core.features.devices import resolve_device
        from napari_lrmil.core.inference.predict import predict

        reserve_core_for_window()
        began = time.perf_counter()
        slide = self.open_slides.get_slide(self.slide)
        # A slide that is open already costs nothing; the result reports the time that this run took.
        seconds, device = time.perf_counter() - began, resolve_device(self.device)
        yield Progress("tissue", 0, 1, "slide")
        tissue_grid = self.open_slides.get_tissue_grid(self.slide, self.bundle)
        stream = predict(
            slide,
            self.bundle,
            device=device,
            teacher=self.teacher,
            seconds_open=seconds,
            scope=self.scope,
            tissue_grid=tissue_grid,
            cache=self.cache,
            allow_missing=self.allow_missing,
            stain=self.open_slides.get_stain(self.slide, self.bundle, tissue_grid),
            exclude_artefacts=self.exclude_artefacts,
        )
        with closing(stream) as events:  # type: ignore[type-var]  # generators close
            for event in events:
                if isinstance(event, Finished):
                    self._write(event.result)
                yield event

    def live_events(self) -> Iterator[Event]:
        """Yield the same as `events`, with partial results in between and without notices.

        A partial result covers the patches that are embedded so far, at most every `PARTIAL_INTERVAL_S`.
        """
        last_partial = time.monotonic()
        with closing(self.events()) as events:  # type: ignore[type-var]  # generators close
            for event in events:
                is_due = time.monotonic() - last_partial > PARTIAL_INTERVAL_S
                if isinstance(event, Progress) and event.unit == "patches" and is_due:
                    yield from self._partial_result()
                    last_partial = time.monotonic()
                if not isinstance(event, Notice):  # it would be repeated with every move of the view
                    yield event

    def _partial_result(self) -> Iterator[Event]:
        """Yield the prediction from the patches whose embeddings are in the cache; nothing if there are none."""
        from napari_lrmil.core.features.devices import resolve_device
        from napari_lrmil.core.inference.encoding import cache_key
        from napari_lrmil.core.inference.predict import predict

        slide = self.open_slides.get_slide(self.slide)
        tissue_grid = self.open_slides.get_tissue_grid(self.slide, self.bundle)
        grid = tissue_grid.grid
        stain = self.open_slides.get_stain(
            self.slide, self.bundle, tissue_grid
        )  # of all tissue, and not of the embedded part
        key = cache_key(slide, self.bundle, grid, "student", stain=stain)
        is_embedded = self.cache.has(key, grid.lr_index)
        is_embedded &= self.scope.select(tissue_grid).is_selected
        if not is_embedded.any():
            return
        part = replace(tissue_grid, grid=grid.select(is_embedded))
        # Without the other patches, a thin region may lie on none of these by enough.
        if self.scope.select(part).is_selected.any():
            device = resolve_device(self.device)
            *_, last = predict(
                slide,
                self.bundle,
                device=device,
                scope=self.scope,
                tissue_grid=part,
                cache=self.cache,
                allow_missing=self.allow_missing,
                stain=stain,
                exclude_artefacts=self.exclude_artefacts,
            )
            if isinstance(last, Finished):
                yield Partial(last.result)

    def _write(self, prediction: Prediction) -> None:
        if self.out is not None:
            from napari_lrmil.core.results.writer import write_prediction

            write_prediction(self.out, self.open_slides.get_slide(self.slide), prediction)


def warm_up_model(bundle: Bundle) -> None:
    """Load the student and run it on one blank patch: the first forward pass is slow and would block the window.

    A broken bundle is ignored here; the run itself reports it.
    """
    import numpy as np

    from napari_lrmil.core.features.extraction import embed
    from napari_lrmil.core.models.pooling import pool_instances

    side = bundle.card.lr_patch_px
    try:
        student = bundle.student
    except LrmilError:
        return
    blank = np.full((1, side, side, 3), 255, np.uint8)
    pool_instances(bundle.student_mil, embed(student.encoder, blank, bundle.card.student_input_px, "cpu"))


def reserve_core_for_window() -> None:
    """Limit torch to all cores but one, because the window has to stay responsive.

    Call it in the thread that computes: OpenMP counts threads for the calling thread alone.
    """
    import torch

    from napari_lrmil.core.threads import leave_core_free

    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 2) - 1)))
    leave_core_free()
