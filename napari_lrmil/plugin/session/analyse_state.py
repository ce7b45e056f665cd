"""State of the Analyse dock: one frozen value, computed from the user's choices and from facts. No Qt, no napari.

`resolve` is a pure function. The dock and the canvas apply the state that it returns, and nothing else decides what
they show. So the canvas always shows the slide that the dock names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from napari_lrmil.plugin.session.choices import Choices
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.preconditions import (
    NO_MODEL,
    STUDENT,
    why_roi_empty,
    why_roi_missing,
    why_teacher_unavailable,
    why_too_coarse,
)
from napari_lrmil.plugin.session.run_state import NO_OUTCOME, ActiveRun, RunOutcome, SessionState

if TYPE_CHECKING:
    import numpy as np

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import TissueGrid
    from napari_lrmil.plugin.session.eta import RunEstimate, StageProgress

SLIDE_ROLES = ("underlay", "slide")
_MAP_ROLES = ("attention", "wipe", "difference")
SPLIT_ROLES = (*SLIDE_ROLES, "attention", "evidence", "picked")  # roles with a place in two linked views
NO_SLIDE = "No slide is open: press Open slide…, drop one on the window, or take File > Open Sample."
MAP_DELETED = "The map of this answer was deleted. Change a setting under Attention to draw it again."
EARLIER_ANSWER = "A new run is active. This is the earlier answer."
SLIDE_HIDDEN = "The slide is hidden in the layer list."
GRID_ON = "Napari's grid is on, so several slides may be visible. The dock is about {name}."


@dataclass(frozen=True)
class LayerFact:
    """A layer of this plugin in the viewer.

    Attributes
    ----------
    role, side
        Content and view of the layer, as in its tag.
    path
        File of its slide.
    is_hidden_by_hand
        Whether the user has hidden it in the layer list.
    """

    role: str
    path: Path
    side: str = "student"
    is_hidden_by_hand: bool = False


@dataclass(frozen=True, eq=False)  # it holds arrays
class Facts:
    """What is the case, apart from the user's choices.

    Attributes
    ----------
    slides
        Slides in the viewer's layer list.
    bundle
        The chosen model, open; None if none is chosen or it cannot be opened.
    model_problem
        Why the chosen model cannot be opened.
    tissue_grid
        Tissue grid of the chosen slide; None before it has been computed.
    is_selected
        (N,) LR patches that a run would read; None without a tissue grid.
    estimate
        Expected cost of a run; None before the tissue grid has been computed.
    run
        The active run, of whichever slide.
    outcome
        Last outcome for the chosen slide and model.
    layers
        Layers of this plugin, the lowest first.
    is_grid_on
        Whether napari's grid is on because the user switched it on, so that slides lie side by side.
    """

    slides: tuple[SlideChoice, ...] = ()
    bundle: Bundle | None = None
    model_problem: str = ""
    tissue_grid: TissueGrid | None = None
    is_selected: NDArray[np.bool_] | None = None
    estimate: RunEstimate | None = None
    run: ActiveRun | None = None
    outcome: RunOutcome = NO_OUTCOME
    layers: tuple[LayerFact, ...] = ()
    is_grid_on: bool = False


@dataclass(frozen=True)
class AnalyseState:
    """What dock and canvas show.

    Attributes
    ----------
    choices
        The user's choices.
    slides
        Slides to choose from.
    slide
        The slide that the dock names and the canvas shows; None without one.
    bundle
        The chosen model, open; None without one.
    has_tissue
        Whether the tissue grid of the slide has been computed.
    tissue_grid
        That grid; None before it has been computed.
    excludes_artefacts
        Whether artefacts are left out of the tissue, by choice or by the model.
    estimate
        Expected cost of a run; None while it is unknown.
    stage
        Stage of the run.
    progress
        Progress of the active run; None without one.
    running_elsewhere
        Name of another slide, if the active run is of that one; else empty.
    prediction
        The answer for this slide and the chosen model; None without one. During a new run the earlier answer stays.
    run_blocked
        Why no run can start; empty if one can.
    teacher_blocked
        Why the teacher cannot run; empty if it can.
    message
        Why there is no answer or no model; empty without a failure.
    warnings
        Cautions about the answer.
    canvas_notes
        Sentences on the shown slide and answer: why it is shown, and what the user changed by hand.
    layers_shown
        For each layer of `Facts.layers`: True shown, False hidden, None as the user sets it.
    is_split
        Whether student and teacher lie side by side.
    """

    choices: Choices = field(default_factory=Choices)
    slides: tuple[SlideChoice, ...] = ()
    slide: SlideChoice | None = None
    bundle: Bundle | None = field(default=None, compare=False)
    has_tissue: bool = False
    tissue_grid: TissueGrid | None = field(default=None, compare=False)  # it holds arrays
    excludes_artefacts: bool = False
    estimate: RunEstimate | None = None
    stage: SessionState = SessionState.IDLE
    progress: StageProgress | None = None
    running_elsewhere: str = ""
    prediction: Prediction | None = field(default=None, compare=False)  # it holds arrays
    run_blocked: str = NO_SLIDE
    teacher_blocked: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()
    canvas_notes: tuple[str, ...] = ()
    layers_shown: tuple[bool | None, ...] = ()
    is_split: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether a run has not ended yet."""
        return self.stage in (SessionState.RUNNING, SessionState.CANCELLING)


