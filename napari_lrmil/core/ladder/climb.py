"""One slide on the rungs of a ladder: each network once, with one tissue mask and one open file for all."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from napari_lrmil.core.errors import MissingTilesError, ResolutionError, SlideError, TissueError
from napari_lrmil.core.events import Event, Finished, Notice, Progress
from napari_lrmil.core.formatting import ABOUT_MODEL
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.slide_limits import PredictionSet, prediction_set
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.ladder.rungs import Ladder, Rung
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.limits import SET_COVERAGE
from napari_lrmil.core.patching.grid import (
    TissueGrid,
    find_tissue_grid,
    nested_grid_from_tissue,
    place_tissue,
    require_resolution,
)
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.patching.tissue import Tissue
from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    import torch

# A slide may lack what one rung needs, and still be read by the others.
RUNG_ERRORS = (ResolutionError, TissueError, MissingTilesError)


@dataclass(frozen=True)
class Cost:
    """Cost of a step: wall seconds, CPU-seconds over all threads, and native pixels decoded."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    pixels: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds, self.pixels + other.pixels)


@dataclass(frozen=True, eq=False)
class RungFigures:
    """Answer and cost of one rung on one slide.

    Attributes
    ----------
    rung
        The network.
    probabilities
        Class -> probability.
    n_patches
        Patches that it read.
    own
        Cost of the network, without opening the slide and without the tissue mask.
    mask
        Cost of the tissue mask that it used.
    has_new_mask
        Whether the mask was made for this rung. If not, a coarser rung had made it.
    open_seconds
        Seconds that opening the slide took.
    pace_seconds
        Part of `own` that grows with the number of patches: reading, encoding and pooling.
    is_whole_slide
        Whether it answers for the whole slide, of which alone probabilities are calibrated and sets hold.
    """

    rung: Rung
    probabilities: Mapping[str, float]
    n_patches: int
    own: Cost
    mask: Cost
    has_new_mask: bool
    open_seconds: float
    pace_seconds: float
    is_whole_slide: bool = True

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda c: self.probabilities[c])

    @property
    def alone(self) -> Cost:
        """Cost of this rung if it were the only one."""
        return Cost(self.open_seconds) + self.mask + self.own

    @property
    def added(self) -> Cost:
        """Cost that this rung added to those before it; opening the slide is not part of it."""
        return self.own + self.mask if self.has_new_mask else self.own

    def set_at(self, coverage: float = SET_COVERAGE) -> PredictionSet | None:
        """Return the set of classes at a coverage; None if the network has no sets, and for a region."""
        limits = self.rung.limits
        if limits is None or not self.is_whole_slide:
            return None
        return prediction_set(limits, self.rung.bundle.card.classes, self.probabilities, coverage)

    @property
    def no_set_reason(self) -> str:
        """Reason why there is no set of classes; empty if there is one."""
        if not self.is_whole_slide:
            return "a part of a slide has no set"
        reason = self.rung.why_no_sets
        return f"not calibrated, {reason}" if self.rung.limits is None else reason


@dataclass(frozen=True, eq=False)
class RungResult:
    """Figures of one rung, and the whole prediction.

    Attributes
    ----------
    figures
        Answer and cost.
    prediction
        As `predict` returns it for this bundle alone; with the teacher if the rung is the teacher.
    """

    figures: RungFigures
    prediction: Prediction

    @property
    def rung(self) -> Rung:
        """The network."""
        return self.figures.rung

    @property
    def network(self) -> NetworkPrediction:
        """Prediction of the rung's network."""
        return _network_of(self.rung, self.prediction)


@dataclass(frozen=True, eq=False)
class MissingRung:
    """A rung that a slide cannot be read at.

    Attributes
    ----------
    rung
        The network.
    reason
        One sentence.
    error
        The error.
    """

    rung: Rung
    reason: str
    error: SlideError


@dataclass(frozen=True)
class ClimbOptions:
    """Options of all rungs, see `napari_lrmil.core.inference.predict.predict`."""

    device: str | torch.device
    runtime: str = "torch"
    allow_missing: bool = False
    exclude_artefacts: bool = False
    scope: RegionOfInterest = WHOLE_SLIDE


