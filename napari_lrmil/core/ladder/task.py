"""Cohort task of ``predict --ladder`` and ``predict --cascade``: one slide on all rungs, or on those that it needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from napari_lrmil.core.cohort.slide_task import SlideOutput, SlidePredictionTask, WriteFile
from napari_lrmil.core.errors import BundleError, NewerSchemaError, StoredError
from napari_lrmil.core.events import Event, Notice
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.ladder.cascade import run_cascade
from napari_lrmil.core.ladder.climb import Climber, ClimbOptions, MissingRung, RungResult
from napari_lrmil.core.ladder.rungs import Ladder, open_ladder
from napari_lrmil.core.ladder.schema import CascadeFile, LadderFile
from napari_lrmil.core.ladder.table import (
    build_cascade_file,
    build_ladder_file,
    write_cascade_table,
    write_ladder_table,
)
from napari_lrmil.core.results.schema import PREDICTION
from napari_lrmil.core.slides.slide import Slide


@dataclass(frozen=True, kw_only=True)
class ClimbTask(SlidePredictionTask[Ladder]):
    """Cohort task of a ladder or a cascade.

    Attributes
    ----------
    bundles
        Folders of the models, the coarsest student first.
    ladder_sha256
        Hash that the ladder must have.
    teacher
        Whether the teacher is the finest rung.
    is_cascade
        Whether a finer rung is read only if the set of the coarser one leaves the answer open.
    budget
        Wall seconds of a cascade for each slide; None for no limit.
    """

    bundles: tuple[Path, ...]
    ladder_sha256: str
    teacher: bool
    is_cascade: bool = False
    budget: float | None = None

    def open_model(self) -> Ladder:
        """Return the ladder, opened once per process."""
        return open_ladder_once(self.bundles, self.teacher, self.ladder_sha256)

    def compute(self, slide: Slide, model: Ladder, open_seconds: float) -> Generator[Event, None, SlideOutput]:
        """Read the slide on all rungs, or on those that it needs."""
        options = ClimbOptions(
            resolve_device(self.device),
            self.runtime,
            self.allow_missing,
            self.exclude_artefacts,
            self.read_regions(slide),
        )
        climber = Climber(slide, model, options, open_seconds)
        return (yield from self._cascade(climber) if self.is_cascade else self._ladder(climber))

    @property
    def request_sha256(self) -> str:
        """Hash of everything that the results depend on besides the slide."""
        options = [self.ladder_sha256, self.is_cascade, self.budget, self.runtime, self.reader, self.allow_missing]
        options += ["without artefacts"] if self.exclude_artefacts else []  # without it as in earlier versions
        return hashlib.sha256(json.dumps(options).encode()).hexdigest()

    def _ladder(self, climber: Climber) -> Generator[Event, None, SlideOutput]:
        """Read all rungs. The prediction is that of the finest one that was read."""
        outcomes = list[RungResult | MissingRung]()
        for rung in climber.ladder.rungs:
            outcome = yield from climber.try_read(rung)
            if isinstance(outcome, MissingRung):
                yield Notice(f"{rung.label} is missing: {outcome.reason}", climber.slide.name)
            outcomes.append(outcome)
        read = [outcome for outcome in outcomes if isinstance(outcome, RungResult)]
        if not read:
            raise next(outcome.error for outcome in outcomes if isinstance(outcome, MissingRung))
        file = build_ladder_file(climber.slide, climber.ladder, outcomes, self.request_sha256)
        if not climber.options.scope.is_whole_slide:
            file = file.model_copy(update={"text": f"{climber.options.scope.text}: {file.text}"})
        files: list[WriteFile] = [file.write, lambda folder: write_ladder_table(folder, [file])]
        return SlideOutput(read[-1].prediction, file.text, lambda _: files)

    def _cascade(self, climber: Climber) -> Generator[Event, None, SlideOutput]:
        """Read the rungs that the slide needs. The prediction is that of the rung whose answer holds."""
        result, answer = yield from run_cascade(climber, self.budget)
        request = self.request_sha256, self.budget
        file = build_cascade_file(climber.slide, climber.ladder, result, climber.figures, request)
        prediction = answer.prediction
        if answer.rung.is_teacher:  # a reader of prediction.json would take the student's probabilities for the answer
            text = f"the cascade was answered by the teacher: {file.text}; the student here had left it open"
            yield Notice(text, climber.slide.name)
            prediction = replace(prediction, warnings=(*prediction.warnings, text))
        files: list[WriteFile] = [file.write, lambda folder: write_cascade_table(folder, [file])]
        return SlideOutput(prediction, file.text, lambda _: files)

    def find_earlier(self, slide: Slide, model: Ladder) -> str:  # its hash is part of the request
        """Return the sentence of an equal earlier result; empty if there is none."""
        folder = self.folder / slide.name
        kind = CascadeFile if self.is_cascade else LadderFile
        if not (folder / kind.FILE_NAME).is_file() or not (folder / PREDICTION).is_file():
            return ""
        try:
            file = kind.read(folder)
        except NewerSchemaError:
            raise
        except StoredError:  # broken: the slide is read again
            return ""
        is_equal = (file.slide_fingerprint, file.request_sha256) == (slide.fingerprint, self.request_sha256)
        return f"{file.text} (already there)" if is_equal else ""


@lru_cache(maxsize=1)
def open_ladder_once(bundles: tuple[Path, ...], teacher: bool, sha256: str) -> Ladder:
    """Return a ladder, opened once per process. Its networks are loaded on first use.

    Raises
    ------
    BundleError
        If a bundle changed since the work began.
    """
    ladder = open_ladder(bundles, teacher=teacher)
    if ladder.sha256 != sha256:
        raise BundleError(bundles[0], "", "the bundles are not those that the work began with; start the call again")
    return ladder