def resolve(choices: Choices, facts: Facts) -> AnalyseState:
    """Return the state of dock and canvas that follows from choices and facts."""
    slide = pick_slide(choices.slide, facts.slides)
    run, model = facts.run, facts.bundle.sha256 if facts.bundle is not None else ""
    is_run_here = run is not None and run.key == (slide, model)
    outcome = facts.outcome if slide == choices.slide else NO_OUTCOME
    warnings = (*outcome.warnings, *(run.warnings if run is not None and is_run_here else ()))
    is_split = _is_split(facts.layers, slide, outcome.prediction)
    return AnalyseState(
        choices=choices,
        slides=facts.slides,
        slide=slide,
        bundle=facts.bundle,
        has_tissue=facts.tissue_grid is not None,
        tissue_grid=facts.tissue_grid,
        excludes_artefacts=leaves_out_artefacts(choices, facts.bundle),
        estimate=facts.estimate,
        stage=run.state if run is not None else outcome.state,
        progress=run.progress if run is not None else None,
        running_elsewhere=run.key[0].name if run is not None and not is_run_here else "",
        prediction=outcome.prediction,
        run_blocked=why_run_blocked(choices, facts),
        teacher_blocked=why_teacher_unavailable(slide, facts.bundle),
        message=("" if is_run_here else outcome.message) or facts.model_problem,
        warnings=tuple(dict.fromkeys(warnings)),
        canvas_notes=_canvas_notes(choices, facts, slide, outcome.prediction, is_split),
        layers_shown=tuple(_is_shown(layer, slide, outcome.prediction, facts, is_split) for layer in facts.layers),
        is_split=is_split,
    )


def pick_slide(chosen: SlideChoice | None, slides: Sequence[SlideChoice]) -> SlideChoice | None:
    """Return the chosen slide if it is still open, under whatever name, else the last one; None without slides."""
    same_file = (slide for slide in slides if chosen is not None and _is_same_file(slide, chosen))
    if chosen in slides:
        return chosen
    return next(same_file, slides[-1] if slides else None)


def _is_same_file(slide: SlideChoice, other: SlideChoice) -> bool:
    return (slide.path, slide.mpp, slide.given_mpp) == (other.path, other.mpp, other.given_mpp)


def leaves_out_artefacts(choices: Choices, bundle: Bundle | None) -> bool:
    """Return whether artefacts are left out of the tissue, by choice or by the model."""
    by_model = bundle is not None and bundle.card.tissue.exclude_artefacts
    return by_model or choices.of_slide.exclude_artefacts


def why_run_blocked(choices: Choices, facts: Facts) -> str:
    """Return why no run can start with these choices; empty if one can."""
    slide, bundle, of_slide = pick_slide(choices.slide, facts.slides), facts.bundle, choices.of_slide
    if slide is None:
        return NO_SLIDE
    if bundle is None:
        return facts.model_problem or NO_MODEL
    blocked = why_too_coarse(slide, bundle.card.lr_mpp, STUDENT)
    blocked = blocked or why_roi_missing(of_slide.roi_kind, of_slide.regions, of_slide.view)
    if blocked or facts.tissue_grid is None or facts.is_selected is None:
        return blocked  # without tissue, the run itself finds it, and reports an empty region
    return why_roi_empty(of_slide.scope, facts.tissue_grid, facts.is_selected, of_slide.what_if)


# ---------------------------------------------------------------- canvas


def _is_split(layers: Sequence[LayerFact], slide: SlideChoice | None, prediction: Prediction | None) -> bool:
    """Return whether student and teacher of the chosen slide lie side by side."""
    if slide is None or prediction is None:
        return False
    sides = {layer.side for layer in layers if layer.path == slide.path and layer.role == "attention"}
    return sides == {"student", "teacher"}


def _is_shown(
    layer: LayerFact, slide: SlideChoice | None, prediction: Prediction | None, facts: Facts, is_split: bool
) -> bool | None:
    """Return whether a layer is shown; None if the user decides."""
    if slide is None or layer.path != slide.path:
        return None if facts.is_grid_on and slide is not None and layer.role in SLIDE_ROLES else False
    has_evidence = any(other.path == slide.path and other.role == "evidence" for other in facts.layers)
    if is_split:
        is_replaced = has_evidence and (layer.role, layer.side) == ("attention", "student")
        return layer.role in SPLIT_ROLES and not is_replaced
    if layer.side == "teacher":
        return False
    if layer.role in _MAP_ROLES:
        return prediction is not None and not has_evidence
    return prediction is not None or layer.role not in ("evidence", "picked")


def _canvas_notes(
    choices: Choices, facts: Facts, slide: SlideChoice | None, prediction: Prediction | None, is_split: bool
) -> tuple[str, ...]:
    if slide is None:
        return ()
    own = [layer for layer in facts.layers if layer.path == slide.path]
    roles = {layer.role for layer in own}
    is_hidden = any(layer.role == "slide" and layer.is_hidden_by_hand for layer in own)
    notes = (
        (choices.reason, slide == choices.slide),
        (EARLIER_ANSWER, prediction is not None and facts.run is not None and facts.run.key[0] == slide),
        (SLIDE_HIDDEN, is_hidden),
        (MAP_DELETED, prediction is not None and bool(own) and roles.isdisjoint((*_MAP_ROLES, "evidence"))),
        (GRID_ON.format(name=slide.name), facts.is_grid_on and len(facts.slides) > 1),
    )
    return tuple(text for text, applies in notes if text and applies)