@dataclass
class Climber:
    """The rungs of one open slide.

    Attributes
    ----------
    slide
        The slide.
    ladder
        The rungs.
    options
        Options of all rungs.
    open_seconds
        Seconds that opening the slide took.
    """

    slide: Slide
    ladder: Ladder
    options: ClimbOptions
    open_seconds: float = 0.0
    _masks: list[_Mask] = field(default_factory=list)
    _results: dict[Rung, RungResult] = field(default_factory=dict)
    _shown: set[str] = field(default_factory=set)

    @property
    def figures(self) -> list[RungFigures]:
        """Figures of the rungs that were read, in the order of reading."""
        return [result.figures for result in self._results.values()]

    def count_patches(self, rung: Rung) -> int | MissingRung:
        """Return the number of patches that a rung reads, or the reason why the slide cannot be read there."""
        try:
            tissue_grid = self._find_mask(rung)[0]
            grid, _ = self.options.scope.of(tissue_grid, self.slide.path)
        except RUNG_ERRORS as error:
            return self._missing(rung, error)
        return len(grid.hr_index if rung.is_teacher else grid.lr_index)

    def read(self, rung: Rung) -> Generator[Event, None, RungResult]:
        """Run one rung and return its result. Closing the generator cancels it.

        Raises
        ------
        LrmilError
            See `predict`.
        """
        tissue_grid, mask = self._find_mask(rung)
        prediction = yield from self._pass_on(rung, tissue_grid)
        network = _network_of(rung, prediction)
        own = Cost(network.seconds["total"], network.cpu_seconds, network.pixels_decoded)
        figures = RungFigures(
            rung=rung,
            probabilities=network.probabilities,
            n_patches=len(network.attention),
            own=own,
            mask=mask.cost,
            has_new_mask=mask.owner is rung,
            open_seconds=self.open_seconds,
            pace_seconds=max(0.0, own.seconds - network.seconds["tissue"] - network.seconds["prepare"]),
            is_whole_slide=prediction.scope.is_whole_slide,
        )
        result = RungResult(figures, self._as_if_alone(figures, prediction))
        self._results[rung] = result
        return result

    def try_read(self, rung: Rung) -> Generator[Event, None, RungResult | MissingRung]:
        """Run one rung; if the slide lacks what it needs, return the reason."""
        try:
            return (yield from self.read(rung))
        except RUNG_ERRORS as error:
            return self._missing(rung, error)

    def _missing(self, rung: Rung, error: SlideError) -> MissingRung:
        return MissingRung(rung, str(error).removeprefix(f"{self.slide.path}: "), error)

    def _pass_on(self, rung: Rung, tissue_grid: TissueGrid) -> Generator[Event, None, Prediction]:
        """Pass the events of a prediction on with the rung's name, and return its result.

        Notices about the slide's file or a model are passed on once, and without the name of the rung.
        """
        events = predict(
            self.slide,
            rung.bundle,
            device=self.options.device,
            teacher=TeacherPatches.ALL if rung.is_teacher else TeacherPatches.NONE,
            tissue_grid=tissue_grid,
            student=self._student_of(rung.bundle) if rung.is_teacher else None,
            runtime=self.options.runtime,
            allow_missing=self.options.allow_missing,
            exclude_artefacts=self.options.exclude_artefacts,
            scope=self.options.scope,
        )
        for event in events:
            match event:
                case Finished(result):
                    prediction: Prediction = result
                case Progress(stage):
                    yield replace(event, stage=f"{rung.label} · {stage}")
                case Notice(message) if message in self.slide.warnings or message.startswith(ABOUT_MODEL):
                    if message not in self._shown:
                        self._shown.add(message)
                        yield event
                case Notice(message):
                    yield replace(event, message=f"{rung.label} ({rung.bundle.name}): {message}")
                case _:
                    yield event
        return prediction

    def _as_if_alone(self, figures: RungFigures, prediction: Prediction) -> Prediction:
        """Return the prediction with the costs of opening and tissue, as a call for this bundle alone states them."""
        if not figures.rung.is_teacher:
            return replace(prediction, student=_with_shared(prediction.student, figures))
        assert prediction.teacher is not None
        return replace(prediction, teacher=_with_shared(prediction.teacher, figures))

    def _student_of(self, bundle: Bundle) -> NetworkPrediction | None:
        """Return what the student of a bundle predicted on its own rung; None if it could not be read."""
        students = (result for rung, result in self._results.items() if not rung.is_teacher)
        return next((result.prediction.student for result in students if result.rung.bundle is bundle), None)

    def _find_mask(self, rung: Rung) -> tuple[TissueGrid, _Mask]:
        card = rung.bundle.card
        require_resolution(self.slide, rung.mpp, "teacher (HR)" if rung.is_teacher else "student (LR)")
        lattice = card.plan.lattice(self.slide.bounds, self.slide.mpp)
        config = replace(card.tissue, exclude_artefacts=True) if self.options.exclude_artefacts else card.tissue
        for mask in self._masks:
            if mask.config == config and mask.tissue.lattice.cell == lattice.cell:
                tissue = place_tissue(mask.tissue, lattice)
                return TissueGrid(tissue, nested_grid_from_tissue(self.slide.path, tissue, config)), mask
        self.slide.count_damaged_tiles()  # `predict` checks their number
        began, cpu, decoded = time.perf_counter(), time.process_time(), self.slide.pixels_decoded
        grid = find_tissue_grid(self.slide, card.plan, config)
        cost = Cost(time.perf_counter() - began, time.process_time() - cpu, self.slide.pixels_decoded - decoded)
        self._masks.append(_Mask(grid.tissue, config, cost, rung))
        return grid, self._masks[-1]


@dataclass(frozen=True, eq=False)
class _Mask:
    """A tissue mask with its settings, its cost, and the rung that it was made for."""

    tissue: Tissue
    config: Any
    cost: Cost
    owner: Rung


def _network_of(rung: Rung, prediction: Prediction) -> NetworkPrediction:
    network = prediction.teacher if rung.is_teacher else prediction.student
    assert network is not None  # the teacher's rung runs the teacher
    return network


def _with_shared(network: NetworkPrediction, figures: RungFigures) -> NetworkPrediction:
    """Return a network's prediction whose costs include opening the slide and the tissue mask."""
    seconds, alone = network.seconds, figures.alone
    seconds = seconds | {"open": figures.open_seconds, "tissue": seconds["tissue"] + figures.mask.seconds}
    return replace(
        network,
        pixels_decoded=alone.pixels,
        cpu_seconds=alone.cpu_seconds,
        seconds=seconds | {"total": alone.seconds},
    )
