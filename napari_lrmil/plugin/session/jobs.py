"""Work that the window asks for, as streams of events: find the tissue, analyse, follow the view. No Qt, no napari."""

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

PARTIAL_INTERVAL_S = 0.4  # between pictures of an answer that is still growing


@dataclass(frozen=True)
class FindTissueJob:
    """Find a slide's tissue, so that patches can be counted before a run; and load the model, or the run would wait."""

    slide: SlideChoice
    bundle: Bundle
    open_slides: OpenSlides

    def events(self) -> Iterator[Event]:
        """Yield how far it is, and last where the tissue is."""
        yield Progress("tissue", 0, 1, "slide")
        reserve_core_for_window()
        yield Finished(self.open_slides.get_tissue_grid(self.slide, self.bundle))
        warm_up_model(self.bundle)


@dataclass(frozen=True)
class PredictJob:
    """What a run needs, fixed when it starts.

    Attributes
    ----------
    slide, bundle, device
        What is asked of whom, and where it is computed.
    open_slides, cache
        Open slides and their tissue; embeddings made before.
    scope
        Which part of the slide.
    teacher
        LR patches that the teacher reads beside the student.
    out
        Folder in which the result is written; None writes nothing.
    """

    slide: SlideChoice
    bundle: Bundle
    device: str
    open_slides: OpenSlides
    cache: EmbeddingCache
    scope: RegionOfInterest = WHOLE_SLIDE
    teacher: TeacherPatches = TeacherPatches.NONE
    out: Path | None = None

    def events(self) -> Iterator[Event]:
        """Analyse the slide, and write the result where asked."""
        from napari_lrmil.core.features.devices import resolve_device
        from napari_lrmil.core.inference.predict import predict

        reserve_core_for_window()
        began = time.perf_counter()
        slide = self.open_slides.get_slide(self.slide)
        seconds, device = time.perf_counter() - began, resolve_device(self.device)
        yield Progress("tissue", 0, 1, "slide")
        stream = predict(
            slide,
            self.bundle,
            device=device,
            teacher=self.teacher,
            seconds_open=seconds,
            scope=self.scope,
            tissue_grid=self.open_slides.get_tissue_grid(self.slide, self.bundle),
            cache=self.cache,
        )
        with closing(stream) as events:  # type: ignore[type-var]  # generators close
            for event in events:
                if isinstance(event, Finished):
                    self._write(event.result)
                yield event

    def live_events(self) -> Iterator[Event]:
        """Answer as `events` does, and now and then on the way from what is embedded so far."""
        shown = time.monotonic()
        with closing(self.events()) as events:  # type: ignore[type-var]  # generators close
            for event in events:
                if (
                    isinstance(event, Progress)
                    and event.unit == "patches"
                    and time.monotonic() - shown > PARTIAL_INTERVAL_S
                ):
                    yield from self._so_far()
                    shown = time.monotonic()
                if not isinstance(event, Notice):  # the same with every step of the view
                    yield event

    def _so_far(self) -> Iterator[Event]:
        """Answer from the patches that are embedded by now."""
        from napari_lrmil.core.features.devices import resolve_device
        from napari_lrmil.core.inference.predict import cache_key, predict

        slide, ground = (
            self.open_slides.get_slide(self.slide),
            self.open_slides.get_tissue_grid(self.slide, self.bundle),
        )
        there = self.cache.has(cache_key(slide, self.bundle, ground.grid, "student"), ground.grid.lr_index)
        there &= self.scope.keeps(ground.grid)
        if there.any():
            part = replace(ground, grid=ground.grid.only(there))
            device = resolve_device(self.device)
            *_, last = predict(slide, self.bundle, device=device, scope=self.scope, tissue_grid=part, cache=self.cache)
            if isinstance(last, Finished):
                yield Partial(last.result)

    def _write(self, prediction: Prediction) -> None:
        if self.out is not None:
            from napari_lrmil.core.results.writer import write_prediction

            write_prediction(self.out, self.open_slides.get_slide(self.slide), prediction)


def warm_up_model(bundle: Bundle) -> None:
    """Load the student and look at one blank patch, for the first look of a network holds the window up.

    What is wrong with the bundle is told when somebody asks for an answer.
    """
    import numpy as np
    import torch

    from napari_lrmil.core.features.extraction import encode
    from napari_lrmil.core.models.mil import pool_bag

    side, cpu = bundle.card.lr_patch_px, torch.device("cpu")
    try:
        student = bundle.student
    except LrmilError:
        return
    blank = np.full((1, side, side, 3), 255, np.uint8)
    pool_bag(student.mil, encode(student.encoder, blank, bundle.card.student_input_px, cpu).embedding.numpy(), cpu)


def reserve_core_for_window() -> None:
    """Keep one core free for the window. OpenMP counts threads for the calling thread alone."""
    import torch

    from napari_lrmil.core.features.devices import limit_torch_threads as leave

    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 2) - 1)))
    leave()
